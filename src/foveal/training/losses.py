"""The training loss of each image, and what each counts in the mean.

The two are kept apart so that a mean is the same however its images are dealt out: over the parts of an accumulated
step and over processes it is the sum of the losses by the sum of the weights. The weights depend on the targets alone,
and so are known before the first image is computed.
"""

import difflib
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from foveal.errors import ConfigError
from foveal.training.config import TrainConfig

LARGEST_NUM_PROTOTYPES = 10_000
"""Beyond as many training images the effective number of images is counted with beta = 0.9999, as its paper does."""


class Criterion(nn.Module):
    """Cross-entropy or focal loss with class weights and label smoothing, for hard and for soft targets.

    `forward(...).sum() / weights(...).sum()` is what `torch.nn.CrossEntropyLoss(weight=, label_smoothing=)` gives for
    hard targets. For soft ones torch divides by the number of images instead; here a soft target counts what its
    classes count, each by its share, so that a target with all of its share on one class is the hard one, and a
    training does not change its scale where only some of the batches are mixed. Without class weights there is no
    difference.

    Args:
        class_weights: float [classes]; None for one each.
        label_smoothing: share of each label that is spread over all classes.
        focal_gamma: how much less easy images count; None for cross-entropy.

    Source: C. Szegedy et al., "Rethinking the Inception Architecture", CVPR 2016 (smoothing); T.-Y. Lin et al., "Focal
    Loss for Dense Object Detection", ICCV 2017, over a softmax instead of sigmoids. A soft target's focal loss is the
    mean of its classes' losses by their shares, as cross-entropy's is.
    """

    class_weights: torch.Tensor | None

    def __init__(
        self,
        class_weights: torch.Tensor | None = None,
        *,
        label_smoothing: float = 0.0,
        focal_gamma: float | None = None,
    ) -> None:
        super().__init__()
        weights = None if class_weights is None else class_weights.float()
        self.register_buffer("class_weights", weights, persistent=False)
        self.label_smoothing, self.focal_gamma = label_smoothing, focal_gamma

    def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The weighted loss of each image.

        Args:
            logits: float [n, classes], in any precision; it is computed in float32.
            targets: int64 [n], class numbers, or float [n, classes], shares that add up to 1.

        Returns:
            float32 [n].
        """
        logits = logits.float()
        if targets.is_floating_point():
            targets = targets.float()
        if self.focal_gamma is not None:
            return self._focal(logits, targets, self.focal_gamma)
        return functional.cross_entropy(
            logits, targets, weight=self.class_weights, label_smoothing=self.label_smoothing, reduction="none"
        )

    def weights(self, targets: torch.Tensor) -> torch.Tensor:
        """What each image counts in the mean.

        Args:
            targets: int64 [n] or float [n, classes], as for `forward`.

        Returns:
            float32 [n]; the weight of the unsmoothed label.
        """
        if self.class_weights is None:
            return torch.ones(len(targets), device=targets.device)
        if targets.is_floating_point():
            # Not as a matrix product, which autocast and TF32 would round.
            return (targets.float() * self.class_weights).sum(dim=1)
        return self.class_weights[targets]

    def _focal(self, logits: torch.Tensor, targets: torch.Tensor, gamma: float) -> torch.Tensor:
        num_classes = logits.shape[1]
        shares = targets if targets.is_floating_point() else functional.one_hot(targets, num_classes).float()
        shares = shares * (1.0 - self.label_smoothing) + self.label_smoothing / num_classes
        log_probabilities = logits.log_softmax(dim=1)
        # Held off zero, where the slope of a power below 1 is infinite.
        missing = (-log_probabilities.expm1()).clamp(min=torch.finfo(torch.float32).tiny)
        losses = -shares * missing.pow(gamma) * log_probabilities
        return (losses if self.class_weights is None else losses * self.class_weights).sum(dim=1)


def weighted_mean(loss_sum: torch.Tensor, weight_sum: torch.Tensor) -> torch.Tensor:
    """The mean loss from the two sums; 0 where no image counts, as in a batch of nothing but classes of weight 0."""
    counts = weight_sum > 0
    return loss_sum * counts / torch.where(counts, weight_sum, torch.ones_like(weight_sum))


def make_criterion(config: TrainConfig, class_names: Sequence[str], counts: NDArray[np.int64]) -> Criterion:
    """The loss that a configuration asks for.

    Args:
        config: names the loss, the class weights and the smoothing.
        class_names: the classes, in order.
        counts: int64 [classes], training images of each.

    Raises:
        ConfigError: weights are given for classes that do not exist, are missing for some, or let no image count.
    """
    weights = _class_weights(config.class_weights, class_names, counts)
    return Criterion(
        None if weights is None else torch.tensor(weights, dtype=torch.float32),
        label_smoothing=config.label_smoothing,
        focal_gamma=config.focal_gamma if config.loss == "focal" else None,
    )


def balanced_weights(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Inverse frequency over the classes that have images, with mean 1 over the images.

    A class without any has no frequency; it counts 1, as an image does on average.

    Args:
        counts: int64 [classes], images of each class.

    Returns:
        float64 [classes].

    Source: scikit-learn's `compute_class_weight("balanced")`.
    """
    return _of_mean_one(1.0 / np.maximum(counts, 1), counts)


def effective_weights(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Inverse effective number of images, (1 - beta^n) / (1 - beta), with mean 1 over the images.

    beta = (N - 1) / N, where the paper's N is how many images that differ there are to be had of a class. Nobody knows
    it; here it is the number of all training images, up to 10,000. A fixed 0.9999 would be plain inverse frequency on a
    set of a few hundred. A class without any image counts 1. The scale does not matter, since a mean loss is divided by
    the weights.

    Args:
        counts: int64 [classes], images of each class.

    Returns:
        float64 [classes].

    Source: Y. Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019.
    """
    num_prototypes = min(max(2, int(counts.sum())), LARGEST_NUM_PROTOTYPES)
    # 1 - beta^n without the rounding of a beta that is nearly 1.
    effective = -np.expm1(np.maximum(counts, 1) * math.log1p(-1.0 / num_prototypes)) * num_prototypes
    return _of_mean_one(1.0 / effective, counts)


def _of_mean_one(weights: NDArray[np.float64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Scaled to mean 1 over the images, and 1 for classes without any."""
    total = float((weights * counts).sum())
    scaled = weights * (int(counts.sum()) / total) if total else weights
    return np.where(counts > 0, scaled, 1.0)


def _class_weights(
    wish: str | Mapping[str, float], class_names: Sequence[str], counts: NDArray[np.int64]
) -> NDArray[np.float64] | None:
    if not isinstance(wish, str):
        return _given_weights(wish, class_names, counts)
    if wish == "none":
        return None
    return balanced_weights(counts) if wish == "balanced" else effective_weights(counts)


def _given_weights(
    given: Mapping[str, float], class_names: Sequence[str], counts: NDArray[np.int64]
) -> NDArray[np.float64]:
    problems = []
    for name in given:
        if name not in class_names:
            near = difflib.get_close_matches(name, class_names, n=1)
            problems.append(f"no class is called {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    problems += [f"{name!r} has no weight" for name in class_names if name not in given]
    if not problems and not any(given[name] for name, count in zip(class_names, counts, strict=True) if count):
        problems.append("every class that has training images has the weight 0, and nothing would be learnt")
    if problems:
        raise ConfigError(
            "train.class_weights does not fit the classes of the data.",
            problems=problems,
            fix="give every class one weight by its name, such as {cat: 1, dog: 2.5}, or choose balanced or effective.",
        )
    return np.array([given[name] for name in class_names], dtype=np.float64)
