"""What trains, by name and by real training: frozen parts must not move by a bit, whatever the optimiser does."""

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn

from foveal.errors import ConfigError
from foveal.model.build import Architecture, Classifier, build
from foveal.model.config import HeadConfig, ModelConfig
from foveal.model.freeze import (
    apply_every_freeze,
    apply_freeze,
    freeze_at,
    freeze_sentence,
    layers_with_weights,
    set_training_mode,
)

DENSE = HeadConfig(kind="dense", layers=(9, 7, 5), batch_norm=True)


def make(name: str, size: int = 32, head: HeadConfig | None = None) -> Classifier:
    torch.manual_seed(0)
    return build(Architecture(name=name, num_classes=3, image_size=size, head=head or HeadConfig()))


def by_hand(**layers: nn.Module) -> Classifier:
    torch.manual_seed(0)
    net = nn.Sequential(OrderedDict(layers))
    return Classifier(Architecture(name="by_hand", num_classes=3, image_size=8), net, head_names=[[*layers][-1]])


def trained(classifier: Classifier) -> set[str]:
    return {name for name, parameter in classifier.net.named_parameters() if parameter.requires_grad}


def of(classifier: Classifier, *prefixes: str) -> set[str]:
    """All parameters below these names, none of which may be missing."""
    found = {p: {n for n, _ in classifier.net.named_parameters() if n == p or n.startswith(f"{p}.")} for p in prefixes}
    assert all(found.values())
    return set().union(*found.values())


