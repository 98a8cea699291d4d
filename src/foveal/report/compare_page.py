"""The page of a comparison: who is better, what it costs, and where the models disagree."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveal.evaluation.drawing import split_name
from foveal.experiments.compare.result import Comparison, Pair
from foveal.files import write_text
from foveal.report.compare_figures import draw_confusions, draw_front
from foveal.report.experiment_page import PagePlot, PageTable, Picture, Section, write_experiment_page
from foveal.report.numbers import MISSING, counted, duration, fine, interval, percent, share
from foveal.report.tables import METRIC_NAMES, Cell, Footnotes

MAX_PICTURES = 24
MAX_LINES = 8
"""Models that are named under a picture."""

Format = Callable[[Any], str]


def build_compare_page(comparison: Comparison, folder: Path) -> Path:
    """Write the comparison's page, and its plot of quality against latency to `plots/`.

    Args:
        comparison: what was found.
        folder: of the comparison.

    Returns:
        The page, report.html in the folder.

    Raises:
        FovealError: the page cannot be written.
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    sections = [
        _quality(comparison),
        _verdicts(comparison),
        _costs(comparison, folder),
        _confusions(comparison),
        _disagreements(comparison),
    ]
    return write_experiment_page(
        folder / "report.html",
        name=folder.absolute().name,
        title=f"comparison of {counted(len(comparison.rows), 'model')}",
        verdict=[comparison.headline, *comparison.notes],
        sections=[section for section in sections if section is not None],
        made_from=str(folder),
        next_commands=next_commands(comparison, folder),
        tiles=_tiles(comparison),
        facts=_facts(comparison),
    )


def next_commands(comparison: Comparison, folder: Path) -> list[str]:
    """What to type after a comparison: choose on validation where test was compared, and predict with the best."""
    best = max(comparison.rows, key=lambda row: row["accuracy"])
    commands = [f"foveal predict {shlex.quote(best['path'])} PHOTOS --out predictions.csv"]
    has_validation = all(row["kind"] != "crossval" for row in comparison.rows)  # all its other images are of some fold
    if comparison.split == "test" and comparison.data is None and len(comparison.rows) > 1 and has_validation:
        models = [row["path"] for row in comparison.rows]
        commands.insert(0, shlex.join(["foveal", "compare", *models, "--split", "val", "--out", f"{folder}-val"]))
    return commands


def amount(value: float | None) -> str:
    """A large number with three significant digits: "11.2 M"."""
    if value is None:
        return MISSING
    for step, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= step:
            return f"{value / step:.3g}\N{NO-BREAK SPACE}{sign}"
    return f"{value:.0f}"


def milliseconds(value: float | None) -> str:
    """A short time with two or three significant digits."""
    return (
        MISSING
        if value is None
        else f"{value:.0f}"
        if value >= 100
        else f"{value:.1f}"
        if value >= 1
        else f"{value:.2f}"
    )


def _tiles(comparison: Comparison) -> list[tuple[str, str, str]]:
    rows = comparison.rows
    best = max(rows, key=lambda row: row["accuracy"])
    tiles = [("Highest accuracy", share(best["accuracy"]), best["name"])]
    timed = [row for row in rows if row["latency_cpu_p50_ms"] is not None]
    if timed:
        fastest = min(timed, key=lambda row: row["latency_cpu_p50_ms"])
        tiles.append(("Fastest for one image", f"{milliseconds(fastest['latency_cpu_p50_ms'])} ms", fastest["name"]))
    smallest = min(rows, key=lambda row: row["bundle_mib"])
    tiles.append(("Smallest bundle", _mib(smallest["bundle_mib"]), smallest["name"]))
    trained = [row for row in rows if row["train_wall_seconds"] is not None]
    if trained:
        quickest = min(trained, key=lambda row: row["train_wall_seconds"])
        tiles.append(("Quickest training", duration(quickest["train_wall_seconds"]), quickest["name"]))
    return tiles


