"""95 % intervals: how far each metric would move had other images of the same kind been drawn.

The percentile bootstrap (Efron, 1979), all metrics from the same resamples. How images are drawn:

- **Stratified**: within each true class, so that a resample has the class counts of the split. Classes with fewer than
  10 images are drawn together as one stratum: a class of one image drawn from itself never varies, and would make an
  interval narrow just where little is known. A resample may then miss such a class, and its macro averages run over the
  others.
- **By whole groups**, when several images share a group (a patient, a video): groups are drawn with replacement,
  stratified by nothing, and each brings all its images. Images of one group agree with each other, so drawing images
  one by one would promise more than was seen. Metrics that a resample leaves undefined are skipped there.

Departures from the plain percentile method, each because the plain one would mislead:

- When all predictions are right (or all wrong) every resample says so too, and the interval collapses to a point; with
  a handful of errors it is still too narrow. With fewer than 10 wrong (or right) predictions `accuracy` and the top-k
  accuracies are widened to hold the Wilson interval (Wilson, 1927), and the other metrics of the confusion matrix to
  hold their value at the Wilson bound; see `_widened`.
- A resample adds its own upward bias to `ece` (the gaps are absolute values), which can push the whole interval above
  the estimate. The resampled values are therefore moved down by that bias, estimated as their mean minus the estimate.
- An interval always reaches to its estimate: `macro_precision` over classes of three images is biased enough under
  resampling to leave it otherwise.
- What still is a single point, or is defined in fewer than half of the resamples, gets no interval but a reason.

Work is bounded: at most `num_resamples` resamples, fewer when images x resamples would pass 1e9, and fewer for the ROC
area alone when images x classes x resamples would pass 2e9; never fewer than 200 (or `num_resamples`).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foveal.errors import DataError
from foveal.metrics.calibration import NUM_ECE_BINS, brier_terms, log_loss_terms, top_k_hits, top_probability_bins
from foveal.metrics.classification import ClassCounts, confusion_metrics, metrics_from_counts
from foveal.metrics.curves import grouped_sums, mean_of_defined, weighted_roc_auc
from foveal.metrics.inputs import Floats, Ints, checked_groups, checked_pair

TOP_K = (3, 5)
PROPORTIONS = ("accuracy", "top_3_accuracy", "top_5_accuracy")
MACRO_METRICS = ("balanced_accuracy", "macro_precision", "macro_recall", "macro_f1")

_MIN_STRATUM_IMAGES = 10
_MIN_RESAMPLES = 200
_MIN_DEFINED_SHARE = 0.5
_FEW = 10
_MAX_DRAWS = 1e9
_MAX_AUC_WORK = 2e9
_CHUNK_ELEMENTS = 4_000_000
_DRAW_ELEMENTS = 1_000_000
_EXACT_IN_FLOAT32 = 2**24
_COLLAPSED = 1e-12


@dataclass(frozen=True)
class Intervals:
    """The intervals that could be given, and why the others could not.

    Attributes:
        bounds: (low, high) for each metric that has an interval.
        reasons: why there is none, for each metric that is defined and has none.
    """

    bounds: dict[str, tuple[float, float]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ImageTable:
    """What each image adds to each metric, so that any weighting of the images is a few sums.

    Attributes:
        labels: int64 [n], the true classes.
        predicted: int64 [n], the most probable classes; a tie goes to the lower index.
        probabilities: float64 [n, C].
        terms: float64 [n] for each metric that is a mean over images.
        calibration_bins: int64 [n], the bin of the calibration error that each image falls in.
        calibration_gaps: float64 [n], right (1 or 0) minus claimed probability.
    """

    labels: Ints
    predicted: Ints
    probabilities: Floats
    terms: dict[str, Floats]
    calibration_bins: Ints
    calibration_gaps: Floats

    @classmethod
    def from_probabilities(cls, labels: ArrayLike, probabilities: ArrayLike) -> Self:
        """Tabulate images.

        Args:
            labels: int [n], in 0..C-1.
            probabilities: float [n, C], rows sum to 1.

        Raises:
            DataError: empty or malformed input.
        """
        true, rows = checked_pair(labels, probabilities)
        predicted = rows.argmax(axis=1).astype(np.int64)
        terms = {f"top_{k}_accuracy": top_k_hits(true, rows, k).astype(float) for k in TOP_K if k < rows.shape[1]}
        terms |= {"log_loss": log_loss_terms(true, rows), "brier": brier_terms(true, rows)}
        bins, _ = top_probability_bins(rows)
        return cls(true, predicted, rows, terms, bins, (predicted == true) - rows.max(axis=1))

    def metrics(self, weights: NDArray[Any], *, with_roc_auc: bool = True) -> dict[str, Floats]:
        """Every scalar metric under many weightings of the images.

        Args:
            weights: floating [n, b]; how often each image counts in each of b resamples.
            with_roc_auc: whether to compute the one that costs most.

        Returns:
            float64 [b] for each metric; NaN where undefined.
        """
        num_classes = self.probabilities.shape[1]
        exact = weights.astype(np.float64, copy=False)
        right = self.predicted == self.labels
        counts = ClassCounts(
            correct=_sums_by(self.labels[right], num_classes, weights[right]),
            support=_sums_by(self.labels, num_classes, weights),
            predicted=_sums_by(self.predicted, num_classes, weights),
            squared_distance=((self.predicted - self.labels) ** 2).astype(float) @ exact,
        )
        values = metrics_from_counts(counts)
        total = exact.sum(axis=0)
        values |= {name: term @ exact / total for name, term in self.terms.items()}
        gaps = _one_hot(self.calibration_bins, NUM_ECE_BINS) * self.calibration_gaps
        values["ece"] = np.abs(gaps @ exact).sum(axis=0) / total
        if with_roc_auc:
            values["macro_roc_auc"] = mean_of_defined(weighted_roc_auc(self.labels, self.probabilities, weights))
        return values


def bootstrap_intervals(
    labels: ArrayLike,
    probabilities: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    ordered: bool = False,
    seed: int = 0,
    num_resamples: int = 1000,
    level: float = 0.95,
) -> Intervals:
    """An interval for every scalar metric that estimates quality.

    Args:
        labels: int [n], in 0..C-1.
        probabilities: float [n, C], rows sum to 1.
        groups: the group of each image, [n]; resampled as wholes where several images share one.
        ordered: whether the classes have an order, and with it a quadratic weighted kappa.
        seed: of the resampling.
        num_resamples: at most how many; see the top of this module.
        level: the share of such intervals that should hold the true value.

    Raises:
        DataError: empty or malformed input, or fewer than 2 resamples.
    """
    if num_resamples < 2 or not 0 < level < 1:
        raise DataError(f"Expected at least 2 resamples and a level between 0 and 1, got {num_resamples} and {level}.")
    table = ImageTable.from_probabilities(labels, probabilities)
    clusters = checked_groups(groups, len(table.labels))
    estimates = {name: float(value[0]) for name, value in table.metrics(np.ones((len(table.labels), 1))).items()}
    if not ordered:
        estimates.pop("quadratic_weighted_kappa")
    if clusters is not None and clusters.max() == 0:
        reason = "all images belong to one group, and one group does not show how groups differ"
        return Intervals(reasons={name: reason for name, value in estimates.items() if not np.isnan(value)})
    values = _resampled_metrics(table, clusters, seed, num_resamples)
    values["ece"] = np.maximum(values["ece"] - max(float(values["ece"].mean()) - estimates["ece"], 0.0), 0.0)
    tails = ((1 - level) / 2, (1 + level) / 2)
    widened = _widened(table, clusters, estimates, values, level)
    result = Intervals()
    for name, estimate in estimates.items():
        if np.isnan(estimate):
            continue
        defined = values[name][~np.isnan(values[name])]
        if len(defined) < _MIN_DEFINED_SHARE * len(values[name]):
            result.reasons[name] = "undefined in most resamples: too few images or groups hold its classes"
            continue
        ends = [*np.quantile(defined, tails), estimate, *widened.get(name, ())]
        low, high = float(min(ends)), float(max(ends))
        if high - low <= _COLLAPSED:
            result.reasons[name] = "every resample gives the same value, which says nothing of how far it may be off"
        else:
            result.bounds[name] = (low, high)
    return result


def wilson_interval(num_right: float, num_images: float, level: float = 0.95) -> tuple[float, float]:
    """The score interval of a proportion: never empty, and inside 0..1, even when all or none are right.

    Source: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", 1927.

    Args:
        num_right: how many were right; 0..num_images.
        num_images: out of how many independent ones; above 0.
        level: the share of such intervals that should hold the true value.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, shrink = num_right / num_images, 1 + z**2 / num_images
    centre = share + z**2 / (2 * num_images)
    half = z * float(np.sqrt(share * (1 - share) / num_images + z**2 / (4 * num_images**2)))
    low, high = (centre - half) / shrink, (centre + half) / shrink
    return (0.0 if num_right <= 0 else low), (1.0 if num_right >= num_images else high)


