"""Intervals of each class's precision, recall and F1, from the same resamples for all classes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foveal.metrics.intervals import wilson_interval
from foveal.metrics.proportions import Proportions, resampled_proportions

Bounds = tuple[float, float]

MOST_CLASSES = 200
"""With more, resampling costs too much; precision and recall then have the interval of Wilson (1927), and F1 none."""

_TAILS = (0.025, 0.975)
_FEW = 10
_COLLAPSED = 1e-12


@dataclass(frozen=True)
class ClassIntervals:
    """The 95 % intervals of one class; None where the figure is undefined or does not show how it varies."""

    precision: Bounds | None
    recall: Bounds | None
    f1: Bounds | None


def class_intervals(
    labels: ArrayLike,
    predicted: ArrayLike,
    num_classes: int,
    *,
    groups: ArrayLike | None = None,
    seed: int = 0,
    num_resamples: int = 1000,
) -> tuple[ClassIntervals, ...]:
    """How far the figures of each class would move had other images of the same kind been drawn.

    The percentile bootstrap (Efron, 1979), drawn as in `foveal.metrics.intervals`. Precision and recall are shares, and
    are widened to the interval of Wilson (1927) where fewer than 10 images are right or wrong; F1 then to the F1 at
    the ends of both.

    Args:
        labels: int [n], the true classes.
        predicted: int [n], the most probable classes.
        num_classes: how many there are.
        groups: the group of each image, [n]; resampled as wholes where several images share one.
        seed: of the resampling.
        num_resamples: at most how many; fewer for very many images.

    Returns:
        One for each class, in order.
    """
    true, said = np.asarray(labels, dtype=np.int64), np.asarray(predicted, dtype=np.int64)
    support, chosen = (np.bincount(each, minlength=num_classes) for each in (true, said))
    hits = np.bincount(true[true == said], minlength=num_classes)
    if num_classes > MOST_CLASSES:
        return tuple(
            ClassIntervals(_wilson(hits[at], chosen[at]), _wilson(hits[at], support[at]), None)
            for at in range(num_classes)
        )
    classes = np.arange(num_classes)[:, None]
    is_true, is_said = true == classes, said == classes
    holds = np.concatenate([is_true & is_said, is_true, is_said])
    found = resampled_proportions(true, holds, groups=groups, seed=seed, num_resamples=num_resamples)
    return tuple(_of_class(found, at, num_classes) for at in range(num_classes))


def _of_class(found: Proportions, at: int, num_classes: int) -> ClassIntervals:
    """The three intervals; `found` holds the shares of hits, of true and of chosen images, a class after the other."""
    if not found.resampled.shape[1]:
        return ClassIntervals(None, None, None)
    places = (at, num_classes + at, 2 * num_classes + at)
    counts = [round(float(found.shares[place]) * found.num_images) for place in places]
    hit, true, chosen = (found.resampled[place] for place in places)
    recall = _share(hit, true, counts[0], counts[1])
    precision = _share(hit, chosen, counts[0], counts[2])
    if not counts[1]:
        return ClassIntervals(precision, None, None)
    is_defined = true > 0
    values = 2 * hit[is_defined] / (true + chosen)[is_defined]
    ends = [*np.quantile(values, _TAILS).tolist(), 2 * counts[0] / (counts[1] + counts[2])]
    if min(counts[0], counts[1] + counts[2] - 2 * counts[0]) < _FEW and recall and precision:
        ends += [_f1(recall[0], precision[0]), _f1(recall[1], precision[1])]
    return ClassIntervals(precision, recall, _bounds(ends))


def _share(part: NDArray[np.float64], whole: NDArray[np.float64], num_hits: int, num_images: int) -> Bounds | None:
    """The interval of hits among images, both resampled."""
    if not num_images:
        return None
    values = part[whole > 0] / whole[whole > 0]
    ends = [*np.quantile(values, _TAILS).tolist(), num_hits / num_images]
    if min(num_hits, num_images - num_hits) < _FEW:
        ends += wilson_interval(num_hits, num_images)
    return _bounds(ends)


def _f1(recall: float, precision: float) -> float:
    return 2 * recall * precision / (recall + precision) if recall + precision > 0 else 0.0


def _wilson(num_hits: int, num_images: int) -> Bounds | None:
    return wilson_interval(num_hits, num_images) if num_images else None


def _bounds(ends: list[float]) -> Bounds | None:
    return (min(ends), max(ends)) if max(ends) - min(ends) > _COLLAPSED else None
