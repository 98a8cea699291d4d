"""The page of a probe: which head is the best, what the others are worth beside it, and what it all cost."""

import shlex
from collections.abc import Sequence
from functools import partial
from itertools import groupby
from typing import Any

from foveal.evaluation.drawing import GRID, MUTED, SPLIT_COLOURS, SPLIT_LINES, draw_svg, split_name
from foveal.experiments.probe.result import ProbeOutcome, Row
from foveal.report.experiment_page import PagePlot, PageTable, Section, write_experiment_page
from foveal.report.numbers import MISSING, counted, duration, fine, interval, share
from foveal.report.tables import METRIC_NAMES, Cell
from foveal.run_folder import ExperimentFolder

_SHOWN = ("accuracy", "balanced_accuracy", "macro_f1", "macro_roc_auc", "log_loss", "brier", "ece")
_LINES = (("-", "o"), ("--", "s"), ("-.", "D"), (":", "^"), ((0, (5, 1)), "v"))
_INKS = ("#0b5fa5", "#c77700", "#00896b", "#8a3ffc", "#b8321a")
_VERDICTS = {"better": "better", "worse": "worse", "undecided": "cannot be told apart"}

Asked = tuple[str, str | None, Sequence[str]]
"""DATA, the file of a configuration, and the overrides on top, as they were given."""
ASKED: Asked = ("DATA", None, ())


