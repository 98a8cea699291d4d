"""The tables of a report, as rows of text that the template only has to lay out."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveal.evaluation.drawing import split_name
from foveal.metrics import QUALITY_METRICS, SplitMetrics
from foveal.model.config import in_words
from foveal.report.contents import RunContents, class_counts
from foveal.report.numbers import MISSING, counted, duration, fine

METRIC_NAMES: dict[str, tuple[str, str]] = {
    "accuracy": ("Accuracy", "share of images that are right"),
    "balanced_accuracy": ("Balanced accuracy", "mean recall over the classes"),
    "macro_precision": ("Precision, macro", "mean over the classes"),
    "macro_recall": ("Recall, macro", "mean over the classes"),
    "macro_f1": ("F1, macro", "mean over the classes"),
    "weighted_f1": ("F1, weighted", "mean by number of images"),
    "top_3_accuracy": ("Top-3 accuracy", "truth among the three most probable"),
    "top_5_accuracy": ("Top-5 accuracy", "truth among the five most probable"),
    "macro_roc_auc": ("ROC AUC, macro", "each class against the rest"),
    "cohen_kappa": ("Cohen’s kappa", "agreement beyond chance"),
    "quadratic_weighted_kappa": ("Weighted kappa", "quadratic, for ordered classes"),
    "matthews_correlation": ("Matthews correlation", "−1 to 1"),
    "log_loss": ("Log loss", "lower is better"),
    "brier": ("Brier score", "lower is better"),
    "ece": ("Calibration error", "ECE; lower is better"),
    "majority_baseline_accuracy": ("Guessing", "always the largest class of training"),
}


@dataclass(frozen=True)
class Cell:
    """A figure, its interval as text, the number of its footnote (0 for none), and the length of a bar in 0..1."""

    text: str
    interval: str = ""
    note: int = 0
    bar: float | None = None


@dataclass
class Footnotes:
    """Reasons for figures that are not defined, each listed once."""

    texts: list[str] = field(default_factory=list)

    def number(self, text: str) -> int:
        """The number of a footnote, from 1."""
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text) + 1


@dataclass(frozen=True)
class Row:
    """One row: its heading, a remark under it, and its cells."""

    name: str
    remark: str
    cells: list[Cell]


@dataclass(frozen=True)
class Table:
    """Rows under headings, with footnotes.

    Attributes:
        caption: what it shows.
        head: headings of the columns, the first for the row names.
        rows: the rows.
        notes: the footnotes' texts, numbered from 1.
    """

    caption: str
    head: list[str]
    rows: list[Row]
    notes: list[str]


@dataclass(frozen=True)
class Bar:
    """A stage of the run: its name, wall and CPU time as text, and its share of the longest, 0..100."""

    name: str
    wall: str
    cpu: str
    percent: float


def metric_table(splits: Mapping[str, SplitMetrics]) -> Table:
    """Every metric of every split with its interval."""
    notes = Footnotes()
    rows = []
    for key in (*QUALITY_METRICS, "majority_baseline_accuracy"):
        name, remark = METRIC_NAMES.get(key, (key, ""))
        cells = []
        for metrics in splits.values():
            bounds = metrics.confidence_intervals.get(key)
            cell = _cell(getattr(metrics, key), metrics.undefined.get(key, ""), notes)
            cells.append(
                Cell(cell.text, f"[{fine(bounds[0])}, {fine(bounds[1])}]" if bounds is not None else "", cell.note)
            )
        rows.append(Row(name, remark, cells))
    images = [Cell(f"{metrics.num_images:,}") for metrics in splits.values()]
    heads = [split_name(split).capitalize() for split in splits]
    return Table("Metrics with 95 % intervals", ["Metric", *heads], [Row("Images", "", images), *rows], notes.texts)


def class_table(metrics: SplitMetrics) -> Table:
    """Precision, recall, F1 and ROC AUC of each class."""
    notes = Footnotes()
    rows = []
    for item in metrics.per_class:
        cells = []
        for key in ("precision", "recall", "f1", "roc_auc"):
            value, reason = getattr(item, key), metrics.undefined.get(f"per_class.{item.name}.{key}", "")
            cells.append(replace(_cell(value, reason, notes), bar=value if key == "f1" else None))
        rows.append(Row(item.name, "", [*cells, Cell(f"{item.support:,}")]))
    means = [Cell(fine(getattr(metrics, f"macro_{key}"))) for key in ("precision", "recall", "f1", "roc_auc")]
    rows.append(Row("mean over classes", "", [*means, Cell(f"{metrics.num_images:,}")]))
    head = ["Class", "Precision", "Recall", "F1", "ROC AUC", "Images"]
    return Table(f"Each class of the {split_name(metrics.split)} split", head, rows, notes.texts)


def distribution_table(names: Sequence[str], counts: Mapping[str, NDArray[np.int64]]) -> Table:
    """Samples of each class by split, with totals and shares."""
    columns = [*counts.values()]
    totals = np.sum(columns, axis=0) if columns else np.zeros(len(names), dtype=np.int64)
    whole = max(int(totals.sum()), 1)

    def row(name: str, values: Iterable[int], total: int) -> Row:
        return Row(
            name, "", [*(Cell(f"{value:,}") for value in values), Cell(f"{total:,}"), Cell(_share(total, whole))]
        )

    rows = [row(name, [column[at] for column in columns], totals[at]) for at, name in enumerate(names)]
    rows.append(row("all classes", [column.sum() for column in columns], int(totals.sum())))
    head = ["Class", *(split_name(split).capitalize() for split in counts), "All", "Share"]
    return Table("Usable samples of each class by split", head, rows, [])


def epoch_table(epochs: Mapping[str, NDArray[np.float64]]) -> Table:
    """metrics.csv as it is, with rounded figures."""
    columns = [name for name in epochs if name != "epoch" and not np.isnan(epochs[name]).all()]
    rows = [
        Row(f"{epoch:.0f}", "", [Cell(_significant(epochs[name][at])) for name in columns])
        for at, epoch in enumerate(epochs.get("epoch", ()))
    ]
    return Table("Every epoch", ["Epoch", *(name.replace("_", " ") for name in columns)], rows, [])


def timing_bars(timings: Mapping[str, Mapping[str, float]]) -> list[Bar]:
    """The stages in the order in which they ran, with the sum of all last."""
    walls = {name: float(row.get("wall_seconds", 0.0)) for name, row in timings.items()}
    cpus = {name: float(row.get("cpu_seconds", 0.0)) for name, row in timings.items()}
    longest = max(walls.values(), default=0.0) or 1.0
    bars = [
        Bar(name.replace("_", " "), duration(walls[name]), duration(cpus[name]), 100 * walls[name] / longest)
        for name in timings
    ]
    total = Bar("all stages", duration(sum(walls.values())), duration(sum(cpus.values())), 0.0)
    return [*bars, total] if bars else []


def facts(run: RunContents) -> list[tuple[str, str]]:
    """What the run was, in a few pairs of a heading and words."""
    bundle = run.bundle or {}
    size = bundle.get("preprocessing", {}).get("size_px") or run.section("data").get("image_size")
    names = bundle.get("architecture", {}).get("name") or run.section("model").get("name")
    model = in_words(names if isinstance(names, str) else tuple(names)) if names else ""
    pairs = [("Model", f"{model or 'unknown'}, {size} px" if size else str(model or "unknown"))]
    weights = bundle.get("weights", {})
    if weights:
        start = "random" if weights.get("source") == "none" else str(weights.get("tag") or weights.get("source"))
        licence = "" if start == "random" else f", licence {weights.get('licence') or 'unknown'}"
        pairs.append(("Starting weights", start + licence))
    counts = {split: int(values.sum()) for split, values in class_counts(run).items()}
    parts = ", ".join(f"{number:,} {split_name(split)}" for split, number in counts.items())
    noun = "boxed sample" if run.has_boxes else "image"
    classes = counted(len(run.manifest.class_names), "class", "classes")
    pairs.append(("Data", f"{counted(sum(counts.values()), noun)} of {classes}: {parts}"))
    num_epochs = len(run.epochs.get("epoch", ()))
    if num_epochs:
        kept = f", epoch {run.best_epoch} kept" if run.best_epoch is not None else ""
        pairs.append(("Training", counted(num_epochs, "epoch") + kept))
    speed = images_per_second(run)
    if speed is not None:
        pairs.append(("Speed", f"{speed:,.0f} images per second in training"))
    device = run.environment.get("device")
    if device:
        pairs.append(("Device", str(device)))
    return pairs


def images_per_second(run: RunContents) -> float | None:
    """The median training speed over the epochs, without the first where there are more: it warms up."""
    speeds = run.epochs.get("images_per_second")
    if speeds is None or np.isnan(speeds).all():
        return None
    return float(np.nanmedian(speeds[1:] if len(speeds) > 1 and not np.isnan(speeds[1:]).all() else speeds))


def environment_rows(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """env.json as pairs, the packages each on their own."""
    rows = []
    for key, value in environment.items():
        if key == "packages" and isinstance(value, dict):
            rows += [(name, str(version or "not installed")) for name, version in value.items()]
        elif key != "command":
            rows.append((key.replace("_", " "), MISSING if value is None else str(value)))
    return rows


def command_line(environment: Mapping[str, Any]) -> str:
    """The command that made the run, ready to paste; empty where it was not run from the command line."""
    command = environment.get("command")
    if not isinstance(command, list) or not command:
        return ""
    program, *arguments = map(str, command)
    name = PurePath(program).name
    if name == "__main__.py" and PurePath(program).parent.name == "foveal":
        name = "foveal"
    return shlex.join([name, *arguments]) if name == "foveal" else ""


def _cell(value: float | None, reason: str, notes: Footnotes) -> Cell:
    return Cell(fine(value)) if value is not None else Cell(MISSING, note=notes.number(reason) if reason else 0)


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f}\N{NO-BREAK SPACE}%"


def _significant(value: float) -> str:
    if np.isnan(value):
        return MISSING
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
