"""The maps are those of the papers: against the exact class activation map, the library, and attention by hand."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from pytorch_grad_cam import EigenCAM, GradCAMPlusPlus
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from taught_networks import SIDE_PX, coloured_square

from foveal.explaining.layers import target_layers
from foveal.explaining.methods import raw_maps
from foveal.model.build import Architecture, Classifier, build

NUM_PICTURES = 8


def pictures(seed: int = 5) -> tuple[torch.Tensor, np.ndarray, list[int]]:
    rng = np.random.default_rng(seed)
    labels = [number % 2 for number in range(NUM_PICTURES)]
    made = [coloured_square(rng, label) for label in labels]
    pixels = torch.from_numpy(np.stack([picture for picture, _ in made])).permute(0, 3, 1, 2).float() / 255.0
    return pixels, np.array([corner for _, corner in made]), labels


@pytest.mark.parametrize("method", ["gradcam", "hirescam"])
def test_with_mean_pooling_and_one_layer_it_is_the_class_activation_map(
    make_taught: Callable[[str], Classifier], method: str
) -> None:
    """Zhou et al. 2016; Selvaraju et al. 2017, section 3: up to the number of places, the same."""
    classifier, (pixels, _, labels) = make_taught("small_cnn"), pictures()
    with torch.no_grad():
        features = classifier.net.blocks((pixels - classifier.mean) / classifier.std)  # type: ignore[operator]
        weight, bias = classifier.net.fc.weight, classifier.net.fc.bias  # type: ignore[union-attr]
        activation = torch.einsum("nchw,nc->nhw", features, weight[labels]).numpy()  # type: ignore[index]
        logits = classifier(pixels).numpy()
    found = raw_maps(classifier, target_layers(classifier), pixels, labels, method)  # type: ignore[arg-type]
    np.testing.assert_allclose(found * activation[0].size, activation, rtol=1e-4, atol=1e-4)
    of_class = logits[np.arange(NUM_PICTURES), labels] - bias[labels].detach().numpy()  # type: ignore[index]
    np.testing.assert_allclose(found.sum(axis=(1, 2)), of_class, rtol=1e-4, atol=1e-4)


def test_the_library_by_itself_gives_the_same(make_taught: Callable[[str], Classifier]) -> None:
    classifier, (pixels, _, labels) = make_taught("test_resnet"), pictures()
    (target,) = target_layers(classifier)
    goals = [ClassifierOutputTarget(label) for label in labels]
    for library, method in ((GradCAMPlusPlus, "gradcam++"), (EigenCAM, "eigencam")):
        cam = library(classifier, [target.module])
        cam(pixels, goals)
        activations = cam.activations_and_grads.activations[0].numpy()
        gradients = cam.activations_and_grads.gradients
        own = raw_maps(classifier, (target,), pixels, labels, method)  # type: ignore[arg-type]
        given = gradients[0].numpy() if gradients else None
        theirs = cam.get_cam_image(pixels, target.module, goals, activations, given, False)
        cam.activations_and_grads.release()
        if method == "eigencam":  # theirs is of a sign that chance decides
            assert (own.max(axis=(1, 2)) >= -own.min(axis=(1, 2))).all()
            theirs = theirs * np.sign((theirs * own).sum(axis=(1, 2), keepdims=True))
        np.testing.assert_allclose(own, theirs, rtol=1e-3, atol=1e-3 * np.abs(theirs).max())


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("small_cnn", "hirescam"),
        ("small_cnn", "gradcam++"),
        ("test_resnet", "hirescam"),
        ("test_resnet", "gradcam"),
        ("test_vit", "hirescam"),
    ],
)
def test_the_peak_lies_in_the_object(make_taught: Callable[[str], Classifier], name: str, method: str) -> None:
    classifier, (pixels, corners, labels) = make_taught(name), pictures()
    with torch.no_grad():
        assert classifier(pixels).argmax(1).tolist() == labels
    found = raw_maps(classifier, target_layers(classifier), pixels, labels, method)  # type: ignore[arg-type]
    assert hits(found, corners) >= NUM_PICTURES - 1
    # By chance a tenth to a quarter of the peaks would.
    assert hits(found[::-1], corners) <= NUM_PICTURES // 2


def hits(maps: np.ndarray, corners: np.ndarray) -> int:
    """In how many pictures the hottest place touches the object."""
    cell, number = SIDE_PX / maps.shape[1], 0
    for each, (x, y) in zip(maps, corners, strict=True):
        row, column = np.unravel_index(each.argmax(), each.shape)
        across = column * cell < x + 20 and (column + 1) * cell > x
        down = row * cell < y + 20 and (row + 1) * cell > y
        number += across and down
    return number


def test_rollout_is_the_product_of_all_attention() -> None:
    torch.manual_seed(0)
    classifier = build(Architecture(name="test_vit", num_classes=2, image_size=64)).eval()
    pixels = torch.rand(2, 3, 64, 64)
    net = classifier.net
    with torch.no_grad():
        # By hand: queries times keys in each block, from what goes into its attention.
        inputs: list[torch.Tensor] = []
        hooks = [
            block.attn.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
            for block in net.blocks  # type: ignore[union-attr]
        ]
        classifier(pixels)
        for hook in hooks:
            hook.remove()
        flow = torch.eye(17)
        for block, tokens in zip(net.blocks, inputs, strict=True):  # type: ignore[arg-type]
            heads, width = block.attn.num_heads, block.attn.head_dim
            query, key, _ = block.attn.qkv(tokens).reshape(2, 17, 3, heads, width).permute(2, 0, 3, 1, 4)
            query, key = block.attn.q_norm(query), block.attn.k_norm(key)
            attention = (query @ key.transpose(-1, -2) * width**-0.5).softmax(dim=-1).mean(dim=1)
            flow = (0.5 * attention + 0.5 * torch.eye(17)) @ flow
    found = raw_maps(classifier, (), pixels, [0, 0], "rollout")
    np.testing.assert_allclose(found.reshape(2, 16), flow[:, 0, 1:].numpy(), rtol=1e-4, atol=1e-6)
