"""Heatmaps of one network: the Grad-CAM family, computed by the grad-cam library, and attention rollout.

- gradcam: Selvaraju et al., "Grad-CAM", ICCV 2017
- gradcam++: Chattopadhay et al., "Grad-CAM++", WACV 2018
- hirescam: Draelos and Carin, "Use HiResCAM instead of Grad-CAM", 2020
- eigencam: Muhammad and Yeasin, "Eigen-CAM", IJCNN 2020; of no class, and needs no gradient
- rollout: see `foveal.explaining.rollout`; of no class
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from foveal.errors import ConfigError
from foveal.explaining.layers import TargetLayer, at_rest
from foveal.explaining.placement import resized_map
from foveal.explaining.rollout import rollout
from foveal.extras import require
from foveal.model.build import Classifier
from foveal.model.heads import ramp

Method = Literal["gradcam", "gradcam++", "hirescam", "eigencam", "rollout"]
METHODS: tuple[str, ...] = get_args(Method)
CLASS_METHODS = ("gradcam", "gradcam++", "hirescam")
"""Those whose map depends on the class that is explained."""
_LIBRARY = {"gradcam": "GradCAM", "gradcam++": "GradCAMPlusPlus", "hirescam": "HiResCAM", "eigencam": "EigenCAM"}
METHOD_NAMES = {
    "gradcam": "Grad-CAM",
    "gradcam++": "Grad-CAM++",
    "hirescam": "HiRes-CAM",
    "eigencam": "Eigen-CAM",
    "rollout": "attention rollout",
}
_HEADS = {"neighbours": "the nearest images that it keeps", "forest": "decision trees", "boosting": "decision trees"}


def choose_method(classifier: Classifier, wanted: str) -> Method:
    """The method for a network: what is wanted, or by "auto" HiRes-CAM where there is a gradient and else Eigen-CAM.

    HiRes-CAM, because at the last map of a network that takes its mean it is Grad-CAM and the exact class activation
    map, and because at an earlier one, as small images need it, graying out its hottest quarter was seen to cost the
    answer more than twice as much probability; docs/explain.md has the figures.

    Raises:
        ConfigError: no such method, or the network does not allow it; with the reason.
    """
    if wanted not in ("auto", *METHODS):
        raise ConfigError(f"--method {wanted}: expected auto, {', '.join(METHODS)}.")
    classical = classifier.architecture.classical
    if wanted == "auto":
        return "hirescam" if classical is None else "eigencam"
    if classical is not None and wanted in CLASS_METHODS:
        raise ConfigError(
            f"--method {wanted} follows the gradient of a class, and this classifier answers by "
            f"{_HEADS[classical.kind]}, which have none.",
            fix="use --method eigencam, which needs no gradient, and knows of no class.",
        )
    if wanted == "rollout":
        with at_rest(classifier):  # whether it can be followed shows with any image
            rollout(classifier, 0.5 + 0.5 * ramp(classifier.architecture.image_size).to(classifier.mean.device))
    method: Method = wanted  # type: ignore[assignment]
    return method


def raw_maps(
    classifier: Classifier,
    layers: Sequence[TargetLayer],
    pixels: torch.Tensor,
    classes: Sequence[int],
    method: Method,
) -> NDArray[np.float32]:
    """Heatmaps as the method gives them, before anything is cut off or scaled.

    The network is left as it was: mode, gradients and what takes part in them.

    Args:
        classifier: on the device of `pixels`.
        layers: as `target_layers` chose them; not looked at by rollout.
        pixels: float32 [n, 3, side, side], 0..1.
        classes: number of the class to explain in each image.
        method: how.

    Returns:
        float32 [n, h, w]; for methods of a class, positive where a place speaks for it and negative where against. With
        several layers, as of a joint network, the sum of what they say for the class at each place; of a method of no
        class, the mean of their maps, each divided by its largest value.

    Raises:
        MissingExtraError: the grad-cam library is not installed.
    """
    with at_rest(classifier):
        if method == "rollout":
            return np.asarray(rollout(classifier, pixels).cpu().numpy(), dtype=np.float32)
        if method == "eigencam":
            return _merged([_first_component(each) for each in _activations(classifier, layers, pixels)], shares=True)
        return _merged(_weighted(classifier, layers, pixels, classes, method), shares=False)


def _weighted(
    classifier: Classifier, layers: Sequence[TargetLayer], pixels: torch.Tensor, classes: Sequence[int], method: Method
) -> list[NDArray[np.float32]]:
    """Activations times gradients in the library's way: float32 [n, h, w] a layer."""
    library: Any = require("pytorch_grad_cam", extra="train", purpose="make heatmaps")
    kind = getattr(library, _LIBRARY[method])
    with ExitStack() as stack, torch.enable_grad():
        # One for each layer: the library pairs activations and gradients by the order in which they come.
        cams = []
        for layer in layers:
            cam = kind(classifier, [layer.module], reshape_transform=layer.layout.to_map)
            stack.callback(cam.activations_and_grads.release)
            cams.append(cam)
        image = pixels.detach().clone().requires_grad_()
        logits = classifier(image)
        chosen = logits.gather(1, torch.as_tensor(list(classes), device=logits.device)[:, None]).sum()
        # Not the library's own forward: it would add up gradients in the network's parameters.
        torch.autograd.grad(chosen, image)
        maps = []
        for cam, layer in zip(cams, layers, strict=True):
            (activations,), (gradients,) = cam.activations_and_grads.activations, cam.activations_and_grads.gradients
            found = cam.get_cam_image(
                image, layer.module, None, activations.float().numpy(), gradients.float().numpy(), False
            )
            maps.append(np.asarray(found, dtype=np.float32))
    return maps


