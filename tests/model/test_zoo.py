"""Names beyond timm's zoo, and that light members of each family can learn."""

import pytest
import timm
import torch
from timm.models import group_parameters
from torch import nn
from torchvision.models import AlexNet_Weights, alexnet

from foveal.errors import ConfigError
from foveal.model.build import Architecture, build
from foveal.model.costs import count_parameters
from foveal.model.zoo import check_name, create_net, library_of, list_names, pretrained_facts


def test_names_are_looked_up_in_three_libraries_and_timm_is_left_as_it_was() -> None:
    assert [library_of(name) for name in ("resnet18.a1_in1k", "alexnet.tv_in1k", "small_cnn")] == [
        "timm",
        "torchvision",
        "foveal",
    ]
    for name in ("alexnet", "small_cnn"):
        check_name(name)
        assert not timm.is_model(name), "nothing is registered"


def test_near_names_are_found_beyond_timm() -> None:
    for wrong, near in (("alex_net", "alexnet"), ("smal_cnn", "small_cnn")):
        with pytest.raises(ConfigError, match=f"near ones:.* {near}[,.]"):
            check_name(wrong)
    with pytest.raises(ConfigError, match="alexnet has no weights with the tag 'a1_in1k'; there are: tv_in1k"):
        pretrained_facts("alexnet.a1_in1k")
    with pytest.raises(ConfigError, match="small_cnn has no weights with the tag 'x'") as caught:
        pretrained_facts("small_cnn.x")
    assert "without a tag" in caught.value.fix


def test_patterns_find_what_is_beyond_timm_too() -> None:
    assert list_names("alexnet") == list_names("alexnet.*") == {"alexnet.tv_in1k"}
    assert "small_cnn" in list_names("small*")
    assert list_names("*") >= {"alexnet.tv_in1k", "small_cnn", "resnet18.a1_in1k"}
    assert not {"alexnet.tv_in1k", "small_cnn"} & list_names("resnet*")


def test_what_is_said_of_alexnets_weights_is_what_torchvision_says() -> None:
    weights, facts = AlexNet_Weights.IMAGENET1K_V1, pretrained_facts("alexnet")
    transforms = weights.transforms()
    assert facts["url"] == weights.url
    assert facts["input_size"] == (3, transforms.crop_size[0], transforms.crop_size[0])
    assert facts["crop_pct"] == transforms.crop_size[0] / transforms.resize_size[0]
    assert facts["interpolation"] == transforms.interpolation.value
    assert (list(facts["mean"]), list(facts["std"])) == (transforms.mean, transforms.std)
    assert facts["min_input_size"][1:] == weights.meta["min_size"]
    assert facts["license"] == timm.models.get_pretrained_cfg("resnet18.tv_in1k").license


def test_alexnet_is_torchvisions_with_timms_methods() -> None:
    net = create_net("alexnet", num_classes=5).eval()
    theirs = alexnet(weights=None, num_classes=5).eval()
    theirs.load_state_dict(net.state_dict(), strict=True)
    pixels = torch.rand(2, 3, 80, 70)
    with torch.no_grad():
        features = net.forward_features(pixels)
        assert torch.equal(net(pixels), theirs(pixels))
        assert torch.equal(net.get_classifier()(net.forward_head(features, pre_logits=True)), net(pixels))
    assert features.shape[1] == net.num_features
    assert net.get_classifier() is net.get_submodule(pretrained_facts("alexnet")["classifier"])
    net.reset_classifier(0)
    assert net(pixels).shape == (2, net.head_hidden_size)
    net.reset_classifier(7)
    assert net(pixels).shape == (2, 7)
    build(Architecture(name="alexnet", num_classes=2, image_size=63))
    with pytest.raises(ConfigError, match="alexnet cannot be built for images of 62 px"):
        build(Architecture(name="alexnet", num_classes=2, image_size=62))


def test_small_cnn_is_small_and_takes_any_size() -> None:
    net = create_net("small_cnn", num_classes=10)
    assert 100_000 < count_parameters(net) < 300_000
    kinds = [type(module) for module in net.blocks[0]]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d]
    for height, width in ((8, 8), (33, 50), (224, 224)):
        assert net(torch.rand(2, 3, height, width)).shape == (2, 10)
    features = net.forward_features(torch.rand(2, 3, 64, 64))
    assert features.shape == (2, net.num_features, 8, 8)
    assert torch.equal(net.forward_head(features, pre_logits=True), net.global_pool(features).flatten(1))
    net.reset_classifier(0)
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, net.num_features)


@pytest.mark.parametrize("name", ["alexnet", "small_cnn"])
def test_layers_are_grouped_from_the_image_to_the_classes(name: str) -> None:
    net = create_net(name, num_classes=3)
    groups = group_parameters(net, net.group_matcher(coarse=False), reverse=True)
    names = [key for key, _ in net.named_parameters()]
    assert set(groups) == set(names)
    found = [groups[key] for key in names]
    assert found == sorted(found)
    assert len(set(found)) >= 4
    assert found[-1] == found[-2] == max(found), "the last layer is the last group"


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("alexnet", 63),
        ("small_cnn", 16),
        ("resnet18", 32),
        ("densenet121", 32),
        ("inception_v3", 75),
        ("efficientnet_b0", 32),
        ("tf_efficientnetv2_b0", 32),
        ("mobilenetv3_small_100", 32),
        ("test_convnext", 32),
        ("test_vit", 32),
        ("test_byobnet", 32),
    ],
)
def test_a_step_moves_everything(name: str, size: int) -> None:
    """Forward and backward of two images: finite logits, and a gradient for every tensor that trains."""
    torch.manual_seed(0)
    classifier = build(Architecture(name=name, num_classes=4, image_size=size)).train()
    logits, auxiliary = classifier.training_logits(torch.rand(2, 3, size, size))
    assert logits.shape == (2, 4)
    assert logits.isfinite().all()
    assert auxiliary is None
    nn.functional.cross_entropy(logits, torch.tensor([0, 3])).backward()
    assert [key for key, p in classifier.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    assert all(p.grad is not None and p.grad.any() for m in classifier.head_modules() for p in m.parameters())
