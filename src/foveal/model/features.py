"""What a network sees of images: the pooled features before its head."""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from foveal.data.batches import Batch
from foveal.inference import to_unit
from foveal.model.build import Classifier


def pooled_features(classifier: Classifier, batches: Iterable[Batch], device: torch.device) -> NDArray[np.float32]:
    """Run images through all of a network but its head, leaving its training mode as it was.

    Args:
        classifier: on `device` already.
        batches: the images; uint8, as `Batches` gives them.
        device: where to.

    Returns:
        float32 [n, features], in the order of the batches.

    Raises:
        ConfigError: the network has no features to give.
    """
    was_training = classifier.training
    classifier.eval()
    parts: list[NDArray[np.float32]] = []
    try:
        for batch in batches:
            with torch.inference_mode():
                parts.append(classifier.pooled(to_unit(batch.images, device)).float().cpu().numpy())
    finally:
        classifier.train(was_training)
    if not parts:
        return np.empty((0, classifier.num_features), dtype=np.float32)
    return np.concatenate(parts)
