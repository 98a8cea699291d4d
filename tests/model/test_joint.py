"""Several backbones under one head: each sees what it wants to see, and the head sees all that they see."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn

from foveal.config import load
from foveal.data.manifest import Manifest
from foveal.data.reading import Recipe
from foveal.errors import ArtifactError, ConfigError
from foveal.model.build import Architecture, Classifier, build
from foveal.model.bundle import ArchitectureSpec, read_bundle, write_bundle
from foveal.model.config import HeadConfig, ModelConfig, Normalisation, in_words
from foveal.model.costs import count_parameters, summarise
from foveal.model.feature_store import cached_features
from foveal.model.freeze import apply_freeze, layers_with_weights, set_training_mode
from foveal.model.small_cnn import SmallCnn
from foveal.model.weights import load_weights
from foveal.pixels.policy import Geometry
from foveal.training.config import Config
from foveal.training.optim import parameter_groups
from foveal.training.resolve import Facts, architecture_of, resolve

PAIR = ("small_cnn", "test_resnet")
OTHER = Normalisation(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))


def make(names: tuple[str, ...] = PAIR, size: int = 32, *, seed: int = 0, **fields: Any) -> Classifier:
    torch.manual_seed(seed)
    head = HeadConfig(**fields.pop("head", {}))
    classifier = build(Architecture(name=names, num_classes=3, image_size=size, head=head, **fields))
    torch.manual_seed(seed)
    for module in classifier.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics that training mode would not compute
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return classifier.eval()


def of(classifier: Classifier, *prefixes: str) -> set[str]:
    """All parameters below these names, none of which may be missing."""
    found = [{n for n, _ in classifier.net.named_parameters() if n.startswith(f"{prefix}.")} for prefix in prefixes]
    assert all(found)
    return set().union(*found)


def trained(classifier: Classifier) -> set[str]:
    return {name for name, parameter in classifier.net.named_parameters() if parameter.requires_grad}


def pictures(num: int = 4, side: int = 32) -> torch.Tensor:
    return torch.rand(num, 3, side, side, generator=torch.Generator().manual_seed(5))


def write(folder: Path, classifier: Classifier, template: Path) -> Path:
    """The bundle of a classifier."""
    spec = read_bundle(template).spec.model_dump(exclude={"format_version", "foveal_version", "files"})
    spec["architecture"] = classifier.architecture.spec()
    size = classifier.architecture.image_size
    spec["preprocessing"] |= {"size_px": size, "store_px": size}
    spec["preprocessing"] |= {"mean": classifier.architecture.mean, "std": classifier.architecture.std}
    write_bundle(folder, spec, classifier.net.state_dict())
    return folder


def test_logits_are_those_of_the_features_put_together_by_hand() -> None:
    """Each backbone gets its own mean and deviation, as it would alone."""
    classifier = make(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), further_normalisations=(OTHER,))
    state = classifier.net.state_dict()
    alone: list[nn.Module] = [SmallCnn(0), timm.create_model("test_resnet", num_classes=0)]
    rows, pixels = [], pictures()
    for number, (net, mean, std) in enumerate(
        [(alone[0], (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)), (alone[1], OTHER.mean, OTHER.std)]
    ):
        prefix = f"branches.{number}.backbone."
        net.load_state_dict({key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)})
        by_numpy = (pixels.numpy() - np.array(mean)[:, None, None]) / np.array(std)[:, None, None]
        with torch.no_grad():
            rows.append(net.eval()(torch.from_numpy(by_numpy.astype(np.float32))).numpy())
    row = np.concatenate(rows, axis=1)
    logits = row @ state["head.fc.weight"].numpy().T + state["head.fc.bias"].numpy()
    with torch.no_grad():
        np.testing.assert_allclose(classifier.pooled(pixels).numpy(), row, atol=2e-5, rtol=1e-4)
        np.testing.assert_allclose(classifier(pixels).numpy(), logits, atol=2e-5, rtol=1e-4)
        assert torch.equal(classifier(pixels), classifier.classify(classifier.pooled(pixels)))
    assert classifier.num_features == row.shape[1] == 128 + 96
    assert count_parameters(classifier) == sum(count_parameters(net) for net in alone) + 3 * row.shape[1] + 3


def test_where_all_want_the_same_nothing_is_computed_in_between() -> None:
    """So that the first backbone's features are to the bit those that it has alone, and the second's too."""
    pixels, classifier = pictures(), make(("test_resnet", "test_resnet"))
    state = classifier.net.state_dict()
    with torch.no_grad():
        row = classifier.pooled(pixels).chunk(2, dim=1)
        for number in range(2):
            single = build(Architecture(name="test_resnet", num_classes=3, image_size=32)).eval()
            prefix = f"branches.{number}.backbone."
            own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
            single.net.load_state_dict({**own, "fc.weight": torch.zeros(3, 96), "fc.bias": torch.zeros(3)})
            assert torch.equal(single.pooled(pixels), row[number])
    assert not torch.equal(*row), "the same network twice has two random starts"


@pytest.mark.parametrize(
    ("names", "size", "head", "num_features"),
    [
        (("alexnet", "small_cnn"), 64, {}, 4096 + 128),
        (("test_vit", "test_resnet", "small_cnn"), 32, {"kind": "dense", "layers": (8,), "batch_norm": True}, 288),
        (("test_vit", "test_convnext"), 64, {"pool": "avg", "attention": "se", "spatial_dropout": 0.5}, 64 + 64),
        (("resnetv2_18d", "test_efficientnet"), 32, {"dropout": 0.5, "batch_norm": True}, 512 + 256),
    ],
)
def test_any_networks_go_together_and_a_bundle_brings_them_back_to_the_bit(
    tiny_bundle: Path, tmp_path: Path, names: tuple[str, ...], size: int, head: dict[str, Any], num_features: int
) -> None:
    classifier = make(names, size, head=head, further_normalisations=(OTHER,) * (len(names) - 1))
    assert classifier.num_features == num_features
    assert len(classifier.neck_modules()) == (len(names) if "attention" in head else 0)
    assert classifier.can_cache_features is ("attention" not in head)
    folder, pixels = write(tmp_path / "b", classifier, tiny_bundle), pictures(2, size)
    written = json.loads((folder / "bundle.json").read_text())["architecture"]
    assert written["name"] == list(names)
    assert written["further_normalisations"] == [json.loads(OTHER.model_dump_json())] * (len(names) - 1)
    again = read_bundle(folder).build()
    with torch.inference_mode():
        assert torch.equal(again(pixels), classifier(pixels))
    assert again.architecture == classifier.architecture


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": ["resnet18"], "library": ["timm"]}, "expected a name, or 2 to 4"),
        ({"name": ["resnet18"] * 5, "library": ["timm"] * 5}, "expected a name, or 2 to 4"),
        ({"name": ["resnet18", "../x"]}, "expected names of small letters"),
        ({"name": "resnet18"}, "one for each name"),
        ({"library": "timm"}, "one for each name"),
        ({"library": ["timm", "os"]}, "expected timm, torchvision, foveal"),
        ({"further_normalisations": [OTHER.model_dump()] * 2}, "one for each of the 1 backbones"),
        ({"further_normalisations": [{"mean": [0, 0, 0], "std": [0, 1, 1]}]}, "greater than 0"),
    ],
)
def test_the_schema_of_a_bundle_stays_closed(change: dict[str, Any], said: str) -> None:
    good = {"library": ["foveal", "timm"], "name": ["small_cnn", "resnet18"]}
    assert ArchitectureSpec.model_validate(good).name == ("small_cnn", "resnet18")
    with pytest.raises(ValidationError, match=said):
        ArchitectureSpec.model_validate({**good, **change})


def test_a_second_network_of_another_library_is_not_taken_for_ours(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "b", make(), tiny_bundle)
    tree = json.loads((folder / "bundle.json").read_text())
    tree["architecture"]["library"] = ["foveal", "torchvision"]
    (folder / "bundle.json").write_text(json.dumps(tree))
    with pytest.raises(ArtifactError, match=r"small_cnn \+ test_resnet of foveal \+ torchvision, and this foveal has"):
        read_bundle(folder).build()


def test_a_size_that_one_of_them_cannot_take_is_told_by_its_name() -> None:
    with pytest.raises(ConfigError, match=r"^alexnet cannot be built for images of 32 px"):
        make(("small_cnn", "alexnet"))


@pytest.mark.parametrize(
    ("freeze", "expected"),
    [
        ("all", ["head"]),
        ("last:2", ["branches.0.backbone.blocks.3", "branches.1.backbone.layer4.0.downsample", "head"]),
        (
            "partial",
            [*(f"branches.0.backbone.blocks.{number}" for number in (1, 2, 3)), "branches.1.backbone.layer4", "head"],
        ),
        ("stages:1", ["branches.0.backbone.blocks.3", "branches.1.backbone.layer4", "head"]),
        ("stages:4", ["branches.0", *(f"branches.1.backbone.layer{number}" for number in range(1, 5)), "head"]),
        ("none", ["branches", "head"]),
    ],
)
def test_freezing_acts_on_each_backbone(freeze: str, expected: list[str]) -> None:
    classifier = make()
    apply_freeze(classifier, freeze)
    assert trained(classifier) == of(classifier, *expected)
    before = {name: tensor.clone() for name, tensor in classifier.net.state_dict().items()}
    set_training_mode(classifier)
    optimizer = torch.optim.SGD(classifier.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(2):  # some norms begin at zero, and stop all gradients behind them for a step
        nn.functional.cross_entropy(classifier(pictures(3)), torch.tensor([0, 1, 2])).backward()
        optimizer.step()
    after = classifier.net.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved & {name for name, _ in classifier.net.named_parameters()} == trained(classifier)
    statistics = {name.rpartition(".")[0] for name in moved - trained(classifier)}
    assert statistics == {name.rpartition(".")[0] for name in before if "running" in name} & {
        name.rpartition(".")[0] for name in trained(classifier)
    }, "norms that are frozen keep what they came with, in the second backbone too"


def test_too_many_layers_for_one_of_them_are_told_by_its_name() -> None:
    classifier = make()
    # Four convolutions and the head; the other has the head too.
    assert len(layers_with_weights(classifier)) == 4 + 15 + 1
    apply_freeze(classifier, "last:5")
    with pytest.raises(ConfigError, match=r"last:6: small_cnn has 5 layers with weights"):
        apply_freeze(classifier, "last:6")
    with pytest.raises(ConfigError) as caught:
        apply_freeze(classifier, "last:99")
    assert [problem.partition(" has ")[0] for problem in caught.value.problems] == [
        "last:99: small_cnn",
        "last:99: test_resnet",
    ]


def test_dropout_of_the_frozen_part_of_the_second_backbone_is_off_and_that_of_the_head_on() -> None:
    classifier = make(("test_resnet", "test_vit"), head={"dropout": 0.5})
    blocks = classifier.net.get_submodule("branches.1.backbone.blocks")
    for block in blocks:
        block.attn.proj_drop.p = 0.9
    apply_freeze(classifier, "last:3")
    set_training_mode(classifier)
    assert [block.attn.proj_drop.training for block in blocks] == [False] * 6
    assert classifier.net.head.drop.training
    # The first backbone's layers are all passed before the second one's, and still train.
    assert classifier.net.get_submodule("branches.0.backbone.layer4.0.downsample").training


def test_rates_by_layer_fall_alike_from_the_head_however_deep_the_backbones_are() -> None:
    config = resolve(
        load(
            Config,
            None,
            [
                "model.name=[small_cnn,test_vit]",
                "model.weights=none",
                "data.image_size=32",
                "optim.lr=0.01",
                "optim.layer_decay=0.5",
                "train.device=cpu",
            ],
        ),
        Facts("folder", 100, 140, 32, 1.0),
    )
    classifier = make(("small_cnn", "test_vit"))
    groups = parameter_groups(classifier, config.optim)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    named = dict(classifier.net.named_parameters())
    assert {rates[id(named[name])] for name in of(classifier, "head")} == {0.01}

    def rate(prefix: str) -> list[float]:
        return sorted({rates[id(named[name])] for name in of(classifier, prefix)})

    for branch in range(2):
        from_behind = [
            rate(f"branches.{branch}.backbone.blocks.{number}") for number in ((3, 2, 1, 0), (5, 4, 3))[branch]
        ]
        assert all(len(each) == 1 for each in from_behind)
        steps = [math.log2(0.01 / each[0]) for each in from_behind]
        assert steps == pytest.approx([steps[0] + number for number in range(len(steps))])
        assert rate(f"branches.{branch}")[-1] == 0.005, "what is next to the head is one step behind it"
    assert decays[id(named["branches.1.backbone.pos_embed"])] == 0.0
    assert len(rates) == len(named)


class Noise:
    """Stored forms of noise."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, row: int) -> NDArray[np.uint8]:
        return np.random.default_rng(row).integers(0, 256, (35, 35, 3), dtype=np.uint8)