def affordable_resamples(num_resamples: int, num_images: int) -> int:
    """How many of the resamples that are wanted can be paid for; see the top of this module."""
    return max(min(num_resamples, _MIN_RESAMPLES), min(num_resamples, int(_MAX_DRAWS / num_images)))


def resample_counts(
    labels: Ints, groups: Ints | None, num_resamples: int, seed: int = 0
) -> Iterator[NDArray[np.float32] | Floats]:
    """How often each image is in each bootstrap resample, a chunk of resamples at a time.

    The draws depend on the seed alone, not on the size of the chunks.

    Args:
        labels: int64 [n], the true classes, which are the strata.
        groups: int64 [n], in 0..G-1, or None to draw images.
        num_resamples: how many.
        seed: of the generator.

    Yields:
        Floating [n, b], whole numbers of 0 and more; float32 where that is exact.
    """
    generator = np.random.default_rng(seed)
    strata = _strata(labels) if groups is None else np.zeros(int(groups.max()) + 1, dtype=np.int64)
    num_units = len(strata)
    order = np.argsort(strata, kind="stable")
    sizes = np.bincount(strata)
    size = np.repeat(sizes, sizes)
    start = np.repeat(np.cumsum(sizes) - sizes, sizes)
    dtype = np.float32 if len(labels) < _EXACT_IN_FLOAT32 else np.float64
    chunk, block = (max(1, elements // len(labels)) for elements in (_CHUNK_ELEMENTS, _DRAW_ELEMENTS))
    for at in range(0, num_resamples, chunk):
        counts = np.empty((num_units, min(chunk, num_resamples - at)), dtype=dtype)
        for column in range(0, counts.shape[1], block):
            rows = min(block, counts.shape[1] - column)
            drawn = start + (generator.random((rows, num_units)) * size).astype(np.int64)
            drawn += np.arange(rows)[:, None] * num_units
            times = np.bincount(drawn.ravel(), minlength=rows * num_units).reshape(rows, num_units)
            counts[order, column : column + rows] = times.T
        yield counts if groups is None else counts[groups]


def _strata(labels: Ints) -> Ints:
    """The stratum of each image: its class, or one shared by all classes too small to be drawn from alone."""
    sizes = np.bincount(labels)
    stratum_of_class = np.where(sizes < _MIN_STRATUM_IMAGES, 0, np.arange(1, len(sizes) + 1))
    return np.asarray(np.unique(stratum_of_class[labels], return_inverse=True)[1], dtype=np.int64)


def _resampled_metrics(table: ImageTable, groups: Ints | None, seed: int, num_resamples: int) -> dict[str, Floats]:
    """Each metric in each resample, float64 [b]; `macro_roc_auc` may have fewer than the others."""
    num_images, num_classes = table.probabilities.shape
    floor = min(num_resamples, _MIN_RESAMPLES)
    num_resamples = affordable_resamples(num_resamples, num_images)
    num_for_auc = max(floor, min(num_resamples, int(_MAX_AUC_WORK / (num_images * num_classes))))
    parts: dict[str, list[Floats]] = {}
    done = 0
    for counts in resample_counts(table.labels, groups, num_resamples, seed):
        values = table.metrics(counts, with_roc_auc=False)
        if done < num_for_auc:
            needed = counts[:, : num_for_auc - done]
            values["macro_roc_auc"] = mean_of_defined(weighted_roc_auc(table.labels, table.probabilities, needed))
        done += counts.shape[1]
        for name, value in values.items():
            parts.setdefault(name, []).append(value)
    return {name: np.concatenate(part) for name, part in parts.items()}


def _widened(
    table: ImageTable, groups: Ints | None, estimates: dict[str, float], resampled: dict[str, Floats], level: float
) -> dict[str, tuple[float, float]]:
    """What the interval of each metric near its edge has to hold as well.

    A proportion with few wrong or few right gets its Wilson interval, each other metric of the confusion matrix its
    value where the Wilson bound is the accuracy: errors are spread evenly until it is (or errors put right).

    The number of independent images behind the bound is n. For macro averages it is the number of classes times the
    harmonic mean of their sizes, since the smallest class decides how well a mean over classes is known. Both are
    divided by what grouping cost (the design effect of Kish, 1965), which the resamples show; where they cannot, since
    all are right or all wrong, groups are counted instead of images.
    """
    num_images = len(table.labels)
    num_units = float(num_images if groups is None else groups.max() + 1)
    widened = {}
    units_of = dict.fromkeys(PROPORTIONS, float(num_images))
    for name in PROPORTIONS:
        share = estimates.get(name, 0.5)
        if groups is not None:
            variance = float(np.var(resampled[name])) if name in resampled else 0.0
            independent = share * (1 - share) / variance if variance > 0 else num_units
            units_of[name] = min(max(independent, num_units), num_images)
        if name in estimates and min(share, 1 - share) * units_of[name] < _FEW:
            widened[name] = wilson_interval(share * units_of[name], units_of[name], level)
    if "accuracy" not in widened:
        return widened
    accuracy, num_classes = estimates["accuracy"], table.probabilities.shape[1]
    cells = table.labels * num_classes + table.predicted
    confusion = np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes).astype(float)
    sizes = np.bincount(table.labels)
    macro_units = np.count_nonzero(sizes) ** 2 / float((1 / sizes[sizes > 0]).sum()) * units_of["accuracy"] / num_images
    for name in metrics_from_counts(ClassCounts.from_confusion(confusion)).keys() - widened.keys():
        units = macro_units if name in MACRO_METRICS else units_of["accuracy"]
        low, high = wilson_interval(accuracy * units, units, level)
        moved = _with_accuracy(confusion, low if accuracy > 0.5 else high)
        at_bound = float(confusion_metrics(moved)[name])
        if name in estimates and not np.isnan(at_bound):
            widened[name] = (min(estimates[name], at_bound), max(estimates[name], at_bound))
    return widened


def _with_accuracy(confusion: Floats, accuracy: float) -> Floats:
    """The same support with another accuracy: an even share of each class's right images is wrong, or the reverse."""
    support, right = confusion.sum(axis=1), np.diag(confusion.diagonal())
    now = right.sum() / support.sum()
    if accuracy >= now:
        kept = (1 - accuracy) / (1 - now) if now < 1 else 1.0
        return np.asarray(kept * confusion + (1 - kept) * np.diag(support))
    # Errors go to the other classes of the split; to classes outside it only where there is just one inside.
    targets = (support > 0) if (support > 0).sum() > 1 else np.ones(len(support), dtype=bool)
    spread = np.where(targets & ~np.eye(len(support), dtype=bool), 1.0, 0.0)
    spread /= np.maximum(spread.sum(axis=1, keepdims=True), 1)
    return np.asarray(confusion - (1 - accuracy / now) * (right - spread * right.diagonal()[:, None]))


def _one_hot(index: Ints, num_rows: int) -> Floats:
    """float64 [num_rows, n] with a single 1 in each column."""
    return np.eye(num_rows)[:, index]


def _sums_by(index: Ints, num_rows: int, weights: NDArray[Any]) -> Floats:
    """The sums of `weights`, [n, b], over the images of each index: float64 [b, num_rows]."""
    sums = np.zeros((weights.shape[1], num_rows))
    if len(index):
        order = np.argsort(index, kind="stable")
        present, starts = np.unique(index[order], return_index=True)
        sums[:, present] = grouped_sums(weights[order], starts).T
    return sums
