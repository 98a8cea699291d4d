"""The end of a study: its winner and the default configuration, both trained in full, on the same test images."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveal.config import load, plain_yaml
from foveal.errors import TrainingError
from foveal.evaluation.evaluate import align_labels, groups_of
from foveal.evaluation.predictions import read_predictions
from foveal.experiments.outcome import Outcome
from foveal.experiments.preparing import Settled
from foveal.experiments.run_files import clear
from foveal.experiments.shared_data import SharedData
from foveal.experiments.sub_run import train_in
from foveal.experiments.summary import write_summary
from foveal.experiments.tune.space import SearchSpace
from foveal.files import atomic_writer, read_json, sha256_file, write_text
from foveal.metrics import SplitMetrics
from foveal.metrics.paired import PairedComparison, compare_paired
from foveal.progress import Progress
from foveal.run_folder import ExperimentFolder, RunFolder, is_run_folder
from foveal.training.config import ResolvedConfig

DEFAULT, BEST = "default", "best"
BEST_CONFIG = "best.yaml"

_OF_THE_MACHINE = {"data": {"num_workers"}, "train": {"device"}}
_WORKING_STAGES = ("claim", "sample", "trial", "record")


@dataclass(frozen=True)
class StudyEnd:
    """What a study came to.

    Attributes:
        best: the winner's row.
        default_metrics: of the default configuration, by split.
        best_metrics: of the winner, by split.
        comparison: both on the same test images, the default first.
        sentences: the verdict, and what it rests on.
        config: the winner's configuration, as `foveal train --config` takes it.
        bundle: the winner's bundle, copied.
        outside_training: share of the trials' wall time that was not training; None where no time was kept.
    """

    best: Mapping[str, Any]
    default_metrics: Mapping[str, SplitMetrics]
    best_metrics: Mapping[str, SplitMetrics]
    comparison: PairedComparison
    sentences: tuple[str, ...]
    config: Path
    bundle: Path
    outside_training: float | None


def is_better_high(monitor: str) -> bool:
    """Whether a monitored figure is better where it is higher."""
    return not monitor.endswith("loss")


def winner(trials: Sequence[Mapping[str, Any]], monitor: str) -> Mapping[str, Any]:
    """The row of the best complete trial, the earliest of equals.

    Raises:
        TrainingError: none is complete.
    """
    complete = [row for row in trials if row["state"] == "complete"]
    if not complete:
        raise TrainingError(
            "No trial has come to its end, so that there is no winner.",
            problems=[f"trial {row['number']}: {row['reason'] or row['state']}" for row in trials],
            fix="the same command with more --trials or --hours goes on.",
        )
    sign = -1.0 if is_better_high(monitor) else 1.0
    return min(complete, key=lambda row: (sign * row["figure"], row["number"]))


def conclude(
    folder: ExperimentFolder,
    space: SearchSpace,
    shared: SharedData,
    trials: Sequence[Mapping[str, Any]],
    monitor: str,
    importance: Mapping[str, float],
    progress: Progress,
) -> StudyEnd:
    """Train the winner and the default in full, compare them on test, and write the summary; what is done is kept.

    Raises:
        TrainingError: no trial is complete, or a training cannot go on.
        InterruptedRunError: Ctrl-C or SIGTERM, after a checkpoint was written.
    """
    best = winner(trials, monitor)
    drawn = space.draw(lambda dimension: best["values"][dimension.name])
    config = folder.path / BEST_CONFIG
    header = f"# The best of {len(trials)} trials: trial {best['number']}, {monitor} {best['figure']:.4f}.\n"
    write_text(config, header + plain_yaml.dump(space.tree(drawn.values)))
    outcomes: dict[str, Outcome] = {}
    for name, chosen in ((DEFAULT, space.base), (BEST, space.configure(drawn.values, origin=str(config)))):
        settled, run = shared.settled(chosen), folder.run(name)
        if is_run_folder(run.path) and _is_another(run, settled):
            clear(run)  # of a winner that has been beaten since
        what = "the default configuration" if name == DEFAULT else f"the winner, trial {best['number']}"
        progress.say(f"Training {what}, for the comparison on test.")
        outcomes[name] = train_in(run, settled, progress)
    default, tuned = (_probabilities(folder.run(name), shared) for name in (DEFAULT, BEST))
    rows = shared.manifest.of_split("test")
    comparison = compare_paired(
        align_labels(shared.manifest, shared.manifest.class_names)[rows],
        default,
        tuned,
        groups=groups_of(shared.manifest, rows),
        seed=space.base.seed,
    )
    copy_bundle(folder.run(BEST).bundle, folder.bundle)
    share = outside_training(folder, trials)
    end = StudyEnd(
        best,
        outcomes[DEFAULT].metrics,
        outcomes[BEST].metrics,
        comparison,
        _sentences(best, trials, comparison, monitor, share, folder),
        config,
        folder.bundle,
        share,
    )
    _write(folder, end, trials, monitor, space, importance)
    return end


def _is_another(run: RunFolder, settled: Settled) -> bool:
    held = load(ResolvedConfig, run.config)
    fixed = [config.model_dump(mode="json", exclude=_OF_THE_MACHINE) for config in (held, settled.config)]
    return fixed[0] != fixed[1]


def _probabilities(run: RunFolder, shared: SharedData) -> NDArray[np.float64]:
    """What a finished run says of the test images, float64 [n, C], in the order of the rows and of the class names."""
    return read_predictions(run.evaluation("test") / "predictions.parquet", shared.manifest.class_names).probabilities


def copy_bundle(source: Path, target: Path) -> None:
    """Copy a bundle file by file, its description last, so that a half is never taken for a whole."""
    files = sorted((path for path in source.iterdir() if path.is_file()), key=lambda path: path.name == "bundle.json")
    for file in files:
        place = target / file.name
        if place.is_file() and sha256_file(place) == sha256_file(file):
            continue
        with file.open("rb") as content, atomic_writer(place) as stream:
            while piece := content.read(1 << 20):
                stream.write(piece)


def outside_training(folder: ExperimentFolder, trials: Sequence[Mapping[str, Any]]) -> float | None:
    """Share of the trials' wall time in which nothing was trained: choosing, building, evaluating, writing."""
    timings = read_json(folder.timings) if folder.timings.is_file() else {}
    wall = sum(timings[stage]["wall_seconds"] for stage in _WORKING_STAGES if stage in timings)
    training = sum(row["training_seconds"] for row in trials)
    # A worker that was killed took the time of its stage with it, and its run may have kept more.
    return max(0.0, 1.0 - training / wall) if wall > 0 else None


