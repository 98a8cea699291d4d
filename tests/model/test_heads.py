"""Heads and blocks: what each setting does to features and gradients, on maps and on tokens."""

import math

import pytest
import torch
from timm.models import group_parameters
from torch import nn
from torch.nn import functional as F

from foveal.errors import ConfigError
from foveal.model.build import Architecture, Classifier, build
from foveal.model.config import HeadConfig
from foveal.model.heads import ComposedNet, Head, Pooling, is_plain, layout_of, make_neck

NETS = ("test_resnet", "test_vit", "test_convnext", "test_mambaout")
"""A CNN, a transformer with a class token, a CNN that normalises after pooling, and one with the channels last."""


def classifier_of(name: str, size: int = 64, **head: object) -> Classifier:
    torch.manual_seed(0)
    return build(Architecture(name=name, num_classes=3, image_size=size, head=HeadConfig(**head)))


def pixels_of(size: int = 64, num: int = 4) -> torch.Tensor:
    return torch.rand(num, 3, size, size, generator=torch.Generator().manual_seed(1))


def map_of(net: ComposedNet, pixels: torch.Tensor) -> torch.Tensor:
    """The features as a map, found without the code under test."""
    features = net.backbone.forward_features(pixels)
    if features.ndim == 3:  # one class token in front
        side = math.isqrt(features.shape[1] - 1)
        return features[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    return features if getattr(net.backbone, "output_fmt", "NCHW") == "NCHW" else features.permute(0, 3, 1, 2)


OPTIONS = [
    {"batch_norm": True, "dropout": 0.3},
    {"kind": "dense", "layers": (8,)},
    {"kind": "dense", "layers": (8, 6), "dropout": (0.3, 0.2), "batch_norm": True, "activation": "gelu"},
    {"pool": "avg"},
    {"pool": "max"},
    {"pool": "avgmax"},
    {"pool": "flatten"},
    *({"attention": kind, "pool": "avg"} for kind in ("se", "channel", "spatial", "cbam")),
    {"spatial_dropout": 0.5, "pool": "avg"},
    {"attention": "cbam", "spatial_dropout": 0.2, "pool": "flatten", "kind": "dense", "layers": (8,), "dropout": 0.2},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_mambaout"])
def test_every_head_learns_and_is_divided_exactly(name: str, options: dict[str, object]) -> None:
    classifier = classifier_of(name, **options)
    net = classifier.net
    assert isinstance(net, ComposedNet)
    assert {key.partition(".")[0] for key in net.state_dict()} <= {"backbone", "neck", "head"}
    F.cross_entropy(classifier.train()(pixels_of()), torch.tensor([0, 1, 2, 0])).backward()
    assert [key for key, p in classifier.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    assert all(p.grad.any() for key, p in net.named_parameters() if key.startswith("head.fc"))
    classifier.eval()
    with torch.inference_mode():
        row = classifier.pooled(pixels_of())
        assert row.shape == (4, classifier.num_features)
        assert torch.equal(classifier.classify(row), classifier(pixels_of()))
        assert torch.equal(net((pixels_of() - classifier.mean) / classifier.std), classifier(pixels_of()))
    assert classifier.head_modules() == [net.head]
    has_neck = "attention" in options or "spatial_dropout" in options
    assert classifier.neck_modules() == ([net.neck] if has_neck else [])
    assert classifier.can_cache_features != has_neck


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("kind", ["avg", "max", "avgmax", "flatten"])
def test_pooling_is_over_the_places_and_leaves_class_tokens_out(name: str, kind: str) -> None:
    classifier = classifier_of(name, pool=kind).eval()
    net = classifier.net
    with torch.no_grad():
        found = map_of(net, (pixels_of() - classifier.mean) / classifier.std)
        ways = {"avg": found.mean((2, 3)), "max": found.amax((2, 3))}
        if kind == "flatten":
            expected = found
        else:
            expected = ways[kind] if kind in ways else (ways["avg"] + ways["max"]) / 2
            expected = expected[:, :, None, None]
        if name in ("test_convnext", "test_mambaout"):  # they normalise over the channels after pooling
            norm = net.backbone.head.norm
            last = expected.permute(0, 2, 3, 1)
            expected = F.layer_norm(last, last.shape[-1:], norm.weight, norm.bias, norm.eps).permute(0, 3, 1, 2)
        torch.testing.assert_close(classifier.pooled(pixels_of()), expected.flatten(1), atol=1e-5, rtol=1e-5)


def test_flatten_keeps_the_place() -> None:
    features = torch.zeros(1, 2, 3, 3)
    features[0, 1, 2, 0] = 7.0
    row = Pooling("flatten")(features, None)
    assert row.nonzero().tolist() == [[0, 1 * 9 + 2 * 3 + 0]]
    assert Pooling("avg")(features, None).shape == (1, 2)


@pytest.mark.parametrize("name", ["test_vit", "test_mambaout", "test_resnet"])
def test_a_map_goes_back_as_it_came(name: str) -> None:
    backbone = classifier_of(name).net
    features = backbone.forward_features(pixels_of())
    layout = layout_of(backbone, features)
    seen = layout.to_map(features)
    assert seen.shape[1] == backbone.num_features
    assert seen.shape[2] == seen.shape[3]
    assert torch.equal(layout.from_map(seen, features), features)
    changed = layout.from_map(torch.zeros_like(seen), features)
    assert not changed[:, 1:].any() if name == "test_vit" else not changed.any()
    if name == "test_vit":
        assert torch.equal(changed[:, :1], features[:, :1]), "the class token is no place"


def test_the_place_of_a_token_is_its_place_in_the_image() -> None:
    """A change in the lower left corner changes the map most there."""
    net = classifier_of("test_vit", pool="flatten").eval().net
    blank = torch.zeros(1, 3, 64, 64)
    marked = blank.clone()
    marked[:, :, 48:, :16] = 2.0
    with torch.no_grad():
        maps = [net.layout.to_map(net.backbone.forward_features(x)) for x in (blank, marked)]
    change = (maps[0] - maps[1]).norm(dim=1)[0]
    assert divmod(int(change.argmax()), 4) == (3, 0)


def test_spatial_dropout_drops_channels_whole_while_training_only() -> None:
    neck = make_neck(200, HeadConfig(spatial_dropout=0.4))
    torch.manual_seed(0)
    dropped = neck(torch.ones(3, 200, 4, 4))
    per_channel = dropped.flatten(2)
    assert torch.equal(per_channel.amin(2), per_channel.amax(2)), "all of a channel or nothing of it"
    torch.testing.assert_close(per_channel.unique(), torch.tensor([0.0, 1 / 0.6]))
    assert abs(float((dropped == 0).float().mean()) - 0.4) < 0.06
    assert torch.equal(neck.eval()(torch.ones(3, 200, 4, 4)), torch.ones(3, 200, 4, 4))


@pytest.mark.parametrize("kind", ["se", "channel", "spatial", "cbam"])
def test_attention_weighs_what_it_says(kind: str) -> None:
    torch.manual_seed(0)
    neck = make_neck(256, HeadConfig(attention=kind)).eval()
    features = torch.rand(2, 256, 5, 5) + 0.1
    with torch.no_grad():
        weights = neck(features) / features
    assert bool((weights > 0).all())
    assert bool((weights < 1).all())
    by_channel = weights.flatten(2).std(2).max() < 1e-5
    by_place = weights.std(1).max() < 1e-5
    assert (bool(by_channel), bool(by_place)) == {
        "se": (True, False),
        "channel": (True, False),
        "spatial": (False, True),
        "cbam": (False, False),
    }[kind]


def test_attention_comes_before_spatial_dropout_and_both_before_pooling() -> None:
    net = classifier_of("test_resnet", attention="se", spatial_dropout=0.5).net
    assert [key for key, _ in net.neck.named_children()] == ["attention", "spatial_dropout"]
    torch.manual_seed(3)
    rows = net.train().forward_head(net.backbone.eval().forward_features(pixels_of()), pre_logits=True)
    assert 0.2 < float((rows == 0).float().mean()) < 0.8, "dropped channels are nought in the pooled features"


def test_a_dense_stack_is_what_was_asked_for() -> None:
    config = HeadConfig(kind="dense", layers=(512, 256, 128), dropout=(0.5, 0.4, 0.3), batch_norm=True)
    head = Head(32, 7, config)
    assert [[type(layer).__name__ for layer in block] for block in head.dense] == [
        ["Linear", "BatchNorm1d", "ReLU", "Dropout"]
    ] * 3
    assert [block.drop.p for block in head.dense] == [0.5, 0.4, 0.3]
    shapes = [tuple(block.fc.weight.shape) for block in head.dense]
    assert [*shapes, tuple(head.fc.weight.shape)] == [(512, 32), (256, 512), (128, 256), (7, 128)]
    assert isinstance(head.norm, nn.Identity)
    assert isinstance(head.drop, nn.Identity)
    by_hand = torch.rand(4, 32)
    row = by_hand.clone()
    head.eval()
    for block in head.dense:
        row = F.relu(F.batch_norm(row @ block.fc.weight.T, block.norm.running_mean, block.norm.running_var))
    torch.testing.assert_close(head(by_hand), row @ head.fc.weight.T + head.fc.bias, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("gelu", nn.GELU), ("silu", nn.SiLU), ("tanh", nn.Tanh), ("leaky_relu", nn.LeakyReLU), ("elu", nn.ELU)],
)
def test_the_activation_is_the_one_that_was_named(name: str, kind: type[nn.Module]) -> None:
    head = Head(8, 3, HeadConfig(kind="dense", layers=(4,), activation=name))
    assert type(head.dense[0].act) is kind
    assert head.dense[0].fc.bias is not None


def test_one_share_drops_before_the_last_layer_only() -> None:
    head = Head(8, 3, HeadConfig(kind="dense", layers=(400, 500), dropout=0.25))
    assert [type(layer).__name__ for block in head.dense for layer in block] == ["Linear", "ReLU"] * 2
    seen: list[torch.Tensor] = []
    head.fc.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    torch.manual_seed(0)
    row = torch.rand(16, 8)
    head.train()(row)
    whole = head.dense(row)
    dropped = (seen[0] == 0) & (whole > 0)
    assert abs(float(dropped.sum() / (whole > 0).sum()) - 0.25) < 0.05
    torch.testing.assert_close(seen[0][seen[0] > 0], whole[seen[0] > 0] / 0.75)


def test_linear_normalises_the_pooled_features_and_then_drops() -> None:
    head = Head(64, 3, HeadConfig(batch_norm=True, dropout=0.5)).train()
    seen: list[torch.Tensor] = []
    head.fc.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    row = torch.randn(256, 64) * 5 + 3
    head(row)
    normal = (row - row.mean(0)) / (row.var(0, unbiased=False) + 1e-5).sqrt()
    kept = seen[0] != 0
    assert abs(float(kept.float().mean()) - 0.5) < 0.03
    torch.testing.assert_close(seen[0][kept], 2 * normal[kept], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "head", [{"batch_norm": True}, {"kind": "dense", "layers": (512, 256, 128)}, {"pool": "flatten"}]
)
def test_the_first_loss_is_that_of_guessing(head: dict[str, object]) -> None:
    classifier = classifier_of("test_resnet", **head).train()
    loss = F.cross_entropy(classifier(pixels_of(num=32)), torch.arange(32) % 3)
    assert abs(loss.item() - math.log(3)) < 0.25


def test_a_plain_head_leaves_the_network_as_timm_names_it() -> None:
    assert is_plain(HeadConfig())
    assert is_plain(HeadConfig(dropout=0.5))
    for other in ({"pool": "avg"}, {"batch_norm": True}, {"attention": "se"}, {"spatial_dropout": 0.1}):
        assert not is_plain(HeadConfig(**other))
    assert "fc.weight" in classifier_of("test_resnet", dropout=0.5).net.state_dict()


@pytest.mark.parametrize("options", [{"attention": "se"}, {"spatial_dropout": 0.3}])
def test_blocks_that_a_class_token_would_not_see_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"model\.head\.\w+=[\w.]+ would have no effect: test_vit") as caught:
        classifier_of("test_vit", **options)
    assert "model.head.pool=avg" in caught.value.fix


def test_what_has_no_map_is_refused_and_told_which_key() -> None:
    """pit ends in its class token alone."""
    for key, value in (("attention", "cbam"), ("pool", "flatten"), ("spatial_dropout", 0.5)):
        with pytest.raises(ConfigError, match=rf"model\.head\.{key}={value} needs a map of features, and pit_ti_224"):
            classifier_of("pit_ti_224", **{key: value})
    assert classifier_of("pit_ti_224", kind="dense", layers=(8,)).num_features == 256


def test_layers_that_nothing_uses_are_left_out() -> None:
    own = classifier_of("mobilenetv3_small_100", 32, batch_norm=True)
    bare = classifier_of("mobilenetv3_small_100", 32, pool="max")
    assert (own.num_features, bare.num_features) == (1024, 576)
    assert any(key.startswith("backbone.conv_head.") for key in own.net.state_dict())
    assert not any(key.startswith("backbone.conv_head.") for key in bare.net.state_dict())


def test_layers_are_grouped_as_the_backbone_groups_them() -> None:
    net = classifier_of("test_convnext", attention="se", kind="dense", layers=(8,)).net
    groups = group_parameters(net, net.group_matcher(coarse=False), reverse=True)
    inside = group_parameters(net.backbone, net.backbone.group_matcher(coarse=False), reverse=True)
    assert all(groups[f"backbone.{key}"] == group for key, group in inside.items())
    assert {groups[key] for key in groups if not key.startswith("backbone.")} == {max(groups.values())}
    assert classifier_of("test_vit", pool="avg").net.no_weight_decay() >= {"backbone.pos_embed"}
