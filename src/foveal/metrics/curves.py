"""The area under the ROC curve, one class against the rest, and the curve itself for plots."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foveal.errors import DataError
from foveal.metrics.inputs import Floats, Ints, checked_pair

_BLOCK = 32  # rows of 32 weights keep the gather in the cache: measured six times faster than rows of 256


class RocCurve(NamedTuple):
    """A ROC curve of one class against the rest, from (0, 0) to (1, 1).

    Attributes:
        false_positive_rate: float64 [k], ascending, in 0..1.
        true_positive_rate: float64 [k], ascending, in 0..1.
        thresholds: float64 [k], descending; the first is infinity, at which nothing is taken for the class.
    """

    false_positive_rate: Floats
    true_positive_rate: Floats
    thresholds: Floats


def roc_curve(labels: ArrayLike, probabilities: ArrayLike, class_index: int) -> RocCurve | None:
    """The ROC curve of one class against the rest, without the points that lie on a straight piece.

    Args:
        labels: int [n], in 0..C-1.
        probabilities: float [n, C], rows sum to 1.
        class_index: the class that counts as positive.

    Returns:
        The curve, or None where the images are all of the class, or none is.

    Raises:
        DataError: empty or malformed input, or no such class.
    """
    true, rows = checked_pair(labels, probabilities)
    if not 0 <= class_index < rows.shape[1]:
        raise DataError(f"Expected a class index in 0..{rows.shape[1] - 1}, got {class_index}.")
    positive = true == class_index
    if positive.all() or not positive.any():
        return None
    order = np.argsort(-rows[:, class_index], kind="stable")
    values = rows[order, class_index]
    last_of_tie = np.append(np.flatnonzero(np.diff(values)), len(values) - 1)
    hits = np.cumsum(positive[order])[last_of_tie]
    false_alarms = last_of_tie + 1 - hits
    corner = np.ones(len(hits), dtype=bool)
    corner[1:-1] = (np.diff(hits, 2) != 0) | (np.diff(false_alarms, 2) != 0)
    return RocCurve(
        np.concatenate([[0.0], false_alarms[corner] / false_alarms[-1]]),
        np.concatenate([[0.0], hits[corner] / hits[-1]]),
        np.concatenate([[np.inf], values[last_of_tie][corner]]),
    )


def roc_auc_by_class(labels: ArrayLike, probabilities: ArrayLike) -> Floats:
    """The area under the ROC curve of each class against the rest; ties count one half.

    Equal to the normalised Mann-Whitney U statistic (Hanley and McNeil, 1982). With two classes both have the area of
    the second, as usual, whatever rounding does to the first column.

    Args:
        labels: int [n], in 0..C-1.
        probabilities: float [n, C], rows sum to 1.

    Returns:
        float64 [C], in 0..1; NaN for a class of which no image, or every image, is.
    """
    true, rows = checked_pair(labels, probabilities)
    return weighted_roc_auc(true, rows, np.ones((len(true), 1)))[:, 0]


def macro_roc_auc(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """The mean of `roc_auc_by_class` over the classes that have one; NaN where none has.

    Equal to scikit-learn's `roc_auc_score(multi_class="ovr", average="macro")` when every class is in the split.

    Args:
        labels: int [n], in 0..C-1.
        probabilities: float [n, C], rows sum to 1.
    """
    return float(mean_of_defined(roc_auc_by_class(labels, probabilities))[()])


def weighted_roc_auc(labels: Ints, probabilities: Floats, weights: NDArray[Any]) -> Floats:
    """`roc_auc_by_class` under many weightings of the same images, each class sorted only once.

    Args:
        labels: int64 [n], in 0..C-1, already checked.
        probabilities: float64 [n, C], already checked.
        weights: floating [n, b], each at least 0; float32 is exact and fastest for counts.

    Returns:
        float64 [C, b]; NaN where undefined.
    """
    num_classes = probabilities.shape[1]
    blocks = [np.ascontiguousarray(block) for block in _blocks(weights)]
    if num_classes == 2:
        area = _auc_of_one(labels == 1, probabilities[:, 1], blocks)
        return np.stack([area, area])
    return np.stack([_auc_of_one(labels == c, probabilities[:, c], blocks) for c in range(num_classes)])


def grouped_sums(weights: NDArray[Any], starts: NDArray[np.intp]) -> Floats:
    """Sum neighbouring rows of `weights`, [n, b], each group from one start to the next: float64 [groups, b]."""
    return np.concatenate(
        [np.add.reduceat(block, starts, axis=0).astype(np.float64) for block in _blocks(weights)], axis=1
    )


def _blocks(weights: NDArray[Any]) -> list[NDArray[Any]]:
    return [weights[:, at : at + _BLOCK] for at in range(0, weights.shape[1], _BLOCK)]


def mean_of_defined(by_class: Floats) -> Floats:
    """The mean over the first axis of what is not NaN; NaN where nothing is left."""
    defined = ~np.isnan(by_class)
    count = defined.sum(axis=0)
    total = np.asarray(by_class.sum(axis=0, where=defined))
    return np.asarray(np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0))


def _auc_of_one(positive: NDArray[np.bool_], values: Floats, blocks: Sequence[NDArray[Any]]) -> Floats:
    """The weighted area for one class: float64 [b] over all blocks of weights."""
    if positive.all() or not positive.any():
        return np.full(sum(block.shape[1] for block in blocks), np.nan)
    order = np.argsort(values, kind="stable")
    rank_values, rank_positive = values[order], positive[order]
    # Cut the ranking into bins such that each tie that holds a positive image is a bin of its own. Between two such
    # ties all images are negative, and only the sum of their weights matters: few bins, however many images.
    of_positives = np.unique(rank_values[rank_positive])
    edges = np.concatenate(
        [[0], np.searchsorted(rank_values, of_positives, "left"), np.searchsorted(rank_values, of_positives, "right")]
    )
    starts = np.unique(edges[edges < len(order)])
    positives = order[rank_positive]
    bin_of_positive = np.searchsorted(starts, np.flatnonzero(rank_positive), "right") - 1
    bins_with_positives, first = np.unique(bin_of_positive, return_index=True)
    areas = []
    for block in blocks:
        both = np.add.reduceat(block[order], starts, axis=0).astype(np.float64)
        hits = np.add.reduceat(block[positives], first, axis=0).astype(np.float64)
        both[bins_with_positives] -= hits  # `both` now holds the negatives alone
        below = np.cumsum(both, axis=0) - both / 2
        wins = (hits * below[bins_with_positives]).sum(axis=0)
        pairs = hits.sum(axis=0) * both.sum(axis=0)
        areas.append(np.divide(wins, pairs, out=np.full(wins.shape, np.nan), where=pairs > 0))
    return np.concatenate(areas)
