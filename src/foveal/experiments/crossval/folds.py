"""Cross-validation: a training for each fold, what each says of the fold it did not see, and their vote on test."""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveal.data.manifest import Manifest
from foveal.data.split import siblings, straddling
from foveal.errors import ArtifactError, ConfigError, InterruptedRunError
from foveal.evaluation.evaluate import SplitLogits, groups_of, majority_class, write_evaluation
from foveal.experiments.crossval.plan import Fold, draw_of, folds_of
from foveal.experiments.crossval.vote import FoldVote, vote_on_test
from foveal.experiments.outcome import Outcome
from foveal.experiments.shared_data import SharedData
from foveal.experiments.sub_run import train_in
from foveal.experiments.summary import Row, mean_and_std, metrics_row, write_summary
from foveal.extras import require
from foveal.files import atomic_writer, read_json
from foveal.metrics import SplitMetrics, shown, summarise
from foveal.model.bundle import read_bundle
from foveal.model.ensemble_bundle import write_ensemble
from foveal.model.voting import logits_of
from foveal.progress import Progress
from foveal.run_folder import ExperimentFolder, RunFolder
from foveal.training.config import Config

OUT_OF_FOLD = "out-of-fold"
"""What stands in place of a split in the metrics of all held-out folds together."""
PREDICTIONS = "out_of_fold.parquet"
NOT_A_MEAN_OF = frozenset({"fold", "repeat", "seed"})
"""Numbers of a row that name it, so that their mean says nothing."""
NO_INTERVAL = (
    "The standard deviation says how much single models differ from fold to fold. It is no interval: the folds share "
    "most of their training images, so that their figures are not independent (Bengio and Grandvalet, 2004)."
)


@dataclass(frozen=True)
class Crossval:
    """What a cross-validation came to.

    Attributes:
        folder: where everything lies.
        rows: a row a fold, with the keys of metrics.json on its held-out fold.
        mean: of every figure over the rows.
        std: the standard deviation of every figure over the rows.
        out_of_fold: all held-out predictions together.
        votes: metrics of the folds' votes on the test split that was kept aside; empty where none was.
        sentences: the result in words, the most important first.
    """

    folder: ExperimentFolder
    rows: Sequence[Row]
    mean: Row
    std: Row
    out_of_fold: SplitMetrics
    votes: dict[str, SplitMetrics]
    sentences: tuple[str, ...]


def settings_of(data: str | PathLike[str], config: Config, num_folds: int | None, repeats: int) -> dict[str, Any]:
    """What the same command has to say again, to go on."""
    machine: Any = {"data": {"num_workers"}, "train": {"device"}, "log": True}
    return {
        "data": str(Path(data).resolve()),
        "folds": num_folds,
        "repeats": repeats,
        "config": config.model_dump(mode="json", exclude=machine),
    }


def check_wishes(num_folds: int | None, repeats: int) -> None:
    """Refuse numbers that make no cross-validation.

    Raises:
        ConfigError: fewer than two folds, or no repeat.
    """
    problems = []
    if num_folds is not None and num_folds < 2:
        problems.append(f"--folds: {num_folds}; at least 2")
    if repeats < 1:
        problems.append(f"--repeats: {repeats}; at least 1")
    if problems:
        raise ConfigError("A cross-validation needs at least two folds, once.", problems=problems)


def cross_validate(
    data: str | PathLike[str],
    folder: ExperimentFolder,
    config: Config,
    *,
    num_folds: int | None,
    repeats: int,
    progress: Progress,
) -> Crossval:
    """Train every fold, predict each by the model that did not see it, and let all vote on the kept-aside test.

    Goes on where it was; what is done is not done again.

    Args:
        data: as for `train`.
        folder: begun, and held by this process.
        config: of every training.
        num_folds: how many; None takes those of the data, or 5.
        repeats: how often folds are drawn and trained.
        progress: where to show it.

    Raises:
        ConfigError: as `train`, or the data bring another number of folds.
        DataError: as `train`, or a class is too small for so many folds.
        TrainingError: as `train`.
        InterruptedRunError: Ctrl-C or SIGTERM, after everything was saved.
    """
    check_wishes(num_folds, repeats)
    if (done := finished(folder)) is not None:
        progress.say("The cross-validation had come to its end already; nothing is left to train.")
        return done
    shared = SharedData.prepare(data, config, folder, progress, draw_of(num_folds, repeats))
    folds = folds_of(shared.manifest, config, repeats)
    if leaks := next((fold.leaks for fold in folds if fold.leaks), ""):
        progress.say(f"{folds[0].name}: {leaks}")
    outcomes = [_train(folder, fold, len(folds), shared, config, progress) for fold in folds]
    runs = [folder.run(fold.name) for fold in folds]
    with folder.stage("out of fold"):
        out_of_fold = _out_of_fold(folder, folds, runs, shared.manifest, config)
    with folder.stage("vote"):
        bundles = [read_bundle(run.bundle) for run in runs]
        names = [fold.name for fold in folds]
        write_ensemble(folder.bundle, bundles, names, vote="soft", weights=[1.0 / len(folds)] * len(folds))
        best = min(range(len(folds)), key=lambda at: _cost(outcomes[at].metrics["val"]))
        vote = vote_on_test(folder, shared, config, names=names, best=best, progress=progress)
    return _summed_up(folder, folds, outcomes, out_of_fold, vote)


