"""`foveal train`: fit, evaluate, report, bundle."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any

from foveal.api.opening import refuse_inside
from foveal.api.results import TrainResult
from foveal.config import load
from foveal.data.manifest import Manifest, is_manifest
from foveal.errors import ArtifactError, ConfigError
from foveal.experiments.check.result import CheckResult
from foveal.experiments.check.setup import check as check_setup
from foveal.experiments.outcome import finished
from foveal.experiments.preparing import Prepared, draw_split, prepare
from foveal.experiments.run import execute, follow, starting_classifier
from foveal.experiments.run_files import PLACES, clear, files_of, sweep
from foveal.model.build import build
from foveal.model.freeze import apply_every_freeze
from foveal.progress import Progress, Silence
from foveal.report.heatmaps import draw_heatmaps
from foveal.report.page import build_report
from foveal.run_folder import RunFolder, is_run_folder, open_run
from foveal.training.config import Config, ResolvedConfig, read_config
from foveal.training.logs import check_logs
from foveal.training.plan import TrainPlan, make_plan
from foveal.training.processes import Place, check_place, place_told, waited_for
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
        config: a configuration, or a YAML file of one; the defaults if not given. A run that goes on keeps its own.
        overrides: texts such as "train.epochs=8", applied on top.
        resume: whether to go on with the run in `out`, exactly as if it had not been interrupted.
        force: whether to start anew in a folder that holds a run or other files.
        progress: where to show it; nowhere if not given.

    Raises:
        ConfigError: keys or values are wrong, or not those of the run that is to go on; all at once.
        DataError: the data is not what training needs; all problems at once.
        ArtifactError: `out` cannot be written or holds a run already, or the starting weights cannot be had.
        TrainingError: the loss is not finite, or memory ran out.
        InterruptedRunError: Ctrl-C or SIGTERM, after a checkpoint was written.

    Example:
        >>> import foveal
        >>> foveal.train("photos", "runs/first", overrides=["model.weights=none"])  # doctest: +SKIP
    """
    progress = progress or Silence()
    run, place = RunFolder(Path(out)), place_told()
    if place is not None and not place.is_leader:
        return _take_part(run, place)
    with waited_for(place):
        return _lead(data, run, place, config, overrides, resume=resume, force=force, progress=progress)


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
    prepared = prepare(data, read_config(config, overrides))
    manifest = draw_split(prepared.manifest, prepared.config)
    if set(prepared.config.model.starts) <= {"pretrained", "none"}:
        classifier = build(architecture_of(prepared.config, len(manifest.class_names)))
    else:
        classifier = starting_classifier(prepared.config, manifest)  # a path costs no download, and may be wrong
    apply_every_freeze(classifier, prepared.config.model)
    return make_plan(
        classifier,
        prepared.config,
        num_images={name: len(manifest.of_split(name)) for name in SPLITS},
        class_names=manifest.class_names,
        num_quarantined=len(manifest) - len(manifest.usable()),
        notes=prepared.notes,
    )


def check(
    data: str | PathLike[str],
    out: str | PathLike[str] | None = None,
    *,
    config: Config | str | PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
) -> CheckResult:
    """Ask of a set-up what a minute can tell, before hours are spent on it; at most 1,300 images are decoded.

    Args:
        data: as for `train`.
        out: folder for `check.json` and the plot of the learning-rate range; nothing is written if not given.
        config: as for `train`.
        overrides: as for `train`.
        progress: where to show it.

    Raises:
        ConfigError: as `train`.
        DataError: as `train`.
        ArtifactError: the starting weights cannot be had.
    """
    prepared = prepare(data, read_config(config, overrides))
    classifier = starting_classifier(prepared.config, prepared.manifest)
    return check_setup(prepared.manifest, classifier, prepared.config, progress, out=None if out is None else Path(out))


