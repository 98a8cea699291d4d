"""Who works on which trial: each is claimed once, by any number of workers, and none of a dead one is lost."""

import math
import statistics
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from foveal.config import plain_yaml
from foveal.errors import ArtifactError, ConfigError
from foveal.experiments.tune import storage, trials
from foveal.experiments.tune.space import SearchSpace
from foveal.experiments.tune.space_file import make_space
from foveal.experiments.tune.storage import StudyStorage
from foveal.experiments.tune.trials import MAX_DEATHS, Trials, Worker
from foveal.training.config import Config
from small_study import SPACE, postgres_server

GRID = "optim.lr: {type: categorical, choices: [0.1, 0.01, 0.001]}\ntrain.epochs: {type: int, low: 1, high: 4}"


def space(text: str = SPACE) -> SearchSpace:
    return make_space(plain_yaml.parse(text), Config())


class Desk:
    """A worker with its own way to the study."""

    def __init__(self, folder: Path, url: str | None = None, text: str = SPACE, **settings: Any) -> None:
        folder.mkdir(exist_ok=True)
        self.stack = ExitStack()
        self.worker = Worker(folder)
        self.stack.enter_context(self.worker.at_work())
        self.storage = StudyStorage(folder, url)
        self.stack.callback(self.storage.close)
        asked: dict[str, Any] = {"seed": 3, "sampler": "random", "pruner": "none", "maximise": True} | settings
        with self.storage.mutex():
            rdb = self.storage.open(has_trials=False)
            self.trials = Trials(self.storage, rdb, self.worker, space(text), **asked)

    def leave(self) -> None:
        """As a process that ends; its trials stay as they are."""
        self.stack.close()

    def die(self) -> None:
        """As a process that is killed: its lock falls, its file stays."""
        place = self.worker._places / self.worker.token
        self.stack.close()
        place.touch()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> Iterator[str | None]:
    if request.param == "sqlite":
        yield None
        return
    with postgres_server() as server:
        yield server


def states(desk: Desk) -> list[str]:
    return [trial.state.name for trial in desk.trials.all()]


