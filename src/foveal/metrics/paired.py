"""Two models on the same images: is one better, or can these images not tell?

Two intervals that overlap say little, for both models meet the same hard images. What counts is the images on which
only one of them is right. Two looks at those have to agree before a verdict is given:

- **McNemar's test** (McNemar, 1947): had both the same accuracy, either would be the only one to be right equally
  often. Below 25 such images the exact two-sided binomial test, from there on chi-square with Edwards' continuity
  correction; both as `statsmodels.stats.contingency_tables.mcnemar`. (Where both are alone right equally often the
  answer here is 1; the correction alone would overshoot.)
- **The paired bootstrap**: the interval of each difference, both models measured on the same resamples. These are drawn
  as for the intervals of one model: within each true class, or by whole groups, which McNemar's test knows nothing of.
  With fewer than 10 images on which only one is right, or with resamples that do not vary at all, the interval of the
  accuracy difference is widened to hold the adjusted Wald interval of Bonett and Price (2012).

Several pairs at once find a difference by chance more often than one; `holm` says how much less each p-value is worth.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foveal.errors import DataError
from foveal.metrics.inputs import Floats, Ints, checked_groups
from foveal.metrics.intervals import ImageTable, affordable_resamples, resample_counts

PAIRED_METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "log_loss")
EXACT_BELOW = 25
"""With fewer images on which only one is right, McNemar's test is exact."""
LEVEL = 0.95
ALPHA = 1 - LEVEL

Verdict = Literal["better", "worse", "undecided"]

_FEW = 10
_COLLAPSED = 1e-12
_ONE_GROUP = "all images belong to one group, and one group does not show how groups differ"
_ALWAYS_ALIKE = "both are equal in every resample, which says nothing of how far they may differ"