def test_frozen_features_of_both_are_computed_once_and_by_the_second_ones_normalisation_too() -> None:
    manifest = Manifest.build(
        Path("/images"), path=[f"{i}.png" for i in range(6)], label=list("ababab"), sha256=[str(i) for i in range(6)]
    )
    rows, recipe = np.arange(6), Recipe(Geometry(32, 35))
    num_seen = [0]

    def features(classifier: Classifier) -> NDArray[np.float32]:
        first = next(module for module in classifier.modules() if isinstance(module, nn.Conv2d))
        hook = first.register_forward_pre_hook(lambda *_: num_seen.__setitem__(0, num_seen[0] + 1))
        found = cached_features(
            classifier, Noise(), manifest, rows, recipe, device=torch.device("cpu"), autocast=None, cap_bytes=1 << 30
        ).take(rows)
        hook.remove()
        return found

    once = features(make())
    assert num_seen == [1]
    np.testing.assert_array_equal(features(make(head={"kind": "dense", "layers": (4,)})), once)
    assert num_seen == [1], "another head looks at the same features"
    other = features(make(further_normalisations=(OTHER,)))
    assert num_seen == [2]
    np.testing.assert_array_equal(other[:, :128], once[:, :128])
    assert not np.allclose(other[:, 128:], once[:, 128:])