def test_many_workers_claim_each_trial_once_and_no_more_than_asked_for(url: str | None, tmp_path: Path) -> None:
    claimed: list[int] = []
    values: dict[int, Any] = {}

    def work(folder: Path) -> None:
        desk = Desk(folder, url)
        while (trial := desk.trials.claim(13)) is not None:
            with desk.trials.at_work_on(trial):
                values[trial.number] = desk.trials.draw(trial).values
                assert desk.trials.end(trial, desk.trials.states.COMPLETE, 0.5)
            claimed.append(trial.number)
        desk.leave()

    threads = [threading.Thread(target=work, args=(tmp_path / "study",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == list(range(13))
    desk = Desk(tmp_path / "study", url)
    assert states(desk) == ["COMPLETE"] * 13
    assert desk.trials.claim(13) is None
    # The values come from the seed and the number, and not from who drew them.
    alone = Desk(tmp_path / "alone")
    for number in range(13):
        trial = alone.trials.claim(None)
        assert alone.trials.draw(trial).values == values[number]
    alone.leave()
    desk.leave()


def test_a_dead_workers_trial_is_taken_up_under_its_number_with_its_values(tmp_path: Path) -> None:
    first, other = Desk(tmp_path / "study"), Desk(tmp_path / "study")
    lost, kept = first.trials.claim(3), other.trials.claim(3)
    drawn = first.trials.draw(lost)
    first.trials.report(lost, 1, 0.25)
    first.die()
    again = other.trials.claim(3)
    assert (lost.number, kept.number, again.number) == (0, 1, 0)
    assert other.trials.draw(again) == drawn
    assert other.trials.all()[0].intermediate_values == {1: 0.25}
    assert other.trials.reported(again) == {1}
    assert other.trials.end(again, other.trials.states.COMPLETE, 0.5)
    assert states(other) == ["COMPLETE", "RUNNING"]  # one that lives keeps its trial
    other.leave()


def test_a_trial_that_kills_worker_after_worker_fails(tmp_path: Path) -> None:
    for _ in range(MAX_DEATHS):
        desk = Desk(tmp_path / "study")
        assert desk.trials.claim(2).number == 0
        desk.die()
    last = Desk(tmp_path / "study")
    assert last.trials.claim(2).number == 1
    assert states(last) == ["FAIL", "RUNNING"]
    assert "killed 5 times" in last.trials.all()[0].user_attrs["reason"]
    last.leave()


def test_deaths_do_not_count_while_a_trial_gets_on(tmp_path: Path) -> None:
    for epoch in range(1, MAX_DEATHS + 3):
        desk = Desk(tmp_path / "study")
        trial = desk.trials.claim(1)
        assert trial.number == 0
        desk.trials.report(trial, epoch, 0.1)
        desk.die()


def test_a_trial_that_is_broken_off_waits_again_at_once(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "study")
    trial = desk.trials.claim(1)
    with pytest.raises(KeyboardInterrupt), desk.trials.at_work_on(trial):
        raise KeyboardInterrupt
    assert states(desk) == ["WAITING"]
    assert desk.trials.claim(1).number == 0
    desk.leave()


def test_a_worker_of_another_machine_is_dead_when_it_is_silent(
    url: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "GRACE_SECONDS", 2)
    far, here = Desk(tmp_path / "study", url), Desk(tmp_path / "study", url)
    far.worker.host = "elsewhere"
    lost = far.trials.claim(1)
    far.trials.draw(lost)
    assert here.trials.claim(1) is None  # nobody knows yet
    deadline = threading.Event()
    again = None
    for _ in range(100):
        if (again := here.trials.claim(1)) is not None:
            break
        deadline.wait(0.1)
    assert again is not None
    assert again.number == 0
    # Should it live after all, it has lost its trial, and its result is not written over the other's.
    assert not far.trials.end(lost, far.trials.states.COMPLETE, 0.9)
    assert here.trials.end(again, here.trials.states.COMPLETE, 0.5)
    assert [trial.value for trial in here.trials.all()] == [0.5]
    far.leave()
    here.leave()


def test_the_heartbeat_of_a_living_worker_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "GRACE_SECONDS", 3)
    monkeypatch.setattr(trials, "HEARTBEAT_SECONDS", 0.2)
    far, here = Desk(tmp_path / "study"), Desk(tmp_path / "study")
    far.worker.host = "elsewhere"
    trial = far.trials.claim(1)
    with far.trials.at_work_on(trial):
        threading.Event().wait(5.0)
        assert here.trials.claim(1) is None
        assert far.trials.end(trial, far.trials.states.COMPLETE, 0.9)
    far.leave()
    here.leave()


def test_a_grid_gives_each_point_once_to_all_workers_and_then_ends(tmp_path: Path) -> None:
    desks = [Desk(tmp_path / "study", text=GRID, sampler="grid") for _ in range(2)]
    found = []
    for turn in range(20):
        desk = desks[turn % 2]
        if (trial := desk.trials.claim(None)) is None:
            break
        found.append(tuple(desk.trials.draw(trial).values.values()))
        desk.trials.end(trial, desk.trials.states.COMPLETE, 0.1)
    assert sorted(found) == sorted((lr, epochs) for lr in (0.1, 0.01, 0.001) for epochs in (1, 2, 3, 4))
    for desk in desks:
        desk.leave()


@pytest.mark.parametrize(("pruner", "stops"), [("median", True), ("asha", True), ("none", False)])
def test_pruners_end_what_is_worse_than_the_others(tmp_path: Path, pruner: Any, stops: bool) -> None:
    desk = Desk(tmp_path / "study", pruner=pruner)
    told = []
    for number in range(8):
        trial = desk.trials.claim(8)
        desk.trials.draw(trial)
        figure = 0.9 if number < 7 else 0.2
        stopped_after = None
        for epoch in range(1, 5):
            desk.trials.report(trial, epoch, figure + epoch / 100)
            if desk.trials.should_stop(trial):
                stopped_after = epoch
                break
        told.append(stopped_after)
        state = desk.trials.states.PRUNED if stopped_after else desk.trials.states.COMPLETE
        desk.trials.end(trial, state, None if stopped_after else figure)
    assert (told[-1] is not None) == stops
    if pruner == "median":
        assert told == [None] * 7 + [2]
    desk.leave()


def test_tpe_draws_the_same_from_the_same_history(tmp_path: Path) -> None:
    drawn: list[list[Any]] = []
    for name, num_trials in (("one", 13), ("other", 22)):
        desk = Desk(tmp_path / name, sampler="tpe")
        drawn.append([])
        for _ in range(num_trials):
            trial = desk.trials.claim(None)
            values = desk.trials.draw(trial).values
            drawn[-1].append(values)
            desk.trials.end(trial, desk.trials.states.COMPLETE, -abs(math.log(values["optim.lr"] / 0.02)))
        desk.leave()
    assert drawn[0] == drawn[1][:13]
    # Beyond the trials at random it looks where it was good.
    far = [abs(math.log(values["optim.lr"] / 0.02)) for values in drawn[1]]
    assert statistics.median(far[10:]) < 0.5 * statistics.median(far[:10])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("mysql://host/base", "SQLite (without --storage) or PostgreSQL"),
        ("no url at all", "no URL of a database"),
    ],
)
def test_a_storage_that_cannot_be_is_refused(tmp_path: Path, given: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected.replace("(", r"\(").replace(")", r"\)")):
        StudyStorage(tmp_path, given)


def test_a_server_out_of_reach_is_said_without_its_password(tmp_path: Path) -> None:
    pytest.importorskip("psycopg")
    storage = StudyStorage(tmp_path, "postgresql://user:topsecret@127.0.0.1:1/base")
    with pytest.raises(ArtifactError) as caught, storage.mutex():
        pass
    assert "127.0.0.1" in str(caught.value)
    assert "topsecret" not in str(caught.value)
