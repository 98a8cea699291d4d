"""Who works on which trial of a study: each is claimed once, and what a dead worker left is done by another.

A study's trials are numbered from 0, and none is counted twice: a trial whose worker died goes back into the queue
under its own number, with the values it was given, so that N trials are N trials however often a study was killed.
Optuna's own way, to fail such a trial and to add a copy of it, would leave the dead ones in the count.
"""

import os
import secrets
import socket
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from foveal.data.batches import derive_seed
from foveal.errors import ConfigError, FovealError
from foveal.experiments.tune.space import Dimension, Drawn, Plain, SearchSpace
from foveal.experiments.tune.storage import HEARTBEAT_SECONDS, StorageError, StudyStorage
from foveal.extras import require
from foveal.file_lock import is_locked, locked_in_turn

SamplerName = Literal["tpe", "random", "grid"]
PrunerName = Literal["median", "asha", "none"]

MAX_DEATHS = 5
"""Workers that a trial may cost without an epoch more than before: a kernel short of memory kills without a word."""
STARTUP_TRIALS = 10
"""Trials at random before TPE has seen enough."""
PRUNE_AFTER_TRIALS, PRUNE_AFTER_EPOCHS = 5, 2
"""Trials that must have come to their end before the median says anything, and epochs that each trial is given."""
LEAST_FOR_IMPORTANCE = 4
"""Complete trials below which nobody can say what mattered."""
_ASHA_FACTOR = 3


class Worker:
    """This process, in a way that others can tell whether it lives.

    Args:
        folder: of the study.
    """

    def __init__(self, folder: Path) -> None:
        self._places = folder / ".workers"
        self.host = socket.gethostname()
        self.token = f"{os.getpid()}-{secrets.token_hex(4)}"

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Hold this worker's own lock for the length of the block."""
        self._places.mkdir(exist_ok=True)
        place = self._places / self.token
        with locked_in_turn(place):
            try:
                yield
            finally:
                place.unlink(missing_ok=True)

    def others(self) -> list[str]:
        """Tokens of the other workers that live and work in this folder."""
        if not self._places.is_dir():
            return []
        return [place.name for place in self._places.iterdir() if place.name != self.token and is_locked(place)]

    def knows_dead(self, name: str) -> bool | None:
        """Whether the worker of that name is dead; None where only its silence could tell."""
        host, _, token = name.rpartition(" ")
        place = self._places / token
        if token == self.token or host != self.host or not place.exists():
            return False if token == self.token else None
        return not is_locked(place)

    @property
    def name(self) -> str:
        """As trials keep it."""
        return f"{self.host} {self.token}"