def _lead(
    data: str | PathLike[str] | None,
    run: RunFolder,
    place: Place | None,
    config: Config | str | PathLike[str] | None,
    overrides: Sequence[str],
    *,
    resume: bool,
    force: bool,
    progress: Progress,
) -> TrainResult:
    """`train` in the process that reads the data and writes the run."""
    going_on = resume and is_run_folder(run.path)
    if resume and force:
        raise ConfigError("--resume goes on with a run and --force starts it anew.", fix="give one of them.")
    if data is None and not going_on:
        if resume:
            open_run(run.path)
        raise ConfigError("train needs DATA, or --resume with the --out of a run.", fix="see foveal train --help")
    chosen = read_config(config, overrides)
    if not going_on:
        check_place(place, devices=chosen.train.devices, nodes=chosen.train.nodes)
        if data is not None:
            refuse_inside(run.path, data)
        _check_free(run, force=force)
    run.prepare()
    with run.lock():
        if going_on:
            prepared = _take_up(run, chosen)
            if data is not None:
                progress.say("Going on with the data that the run began with; DATA is not read again.")
        else:
            clear(run)
            with run.stage("scan"):
                prepared = prepare(data or "", chosen)
        outcome = execute(run, prepared, progress)
        with run.stage("heatmaps"):
            draw_heatmaps(run)
        with run.stage("report"):
            report = build_report(run)
    return TrainResult(run.path, outcome.metrics, outcome.best_epoch, report, run.bundle)


def _take_part(run: RunFolder, place: Place) -> TrainResult:
    """Be one of the other processes of a training that is led elsewhere, and come to its result."""
    follow(run, place)
    outcome = finished(run)
    if outcome is None:
        raise ArtifactError(
            f"The process that leads has ended, and {run.path} does not hold a finished run.",
            fix="mend what the leader says; if it has finished, let all machines see the same folder under the same "
            "path, as docs/scale.md says.",
        )
    return TrainResult(run.path, outcome.metrics, outcome.best_epoch, run.report, run.bundle)


def _take_up(run: RunFolder, chosen: Config) -> Prepared:
    """A run as it was left; what it was interrupted in the middle of writing is swept away.

    Raises:
        ConfigError: keys are given whose values are not those of the run, or its device is not there.
        ArtifactError: its manifest is damaged.
    """
    from foveal.model.devices import choose_device

    config = load(ResolvedConfig, run.config)
    held = dict(_leaves(config.model_dump(mode="json")))
    given = _leaves(chosen.model_dump(mode="json", exclude_unset=True))
    problems = [
        f"{key}: the run has {held[key]!r}, and {value!r} is asked for"
        for key, value in given
        if value not in ("auto", held[key])
    ]
    if problems:
        raise ConfigError(
            f"{run.path} was begun with another configuration, and a run that goes on keeps its own.",
            problems=problems,
            fix="leave these keys out to go on, or train anew with another --out.",
        )
    choose_device(config.train.device)
    check_logs(config.log)
    sweep(run)
    return Prepared(config, Manifest.read(run.manifest))


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys with their values."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _check_free(run: RunFolder, *, force: bool) -> None:
    """Refuse to write into a folder that holds anything, unless told to; and over files that are not ours, always."""
    if not run.path.is_dir():
        return  # where a file stands in its place, `prepare` says so
    if is_run_folder(run.path) and not force:
        raise ArtifactError(
            f"{run.path} holds a run already.",
            fix="choose another --out, go on with it by --resume, or start anew by --force.",
        )
    own, ours = files_of(run), _is_ours(run)
    foreign = [] if ours else sorted(str(file.relative_to(run.path)) for file in own if file.exists())
    if foreign:
        raise ArtifactError(
            f"{run.path} is no run of foveal, and holds files that a run would overwrite: {', '.join(foreign[:5])}.",
            fix="choose another --out.",
        )
    # A start that ended early, as by a wrong label, left nothing that anybody would miss.
    of_no_weight = {".lock", *PLACES, *(file.name for file in own)} if ours else {".lock"}
    held = sorted(path.name for path in run.path.iterdir() if path.name not in of_no_weight)
    if held and not force:
        raise ArtifactError(
            f"{run.path} is not empty: it holds {', '.join(held[:5])}.",
            fix="choose another --out, or write into it all the same by --force.",
        )


def _is_ours(run: RunFolder) -> bool:
    """Whether foveal has worked in this folder: the lock says so, and where a copy lacks it, the manifest."""
    lock = run.path / ".lock"
    if lock.is_file():
        content = lock.read_bytes()
        return not content or content.startswith(b"pid ")
    with suppress(ArtifactError):
        return is_run_folder(run.path) and is_manifest(run.manifest)
    return False
