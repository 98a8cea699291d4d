"""Tables and pictures that the pages of cross-validations and ensembles share."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from foveal.data.manifest import Manifest
from foveal.extras import require
from foveal.metrics import QUALITY_METRICS, SplitMetrics
from foveal.report.experiment_page import PagePlot, PageTable, Picture
from foveal.report.numbers import fine, percent
from foveal.report.tables import METRIC_NAMES, Cell, Row, Table, class_table, metric_table

NUM_PICTURES = 12

_PLOT_WORDS = {
    "confusion_counts": "Confusion matrix, counts: who was taken for whom.",
    "confusion_rates": "Confusion matrix, shares of each true class.",
    "reliability": "Reliability: how often a probability is right.",
}


def metric_rows(columns: Mapping[str, SplitMetrics], caption: str) -> PageTable:
    """Every metric, a column for each of several models or splits, with intervals."""
    table = metric_table(columns)
    kept = [row for row in table.rows if any(cell.text != "–" for cell in row.cells)]
    notes = table.notes if any(cell.note for row in kept for cell in row.cells) else []
    return PageTable(["Metric", *columns], [_flat(row) for row in kept], caption, notes)


def class_rows(metrics: SplitMetrics, caption: str) -> PageTable:
    """Precision, recall, F1 and ROC AUC of each class."""
    table: Table = class_table(metrics)
    return PageTable(table.head, [_flat(row) for row in table.rows], caption, table.notes)


def spread_rows(
    mean: Mapping[str, float | None], std: Mapping[str, float | None], others: Mapping[str, SplitMetrics], caption: str
) -> PageTable:
    """Mean ± standard deviation of every metric, beside models that stand for themselves."""
    rows: list[list[str | Cell]] = []
    for key in QUALITY_METRICS:
        if mean.get(key) is None and all(getattr(metrics, key) is None for metrics in others.values()):
            continue
        spread = std.get(key)
        first = Cell(fine(mean.get(key)), "" if spread is None else f"± {fine(spread)}")
        cells: list[str | Cell] = [METRIC_NAMES.get(key, (key, ""))[0], first]
        for metrics in others.values():
            bounds = metrics.confidence_intervals.get(key)
            cells.append(Cell(fine(getattr(metrics, key)), "" if bounds is None else _interval(bounds)))
        rows.append(cells)
    return PageTable(["Metric", "Mean ± std", *others], rows, caption)


def evaluation_plots(folder: Path) -> list[PagePlot]:
    """The plots that an evaluation wrote, as far as they are there."""
    return [
        PagePlot(file.read_text(encoding="utf-8"), words)
        for name, words in _PLOT_WORDS.items()
        if (file := folder / "plots" / f"{name}.svg").is_file()
    ]


def surest_mistakes(manifest: Manifest, predictions: Path, class_names: Sequence[str]) -> list[Picture]:
    """The images that a wrong class was most probable of, the surest first.

    Args:
        manifest: knows the files.
        predictions: a table like predictions.parquet.
        class_names: of its columns.
    """
    parquet = require("pyarrow.parquet", extra="train", purpose="read predictions")
    table = parquet.read_table(predictions)
    sample_ids = table["sample_id"].to_pylist()
    place = {name: at for at, name in enumerate(class_names)}
    probabilities = np.stack([table[f"p_{name}"].to_numpy().astype(np.float64) for name in class_names], axis=1)
    labels = np.array([place[name] for name in table["label"].to_pylist()], dtype=np.int64)
    predicted = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    wrong = wrong[np.argsort(-probabilities[wrong].max(axis=1), kind="stable")][:NUM_PICTURES]
    return [
        picture_of(
            manifest,
            sample_ids[at],
            f"{class_names[labels[at]]} taken for {class_names[predicted[at]]}",
            [f"with a probability of {percent(float(probabilities[at].max()))}"],
            is_wrong=True,
        )
        for at in wrong.tolist()
    ]


def picture_of(
    manifest: Manifest, sample_id: str, caption: str, lines: Sequence[str] = (), *, is_wrong: bool = False
) -> Picture:
    """One sample of a manifest as a picture."""
    compute = require("pyarrow.compute", extra="train", purpose="read manifests")
    row = compute.index(manifest.table["sample_id"], sample_id).as_py()
    one = manifest.take(np.array([row]))
    sha256 = one.table["sha256"][0].as_py()
    return Picture(one.absolute_paths()[0], one.boxes()[0], sha256, caption, lines, is_wrong)


def _flat(row: Row) -> list[str | Cell]:
    return [row.name, *row.cells]


def _interval(bounds: tuple[float, float]) -> str:
    return f"[{fine(bounds[0])}, {fine(bounds[1])}]"
