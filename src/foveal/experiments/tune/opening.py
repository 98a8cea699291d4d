"""Opening a study: new or gone on with, by one worker at a time, and refused where anything is not as it was."""

import math
import secrets
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from foveal.config import known_keys
from foveal.errors import ArtifactError, ConfigError
from foveal.experiments.shared_data import SharedData
from foveal.experiments.tune.ending import is_better_high
from foveal.experiments.tune.space import SearchSpace
from foveal.experiments.tune.storage import DATABASE, StudyStorage
from foveal.experiments.tune.table import trials_begun
from foveal.experiments.tune.trials import PrunerName, SamplerName, Trials, Worker
from foveal.extras import require
from foveal.file_lock import locked_in_turn
from foveal.files import read_json, write_json
from foveal.progress import Progress
from foveal.run_folder import ExperimentFolder
from foveal.training.config import Config

_NOTES = ".study.json"
_SPACE, _CONFIGURED = "space of ", "configured "
_SIDE_FILES = (f"{DATABASE}-journal", f"{DATABASE}-wal", f"{DATABASE}-shm", _NOTES)


@dataclass(frozen=True)
class TuneSettings:
    """How a study goes about it.

    Attributes:
        num_trials: how many the study is to have in all; None without a bound.
        hours: for how long this worker begins or goes on with trials; None without a bound.
        sampler: how values are chosen.
        pruner: how trials without hope are found and ended.
        storage: URL of a PostgreSQL database; None for a file in the folder.
    """

    num_trials: int | None = None
    hours: float | None = None
    sampler: SamplerName = "tpe"
    pruner: PrunerName = "median"
    storage: str | None = None


@dataclass(frozen=True)
class OpenStudy:
    """A study that can be worked on.

    Attributes:
        trials: of the study.
        shared: its data.
        home: where it is to be brought to its end; empty where that is in this folder.
    """

    trials: Trials
    shared: SharedData
    home: str


def check_settings(config: Config, settings: TuneSettings) -> None:
    """Refuse settings with which no study can be run.

    Raises:
        ConfigError: with all that is wrong.
    """
    problems = []
    if settings.num_trials is None and settings.hours is None and settings.sampler != "grid":
        problems.append("give --trials N, --hours H or both: a study has no end of its own")
    if settings.num_trials is not None and settings.num_trials < 1:
        problems.append(f"--trials {settings.num_trials}: expected 1 or more")
    if settings.hours is not None and not (math.isfinite(settings.hours) and settings.hours > 0):
        problems.append(f"--hours {settings.hours:g}: expected more than 0")
    if config.train.devices * config.train.nodes > 1:
        problems.append("train.devices and train.nodes: a trial trains in one process; start more workers instead")
    if problems:
        raise ConfigError("The study cannot begin.", problems=problems, fix="see foveal tune --help.")


def open_study(
    data: str | PathLike[str],
    folder: ExperimentFolder,
    space: SearchSpace,
    settings: TuneSettings,
    progress: Progress,
    storage: StudyStorage,
    worker: Worker,
    *,
    force: bool,
) -> OpenStudy:
    """The study with its data, new or gone on with; one worker at a time.

    Raises:
        ConfigError: the settings are not those of the study that is to go on; all differences at once.
        DataError: as `train`, or the data has changed since the study began.
        ArtifactError: the folder holds something else, or the storage is damaged or out of reach.
    """
    monitor = space.base.train.early_stopping.monitor
    asked = _settings_of(data, space, settings, storage)
    if folder.settings.is_file() and not force:
        folder.begin("tune", asked)  # before waiting for whoever works here
    with locked_in_turn(folder.path / ".lock", f"opening the study in {folder.path}", progress.say):
        if force:
            _forget(folder, storage, worker)
        folder.begin("tune", asked, force=force)
        has_trials = bool(trials_begun(folder))
        with storage.mutex():
            rdb = storage.open(has_trials=has_trials)
            trials = Trials(
                storage,
                rdb,
                worker,
                space,
                seed=space.base.seed,
                sampler=settings.sampler,
                pruner=settings.pruner,
                maximise=is_better_high(monitor),
            )
        shared = SharedData.prepare(data, space.base, folder, progress)
        _check_monitor(monitor, len(shared.manifest.class_names))
        with storage.mutex():
            _agree(trials, {**asked, "data": shared.manifest.fingerprint()}, storage)
            home = _home(folder, trials, worker, settings.num_trials)
    return OpenStudy(trials, shared, home)


def _settings_of(
    data: str | PathLike[str], space: SearchSpace, settings: TuneSettings, storage: StudyStorage
) -> dict[str, Any]:
    """What must be the same for a study to go on, a plain value a key."""
    path = Path(data)
    base = space.base.model_dump(mode="json", exclude_unset=True)
    # Of the machine, and not of the study.
    base.get("train", {}).pop("device", None)
    base.get("data", {}).pop("num_workers", None)
    return {
        "data": str(path.resolve()) if path.exists() else str(data),
        "storage": storage.shown,
        "sampler": settings.sampler,
        "pruner": settings.pruner,
        "seed": space.base.seed,
        **{f"{_SPACE}{key}": line for key, line in space.to_dict().items()},
        **{f"{_CONFIGURED}{key}": value for key, value in _leaves(base, {key for key, _ in known_keys(Config)})},
    }


