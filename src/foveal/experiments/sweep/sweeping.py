"""Trainings that differ in one thing: every value of some keys, each with several seeds, on the same split."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from foveal.data.manifest import Manifest
from foveal.data.subset import draw_subset
from foveal.errors import ConfigError, DataError, InterruptedRunError, TrainingError
from foveal.evaluation.evaluate import groups_of
from foveal.experiments.extend.cost import Answers, read_answers
from foveal.experiments.shared_data import SharedData
from foveal.experiments.sub_run import train_in
from foveal.experiments.summary import Row, mean_and_std, write_summary
from foveal.experiments.sweep.axes import TRAIN_IMAGES, Axis, Point, folder_names
from foveal.experiments.sweep.result import Swept, Trained, Value, key_of
from foveal.experiments.sweep.words import sentences_of
from foveal.files import read_json
from foveal.metrics import PairedComparison, compare_paired
from foveal.metrics.paired import Verdict
from foveal.progress import Progress
from foveal.run_folder import ExperimentFolder, RunFolder
from foveal.training.config import Config

VERB = "sweep"


def sweep_in(
    folder: ExperimentFolder,
    shared: SharedData,
    axes: Sequence[Axis],
    points: Sequence[Point],
    seeds: Sequence[int],
    progress: Progress,
) -> Swept:
    """Train every value with every seed; runs that are done are not done again.

    Args:
        folder: prepared, begun, and held by this process.
        shared: the images and their one split.
        axes: what is swept.
        points: its combinations.
        seeds: of the trainings; the split has its own.
        progress: where to show it.

    Raises:
        FovealError: as `train`; a training that fails by itself, as by a loss that is not finite, does not end it.
    """
    _check_sizes(points, shared.manifest)
    names, num = folder_names(points, seeds), len(points) * len(seeds)
    runs: list[Trained] = []
    for number, point in enumerate(points):
        for seed in seeds:
            progress.say(f"Run {len(runs) + 1} of {num}: {point.name}, seed {seed}.")
            run = folder.run(names[number, seed])
            runs.append(_train(run, shared, point, number, seed, folder, progress))
    values = tuple(
        _value(point, [run for run in runs if run.point == number], _monitor(points[0].config))
        for number, point in enumerate(points)
    )
    swept = _judged(shared.manifest, tuple(axes), tuple(seeds), values)
    write_summary(
        folder.summary,
        VERB,
        [run.row(value.point, swept.monitor) for value in values for run in value.runs],
        values=[_value_row(value) for value in values],
        seeds=list(seeds),
        monitor=swept.monitor,
        best=None if swept.best is None else values[swept.best].point.name,
        against_first=_to_dict(swept.against_first, len(seeds)),
        against_fewer=_to_dict(swept.against_fewer, len(seeds)),
        sentences=sentences_of(swept),
    )
    return swept


def rows_with(manifest: Manifest, num_train: int | None, *, seed: int) -> NDArray[np.int64] | None:
    """Rows of a learning curve: so many training images, stratified, and all of validation and test.

    With the same seed, fewer images lie within more of them.

    Args:
        manifest: with its splits.
        num_train: how many; None for all.
        seed: decides the draw.

    Returns:
        int64 [n], in order; None for all rows.

    Raises:
        DataError: there are not as many, or not one of each class among them.
    """
    train = manifest.of_split("train")
    if num_train is None or num_train == len(train):
        return None
    kept = manifest.is_usable() & (manifest.split_codes() > 0)
    chosen = draw_subset(manifest.take(train), total=num_train, seed=seed, num_parts=1)
    kept[train[chosen]] = True
    return np.flatnonzero(kept)


def _train(
    run: RunFolder,
    shared: SharedData,
    point: Point,
    number: int,
    seed: int,
    folder: ExperimentFolder,
    progress: Progress,
) -> Trained:
    rows = rows_with(shared.manifest, point.num_train, seed=seed)
    settled = shared.settled(point.config.model_copy(update={"seed": seed}), rows=rows)
    num_train = len(settled.manifest.of_split("train"))
    outcome, failure = None, ""
    try:
        outcome = train_in(run, settled, progress, with_plots=False)
    except TrainingError as error:
        # The next value may train well: a rate that is too high is one of the things that a sweep finds out.
        failure = error.message
        progress.say(f"It failed: {failure}")
        folder.log_event("failed", run=run.path.name, message=failure)
    except InterruptedRunError as stopped:
        raise stopped.reworded(fix="the same command goes on where it stopped.") from stopped
    timings = read_json(run.timings) if run.timings.is_file() else {}
    seconds = float(timings.get("train", {}).get("wall_seconds", 0.0))
    return Trained(number, seed, run, outcome, failure, num_train, seconds)


def _check_sizes(points: Sequence[Point], manifest: Manifest) -> None:
    """Refuse more training images than there are, before anything is trained."""
    num = len(manifest.of_split("train"))
    asked = sorted({point.num_train for point in points if point.num_train is not None})
    if too_many := [number for number in asked if number > num]:
        raise DataError(
            f"The training split has {num:,} images, and the sweep asks for more.",
            problems=[f"{TRAIN_IMAGES}: {number:,}" for number in too_many],
            fix=f"ask for up to {num:,}, or for {TRAIN_IMAGES}=...,all.",
        )
    for number in asked[:1]:
        rows_with(manifest, number, seed=0)  # the smallest must hold an image of each class


def _monitor(config: Config) -> str:
    return config.train.early_stopping.monitor


def _value(point: Point, runs: Sequence[Trained], monitor: str) -> Value:
    if any(run.outcome is None for run in runs):
        return Value(point, tuple(runs))
    mean, std = mean_and_std([run.row(point, monitor) for run in runs])
    for row in (mean, std):
        row.pop("seed", None)
    return Value(point, tuple(runs), mean, std)


def _value_row(value: Value) -> Row:
    return {
        "name": value.point.name,
        "value": dict(value.point.values),
        "num_runs": len(value.runs),
        "num_failed": sum(run.outcome is None for run in value.runs),
        "mean": dict(value.mean),
        "std": dict(value.std),
    }


def _judged(manifest: Manifest, axes: tuple[Axis, ...], seeds: tuple[int, ...], values: tuple[Value, ...]) -> Swept:
    monitor = _monitor(values[0].point.config)
    key = key_of(monitor)
    sign = -1.0 if key.endswith("loss") else 1.0
    whole = [number for number, value in enumerate(values) if value.is_whole and value.mean.get(key) is not None]
    # Of equals the one with the lower loss on validation, and of these the one that was named first.
    best = max(
        whole,
        key=lambda number: (sign * values[number].mean[key], -(values[number].mean["val_log_loss"] or 0.0), -number),
        default=None,
    )
    swept = Swept(axes, seeds, monitor, values, best)
    groups = groups_of(manifest, manifest.of_split("test"))
    first = fewer = None
    if best is not None and best != 0 and values[0].is_whole:
        first = compare_values(values[0], values[best], groups, seed=seeds[0])
    if swept.is_learning_curve and len(whole) > 1:
        by_size = sorted(whole, key=lambda number: values[number].runs[0].num_train)
        fewer = compare_values(values[by_size[-2]], values[by_size[-1]], groups, seed=seeds[0])
    return Swept(axes, seeds, monitor, values, best, first, fewer)


def compare_values(first: Value, second: Value, groups: NDArray[np.int64] | None, *, seed: int) -> PairedComparison:
    """Two values on the same test images, over all of their seeds.

    The answers of the seeds stand one below the other, and an image with all of its answers is drawn as a whole, so
    that the interval knows how many images there are. Of other seeds it knows nothing, so a verdict takes the
    agreement of them all. McNemar's test does not know it, and counts only with one seed.

    Args:
        first: one value.
        second: the other, with as many seeds.
        groups: int64 [n], the group of each test image; None where each stands for itself.
        seed: of the resampling.
    """
    answers = [[_answers(run) for run in value.runs] for value in (first, second)]
    if any(each.sample_ids != answers[0][0].sample_ids for value in answers for each in value):
        raise ConfigError("The runs of the sweep do not have the same test images.", fix="start anew by --force.")
    names, num = answers[0][0].class_names, len(first.runs)
    labels = np.tile([names.index(label) for label in answers[0][0].labels], num)
    images = np.arange(len(answers[0][0].labels)) if groups is None else groups
    probabilities = [np.concatenate([each.probabilities for each in value]) for value in answers]
    own = None if num == 1 and groups is None else np.tile(images, num)
    found = compare_paired(labels, *probabilities, groups=own, seed=seed)
    if num == 1:
        return found
    was, now = ((each.argmax(axis=1) == labels).reshape(num, -1).mean(axis=1) for each in probabilities)
    return replace(found, verdict=_verdict_over_seeds(found, now - was))


def _verdict_over_seeds(found: PairedComparison, by_seed: NDArray[np.float64]) -> Verdict:
    """What the interval says, and each seed by itself as well: the interval knows of other images, not other seeds."""
    low, high = found.intervals.get("accuracy", (0.0, 0.0))
    if low > 0 and (by_seed > 0).all():
        return "better"
    return "worse" if high < 0 and (by_seed < 0).all() else "undecided"


def _to_dict(found: PairedComparison | None, num_seeds: int) -> Row | None:
    """Plain values; over several seeds the counts are of answers, and McNemar's test does not hold."""
    if found is None:
        return None
    row = {**found.to_dict(), "num_images": found.num_images // num_seeds, "num_seeds": num_seeds}
    return row if num_seeds == 1 else {**row, "mcnemar_p": None, "mcnemar_test": None}


def _answers(trained: Trained) -> Answers:
    if trained.outcome is None:
        raise ValueError("a run that failed has no answers")
    metrics = trained.outcome.metrics["test"]
    return read_answers(trained.run.evaluation("test") / "predictions.parquet", metrics.class_names)
