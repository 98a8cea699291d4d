"""The networks of a probe: the frozen backbone that gives features, and the same with a fitted head."""

from typing import Any

import torch
from torch import nn

from foveal.errors import ConfigError
from foveal.experiments.probe.heads import Candidate
from foveal.model.build import Architecture, Classifier, build
from foveal.model.config import HeadConfig
from foveal.model.heads import Head, ramp
from foveal.model.weights import WeightsOrigin, load_weights
from foveal.training.config import ResolvedConfig
from foveal.training.resolve import architecture_of

_CLOSE = 1e-3


def backbone_of(config: ResolvedConfig, class_names: tuple[str, ...]) -> tuple[Classifier, WeightsOrigin]:
    """The network whose features are probed, in evaluation mode, and where its weights came from.

    Raises:
        ArtifactError: the starting weights cannot be had.
        ConfigError: the network does not give features that can be taken apart from its head.
    """
    torch.manual_seed(config.seed)
    classifier = build(architecture_of(config, len(class_names)))
    if not classifier.can_cache_features or _layer(classifier) is None:
        raise ConfigError(
            f"{classifier.architecture.in_words} cannot be probed: its head is more than a layer on pooled features.",
            fix="choose another --backbone, such as resnet18.",
        )
    origin = load_weights(classifier, config.model.name, config.model.weights, class_names=class_names)
    return classifier.eval(), origin


def with_head(base: Classifier, candidate: Candidate) -> Classifier:
    """The whole network with a fitted head, to be bundled.

    A linear head becomes the last layer of an ordinary network, which can be fine-tuned as well.

    Args:
        base: as `backbone_of` gives it.
        candidate: fitted on the features of `base`.

    Raises:
        ConfigError: the backbone gives other features under such a head.
    """
    base = base.cpu()
    own = base.architecture
    if candidate.classical is not None:
        network = build(_changed(own, classical=candidate.classical))
        _take_over(network, base)
        network.net.get_submodule("head").load_state_dict(dict(candidate.tensors))
    else:
        network = build(own)
        network.net.load_state_dict(base.net.state_dict())
        layer: Any = _layer(network)
        with torch.no_grad():
            layer.weight.copy_(candidate.tensors["weight"].view_as(layer.weight))
            layer.bias.copy_(candidate.tensors["bias"])
    _check_same_features(base, network.eval())
    return network


def _changed(architecture: Architecture, **changes: Any) -> Architecture:
    return Architecture.model_validate({**dict(architecture), **changes})


def _layer(classifier: Classifier) -> nn.Module | None:
    """The one layer that a plain head is; None where it is something else."""
    (head,) = classifier.head_modules()
    layer = head.fc if isinstance(head, Head) else head
    return layer if isinstance(layer, nn.Linear | nn.Conv2d) and layer.bias is not None else None


def _take_over(network: Classifier, base: Classifier) -> None:
    """Give a network with a head of its own the backbone's tensors, whichever of the ways its names are written in."""
    given = base.net.state_dict()
    state = {
        key: given[key] if key in given else given[key.removeprefix("backbone.")]
        for key in network.net.state_dict()
        if not key.startswith("head.")
    }
    network.net.load_state_dict(state, strict=False)


def _check_same_features(base: Classifier, network: Classifier) -> None:
    """Refuse a head whose features are not those that it was fitted on.

    Raises:
        ConfigError: they differ.
    """
    pixels = (ramp(base.architecture.image_size) + 1.0) / 2.0
    with torch.inference_mode():
        expected, came = base.pooled(pixels), network.pooled(pixels)
    if expected.shape != came.shape or not torch.allclose(
        expected, came, rtol=_CLOSE, atol=_CLOSE * float(expected.abs().max())
    ):
        raise ConfigError(
            f"{base.architecture.in_words} gives other features when its last layer is taken off, so that no such head "
            "can be put in its place.",
            fix="choose another --backbone, or --heads logistic,svm.",
        )


def plain_head(config: HeadConfig) -> HeadConfig:
    """What is left of a head's settings where the head is fitted and not trained: how the map is pooled."""
    return HeadConfig(pool=config.pool)