def in_hub(folder: Path, name: str, tag: str, state: dict[str, torch.Tensor]) -> None:
    """Lay weights where the hub's library would have put them."""
    entry = folder / f"models--timm--{name}.{tag}"
    (entry / "refs").mkdir(parents=True)
    (entry / "refs" / "main").write_text("c0ffee")
    (entry / "snapshots" / "c0ffee").mkdir(parents=True)
    save_file(state, entry / "snapshots" / "c0ffee" / "model.safetensors")


def test_pretrained_weights_go_into_each_backbone_and_their_normalisations_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: list[object]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    names, tags = ("test_efficientnet", "test_vit"), ("r160_in1k", "r160_in1k")
    published = {}
    for name, tag in zip(names, tags, strict=True):
        published[name] = timm.create_model(name).state_dict()
        in_hub(tmp_path, name, tag, published[name])
    config = resolve(
        load(Config, None, [f"model.name=[{','.join(names)}]", "train.device=cpu"]), Facts("folder", 100, 140, 32, 1.0)
    )
    assert config.data.image_size == 160
    architecture = architecture_of(config, 3)
    facts = [timm.models.get_pretrained_cfg(name).to_dict() for name in names]
    wanted = [(tuple(each["mean"]), tuple(each["std"])) for each in facts]
    assert [(each.mean, each.std) for each in architecture.normalisations] == wanted
    classifier = build(architecture)
    head = {key: tensor.clone() for key, tensor in classifier.net.head.state_dict().items()}
    origin = load_weights(classifier, config.model.name, config.model.weights)
    for number, name in enumerate(names):
        backbone = classifier.net.branches[number].backbone.state_dict()
        assert all(torch.equal(tensor, published[name][key]) for key, tensor in backbone.items())
    assert all(torch.equal(tensor, head[key]) for key, tensor in classifier.net.head.state_dict().items())
    assert origin.not_loaded == ("head.fc.weight", "head.fc.bias")
    assert origin.tag == "test_efficientnet.r160_in1k + test_vit.r160_in1k"
    assert (origin.source, origin.licence) == ("pretrained", "apache-2.0")
    with pytest.raises(ArtifactError, match="no pretrained weights for small_cnn"):
        load_weights(make(), PAIR, "pretrained")
    assert no_network == []


