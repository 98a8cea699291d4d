"""Networks by name, and nothing but by name."""

import copy

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from foveal.errors import ConfigError
from foveal.model.build import Architecture, Classifier, build
from foveal.model.config import HeadConfig
from foveal.model.costs import count_macs, count_parameters, depthwise_share, layer_outputs, run_blank, summarise
from foveal.model.zoo import check_name, pretrained_facts


def architecture(name: str = "test_efficientnet", size: int = 32, **head: object) -> Architecture:
    return Architecture(name=name, num_classes=3, image_size=size, head=HeadConfig(**head))


def by_hand() -> Classifier:
    """A network of which everything can be counted on paper."""
    layers = [nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, groups=4), nn.Flatten(), nn.Linear(4 * 6 * 6, 3)]
    return Classifier(architecture("by_hand", 8), nn.Sequential(*layers))


def test_an_unknown_name_is_told_with_near_ones() -> None:
    for name, near in (("resnet81", "resnet18"), ("convnext_tinny", "convnext_tiny"), ("Resnet18", "resnet18")):
        with pytest.raises(ConfigError, match=f"model.name: '{name}' is not a model .* near ones:.* {near}[,.]"):
            build(architecture(name))


@pytest.mark.parametrize(
    "name",
    [
        "hf-hub:timm/resnet18.a1_in1k",
        "hf_hub:timm/resnet18",
        "local-dir:/tmp/model",
        "timm/resnet18",
        "/etc/passwd",
        "../resnet18",
        "resnet18.a1_in1k/../../x",
        "resnet18\\x",
        "resnet18.a1:x",
        "",
        ".",
        " resnet18",
        "resnet18\n",
        "os.system",
    ],
)
def test_only_plain_names_are_taken_and_nothing_is_asked(name: str, no_network: list[object]) -> None:
    for use in (check_name, pretrained_facts, lambda each: build(architecture(each))):
        with pytest.raises(ConfigError, match=r"is not a model of timm's zoo") as caught:
            use(name)
        assert "foveal models" in caught.value.fix
    assert no_network == []


def test_an_unknown_tag_is_told_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"resnet18 has no weights with the tag 'bogus'; there are: .*a1_in1k"):
        pretrained_facts("resnet18.bogus")
    assert pretrained_facts("resnet18.a1_in1k")["license"]


@pytest.mark.parametrize(
    ("name", "size"),
    [("test_efficientnet", 40), ("test_resnet", 57), ("test_vit", 96), ("test_vit2", 32), ("test_convnext", 64)],
)
def test_networks_take_the_size_that_is_asked_for(name: str, size: int) -> None:
    """Transformers with learnt positions too, whose own size is another."""
    classifier = build(architecture(name, size)).eval()
    assert classifier(torch.rand(2, 3, size, size)).shape == (2, 3)
    run_blank(classifier)


@pytest.mark.parametrize(("name", "size"), [("test_vit", 40), ("test_convnext", 8), ("test_vit_relpos", 8)])
def test_a_size_that_a_network_cannot_take_is_told_before_any_training(name: str, size: int) -> None:
    for count in (count_macs, layer_outputs):
        with pytest.raises(ConfigError, match=f"{name} cannot .* {size} ") as caught:
            count(build(architecture(name, size)))
        assert "data.image_size" in caught.value.fix


def test_the_normalisation_is_inside() -> None:
    fields = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.25, 2.0)}
    classifier = build(Architecture(name="test_efficientnet", num_classes=3, image_size=32, **fields)).eval()
    pixels = torch.rand(4, 3, 32, 32)
    by_numpy = (pixels.numpy() - np.array(fields["mean"])[:, None, None]) / np.array(fields["std"])[:, None, None]
    expected = classifier.net(torch.from_numpy(by_numpy.astype(np.float32)))
    torch.testing.assert_close(classifier(pixels), expected, atol=1e-5, rtol=1e-5)
    assert not any(name == "mean" or name == "std" for name in classifier.state_dict())
    assert classifier.double().mean.dtype == torch.float64, "they move with the network"


DIVISIBLE = {
    "test_efficientnet": 32,
    "test_resnet": 32,
    "test_vit": 32,
    "test_convnext": 32,
    "test_mambaout": 32,
    "test_byobnet": 32,
    "mobilenetv3_small_100": 32,
    "resnetv2_18d": 32,
    "small_cnn": 32,
}
"""resnetv2 ends in a convolution, mobilenetv3 has a layer between pooling and the last one."""


@pytest.mark.parametrize("name", DIVISIBLE)
def test_dropout_is_done_exactly_once_and_in_training_only(name: str) -> None:
    torch.manual_seed(0)
    classifier = build(architecture(name, DIVISIBLE[name], dropout=0.6)).eval()
    (head,) = classifier.head_modules()
    seen: list[torch.Tensor] = []
    head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(1)))
    pixels = torch.rand(8, 3, 32, 32)
    with torch.no_grad():
        row = classifier.pooled(pixels)
        assert row.shape == (8, classifier.num_features)
        assert torch.equal(classifier.classify(row), classifier(pixels))
        assert torch.equal(classifier(pixels), classifier.net((pixels - classifier.mean) / classifier.std))
        assert torch.equal(seen[-1], row), "nothing is dropped in evaluation"
        classifier.train()
        for module in classifier.net.modules():
            module.eval()  # the same features, and dropout all the same, for it is not the network's
        classifier(pixels)
    kept = seen[-1] != 0
    torch.testing.assert_close(seen[-1][kept], row[kept] / 0.4)
    alive = row != 0
    assert abs(float((kept & alive).sum() / alive.sum()) - 0.4) < 0.06


