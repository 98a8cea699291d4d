"""Tuning: trials of one configuration with other values, judged on validation; the winner is compared on test.

A study is its storage, which says what each trial was given and came to, and its folder, in which trials are run
folders. Any number of workers may work on it; one of them, in the folder where the study began, brings it to its end.
"""

import gc
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from os import PathLike
from typing import Any

from foveal.errors import DataError, FovealError, InterruptedRunError, MissingExtraError, TrainingError
from foveal.experiments.preparing import Settled
from foveal.experiments.sub_run import train_in
from foveal.experiments.tune.ending import StudyEnd, conclude, is_better_high
from foveal.experiments.tune.opening import OpenStudy, TuneSettings, check_settings, open_study
from foveal.experiments.tune.space import Drawn, SearchSpace
from foveal.experiments.tune.storage import StorageError, StudyStorage
from foveal.experiments.tune.table import figure_of, told, trial_name
from foveal.experiments.tune.trials import Worker
from foveal.extras import require
from foveal.file_lock import is_locked, locked_in_turn
from foveal.progress import Bar, Progress
from foveal.run_folder import ExperimentFolder, RunFolder, cpu_seconds

GIVE_UP_AFTER = 3
"""Failed trials after which a study ends, if none has come to anything."""
_LOOK_SECONDS = 2.0


@dataclass(frozen=True)
class TuneOutcome:
    """What this worker leaves behind.

    Attributes:
        trials: every trial of the study as it stands, a row each.
        end: the comparison of the winner with the default; None where it is left to another worker.
        notes: what there is to say besides.
    """

    trials: tuple[Mapping[str, Any], ...]
    end: StudyEnd | None
    notes: tuple[str, ...]


class _BudgetOverError(Exception):
    """The hours are over; the trial goes on another time."""


def tune(
    data: str | PathLike[str],
    folder: ExperimentFolder,
    space: SearchSpace,
    settings: TuneSettings,
    progress: Progress,
    *,
    force: bool = False,
) -> TuneOutcome:
    """Bring a study to its trials, from wherever it is, and the winner to the test split.

    Args:
        data: as for `train`.
        folder: of the study.
        space: what varies, and the configuration around it.
        settings: see `TuneSettings`.
        progress: where to show it.
        force: whether to start anew.

    Raises:
        ConfigError: a setting is wrong, or not that of the study that is to go on; all at once.
        DataError: the data is not what training needs, or has changed since the study began.
        ArtifactError: the folder cannot be used, or the storage is damaged or out of reach.
        TrainingError: no trial comes to anything.
        InterruptedRunError: Ctrl-C or SIGTERM; the trial that was at work goes on by the same command.
    """
    check_settings(space.base, settings)
    folder.prepare()
    worker = Worker(folder.path)
    with closing(StudyStorage(folder.path, settings.storage)) as storage, _quiet_optuna():
        opened = open_study(data, folder, space, settings, progress, storage, worker, force=force)
        study = _Study(folder, space, settings, progress, opened)
        with worker.at_work():
            study.run_trials()
            trials = study.table()
            if not study.is_home:
                notes = (f"The study began in {study.home}; there the same command compares its winner on test.",)
                return TuneOutcome(trials, None, notes)
            with locked_in_turn(folder.path / ".end.lock", f"ending the study in {folder.path}", progress.say):
                end = conclude(folder, space, study.shared, trials, study.monitor, study.trials.importance(), progress)
        return TuneOutcome(study.table(), end, ())