def _facts(comparison: Comparison) -> list[tuple[str, str]]:
    number = len(comparison.aligned)
    where = f"of {comparison.data}" if comparison.data else f"of the {split_name(comparison.split)} split"
    machine = comparison.machine
    timed_on = f"{machine['cpu']}, {counted(machine['num_threads'], 'thread')}"
    if machine["gpu"]:
        timed_on += f"; {machine['gpu']}"
    classes = counted(len(comparison.aligned.class_names), "class", "classes")
    return [("Images", f"{number:,} {where}, {classes}"), ("Timed on", timed_on)]


def _quality(comparison: Comparison) -> Section:
    notes = Footnotes()
    keys = ("accuracy", "macro_precision", "macro_recall", "macro_f1", "log_loss", "ece")
    best = max(row["accuracy"] for row in comparison.rows)
    rows: list[list[str | Cell]] = []
    for row in comparison.rows:
        bounds = row["confidence_intervals"]
        cells = [
            Cell(cell.text, interval(bounds[key]) if key in bounds else "", cell.note)
            for key in keys
            for cell in [_cell(row, key, fine, notes)]
        ]
        counts = [f"{row['num_right']:,}", f"{row['num_wrong']:,}"]
        rows.append([Cell(row["name"], f"{row['architecture']}, {row['image_size_px']} px"), *cells, *counts])
    head = ["Model", *(METRIC_NAMES[key][0] for key in keys), "Right", "Wrong"]
    marked = [at for at, row in enumerate(comparison.rows) if row["accuracy"] == best]
    tables = [PageTable(head, rows, "Quality with 95 % intervals", notes.texts, marked_rows=marked)]
    if comparison.repeated:
        tables.append(_repeated_table(comparison))
    return Section(
        "Quality",
        [
            "The intervals say how far each figure by itself may be off. Whether one model is better than another is a "
            "question for the paired tests below, which look at the same images: two intervals that overlap do not "
            "answer it."
        ],
        tables,
        folded=[Section("Training, validation and test", tables=[_split_table(comparison)])],
    )


def _repeated_table(comparison: Comparison) -> PageTable:
    columns: list[tuple[str, str, Format]] = [
        ("Accuracy", "accuracy", fine),
        ("F1, macro", "macro_f1", fine),
        ("Log loss", "log_loss", fine),
        ("Milliseconds", "latency_cpu_p50_ms", milliseconds),
        ("Training", "train_wall_seconds", duration),
    ]
    names = [name for name, _, _ in columns]
    rows: list[list[str | Cell]] = [
        [
            Cell(each.name, ", ".join(each.members)),
            *(_mean_cell(each.mean.get(key), each.std.get(key), shown) for _, key, shown in columns),
        ]
        for each in comparison.repeated
    ]
    return PageTable(["Repeated", *names], rows, "Mean ± standard deviation over models that repeat each other")


def _mean_cell(value: float | None, spread: float | None, shown: Format) -> str:
    if value is None:
        return MISSING
    return shown(value) if spread is None else f"{shown(value)} ± {shown(spread)}"


def _split_table(comparison: Comparison) -> PageTable:
    notes = Footnotes()
    rows = []
    for row in comparison.rows:
        keys = [f"{split}_{key}" for split in ("train", "val", "test") for key in ("loss", "accuracy")]
        rows.append([row["name"], *(_cell(row, key, fine, notes) for key in keys)])
    head = ["Model", *(f"{name} {key}" for name in ("Training", "Validation", "Test") for key in ("loss", "accuracy"))]
    return PageTable(head, rows, "Loss and accuracy of the images that each model was made with", notes.texts)


def _verdicts(comparison: Comparison) -> Section | None:
    if not comparison.pairs:
        return None
    several = len(comparison.pairs) > 1
    rows = [_verdict_row(pair, several=several) for pair in comparison.pairs]
    head = ["Pair", "What these images say", "Only the first right", "Only the second right", "McNemar p"]
    table = PageTable([*head, "p for all pairs"] if several else head, rows, text_columns=[1])
    paragraphs = [
        "A model counts as better only where McNemar’s test"
        + (" (corrected for the number of pairs)" if several else "")
        + " and the interval of the difference, by resampling the same images for both, say so. Below "
        "25 images on which only one is right the test is exact."
    ]
    other = PageTable(
        ["Pair", "Accuracy", "Balanced accuracy", "F1, macro", "Log loss (lower is better)"],
        [_difference_row(pair) for pair in comparison.pairs],
        "Second minus first, with 95 % intervals of each pair by itself",
    )
    return Section("Which is better", paragraphs, [table], folded=[Section("All differences", tables=[other])])