def train(classifier: Classifier, *, steps: int = 2, optimizer: torch.optim.Optimizer | None = None) -> None:
    side = classifier.architecture.image_size
    draw = torch.Generator().manual_seed(1)
    # Coupled weight decay and momentum: what moves weights without a gradient too, if anything does.
    optimizer = optimizer or torch.optim.SGD(classifier.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(steps):
        pixels, labels = torch.rand(4, 3, side, side, generator=draw), torch.tensor([0, 1, 2, 0])
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(classifier(pixels), labels).backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("name", "freeze", "expected"),
    [
        ("test_resnet", "all", ["fc"]),
        ("test_resnet", "stages:5", ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4", "fc"]),
        ("test_resnet", "last:2", ["layer4.0.downsample", "fc"]),
        ("test_resnet", "partial", ["layer4", "fc"]),
        ("test_resnet", "stages:2", ["layer3", "layer4", "fc"]),
        ("resnet18", "partial", ["layer4.0.downsample", "layer4.1", "fc"]),
        ("alexnet", "all", ["classifier.6"]),
        ("alexnet", "last:3", ["classifier"]),
        ("alexnet", "partial", ["features.10", "classifier"]),
        ("small_cnn", "partial", ["blocks.1", "blocks.2", "blocks.3", "fc"]),
        ("small_cnn", "stages:1", ["blocks.3", "fc"]),
        ("test_efficientnet", "last:2", ["conv_head", "bn2", "classifier"]),
        ("mobilenetv3_small_100", "last:2", ["conv_head", "classifier"]),
        ("test_convnext", "all", ["head.fc"]),
        ("test_convnext", "partial", ["stages.3.blocks.1", "head"]),
        ("test_convnext", "stages:1", ["stages.3", "head"]),
        ("test_vit", "last:3", ["blocks.5.mlp", "norm", "head"]),
        ("test_vit", "stages:2", ["blocks.4", "blocks.5", "norm", "head"]),
        (
            "densenet121",
            "stages:1",
            ["features.transition3", "features.denseblock4", "features.norm5", "classifier"],
        ),
    ],
)
def test_what_trains_is_what_the_name_says(name: str, freeze: str, expected: list[str]) -> None:
    classifier = make(name, 64 if name == "alexnet" else 32)
    apply_freeze(classifier, freeze)
    assert trained(classifier) == of(classifier, *expected)
    apply_freeze(classifier, "none")
    assert trained(classifier) == {name for name, _ in classifier.net.named_parameters()}


@pytest.mark.parametrize(
    ("name", "head", "num_layers"),
    [
        ("vgg16", "head.fc", 16),
        ("resnet18", "fc", 18 + 3),
        ("densenet121", "classifier", 121),
        ("inception_v3", "fc", 95),
        # Its queries, keys and values are computed with the weights of a layer that is never called.
        ("eva02_tiny_patch14_224", "head", 50),
    ],
)
def test_layers_are_counted_as_the_field_does_and_last_n_grows_to_everything(
    name: str, head: str, num_layers: int
) -> None:
    import timm

    size = {"eva02_tiny_patch14_224": 56, "inception_v3": 96}.get(name, 32)
    with torch.device("meta"):  # of the giants only the shapes
        net = timm.create_model(name, num_classes=3, **({"img_size": size} if num_layers == 50 else {}))
        classifier = Classifier(Architecture(name=name, num_classes=3, image_size=size), net, head_names=[head])
    layers = layers_with_weights(classifier)
    assert len(layers) == num_layers == len(set(layers))
    assert set(layers) == {m for m in classifier.net.modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    apply_freeze(classifier, "all")
    before = trained(classifier)
    for number in (1, 4, num_layers):
        apply_freeze(classifier, f"last:{number}")
        assert before <= trained(classifier)
        before = trained(classifier)
        if number == 1:
            assert before == of(classifier, *classifier.head_names), "one layer is the head"
        whole = [all(p.requires_grad for p in layer.parameters()) for layer in layers]
        assert whole == [False] * (num_layers - number) + [True] * number
    assert before == {name for name, _ in classifier.net.named_parameters()}
    with pytest.raises(ConfigError, match=f"last:{num_layers + 1}: {name} has {num_layers} layers with weights"):
        apply_freeze(classifier, f"last:{num_layers + 1}")


def test_the_order_is_that_of_computing_and_norms_go_with_the_layer_before() -> None:
    class Backwards(nn.Module):
        """Defined from the end to the start; and what is used without a layer is the module's own."""

        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)
            self.second = nn.Sequential(OrderedDict(conv=nn.Conv2d(4, 4, 1), norm=nn.BatchNorm2d(4)))
            self.first = nn.Conv2d(3, 4, 1)
            self.input_norm = nn.BatchNorm2d(3)
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.second(self.first(self.input_norm(x))).mean((2, 3))) * self.scale

    architecture = Architecture(name="by_hand", num_classes=3, image_size=8)
    classifier = Classifier(architecture, Backwards(), head_names=["fc"])
    for number, expected in [(1, ["fc"]), (2, ["fc", "second"]), (3, ["fc", "second", "first", "input_norm", "scale"])]:
        apply_freeze(classifier, f"last:{number}")
        assert trained(classifier) == of(classifier, *expected)
    with pytest.raises(ConfigError, match="stages:1: by_hand has no stages"):
        apply_freeze(classifier, "stages:1")


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_a_new_head_always_trains_whole(name: str) -> None:
    head = DENSE if name == "test_vit" else DENSE.model_copy(update={"attention": "cbam"})
    classifier = make(name, 32, head)
    new = of(classifier, "head") if name == "test_vit" else of(classifier, "head", "neck")
    for freeze in ("all", "last:1", "last:4"):
        apply_freeze(classifier, freeze)
        assert trained(classifier) == new
    apply_freeze(classifier, "stages:1")
    last = ["backbone.blocks.5", "backbone.norm"] if name == "test_vit" else ["backbone.layer4"]
    assert trained(classifier) == new | of(classifier, *last)
    # Four in the head; cbam has three in front of it.
    apply_freeze(classifier, "last:5" if name == "test_vit" else "last:8")
    last = ["backbone.blocks.5.mlp.fc2", "backbone.norm"] if name == "test_vit" else ["backbone.layer4.0.downsample"]
    assert trained(classifier) == new | of(classifier, *last)


def test_all_that_is_asked_for_in_vain_is_told_at_once() -> None:
    config = ModelConfig(freeze="stages:6", unfreeze={3: "last:17", 2: "last:16", 4: "partial"})
    with pytest.raises(ConfigError) as caught:
        apply_every_freeze(make("test_resnet"), config)
    assert caught.value.problems == (
        "stages:6: test_resnet has 5 stages",
        "last:17: test_resnet has 16 layers with weights",
    )


def test_unfreezing_goes_by_epochs_and_its_union_is_what_the_optimiser_must_know() -> None:
    config = ModelConfig(freeze="all", unfreeze={5: "none", 3: "stages:1"})
    assert [freeze_at(config, epoch) for epoch in range(6)] == ["all"] * 2 + ["stages:1"] * 2 + ["none"] * 2
    classifier = make("test_resnet")
    apply_every_freeze(classifier, ModelConfig(freeze="stages:1", unfreeze={2: "all", 9: "last:2"}))
    assert trained(classifier) == of(classifier, "layer4", "fc")