def build_probe_page(
    outcome: ProbeOutcome, folder: ExperimentFolder, skipped: Sequence[str] = (), *, asked: Asked = ASKED
) -> None:
    """Write the probe's page.

    Args:
        outcome: what was found.
        folder: of the probe, with the winner's run.
        skipped: what was left out, each with why.
        asked: what the probe was asked, which a training is to be asked as well.

    Raises:
        FovealError: the page cannot be written, or the winner's evaluation is not there.
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    best = outcome.best
    sections = [_heads(outcome), *_sweep(outcome), _winner(outcome, folder), _figures(outcome), _grids(outcome)]
    write_experiment_page(
        folder.report,
        name=folder.path.absolute().name,
        title="probe of a frozen backbone",
        verdict=[*outcome.sentences, *skipped],
        sections=sections,
        made_from=str(folder.path),
        next_commands=next_commands(outcome, folder, asked),
        tiles=[
            ("Test accuracy", share(best["test_accuracy"]), _bounds(best)),
            ("Guessing", share(best["majority_baseline_accuracy"]), "the largest class of training"),
            ("All of it took", duration(outcome.seconds), "features and fits"),
        ],
        facts=[
            ("Winner", f"{best['title']} on {best['backbone']}, {best['size_px']} px"),
            ("Features", f"{best['num_features']:,} an image, computed once"),
            ("Test images", f"{best['num_images']:,} in {counted(len(best['class_names']), 'class', 'classes')}"),
        ],
    )


def next_commands(outcome: ProbeOutcome, folder: ExperimentFolder, asked: Asked = ASKED) -> list[str]:
    """What to type after a probe; a training as asked has the same images in the same splits, to be compared on."""
    best, run = outcome.best, folder.run(outcome.winner).path
    starts = best["weights"] if len(set(best["weights"])) > 1 else best["weights"][:1]
    settings = {"model.name": best["backbone"].split("+"), "model.weights": starts}
    words = [f"{key}={_listed(each)}" for key, each in settings.items()]
    words += [f"data.image_size={best['size_px']}"]
    data, config, overrides = asked
    decided = {setting.partition("=")[0] for setting in words}
    kept = [setting for setting in overrides if setting.partition("=")[0].strip() not in decided]
    if config is None:
        words = [setting for setting in words if setting != "model.weights=pretrained"]
    given = [] if config is None else ["--config", config]
    given += [word for setting in (*kept, *words) for word in ("--set", setting)]
    return [
        f"foveal predict {shlex.quote(str(folder.path))} PHOTOS --out predictions.csv",
        shlex.join(["foveal", "train", data, "--out", "runs/tuned", *given]),
        f"foveal compare {shlex.quote(str(run))} runs/tuned",
    ]


def _listed(values: Sequence[str]) -> str:
    """One value by itself, several as a list of YAML."""
    return values[0] if len(values) == 1 else f"[{', '.join(values)}]"


def _heads(outcome: ProbeOutcome) -> Section:
    rows = sorted(outcome.rows, key=lambda row: row["place"])
    several = len({(row["backbone"], row["size_px"]) for row in rows}) > 1
    cells: list[Sequence[str | Cell]] = [
        [_label(row, several), *_accuracies(row), _beside(row), duration(row["fit_seconds"])] for row in rows
    ]
    head = ["Head", "Train", "Validation", "Test", "Beside the winner, on test", "Fit and choice"]
    guess = share(rows[0]["majority_baseline_accuracy"])
    table = PageTable(
        head,
        [*cells, ["Guessing the largest class", "", "", guess, "", ""]],
        caption="Accuracy, the best on validation first",
        text_columns=(4,),
        marked_rows=(0,),
    )
    features = {(row["backbone"], row["size_px"]): row["feature_seconds"] for row in rows}
    paragraphs = [
        "Every head was chosen from its grid, and the winner from the heads, by macro F1 on validation, ties by log "
        "loss. The test images chose nothing; the test figures of the other heads are there to be read.",
        f"The features took {', '.join(duration(value) for value in features.values())}, and are kept for every later "
        "probe or frozen training with the same weights.",
    ]
    if len(rows) > 1:
        paragraphs.append(
            "A head is better or worse than the winner where the interval of the difference leaves 0 out and McNemar's "
            f"test, corrected for {counted(len(rows) - 1, 'comparison')}, gives p below 0.05; else the two cannot be "
            "told apart."
        )
    if any(row["head"] == "knn" for row in rows):
        paragraphs.append("In the column of training, each image is among its own nearest neighbours.")
    plot = PagePlot(
        draw_svg(lambda figure: _draw_heads(figure, rows, several), width_px=560, height_px=90 + 30 * len(rows)),
        "Accuracy of each head on train, validation and test, with the interval of test",
    )
    return Section("Heads", paragraphs, [table], [plot])


def _accuracies(row: Row) -> list[Cell]:
    val = row["val_accuracy_interval"]
    return [
        Cell(share(row["train_accuracy"])),
        Cell(share(row["val_accuracy"]), interval(val) if val else ""),
        Cell(share(row["test_accuracy"]), _bounds(row)),
    ]


def _beside(row: Row) -> str:
    pair = row["against_winner"]
    if pair is None:
        return "the winner"
    bounds = pair["intervals"].get("accuracy")
    within = f" [{_signed(bounds[0])}, {_signed(bounds[1])}]" if bounds else ""
    return f"{_VERDICTS[pair['verdict']]}: {_signed(pair['differences']['accuracy'])}{within}"


def _signed(value: float) -> str:
    """A difference with its sign; of nothing, without."""
    return f"{value:+.2f}" if round(value, 2) else "0.00"


def _winner(outcome: ProbeOutcome, folder: ExperimentFolder) -> Section:
    best = outcome.best
    plots = folder.run(outcome.winner).evaluation("test") / "plots"
    labels = {
        "confusion_counts": "Confusion matrix of the winner on test, in images",
        "reliability": "Reliability diagram of the winner on test",
    }
    drawn = [
        PagePlot((plots / f"{name}.svg").read_text(encoding="utf-8"), label)
        for name, label in labels.items()
        if (plots / f"{name}.svg").is_file()
    ]
    classes = PageTable(
        ["Class", "Images", "Precision", "Recall", "F1"],
        [
            [each["name"], f"{each['support']:,}", *(fine(each[key]) for key in ("precision", "recall", "f1"))]
            for each in best["per_class"]
        ],
        caption=f"Each class on {split_name('test').lower()}",
    )
    text = f"{best['title']} on {best['backbone']} at {best['size_px']} px: {_chosen(best)}."
    return Section("The winner", [text], plots=drawn, folded=[Section("Class by class", tables=[classes])])


def _figures(outcome: ProbeOutcome) -> Section:
    rows = sorted(outcome.rows, key=lambda row: row["place"])
    several = len({(row["backbone"], row["size_px"]) for row in rows}) > 1
    names = [name for name in _SHOWN if any(row[name] is not None for row in rows)]
    cells: list[Sequence[str | Cell]] = [
        [_label(row, several), *(_figure(row, name) for name in names)] for row in rows
    ]
    table = PageTable(["Head", *(METRIC_NAMES[name][0] for name in names)], cells, caption="On test", marked_rows=(0,))
    return Section("More figures", tables=[table])


def _figure(row: Row, name: str) -> Cell:
    bounds = row["confidence_intervals"].get(name)
    return Cell(fine(row[name]), interval(bounds) if bounds else "")


def _grids(outcome: ProbeOutcome) -> Section:
    folded = []
    for row in outcome.rows:
        points = row["grid"]
        table = PageTable(
            ["Tried", "Macro F1", "Log loss", "Seconds"],
            [
                [
                    ", ".join(f"{key}={_plain(value)}" for key, value in point["chosen"].items()),
                    fine(point["val_macro_f1"]),
                    fine(point["val_log_loss"]),
                    f"{point['seconds']:.2f}",
                ]
                for point in points
            ],
            caption="On validation",
            marked_rows=[at for at, point in enumerate(points) if point["chosen"] == row["chosen"]],
        )
        folded.append(Section(_label(row, several=True), row["notes"], [table]))
    return Section("What was tried", ["Each head with its grid; the chosen point is marked."], folded=folded)


def _sweep(outcome: ProbeOutcome) -> list[Section]:
    """Accuracy over the image size, where there are several."""
    if len({row["size_px"] for row in outcome.rows}) < 2:
        return []
    plots = []
    for backbone, rows in groupby(sorted(outcome.rows, key=lambda row: row["backbone"]), lambda row: row["backbone"]):
        of_backbone = list(rows)
        svg = draw_svg(partial(_draw_sweep, rows=of_backbone), width_px=560, height_px=320)
        plots.append(PagePlot(svg, f"Test accuracy of each head on {backbone} over the image size"))
    text = "Test accuracy with its 95 % interval; the size of the winner was chosen on validation like all else."
    return [Section("Image size", [text], plots=plots)]


def _draw_heads(figure: Any, rows: Sequence[Row], several: bool) -> None:
    axes = figure.subplots()
    places = range(len(rows), 0, -1)
    axes.axvline(rows[0]["majority_baseline_accuracy"], color=MUTED, linestyle=":", label="guessing")
    for split in ("train", "val", "test"):
        values = [row[f"{split}_accuracy"] for row in rows]
        marker = SPLIT_LINES[split][1]
        axes.plot(values, places, marker, color=SPLIT_COLOURS[split], label=split_name(split).lower(), markersize=6)
    for row, place in zip(rows, places, strict=True):
        if bounds := row["confidence_intervals"].get("accuracy"):
            axes.plot(bounds, (place, place), "-", color=SPLIT_COLOURS["test"], linewidth=2, alpha=0.5)
    axes.set_yticks(list(places), [_label(row, several) for row in rows])
    axes.set_ylim(0.4, len(rows) + 0.6)
    axes.set_xlim(-0.02, 1.02)
    axes.grid(axis="x", color=GRID)
    axes.set_xlabel("accuracy")
    figure.legend(loc="outside upper right", ncols=4)


def _draw_sweep(figure: Any, *, rows: Sequence[Row]) -> None:
    axes = figure.subplots()
    heads = list(dict.fromkeys(row["title"] for row in rows))
    sizes = sorted({row["size_px"] for row in rows})
    for number, title in enumerate(heads):
        line, marker = _LINES[number % len(_LINES)]
        points = sorted((row for row in rows if row["title"] == title), key=lambda row: row["size_px"])
        # Side by side, so that the intervals of one size do not hide each other.
        across = [sizes.index(row["size_px"]) + 0.04 * (number - (len(heads) - 1) / 2) for row in points]
        values = [row["test_accuracy"] for row in points]
        ends = [
            row["confidence_intervals"].get("accuracy") or (value, value)
            for row, value in zip(points, values, strict=True)
        ]
        errors = [[value - end[0] for value, end in zip(values, ends, strict=True)],
                  [end[1] - value for value, end in zip(values, ends, strict=True)]]  # fmt: skip
        ink = _INKS[number % len(_INKS)]
        axes.errorbar(across, values, errors, linestyle=line, marker=marker, color=ink, label=title, markersize=5)
    axes.set_xticks(range(len(sizes)), [f"{size} px" for size in sizes])
    axes.grid(axis="y", color=GRID)
    axes.set_ylabel("test accuracy")
    figure.legend(loc="outside upper center", ncols=3)


def _label(row: Row, several: bool) -> str:
    return f"{row['title']}, {row['backbone']}, {row['size_px']} px" if several else str(row["title"])


def _bounds(row: Row) -> str:
    bounds = row["confidence_intervals"].get("accuracy")
    return interval(bounds) if bounds else ""


def _chosen(row: Row) -> str:
    return ", ".join(f"{key} {_plain(value)}" for key, value in row["chosen"].items()) or MISSING


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
