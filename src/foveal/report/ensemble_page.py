"""The page of an ensemble, made from its folder alone."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foveal.data.manifest import Manifest
from foveal.experiments.ensemble.voting import Ensemble, read_finished
from foveal.files import read_json
from foveal.metrics import SplitMetrics
from foveal.model.bundle import Bundle, BundleSpec, open_bundle
from foveal.pixels.policy import PixelPolicy
from foveal.report.experiment_page import PagePlot, PageTable, Section, write_experiment_page
from foveal.report.numbers import counted, fine, interval, percent, share
from foveal.report.tables import Cell
from foveal.report.vote_figures import Dot, draw_dots
from foveal.report.vote_tables import class_rows, evaluation_plots, metric_rows, surest_mistakes
from foveal.run_folder import ExperimentFolder


def build_ensemble_page(folder: ExperimentFolder) -> Path:
    """Write `report.html`.

    Raises:
        ArtifactError: the ensemble has not come to its end, or a file of it is damaged.
        FovealError: the page cannot be written.
        MissingExtraError: jinja2, matplotlib or pyarrow is not installed.
    """
    done, summary = read_finished(folder), read_json(folder.summary)
    manifest, bundle = Manifest.read(folder.manifest), open_bundle(folder.bundle)
    first: BundleSpec = bundle.spec if isinstance(bundle, Bundle) else bundle.members[0].spec
    place = folder.path / "evaluation"
    splits = {split: SplitMetrics.read(place / split / "metrics.json") for split in ("val", "test")}
    return write_experiment_page(
        folder.report,
        name=folder.path.resolve().name,
        title=f"ensemble, {summary['vote']} vote",
        verdict=done.sentences,
        sections=_sections(done, summary, manifest, splits),
        made_from=str(folder.path),
        next_commands=[f"foveal predict {shlex.quote(str(folder.path))} PHOTOS --out predictions.csv"],
        tiles=_tiles(done, summary),
        facts=_facts(done, summary, manifest),
        policy=PixelPolicy(background=first.preprocessing.background),
        box_margin=first.training_data.box_margin,
    )


def _sections(
    done: Ensemble, summary: Mapping[str, Any], manifest: Manifest, splits: Mapping[str, SplitMetrics]
) -> list[Section]:
    test = splits["test"]
    sections = [
        Section(
            "Members",
            ["Weights and temperature were fitted on validation; nothing was chosen by test."],
            [_member_table(done), *_disagreements(summary)],
            [_dots(done)],
        ),
        Section(
            "Against the best member",
            [f"{done.best_member} is the best member on validation. Both saw the same test images."],
            [_paired_table(done)],
        ),
        Section(
            "Every metric",
            ["Of the ensemble, as its bundle says it."],
            [metric_rows({"Validation": splits["val"], "Test": test}, "Metrics with 95 % intervals")],
        ),
        Section(
            "Classes",
            [],
            [class_rows(test, "Each class of the test split")],
            evaluation_plots(done.folder.path / "evaluation" / "test"),
        ),
    ]
    predictions = done.folder.path / "evaluation" / "test" / "predictions.parquet"
    if pictures := surest_mistakes(manifest, predictions, test.class_names):
        words = "Test images that all members together are most wrong about."
        sections.append(Section("Surest mistakes", [words], pictures=pictures))
    return sections


def _member_table(done: Ensemble) -> PageTable:
    head = ["Model", "Network", "Size", "Weight", "Validation", "Test", "Macro F1", "Log loss", "ms an image"]
    rows: list[list[str | Cell]] = []
    for row, validation in zip(done.rows, done.validation, strict=True):
        bounds, latency = row["confidence_intervals"], row["latency_ms"]
        size = "" if row["image_size"] is None else f"{row['image_size']} px"
        rows.append(
            [
                row["name"],
                row["model"],
                size,
                fine(row["weight"]),
                fine(validation["accuracy"]),
                *(
                    Cell(fine(row[key]), interval(bounds[key]) if key in bounds else "")
                    for key in ("accuracy", "macro_f1", "log_loss")
                ),
                f"{latency['p50']:.1f}" if latency else "",
            ]
        )
    return PageTable(head, rows, "Members and their vote, with 95 % intervals", (), [1], [len(rows) - 1])


def _dots(done: Ensemble) -> PagePlot:
    dots = [
        Dot(row["name"], row["accuracy"], _pair(row["confidence_intervals"].get("accuracy")), row is done.rows[-1])
        for row in done.rows
    ]
    return PagePlot(draw_dots(dots, title="Accuracy on test"), "Accuracy of each member and of their vote on test.")


def _pair(bounds: Sequence[float] | None) -> tuple[float, float] | None:
    return None if bounds is None else (bounds[0], bounds[1])


def _disagreements(summary: Mapping[str, Any]) -> list[PageTable]:
    pairs = sorted(summary["disagreement_on_validation"], key=lambda pair: -pair["share"])[:40]
    rows = [[f"{pair['first']} and {pair['second']}", percent(pair["share"])] for pair in pairs]
    caption = "How often two members predict different classes, on validation"
    return [PageTable(["Members", "Images"], rows, caption)] if rows else []


def _paired_table(done: Ensemble) -> PageTable:
    found = done.comparison
    names = {"accuracy": "Accuracy", "balanced_accuracy": "Balanced accuracy", "macro_f1": "Macro F1"}
    rows: list[list[str | Cell]] = []
    for key, name in {**names, "log_loss": "Log loss, lower is better"}.items():
        bounds = found["intervals"].get(key)
        difference = Cell(f"{found['differences'][key]:+.3f}", interval(bounds) if bounds else "")
        rows.append([name, fine(found["first"][key]), fine(found["second"][key]), difference])
    counts = (
        f"The ensemble alone is right on {counted(found['only_second_right'], 'image')}, {done.best_member} alone on "
        f"{found['only_first_right']:,}; McNemar’s p is {fine(found['mcnemar_p'])}."
    )
    return PageTable(["Test", done.best_member, "Ensemble", "Difference"], rows, counts)


def _tiles(done: Ensemble, summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    last = done.rows[-1]
    bounds, gain = last["confidence_intervals"].get("accuracy"), done.comparison["differences"]["accuracy"]
    of_gain = done.comparison["intervals"].get("accuracy")
    tiles = [
        ("accuracy on test", share(last["accuracy"]), interval(bounds) if bounds else ""),
        ("against the best member", f"{gain:+.3f}", interval(of_gain) if of_gain else ""),
        ("members", str(sum(weight > 0 for weight in summary["weights"].values())), f"of {len(summary['weights'])}"),
    ]
    if latency := last["latency_ms"]:
        tiles.append(("one image", f"{latency['p50']:.1f} ms", "median, decoding included"))
    return tiles


def _facts(done: Ensemble, summary: Mapping[str, Any], manifest: Manifest) -> list[tuple[str, str]]:
    counts = [counted(len(manifest.of_split(split)), "image") for split in ("val", "test")]
    return [
        ("Fitted on", f"{counts[0]} of validation"),
        ("Measured on", f"{counts[1]} of test"),
        ("Vote", f"{summary['vote']}, temperature {fine(summary['temperature'])}"),
        ("Classes", f"{len(done.rows[-1]['class_names']):,}"),
    ]