def _leaves(tree: Mapping[str, Any], keys: Container[str], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys of a configuration with their values, which may be mappings themselves."""
    for name, value in tree.items():
        if prefix + name in keys:
            yield prefix + name, value
        else:
            yield from _leaves(value, keys, f"{prefix}{name}.")


def _forget(folder: ExperimentFolder, storage: StudyStorage, worker: Worker) -> None:
    """Remove a study from its storage, and what stands beside it.

    Raises:
        ArtifactError: somebody works on it.
    """
    if others := worker.others():
        raise ArtifactError(
            f"{len(others)} other worker{'s' if len(others) > 1 else ''} of this machine still "
            f"work{'s' if len(others) == 1 else ''} in {folder.path} (process {others[0].partition('-')[0]}).",
            fix="end them before --force, or choose another --out.",
        )
    if not folder.settings.is_file():
        return
    for name in _SIDE_FILES:
        # A journal that was left behind would be played into the new database.
        (folder.path / name).unlink(missing_ok=True)
    if storage.is_server:
        optuna = require("optuna", extra="train", purpose="tune")
        with storage.mutex():
            rdb = storage.open(has_trials=False)
            with storage.speaking():
                if storage.study_name in optuna.get_all_study_names(rdb):
                    optuna.delete_study(study_name=storage.study_name, storage=rdb)


def _check_monitor(monitor: str, num_classes: int) -> None:
    if monitor == "val_top_3_accuracy" and num_classes <= 3:
        raise ConfigError(
            f"train.early_stopping.monitor={monitor} says nothing with {num_classes} classes.",
            fix="monitor val_macro_f1 or val_accuracy.",
        )


def _agree(trials: Trials, asked: Mapping[str, Any], storage: StudyStorage) -> None:
    """Write the settings to the storage, or compare with those that other workers wrote.

    Raises:
        ConfigError: they differ.
    """
    # The same images may lie elsewhere on another machine: the fingerprint stands for them.
    mine = {key: value for key, value in asked.items() if key != "storage"}
    kept = trials.kept("settings")
    if kept is None:
        trials.keep("settings", mine)
        return
    problems = [
        f"{key}: the study has {kept.get(key)!r}, and {mine.get(key)!r} is asked for"
        for key in dict.fromkeys([*kept, *mine])
        if kept.get(key) != _as_kept(mine.get(key))
    ]
    if problems:
        raise ConfigError(
            f"The study {storage.study_name!r} in {storage.shown} was begun with other settings.",
            problems=problems,
            fix="give the same settings and data to work on it, or choose an --out with another name.",
        )


def _as_kept(value: Any) -> Any:
    """A plain value as it comes back from JSON."""
    if isinstance(value, Mapping):
        return {str(key): _as_kept(each) for key, each in value.items()}
    return [_as_kept(each) for each in value] if isinstance(value, list | tuple) else value


def _home(folder: ExperimentFolder, trials: Trials, worker: Worker, num_trials: int | None) -> str:
    """Where the study is to be brought to its end; empty where that is here."""
    own = _own_notes(folder) or {"mark": secrets.token_hex(8)}
    write_json(folder.path / _NOTES, {**own, "num_trials": num_trials})
    home = trials.kept("home")
    if home is None:
        trials.keep("home", {"mark": own["mark"], "place": f"{folder.path.resolve()} on {worker.host}"})
        return ""
    return "" if home["mark"] == own["mark"] else str(home["place"])


def _own_notes(folder: ExperimentFolder) -> dict[str, Any]:
    """What this folder keeps of a study for itself: its own mark, and how many trials were asked for last."""
    file = folder.path / _NOTES
    notes = read_json(file) if file.is_file() else {}
    return notes if isinstance(notes, dict) else {}


@dataclass(frozen=True)
class Begun:
    """What a study was begun with.

    Attributes:
        data: the DATA of the command.
        lines: of the space, by key.
        base: the configuration around it, as plain values in sections.
        settings: how it goes about it; without the storage's password.
    """

    data: str
    lines: Mapping[str, Any]
    base: Mapping[str, Any]
    settings: TuneSettings


def begun_with(folder: ExperimentFolder) -> Begun:
    """What the study in a folder was begun with, so that it can go on without being told again.

    Raises:
        ArtifactError: the folder holds no study.
    """
    held = read_json(folder.settings) if folder.settings.is_file() else {}
    if not isinstance(held, dict) or held.get("verb") != "tune":
        raise ArtifactError(
            f"{folder.path} holds no study that could go on.",
            fix="begin one: foveal tune DATA --space FILE --trials N --out STUDY",
        )
    base: dict[str, Any] = {}
    for key, value in held.items():
        if key.startswith(_CONFIGURED):
            *sections, last = key.removeprefix(_CONFIGURED).split(".")
            node = base
            for section in sections:
                node = node.setdefault(section, {})
            node[last] = value
    lines = {key.removeprefix(_SPACE): value for key, value in held.items() if key.startswith(_SPACE)}
    settings = TuneSettings(
        num_trials=_own_notes(folder).get("num_trials"),
        sampler=held["sampler"],
        pruner=held["pruner"],
        storage=None if held["storage"] == DATABASE else held["storage"],
    )
    return Begun(held["data"], lines, base, settings)
