"""Class activation maps (Zhou et al. 2016): which place of the last feature map speaks for which class.

They are exact where the head is one linear layer on the mean over the places: the layer's weights can then be applied
before the mean instead of after it. Whether a network is of that kind is found out with one image, not by its name.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from foveal.model.build import Classifier
from foveal.model.config import HeadConfig
from foveal.model.heads import ComposedNet, Head, layout_of, ramp
from foveal.model.joint import JointNet

_TOLERANCE = 1e-4
"""Largest difference, as a share of the largest value, that rounding alone explains."""
_MAX_NAMED = 3


@dataclass(frozen=True, eq=False)
class LinearHead:
    """A head that is one linear layer, dropout and batch normalisation reckoned in.

    Attributes:
        weight: float32 [classes, channels].
        bias: float32 [classes].
    """

    weight: torch.Tensor
    bias: torch.Tensor


def find_linear_head(classifier: Classifier) -> LinearHead | str:
    """The head as weights for the places of the last feature map; or why the network has no such maps.

    Args:
        classifier: on the CPU, in evaluation mode.
    """
    name, config = classifier.architecture.in_words, classifier.architecture.head
    if isinstance(classifier.net, JointNet):
        return "several networks share one head, and their feature maps are not of one place"
    if classifier.architecture.classical is not None:
        return f"the head is {classifier.architecture.classical.kind}, which is no linear layer"
    if config.kind == "dense":
        return "the head has hidden layers (model.head.kind=dense)"
    if not classifier.num_features:
        return f"the last layer of {name} takes more than its pooled features"
    linear = _as_linear(classifier.head_modules()[0])
    if linear is None:
        return f"the last layer of {name} is no linear layer"
    return _why_not_exact(classifier, linear, config) or linear


def _why_not_exact(classifier: Classifier, linear: LinearHead, config: HeadConfig) -> str:
    """Why the mean over the places of one image's map does not give its logits; empty where it does."""
    net: Any = classifier.net
    name, side = classifier.architecture.in_words, classifier.architecture.image_size
    with torch.inference_mode():
        features = net.forward_features(ramp(side))
        found = feature_map(classifier, features)
        if found is None:
            return f"the features of {name} are no grid of places"
        row = net.forward_head(features, pre_logits=True).flatten(1)
        means = found.mean((2, 3))
        if means.shape != row.shape or not _equal(means, row):
            return _in_the_way(classifier, features, config)
        if found.shape[2:].numel() == 1:
            return f"at {side} x {side} pixels the last feature map of {name} is one place only"
        if not _equal(means @ linear.weight.T + linear.bias, classifier.classify(row)):
            return f"the last layer of {name} is no linear layer"
    return ""


def feature_map(classifier: Classifier, features: Any) -> torch.Tensor | None:
    """The map that is pooled, float32 [n, channels, h, w]; None where the features are none.

    Args:
        classifier: of one backbone.
        features: what `forward_features` of its network gave.
    """
    net: Any = classifier.net
    if isinstance(net, ComposedNet):
        found = None if net.layout is None else net.layout.to_map(features)
        return net.neck(found) if found is not None and len(net.neck) else found
    layout = layout_of(net, features)
    return None if layout is None else layout.to_map(features)


def _as_linear(head: nn.Module) -> LinearHead | None:
    if isinstance(head, Head) and len(head.dense) == 0:
        return _after_norm(head.norm, head.fc)
    if isinstance(head, nn.Linear) or (isinstance(head, nn.Conv2d) and head.kernel_size == (1, 1)):
        weight = head.weight.detach().flatten(1)
        return LinearHead(weight, weight.new_zeros(len(weight)) if head.bias is None else head.bias.detach())
    return None


def _after_norm(norm: nn.Module, layer: nn.Linear) -> LinearHead:
    """A linear layer with the batch normalisation before it, which is linear too once it is trained."""
    weight, bias = layer.weight.detach(), layer.bias.detach()
    if not isinstance(norm, nn.BatchNorm1d) or norm.running_mean is None or norm.running_var is None:
        return LinearHead(weight, bias)
    scale = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
    shift = norm.bias.detach() - norm.running_mean * scale
    return LinearHead(weight * scale, bias + weight @ shift)


def _in_the_way(classifier: Classifier, features: Any, config: HeadConfig) -> str:
    """What stands between the map and the last layer other than the mean over the places."""
    net, name = classifier.net, classifier.architecture.in_words
    if config.pool not in ("own", "avg"):
        return f"the map is not pooled by its mean (model.head.pool={config.pool})"
    between = _layers_that_run(net, features)
    if between:
        named = ", ".join([*between[:_MAX_NAMED], *(["..."] if len(between) > _MAX_NAMED else [])])
        stand = "stands" if len(between) == 1 else "stand"
        return f"between the last feature map of {name} and its last layer {stand} {named}"
    layout = layout_of(classifier.backbone, features)
    if layout is not None and layout.kind == "tokens" and layout.num_prefix:
        return f"the last layer of {name} looks at a class token, not at the mean over the places"
    return f"{name} does not pool its last feature map by the mean over the places"


def _layers_that_run(net: nn.Module, features: Any) -> list[str]:
    """Names of the modules with weights that make the pooled features of the map, in the order in which they run."""
    found: list[str] = []
    hooks = [
        module.register_forward_pre_hook(lambda _, __, name=name: found.append(name))
        for name, module in net.named_modules()
        if name.split(".")[0] != "neck" and any(True for _ in module.parameters(recurse=False))
    ]
    try:
        with torch.inference_mode():
            net.forward_head(features, pre_logits=True)  # type: ignore[operator]
    finally:
        for hook in hooks:
            hook.remove()
    return list(dict.fromkeys(found))


def _equal(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).abs().max() <= _TOLERANCE * expected.abs().max().clamp(min=1e-6))
