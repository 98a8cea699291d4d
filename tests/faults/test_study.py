"""Rows 16 and 17: a study that is killed ends with exactly its trials, and one whose storage is torn is left alone."""

import json
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import foveal
from commands import Command, Meeting, kill_after, without_drawing
from foveal.cli import app
from foveal.errors import ArtifactError
from foveal.files import sha256_file
from small_runs import events
from small_study import (
    AROUND,
    NUM_TRIALS,
    images_of_study,
    postgres_server,
    quicken_study,
    small_study,
    trials_of,
    words,
)

MakeImages = Callable[..., Path]
SAVED = "foveal.training.fit:_Loop:save_last"
ENDED = "foveal.experiments.tune.trials:Trials:end"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken_study(monkeypatch)


@pytest.fixture
def whole(make_images: MakeImages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_study(make_images, tmp_path_factory)


def figures(study: Path) -> list[tuple[Any, Any]]:
    rows = json.loads((study / "summary.json").read_text())["rows"]
    return [(row["values"], row["reported"]) for row in rows]


def test_a_study_killed_three_times_ends_with_exactly_its_trials(whole: Path, tmp_path: Path) -> None:
    images, study = whole.parent / "images", tmp_path / "a study"
    command = words(images, whole.parent / "space.yaml", study, "--trials", str(NUM_TRIALS))
    # In the second trial, when the first of its two epochs is saved, and nobody was told of it.
    kill_after(SAVED, 3, command, without_drawing)
    assert [trial.state.name for trial in trials_of(study)] == ["COMPLETE", "RUNNING"]
    assert trials_of(study)[1].intermediate_values == {}
    # It goes on, and dies when its last epoch is saved.
    kill_after(SAVED, 1, command, without_drawing)
    assert trials_of(study)[1].intermediate_values == {}
    # It is evaluated, and the worker dies again before the trial's weights are removed.
    kill_after(ENDED, 1, command, without_drawing)
    assert [trial.state.name for trial in trials_of(study)] == ["COMPLETE", "COMPLETE"]
    assert (study / "runs" / "trial-0001" / "checkpoints" / "last.ckpt").exists()

    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.stderr
    trials = trials_of(study)
    assert [trial.number for trial in trials] == list(range(NUM_TRIALS))
    assert {trial.state.name for trial in trials} == {"COMPLETE"}
    # As if nothing had happened: the same values, the same figures, and the epoch that was done not done again.
    assert figures(study) == figures(whole)
    assert [event["epoch"] for event in events(study / "runs" / "trial-0001", "resume")] == [2, 3]
    assert not (study / "runs" / "trial-0001" / "checkpoints").exists()
    weights = [sha256_file(folder / "bundle" / "model.safetensors") for folder in (study, whole)]
    assert weights[0] == weights[1]


def test_sigint_saves_and_the_same_command_goes_on(whole: Path, tmp_path: Path) -> None:
    study = tmp_path / "study"
    command = words(whole.parent / "images", whole.parent / "space.yaml", study, "--trials", "1")
    command += ["--set", "train.epochs=1000"]
    with Command(command) as worker:
        while not (study / "runs" / "trial-0000" / "metrics.csv").exists():
            assert worker.returncode is None, worker.communicate(timeout=0)
            time.sleep(0.05)
        worker.send_signal(signal.SIGINT)
        out, err = worker.communicate(timeout=120)
    assert worker.returncode == 130, err
    assert out == ""
    assert "the same command goes on with the study" in " ".join(err.split())
    assert "foveal train" not in err
    assert [trial.state.name for trial in trials_of(study)] == ["WAITING"]


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda db: db.write_bytes(db.read_bytes()[: db.stat().st_size // 2]), "malformed|damaged"),
        (lambda db: db.write_bytes(b""), "it is empty"),
        (lambda db: db.write_bytes(b"not a database at all" * 500), "no SQLite database"),
        (lambda db: db.write_bytes(db.read_bytes()[:4096] + b"\xa5" * (db.stat().st_size - 4096)), "damaged"),
        (lambda db: db.unlink(), "it is gone"),
    ],
    ids=["cut off", "empty", "garbage", "garbage behind its head", "gone"],
)
def test_a_torn_storage_is_said_and_nothing_is_overwritten(
    whole: Path, tmp_path: Path, harm: Callable[[Path], Any], reason: str
) -> None:
    study = Path(shutil.copytree(whole, tmp_path / "study"))
    harm(study / "study.db")
    before = {path: path.read_bytes() for path in study.rglob("*") if path.is_file()}
    asked: dict[str, Any] = {"space": whole.parent / "space.yaml", "pruner": "none", "overrides": AROUND}
    with pytest.raises(ArtifactError, match=reason) as caught:
        foveal.tune(whole.parent / "images", study, trials=NUM_TRIALS + 1, **asked)
    assert "Nothing was changed" in caught.value.message
    after = {path: path.read_bytes() for path in study.rglob("*") if path.is_file()}
    assert {path: after.get(path) for path in before} == before
    assert not (study / "study.db").exists() or (study / "study.db") in before


def test_a_database_without_the_study_is_not_taken_for_a_new_one(whole: Path, tmp_path: Path) -> None:
    import optuna

    study = Path(shutil.copytree(whole, tmp_path / "study"))
    (study / "study.db").unlink()
    other = optuna.storages.RDBStorage(f"sqlite:///{study / 'study.db'}")
    optuna.create_study(storage=other, study_name="another")
    other.engine.dispose()
    with pytest.raises(ArtifactError, match="does not hold the study"):
        foveal.tune(None, study, resume=True, trials=NUM_TRIALS + 1)


def share(images: Path, space: Path, study: Path, num_trials: int, *more: str) -> list[str]:
    """Let two workers share a study, both from its first trial on; gives what they said."""
    command = words(images, space, study, "--trials", str(num_trials), *more)
    together = Meeting(Path(tempfile.mkdtemp(dir=study.parent)))
    told = []
    with Command(command, without_drawing, together) as one, Command(command, without_drawing, together) as other:
        for worker in (one, other):
            out, err = worker.communicate(timeout=500)
            assert worker.returncode == 0, err
            told.append(out)
    return told


def test_two_workers_share_a_study_in_sqlite(whole: Path, tmp_path: Path) -> None:
    study = tmp_path / "study"
    told = share(whole.parent / "images", whole.parent / "space.yaml", study, 5)
    trials = trials_of(study)
    assert [trial.number for trial in trials] == list(range(5))
    assert {trial.state.name for trial in trials} == {"COMPLETE"}
    assert len({trial.user_attrs["worker"] for trial in trials}) == 2
    verdict = json.loads((study / "summary.json").read_text())["sentences"][0]
    assert all(verdict in out for out in told)
    # The images were decoded once, the winner and the default trained once.
    assert sum(event["num_decoded"] for event in events(study, "decode")) <= 60
    for name in ("default", "best"):
        assert len(events(study / "runs" / name, "start")) == 1
    # Values come from the seed and the number, until TPE has seen enough; so they are those of one worker alone.
    assert [trial.params for trial in trials][:NUM_TRIALS] == [values for values, _ in figures(whole)]


def test_two_workers_share_a_study_on_a_server(whole: Path, tmp_path: Path, make_images: MakeImages) -> None:
    with postgres_server() as url:
        study = tmp_path / "flowers"
        share(whole.parent / "images", whole.parent / "space.yaml", study, 5, "--storage", url)
        trials = trials_of(study, url, "flowers")
        assert [trial.number for trial in trials] == list(range(5))
        assert {trial.state.name for trial in trials} == {"COMPLETE"}
        assert len({trial.user_attrs["worker"] for trial in trials}) == 2
        assert (study / "summary.json").exists()
        held = [path.read_bytes() for path in study.rglob("*") if path.is_file()]
        assert not any(b"secret" in content for content in held)
        with pytest.raises(foveal.errors.ConfigError, match="password is written nowhere"):
            foveal.tune(None, study, resume=True)
        # A worker in a folder of its own, with other images under the same name, is refused.
        others = make_images(tmp_path / "other images", num_per_class=20, seed=5)
        asked: dict[str, Any] = {"space": whole.parent / "space.yaml", "pruner": "none", "overrides": AROUND}
        with pytest.raises(foveal.errors.ConfigError, match="other settings") as caught:
            foveal.tune(others, tmp_path / "elsewhere" / "flowers", trials=6, storage=url, **asked)
        assert caught.value.problems[0].startswith("data:")
        # With the same images it helps, and leaves the end to where the study began.
        helped = foveal.tune(
            images_of_study(make_images, tmp_path), tmp_path / "helper" / "flowers", trials=6, storage=url, **asked
        )
        assert len(helped.trials) == 6
        assert helped.end is None
        assert str(study) in helped.notes[0]
