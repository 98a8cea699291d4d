"""`foveal evaluate`: metrics with intervals, plots, worst errors."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from os import PathLike, fspath
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foveal.api.opening import open_predictor, refuse_inside
from foveal.api.results import EvaluatePlan, EvaluateResult
from foveal.config import load
from foveal.data.config import DataConfig
from foveal.data.manifest import Manifest
from foveal.data.scan import scan
from foveal.data.split import straddling
from foveal.errors import ConfigError, DataError
from foveal.evaluation.beyond import compare_views, evaluate_corrupted, num_passes
from foveal.evaluation.evaluate import (
    SplitLogits,
    align_labels,
    groups_of,
    majority_class,
    measure,
    predict_split,
    rows_of_split,
    write_evaluation,
)
from foveal.evaluation.sources import Stored, stored_for
from foveal.evaluation.tta import TTA_FILE, tta_folder, tta_name
from foveal.experiments.preparing import changed_images
from foveal.inference import Predictor
from foveal.machine import num_cpus
from foveal.metrics import SplitMetrics
from foveal.pixels.corruptions import corruptions_of
from foveal.progress import Progress, Silence
from foveal.report.page import build_report
from foveal.run_folder import RunFolder, is_run_folder, open_run
from foveal.training.config import Config, ResolvedConfig, read_config
from foveal.types import SPLITS, Split

_Measured = tuple[SplitLogits, SplitMetrics]
_Measure = Callable[[Predictor], _Measured]


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
        is_out: whether the folder was chosen, rather than the usual one.
        own: the run that is measured on its own split, or None.
        tta: the test-time augmentation whose gain is measured as well; "none" for none.
        corruptions: those whose cost is measured as well.
    """

    predictor: Predictor
    manifest: Manifest
    rows: NDArray[np.int64]
    split: Split
    config: DataConfig
    seed: int
    folder: Path
    is_out: bool
    own: RunFolder | None
    tta: str
    corruptions: tuple[str, ...]


