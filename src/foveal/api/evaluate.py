"""`foveal evaluate`: metrics with intervals, plots, worst errors."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike, fspath
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foveal.api.opening import open_predictor
from foveal.api.results import EvaluatePlan, EvaluateResult
from foveal.config import load
from foveal.data.config import DataConfig
from foveal.data.ingest import Ingested, Recipe, ingest
from foveal.data.manifest import Manifest
from foveal.data.scan import scan
from foveal.data.split import straddling
from foveal.errors import ConfigError, DataError
from foveal.evaluation.evaluate import (
    align_labels,
    majority_class,
    measure,
    predict_split,
    rows_of_split,
    write_evaluation,
)
from foveal.experiments.run import changed_images
from foveal.inference import Predictor
from foveal.machine import num_cpus, num_threads
from foveal.progress import Progress, Silence
from foveal.report.page import build_report
from foveal.run_folder import RunFolder, is_run_folder, open_run
from foveal.training.config import Config, ResolvedConfig, read_config
from foveal.training.resolve import store_bytes
from foveal.types import SPLITS, Split

ASSUMED_ASPECT = 1.5
"""Longer by shorter side, for a guess at the size of data that nobody has looked at yet."""


@dataclass(frozen=True)
class _Task:
    """What is to be measured.

    Attributes:
        predictor: the classifier.
        manifest: the data that the split is of.
        rows: int64 [n], the split's rows in it; their classes are all known to the classifier.
        split: which one.
        config: how the data is read and kept.
        seed: of the bootstrap.
        folder: where the result goes.
        own: the run that is measured on its own split, or None.
    """

    predictor: Predictor
    manifest: Manifest
    rows: NDArray[np.int64]
    split: Split
    config: DataConfig
    seed: int
    folder: Path
    own: RunFolder | None


def evaluate(
    model: str | PathLike[str],
    data: str | PathLike[str] | None = None,
    *,
    split: Split = "test",
    out: str | PathLike[str] | None = None,
    config: Config | str | PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    device: str = "auto",
    seed: int | None = None,
    progress: Progress | None = None,
) -> EvaluateResult:
    """Measure a run on one of its own splits, or a run or bundle on other labelled data.

    Every look at a run's test split is counted in the run: a test that decides is a test no longer.

    Args:
        model: a run or a bundle.
        data: labelled images to measure on; the run's own, if not given. Where they bring no split, all are taken.
        split: which split.
        out: where to write; the run's own evaluation folder, or `evaluation` for other data.
        config: a configuration, or a YAML file of one, that says how `data` is read.
        overrides: texts such as "data.columns.label=cell_type", on top of it.
        device: auto, cpu, cuda or mps.
        seed: of the bootstrap; the run's own, or the configuration's, if not given.
        progress: where to show it.

    Raises:
        ArtifactError: the model is neither run nor bundle, is damaged, or the run's folder cannot be written.
        DataError: the data cannot be read, has classes that the model does not know, or is not what the run was made
            with.
        ConfigError: a key or value is wrong.
    """
    progress = progress or Silence()
    task = _prepare(model, data, split, out, config, overrides, device, seed)
    if task.own is None:
        return _evaluate_other(task, Path(model), progress)
    task.own.prepare()
    with task.own.lock():
        return _evaluate_own(task, task.own, progress)


def plan_evaluation(
    model: str | PathLike[str],
    data: str | PathLike[str] | None = None,
    *,
    split: Split = "test",
    out: str | PathLike[str] | None = None,
    config: Config | str | PathLike[str] | None = None,
    overrides: Sequence[str] = (),
) -> EvaluatePlan:
    """What `evaluate` would measure: nothing is decoded, written or counted as a look.

    Raises:
        ArtifactError: as `evaluate`.
        DataError: as `evaluate`, but for what only decoding can show.
        ConfigError: as `evaluate`.
    """
    task = _prepare(model, data, split, out, config, overrides, "cpu", None)
    names = task.predictor.class_names
    counts = np.bincount(align_labels(task.manifest, names)[task.rows], minlength=len(names))
    return EvaluatePlan(
        model=Path(model),
        split=split,
        num_images=len(task.rows),
        class_counts=dict(zip(names, counts.tolist(), strict=True)),
        folder=task.folder,
        counts_as_look=task.own is not None,
    )


def _prepare(
    model: str | PathLike[str],
    data: str | PathLike[str] | None,
    split: Split,
    out: str | PathLike[str] | None,
    config: Config | str | PathLike[str] | None,
    overrides: Sequence[str],
    device: str,
    seed: int | None,
) -> _Task:
    """Everything that can be refused before an image is decoded."""
    if split not in SPLITS:
        raise ConfigError(f"--split {split}: expected one of {', '.join(SPLITS)}.")
    path = Path(model)
    if data is None and (config is not None or overrides):
        raise ConfigError(
            "--config and --set say how DATA is read, and there is no DATA.",
            fix="give DATA; or leave them out to measure the run on its own images, read as they were for training.",
        )
    own, settings = None, Config()
    if data is not None:
        settings = read_config(config, overrides)
    predictor = open_predictor(path, device=device, num_workers=num_cpus())
    if data is not None:
        manifest = scan(fspath(data), settings.data).manifest
        if not (manifest.split_codes() >= 0).any():
            manifest = manifest.with_columns(split=[split] * len(manifest))
    elif is_run_folder(path):
        own = open_run(path)
        settings, manifest = load(ResolvedConfig, own.config), Manifest.read(own.manifest)
    else:
        raise ConfigError(
            f"{path} is a bundle, which brings no images of its own to measure on.",
            fix=f"give DATA: foveal evaluate {shlex.quote(str(path))} DATA",
        )
    rows = rows_of_split(manifest, split)
    align_labels(manifest.take(rows), predictor.class_names)
    folder = Path(out) if out else own.evaluation(split) if own else Path("evaluation") / split
    return _Task(predictor, manifest, rows, split, settings.data, settings.seed if seed is None else seed, folder, own)


def _evaluate_own(task: _Task, run: RunFolder, progress: Progress) -> EvaluateResult:
    samples = task.manifest.take(task.rows)
    ingested = _decode(task, progress)
    if changed := changed_images(samples, ingested.manifest):
        raise DataError(
            f"{len(changed)} of the {len(samples)} {task.split} samples are not those that the run was made with.",
            problems=changed,
            fix=f"bring them back, or measure on what there is now: foveal evaluate {shlex.quote(str(run.path))} DATA",
        )
    said = predict_split(task.predictor, ingested.manifest, ingested.source, task.split, num_workers=num_cpus())
    # From here on by the rows of the whole manifest, which knows the siblings in other splits.
    said = replace(said, rows=task.rows)
    metrics = measure(
        said,
        task.manifest,
        task.predictor,
        majority_class=majority_class(task.manifest, task.predictor.class_names),
        siblings_in_train=straddling(task.manifest)[task.rows] if task.split != "train" else None,
        seed=task.seed,
    )
    # Counted before it can be read: a look that is not counted is worse than one that was not taken.
    num_looks = run.count_look(task.split, "evaluate")
    write_evaluation(task.folder, said, metrics, task.manifest, task.predictor.bundle.spec.temperature)
    return EvaluateResult(metrics, task.folder, build_report(run), num_looks)


def _evaluate_other(task: _Task, model: Path, progress: Progress) -> EvaluateResult:
    manifest, predictor = (ingested := _decode(task, progress)).manifest, task.predictor
    train = Manifest.read(RunFolder(model).manifest) if is_run_folder(model) else None
    said = predict_split(predictor, manifest, ingested.source, task.split, num_workers=num_cpus())
    metrics = measure(
        said,
        manifest,
        predictor,
        majority_class=majority_class(train, predictor.class_names) if train else None,
        siblings_in_train=_seen_in_training(manifest, train)[said.rows] if train else None,
        seed=task.seed,
    )
    write_evaluation(task.folder, said, metrics, manifest, predictor.bundle.spec.temperature)
    return EvaluateResult(metrics, task.folder, None, 0)


def _decode(task: _Task, progress: Progress) -> Ingested:
    """The split as the bundle wants it, whatever the configuration says of sizes."""
    spec, config = task.predictor.bundle.spec, task.config
    geometry = spec.preprocessing.geometry()
    cap_bytes = int(config.store_cap_gib * (1 << 30))
    fits = store_bytes(len(task.rows), ASSUMED_ASPECT, geometry.store_px) <= cap_bytes
    return ingest(
        task.manifest.take(task.rows),
        Recipe(geometry, spec.preprocessing.policy(), spec.training_data.box_margin),
        keep_pixels=config.store == "on" or (config.store == "auto" and fits),
        cap_bytes=cap_bytes,
        num_workers=num_threads(config.num_workers),
        progress=progress,
    )


def _seen_in_training(manifest: Manifest, train: Manifest) -> NDArray[np.bool_]:
    """Which rows have the same bytes as an image that the model was trained on."""
    seen = train.column("sha256")[train.of_split("train")]
    found: NDArray[np.bool_] = np.isin(manifest.column("sha256").astype(str), seen.astype(str))
    return found