def _verdict_row(pair: Pair, *, several: bool) -> list[str | Cell]:
    paired = pair.paired
    row: list[str | Cell] = [Cell(pair.first, f"and {pair.second}"), pair.sentence + "."]
    row += [f"{paired.only_first:,}", f"{paired.only_second:,}", _p(paired.mcnemar_p)]
    return [*row, _p(paired.p)] if several else row


def _difference_row(pair: Pair) -> list[str | Cell]:
    cells: list[str | Cell] = [Cell(pair.first, f"and {pair.second}")]
    for key in ("accuracy", "balanced_accuracy", "macro_f1", "log_loss"):
        bounds = pair.paired.intervals.get(key)
        value = pair.paired.differences[key]
        cells.append(Cell(f"{value:+.3f}", "" if bounds is None else f"[{bounds[0]:+.3f}, {bounds[1]:+.3f}]"))
    return cells


def _p(value: float) -> str:
    return "<0.0001" if value < 0.0001 else f"{value:.4f}" if value < 0.001 else f"{value:.3f}"


def _costs(comparison: Comparison, folder: Path) -> Section:
    notes = Footnotes()
    columns: list[tuple[str, str, Format]] = [
        ("Parameters", "num_parameters", amount),
        ("Multiply-adds", "num_macs", amount),
        ("Bundle", "bundle_mib", _mib),
        ("Training, wall", "train_wall_seconds", duration),
        ("Training, CPU", "train_cpu_seconds", duration),
        ("All stages, wall", "total_wall_seconds", duration),
    ]
    size = PageTable(
        ["Model", *(name for name, _, _ in columns)],
        [[row["name"], *(_cell(row, key, shown, notes) for _, key, shown in columns)] for row in comparison.rows],
        "Size, and the time that the training took when it ran",
        notes.texts,
    )
    timed = [row for row in comparison.rows if row["network_cpu_p50_ms"] is not None]
    if not timed:
        return Section("Costs", ["Nothing was timed, as was asked."], [size])
    drawn = [row for row in timed if row["latency_cpu_p50_ms"] is not None]
    plots = []
    if drawn:
        svg = draw_front(drawn, comparison.front)
        write_text(folder / "plots" / "quality_against_latency.svg", svg)
        front = ", ".join(comparison.front)
        plots = [PagePlot(svg, f"Accuracy against milliseconds for one image; on the Pareto front: {front}")]
    paragraphs = [
        "All were timed here and now, in turns, so that a busy moment of the machine hits all alike."
        + (
            " On the line lie the models of which no other is both at least as accurate and at least as fast; bars are "
            "95 % intervals, and within them the front could run otherwise."
            if drawn
            else ""
        )
    ]
    tables = [
        _speed_table(comparison, kind) for kind in ("cpu", "gpu") if timed[0][f"network_{kind}_p50_ms"] is not None
    ]
    return Section("Costs", paragraphs, [*tables, size], plots)


def _speed_table(comparison: Comparison, kind: str) -> PageTable:
    notes = Footnotes()
    rows = []
    for row in comparison.rows:
        cells = [
            _cell(row, f"{what}_{kind}_{end}_ms", milliseconds, notes)
            for what in ("latency", "network")
            for end in ("p50", "p95")
        ]
        rate = _cell(row, f"images_per_second_{kind}", lambda value: f"{value:,.0f}", notes)
        joules = _cell(row, f"joules_per_1000_images_{kind}", lambda value: f"{value:,.1f}", notes)
        rows.append([row["name"], *cells, rate, joules])
    machine = comparison.machine
    where = machine["gpu"] if kind == "gpu" else f"{machine['cpu']}, {counted(machine['num_threads'], 'thread')}"
    head = ["Model", "One image, ms: median", "95th percentile", "Network alone, ms: median", "95th percentile"]
    head += [f"Images a second, batches of {machine['batch_size']}", "Joules for 1,000 images"]
    return PageTable(head, rows, f"Speed on {where}", notes.texts)


