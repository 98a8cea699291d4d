"""What a sweep comes to: its runs, its values over their seeds, and how these compare."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from foveal.experiments.outcome import Outcome
from foveal.experiments.summary import Row, metrics_row
from foveal.experiments.sweep.axes import TRAIN_IMAGES, Axis, Point
from foveal.metrics import PairedComparison
from foveal.run_folder import RunFolder

VAL_FIGURES = ("accuracy", "balanced_accuracy", "macro_f1", "log_loss")


@dataclass(frozen=True)
class Trained:
    """One run of a sweep.

    Attributes:
        point: number of its value.
        seed: of the training.
        run: its folder.
        outcome: what it came to; None where it failed.
        failure: why it failed; empty otherwise.
        num_train: images that it was trained on.
        seconds: wall time of the training alone.
    """

    point: int
    seed: int
    run: RunFolder
    outcome: Outcome | None
    failure: str
    num_train: int
    seconds: float

    def row(self, point: Point, monitor: str) -> Row:
        """A row of summary.json: the figures of the test split, and those of validation with `val_` in front."""
        facts: Row = {
            "value": dict(point.values),
            "seed": self.seed,
            "run": f"runs/{self.run.path.name}",
            "num_train": self.num_train,
            "train_seconds": self.seconds,
            "monitor": monitor,
            "failure": self.failure,
        }
        if self.outcome is None:
            return {"name": self.run.path.name, **facts}
        val = self.outcome.metrics["val"]
        own = {f"val_{name}": getattr(val, name) for name in VAL_FIGURES}
        return metrics_row(
            self.run.path.name, self.outcome.metrics["test"], **facts, **own, best_epoch=self.outcome.best_epoch
        )


@dataclass(frozen=True)
class Value:
    """What one value of a sweep came to, over its seeds.

    Attributes:
        point: what it is.
        runs: one a seed.
        mean: of each figure over the seeds; empty where a run failed.
        std: its standard deviation (n - 1); None where there is one seed.
    """

    point: Point
    runs: tuple[Trained, ...]
    mean: Mapping[str, Any] = field(default_factory=dict)
    std: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_whole(self) -> bool:
        """Whether all of its runs came to their end."""
        return all(run.outcome is not None for run in self.runs)


@dataclass(frozen=True)
class Swept:
    """What a sweep came to.

    Attributes:
        axes: what was swept.
        seeds: of the trainings.
        monitor: the validation figure that a value is chosen by.
        values: in the order that they were asked for.
        best: number of the value that is best on validation; None where all failed.
        against_first: the best and the first value on the test split; None where they are the same.
        against_fewer: the largest number of training images and the next smaller one on the test split; None for
            another sweep.
    """

    axes: tuple[Axis, ...]
    seeds: tuple[int, ...]
    monitor: str
    values: tuple[Value, ...]
    best: int | None
    against_first: PairedComparison | None = None
    against_fewer: PairedComparison | None = None

    @property
    def is_learning_curve(self) -> bool:
        """Whether nothing but the number of training images changes."""
        return [axis.key for axis in self.axes] == [TRAIN_IMAGES]


def key_of(monitor: str) -> str:
    """The column of summary.json that holds what is monitored: of the bundle on validation, not of an epoch."""
    name = {"val_loss": "val_log_loss", "val_macro_recall": "val_balanced_accuracy"}.get(monitor, monitor)
    return name if name.removeprefix("val_") in VAL_FIGURES else "val_macro_f1"
