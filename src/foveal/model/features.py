"""What a network sees of images: the pooled features before its last layer."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from foveal.data.batches import Batch
from foveal.errors import ConfigError
from foveal.inference import to_unit
from foveal.model.build import Classifier


def pooled_features(classifier: Classifier, batches: Iterable[Batch], device: torch.device) -> NDArray[np.float32]:
    """Run images through all of a network but its last layer, leaving its training mode as it was.

    Args:
        classifier: on `device` already.
        batches: the images; uint8, as `Batches` gives them.
        device: where to.

    Returns:
        float32 [n, features], in the order of the batches.

    Raises:
        ConfigError: the network has no features to give.
    """
    net: Any = classifier.net
    if not (callable(getattr(net, "forward_features", None)) and callable(getattr(net, "forward_head", None))):
        raise ConfigError(
            f"{classifier.architecture.name} does not give the features before its last layer.",
            fix="choose another model.name, such as resnet18.",
        )
    was_training = classifier.training
    classifier.eval()
    parts: list[NDArray[np.float32]] = []
    try:
        for batch in batches:
            with torch.inference_mode():
                seen = net.forward_features((to_unit(batch.images, device) - classifier.mean) / classifier.std)
                parts.append(net.forward_head(seen, pre_logits=True).flatten(1).float().cpu().numpy())
    finally:
        classifier.train(was_training)
    if not parts:
        return np.empty((0, int(getattr(net, "num_features", 0))), dtype=np.float32)
    return np.concatenate(parts)
