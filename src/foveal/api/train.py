"""`foveal train`: fit, evaluate, report, bundle."""

from collections.abc import Sequence
from contextlib import suppress
from os import PathLike
from pathlib import Path

from foveal.api.results import TrainResult
from foveal.config import load
from foveal.data.manifest import Manifest
from foveal.errors import ArtifactError, ConfigError
from foveal.experiments.run import Prepared, draw_split, execute, prepare
from foveal.model.build import build
from foveal.progress import Progress, Silence
from foveal.report.page import build_report
from foveal.run_folder import RunFolder, is_run_folder, open_run
from foveal.training import checkpoint
from foveal.training.config import Config, ResolvedConfig
from foveal.training.plan import TrainPlan, make_plan
from foveal.training.resolve import architecture_of
from foveal.types import SPLITS


def train(
    data: str | PathLike[str] | None = None,
    out: str | PathLike[str] = "run",
    *,
    config: Config | str | PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    resume: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> TrainResult:
    """Train a classifier, evaluate it on all splits, write its report and its bundle.

    Args:
        data: a folder of class folders, a folder of train/val/test, or a table; not needed to resume.
        out: the run folder.
        config: a configuration, or a YAML file of one; the defaults if not given.
        overrides: texts such as "train.epochs=8", applied on top.
        resume: whether to go on with the run in `out`, exactly as if it had not been interrupted.
        force: whether to start anew in a folder that holds a run or other files.
        progress: where to show it; nowhere if not given.

    Raises:
        ConfigError: keys or values are wrong; all at once.
        DataError: the data is not what training needs; all problems at once.
        ArtifactError: `out` cannot be written or holds a run already, or the starting weights cannot be had.
        TrainingError: the loss is not finite, or memory ran out.
        InterruptedRunError: Ctrl-C or SIGTERM, after a checkpoint was written.

    Example:
        >>> import foveal
        >>> foveal.train("photos", "runs/first", overrides=["model.weights=none"])  # doctest: +SKIP
    """
    progress = progress or Silence()
    run = RunFolder(Path(out))
    going_on = resume and is_run_folder(run.path)
    if data is None and not going_on:
        if resume:
            open_run(run.path)
        raise ConfigError("train needs DATA, or --resume with the --out of a run.", fix="see foveal train --help")
    if not going_on:
        _check_free(run, force=force)
    chosen = _configuration(config, overrides)
    run.prepare()
    with run.lock():
        if going_on:
            prepared = Prepared(load(ResolvedConfig, run.config), Manifest.read(run.manifest), resumed=True)
        else:
            _clear(run)
            with run.stage("scan"):
                prepared = prepare(data or "", chosen)
        outcome = execute(run, prepared, progress)
        with run.stage("report"):
            report = build_report(run)
    return TrainResult(run.path, outcome.metrics, outcome.best_epoch, report, run.bundle)


def plan(
    data: str | PathLike[str],
    *,
    config: Config | str | PathLike[str] | None = None,
    overrides: Sequence[str] = (),
) -> TrainPlan:
    """What `train` would do with this data: resolved configuration, images, parameters, steps, estimated memory.

    Nothing is written, and only a few images are decoded, so that broken files are not yet known.

    Raises:
        ConfigError: as `train`.
        DataError: as `train`.
    """
    prepared = prepare(data, _configuration(config, overrides))
    manifest = draw_split(prepared.manifest, prepared.config)
    return make_plan(
        build(architecture_of(prepared.config, len(manifest.class_names))),
        prepared.config,
        num_images={name: len(manifest.of_split(name)) for name in SPLITS},
        class_names=manifest.class_names,
        num_quarantined=len(manifest) - len(manifest.usable()),
        notes=prepared.notes,
    )


def _configuration(config: Config | str | PathLike[str] | None, overrides: Sequence[str]) -> Config:
    if isinstance(config, Config):
        return load(Config, None, overrides, base=config.model_dump(mode="json"))
    return load(Config, None if config is None else Path(config), overrides)


def _check_free(run: RunFolder, *, force: bool) -> None:
    """Refuse to write into a folder that holds anything, unless told to."""
    if force or not run.path.is_dir():
        return
    if is_run_folder(run.path):
        raise ArtifactError(
            f"{run.path} holds a run already.",
            fix="choose another --out, go on with it by --resume, or start anew by --force.",
        )
    of_no_weight = {".lock", run.timings.name, run.log.name}
    held = sorted(path.name for path in run.path.iterdir() if path.name not in of_no_weight)
    if held:
        raise ArtifactError(
            f"{run.path} is not empty: it holds {', '.join(held[:5])}.",
            fix="choose another --out, or write into it all the same by --force.",
        )


def _clear(run: RunFolder) -> None:
    """Remove what an earlier run left, by name: nothing that foveal did not write is ever touched."""
    files = [run.config, run.manifest, run.log, run.metrics, run.timings, run.model_summary, run.report, run.looks]
    files += [run.checkpoints / name for name in (checkpoint.LAST, checkpoint.PREVIOUS, checkpoint.BEST)]
    files += [run.weights_origin, run.bundle / "bundle.json", run.bundle / "model.safetensors"]
    for name in SPLITS:
        folder = run.evaluation(name)
        files += [folder / "metrics.json", folder / "predictions.parquet", *(folder / "plots").glob("*.svg")]
    for file in files:
        with suppress(FileNotFoundError):
            file.unlink()
