"""From labels and logits to `SplitMetrics`: every figure of one split, its interval, and a reason for what has none."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foveal.errors import DataError
from foveal.metrics.calibration import ece, log_loss, softmax
from foveal.metrics.classification import class_metrics, confusion_matrix
from foveal.metrics.curves import mean_of_defined, roc_auc_by_class
from foveal.metrics.inputs import Floats, Ints, checked_pair
from foveal.metrics.intervals import ImageTable, Intervals, bootstrap_intervals
from foveal.metrics.split_metrics import QUALITY_METRICS, ClassMetrics, Leakage, SplitMetrics


def summarise(
    labels: ArrayLike,
    logits: ArrayLike,
    *,
    class_names: Sequence[str],
    split: str,
    temperature: float = 1.0,
    majority_class: int | None = None,
    groups: ArrayLike | None = None,
    ordered: bool = False,
    siblings_in_train: ArrayLike | None = None,
    seed: int = 0,
    num_resamples: int = 1000,
) -> SplitMetrics:
    """Measure everything on one split.

    Args:
        labels: int [n], the true classes, in 0..C-1.
        logits: float [n, C], finite, not yet divided by the temperature.
        class_names: C names in the order of the columns.
        split: "train", "val" or "test".
        temperature: what to divide the logits by, fitted on other images.
        majority_class: the class that is largest in training; None takes the largest of this split.
        groups: the group of each image, [n]; see `intervals`.
        ordered: whether the classes have an order, as disease grades do.
        siblings_in_train: bool [n], whether training holds a near-duplicate or group member; None: not looked for.
        seed: of the resampling.
        num_resamples: behind the intervals.

    Raises:
        DataError: the split is empty, or lengths, labels, logits or names do not fit each other; all at once.
    """
    true, siblings = _checked(labels, logits, class_names, split, majority_class, groups, siblings_in_train)
    probabilities = softmax(logits, temperature)
    table = ImageTable.from_probabilities(true, probabilities)
    confusion = confusion_matrix(true, table.predicted, len(class_names))
    by_class = class_metrics(confusion) | {"roc_auc": roc_auc_by_class(true, probabilities)}
    values = _scalars(table, by_class["roc_auc"], ordered)
    drawing = {"seed": seed, "num_resamples": num_resamples}
    intervals = bootstrap_intervals(true, probabilities, groups=groups, ordered=ordered, **drawing)
    reasons = _scalar_reasons(values, split, len(class_names), ordered) | _class_reasons(confusion, class_names, split)
    leakage = _leakage(table.predicted == true, siblings, split, reasons)
    support, uncalibrated = confusion.sum(axis=1), softmax(logits)
    baseline = int(support.argmax()) if majority_class is None else majority_class
    return SplitMetrics(
        **values,
        split=split,
        num_images=len(true),
        majority_baseline_accuracy=float(support[baseline] / len(true)),
        temperature=temperature,
        ece_before_temperature=ece(true, uncalibrated),
        log_loss_before_temperature=log_loss(true, uncalibrated),
        confidence_intervals=intervals.bounds,
        per_class=_per_class(class_names, support, by_class),
        confusion_matrix=tuple(tuple(row) for row in confusion.tolist()),
        class_names=tuple(class_names),
        leakage=leakage,
        latency_ms=None,
        undefined=reasons | _interval_reasons(intervals) | {"latency_ms": "not measured"},
    )


def _checked(
    labels: ArrayLike,
    logits: ArrayLike,
    class_names: Sequence[str],
    split: str,
    majority_class: int | None,
    groups: ArrayLike | None,
    siblings_in_train: ArrayLike | None,
) -> tuple[Ints, NDArray[np.bool_] | None]:
    if np.size(labels) == 0:
        raise DataError(
            f"Expected images in the {split} split, got none.",
            fix=f"raise data.{split}_fraction, or name another split."
            if split in ("val", "test")
            else "name another split.",
        )
    true, rows = checked_pair(labels, logits, rows_are="logits")
    problems = []
    if rows.shape[1] != len(class_names):
        problems.append(f"class_names: {len(class_names)} names for {rows.shape[1]} columns of logits")
    if len(set(class_names)) != len(class_names):
        twice = sorted({name for name in class_names if list(class_names).count(name) > 1})
        problems.append(f"class_names: more than once: {', '.join(twice)}")
    if majority_class is not None and not 0 <= majority_class < rows.shape[1]:
        problems.append(f"majority_class: {majority_class} is outside 0..{rows.shape[1] - 1}")
    siblings = None if siblings_in_train is None else np.asarray(siblings_in_train, dtype=bool)
    if siblings is not None and siblings.shape != true.shape:
        problems.append(f"siblings_in_train: expected one value for each of {len(true)} images, got {siblings.size}")
    if groups is not None and np.shape(groups) != true.shape:
        problems.append(f"groups: expected one for each of {len(true)} images, got {np.size(groups)}")
    if problems:
        raise DataError(
            f"What is to be measured on the {split} split does not fit together.",
            problems=problems,
            fix="evaluate the model on the data and with the class names that it was trained on.",
        )
    return true, siblings


def _scalars(table: ImageTable, auc_by_class: Floats, ordered: bool) -> dict[str, float | None]:
    """Each of `QUALITY_METRICS`, None where it has no value."""
    values = table.metrics(np.ones((len(table.labels), 1)), with_roc_auc=False)
    values["macro_roc_auc"] = mean_of_defined(auc_by_class[:, None])
    if not ordered:
        values.pop("quadratic_weighted_kappa")
    return {name: _or_none(values[name][0]) if name in values else None for name in QUALITY_METRICS}


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _per_class(class_names: Sequence[str], support: Ints, by_class: dict[str, Floats]) -> tuple[ClassMetrics, ...]:
    return tuple(
        ClassMetrics(
            name=name,
            support=int(support[index]),
            precision=_or_none(by_class["precision"][index]),
            recall=_or_none(by_class["recall"][index]),
            f1=_or_none(by_class["f1"][index]),
            roc_auc=_or_none(by_class["roc_auc"][index]),
        )
        for index, name in enumerate(class_names)
    )


def _leakage(
    right: NDArray[np.bool_], siblings: NDArray[np.bool_] | None, split: str, reasons: dict[str, str]
) -> Leakage | None:
    """The leakage block; adds to `reasons` why it, or its accuracy, is null."""
    if siblings is None:
        reasons["leakage"] = "images with siblings in training were not looked for"
        return None
    if siblings.all():
        reasons["leakage.accuracy_without_them"] = f"every image of the {split} split has a sibling in training"
        return Leakage(num_test_images_with_siblings_in_train=int(siblings.sum()), accuracy_without_them=None)
    return Leakage(
        num_test_images_with_siblings_in_train=int(siblings.sum()),
        accuracy_without_them=float(right[~siblings].mean()),
    )


def _scalar_reasons(values: dict[str, float | None], split: str, num_classes: int, ordered: bool) -> dict[str, str]:
    """Why each scalar metric that is not defined is not."""
    one_class = f"all images of the {split} split are of one class, and are all taken for that class"
    why = {
        "top_3_accuracy": f"with {num_classes} classes the true one is always among the first 3",
        "top_5_accuracy": f"with {num_classes} classes the true one is always among the first 5",
        "macro_roc_auc": f"no class has images on both sides: the {split} split holds one class",
        "cohen_kappa": one_class,
        "quadratic_weighted_kappa": one_class if ordered else "the classes have no declared order (data.ordered=true)",
        "matthews_correlation": f"all images of the {split} split are of one class, or are all taken for one class",
    }
    return {name: reason for name, reason in why.items() if values[name] is None}


def _interval_reasons(intervals: Intervals) -> dict[str, str]:
    return {f"confidence_intervals.{name}": reason for name, reason in intervals.reasons.items()}


def _class_reasons(confusion: Ints, class_names: Sequence[str], split: str) -> dict[str, str]:
    """Why each figure of a class that is not defined is not."""
    reasons: dict[str, str] = {}
    support, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    for index, name in enumerate(class_names):
        key = f"per_class.{name}"
        if support[index] == 0:
            none_there = f"no image of this class in the {split} split"
            reasons |= {f"{key}.{metric}": none_there for metric in ("precision", "recall", "f1", "roc_auc")}
            continue
        if predicted[index] == 0:
            reasons[f"{key}.precision"] = "never predicted; counts as 0 in macro_precision"
        if support[index] == support.sum():
            reasons[f"{key}.roc_auc"] = f"every image of the {split} split is of this class"
    return reasons