def evaluate(
    model: str | PathLike[str],
    data: str | PathLike[str] | None = None,
    *,
    split: Split = "test",
    tta: str = "none",
    corrupt: str | None = None,
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
        tta: test-time augmentation: none, flip, dihedral, crops5 or a number of views. Its result goes to a folder of
            its own beside the plain one, with its gain and its cost; inside it, where `out` is given.
        corrupt: names of corruptions with commas between them, or all: how much of the accuracy is left under each at
            five strengths; see `foveal.pixels.corruptions`. With `tta`, of the classifier with it.
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
    task = _prepare(model, data, split, tta, corrupt, out, config, overrides, device, seed)
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
    tta: str = "none",
    corrupt: str | None = None,
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
    task = _prepare(model, data, split, tta, corrupt, out, config, overrides, "cpu", None)
    names = task.predictor.class_names
    counts = np.bincount(align_labels(task.manifest, names)[task.rows], minlength=len(names))
    return EvaluatePlan(
        model=Path(model),
        split=split,
        num_images=len(task.rows),
        class_counts=dict(zip(names, counts.tolist(), strict=True)),
        folder=task.folder,
        counts_as_look=task.own is not None,
        num_passes=num_passes(task.tta, task.corruptions),
    )


def _prepare(
    model: str | PathLike[str],
    data: str | PathLike[str] | None,
    split: Split,
    tta: str,
    corrupt: str | None,
    out: str | PathLike[str] | None,
    config: Config | str | PathLike[str] | None,
    overrides: Sequence[str],
    device: str,
    seed: int | None,
) -> _Task:
    """Everything that can be refused before an image is decoded."""
    if split not in SPLITS:
        raise ConfigError(f"--split {split}: expected one of {', '.join(SPLITS)}.")
    views, corruptions = tta_name(tta), () if corrupt is None else corruptions_of(corrupt)
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
        runs, is_experiment = path / "runs", (path / "experiment.json").is_file()
        raise ConfigError(
            f"{path} is {'an experiment' if is_experiment else 'a bundle'}, which brings no images of its own to "
            "measure on.",
            fix=f"give DATA: foveal evaluate {shlex.quote(str(path))} DATA"
            + (f"; or one of its runs, which lie in {runs}" if is_experiment and runs.is_dir() else ""),
        )
    rows = rows_of_split(manifest, split)
    align_labels(manifest.take(rows), predictor.class_names)
    folder = Path(out) if out else own.evaluation(split) if own else Path("evaluation") / split
    if data is not None:
        refuse_inside(folder, data)
    seed = settings.seed if seed is None else seed
    return _Task(
        predictor, manifest, rows, split, settings.data, seed, folder, out is not None, own, views, corruptions
    )


def _evaluate_own(task: _Task, run: RunFolder, progress: Progress) -> EvaluateResult:
    samples = task.manifest.take(task.rows)
    stored = stored_for(task.predictor, samples, task.config, progress)
    if changed := changed_images(samples, stored.manifest):
        raise DataError(
            f"{len(changed)} of the {len(samples)} {task.split} samples are not those that the run was made with.",
            problems=changed,
            fix=f"bring them back, or measure on what there is now: foveal evaluate {shlex.quote(str(run.path))} DATA",
        )
    largest = majority_class(task.manifest, task.predictor.class_names)
    siblings_in_train = straddling(task.manifest)[task.rows] if task.split != "train" else None

    def measured(predictor: Predictor) -> _Measured:
        said = predict_split(predictor, stored.manifest, stored.sources, task.split, num_workers=num_cpus())
        # From here on by the rows of the whole manifest, which knows the siblings in other splits.
        said = replace(said, rows=task.rows)
        return said, measure(
            said,
            task.manifest,
            predictor,
            majority_class=largest,
            siblings_in_train=siblings_in_train,
            seed=task.seed,
        )

    plain = measured(task.predictor)
    # Counted before it can be read: a look that is not counted is worse than one that was not taken.
    num_looks = run.count_look(task.split, "evaluate")
    result = _written(task, stored, task.manifest, plain, measured, progress)
    return replace(result, report=build_report(run), num_looks=num_looks)


def _evaluate_other(task: _Task, model: Path, progress: Progress) -> EvaluateResult:
    stored = stored_for(task.predictor, task.manifest.take(task.rows), task.config, progress)
    train = Manifest.read(RunFolder(model).manifest) if is_run_folder(model) else None
    largest = majority_class(train, task.predictor.class_names) if train else None
    seen = _seen_in_training(stored.manifest, train) if train else None

    def measured(predictor: Predictor) -> _Measured:
        said = predict_split(predictor, stored.manifest, stored.sources, task.split, num_workers=num_cpus())
        return said, measure(
            said,
            stored.manifest,
            predictor,
            majority_class=largest,
            siblings_in_train=None if seen is None else seen[said.rows],
            seed=task.seed,
        )

    return _written(task, stored, stored.manifest, measured(task.predictor), measured, progress)


def _written(
    task: _Task, stored: Stored, manifest: Manifest, plain: _Measured, measured: _Measure, progress: Progress
) -> EvaluateResult:
    """Write what the classifier says as it is; then measure and write what else is asked for.

    Args:
        task: what is asked for.
        stored: the split's pixels.
        manifest: what the rows of `plain` are of.
        plain: what the classifier says, and its metrics.
        measured: gives the same for other views.
        progress: where to show it.
    """
    predictor, folder, said = task.predictor, task.folder, plain[0]
    write_evaluation(folder, *plain, manifest, predictor.temperature)
    result = EvaluateResult(plain[1], folder, None, 0)
    if task.tta != "none":
        predictor, folder = task.predictor.with_tta(task.tta), tta_folder(folder, task.tta, inside=task.is_out)
        augmented = measured(predictor)
        said = augmented[0]
        gain = compare_views(
            task.predictor,
            predictor,
            stored,
            plain,
            augmented,
            tta=task.tta,
            groups=groups_of(manifest, said.rows),
            seed=task.seed,
        )
        write_evaluation(folder, *augmented, manifest, predictor.temperature)
        gain.write(folder / TTA_FILE)
        result = replace(result, tta=gain, tta_folder=folder)
    if task.corruptions:
        found = evaluate_corrupted(
            predictor,
            stored,
            said,
            task.corruptions,
            tta=task.tta,
            paths=manifest.column("path")[said.rows],
            groups=groups_of(manifest, said.rows),
            seed=task.seed,
            folder=folder,
            progress=progress,
        )
        result = replace(result, robustness=found, robustness_folder=folder)
    return result


def _seen_in_training(manifest: Manifest, train: Manifest) -> NDArray[np.bool_]:
    """Which rows have the same bytes as an image that the model was trained on."""
    seen = train.column("sha256")[train.of_split("train")]
    found: NDArray[np.bool_] = np.isin(manifest.column("sha256").astype(str), seen.astype(str))
    return found