class Trials:
    """The trials of one study.

    Args:
        storage: opened.
        worker: at work.
        space: what varies.
        seed: of the study.
        sampler: how values are chosen.
        pruner: how a trial without hope is found.
        maximise: whether the monitored figure is better where it is higher.
    """

    def __init__(
        self,
        storage: StudyStorage,
        rdb: Any,
        worker: Worker,
        space: SearchSpace,
        *,
        seed: int,
        sampler: SamplerName,
        pruner: PrunerName,
        maximise: bool,
    ) -> None:
        optuna = require("optuna", extra="train", purpose="tune")
        self._storage, self._worker, self._space, self._seed, self._sampler = storage, worker, space, seed, sampler
        self._grid = shuffled_grid(space, seed) if sampler == "grid" else None
        self.states = optuna.trial.TrialState
        with storage.speaking():
            self.study: Any = optuna.create_study(
                storage=rdb,
                study_name=storage.study_name,
                direction="maximize" if maximise else "minimize",
                load_if_exists=True,
                pruner=_pruner(pruner),
                sampler=optuna.samplers.RandomSampler(seed=seed),
            )

    def all(self) -> list[Any]:
        """Every trial as it stands now, in the order of their numbers."""
        with self._storage.speaking():
            found: list[Any] = self.study.get_trials(deepcopy=False)
            return found

    @property
    def grid_size(self) -> int | None:
        """Number of points of the grid; None without one."""
        return None if self._grid is None else len(self._grid)

    def importance(self) -> dict[str, float]:
        """How much of the differences between trials goes with each parameter, the largest first; empty where unknown.

        By conditional PED-ANOVA (Watanabe et al. 2023; 2026), which takes parameters that exist in some trials only.
        """
        importance = require("optuna.importance", extra="train", purpose="tune")
        complete = [trial for trial in self.all() if trial.state == self.states.COMPLETE]
        varied = {name for trial in complete for name in trial.params}
        if len(complete) < LEAST_FOR_IMPORTANCE or len(varied) < 2 or len({trial.value for trial in complete}) < 2:
            return {}
        with self._storage.speaking(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = importance.get_param_importances(self.study)
        return {name: float(value) for name, value in found.items()}

    def keep(self, name: str, value: Any) -> None:
        """Keep plain values with the study."""
        with self._storage.speaking():
            self.study.set_user_attr(name, value)

    def kept(self, name: str) -> Any:
        """What `keep` was given; None without it."""
        with self._storage.speaking():
            return self.study.user_attrs.get(name)

    def claim(self, limit: int | None) -> Any:
        """The next trial, for this worker alone: one that waits before a new one.

        Args:
            limit: number of trials that the study is to have in all; None without a bound.

        Returns:
            The trial, or None where all are claimed.
        """
        optuna = require("optuna", extra="train", purpose="tune")
        limits = [bound for bound in (limit, self.grid_size) if bound is not None]
        with self._storage.mutex(), self._storage.speaking():
            self._take_back()
            trials = self.study.get_trials(deepcopy=False)
            waiting = [each.number for each in trials if each.state == self.states.WAITING]
            if not any(not limits or number < min(limits) for number in waiting):
                if limits and len(trials) >= min(limits):
                    return None
                if self._grid is not None:
                    self.study.enqueue_trial(dict(self._grid[len(trials)].parameters))
            with warnings.catch_warnings():
                # It warns that nobody would send the heartbeat, which `at_work_on` does.
                warnings.simplefilter("ignore", UserWarning)
                trial = self.study.ask()
            # In this order: a running trial with a worker's name has a heartbeat too.
            self._storage.beat(trial._trial_id)
            trial.set_user_attr("worker", self._worker.name)
        self.study.sampler = (
            optuna.samplers.TPESampler(seed=self.seed_of(trial.number), n_startup_trials=STARTUP_TRIALS)
            if self._sampler == "tpe"
            else optuna.samplers.RandomSampler(seed=self.seed_of(trial.number))
        )
        return trial

    def seed_of(self, number: int) -> int:
        """The seed that the values of a trial are drawn with, whoever draws them."""
        return int(derive_seed(self._seed, 31, number) % (1 << 32))

    def draw(self, trial: Any) -> Drawn:
        """The values of a trial: those that it was given before, else new ones."""

        def choose(dimension: Dimension) -> Plain:
            name = dimension.name
            if dimension.kind == "categorical":
                chosen: Plain = trial.suggest_categorical(name, dimension.choices)
                return chosen
            if dimension.kind == "int":
                step = int(dimension.step or 1)
                return int(
                    trial.suggest_int(
                        name,
                        int(dimension.low),
                        int(dimension.high),
                        step=1 if dimension.log else step,
                        log=dimension.log,
                    )
                )
            return float(
                trial.suggest_float(name, dimension.low, dimension.high, step=dimension.step, log=dimension.log)
            )

        with self._storage.speaking():
            return self._space.draw(choose)

    @contextmanager
    def at_work_on(self, trial: Any) -> Iterator[None]:
        """Send the heartbeat of a trial for the length of the block; where it ends early, the trial waits again."""
        stop = threading.Event()
        thread = threading.Thread(target=self._beat, args=(trial._trial_id, stop), daemon=True)
        thread.start()
        try:
            yield
        except BaseException:
            self._release(trial)
            raise
        finally:
            stop.set()
            thread.join()

    def reported(self, trial: Any) -> set[int]:
        """Epochs of a trial whose figure is known, by whichever worker."""
        with self._storage.speaking():
            return set(self._now(trial).intermediate_values)

    def report(self, trial: Any, epoch: int, figure: float) -> None:
        """Note the monitored figure after an epoch."""
        with self._storage.speaking():
            trial.report(figure, epoch)

    def should_stop(self, trial: Any) -> bool:
        """Whether the trial has no hope, by the pruner."""
        with self._storage.speaking():
            return bool(trial.should_prune())

    def end(self, trial: Any, state: Any, figure: float | None = None, **facts: Any) -> bool:
        """Write what a trial came to.

        Args:
            trial: claimed by this worker.
            state: complete, pruned or failed.
            figure: of a complete trial.
            **facts: plain values to keep with it.

        Returns:
            Whether it was still ours: a worker that was silent for too long has lost its trial to another.
        """
        with self._storage.mutex(), self._storage.speaking():
            now = self._now(trial)
            if now.state != self.states.RUNNING or now.user_attrs.get("worker") != self._worker.name:
                return False
            for name, value in facts.items():
                trial.set_user_attr(name, value)
            self.study.tell(trial, figure, state)
        return True

    def _now(self, trial: Any) -> Any:
        return self.study._storage.get_trial(trial._trial_id)

    def _release(self, trial: Any) -> None:
        # Whatever ends the block is to be told, and not that the server is gone as well; the heartbeat tells then.
        with suppress(FovealError), self._storage.mutex(), self._storage.speaking():
            now = self._now(trial)
            if now.state == self.states.RUNNING and now.user_attrs.get("worker") == self._worker.name:
                self._requeue(trial._trial_id)

    def _requeue(self, trial_id: int) -> None:
        storage = self.study._storage
        storage.set_trial_user_attr(trial_id, "worker", None)
        storage.set_trial_state_values(trial_id, self.states.WAITING)

    def _take_back(self) -> None:
        """Let trials of dead workers wait again, or fail where they killed several."""
        silent = self._storage.silent_trials(self.study._study_id)
        for trial in self.study.get_trials(deepcopy=False, states=(self.states.RUNNING,)):
            name = trial.user_attrs.get("worker")
            # Claims are made with the mutex held: one without a name was cut short.
            is_dead = self._worker.knows_dead(name) if name else True
            if not (is_dead or (is_dead is None and trial._trial_id in silent)):
                continue
            num_deaths, num_epochs = trial.user_attrs.get("deaths", (0, 0))
            reported = len(trial.intermediate_values)
            num_deaths = num_deaths + 1 if reported <= num_epochs else 1
            storage = self.study._storage
            storage.set_trial_user_attr(trial._trial_id, "deaths", (num_deaths, max(reported, num_epochs)))
            if name and num_deaths >= MAX_DEATHS:
                reason = (
                    f"its worker was killed {num_deaths} times in the same epoch; too little memory looks like this"
                )
                storage.set_trial_user_attr(trial._trial_id, "reason", reason)
                storage.set_trial_state_values(trial._trial_id, self.states.FAIL)
            else:
                self._requeue(trial._trial_id)

    def _beat(self, trial_id: int, stop: threading.Event) -> None:
        while not stop.wait(HEARTBEAT_SECONDS):
            # A server that is away for a moment is asked again; the trial itself fails where it stays away.
            with suppress(StorageError), self._storage.speaking():
                self._storage.beat(trial_id)


def shuffled_grid(space: SearchSpace, seed: int) -> Sequence[Drawn]:
    """All points of a space that are configurations, in an order that depends on the seed alone.

    In the order of the lines, a study that ends early would know one corner only.

    Raises:
        ConfigError: a range has no end of values, or no point is a configuration.
    """
    import numpy as np

    points = []
    problems: dict[str, None] = {}
    for point in space.grid():
        try:
            space.configure(point.values, origin="the grid")
        except ConfigError as error:
            problems |= dict.fromkeys(error.problems)
        else:
            points.append(point)
    if not points:
        raise ConfigError("No point of the grid is a configuration.", problems=list(problems))
    order = np.random.default_rng(derive_seed(seed, 37)).permutation(len(points))
    return [points[place] for place in order]


def _pruner(name: PrunerName) -> Any:
    pruners = require("optuna.pruners", extra="train", purpose="tune")
    if name == "none":
        return pruners.NopPruner()
    if name == "asha":
        # Li et al., "A System for Massively Parallel Hyperparameter Tuning", 2020.
        return pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=_ASHA_FACTOR)
    return pruners.MedianPruner(n_startup_trials=PRUNE_AFTER_TRIALS, n_warmup_steps=PRUNE_AFTER_EPOCHS)