def finished(folder: ExperimentFolder) -> Crossval | None:
    """What a cross-validation came to, if it has come to its end: the summary is written last."""
    if not folder.summary.is_file():
        return None
    summary = read_json(folder.summary)
    place = folder.path / "evaluation"
    votes = {
        kind: SplitMetrics.read(place / f"test-{kind}" / "metrics.json")
        for kind in ("soft", "majority")
        if summary["fold_vote"] is not None
    }
    return Crossval(
        folder=folder,
        rows=summary["rows"],
        mean=summary["mean"],
        std=summary["std"],
        out_of_fold=SplitMetrics.read(place / "out_of_fold" / "metrics.json"),
        votes=votes,
        sentences=tuple(summary["sentences"]),
    )


def read_finished(folder: ExperimentFolder) -> Crossval:
    """The same, where it must be there.

    Raises:
        ArtifactError: it has not come to its end.
    """
    done = finished(folder)
    if done is None:
        raise ArtifactError(f"The cross-validation {folder.path} has not come to its end: it has no summary.json.")
    return done


def _train(
    folder: ExperimentFolder,
    fold: Fold,
    num_runs: int,
    shared: SharedData,
    config: Config,
    progress: Progress,
) -> Outcome:
    run = folder.run(fold.name)
    seeded = config.model_copy(update={"seed": fold.seed})
    with folder.stage("folds"):
        settled = shared.settled(seeded, manifest=fold.manifest, rows=fold.rows)
        progress.say(f"{fold.name}, of {num_runs} trainings; its test split is the held-out fold.")
        try:
            # A fold's page and its plots are drawn for whoever asks for them: they would take longer than a short fold.
            # And what a model says of its own training images would cost more than all other predictions of a fold.
            return train_in(run, settled, progress, splits=("val", "test"), with_plots=False)
        except InterruptedRunError as stopped:
            raise stopped.reworded(
                message=f"{fold.name}: {stopped.message}",
                fix="the same command again goes on from here.",
            ) from stopped


def _cost(metrics: SplitMetrics) -> tuple[float, float]:
    """Smaller is better: by accuracy, and of equal ones by log loss."""
    return -(metrics.accuracy or 0.0), metrics.log_loss or 0.0


def _out_of_fold(
    folder: ExperimentFolder, folds: Sequence[Fold], runs: Sequence[RunFolder], manifest: Manifest, config: Config
) -> SplitMetrics:
    """Every held-out prediction in one table, and what they come to together."""
    pa = require("pyarrow", extra="train", purpose="write predictions")
    parquet = require("pyarrow.parquet", extra="train", purpose="write predictions")
    parts = []
    for fold, run in zip(folds, runs, strict=True):
        part = parquet.read_table(run.evaluation("test") / "predictions.parquet")
        part = part.append_column("fold", pa.array([fold.number] * len(part), pa.int32()))
        if folds[-1].repeat > 1:
            part = part.append_column("repeat", pa.array([fold.repeat] * len(part), pa.int32()))
        parts.append(part)
    table = pa.concat_tables(parts)
    place = {name: row for row, name in enumerate(manifest.table["sample_id"].to_pylist())}
    rows = np.array([place[name] for name in table["sample_id"].to_pylist()], dtype=np.int64)
    order = np.argsort(rows, kind="stable")
    table, rows = table.take(order), rows[order]
    with atomic_writer(folder.path / PREDICTIONS) as stream:
        parquet.write_table(table, stream, compression="zstd")
    names = manifest.class_names
    probabilities = np.stack([table[f"p_{name}"].to_numpy().astype(np.float64) for name in names], axis=1)
    logits = logits_of(probabilities).astype(np.float32)
    said = SplitLogits("test", rows, manifest.label_ids()[rows], logits)
    metrics = summarise(
        said.labels,
        logits.astype(np.float64),
        class_names=names,
        split=OUT_OF_FOLD,
        majority_class=majority_class(manifest, names),
        groups=siblings(manifest)[rows] if folds[-1].repeat > 1 else groups_of(manifest, rows),
        ordered=config.data.ordered,
        siblings_in_train=_in_other_folds(folds, rows),
        seed=config.seed,
    )
    write_evaluation(folder.path / "evaluation" / "out_of_fold", said, metrics, manifest, 1.0)
    return metrics