class _Study:
    """One worker's part in a study."""

    def __init__(
        self,
        folder: ExperimentFolder,
        space: SearchSpace,
        settings: TuneSettings,
        progress: Progress,
        opened: OpenStudy,
    ) -> None:
        self.folder, self.space, self.settings, self.progress = folder, space, settings, progress
        self.trials, self.shared, self.home = opened.trials, opened.shared, opened.home
        self.monitor = space.base.train.early_stopping.monitor
        self.deadline = math.inf if settings.hours is None else time.monotonic() + 3600.0 * settings.hours

    @property
    def is_home(self) -> bool:
        return not self.home

    def table(self) -> tuple[Mapping[str, Any], ...]:
        return told(self.trials.all(), self.folder)

    def run_trials(self) -> None:
        """Work on trials until all are done, or the time is over."""
        self._sweep()
        self._say_beginning()
        is_waiting = False
        while time.monotonic() < self.deadline:
            with self.timed("claim"):
                trial = self.trials.claim(self.settings.num_trials)
            if trial is not None:
                is_waiting = False
                try:
                    self.run_trial(trial)
                except _BudgetOverError:
                    self.progress.say(f"The time is over; trial {trial.number} goes on by the same command.")
                    return
                self.give_up_if_hopeless()
                continue
            num_running = sum(each.state == self.trials.states.RUNNING for each in self.trials.all())
            if not num_running or not self.is_home:
                return
            if not is_waiting:
                self.progress.say(f"Other workers have {num_running} trials at hand; waiting for them.")
                is_waiting = True
            with self.timed("wait"):
                time.sleep(_LOOK_SECONDS)

    def run_trial(self, trial: Any) -> None:
        """Train with one point of the space, and write what came of it."""
        states = self.trials.states
        run = self.folder.run(trial_name(trial.number))
        with self.trials.at_work_on(trial):
            with self.timed("sample"):
                drawn = self.trials.draw(trial)
            run.prepare()
            if is_locked(run.path / ".lock"):
                raise StorageError(
                    f"Another process still works in {run.path}, though nothing was heard of it.",
                    fix="end it, or wait for it; then the same command goes on.",
                )
            facts: dict[str, Any] = {}
            figure: float | None = None
            try:
                with self.timed("trial"):
                    figure, facts = self.train(trial, run, drawn)
                state = states.COMPLETE
            except _pruned():
                state = states.PRUNED
            except (StorageError, DataError, InterruptedRunError, MissingExtraError, _BudgetOverError, OSError):
                raise  # no fault of the trial
            except Exception as error:
                if type(error) is FovealError:  # the disk is full
                    raise
                state, facts = states.FAIL, {"reason": _reason(error)}
            with self.timed("record"):
                is_ours = self.trials.end(trial, state, figure, **facts)
        if not is_ours:
            self.progress.say(f"Trial {trial.number} was silent for so long that another worker took it.")
            return
        with self.timed("record"):
            _remove_weights(run)
            self._tell(trial)
        if state == states.FAIL:
            _free_memory()

    def train(self, trial: Any, run: RunFolder, drawn: Drawn) -> tuple[float, dict[str, Any]]:
        """The monitored figure of the best epoch, and what else to keep."""
        config = self.space.configure(drawn.values, origin=f"trial {trial.number}")
        settled: Settled = self.shared.settled(config)
        num_epochs = settled.config.train.epochs

        reported = self.trials.reported(trial)

        def report() -> None:
            # All that the table has: a worker may have been killed between an epoch's checkpoint and its report.
            for past in run.read_epochs():
                epoch, known = int(past["epoch"]), figure_of(past, self.monitor)
                if epoch not in reported and known is not None:
                    self.trials.report(trial, epoch, known)
                    reported.add(epoch)

        def after_epoch(row: Mapping[str, Any]) -> None:
            report()
            if int(row["epoch"]) >= num_epochs:
                return  # there is nothing left to save
            if self.trials.should_stop(trial):
                raise _pruned()()
            if time.monotonic() >= self.deadline:
                raise _BudgetOverError

        watched = _BarsOnly(self.progress, f"Trial {trial.number}")
        outcome = train_in(run, settled, watched, splits=("val",), with_plots=False, after_epoch=after_epoch)
        report()
        rows = {int(row["epoch"]): row for row in run.read_epochs()}
        figure = figure_of(rows[outcome.best_epoch], self.monitor)
        if figure is None:
            raise TrainingError(f"{self.monitor} is not defined in epoch {outcome.best_epoch}.")
        return figure, {"best_epoch": outcome.best_epoch}

    def give_up_if_hopeless(self) -> None:
        """End a study whose first trials have all failed.

        Raises:
            TrainingError: with the reason of each.
        """
        ended = [each for each in self.trials.all() if each.state.is_finished()]
        if len(ended) < GIVE_UP_AFTER or any(each.state != self.trials.states.FAIL for each in ended):
            return
        raise TrainingError(
            f"The first {len(ended)} trials have all failed, so that the rest would too.",
            problems=[f"trial {each.number}: {each.user_attrs.get('reason', 'unknown')}" for each in ended],
            fix="mend the configuration or the space, and begin a new study with another --out or --force.",
        )

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time of a stage to timings.json, which several workers write."""
        wall, cpu = time.perf_counter(), cpu_seconds()
        try:
            yield
        finally:
            wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
            with locked_in_turn(self.folder.path / ".timings.lock"):
                self.folder.add_time(stage, wall, cpu)

    def _sweep(self) -> None:
        """Remove the weights of trials that had ended when their worker was killed."""
        for each in self.trials.all():
            run = self.folder.run(trial_name(each.number))
            if each.state.is_finished() and run.path.is_dir() and not is_locked(run.path / ".lock"):
                _remove_weights(run)

    def _say_beginning(self) -> None:
        num_ended = sum(each.state.is_finished() for each in self.trials.all())
        size = self.trials.grid_size
        bounds = [bound for bound in (self.settings.num_trials, size) if bound is not None]
        aim = f"{min(bounds):,} trials" if bounds else f"as many trials as {self.settings.hours:g} hours hold"
        grid = f" of a grid of {size:,} points" if size is not None else ""
        begun = f"; {num_ended:,} are done" if num_ended else ""
        self.progress.say(f"Study of {aim}{grid}, by {self.monitor}{begun}.")

    def _tell(self, trial: Any) -> None:
        rows = self.table()
        row = next(each for each in rows if each["number"] == trial.number)
        known = [each for each in rows if each["state"] == "complete"]
        self.folder.log_event("trial", **{name: row[name] for name in ("number", "state", "figure", "reason")})
        words = {
            "complete": f"{self.monitor} {row['figure'] or 0.0:.4f}",
            "pruned": f"stopped after epoch {row['num_epochs']}",
            "failed": f"failed: {row['reason']}",
        }
        best = ""
        if known:
            pick = max if is_better_high(self.monitor) else min
            leader = pick(known, key=lambda each: each["figure"])
            best = f"; best so far {leader['figure']:.4f} of trial {leader['number']}"
        values = ", ".join(f"{name}={value}" for name, value in row["values"].items())
        self.progress.say(f"Trial {trial.number}: {words.get(row['state'], row['state'])}{best}  ({values})")


class _BarsOnly:
    """Shows a trial's bars under its name, and leaves its sentences to its own log."""

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress, self._name = progress, name

    @contextmanager
    def bar(self, description: str, total: int, unit: str) -> Iterator[Bar]:
        """The same bar with the trial's name before it."""
        with self._progress.bar(f"{self._name}: {description.lower()}", total, unit) as bar:
            yield bar

    def say(self, text: str) -> None:
        """Nothing: a study of a hundred trials would fill the screen."""


def _pruned() -> Any:
    return require("optuna", extra="train", purpose="tune").TrialPruned


def _reason(error: Exception) -> str:
    """What a trial failed of, in a line."""
    if isinstance(error, FovealError):
        return " ".join([error.message, *error.problems[:3]])
    first = (str(error).strip() or "no reason given").splitlines()[0]
    return f"{type(error).__name__}: {first}"


def _remove_weights(run: RunFolder) -> None:
    """Remove the checkpoints and the bundle of an ended trial; its configuration, metrics and log stay."""
    import shutil

    for folder in (run.checkpoints, run.bundle):
        shutil.rmtree(folder, ignore_errors=True)


def _free_memory() -> None:
    """Let go of what a failed trial held on the device, before another one begins."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def _quiet_optuna() -> Iterator[None]:
    """Keep Optuna's own lines about each trial from the screen for the length of the block."""
    optuna = require("optuna", extra="train", purpose="tune")
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