def test_weights_of_ones_own_come_from_a_joint_bundle_or_from_one_for_each(tiny_bundle: Path, tmp_path: Path) -> None:
    source = make(seed=1, mean=OTHER.mean, std=OTHER.std, further_normalisations=(OTHER,))
    whole = write(tmp_path / "whole", source, tiny_bundle)
    classifier = make(seed=2)
    origin = load_weights(classifier, PAIR, str(whole), class_names=read_bundle(whole).spec.class_names)
    assert origin.not_loaded == origin.left_over == ()
    assert all(torch.equal(t, source.net.state_dict()[key]) for key, t in classifier.net.state_dict().items())

    torch.manual_seed(7)
    single = build(Architecture(name="test_resnet", num_classes=3, image_size=32, mean=OTHER.mean, std=OTHER.std))
    alone = write(tmp_path / "alone", single, tiny_bundle)
    classifier = make(seed=2)
    before = {key: tensor.clone() for key, tensor in classifier.net.state_dict().items()}
    origin = load_weights(classifier, PAIR, ("none", str(alone)))
    for key, tensor in classifier.net.state_dict().items():
        inside = key.removeprefix("branches.1.backbone.")
        expected = before[key] if inside == key else single.net.state_dict()[inside]
        assert torch.equal(tensor, expected), key
    assert origin.left_over == ("fc.bias", "fc.weight")
    assert {key.partition(".backbone")[0] for key in origin.not_loaded} == {
        "branches.0",
        "head.fc.weight",
        "head.fc.bias",
    }
    assert "2 of the source found no place (fc.bias, fc.weight)" in origin.sentence()
    config = resolve(
        load(Config, None, ["model.name=[small_cnn,test_resnet]", f"model.weights=[none, {alone}]"]),
        Facts("folder", 100, 140, 32, 1.0),
    )
    assert architecture_of(config, 3).further_normalisations == (OTHER,)
    with pytest.raises(ArtifactError, match=r"Nothing in .* fits small_cnn \+ test_resnet") as caught:
        load_weights(make(), PAIR, str(alone))
    assert "a list with weights for each backbone" in caught.value.fix


