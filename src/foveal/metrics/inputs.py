"""What the metrics are computed from, checked once at the door: labels, probabilities, logits, groups."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foveal.errors import DataError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_ROW_SUM_TOLERANCE = 1e-4  # a float32 softmax over a thousand classes is within 1e-6 of 1
_ROWS_SHOWN = 5


def checked_labels(labels: ArrayLike, num_classes: int, *, name: str = "labels") -> Ints:
    """The labels as int64 [n], each in 0..num_classes-1.

    Raises:
        DataError: there are none, they are not a flat array of whole numbers, or one is out of range.
    """
    array = np.asarray(labels)
    problems = _label_problems(array, num_classes, name)
    if problems:
        raise _refused(problems)
    return array.astype(np.int64, copy=False)


def checked_pair(labels: ArrayLike, rows: ArrayLike, *, rows_are: str = "probabilities") -> tuple[Ints, Floats]:
    """Labels int64 [n] and their rows float64 [n, C], all problems reported at once.

    Args:
        labels: the true class of each image, in 0..C-1.
        rows: probabilities (each row sums to 1) or logits, [n, C].
        rows_are: "probabilities" or "logits".

    Raises:
        DataError: empty, of unequal length, not finite, or not what `rows_are` says.
    """
    label_array, row_array = np.asarray(labels), np.asarray(rows)
    if row_array.ndim != 2 or row_array.shape[1] == 0:
        raise _refused([f"{rows_are}: expected an array [images, classes], got shape {list(row_array.shape)}"])
    problems = _label_problems(label_array, row_array.shape[1], "labels")
    if label_array.ndim == 1 and len(label_array) != len(row_array):
        problems.append(f"{rows_are}: {len(row_array)} rows for {len(label_array)} labels")
    problems += _row_problems(row_array, rows_are)
    if problems:
        raise _refused(problems)
    return label_array.astype(np.int64, copy=False), row_array.astype(np.float64, copy=False)


def checked_groups(groups: ArrayLike | None, num_images: int) -> Ints | None:
    """The group of each image as 0..G-1, or None where no two images share one.

    Raises:
        DataError: not one group an image.
    """
    if groups is None:
        return None
    array = np.asarray(groups)
    if array.shape != (num_images,):
        raise _refused([f"groups: expected one group for each of {num_images} images, got shape {list(array.shape)}"])
    distinct, index = np.unique(array, return_inverse=True)
    return index.astype(np.int64) if len(distinct) < num_images else None


def _label_problems(labels: NDArray[Any], num_classes: int, name: str) -> list[str]:
    if labels.ndim != 1:
        return [f"{name}: expected one label an image, got an array of shape {list(labels.shape)}"]
    if len(labels) == 0:
        return [f"{name}: no image at all"]
    if labels.dtype.kind not in "iu":
        return [f"{name}: expected whole numbers, got {labels.dtype}"]
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    return [f"{name}: row {row} is {labels[row]}, outside 0..{num_classes - 1}" for row in wrong]


def _row_problems(rows: NDArray[Any], rows_are: str) -> list[str]:
    if rows.dtype.kind not in "fiu":
        return [f"{rows_are}: expected numbers, got {rows.dtype}"]
    wrong = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    problems = [f"{rows_are}: {len(wrong)} rows hold NaN or infinity, the first: {_some(wrong)}"] if len(wrong) else []
    if rows_are != "probabilities" or problems:
        return problems
    outside = np.flatnonzero(((rows < 0) | (rows > 1 + _ROW_SUM_TOLERANCE)).any(axis=1))
    if len(outside):
        problems.append(f"{rows_are}: {len(outside)} rows leave 0..1, the first: {_some(outside)}")
    unequal = np.flatnonzero(np.abs(rows.sum(axis=1) - 1) > _ROW_SUM_TOLERANCE)
    if len(unequal):
        problems.append(f"{rows_are}: {len(unequal)} rows do not sum to 1, the first: {_some(unequal)}")
    return problems


def _some(rows: NDArray[Any]) -> str:
    return ", ".join(str(row) for row in rows[:_ROWS_SHOWN])


def _refused(problems: list[str]) -> DataError:
    return DataError(
        "Metrics need one true label and one row of finite numbers for each of at least one image.",
        problems=problems,
        fix="check that the split has images, that every label is one of the model's classes, "
        "and that the model's outputs are finite.",
    )
