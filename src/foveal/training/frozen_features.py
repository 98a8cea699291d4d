"""Training a head on a frozen backbone's features, each image's being computed once.

Nothing that such a training yields differs from what it yields on images, but for the rounding of the last bits: the
order of the images is the same, and so is what is drawn in each step.
"""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from foveal.data.batches import Batch, Batches, TrainingBatches
from foveal.data.manifest import Manifest
from foveal.data.reading import Recipe
from foveal.data.store import PixelSource, StoredFeatures
from foveal.model.build import Classifier
from foveal.model.devices import AUTOCAST
from foveal.model.feature_store import cached_features
from foveal.progress import Progress
from foveal.training.config import ResolvedConfig
from foveal.training.state import TrainingData


def features_can_be_cached(config: ResolvedConfig, classifier: Classifier, num_images: int) -> str:
    """Why the features of a training cannot be computed once; empty where they can.

    Args:
        config: the training.
        classifier: what is trained.
        num_images: images that train and validate.
    """
    train = config.train
    if config.model.freeze != "all":
        return f"model.freeze={config.model.freeze} lets more than the head train"
    if config.model.unfreeze:
        return "model.unfreeze lets more than the head train later on"
    if not config.augment.is_off:
        return "the augmentation changes the images from epoch to epoch (augment.policy=none would not)"
    if train.mixup or train.cutmix:
        return "images are blended with others of their batch (train.mixup, train.cutmix)"
    if train.distillation.is_on:
        return "the teacher has to see the images (train.distillation)"
    if train.devices * train.nodes > 1:
        return "several processes train together (train.devices, train.nodes)"
    if classifier.neck_modules():
        return "model.head.attention and model.head.spatial_dropout come before the features are pooled"
    if not classifier.can_cache_features:
        return f"the head of {classifier.architecture.in_words} takes more than the pooled features"
    needed, cap = 4 * num_images * classifier.num_features, config.data.store_cap_gib * (1 << 30)
    if needed > cap:
        return f"they need {needed / (1 << 30):.1f} GiB, and data.store_cap_gib is {config.data.store_cap_gib:g}"
    return ""


def with_features(
    data: TrainingData,
    classifier: Classifier,
    config: ResolvedConfig,
    manifest: Manifest,
    source: PixelSource,
    recipe: Recipe,
    progress: Progress,
) -> TrainingData:
    """The same training on features in place of images; those that are not in the store are computed now.

    Args:
        data: the training on images.
        classifier: with the backbone's weights that stay: those of the run, where it goes on.
        config: the training, which `features_can_be_cached`.
        manifest: what the rows of the batches are.
        source: stored forms by row number, made by `recipe`.
        recipe: how files became stored forms.
        progress: where to show how far it is.

    Raises:
        ArtifactError: the cache folder cannot be read or written.
    """
    features = cached_features(
        classifier,
        source,
        manifest,
        np.concatenate([manifest.of_split("train"), manifest.of_split("val")]),
        recipe,
        device=torch.device(config.train.device),
        autocast=AUTOCAST[config.train.precision],
        cap_bytes=int(config.data.store_cap_gib * (1 << 30)),
        # Threads that slice the store are only a help; those that decode are the work itself.
        num_workers=1 if config.data.store == "on" else config.data.num_workers,
        progress=progress,
    )
    return replace(
        data,
        train=FeatureTrainingBatches(data.train, features),
        val=FeatureBatches(data.val, features),
        head=HeadOnly(classifier),
    )


class HeadOnly(nn.Module):
    """What takes the place of a whole network where features come in.

    Args:
        classifier: whose head it is; trained in place.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Classify.

        Args:
            features: float32 [n, features], what `Classifier.pooled` gave.

        Returns:
            [n, classes], logits.
        """
        return self.classifier.classify(features)


class FeatureBatches(Batches):
    """The batches of an evaluation with features, float32 [n, features], in place of the images.

    Args:
        like: the same with images.
        features: by row number.
    """

    def __init__(self, like: Batches, features: StoredFeatures) -> None:
        vars(self).update(vars(like))
        self._features, self._num_workers = features, 1

    def _make(self, part: slice) -> Batch:
        return _batch(self._features, self._rows[part], self._labels[part])


class FeatureTrainingBatches(TrainingBatches):
    """The batches of a training, in the same order, with features, float32 [n, features], in place of the images.

    Args:
        like: the same with images.
        features: by row number.
    """

    def __init__(self, like: TrainingBatches, features: StoredFeatures) -> None:
        vars(self).update(vars(like))
        self._features, self._num_workers = features, 1

    def _make(
        self, epoch: int, places: NDArray[np.int64], part: NDArray[np.int64], shifts: NDArray[np.float64]
    ) -> Batch:
        del epoch, places, shifts  # they decide of what is seen of an image, and all of it has been seen
        return _batch(self._features, self._rows[part], self._labels[part])


def _batch(features: StoredFeatures, rows: NDArray[np.int64], labels: NDArray[np.int64]) -> Batch:
    return Batch(torch.from_numpy(features.take(rows)), torch.from_numpy(labels), rows)