@dataclass(frozen=True)
class PairedComparison:
    """What the same images say of two models; differences are the second minus the first.

    Attributes:
        num_images: how many images both predicted.
        both: images that both have right.
        only_first: images that the first alone has right.
        only_second: images that the second alone has right.
        neither: images that both have wrong.
        mcnemar_p: how likely it is that the two differ at least so much, were they equally good.
        mcnemar_test: which form of the test.
        first: each of `PAIRED_METRICS` of the first model.
        second: each of `PAIRED_METRICS` of the second model.
        differences: the second's minus the first's.
        intervals: the 95 % interval of each difference that has one.
        undefined: why the other differences have none.
        verdict: whether the second is better or worse in accuracy; "undecided" unless the p-value is below 0.05 and the
            interval leaves out 0, on the same side.
        adjusted_p: the p-value after Holm's correction where several pairs were compared; None for a pair by itself.
    """

    num_images: int
    both: int
    only_first: int
    only_second: int
    neither: int
    mcnemar_p: float
    mcnemar_test: Literal["exact", "chi-square"]
    first: Mapping[str, float]
    second: Mapping[str, float]
    differences: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    undefined: Mapping[str, str]
    verdict: Verdict
    adjusted_p: float | None = None

    @property
    def p(self) -> float:
        """The p-value that the verdict rests on: corrected for the number of pairs, where there are several."""
        return self.mcnemar_p if self.adjusted_p is None else self.adjusted_p

    def adjusted(self, p: float) -> "PairedComparison":
        """The same comparison as one of several, with its corrected p-value and the verdict that this leaves."""
        verdict = _verdict(self.differences["accuracy"], self.intervals.get("accuracy"), p)
        return replace(self, adjusted_p=p, verdict=verdict)

    def swapped(self) -> "PairedComparison":
        """The same comparison seen from the other side."""
        opposite: dict[Verdict, Verdict] = {"better": "worse", "worse": "better", "undecided": "undecided"}
        return replace(
            self,
            only_first=self.only_second,
            only_second=self.only_first,
            first=self.second,
            second=self.first,
            differences={name: -value for name, value in self.differences.items()},
            intervals={name: (-high, -low) for name, (low, high) in self.intervals.items()},
            verdict=opposite[self.verdict],
        )

    def sentence(self, first_name: str, second_name: str) -> str:
        """The verdict in one line.

        Such as "B is better than A: 0.97 against 0.93, +0.04 [0.02, 0.06] on the same 315 images", or "A and B cannot
        be told apart with these 315 images: 0.93 against 0.94, +0.01 [-0.01, 0.03]".
        """
        images = "image" if self.num_images == 1 else "images"
        if self.verdict == "undecided":
            these = "this 1 image" if self.num_images == 1 else f"these {self.num_images:,} {images}"
            figures = f"{self._figures(undecided=True)}{self._why_undecided()}"
            return f"{first_name} and {second_name} cannot be told apart with {these}: {figures}"
        figures = self._figures(undecided=False)
        return f"{second_name} is {self.verdict} than {first_name}: {figures} on the same {self.num_images:,} {images}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "num_images": self.num_images,
            "both_right": self.both,
            "only_first_right": self.only_first,
            "only_second_right": self.only_second,
            "neither_right": self.neither,
            "mcnemar_p": self.mcnemar_p,
            "mcnemar_test": self.mcnemar_test,
            "adjusted_p": self.adjusted_p,
            "first": dict(self.first),
            "second": dict(self.second),
            "differences": dict(self.differences),
            "intervals": {name: list(bounds) for name, bounds in self.intervals.items()},
            "undefined": dict(self.undefined),
            "verdict": self.verdict,
        }

    def _why_undecided(self) -> str:
        """What holds a verdict back where the interval alone would give one."""
        bounds = self.intervals.get("accuracy")
        if bounds is None:
            return f" ({self.undefined['accuracy']})"
        if bounds[0] <= 0 <= bounds[1]:
            return ""
        corrected = "" if self.adjusted_p is None else ", corrected for several pairs"
        return f", but McNemar's test gives p = {self.p:.2g}{corrected}"

    def _figures(self, *, undecided: bool) -> str:
        """Both accuracies, the difference and its interval; the second model's first, unless undecided."""
        first, second, difference = self.first["accuracy"], self.second["accuracy"], self.differences["accuracy"]
        bounds = self.intervals.get("accuracy")
        values = [first, second, difference, *(bounds or ())]
        places = next((n for n in (2, 3, 4) if _says_enough(values, n)), 5)
        pair = (first, second) if undecided else (second, first)
        if difference == 0:
            figures = f"both {first:.{places}f}"
            if self.only_first + self.only_second == 0:
                figures += ", and there is no image that only one of them has right"
        else:
            figures = f"{pair[0]:.{places}f} against {pair[1]:.{places}f}, {difference:+.{places}f}"
        if bounds is None:
            return figures
        interval = f"[{bounds[0] + 0.0:.{places}f}, {bounds[1] + 0.0:.{places}f}]"
        return f"{figures}, difference within {interval}" if difference == 0 else f"{figures} {interval}"


def compare_paired(
    labels: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    seed: int = 0,
    num_resamples: int = 1000,
) -> PairedComparison:
    """Compare two models on the same images.

    Args:
        labels: int [n], the true classes, in 0..C-1.
        first: float [n, C], one model's probabilities; rows sum to 1.
        second: float [n, C], the other's, classes and images in the same order.
        groups: the group of each image, [n]; resampled as wholes where several images share one.
        seed: of the resampling.
        num_resamples: at most how many; fewer for very many images.

    Raises:
        DataError: empty or malformed input, unequal shapes, or fewer than 2 resamples.
    """
    (found,) = compare_every_pair(labels, [first, second], groups=groups, seed=seed, num_resamples=num_resamples)
    return found


