"""The learning-rate range test: the rate grows from step to step, and the loss tells which rates can be used.

Source: L. N. Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017; the form with exponential growth
is fastai's `lr_find`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from foveal.training.rehearsal import Integers, Rehearsal

LOWEST_LR, HIGHEST_LR = 1e-7, 10.0
_FIRST_DECADES, _FIRST_SHARE = 2.0, 0.12
"""The first two decades, where no network learns in a few steps, tell what the loss is before it moves, and get an
eighth of the steps."""
NUM_STEPS = 84

_DIVERGED = 1.0
"""Of the fall so far, or of ln(classes): how far above the lowest loss the test stops."""
_LEAST_FALL = 0.1
"""Share of ln(classes) that the loss must fall by, for the test to say anything."""
_LEAST_RISE = 0.05
"""Share of ln(classes) by which it must be above its start to have run away."""
_LEAST_ERRORS = 4.0
"""Standard errors of the averaged loss that it must fall by: the lowest of many is low by chance."""
_SMOOTH_DECADES = 0.3

Floats = NDArray[np.float64]
Place = Literal["good", "too high", "too low", "unclear"]


@dataclass(frozen=True)
class LrRange:
    """What the test found.

    Attributes:
        rates: float64 [steps], the rate of each step.
        losses: float64 [steps], the loss before each step.
        smoothed: float64 [steps], the losses averaged over neighbouring rates.
        suggestion: the rate at which the loss falls fastest; None where it does not fall.
        lowest_good: the rate from which on the loss falls at a tenth of that speed; None likewise.
        highest_good: half the rate at which the loss is lowest, where steps are too large already. None likewise.
        runs_away: the rate from which on the loss is above where it began; None where it never is.
        has_diverged: whether the test stopped before its last step.
    """

    rates: Floats
    losses: Floats
    smoothed: Floats
    suggestion: float | None
    lowest_good: float | None
    highest_good: float | None
    runs_away: float | None
    has_diverged: bool

    def place(self, lr: float) -> Place:
        """Where a rate lies."""
        is_clear = self.highest_good is not None and self.lowest_good is not None
        # Where nothing can be learnt the loss soon rises, at rates that would do elsewhere.
        if self.runs_away is not None and lr >= self.runs_away * (1.0 if is_clear else 3.0):
            return "too high"
        if self.highest_good is None or self.lowest_good is None:
            return "unclear"
        if lr > self.highest_good:
            return "too high"
        # A test of a few steps cannot see what a low rate does over many; only far below is it of no use.
        return "too low" if lr < self.lowest_good / 30.0 else "good"

    @property
    def usable(self) -> float | None:
        """A rate to go on with: the suggestion, or well below where the loss runs away; None where neither is known."""
        if self.suggestion is None and self.runs_away is not None:
            return self.runs_away / 10.0
        return self.suggestion

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; a loss that is not finite is null."""
        return {
            "rates": self.rates.tolist(),
            "losses": [loss if math.isfinite(loss) else None for loss in self.losses.tolist()],
            "smoothed": [loss if math.isfinite(loss) else None for loss in self.smoothed.tolist()],
            "suggestion": self.suggestion,
            "lowest_good": self.lowest_good,
            "highest_good": self.highest_good,
            "runs_away": self.runs_away,
            "has_diverged": self.has_diverged,
        }


def run_range_test(
    rehearsal: Rehearsal,
    rows: Integers,
    *,
    num_steps: int = NUM_STEPS,
    advance: Callable[[], None] = lambda: None,
) -> LrRange:
    """Train with a rate that grows from 1e-7 to 10, until the loss runs away.

    Args:
        rehearsal: what to train; begun anew here.
        rows: int64 [n], places of the training images.
        num_steps: steps of the whole way up.
        advance: called after every step.
    """
    rates = rates_of(num_steps)
    chance = math.log(rehearsal.classifier.architecture.num_classes)
    rehearsal.begin(LOWEST_LR)
    losses: list[float] = []
    for rate, part in zip(rates.tolist(), rehearsal.stream(rows, num_steps), strict=True):
        loss, _ = rehearsal.step(part, rehearsal.labels[part], rate)
        losses.append(loss)
        advance()
        if not math.isfinite(loss):
            break
        recent = float(np.mean(losses[-3:]))
        if len(losses) > num_steps // 4 and recent > min(losses) + _DIVERGED * max(chance, losses[0] - min(losses)):
            break
    return read_range(rates[: len(losses)], np.array(losses), chance=chance, num_steps=num_steps)


def rates_of(num_steps: int) -> Floats:
    """Rates from the lowest to the highest, float64 [steps]; closer to each other where it matters."""
    num_first = max(2, round(_FIRST_SHARE * num_steps))
    middle = LOWEST_LR * 10.0**_FIRST_DECADES
    first = np.geomspace(LOWEST_LR, middle, num_first, endpoint=False)
    return np.concatenate([first, np.geomspace(middle, HIGHEST_LR, num_steps - num_first)])


def read_range(rates: Floats, losses: Floats, *, chance: float, num_steps: int) -> LrRange:
    """What the losses of a range test say.

    The losses are averaged over neighbouring rates with weights that fall off to both sides, and not with a running
    mean, which lags behind and puts every rate too high.

    Args:
        rates: float64 [steps], growing.
        losses: float64 [steps]; what is not finite counts as run away.
        chance: ln(classes), the loss of an even guess.
        num_steps: steps of the whole way up.
    """
    finite = np.isfinite(losses)
    top = float(losses[finite].max(initial=chance)) + chance
    filled = np.where(finite, np.minimum(losses, losses[0] + 4.0 * chance if finite[0] else top), top)
    decades = np.log10(rates)
    weights = np.exp(-0.5 * ((decades[:, None] - decades[None, :]) / _SMOOTH_DECADES) ** 2)
    smoothed = (weights @ filled) / weights.sum(axis=1)
    lowest = int(smoothed.argmin())
    base = float(np.median(filled[rates <= 100.0 * rates[0]]))
    has_diverged = len(losses) < num_steps or not finite.all()
    begun = max(3, int(np.searchsorted(decades, decades[0] + _FIRST_DECADES)))
    noise = float(np.std(filled[:begun])) / math.sqrt(float(weights[lowest].sum()))
    is_above = smoothed > base + max(_LEAST_RISE * chance, _LEAST_ERRORS * noise)
    settled = np.flatnonzero(~is_above)
    away = int(settled[-1]) + 1 if settled.size else 0
    runs_away = float(rates[away]) if away < len(rates) else None
    if lowest < 2 or base - smoothed[lowest] < max(_LEAST_FALL * chance, _LEAST_ERRORS * noise):
        return LrRange(rates, losses, smoothed, None, None, None, runs_away, has_diverged)
    slope = np.gradient(smoothed, decades)[: lowest + 1]
    highest_good = 0.5 * float(rates[lowest])
    steepest = int(slope[rates[: lowest + 1] <= highest_good].argmin())
    falling = np.flatnonzero(slope[: steepest + 1] > 0.1 * slope[steepest])
    first = int(falling[-1]) + 1 if falling.size else 0
    return LrRange(
        rates,
        losses,
        smoothed,
        float(rates[steepest]),
        float(rates[min(first, steepest)]),
        highest_good,
        runs_away,
        has_diverged,
    )
