"""Every kind of network has a layer to explain, and every method gives a map of it that says something."""

import numpy as np
import pytest
import torch

from foveal.errors import ConfigError
from foveal.explaining.layers import MIN_SIDE, target_layers
from foveal.explaining.methods import CLASS_METHODS, METHODS, choose_method, raw_maps
from foveal.model.build import Architecture, Classifier, build
from foveal.model.config import ClassicalHeadConfig, HeadConfig

ZOO = [
    ("small_cnn", 48, "blocks", 6),
    ("alexnet", 64, "features.4", 7),
    ("alexnet", 127, "features.11", 7),
    ("test_resnet", 128, "layer4", 4),
    ("test_resnet", 32, "layer2", 4),
    ("test_vit", 64, "blocks.5.norm1", 4),
    ("test_vit2", 64, "blocks", 4),
    ("test_convnext", 128, "stages", 4),
    ("test_efficientnet", 128, "bn2", 4),
    ("resnet18", 64, "layer3", 4),
    ("densenet121", 64, "features.transition3.conv", 4),
    ("mobilenetv3_small_100", 64, "blocks.4.0.bn1", 4),
    ("efficientnet_b0", 64, "blocks.5.0.bn1", 4),
    ("inception_v3", 107, "Mixed_6e", 5),
    ("vit_small_patch16_224", 64, "blocks.11.norm1", 4),
    ("swin_tiny_patch4_window7_224", 64, "layers.2", 4),
]


def made(name: str | tuple[str, ...], size: int, **head: object) -> Classifier:
    torch.manual_seed(0)
    classifier = build(Architecture(name=name, num_classes=3, image_size=size, head=HeadConfig.model_validate(head)))
    return classifier.eval()


def pixels_for(size: int) -> torch.Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("name", "size", "layer", "side"), ZOO, ids=lambda value: str(value))
def test_the_layer_is_the_last_map_that_is_fine_enough(name: str, size: int, layer: str, side: int) -> None:
    classifier = made(name, size)
    (target,) = target_layers(classifier)
    assert (target.name, target.side) == (layer, side)
    pixels = pixels_for(size)
    for method in ("hirescam", "eigencam"):
        one = raw_maps(classifier, (target,), pixels, [0, 0], method)  # type: ignore[arg-type]
        assert one.shape == (2, side, side)
        assert one.dtype == np.float32
        assert np.isfinite(one).all()
        assert (np.ptp(one, axis=(1, 2)) > 0).all()
        other = raw_maps(classifier, (target,), pixels, [1, 1], method)  # type: ignore[arg-type]
        assert np.array_equal(one, other) == (method not in CLASS_METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_each_method_on_a_convolutional_network_and_a_transformer(method: str) -> None:
    for name in ("test_resnet", "test_vit"):
        classifier = made(name, 64)
        if method == "rollout" and name == "test_resnet":
            with pytest.raises(ConfigError, match="test_resnet has no attention"):
                choose_method(classifier, method)
            continue
        chosen = choose_method(classifier, method)
        maps = [raw_maps(classifier, target_layers(classifier), pixels_for(64), [k, k], chosen) for k in (0, 1)]
        assert all(np.isfinite(each).all() and (np.ptp(each, axis=(1, 2)) > 0).all() for each in maps)
        assert np.array_equal(*maps) == (method not in CLASS_METHODS)


def test_rollout_is_refused_where_attention_stays_within_windows() -> None:
    with pytest.raises(ConfigError, match="does not end in tokens"):
        choose_method(made("swin_tiny_patch4_window7_224", 64), "rollout")


@pytest.mark.parametrize(
    ("head", "layer"),
    [
        ({"attention": "spatial"}, "neck"),
        ({"attention": "cbam", "pool": "avgmax"}, "neck"),
        ({"kind": "dense", "layers": (8,)}, "backbone.layer4"),
        ({"pool": "flatten"}, "backbone.layer4"),
    ],
)
def test_heads_of_our_own(head: dict[str, object], layer: str) -> None:
    classifier = made("test_resnet", 128, **head)
    (target,) = target_layers(classifier)
    assert target.name == layer or target.name.startswith(f"{layer}.")
    maps = [raw_maps(classifier, (target,), pixels_for(128), [k, k], "hirescam") for k in (0, 1)]
    assert not np.array_equal(*maps)


def test_a_joint_network_has_a_layer_in_each_backbone_and_one_map() -> None:
    classifier = made(("small_cnn", "test_resnet"), 64)
    targets = target_layers(classifier)
    assert [target.name for target in targets] == ["branches.0.backbone.blocks", "branches.1.backbone.layer3"]
    assert [target.side for target in targets] == [8, MIN_SIDE]
    pixels = pixels_for(64)
    whole = raw_maps(classifier, targets, pixels, [0, 0], "hirescam")
    parts = [raw_maps(classifier, (target,), pixels, [0, 0], "hirescam") for target in targets]
    assert whole.shape == (2, 8, 8)
    # What a branch says in all stays the same where its map is made finer; bilinear edges alone blur it.
    sums = sum(part.sum(axis=(1, 2)) for part in parts)
    assert whole.sum(axis=(1, 2)) == pytest.approx(sums, rel=0.35)
    assert not np.allclose(whole, parts[0])


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_the_network_is_left_as_it_was(name: str) -> None:
    classifier = made(name, 64).train()
    frozen = next(classifier.net.parameters())
    frozen.requires_grad_(False)
    marked = list(classifier.net.parameters())[-1]
    marked.grad = torch.ones_like(marked)
    before = {key: value.clone() for key, value in classifier.state_dict().items()}
    fused = [getattr(module, "fused_attn", None) for module in classifier.modules()]
    for method in ("gradcam", "gradcam++", "hirescam", "eigencam", *(["rollout"] if name == "test_vit" else [])):
        raw_maps(classifier, target_layers(classifier), pixels_for(64), [0, 1], method)  # type: ignore[arg-type]
    assert all(module.training for module in classifier.modules())
    assert [parameter.requires_grad for parameter in classifier.parameters()].count(False) == 1
    assert [parameter.grad is None for parameter in classifier.parameters()].count(False) == 1
    assert torch.equal(marked.grad, torch.ones_like(marked))
    assert all(torch.equal(before[key], value) for key, value in classifier.state_dict().items())
    assert [getattr(module, "fused_attn", None) for module in classifier.modules()] == fused
    assert not any(module._forward_hooks for module in classifier.modules())


def test_classical_heads_have_no_gradient_and_say_so() -> None:
    classical = ClassicalHeadConfig(kind="neighbours", num_references=4, num_neighbours=2)
    classifier = build(Architecture(name="small_cnn", num_classes=2, image_size=48, classical=classical)).eval()
    assert choose_method(classifier, "auto") == "eigencam"
    for method in CLASS_METHODS:
        with pytest.raises(ConfigError, match="nearest images that it keeps, which have none"):
            choose_method(classifier, method)
    found = raw_maps(classifier, target_layers(classifier), pixels_for(48), [0, 1], "eigencam")
    assert (np.ptp(found, axis=(1, 2)) > 0).all()
    with pytest.raises(ConfigError, match="expected auto, gradcam"):
        choose_method(classifier, "lime")
