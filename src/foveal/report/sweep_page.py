"""The page of a sweep: figures against the swept value, all runs in a table, and which value validation chooses."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from foveal.evaluation.drawing import MUTED, SPLIT_COLOURS, draw_svg, shortened
from foveal.experiments.sweep.axes import TRAIN_IMAGES, shown_value
from foveal.experiments.sweep.result import Swept, Value
from foveal.experiments.sweep.words import sentences_of
from foveal.report.experiment_page import PagePlot, PageTable, Section, write_experiment_page
from foveal.report.numbers import MISSING, counted, duration, fine
from foveal.run_folder import ExperimentFolder

LOG_FROM_RATIO = 8.0
"""Numbers whose largest is at least so many times their smallest stand on a logarithmic axis."""
MAX_LINES = 8

_COLOURS = ("#0b5fa5", "#c77700", "#00896b", "#8b3fa0", "#b8321a", "#475569", "#5f7d00", "#0e8fa8")
_MARKERS = "osD^vP*X"
_FIGURES = (("val_accuracy", "validation accuracy"), ("val_macro_f1", "validation macro F1"))


def write_sweep_page(folder: ExperimentFolder, swept: Swept) -> Path:
    """Write the sweep's report.html.

    Raises:
        FovealError: the page cannot be written.
        MissingExtraError: matplotlib or jinja2 is not installed.
    """
    best = None if swept.best is None else swept.values[swept.best]
    tiles = []
    if best is not None:
        tiles = [
            (
                "Best by validation",
                ", ".join(shown_value(each) for each in best.point.values.values()),
                best.point.name,
            ),
            ("Its validation accuracy", fine(best.mean["val_accuracy"]), _spread(best, "val_accuracy")),
            ("Its test accuracy", fine(best.mean["accuracy"]), _spread(best, "accuracy")),
        ]
    commands = []
    if best is not None:
        chosen = best.runs[0].run.path
        commands = [f"foveal predict {chosen} PHOTOS --out predictions.csv", f"foveal evaluate {chosen} --split val"]
    return write_experiment_page(
        folder.report,
        name=folder.path.absolute().name,
        title="sweep",
        verdict=sentences_of(swept),
        sections=[_curves(swept), _table(swept), _runs(swept)],
        made_from=str(folder.path),
        tiles=tiles,
        facts=[
            ("swept", "; ".join(axis.label for axis in swept.axes)),
            ("seeds", ", ".join(map(str, swept.seeds))),
            ("chosen by", swept.monitor),
        ],
        next_commands=commands,
    )


def draw_curves(swept: Swept) -> str:
    """Validation accuracy and macro F1 against the swept value, with a bar of one standard deviation, as SVG text."""
    return draw_svg(partial(_draw, swept=swept), width_px=820, height_px=330)


def _curves(swept: Swept) -> Section:
    told = "; ".join(
        f"{value.point.name}: accuracy {fine(value.mean.get('val_accuracy'))}, "
        f"macro F1 {fine(value.mean.get('val_macro_f1'))}"
        for value in swept.values
    )
    paragraphs = [
        "Figures of the validation split, by which the value is chosen."
        + (" Bars are one standard deviation over the seeds." if len(swept.seeds) > 1 else "")
    ]
    if any(axis.key == TRAIN_IMAGES for axis in swept.axes):
        paragraphs.append(
            "The training images of each size are a stratified draw from the training split; with the same seed, fewer "
            "lie within more. Another seed draws others. Validation and test are the same throughout."
        )
    if len(swept.axes) > 2:
        paragraphs.append("Three keys or more are swept: the lines stand for the values of all keys but the first.")
    return Section(
        "Validation by value",
        paragraphs=paragraphs,
        plots=(PagePlot(draw_curves(swept), f"Validation figures by value. {told}"),),
    )


def _table(swept: Swept) -> Section:
    several = len(swept.seeds) > 1
    figures = ("val_accuracy", "val_macro_f1", "val_log_loss", "accuracy", "macro_f1", "log_loss")
    head = [*(axis.label for axis in swept.axes), "Training images", "Val accuracy", "Val macro F1", "Val log loss"]
    head += ["Test accuracy", "Test macro F1", "Test log loss", "Training time"]
    rows = []
    for value in swept.values:
        row = [shown_value(each) for each in value.point.values.values()]
        row.append(f"{value.runs[0].num_train:,}")
        row += [_mean_std(value, key) for key in figures] if value.is_whole else ["failed", *([MISSING] * 5)]
        row.append(duration(sum(run.seconds for run in value.runs) / len(value.runs)))
        rows.append(row)
    caption = "Mean ± standard deviation over the seeds." if several else "One seed."
    table = PageTable(
        head=head,
        rows=rows,
        caption=f"{caption} The highlighted value is the best by validation ({swept.monitor}); the test split decides "
        "nothing.",
        marked_rows=[] if swept.best is None else [swept.best],
    )
    return Section("All values", tables=(table,))


def _runs(swept: Swept) -> Section:
    rows = [
        [
            f"runs/{run.run.path.name}",
            str(run.seed),
            *(_of_run(value, number, key) for key in ("val_accuracy", "val_macro_f1", "accuracy", "macro_f1")),
            str(run.outcome.best_epoch) if run.outcome else MISSING,
            duration(run.seconds),
        ]
        for value in swept.values
        for number, run in enumerate(value.runs)
    ]
    head = ("Run", "Seed", "Val accuracy", "Val macro F1", "Test accuracy", "Test macro F1", "Best epoch", "Training")
    failed = [f"{run.run.path.name}: {run.failure}" for value in swept.values for run in value.runs if run.failure]
    return Section(
        "Every run",
        paragraphs=[f"{counted(len(rows), 'run')}, each a run folder of its own.", *failed],
        tables=(PageTable(head=head, rows=rows),),
    )


def _of_run(value: Value, number: int, key: str) -> str:
    run = value.runs[number]
    return MISSING if run.outcome is None else fine(run.row(value.point, "")[key])


def _mean_std(value: Value, key: str) -> str:
    mean, std = value.mean.get(key), value.std.get(key)
    return fine(mean) if std is None else f"{fine(mean)} ± {std:.3f}"


def _spread(value: Value, key: str) -> str:
    std = value.std.get(key)
    return "one seed" if std is None else f"± {std:.3f} over {len(value.runs)} seeds"


def _draw(figure: Any, *, swept: Swept) -> None:
    panels = figure.subplots(1, len(_FIGURES))
    axis = swept.axes[0]
    lines = _lines(swept)
    numbers = _numbers(swept)
    for axes, (key, label) in zip(panels, _FIGURES, strict=True):
        for place, (name, values) in enumerate(lines[:MAX_LINES]):
            shown = [value for value in values if value.mean.get(key) is not None]
            at = [numbers[shown_value(value.point.values[axis.key])] for value in shown]
            colour = SPLIT_COLOURS["val"] if len(lines) == 1 else _COLOURS[place]
            axes.errorbar(
                at,
                [value.mean[key] for value in shown],
                yerr=[value.std.get(key) or 0.0 for value in shown] if len(swept.seeds) > 1 else None,
                color=colour,
                marker=_MARKERS[place],
                markersize=4.5,
                capsize=3,
                linewidth=1.4,
                label=name,
            )
        if swept.best is not None and (best := swept.values[swept.best]).mean.get(key) is not None:
            where = numbers[shown_value(best.point.values[axis.key])]
            axes.plot([where], [best.mean[key]], marker="o", markersize=11, markerfacecolor="none", color=MUTED)
        _scale(axes, [shown_value(each) for each in axis.values], [numbers[shown_value(each)] for each in axis.values])
        axes.set(xlabel=axis.label, title=label[0].upper() + label[1:])
        axes.grid(visible=True, axis="y")
    if len(lines) > 1:
        panels[0].legend(loc="best", title=", ".join(other.label for other in swept.axes[1:]))


def _lines(swept: Swept) -> list[tuple[str, list[Value]]]:
    """Values that differ in the first key alone, under what they have in common."""
    found: dict[str, list[Value]] = {}
    for value in swept.values:
        others = list(value.point.values.values())[1:]
        found.setdefault(shortened(", ".join(shown_value(each) for each in others), 32), []).append(value)
    return list(found.items())


def _numbers(swept: Swept) -> dict[str, float]:
    """Where each value of the first key, as it is shown, stands: at its number, or one after the other."""
    axis = swept.axes[0]
    keys = [shown_value(each) for each in axis.values]
    placed: list[Any] = list(axis.values)
    if axis.key == TRAIN_IMAGES:
        sizes = {shown_value(value.point.values[axis.key]): value.runs[0].num_train for value in swept.values}
        placed = [sizes[key] for key in keys]
    if all(isinstance(each, int | float) and not isinstance(each, bool) and math.isfinite(each) for each in placed):
        return {key: float(each) for key, each in zip(keys, placed, strict=True)}
    return {key: float(place) for place, key in enumerate(keys)}


def _scale(axes: Any, names: Sequence[str], places: Sequence[float]) -> None:
    low, high = min(places), max(places)
    is_log = low > 0 and high / low >= LOG_FROM_RATIO
    if is_log:
        axes.set_xscale("log")
    axes.set_xticks(places, [shortened(name, 14) for name in names])
    axes.minorticks_off()
    if len(places) == 1:
        axes.set_xlim(low - 0.5, high + 0.5)
