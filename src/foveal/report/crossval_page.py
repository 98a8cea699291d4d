"""The page of a cross-validation, made from its folder alone."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foveal.data.manifest import Manifest
from foveal.experiments.crossval.folds import PREDICTIONS, Crossval, read_finished
from foveal.files import read_json
from foveal.metrics import SplitMetrics
from foveal.model.bundle import BundleSpec, read_bundle
from foveal.model.bundle_spec import member_folder
from foveal.pixels.policy import PixelPolicy
from foveal.report.contents import read_epochs
from foveal.report.experiment_page import PagePlot, PageTable, Section, write_experiment_page
from foveal.report.numbers import counted, duration, fine, interval, share
from foveal.report.tables import Cell
from foveal.report.vote_figures import Dot, draw_courses, draw_dots
from foveal.report.vote_tables import class_rows, evaluation_plots, spread_rows, surest_mistakes
from foveal.run_folder import ExperimentFolder


def build_crossval_page(folder: ExperimentFolder) -> Path:
    """Write `report.html`.

    Raises:
        ArtifactError: the cross-validation has not come to its end, or a file of it is damaged.
        FovealError: the page cannot be written.
        MissingExtraError: jinja2, matplotlib or pyarrow is not installed.
    """
    done, summary = read_finished(folder), read_json(folder.summary)
    manifest = Manifest.read(folder.manifest)
    first = read_bundle(folder.bundle / member_folder(0)).spec
    return write_experiment_page(
        folder.report,
        name=folder.path.resolve().name,
        title="cross-validation",
        verdict=done.sentences,
        sections=_sections(done, summary, manifest),
        made_from=str(folder.path),
        next_commands=[
            f"foveal predict {shlex.quote(str(folder.path))} PHOTOS --out predictions.csv",
            f"foveal compare {shlex.quote(str(folder.path))} OTHER_RUN",
        ],
        tiles=_tiles(done, summary),
        facts=_facts(summary, manifest, first),
        policy=PixelPolicy(background=first.preprocessing.background),
        box_margin=first.training_data.box_margin,
    )


def _sections(done: Crossval, summary: Mapping[str, Any], manifest: Manifest) -> list[Section]:
    vote = summary["fold_vote"]
    sections = [
        Section(
            "Folds",
            [
                "Each model was measured on the fold that it did not see; its epoch and its temperature were chosen "
                "on the validation part of the other folds."
            ],
            [_fold_table(done, has_test=vote is not None)],
            [_fold_dots(done)],
        )
    ]
    if vote is not None:
        sections.append(_vote_section(done, vote))
    others = {"Out of fold": done.out_of_fold, **{f"{kind.capitalize()} vote": m for kind, m in done.votes.items()}}
    sections.append(
        Section(
            "Every metric",
            ["The mean is of single models on their held-out folds; the votes are on the test that was kept aside."],
            [spread_rows(done.mean, done.std, others, "Every metric, with standard deviation or 95 % interval")],
        )
    )
    sections += _mistakes(done, manifest)
    sections.append(_courses(done))
    sections.append(_time(done, summary))
    return sections


def _fold_table(done: Crossval, *, has_test: bool) -> PageTable:
    head = ["Fold", "Trained on", "Held out", "Accuracy", "Macro F1", "Log loss", "Training", "Validation", "Epoch"]
    head += ["On test"] if has_test else []
    rows: list[list[str | Cell]] = []
    for row in done.rows:
        bounds = row["confidence_intervals"]
        cells: list[str | Cell] = [row["name"], f"{row['num_train']:,}", f"{row['num_images']:,}"]
        cells += [
            Cell(fine(row[key]), interval(bounds[key]) if key in bounds else "")
            for key in ("accuracy", "macro_f1", "log_loss")
        ]
        cells += [fine(row["train_accuracy"]), fine(row["val_accuracy"]), str(row["best_epoch"])]
        rows.append(cells + ([fine(row["kept_aside_accuracy"])] if has_test else []))
    keys = ("accuracy", "macro_f1", "log_loss", "train_accuracy", "val_accuracy")
    mean, std = done.mean, done.std
    last: list[str | Cell] = ["mean ± std", f"{mean['num_train']:,.0f}", f"{mean['num_images']:,.0f}"]
    last += [Cell(fine(mean[key]), "" if std[key] is None else f"± {fine(std[key])}") for key in keys]
    last.append(f"{mean['best_epoch']:.1f}")
    if has_test:
        last.append(Cell(fine(mean["kept_aside_accuracy"]), f"± {fine(std['kept_aside_accuracy'])}"))
    notes = "Training is of the best epoch as the training saw it: augmented, and while the weights moved."
    return PageTable(head, [*rows, last], "Each fold, with 95 % intervals", notes=(notes,), marked_rows=[len(rows)])


def _fold_dots(done: Crossval) -> PagePlot:
    dots = [_dot(row["name"], row["accuracy"], row["confidence_intervals"].get("accuracy")) for row in done.rows]
    pooled = done.out_of_fold
    dots.append(
        Dot("all held-out images", pooled.accuracy or 0.0, pooled.confidence_intervals.get("accuracy"), is_vote=True)
    )
    title = "Accuracy on held-out folds"
    return PagePlot(
        draw_dots(dots, title=title, mean=done.mean["accuracy"]), "Accuracy of each fold with its interval."
    )


def _dot(name: str, value: float | None, bounds: Sequence[float] | None, *, is_vote: bool = False) -> Dot:
    return Dot(name, value or 0.0, None if bounds is None else (bounds[0], bounds[1]), is_vote)


def _vote_section(done: Crossval, vote: Mapping[str, Any]) -> Section:
    dots = [_dot(row["name"], row["kept_aside_accuracy"], None) for row in done.rows]
    dots += [
        _dot(f"{kind} vote", metrics.accuracy, metrics.confidence_intervals.get("accuracy"), is_vote=True)
        for kind, metrics in done.votes.items()
    ]
    mean = done.mean["kept_aside_accuracy"]
    found = vote["soft_less_mean_of_singles"]
    against = vote["soft_against_best_single"]
    bounds = found["interval"]
    rows: list[list[str | Cell]] = [
        [
            "soft vote less the mean of single models",
            Cell(f"{found['accuracy']:+.3f}", interval(bounds) if bounds else ""),
        ],
        [
            f"soft vote less {vote['best_single']}, the best on its inner validation",
            Cell(
                f"{against['differences']['accuracy']:+.3f}",
                interval(against["intervals"]["accuracy"]) if "accuracy" in against["intervals"] else "",
            ),
        ],
        ["images that only the vote has right", f"{against['only_second_right']:,}"],
        ["images that only that fold has right", f"{against['only_first_right']:,}"],
        ["McNemar’s p", fine(against["mcnemar_p"])],
    ]
    return Section(
        "Vote",
        [
            "No fold was trained on, or chosen by, the test split; it was looked at once, with all models.",
            "The vote takes the bundle of all models: it costs their time together.",
        ],
        [PageTable(["Accuracy on test", ""], rows, "The vote against single models, paired on the same images")],
        [
            PagePlot(
                draw_dots(dots, title="Accuracy on the kept-aside test", mean=mean), "Single models and votes on test."
            )
        ],
    )


def _mistakes(done: Crossval, manifest: Manifest) -> list[Section]:
    pictures = surest_mistakes(manifest, done.folder.path / PREDICTIONS, done.out_of_fold.class_names)
    text = "Every image outside of test, predicted by the model that did not see it."
    found = [
        Section(
            "Classes",
            [text],
            [class_rows(done.out_of_fold, "Each class, out of fold")],
            evaluation_plots(done.folder.path / "evaluation" / "out_of_fold"),
        )
    ]
    if pictures:
        words = "Wrong with the highest probability: hard images, or labels that are worth a second look."
        found.append(Section("Surest mistakes", [words], pictures=pictures))
    return found


def _courses(done: Crossval) -> Section:
    courses = {row["name"]: read_epochs(done.folder.run(row["name"])) for row in done.rows}
    plots = [
        PagePlot(draw_courses(courses, column, title=title), f"{title}, one line a fold.")
        for column, title in (
            ("val_loss", "Loss on inner validation"),
            ("val_accuracy", "Accuracy on inner validation"),
        )
    ]
    return Section("Training", ["One line a fold. foveal evaluate runs/NAME makes a run’s own page."], plots=plots)


def _time(done: Crossval, summary: Mapping[str, Any]) -> Section:
    timings = read_json(done.folder.timings)
    seconds = summary["seconds"]
    rows: list[list[str | Cell]] = [
        [name, duration(row["wall_seconds"]), duration(row["cpu_seconds"])] for name, row in timings.items()
    ]
    words = (
        f"Training took {duration(seconds['training'])} of {duration(seconds['total'])}; everything else, from reading "
        f"the images to the votes, is {100 * seconds['share_outside_training']:.1f} % of the time."
    )
    return Section("Time", [words], [PageTable(["Stage", "Wall", "CPU"], rows)])


def _tiles(done: Crossval, summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    spread = done.std["accuracy"]
    pooled: SplitMetrics = done.out_of_fold
    tiles = [
        ("single model", share(done.mean["accuracy"]), "" if spread is None else f"± {share(spread)} over folds"),
        ("out of fold", share(pooled.accuracy), _beside(pooled)),
    ]
    if soft := done.votes.get("soft"):
        tiles.append(("soft vote on test", share(soft.accuracy), _beside(soft)))
        gain = summary["fold_vote"]["soft_less_mean_of_singles"]
        bounds = gain["interval"]
        tiles.append(("gain of the vote", f"{gain['accuracy']:+.3f}", interval(bounds) if bounds else ""))
    return tiles


def _beside(metrics: SplitMetrics) -> str:
    bounds = metrics.confidence_intervals.get("accuracy")
    return interval(bounds) if bounds else ""


def _facts(summary: Mapping[str, Any], manifest: Manifest, first: BundleSpec) -> list[tuple[str, str]]:
    num_test, num_rest = len(manifest.of_split("test")), len(manifest.of_split("train"))
    drawn = f", drawn {summary['repeats']} times" if summary["repeats"] > 1 else ""
    quarantined = len(manifest) - len(manifest.usable())
    pairs = [
        ("Folds", f"{summary['num_folds']}{drawn}; {counted(num_rest, 'image')} in them"),
        ("Kept aside", f"{counted(num_test, 'image')} for the test" if num_test else "nothing"),
        ("Model", f"{_names(first)}, {first.preprocessing.size_px} px"),
        ("Classes", f"{len(manifest.class_names):,}"),
    ]
    if quarantined:
        pairs.append(("Quarantined", counted(quarantined, "row")))
    return pairs


def _names(spec: BundleSpec) -> str:
    name = spec.architecture.name
    return name if isinstance(name, str) else " + ".join(name)
