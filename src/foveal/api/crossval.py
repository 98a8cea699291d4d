"""`foveal crossval`: a training for each fold, mean and standard deviation, and the folds' vote."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from foveal.api.opening import refuse_inside
from foveal.errors import ConfigError
from foveal.experiments.crossval.folds import Crossval, check_wishes, cross_validate, settings_of
from foveal.experiments.crossval.plan import folds_of, keep_test_aside
from foveal.experiments.preparing import prepare
from foveal.metrics import shown
from foveal.progress import Progress, Silence
from foveal.report.crossval_page import build_crossval_page
from foveal.run_folder import ExperimentFolder
from foveal.training.config import Config, read_config


@dataclass(frozen=True)
class CrossvalResult:
    """A finished cross-validation.

    Attributes:
        outcome: its rows, means, votes and sentences.
        report: the page to open.
    """

    outcome: Crossval
    report: Path

    @property
    def folder(self) -> Path:
        """Where everything lies; itself a model, the soft vote of all folds."""
        return self.outcome.folder.path

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        outcome = self.outcome
        return {
            "folder": str(self.folder),
            "report": str(self.report),
            "bundle": str(outcome.folder.bundle),
            "rows": list(outcome.rows),
            "mean": outcome.mean,
            "std": outcome.std,
            "out_of_fold": outcome.out_of_fold.model_dump(mode="json"),
            "fold_vote": {vote: metrics.model_dump(mode="json") for vote, metrics in outcome.votes.items()} or None,
            "sentences": list(outcome.sentences),
        }

    def table(self) -> list[list[str]]:
        """A row a fold, then mean and standard deviation, for a person."""
        has_test = bool(self.outcome.votes)
        rows = [["fold", "images", "accuracy", "95 % interval", "macro F1", "log loss", "epoch"]]
        rows[0] += ["on test"] if has_test else []
        for row in self.outcome.rows:
            bounds = row["confidence_intervals"].get("accuracy")
            cells = [row["name"], f"{row['num_images']:,}", shown(row["accuracy"])]
            cells += [f"[{shown(bounds[0])}, {shown(bounds[1])}]" if bounds else "", shown(row["macro_f1"])]
            cells += [shown(row["log_loss"]), str(row["best_epoch"])]
            rows.append(cells + ([shown(row["kept_aside_accuracy"])] if has_test else []))
        for name, found in (("mean", self.outcome.mean), ("std", self.outcome.std)):
            cells = [name, "", *_of(found, "accuracy"), "", *_of(found, "macro_f1"), *_of(found, "log_loss"), ""]
            rows.append(cells + (_of(found, "kept_aside_accuracy") if has_test else []))
        return rows

    def _repr_html_(self) -> str:
        head, *body = self.table()
        table = f"<tr>{''.join(f'<th>{html.escape(cell)}</th>' for cell in head)}</tr>"
        table += "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in body)
        said = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in self.outcome.sentences)
        return (
            f"<p>Cross-validation <code>{html.escape(str(self.folder))}</code></p><table>{table}</table><ul>{said}</ul>"
        )


@dataclass(frozen=True)
class CrossvalPlan:
    """What `crossval --dry-run` shows.

    Attributes:
        num_runs: trainings.
        epochs: of each.
        model: the network, and its side in pixels.
        num_test: images that are kept aside; copies are not yet known.
        folds: name, and images to train on, to choose by, and held out, of each training.
    """

    num_runs: int
    epochs: int
    model: str
    num_test: int
    folds: tuple[tuple[str, int, int, int], ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        keys = ("name", "num_train", "num_val", "num_held_out")
        return {
            "num_runs": self.num_runs,
            "epochs": self.epochs,
            "model": self.model,
            "num_test": self.num_test,
            "folds": [dict(zip(keys, fold, strict=True)) for fold in self.folds],
        }

    def __str__(self) -> str:
        aside = f"{self.num_test:,} images are kept aside for the test" if self.num_test else "no test is kept aside"
        lines = [
            f"trainings   {self.num_runs}, of at most {self.epochs} epochs each",
            f"model       {self.model}",
            f"test        {aside}",
            *(
                f"{name:<18}{train:,} to train on, {val:,} to choose by, {held:,} held out"
                for name, train, val, held in self.folds
            ),
        ]
        return "\n".join(lines)


def crossval(
    data: str | PathLike[str],
    out: str | PathLike[str] = "crossval",
    *,
    folds: int | None = None,
    repeats: int = 1,
    config: Config | str | PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    force: bool = False,
    progress: Progress | None = None,
) -> CrossvalResult:
    """Train a model for each fold, and say how good such a model is on images that it has not seen.

    The test split is kept aside from all folds. The figures of a fold are those of the held-out images, by which
    nothing was chosen: epoch and temperature are chosen on a part of the others. All models then vote on the test.
    The same call again goes on where it was.

    Args:
        data: as for `train`; a column `fold` is respected.
        out: the folder.
        folds: how many; those of the data, or 5, if not given.
        repeats: how often folds are drawn anew and trained.
        config: a configuration, or a YAML file of one; the defaults if not given.
        overrides: texts such as "train.epochs=8", applied on top.
        force: whether to start anew in a folder that holds a cross-validation.
        progress: where to show it; nowhere if not given.

    Raises:
        ConfigError: keys or values are wrong, or not those that the folder was begun with; all at once.
        DataError: the data is not what training needs, or a class is too small for so many folds.
        ArtifactError: `out` cannot be written or holds something else.
        TrainingError: the loss is not finite, or memory ran out.
        InterruptedRunError: Ctrl-C or SIGTERM, after a checkpoint was written.

    Example:
        >>> import foveal
        >>> foveal.crossval("photos", "crossval", folds=5)  # doctest: +SKIP
    """
    check_wishes(folds, repeats)
    chosen, folder = read_config(config, overrides), ExperimentFolder(Path(out))
    _check_places(chosen)
    refuse_inside(folder.path, data)
    folder.prepare()
    with folder.lock():
        folder.begin("crossval", settings_of(data, chosen, folds, repeats), force=force)
        outcome = cross_validate(
            data,
            folder,
            chosen,
            num_folds=folds,
            repeats=repeats,
            progress=progress or Silence(),
        )
        with folder.stage("report"):
            report = build_crossval_page(folder)
    return CrossvalResult(outcome, report)


def plan_crossval(
    data: str | PathLike[str],
    *,
    folds: int | None = None,
    repeats: int = 1,
    config: Config | str | PathLike[str] | None = None,
    overrides: Sequence[str] = (),
) -> CrossvalPlan:
    """What `crossval` would do, as far as it can be told without decoding: copies are not yet known.

    Nothing is written.

    Raises:
        ConfigError: as `crossval`.
        DataError: as `crossval`.
    """
    check_wishes(folds, repeats)
    chosen = read_config(config, overrides)
    _check_places(chosen)
    prepared = prepare(data, chosen)
    manifest = keep_test_aside(prepared.manifest, prepared.config, num_folds=folds, repeats=repeats)
    planned = folds_of(manifest, chosen, repeats)
    names = ", ".join(prepared.config.model.names)
    return CrossvalPlan(
        num_runs=len(planned),
        epochs=prepared.config.train.epochs,
        model=f"{names}, {prepared.config.data.image_size} px",
        num_test=len(manifest.of_split("test")),
        folds=tuple(
            (
                fold.name,
                len(fold.manifest.of_split("train")),
                len(fold.manifest.of_split("val")),
                len(fold.manifest.of_split("test")),
            )
            for fold in planned
        ),
    )


def _check_places(config: Config) -> None:
    if config.train.devices > 1 or config.train.nodes > 1:
        raise ConfigError(
            "crossval trains each fold in one process.",
            problems=[f"train.devices: {config.train.devices}", f"train.nodes: {config.train.nodes}"],
            fix="set both to 1.",
        )


def _of(found: dict[str, Any], key: str) -> list[str]:
    return [shown(found[key]) if found.get(key) is not None else ""]
