"""Intervals of many shares of the same images at once, and of what is made of them.

As the interval of an accuracy in `intervals`: the same resamples, drawn within each true class or by whole groups, and
widened to Wilson's interval where few images are right or wrong. All shares come from the same resamples, so a mean of
several, or the ratio of two, has its interval as well.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foveal.errors import DataError
from foveal.metrics.inputs import Floats, checked_groups
from foveal.metrics.intervals import affordable_resamples, resample_counts, wilson_interval

Bounds = tuple[float, float]

_TAILS = (0.025, 0.975)
_FEW = 10
_COLLAPSED = 1e-12


@dataclass(frozen=True, eq=False)
class Proportions:
    """Shares of the same images, and how they move when other images are drawn.

    Attributes:
        shares: float64 [k], in 0..1.
        resampled: float64 [k, b], each share in each resample; b is 0 where all images belong to one group, which does
            not show how groups differ.
        num_images: how many images.
        num_groups: how many groups, where several images share one; else None.
    """

    shares: Floats
    resampled: Floats
    num_images: int
    num_groups: int | None

    def interval(self, at: int) -> Bounds | None:
        """The 95 % interval of one share; None where all images belong to one group."""
        if not self.resampled.shape[1]:
            return None
        share, values = float(self.shares[at]), self.resampled[at]
        units = self._num_independent(share, values)
        # Whoever says the same class each time has the same share in every resample of the same classes.
        says_nothing = float(np.ptp(values)) <= _COLLAPSED
        is_extreme = min(share, 1 - share) * units < _FEW
        widened = wilson_interval(share * units, units) if says_nothing or is_extreme else ()
        return _bounds(values, share, *widened)

    def mean_interval(self, places: NDArray[np.int64], *, over: int | None = None) -> Bounds | None:
        """The 95 % interval of the mean of several shares, or of its ratio to another share; None where it never moves.

        Args:
            places: int64, which shares.
            over: the share that the mean is divided by; None for the mean itself.
        """
        if not self.resampled.shape[1]:
            return None
        values, estimate = self.resampled[places].mean(axis=0), float(self.shares[places].mean())
        if over is not None:
            if self.shares[over] == 0:
                return None
            base = self.resampled[over]
            values = values[base > 0] / base[base > 0]
            estimate /= float(self.shares[over])
        return _bounds(values, estimate)

    def _num_independent(self, share: float, values: Floats) -> float:
        """Grouped images count as fewer, by as much as the resamples show (the design effect of Kish, 1965)."""
        if self.num_groups is None:
            return float(self.num_images)
        variance = float(np.var(values))
        shown = share * (1 - share) / variance if variance > 0 else float(self.num_groups)
        return min(max(shown, float(self.num_groups)), float(self.num_images))


def resampled_proportions(
    labels: ArrayLike,
    holds: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    seed: int = 0,
    num_resamples: int = 1000,
) -> Proportions:
    """How large each share is, in the images at hand and in resamples of them.

    Args:
        labels: int [n], the true classes, which are the strata.
        holds: bool [k, n], for each share which images are in it.
        groups: the group of each image, [n]; resampled as wholes where several images share one.
        seed: of the resampling.
        num_resamples: at most how many; fewer for very many images.

    Raises:
        DataError: there is no image, or the shapes do not fit.
    """
    true, inside = np.asarray(labels, dtype=np.int64), np.asarray(holds, dtype=bool)
    if true.ndim != 1 or not len(true) or inside.ndim != 2 or inside.shape[1] != len(true):
        raise DataError(f"Expected labels [n] and bool [k, n]; got {list(true.shape)} and {list(inside.shape)}.")
    clusters = checked_groups(groups, len(true))
    num_groups = None if clusters is None else int(clusters.max()) + 1
    shares = inside.mean(axis=1, dtype=np.float64)
    if num_groups == 1:
        return Proportions(shares, np.empty((len(inside), 0)), len(true), num_groups)
    as_numbers = inside.astype(np.float64)
    draws = resample_counts(true, clusters, affordable_resamples(num_resamples, len(true)), seed)
    parts = [as_numbers @ counts / counts.sum(axis=0, dtype=np.float64) for counts in draws]
    return Proportions(shares, np.concatenate(parts, axis=1), len(true), num_groups)


def _bounds(values: Floats, *held: float) -> Bounds | None:
    ends = [*np.quantile(values, _TAILS).tolist(), *held]
    return (min(ends), max(ends)) if max(ends) - min(ends) > _COLLAPSED else None