def test_what_has_two_heads_keeps_them_and_drops_in_its_own_way() -> None:
    classifier = build(architecture("levit_128s", 224, dropout=0.3))
    assert classifier.num_features == 0
    assert not classifier.can_cache_features
    assert classifier.head_names == ("head.linear", "head_dist.linear")
    assert classifier.net.head.drop.p == classifier.net.head_dist.drop.p == 0.3
    with pytest.raises(ConfigError, match="head of levit_128s takes more than the pooled features"):
        classifier.classify(torch.rand(2, 384))
    pixels = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        assert classifier.eval().pooled(pixels).shape == (1, 384)
        assert torch.equal(classifier(pixels), classifier.net((pixels - classifier.mean) / classifier.std))


def test_inceptions_auxiliary_head_learns_beside_and_is_no_part_of_the_bundle() -> None:
    torch.manual_seed(0)
    classifier = build(architecture("inception_v3", 299))
    assert not any("Aux" in key for key in classifier.net.state_dict())
    assert any(key.startswith("auxiliary.") for key in classifier.state_dict())
    with torch.no_grad():
        logits, auxiliary = classifier.training_logits(torch.rand(2, 3, 299, 299))
    assert logits.shape == auxiliary.shape == (2, 3)
    assert not torch.equal(logits, auxiliary)
    half_way = torch.rand(2, 768, 17, 17)
    classifier.auxiliary(half_way).sum().backward()
    assert all(parameter.grad is not None for parameter in classifier.auxiliary.parameters())
    classifier.auxiliary.requires_grad_(False)
    small = build(architecture("inception_v3", 298))
    assert small.auxiliary is None, "at this size its map is smaller than the convolution in it"
    for each, size in ((classifier, 299), (classifier.eval(), 299), (small, 75)):
        each.forward = lambda pixels: pixels  # the main logits alone
        assert each.training_logits(torch.zeros(1, 3, size, size))[1] is None


def test_logits_in_training_are_those_of_forward_where_there_is_one_head() -> None:
    classifier = build(architecture("test_vit"))
    pixels = torch.rand(2, 3, 32, 32)
    logits, auxiliary = classifier.training_logits(pixels)
    assert torch.equal(logits, classifier(pixels))
    assert auxiliary is None


def test_counts_are_those_of_paper_and_pencil() -> None:
    classifier = by_hand()
    weights = (3 * 4 * 9 + 4) + (4 * 9 + 4) + (4 * 36 * 3 + 3)
    assert count_parameters(classifier) == weights
    classifier.net[0].requires_grad_(False)
    assert count_parameters(classifier, trainable_only=True) == weights - (3 * 4 * 9 + 4)
    assert count_macs(classifier) == 8 * 8 * 4 * 27 + 6 * 6 * 4 * 9 + 4 * 36 * 3
    assert [count for _, count in layer_outputs(classifier)] == [4 * 64, 4 * 36, 4 * 36, 3]
    assert depthwise_share(classifier) == 4 * 36 / (4 * 64 + 4 * 36 + 3)


@pytest.mark.parametrize("training", [True, False])
def test_counting_leaves_the_network_as_it_was(*, training: bool) -> None:
    classifier = build(architecture()).train(training)
    before = copy.deepcopy(classifier.state_dict())
    count_macs(classifier)
    depthwise_share(classifier)
    assert classifier.training == training
    assert all(torch.equal(tensor, before[name]) for name, tensor in classifier.state_dict().items())
    assert not any(module._forward_hooks for module in classifier.modules())


def test_the_summary_names_totals_and_what_is_frozen() -> None:
    classifier = by_hand()
    classifier.net[1].requires_grad_(False)
    lines = summarise(classifier, ["a", "b", "c"]).splitlines()
    assert lines[0] == "by_hand: 3 classes, 8 x 8 px"
    assert [line.split()[-1] for line in lines[1:3]] == ["587", "547"]
    assert lines[3].split() == ["multiply-accumulates", "8,640", "for", "one", "image"]
    modules = {line.split()[0]: line.split()[1:] for line in lines[6:]}
    assert modules["0"] == ["Conv2d", "112", "yes"]
    assert modules["1"] == ["Conv2d", "40", "frozen"]
    assert modules["2"] == ["Flatten", "0", "-"]


@pytest.mark.parametrize(
    "fields",
    [
        {"num_classes": 1},
        {"image_size": 0},
        {"image_size": 10**9},
        {"dropout": 0.5},
        {"head": {"dropout": 1.0}},
        {"head": {"layers": [8]}},
        {"head": {"activation": "os.system"}},
        {"factory": "os.system"},
        {"std": (1.0, float("inf"), 1.0)},
    ],
)
def test_the_schema_is_closed(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Architecture.model_validate({"name": "resnet18", "num_classes": 3, "image_size": 32, **fields})