@pytest.mark.parametrize("freeze", ["all", "partial", "stages:2"])
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet", "small_cnn"])
def test_frozen_weights_and_statistics_stay_bit_for_bit_and_the_rest_moves(name: str, freeze: str) -> None:
    classifier = make(name, 32)
    train(classifier)  # statistics that are not those of a fresh network
    apply_freeze(classifier, freeze)
    set_training_mode(classifier)
    before = copy.deepcopy(classifier.net.state_dict())
    train(classifier)
    names = trained(classifier)
    norms = {
        f"{path}.{own}": path
        for path, module in classifier.net.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for own in ("running_mean", "running_var", "num_batches_tracked")
    }
    assert name in {"test_vit", "test_convnext"} or norms
    for key, value in classifier.net.state_dict().items():
        moves = f"{norms[key]}.weight" in names if key in norms else key in names
        assert torch.equal(value, before[key]) != moves, key
    apply_freeze(classifier, "none")
    set_training_mode(classifier)
    assert all(module.training for module in classifier.modules())


def test_nothing_drops_or_counts_on_the_way_through_frozen_layers() -> None:
    def layers() -> dict[str, nn.Module]:
        return {
            "early_drop": nn.Dropout(0.5),
            "one": nn.Conv2d(3, 6, 3),
            "drop": nn.Dropout2d(0.5),
            "two": nn.Conv2d(6, 6, 3),
            "norm": nn.BatchNorm2d(6, affine=False),
            "flatten": nn.Flatten(),
            "last_drop": nn.Dropout(0.5),
            "fc": nn.Linear(6 * 16, 3),
        }

    classifier = by_hand(**layers())
    apply_freeze(classifier, "last:1")
    set_training_mode(classifier)
    modes = {name: module.training for name, module in classifier.net.named_children()}
    expected = {"early_drop": False, "one": False, "drop": False, "two": False, "norm": False, "last_drop": True}
    assert modes == {**expected, "flatten": True, "fc": True}
    pixels = torch.rand(2, 3, 8, 8)
    assert torch.equal(classifier.net[:6](pixels), classifier.net[:6](pixels))
    assert not torch.equal(classifier(pixels), classifier(pixels)), "the head's own dropout acts"
    set_training_mode(classifier)
    assert {name: module.training for name, module in classifier.net.named_children()} == modes


def test_dropping_of_whole_blocks_acts_only_where_they_train() -> None:
    import timm

    net = timm.create_model("test_vit", num_classes=3, img_size=32, drop_path_rate=0.5, proj_drop_rate=0.5)
    classifier = Classifier(Architecture(name="test_vit", num_classes=3, image_size=32), net, head_names=["head"])
    tokens = torch.rand(16, 5, 64)
    apply_freeze(classifier, "stages:1")
    set_training_mode(classifier)
    assert torch.equal(net.blocks[:5](tokens), net.blocks[:5](tokens))
    assert not torch.equal(net.blocks[5](tokens), net.blocks[5](tokens))


def test_what_thaws_goes_on_and_what_freezes_again_stops_at_once() -> None:
    classifier = make("test_resnet")
    optimizer = torch.optim.AdamW(classifier.parameters(), 0.01, weight_decay=0.1)
    start = classifier.net.conv1[0].weight.clone()
    for freeze, moves in [("all", False), ("none", True), ("stages:1", False), ("none", True)]:
        apply_freeze(classifier, freeze)
        set_training_mode(classifier)
        train(classifier, optimizer=optimizer)
        now = classifier.net.conv1[0].weight.detach().clone()
        assert torch.equal(start, now) != moves
        start = now


def test_an_auxiliary_head_trains_only_where_its_loss_reaches_something() -> None:
    classifier = make("inception_v3", 299)
    assert classifier.auxiliary is not None
    for freeze, trains in [("all", False), ("stages:1", False), ("stages:2", True)]:
        apply_freeze(classifier, freeze)
        assert {parameter.requires_grad for parameter in classifier.auxiliary.parameters()} == {trains}
        set_training_mode(classifier)
        assert classifier.auxiliary.training == trains


def test_the_sentence_says_how_much_and_what() -> None:
    classifier = make("test_resnet")
    total = sum(p.numel() for p in classifier.net.parameters())
    assert freeze_sentence(classifier) == f"trains: all {total:,} parameters"
    apply_freeze(classifier, "all")
    assert freeze_sentence(classifier) == f"trains: 291 of {total:,} parameters (fc)"
    named = "layer3.0.conv3, layer3.0.bn3, layer3.0.downsample, layer4, fc"
    whole = sum(p.numel() for name in named.split(", ") for p in classifier.net.get_submodule(name).parameters())
    shown = named.removeprefix("layer3.0.conv3, ")
    apply_freeze(classifier, "last:6")
    assert freeze_sentence(classifier) == f"trains: {whole:,} of {total:,} parameters (..., {shown})"