def test_the_summary_tells_which_backbone_is_which() -> None:
    lines = summarise(make(), ["a", "b", "c"]).splitlines()
    assert lines[0] == "small_cnn + test_resnet: 3 classes, 32 x 32 px"
    kinds = {line.split()[0]: line.split()[1] for line in lines[6:]}
    assert kinds["branches.0.backbone"] == "small_cnn"
    assert kinds["branches.1.backbone"] == "test_resnet"
    assert "branches.1.backbone.layer4" in kinds
    assert in_words(PAIR) == "small_cnn + test_resnet"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.name=[]", "model.name: expected a name, or a list of 2 to 4 names, and came a list of 0"),
        ("model.name=[a,b,c,d,e]", "model.name: expected a name, or a list of 2 to 4 names, and came a list of 5"),
        ("model.name=[resnet18,[b]]", "model.name.1: expected a valid string"),
        ("model.weights=[none,none]", "weights: a list has one for each of several backbones, and name is one"),
    ],
)
def test_lists_that_make_no_sense_are_refused(override: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(Config, None, [override])
    assert any(said in problem for problem in caught.value.problems)


def test_lists_are_read_as_they_are_written() -> None:
    assert ModelConfig(name=["resnet18"]).name == "resnet18"
    twice = load(Config, None, ["model.name=[resnet18, resnet18.a1_in1k]"]).model
    assert twice.names == ("resnet18", "resnet18.a1_in1k")
    assert twice.starts == ("pretrained", "pretrained")
    with pytest.raises(ConfigError, match="1 problem") as caught:
        load(Config, None, ["model.name=[resnet18,resnet18]", "model.weights=[none,none,none]"])
    assert "one for each of the 2 backbones of name, and has 3" in caught.value.problems[0]