def _confusions(comparison: Comparison) -> Section:
    plots = [
        PagePlot(svg, f"Confusion matrix of {name}, in per cent of each true class")
        for name, svg in draw_confusions(comparison)
    ]
    text = "Per cent of each true class. Slate cells are right answers, red ones mistakes."
    if len(comparison.aligned.class_names) > 30:
        text += " The classes with the most mistakes of all models together are named."
    return Section("Who was taken for whom", [text], plots=plots)


def _disagreements(comparison: Comparison) -> Section | None:
    names = comparison.names
    if len(names) < 2:
        return None
    predicted = np.stack([comparison.aligned.probabilities[name].argmax(axis=1) for name in names])
    right = predicted == comparison.aligned.labels
    differ = (predicted != predicted[0]).any(axis=0)
    all_wrong = ~right.any(axis=0)
    truth = np.stack(
        [
            comparison.aligned.probabilities[name][np.arange(len(comparison.aligned)), comparison.aligned.labels]
            for name in names
        ]
    )
    # Where as many are right as wrong, first; among these by how far apart the models are. Below 1, so never a vote.
    votes = np.minimum(right.sum(axis=0), (~right).sum(axis=0))
    chosen = _first(np.flatnonzero(differ), -(votes + 0.999 * (truth.max(axis=0) - truth.min(axis=0))))
    number = int(differ.sum())
    text = f"The models do not all say the same of {number:,} of {len(comparison.aligned):,} images."
    if number > len(chosen):
        text += f" These are the {len(chosen)} that divide them most."
    text += " Under each: its true class, and what each model takes it for."
    if not number:
        text = f"All models say the same of all {len(comparison.aligned):,} images."
    folded = []
    if all_wrong.any():
        worst = _first(np.flatnonzero(all_wrong), truth.max(axis=0))
        title = f"Images that all have wrong: {int(all_wrong.sum()):,}"
        hint = "Where all agree on another class, the label may be what is wrong."
        folded = [Section(title, [hint], pictures=_pictures(comparison, worst, predicted))]
    return Section("Where they disagree", [text], pictures=_pictures(comparison, chosen, predicted), folded=folded)


def _first(rows: NDArray[np.int64], key: NDArray[np.float64]) -> NDArray[np.int64]:
    return rows[np.argsort(key[rows], kind="stable")][:MAX_PICTURES]


def _pictures(comparison: Comparison, rows: NDArray[np.int64], predicted: NDArray[np.int64]) -> list[Picture]:
    aligned = comparison.aligned
    paths, boxes, hashes = aligned.paths(), aligned.boxes(), aligned.images.column("sha256")
    pictures = []
    for row in rows.tolist():
        lines = []
        for number, name in enumerate(comparison.names[:MAX_LINES]):
            guess = int(predicted[number, row])
            mark = "✓" if guess == aligned.labels[row] else "✗"
            probability = percent(float(aligned.probabilities[name][row, guess]))
            lines.append(f"{mark} {name}: {aligned.class_names[guess]}, {probability}")
        if len(comparison.names) > MAX_LINES:
            rest = [predicted[number, row] == aligned.labels[row] for number in range(MAX_LINES, len(comparison.names))]
            lines.append(f"and {counted(len(rest), 'more model')}, {sum(rest)} right")
        caption = f"true: {aligned.class_names[aligned.labels[row]]}"
        pictures.append(Picture(paths[row], boxes[row], hashes[row], caption, lines))
    return pictures


def _cell(row: Mapping[str, Any], key: str, shown: Format, notes: Footnotes) -> Cell:
    value = row.get(key)
    if value is not None:
        return Cell(shown(value))
    reason = row["undefined"].get(key, "")
    return Cell(MISSING, note=notes.number(reason) if reason else 0)


def _mib(value: float) -> str:
    return f"{value:.2g}\N{NO-BREAK SPACE}MiB" if value < 10 else f"{value:,.0f}\N{NO-BREAK SPACE}MiB"


def sentences(comparison: Comparison) -> Sequence[str]:
    """Each pair's sentence, for a terminal."""
    return [f"{pair.sentence}." for pair in comparison.pairs]
