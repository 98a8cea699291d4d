"""What each section of the page shows, as the values that its template names."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from foveal.evaluation.drawing import split_name
from foveal.evaluation.plots import MAX_MATRIX_CLASSES
from foveal.pixels.policy import PixelPolicy
from foveal.report import tables, words
from foveal.report.contents import Evaluated, RunContents, class_counts
from foveal.report.figures import draw_class_distribution, draw_curves
from foveal.report.heatmaps import Heatmaps, read_heatmaps, worst_errors
from foveal.report.numbers import counted, fine, share, with_interval
from foveal.report.svg import inline
from foveal.report.thumbnails import Thumbnail, make_thumbnails
from foveal.types import SPLITS, Split

MAX_STRIP_CLASSES = 20
"""Up to so many classes each gets a strip of samples; where there are more, each gets one sample."""
MAX_SAMPLES = 120
MAX_SAMPLES_A_CLASS = 8
MAX_GRID_CLASSES = 60
NUM_EXAMPLES = 12
WRONG = "Wrong, and most sure of it"
MAX_QUARANTINED_SHOWN = 200
_WIDE_PX = 560

_PLOT_WORDS = {
    "confusion_counts": "Confusion matrix in images",
    "confusion_rates": "Confusion matrix in per cent of each true class",
    "reliability": "Reliability diagram",
    "roc": "ROC curves",
    "confidence_right_wrong": "Histograms of the probability of the predicted class, where right and where wrong",
}

Values = dict[str, Any]


@dataclass(frozen=True)
class Plot:
    """A drawing for the page; a wide one scrolls inside its box where the page is narrow."""

    markup: str
    is_wide: bool

    @classmethod
    def of(cls, svg: str, *, prefix: str, label: str) -> Self:
        """Make the SVG text safe and its ids its own."""
        drawing = inline(svg, prefix=prefix.replace("_", "-"), label=label)
        return cls(drawing.markup, drawing.width_px > _WIDE_PX)


@dataclass(frozen=True)
class ClassSamples:
    """Training samples of one class."""

    name: str
    num_images: int
    thumbnails: list[Thumbnail]


@dataclass(frozen=True)
class Example:
    """An image of the judged split with what the model said about it."""

    thumbnail: Thumbnail
    label: str
    predicted: str
    is_right: bool
    probability: str
    of_truth: str
    path: str
    heat: Thumbnail | None = None


@dataclass(frozen=True)
class Pictures:
    """Which samples the page shows, and their thumbnails.

    Attributes:
        of_class: class number to rows of the manifest.
        chosen: heading to places in the judged split's predictions.
        row_of: sample id to row of the manifest.
        thumbnails: row to picture.
    """

    of_class: dict[int, list[int]]
    chosen: dict[str, list[int]]
    row_of: dict[str, int]
    thumbnails: dict[int, Thumbnail]

    @classmethod
    def of(cls, run: RunContents) -> Self:
        """Choose the samples and make their pictures."""
        of_class, judged = _rows_of_classes(run), words.judged(run)
        chosen = _worth_a_look(judged) if judged is not None else {}
        row_of = {str(name): row for row, name in enumerate(run.manifest.column("sample_id"))}
        rows = [row for rows in of_class.values() for row in rows]
        if judged is not None:
            ids = {judged.predictions.sample_ids[at] for places in chosen.values() for at in places}
            rows += [row_of[name] for name in ids if name in row_of]
        data = run.section("data")
        background = data.get("background")
        policy = PixelPolicy(background=tuple(background)) if background else PixelPolicy()
        margin = float(data.get("box_margin", 0.0))
        return cls(of_class, chosen, row_of, make_thumbnails(run.manifest, rows, policy=policy, box_margin=margin))

    def of_sample(self, sample_id: str) -> Thumbnail:
        """The picture of a sample, or words where the manifest does not name it."""
        row = self.row_of.get(sample_id)
        return Thumbnail(problem="not in this run’s manifest") if row is None else self.thumbnails[row]


def run_plots(run: RunContents) -> dict[str, str]:
    """The plots of the whole run: name to SVG text."""
    distribution = draw_class_distribution(run.manifest.class_names, class_counts(run))
    return {"class_distribution": distribution, **draw_curves(run.epochs, run.best_epoch)}


def verdict(run: RunContents) -> Values:
    """The numbers to remember and what they say."""
    judged, headline = words.judged(run), words.headline(run)
    column = run.manifest.column
    aside = np.flatnonzero(~run.manifest.is_usable())
    paths, reasons = column("path"), column("reason")
    return {
        "headline": headline,
        "title": f"{headline.value} {headline.interval} {headline.text}".replace("  ", " "),
        "judged": judged is not None,
        "guess": None if judged is None else judged.metrics.majority_baseline_accuracy,
        "strips": _strips(run),
        "tiles": [] if judged is None else _tiles(judged),
        "findings": words.findings(run),
        "facts": tables.facts(run),
        "quarantined": [(str(paths[row]), str(reasons[row] or "")) for row in aside[:MAX_QUARANTINED_SHOWN]],
        "num_quarantined": len(aside),
    }


def samples(run: RunContents, pictures: Pictures) -> Values:
    """A few training samples of each class."""
    names = run.manifest.class_names
    counts = class_counts(run).get("train", np.zeros(len(names), dtype=np.int64))
    return {
        "samples": [
            ClassSamples(names[at], int(counts[at]), [pictures.thumbnails[row] for row in rows])
            for at, rows in pictures.of_class.items()
        ],
        "num_classes": len(names),
        "as_strips": len(names) <= MAX_STRIP_CLASSES,
        "has_boxes": run.has_boxes,
    }


def data_and_training(run: RunContents, plots: Mapping[str, str]) -> Values:
    """The class distribution and the curves."""
    names, counts = run.manifest.class_names, class_counts(run)
    label = f"Images of each of {counted(len(names), 'class', 'classes')} by split; the table has the numbers"
    return {
        "distribution": Plot.of(plots["class_distribution"], prefix="distribution", label=label),
        "distribution_table": tables.distribution_table(names, counts),
        "curves": [
            Plot.of(svg, prefix=name, label=_curve_words(run, name.removeprefix("curves_")))
            for name, svg in plots.items()
            if name.startswith("curves_")
        ],
        "epochs": tables.epoch_table(run.epochs),
        "best_epoch": run.best_epoch,
    }


def mistakes(run: RunContents) -> Values:
    """Confusion matrices, the most frequent mistakes, and the report of each class."""
    judged = words.judged(run)
    return {
        "pairs": [] if judged is None else words.confused_pairs(judged.metrics),
        "matrices": [
            (split, _plots_of(one, ("confusion_counts", "confusion_rates"))) for split, one in _test_first(run)
        ],
        "has_grey_cells": any(item.support == 0 for one in run.splits.values() for item in one.metrics.per_class)
        or len(run.class_names) > MAX_MATRIX_CLASSES,
        "is_condensed": len(run.class_names) > MAX_MATRIX_CLASSES,
        "class_tables": [(split, tables.class_table(one.metrics)) for split, one in _test_first(run)],
    }


def probabilities(run: RunContents) -> Values:
    """Reliability, ROC, and how sure the model was where it was right and where it was wrong."""
    judged = words.judged(run)
    names = ("reliability", "roc", "confidence_right_wrong")
    return {
        "trust": [(split, _plots_of(one, names)) for split, one in _test_first(run)],
        "calibration": "" if judged is None else _temperature_words(judged),
    }


def examples(run: RunContents, pictures: Pictures) -> Values:
    """The images of the judged split that are worth a look."""
    judged = words.judged(run)
    if judged is None:
        return {"examples": {}, "heatmaps": "", "heated": ""}
    heatmaps = read_heatmaps(run.run, judged.metrics.split)
    return {
        "examples": {
            title: [_example(judged, at, pictures, heatmaps if title == WRONG else Heatmaps()) for at in places]
            for title, places in pictures.chosen.items()
        },
        "heatmaps": heatmaps.words,
        "heated": WRONG,
    }


def figures(run: RunContents) -> Values:
    """All metrics, and all timings."""
    judged, speed = words.judged(run), tables.images_per_second(run)
    speeds = []
    if speed is not None:
        speeds.append(f"{speed:,.0f} images per second in training: the median over the epochs but the first.")
    if judged is not None and judged.metrics.latency_ms is not None:
        latency = judged.metrics.latency_ms
        speeds.append(
            f"One image alone takes {latency.p50:.3g} ms (median), 95 % of them at most {latency.p95:.3g} ms."
        )
    return {
        "metrics": tables.metric_table({split: one.metrics for split, one in run.splits.items()}),
        "timings": tables.timing_bars(run.timings),
        "speeds": " ".join(speeds),
    }


def settings(run: RunContents) -> Values:
    """Configuration, environment, model, and how to repeat the run."""
    config = shlex.quote(str(run.run.config))
    return {
        "config_text": run.config_text,
        "environment": tables.environment_rows(run.environment),
        "model_summary": run.model_summary,
        "command": tables.command_line(run.environment),
        "git": run.environment.get("git"),
        "repeat": f"foveal train DATA --config {config} --out NEW_RUN",
    }


def _rows_of_classes(run: RunContents) -> dict[int, list[int]]:
    """Rows of training samples to show, evenly spread over each class: class number to rows."""
    rows = run.manifest.of_split("train")
    ids = run.manifest.take(rows).label_ids()
    num_classes = len(run.manifest.class_names)
    each = min(MAX_SAMPLES_A_CLASS, MAX_SAMPLES // num_classes) if 0 < num_classes <= MAX_STRIP_CLASSES else 1
    return {at: _spread(rows[ids == at], each) for at in range(min(num_classes, MAX_GRID_CLASSES))}


def _spread(rows: NDArray[np.int64], number: int) -> list[int]:
    """So many of the rows, evenly spaced."""
    places = (
        np.arange(len(rows)) if len(rows) <= number else ((np.arange(number) + 0.5) * len(rows) / number).astype(int)
    )
    return [int(row) for row in rows[places]]


def _worth_a_look(judged: Evaluated) -> dict[str, list[int]]:
    probability, right = judged.predictions.probability, judged.predictions.right
    surest, least = np.argsort(-probability, kind="stable"), np.argsort(probability, kind="stable")
    places = {
        WRONG: np.array(worst_errors(judged.predictions), dtype=np.int64),
        "Least sure": least,
        "Right, and most sure of it": surest[right[surest]],
    }
    return {title: [int(at) for at in found[:NUM_EXAMPLES]] for title, found in places.items()}


def _example(judged: Evaluated, at: int, pictures: Pictures, heatmaps: Heatmaps) -> Example:
    said, names = judged.predictions, judged.metrics.class_names
    return Example(
        thumbnail=pictures.of_sample(said.sample_ids[at]),
        label=names[said.labels[at]],
        predicted=names[said.predicted[at]],
        is_right=bool(said.right[at]),
        probability=share(float(said.probability[at])),
        of_truth=share(float(said.probabilities[at, said.labels[at]])),
        path=said.paths[at],
        heat=heatmaps.pictures.get((said.sample_ids[at], names[said.predicted[at]])),
    )


def _test_first(run: RunContents) -> list[tuple[Split, Evaluated]]:
    return [(split, run.splits[split]) for split in reversed(SPLITS) if split in run.splits]


def _plots_of(evaluated: Evaluated, names: Sequence[str]) -> list[Plot]:
    metrics, right = evaluated.metrics, int(evaluated.predictions.right.sum())
    where = f"{split_name(metrics.split)} split, {right:,} of {counted(metrics.num_images, 'image')} right"
    return [
        Plot.of(evaluated.plots[name], prefix=f"{metrics.split}-{name}", label=f"{_PLOT_WORDS[name]}: {where}")
        for name in names
    ]


def _strips(run: RunContents) -> list[Values]:
    """Accuracy and interval of each split, as places on a line from 0 to 100."""
    strips = []
    for split, evaluated in run.splits.items():
        accuracy, bounds = evaluated.metrics.accuracy, evaluated.metrics.confidence_intervals.get("accuracy")
        if accuracy is not None:
            low, high = bounds if bounds is not None else (accuracy, accuracy)
            places = {"at": 100 * accuracy, "low": 100 * low, "high": 100 * high}
            strips.append({"split": split, "text": with_interval(accuracy, bounds), **places})
    return strips


def _tiles(judged: Evaluated) -> list[tuple[str, str, str]]:
    """The few figures that everyone asks for next: name, value, interval."""
    tiles = []
    for key in ("balanced_accuracy", "macro_f1", "macro_roc_auc", "log_loss", "ece"):
        text = with_interval(getattr(judged.metrics, key), judged.metrics.confidence_intervals.get(key))
        value, _, bounds = text.partition(" ")
        tiles.append((tables.METRIC_NAMES[key][0], value, bounds))
    return tiles


def _curve_words(run: RunContents, key: str) -> str:
    ends = [
        f"{column.replace('_', ' ')} from {run.epochs[column][0]:.3g} to {run.epochs[column][-1]:.3g}"
        for column in (f"train_{key}", f"val_{key}", key)
        if column in run.epochs
    ]
    return "By epoch: " + ", ".join(ends)


def _temperature_words(judged: Evaluated) -> str:
    metrics = judged.metrics
    if metrics.temperature == 1:
        return "No temperature was applied."
    ece, loss = fine(metrics.ece_before_temperature), fine(metrics.log_loss_before_temperature)
    return (
        f"Logits were divided by a temperature of {metrics.temperature:.2f}, fitted on validation. Before it, the "
        f"calibration error on {split_name(metrics.split)} images was {ece} (now {fine(metrics.ece)}) "
        f"and the log loss {loss} (now {fine(metrics.log_loss)})."
    )