def _activations(
    classifier: Classifier, layers: Sequence[TargetLayer], pixels: torch.Tensor
) -> list[NDArray[np.float32]]:
    """What each layer gives: float32 [n, channels, h, w]."""
    kept: dict[int, torch.Tensor] = {}

    def keep(number: int) -> Any:
        return lambda _, __, output: kept.__setitem__(number, output.detach().clone())

    hooks = [layer.module.register_forward_hook(keep(number)) for number, layer in enumerate(layers)]
    try:
        with torch.no_grad():
            classifier(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    return [
        np.asarray(layer.layout.to_map(kept[number]).float().cpu().numpy(), dtype=np.float32)
        for number, layer in enumerate(layers)
    ]


def _first_component(activations: NDArray[np.float32]) -> NDArray[np.float32]:
    """Eigen-CAM: each place's first principal component over the channels; its sign such that the peak is positive.

    The library leaves the sign to chance, so that a map may be its own negative, and makes a square matrix as wide as
    the channels; otherwise this is what it does. The sign is that of Chung and Ying, "Seg-Eigen-CAM", 2025.

    Args:
        activations: float32 [n, channels, h, w].

    Returns:
        float32 [n, h, w].
    """
    maps = []
    for each in activations:
        places = each.reshape(len(each), -1).T.astype(np.float64)
        places = places - places.mean(axis=0)
        _, _, components = np.linalg.svd(places, full_matrices=False)
        found = places @ components[0]
        maps.append((-found if -found.min() > found.max() else found).reshape(each.shape[1:]))
    return np.asarray(maps, dtype=np.float32)


def _merged(maps: Sequence[NDArray[np.float32]], *, shares: bool) -> NDArray[np.float32]:
    """One map of those of several layers, as fine as the finest."""
    if len(maps) == 1:
        return maps[0]
    height, width = (max(each.shape[axis] for each in maps) for axis in (1, 2))
    merged = np.zeros((len(maps[0]), height, width), dtype=np.float32)
    for each in maps:
        finer = np.stack([resized_map(one, height, width) for one in each])
        if shares:
            largest = finer.max(axis=(1, 2), keepdims=True)
            merged += finer / np.where(largest > 0, largest, 1.0) / len(maps)
        else:
            # A place that is divided keeps what it says in all.
            merged += finer * np.float32(each.shape[1] * each.shape[2] / (height * width))
    return merged