def compare_every_pair(
    labels: ArrayLike,
    probabilities: Sequence[ArrayLike],
    *,
    groups: ArrayLike | None = None,
    seed: int = 0,
    num_resamples: int = 1000,
) -> list[PairedComparison]:
    """Compare several models on the same images, each with each; each is measured once, on the same resamples.

    The p-values are those of the pairs by themselves; see `holm`.

    Args:
        labels: int [n], the true classes, in 0..C-1.
        probabilities: float [n, C] of each model, rows sum to 1; images and classes in the same order.
        groups: the group of each image, [n]; resampled as wholes where several images share one.
        seed: of the resampling.
        num_resamples: at most how many; fewer for very many images.

    Returns:
        A comparison for each of `itertools.combinations(probabilities, 2)`, in that order.

    Raises:
        DataError: empty or malformed input, unequal shapes, or fewer than 2 resamples.
    """
    if num_resamples < 2:
        raise DataError(f"Expected at least 2 resamples, got {num_resamples}.")
    shapes = {np.shape(rows) for rows in probabilities}
    if len(shapes) > 1:
        raise DataError(
            f"Models can be compared on the same images and classes only, and their probabilities have the shapes "
            f"{', '.join(str(list(shape)) for shape in sorted(shapes))}."
        )
    tables = [ImageTable.from_probabilities(labels, rows) for rows in probabilities]
    if not tables:
        return []
    clusters = checked_groups(groups, len(tables[0].labels))
    has_one_group = clusters is not None and int(clusters.max()) == 0
    estimates = [_measured(table, np.ones((len(table.labels), 1))) for table in tables]
    resampled = None if has_one_group else _resampled(tables, clusters, seed, num_resamples)
    return [
        _compared(
            (tables[i], tables[j]),
            (estimates[i], estimates[j]),
            None if resampled is None else {name: resampled[j][name] - resampled[i][name] for name in PAIRED_METRICS},
            clusters,
        )
        for i, j in combinations(range(len(tables)), 2)
    ]


def mcnemar(only_first: int, only_second: int) -> tuple[float, Literal["exact", "chi-square"]]:
    """The two-sided p-value of McNemar's test, and the form of the test that gave it.

    Args:
        only_first: images that the first model alone has right.
        only_second: images that the second model alone has right.
    """
    num, fewer = only_first + only_second, min(only_first, only_second)
    if num < EXACT_BELOW:
        tail = sum(math.comb(num, k) for k in range(fewer + 1))
        return min(1.0, 2 * tail / 2**num), "exact"
    statistic = max(abs(only_first - only_second) - 1, 0) ** 2 / num
    return math.erfc(math.sqrt(statistic / 2)), "chi-square"  # of one degree of freedom


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for being several, in the same order: the chance of even one false alarm stays below alpha.

    Source: Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    num = len(p_values)
    adjusted, largest = [1.0] * num, 0.0
    for rank, at in enumerate(sorted(range(num), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (num - rank) * p_values[at]))
        adjusted[at] = largest
    return adjusted


