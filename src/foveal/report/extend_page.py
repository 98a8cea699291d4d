"""The page of an extension: each class before and after, and what the new ones cost the old."""

import shlex
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from foveal.data.manifest import Manifest
from foveal.evaluation.drawing import INK, MUTED, SPLIT_COLOURS, draw_svg, shortened
from foveal.experiments.extend.cost import ClassChange
from foveal.experiments.extend.extension import PAGE_FILE, Extended
from foveal.report.experiment_page import PagePlot, PageTable, Picture, Section, write_experiment_page
from foveal.report.numbers import MISSING, counted, interval, share, with_interval
from foveal.report.tables import Cell
from foveal.run_folder import RunFolder

MAX_CLASSES_DRAWN = 60
MAX_PICTURES = 12

_ROW_PX = 24


def write_extend_page(run: RunFolder, extended: Extended, *, old_model: Path) -> Path:
    """Write `extend.html` beside the run's report.

    Raises:
        FovealError: the page cannot be written.
        MissingExtraError: matplotlib or jinja2 is not installed.
    """
    cost, found = extended.cost, extended.cost.comparison
    sections = [_by_class(extended), _data(extended), *_lost(run, extended)]
    tiles = [
        ("Old classes, before", share(found.first["accuracy"]), "accuracy on their test images"),
        ("Old classes, after", share(found.second["accuracy"]), "on the same images"),
        ("New classes", share(cost.new_accuracy), interval(cost.new_interval) if cost.new_interval else ""),
    ]
    return write_experiment_page(
        run.path / PAGE_FILE,
        name=run.path.absolute().name,
        title="extension",
        verdict=extended.sentences(),
        sections=sections,
        made_from=str(run.path),
        tiles=tiles,
        facts=[
            ("old model", str(old_model)),
            ("new classes", ", ".join(cost.names_of_new)),
            ("best epoch", str(extended.outcome.best_epoch)),
        ],
        next_commands=[f"foveal predict {shlex.quote(str(run.path))} PHOTOS --out predictions.csv"],
    )


def draw_changes(classes: tuple[ClassChange, ...]) -> str:
    """Recall before and after, a line for each class, as SVG text."""
    return draw_svg(partial(_draw, classes=classes), width_px=560, height_px=70 + _ROW_PX * len(classes))


def _by_class(extended: Extended) -> Section:
    classes = extended.cost.classes
    plots: tuple[PagePlot, ...] = ()
    if len(classes) <= MAX_CLASSES_DRAWN:
        told = "; ".join(f"{each.name}: {share(each.before)} before, {share(each.after)} after" for each in classes)
        plots = (PagePlot(draw_changes(classes), f"Recall of each class. {told}"),)
    table = PageTable(
        head=("Class", "Test images", "Recall before", "Recall after", "Difference", "p", "Taken for a new class"),
        rows=[_row(each) for each in classes],
        caption="Old classes are measured on the same test images before and after; p is McNemar's, corrected for the "
        "number of classes (Holm).",
        marked_rows=[number for number, each in enumerate(classes) if each.is_new],
    )
    found = extended.cost.comparison
    paragraphs = [
        "Recall is the share of a class's test images that are right; brackets hold the 95 % interval. The highlighted "
        "classes are new.",
        f"On the old classes' {counted(found.num_images, 'test image')}: {found.both:,} right before and after, "
        f"{found.only_first:,} right before only, {found.only_second:,} right after only, {found.neither:,} never.",
    ]
    return Section("Each class before and after", paragraphs=paragraphs, plots=plots, tables=(table,))


def _row(each: ClassChange) -> list[str | Cell]:
    difference = MISSING
    if each.difference is not None:
        difference = f"{each.difference:+.3f}"
        if each.difference_interval:
            low, high = each.difference_interval
            difference += f" [{low:+.3f}, {high:+.3f}]"
    return [
        each.name + (" (new)" if each.is_new else ""),
        f"{each.num_images:,}",
        with_interval(each.before, each.before_interval),
        with_interval(each.after, each.after_interval),
        difference,
        MISSING if each.p is None else f"{each.p:.2g}",
        f"{each.num_taken_for_new:,}",
    ]


def _data(extended: Extended) -> Section:
    metrics = extended.outcome.metrics["test"]
    return Section(
        "What it was trained on",
        paragraphs=[
            *extended.notes,
            f"On the whole test split, old classes and new: {metrics.sentence()}.",
            "The old validation and test images have stayed what they were. The epoch and the temperature were chosen "
            "on validation; the test split decided nothing, and this look at it is counted.",
        ],
    )


def _lost(run: RunFolder, extended: Extended) -> list[Section]:
    """Old test images that were right before and are wrong now."""
    lost = extended.cost.lost
    if not lost:
        return []
    manifest = Manifest.read(run.manifest)
    row_of = {sample_id: row for row, sample_id in enumerate(manifest.column("sample_id"))}
    paths, boxes = manifest.absolute_paths(), manifest.boxes()
    labels, hashes = manifest.column("label"), manifest.column("sha256")
    # Spread over all of them, which stand in the order of the data, one class after the other.
    places = sorted({round(place) for place in np.linspace(0, len(lost) - 1, min(MAX_PICTURES, len(lost))).tolist()})
    shown_of = [lost[place] for place in places]
    pictures = [
        Picture(paths[row], boxes[row], hashes[row], caption=str(labels[row]), lines=(f"now: {said}",), is_wrong=True)
        for row, said in ((row_of[sample_id], said) for sample_id, said in shown_of)
    ]
    text = f"{counted(len(lost), 'old test image')} were right before and are wrong now."
    if len(lost) == 1:
        text = "One old test image was right before and is wrong now."
    shown = f" {MAX_PICTURES} of them:" if len(lost) > MAX_PICTURES else ""
    return [Section("Right before, wrong now", paragraphs=[text + shown], pictures=pictures)]


def _draw(figure: Any, *, classes: tuple[ClassChange, ...]) -> None:
    axes = figure.subplots()
    colour = SPLIT_COLOURS["test"]
    for place, each in enumerate(classes):
        if each.before is not None and each.after is not None:
            axes.plot([each.before, each.after], [place - 0.14, place + 0.14], color=MUTED, linewidth=1, zorder=1)
        for value, bounds, shift, is_after in (
            (each.before, each.before_interval, -0.14, False),
            (each.after, each.after_interval, 0.14, True),
        ):
            if value is None:
                continue
            own = colour if is_after else MUTED
            if bounds:
                axes.plot(bounds, [place + shift] * 2, color=own, linewidth=1.2, alpha=0.6, zorder=2)
            axes.plot(
                [value], [place + shift], marker="o" if is_after else "D", markersize=5, color=own, linestyle="none",
                markerfacecolor=own if is_after else "white", zorder=3, clip_on=False,
            )  # fmt: skip
    names = [shortened(each.name) + (" (new)" if each.is_new else "") for each in classes]
    axes.set_yticks(range(len(classes)), names)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set(ylim=(len(classes) - 0.4, -0.6), xlim=(-0.02, 1.02), xlabel="recall on test images")
    axes.grid(visible=True, axis="x")
    axes.set_title("Before: open diamond; after: dot; lines: 95 % intervals", fontweight="normal")
