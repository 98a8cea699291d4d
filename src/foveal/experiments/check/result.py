"""What the checks before a training found: for the terminal, for JSON, and as a plot."""

import textwrap
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from foveal.evaluation.drawing import GRID, MUTED, RIGHT_COLOUR, WRONG_COLOUR, draw_svg
from foveal.files import write_json, write_text
from foveal.training.lr_range import LrRange

Verdict = Literal["ok", "unclear", "warning", "fault"]

CHECK_FILE, PLOT_FILE = "check.json", "lr_range.svg"
_MARKS: dict[Verdict, str] = {"ok": "ok", "unclear": "?", "warning": "!", "fault": "FAULT"}


@dataclass(frozen=True)
class Checked:
    """One check.

    Attributes:
        name: what was looked at.
        verdict: ok; unclear, where the data is too small to say; warning, where something is unusual; or fault.
        found: what came out, one sentence with its figure.
        expected: what comes out where all is well.
        change: what to do now; empty where all is well.
        figures: the numbers behind it.
    """

    name: str
    verdict: Verdict
    found: str
    expected: str
    change: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CheckResult:
    """All checks of one set-up.

    Attributes:
        checks: one after the other, as they were made.
        lr_range: the learning-rate range test.
        lr: the configured learning rate.
        num_train: training images that were looked at.
        num_val: validation images that were looked at.
        batch_size: images a step, here.
        seconds: how long it took, decoding not counted.
        files: what was written.
    """

    checks: tuple[Checked, ...]
    lr_range: LrRange
    lr: float
    num_train: int
    num_val: int
    batch_size: int
    seconds: float
    files: tuple[Path, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether no check found a fault."""
        return all(check.verdict != "fault" for check in self.checks)

    def named(self, name: str) -> Checked:
        """The check of that name."""
        return next(check for check in self.checks if check.name == name)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "ok": self.ok,
            "checks": [dict(vars(check)) for check in self.checks],
            "lr": self.lr,
            "lr_range": self.lr_range.to_dict(),
            "num_train": self.num_train,
            "num_val": self.num_val,
            "batch_size": self.batch_size,
            "seconds": round(self.seconds, 1),
            "files": [str(file) for file in self.files],
        }

    def __str__(self) -> str:
        width = max(len(check.name) for check in self.checks)
        lines: list[str] = []
        for check in self.checks:
            lines += _hung(f"{_MARKS[check.verdict]:<6} {check.name:<{width}}  ", check.found)
            if check.verdict != "ok":
                lines += _hung(" " * (width + 9), f"Expected: {check.expected}")
            if check.change:
                lines += _hung(" " * (width + 9), f"What to do: {check.change}")
        lines.append(
            f"Looked at {self.num_train:,} training and {self.num_val:,} validation images in batches of "
            f"{self.batch_size}, {self.seconds:.0f} s; augmentation, dropout and mixing were off."
        )
        lines.append(self._verdict())
        return "\n".join(lines)

    def _verdict(self) -> str:
        faults, warnings = (
            [check.name for check in self.checks if check.verdict == verdict] for verdict in ("fault", "warning")
        )
        if faults:
            return f"Do not train like this: {', '.join(faults)}."
        if warnings:
            return f"Nothing is broken; look at: {', '.join(warnings)}."
        return "Nothing was found that speaks against the training."

    def write(self, folder: Path) -> tuple[Path, ...]:
        """Write `check.json` and the plot `lr_range.svg`.

        Raises:
            FovealError: the folder cannot be written to.
            MissingExtraError: matplotlib is not installed.
        """
        files = (folder / CHECK_FILE, folder / PLOT_FILE)
        write_text(files[1], draw_lr_range(self.lr_range, self.lr))
        write_json(files[0], {**self.to_dict(), "files": [str(file) for file in files]})
        return files


def draw_lr_range(found: LrRange, lr: float) -> str:
    """The range test as SVG: the loss of each step over its rate, the suggestion, and the configured rate."""
    return draw_svg(partial(_draw, found=found, lr=lr), width_px=520, height_px=330)


def _draw(figure: Any, *, found: LrRange, lr: float) -> None:
    axes = figure.add_subplot()
    finite = np.isfinite(found.losses)
    axes.plot(found.rates[finite], found.losses[finite], ".", color="#9aa5b1", markersize=4, label="each step")
    axes.plot(found.rates, found.smoothed, color=RIGHT_COLOUR, linewidth=2, label="averaged")
    if found.lowest_good is not None and found.highest_good is not None:
        axes.axvspan(found.lowest_good, found.highest_good, color=GRID, alpha=0.7, linewidth=0, label="good range")
    if found.suggestion is not None:
        axes.axvline(found.suggestion, color=MUTED, linestyle="--", label=f"steepest descent: {found.suggestion:.1e}")
    axes.axvline(lr, color=WRONG_COLOUR, linestyle="-.", label=f"configured: {lr:.1e}")
    # What has run away would press all that matters flat.
    usual = found.smoothed[: int(found.smoothed.argmin()) + 1]
    low, start = float(found.smoothed.min()), float(usual.max())
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss")
    # As numbers, for a text that stays text in the picture has no formulae.
    axes.xaxis.set_major_formatter(lambda rate, _: f"{rate:g}")
    axes.set_ylim(max(0.0, low - 0.3 * (start - low + 0.1)), start + 0.8 * (start - low + 0.1))
    axes.grid(visible=True)
    axes.legend(loc="lower left")
    axes.set_title(f"Learning-rate range test: {'ran away at the end' if found.has_diverged else 'to the end'}")


def _hung(start: str, text: str, width: int = 118) -> list[str]:
    """Lines that begin under the first one's text."""
    return textwrap.wrap(
        text, width, initial_indent=start, subsequent_indent=" " * len(start), break_long_words=False
    ) or [start]