def paired_difference_interval(
    only_first: float, only_second: float, num_images: float, level: float = LEVEL
) -> tuple[float, float]:
    """The adjusted Wald interval of the difference of two accuracies on the same images, second minus first.

    Never empty, also where the two are never right apart. Source: Bonett and Price, "Adjusted Wald Confidence Interval
    for a Difference of Binomial Proportions Based on Paired Data", 2012.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    total = num_images + 2
    lost, won = (only_first + 1) / total, (only_second + 1) / total
    half = z * math.sqrt((lost + won - (won - lost) ** 2) / total)
    return max(-1.0, won - lost - half), min(1.0, won - lost + half)


def _compared(
    tables: tuple[ImageTable, ImageTable],
    estimates: tuple[dict[str, Floats], dict[str, Floats]],
    resampled: dict[str, Floats] | None,
    groups: Ints | None,
) -> PairedComparison:
    rights = [table.predicted == table.labels for table in tables]
    both, neither = int((rights[0] & rights[1]).sum()), int((~rights[0] & ~rights[1]).sum())
    only_first, only_second = int((rights[0] & ~rights[1]).sum()), int((rights[1] & ~rights[0]).sum())
    p, test = mcnemar(only_first, only_second)
    first, second = ({name: float(values[name][0]) for name in PAIRED_METRICS} for values in estimates)
    differences = {name: second[name] - first[name] for name in PAIRED_METRICS}
    # From the counts, so that equal accuracies differ by 0 and not by a rounding error.
    num_images = len(rights[0])
    differences["accuracy"] = (only_second - only_first) / num_images
    intervals: dict[str, tuple[float, float]] = {}
    undefined = dict.fromkeys(PAIRED_METRICS, _ONE_GROUP) if resampled is None else {}
    if resampled is not None:
        widened = _widened(only_first, only_second, num_images, resampled["accuracy"], groups)
        for name in PAIRED_METRICS:
            tails = np.nanquantile(resampled[name], ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
            ends = [*tails.tolist(), differences[name], *(widened if name == "accuracy" else ())]
            if max(ends) - min(ends) > _COLLAPSED:
                intervals[name] = (min(ends), max(ends))
            else:
                undefined[name] = _ALWAYS_ALIKE
    return PairedComparison(
        num_images=num_images,
        both=both,
        only_first=only_first,
        only_second=only_second,
        neither=neither,
        mcnemar_p=p,
        mcnemar_test=test,
        first=first,
        second=second,
        differences=differences,
        intervals=intervals,
        undefined=undefined,
        verdict=_verdict(differences["accuracy"], intervals.get("accuracy"), p),
    )


def _verdict(difference: float, bounds: tuple[float, float] | None, p: float) -> Verdict:
    if bounds is None or p >= ALPHA or bounds[0] <= 0 <= bounds[1]:
        return "undecided"
    return "better" if difference > 0 else "worse"


def _widened(
    only_first: int, only_second: int, num_images: int, resampled: Floats, groups: Ints | None
) -> tuple[float, ...]:
    """What the interval of the accuracy difference has to hold as well, where few images tell the two apart.

    Grouped images count as fewer independent ones (the design effect of Kish, 1965), by as much as the resamples show;
    where they show nothing, groups are counted instead.
    """
    units = float(num_images)
    if groups is not None:
        num_groups = float(groups.max() + 1)
        variance = float(np.nanvar(resampled))
        difference = (only_second - only_first) / num_images
        of_one = (only_first + only_second) / num_images - difference**2
        units = min(max(of_one / variance if variance > 0 else num_groups, num_groups), units)
    share = units / num_images
    # Resamples within each class never vary either where each model has all or none of a class right.
    if (only_first + only_second) * share >= _FEW and np.ptp(resampled) > _COLLAPSED:
        return ()
    return paired_difference_interval(only_first * share, only_second * share, units)


def _resampled(tables: Sequence[ImageTable], groups: Ints | None, seed: int, num: int) -> list[dict[str, Floats]]:
    """Each of `PAIRED_METRICS` of each model in each resample, float64 [b]."""
    labels = tables[0].labels
    parts: list[list[dict[str, Floats]]] = [[] for _ in tables]
    for counts in resample_counts(labels, groups, affordable_resamples(num, len(labels)), seed):
        for part, table in zip(parts, tables, strict=True):
            part.append(_measured(table, counts))
    return [{name: np.concatenate([values[name] for values in part]) for name in PAIRED_METRICS} for part in parts]


def _measured(table: ImageTable, counts: NDArray[Any]) -> dict[str, Floats]:
    values = table.metrics(counts, with_roc_auc=False)
    return {name: values[name] for name in PAIRED_METRICS}


def _says_enough(values: Sequence[float], places: int) -> bool:
    """Whether so many decimals keep apart what differs: no 1.00 that is not 1, no 0.00 that is not 0."""
    rounded = [round(value, places) for value in values]
    if (rounded[0] == rounded[1]) != (values[0] == values[1]):
        return False
    return all(short not in {0.0, 1.0, -1.0} or short == value for short, value in zip(rounded, values, strict=True))