def _in_other_folds(folds: Sequence[Fold], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which images have a sibling that their fold's model was trained on; folds that are drawn here never cut one."""
    found = np.zeros(len(folds[0].manifest), dtype=np.bool_)
    for fold in folds:
        held = fold.manifest.of_split("test")
        found[held] |= straddling(fold.manifest)[held]
    return found[rows]


def _summed_up(
    folder: ExperimentFolder,
    folds: Sequence[Fold],
    outcomes: Sequence[Outcome],
    out_of_fold: SplitMetrics,
    vote: FoldVote | None,
) -> Crossval:
    rows = []
    for at, (fold, outcome) in enumerate(zip(folds, outcomes, strict=True)):
        run = folder.run(fold.name)
        validation, timings = outcome.metrics["val"], read_json(run.timings)
        facts: Row = {
            "run": f"runs/{fold.name}",
            "repeat": fold.repeat,
            "fold": fold.number,
            "seed": fold.seed,
            "num_train": len(fold.manifest.take(fold.rows).of_split("train")),
            "num_val": validation.num_images,
            "best_epoch": outcome.best_epoch,
            "train_seconds": timings.get("train", {}).get("wall_seconds"),
            "train_accuracy": _train_accuracy(run, outcome.best_epoch),
            "val_accuracy": validation.accuracy,
            "val_log_loss": validation.log_loss,
        }
        if vote is not None:
            facts |= {f"kept_aside_{name}": value for name, value in vote.singles[at].items()}
        rows.append(metrics_row(fold.name, outcome.metrics["test"], **facts))
    mean, std = mean_and_std([{key: value for key, value in row.items() if key not in NOT_A_MEAN_OF} for row in rows])
    sentences = (*_sentences(folds, mean, std, out_of_fold), *(vote.sentences if vote else (_NO_TEST,)), NO_INTERVAL)
    sentences = tuple(f"{sentence.removesuffix('.')}." for sentence in sentences)
    write_summary(
        folder.summary,
        "crossval",
        rows,
        mean=mean,
        std=std,
        num_folds=max(fold.number for fold in folds),
        repeats=folds[-1].repeat,
        out_of_fold=out_of_fold.model_dump(mode="json"),
        fold_vote=None if vote is None else vote.to_dict(),
        sentences=list(sentences),
        seconds=_seconds(folder, folds),
    )
    folder.log_event("done")
    votes = {} if vote is None else dict(vote.metrics)
    return Crossval(folder, rows, mean, std, out_of_fold, votes, sentences)


def _train_accuracy(run: RunFolder, best_epoch: int) -> float | None:
    """Of the training images as the best epoch saw them: augmented, and while the weights moved."""
    text = next((row["train_accuracy"] for row in run.read_epochs() if int(row["epoch"]) == best_epoch), "")
    return float(text) if text else None


_NO_TEST = "No test split was kept aside, so the folds do not vote on any; their bundle is written all the same."


def _sentences(folds: Sequence[Fold], mean: Row, std: Row, out_of_fold: SplitMetrics) -> list[str]:
    num_folds, repeats = max(fold.number for fold in folds), folds[-1].repeat
    times = f", drawn {repeats} times" if repeats > 1 else ""
    spread = f" ± {shown(std['accuracy'])}" if std["accuracy"] is not None else ""
    return [
        f"Single models: accuracy {shown(mean['accuracy'])}{spread} over {num_folds} held-out folds{times} (mean ± "
        "standard deviation)",
        f"All held-out predictions together: {out_of_fold.sentence()}",
    ]


def _seconds(folder: ExperimentFolder, folds: Sequence[Fold]) -> dict[str, float]:
    """Where the time went, as far as it is known before the page is written."""
    inside = [read_json(folder.run(fold.name).timings) for fold in folds]
    training = sum(timings.get("train", {}).get("wall_seconds", 0.0) for timings in inside)
    stages = read_json(folder.timings)
    total = sum(stage["wall_seconds"] for stage in stages.values())
    return {
        "training": round(training, 3),
        "total": round(total, 3),
        "share_outside_training": round(max(0.0, 1.0 - training / total), 4) if total else 0.0,
    }
