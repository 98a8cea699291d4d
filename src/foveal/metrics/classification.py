"""Everything that follows from who was taken for whom: the confusion matrix and the metrics derived from it.

A confusion matrix has the true classes as rows and the predicted ones as columns. It may hold counts or weights, and
may be stacked, [..., C, C]: every function here works over the leading axes at once.

Conventions, equal to scikit-learn's with `zero_division=0` whenever every class has images in the split:

- Macro averages run over the classes that have **support** (at least one image in the split). A class that the split
  does not contain was not tested, and must not pass for one that failed.
- A class with support that is never predicted counts as precision 0 in the macro average, as in scikit-learn; seen
  alone, its precision is undefined.
- What has no value is NaN here, and null with a reason in `SplitMetrics`. scikit-learn returns 0 for the Matthews
  correlation when only one class occurs; here that is NaN.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foveal.errors import DataError
from foveal.metrics.inputs import Floats, Ints, checked_labels

EPOCH_METRICS = ("accuracy", "macro_f1", "macro_precision", "macro_recall")


def confusion_matrix(labels: ArrayLike, predicted: ArrayLike, num_classes: int) -> Ints:
    """Count the images of each true class (row) taken for each class (column).

    Args:
        labels: int [n], the true class of each image, in 0..num_classes-1.
        predicted: int [n], the predicted class of each image, in 0..num_classes-1.
        num_classes: C.

    Returns:
        int64 [C, C].

    Raises:
        DataError: no image, unequal lengths, or a class out of range.
    """
    true = checked_labels(labels, num_classes)
    guess = checked_labels(predicted, num_classes, name="predicted")
    if len(true) != len(guess):
        raise DataError(f"Expected one prediction for each label, got {len(guess)} for {len(true)}.")
    return np.bincount(true * num_classes + guess, minlength=num_classes**2).reshape(num_classes, num_classes)


@dataclass(frozen=True)
class ClassCounts:
    """The few sums of a confusion matrix that all metrics of this module need.

    They stay small where a stack of whole matrices would not: 1,000 resamples of 196 classes are 300 MB of matrices.

    Attributes:
        correct: float64 [..., C], the diagonal.
        support: float64 [..., C], images of each true class.
        predicted: float64 [..., C], images taken for each class.
        squared_distance: float64 [...], sum over images of (true index - predicted index)².
    """

    correct: Floats
    support: Floats
    predicted: Floats
    squared_distance: Floats

    @classmethod
    def from_confusion(cls, confusion: ArrayLike) -> Self:
        """Sum up a confusion matrix, or a stack of them, [..., C, C].

        Raises:
            DataError: the last two axes are not a square.
        """
        matrix = np.asarray(confusion, dtype=np.float64)
        if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2] or matrix.shape[-1] == 0:
            raise DataError(f"Expected a confusion matrix [..., classes, classes], got shape {list(matrix.shape)}.")
        index = np.arange(matrix.shape[-1], dtype=np.float64)
        return cls(
            correct=np.diagonal(matrix, axis1=-2, axis2=-1),
            support=matrix.sum(axis=-1),
            predicted=matrix.sum(axis=-2),
            squared_distance=np.asarray((matrix * (index[:, None] - index) ** 2).sum(axis=(-2, -1))),
        )


def confusion_metrics(confusion: ArrayLike) -> dict[str, Floats]:
    """Every scalar metric that follows from a confusion matrix.

    Args:
        confusion: counts or weights, [..., C, C], true classes as rows.

    Returns:
        float64 [...] for each of `accuracy`, `balanced_accuracy`, `macro_precision`, `macro_recall`, `macro_f1`,
        `weighted_f1`, `cohen_kappa`, `quadratic_weighted_kappa` and `matthews_correlation`; NaN where undefined.
    """
    return metrics_from_counts(ClassCounts.from_confusion(confusion))


def metrics_from_counts(counts: ClassCounts) -> dict[str, Floats]:
    """As `confusion_metrics`, from the sums.

    Sources: Cohen (1960) for kappa, Cohen (1968) for weighted kappa, Gorodkin (2004) for the Matthews correlation of
    more than two classes.
    """
    tested = counts.support > 0
    recall, precision, f1 = _recall(counts), _precision_or_zero(counts), _f1(counts)
    macro_recall = _mean_where(recall, tested)
    total = counts.support.sum(axis=-1)
    return {
        "accuracy": _ratio(counts.correct.sum(axis=-1), total),
        "balanced_accuracy": macro_recall,
        "macro_precision": _mean_where(precision, tested),
        "macro_recall": macro_recall.copy(),
        "macro_f1": _mean_where(f1, tested),
        "weighted_f1": _ratio((f1 * counts.support).sum(axis=-1, where=tested), total),
        "cohen_kappa": _kappa(counts),
        "quadratic_weighted_kappa": _quadratic_kappa(counts),
        "matthews_correlation": _matthews(counts),
    }


def class_metrics(confusion: ArrayLike) -> dict[str, Floats]:
    """Precision, recall and F1 of each class by itself.

    Args:
        confusion: counts or weights, [..., C, C], true classes as rows.

    Returns:
        float64 [..., C] for `precision`, `recall` and `f1`. All three are NaN for a class without support; precision is
        NaN too for a class that is never predicted.
    """
    counts = ClassCounts.from_confusion(confusion)
    tested = counts.support > 0
    precision = _ratio(counts.correct, counts.predicted)
    return {"precision": np.where(tested, precision, np.nan), "recall": _recall(counts), "f1": _f1(counts)}


def epoch_metrics(confusion: ArrayLike) -> dict[str, float]:
    """The few figures worth a column in the table of epochs.

    Args:
        confusion: counts over one epoch, [C, C], true classes as rows.

    Returns:
        `accuracy`, `macro_f1`, `macro_precision` and `macro_recall`, each in 0..1.

    Raises:
        DataError: the matrix counts no image.
    """
    if np.sum(confusion) <= 0:
        raise DataError(
            "Expected a confusion matrix with images in it, got an empty one.",
            fix="give the split that is evaluated after each epoch at least one image.",
        )
    metrics = confusion_metrics(confusion)
    return {name: float(metrics[name]) for name in EPOCH_METRICS}


def _ratio(numerator: NDArray[np.float64], denominator: NDArray[np.float64]) -> Floats:
    """Divide, with NaN where the denominator is 0 or less."""
    top, bottom = np.broadcast_arrays(numerator, denominator)
    return np.asarray(np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom > 0))


def _mean_where(values: Floats, mask: NDArray[np.bool_]) -> Floats:
    return _ratio(values.sum(axis=-1, where=mask), mask.sum(axis=-1).astype(np.float64))


def _recall(counts: ClassCounts) -> Floats:
    return _ratio(counts.correct, counts.support)


def _precision_or_zero(counts: ClassCounts) -> Floats:
    blank = np.zeros(counts.correct.shape)
    return np.asarray(np.divide(counts.correct, counts.predicted, out=blank, where=counts.predicted > 0))


def _f1(counts: ClassCounts) -> Floats:
    f1 = _ratio(2 * counts.correct, counts.support + counts.predicted)
    return np.where(counts.support > 0, f1, np.nan)


def _kappa(counts: ClassCounts) -> Floats:
    # Multiplied out by the square of the total, so that counts stay whole numbers and "no disagreement can be expected"
    # is an exact zero.
    total = counts.support.sum(axis=-1)
    by_chance = (counts.support * counts.predicted).sum(axis=-1)
    return _ratio(total * counts.correct.sum(axis=-1) - by_chance, total**2 - by_chance)


def _quadratic_kappa(counts: ClassCounts) -> Floats:
    # The disagreement expected by chance, sum of (i - j)² s_i p_j, without a [C, C] table.
    index = np.arange(counts.support.shape[-1], dtype=np.float64)
    total = counts.support.sum(axis=-1)
    squares = ((counts.support + counts.predicted) * index**2).sum(axis=-1) * total
    by_chance = squares - 2 * (counts.support * index).sum(axis=-1) * (counts.predicted * index).sum(axis=-1)
    return 1 - _ratio(total * counts.squared_distance, by_chance)


def _matthews(counts: ClassCounts) -> Floats:
    total = counts.support.sum(axis=-1)
    covariance = total * counts.correct.sum(axis=-1) - (counts.support * counts.predicted).sum(axis=-1)
    spread_true = total**2 - (counts.support**2).sum(axis=-1)
    spread_predicted = total**2 - (counts.predicted**2).sum(axis=-1)
    return np.clip(_ratio(covariance, np.sqrt(np.maximum(spread_true * spread_predicted, 0))), -1, 1)
