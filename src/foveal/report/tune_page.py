"""The page of a study: the default against the winner, how the trials went, and what mattered."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foveal.errors import ArtifactError
from foveal.files import read_json, write_text
from foveal.metrics import SplitMetrics
from foveal.report.experiment_page import PagePlot, PageTable, Section, write_experiment_page
from foveal.report.numbers import counted, duration, fine, interval, share
from foveal.report.tables import METRIC_NAMES, Cell
from foveal.report.tune_figures import MAX_AXES, draw_history, draw_importance, draw_parallel, draw_timeline
from foveal.run_folder import ExperimentFolder

NUM_BEST = 10
"""Trials in the table of the best."""
_COMPARED = ("accuracy", "balanced_accuracy", "macro_f1", "macro_roc_auc", "log_loss", "ece")

Row = Mapping[str, Any]


def build_tune_page(folder: ExperimentFolder) -> Path:
    """Write the page of a study that has come to its end, and its plots to `plots/` as SVG files.

    Raises:
        ArtifactError: the study's summary is not there, or damaged.
        FovealError: the page cannot be written.
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    found = read_json(folder.summary)
    if not isinstance(found, dict) or found.get("verb") != "tune":
        raise ArtifactError(f"{folder.summary} is not the summary of a study.", fix="run the same foveal tune again.")
    rows: list[Row] = found["rows"]
    best = next(row for row in rows if row["name"] == found["best"])
    plots = _plots(found, rows)
    for name, plot in plots.items():
        write_text(folder.path / "plots" / f"{name}.svg", plot.svg)
    return write_experiment_page(
        folder.report,
        name=folder.path.absolute().name,
        title="hyperparameter study",
        verdict=found["sentences"],
        sections=[_default_versus_tuned(found), *_course(found, rows, plots), *_values(found, rows, plots)],
        made_from=str(folder.path),
        next_commands=[
            f"foveal train DATA --config {shlex.quote(str(folder.path / 'best.yaml'))} --out RUN",
            f"foveal predict {shlex.quote(str(folder.path))} PHOTOS --out predictions.csv",
            shlex.join(["foveal", "compare", *(str(folder.run(name).path) for name in ("default", "best"))]),
        ],
        tiles=_tiles(found, rows, best),
        facts=[
            ("Chosen by", f"{found['monitor']} of the best epoch, on validation"),
            ("Winner", f"trial {best['number']}: {_values_in_words(best['values'])}"),
        ],
    )


def _tiles(found: Row, rows: Sequence[Row], best: Row) -> list[tuple[str, str, str]]:
    test = found["default_versus_tuned"]["test"]
    tiles = []
    for name, label in (("default", "Default, test accuracy"), ("best", "Tuned, test accuracy")):
        bounds = test[name]["confidence_intervals"].get("accuracy")
        tiles.append((label, share(test[name]["accuracy"]), interval(bounds) if bounds else ""))
    tiles.append(("Best trial, validation", share(best["figure"]), found["monitor"]))
    ended = sum(row["state"] in ("complete", "pruned", "failed") for row in rows)
    seconds = sum(row["seconds"] for row in rows)
    tiles.append(("Trials", f"{ended:,}", f"{duration(seconds)} in all"))
    return tiles


def _default_versus_tuned(found: Row) -> Section:
    """The question that a study is for."""
    comparison, tables = found["comparison"], []
    for split in ("test", "val"):
        both = {
            name: SplitMetrics.model_validate(found["default_versus_tuned"][split][name])
            for name in ("default", "best")
        }
        rows: list[list[str | Cell]] = []
        for key in _COMPARED:
            cells: list[str | Cell] = [_cell(both["default"], key), _cell(both["best"], key)]
            if split == "test":
                cells.append(_difference(comparison, key))
            rows.append([METRIC_NAMES[key][0], *cells])
        words = (
            "test images, which decided nothing"
            if split == "test"
            else "validation images, by which trials were chosen"
        )
        head = ["metric", "default", "tuned", *(["difference"] if split == "test" else [])]
        tables.append(PageTable(head, rows, caption=f"On {both['best'].num_images:,} {words}; 95 % intervals."))
    only = f"Of {comparison['num_images']:,} test images, both have {comparison['both_right']:,} right and neither "
    only += (
        f"{comparison['neither_right']:,}; the default alone has {comparison['only_first_right']:,}, the tuned alone "
    )
    only += f"{comparison['only_second_right']:,} (McNemar p = {comparison['mcnemar_p']:.2g})."
    return Section("Default against tuned", paragraphs=[only], tables=tables)