def _sentences(
    best: Mapping[str, Any],
    trials: Sequence[Mapping[str, Any]],
    comparison: PairedComparison,
    monitor: str,
    share: float | None,
    folder: ExperimentFolder,
) -> tuple[str, ...]:
    verdict = comparison.sentence("the default configuration", "the tuned configuration")
    sentences = [f"On the test images, {verdict}."]
    default = figure_of_run(folder.run(DEFAULT), monitor)
    beside = "" if default is None else f"; the default has {default:.4f}"
    sentences.append(
        f"Trial {best['number']} was chosen of {len(trials)} for its {monitor} of {best['figure']:.4f}{beside}. The "
        "best of many on the same validation images looks better than it is; the test images were not looked at before."
    )
    counts = {state: sum(row["state"] == state for row in trials) for state in ("complete", "pruned", "failed")}
    open_ = len(trials) - sum(counts.values())
    told = f"Of {len(trials)} trials, {counts['complete']} came to the end, {counts['pruned']} stopped early, "
    told += f"{counts['failed']} failed"
    sentences.append(f"{told}, {open_} still to do." if open_ else f"{told}.")
    if share is not None:
        sentences.append(f"{share:.1%} of the trials' time was not training.")
    return tuple(sentences)


def figure_of_run(run: RunFolder, monitor: str) -> float | None:
    """The monitored figure of a run's best epoch."""
    from foveal.experiments.tune.table import figure_of

    figures = [figure for row in run.read_epochs() if (figure := figure_of(row, monitor)) is not None]
    if not figures:
        return None
    return max(figures) if is_better_high(monitor) else min(figures)


def _write(
    folder: ExperimentFolder,
    end: StudyEnd,
    trials: Sequence[Mapping[str, Any]],
    monitor: str,
    space: SearchSpace,
    importance: Mapping[str, float],
) -> None:
    write_summary(
        folder.summary,
        "tune",
        trials,
        monitor=monitor,
        maximise=is_better_high(monitor),
        dimensions=[asdict(dimension) for dimension in space.dimensions()],
        importance=dict(importance),
        best=end.best["name"],
        best_values=end.best["values"],
        default_versus_tuned={
            split: {
                DEFAULT: end.default_metrics[split].model_dump(mode="json"),
                BEST: end.best_metrics[split].model_dump(mode="json"),
            }
            for split in end.best_metrics
        },
        comparison=end.comparison.to_dict(),
        verdict=end.comparison.verdict,
        sentences=list(end.sentences),
        outside_training_share=end.outside_training,
    )