def _cell(metrics: SplitMetrics, key: str) -> Cell:
    bounds = metrics.confidence_intervals.get(key)
    return Cell(fine(getattr(metrics, key)), interval(bounds) if bounds else "")


def _difference(comparison: Row, key: str) -> Cell:
    value = comparison["differences"].get(key)
    if value is None:
        return Cell("–")
    bounds = comparison["intervals"].get(key)
    return Cell(f"{value:+.3f}", f"[{bounds[0]:+.3f}, {bounds[1]:+.3f}]" if bounds else "")


def _course(found: Row, rows: Sequence[Row], plots: Mapping[str, PagePlot]) -> list[Section]:
    ranked = [row for row in rows if row["state"] == "complete"]
    sign = -1.0 if found["maximise"] else 1.0
    ranked.sort(key=lambda row: (sign * row["figure"], row["number"]))
    names = list(dict.fromkeys(name for row in ranked[:NUM_BEST] for name in row["values"]))
    table = PageTable(
        ["trial", found["monitor"], "best epoch", "time", *names],
        [
            [
                str(row["number"]),
                fine(row["figure"]),
                str(row["best_epoch"]),
                duration(row["seconds"]),
                *(_value(row["values"][name]) if name in row["values"] else "–" for name in names),
            ]
            for row in ranked[:NUM_BEST]
        ],
        caption=f"The best {counted(min(NUM_BEST, len(ranked)), 'trial')} of {len(rows):,}.",
        marked_rows=[0],
    )
    failed = [row for row in rows if row["state"] == "failed"]
    folded = []
    if failed:
        reasons = [[str(row["number"]), row["reason"] or "unknown"] for row in failed]
        folded.append(Section("Failed trials", tables=[PageTable(["trial", "reason"], reasons, text_columns=[1])]))
    shown = [plots[name] for name in ("history", "timeline") if name in plots]
    return [Section("Trials", tables=[table], plots=shown, folded=folded)]


def _values(found: Row, rows: Sequence[Row], plots: Mapping[str, PagePlot]) -> list[Section]:
    shown = [plots[name] for name in ("importance", "parallel") if name in plots]
    complete = sum(row["state"] == "complete" for row in rows)
    said = []
    if "importance" in plots:
        said.append(
            f"Shares by conditional PED-ANOVA over {counted(complete, 'complete trial')}: what sets the better trials "
            "apart. With few trials they change from study to study."
        )
    if found["dimensions"] and len(found["dimensions"]) > MAX_AXES:
        said.append(f"The lines pass through {MAX_AXES} of {len(found['dimensions'])} parameters.")
    return [Section("What mattered", paragraphs=said, plots=shown)] if shown else []


def _plots(found: Row, rows: Sequence[Row]) -> dict[str, PagePlot]:
    monitor, maximise = found["monitor"], found["maximise"]
    plots = {
        "history": PagePlot(
            draw_history(rows, monitor=monitor, maximise=maximise), f"{monitor} of every trial, and the best so far"
        )
    }
    if (timeline := draw_timeline(rows)) is not None:
        plots["timeline"] = PagePlot(timeline, "when each trial was at work")
    importance = dict(list(found["importance"].items())[:20])
    if len(importance) > 1:
        words = ", ".join(f"{name} {value:.0%}" for name, value in list(importance.items())[:5])
        plots["importance"] = PagePlot(draw_importance(importance), f"importance of the parameters: {words}")
    dimensions = _chosen(found["dimensions"], found["importance"])
    if sum(row["state"] == "complete" for row in rows) > 1 and dimensions:
        svg = draw_parallel(rows, dimensions, monitor=monitor, maximise=maximise)
        plots["parallel"] = PagePlot(svg, "the values of every complete trial as a line to its figure")
    return plots


def _chosen(dimensions: Sequence[Row], importance: Mapping[str, float]) -> list[Row]:
    """Those that matter most, in the order of the space."""
    by_share = sorted(dimensions, key=lambda dim: -importance.get(dim["name"], 0.0))[:MAX_AXES]
    return [dim for dim in dimensions if dim in by_share]


def _value(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _values_in_words(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_value(value)}" for name, value in values.items())
