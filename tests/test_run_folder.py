"""The run folder: its lock, its log, its clock."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from foveal.errors import ArtifactError, ConfigError
from foveal.run_folder import ExperimentFolder, RunFolder, describe_environment, differences, is_run_folder, open_run

HOLD = """
import sys; from pathlib import Path; from foveal.run_folder import RunFolder
with RunFolder(Path(sys.argv[1])).lock():
    print("held", flush=True); sys.stdin.readline()
"""


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "runs" / "first")
    folder.prepare()
    return folder


def test_what_differs_is_told_key_by_key() -> None:
    held = {"seed": 1, "config": {"train": {"epochs": 2, "batch_size": 8}, "seed": 0}, "heads": ["knn"]}
    asked = {"seed": 1, "config": {"train": {"epochs": 3, "batch_size": 8}}, "heads": ["svm"]}
    assert differences(held, asked) == [
        "config.train.epochs: it has 2, and 3 is asked for",
        "config.seed: it has 0, and nothing is asked for",
        "heads: it has ['knn'], and ['svm'] is asked for",
    ]


def test_creating_the_object_touches_nothing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert folder.evaluation("val") == tmp_path / "run" / "evaluation" / "val"
    assert not folder.path.exists()


def test_prepare_leaves_an_empty_folder(run: RunFolder) -> None:
    assert os.listdir(run.path) == []
    run.prepare()


def test_a_folder_that_cannot_be_written_is_told_before_any_work(tmp_path: Path) -> None:
    """Row 5."""
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ArtifactError, match="cannot be written to") as caught:
            RunFolder(path).prepare()
        assert "--out" in caught.value.fix


def test_a_second_process_is_kept_out_until_the_first_is_gone_however_it_went(run: RunFolder) -> None:
    """Row 15."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ArtifactError, match=rf"Another process \(pid {holder.pid}\) is working"), run.lock():
            pass
        holder.send_signal(signal.SIGKILL)
    with run.lock():
        assert (run.path / ".lock").read_text() == f"pid {os.getpid()}"
    with run.lock():
        pass


def test_the_log_is_json_lines_whatever_is_logged(run: RunFolder) -> None:
    odd = os.fsdecode(b"caf\xe9\n.jpg")
    run.log_event("epoch", loss=float("nan"), accuracy=0.5, path=Path(odd))
    run.log_event("done", rate=float("inf"))
    first, second = [json.loads(line) for line in run.log.read_text(encoding="utf-8").splitlines()]
    assert {**first, "time": ""} == {"time": "", "event": "epoch", "loss": None, "accuracy": 0.5, "path": odd}
    assert (second["event"], second["rate"]) == ("done", None)
    assert first["time"] <= second["time"]


def test_stages_add_up_and_are_noted_when_they_fail(run: RunFolder) -> None:
    with run.stage("scan"):
        pass
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), run.stage("train"):
            sum(range(3_000_000)) / 0
    timings = json.loads(run.timings.read_text())
    assert list(timings) == ["scan", "train"]
    assert timings["train"]["wall_seconds"] > timings["scan"]["wall_seconds"] >= 0
    assert timings["train"]["cpu_seconds"] > 0


def test_looks_are_counted_by_split(run: RunFolder) -> None:
    assert [run.count_look(*look) for look in (("test", "train"), ("val", "train"), ("test", "evaluate"))] == [1, 1, 2]
    assert [look["verb"] for look in json.loads(run.looks.read_text())["test"]] == ["train", "evaluate"]


def test_only_a_started_run_is_a_run(run: RunFolder) -> None:
    with pytest.raises(ArtifactError, match="is not a run folder") as caught:
        open_run(run.path)
    assert "foveal train" in caught.value.fix
    run.config.touch()
    assert not is_run_folder(run.path)
    run.manifest.touch()
    assert open_run(run.path) == run


def test_the_environment_says_what_ran(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # no repository
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    found = describe_environment(seed=7, device="cpu")
    json.dumps(found)
    assert (found["seed"], found["device"], found["git"]) == (7, "cpu", None)
    assert found["packages"]["numpy"].split(".")[0] == "2"
    assert found["num_cpus"] >= 1
    assert found["cpu"]


def test_an_experiment_goes_on_with_its_own_settings_only(tmp_path: Path) -> None:
    folder = ExperimentFolder(tmp_path / "study")
    folder.prepare()
    settings = {"data": "photos", "config": {"seed": 1}, "folds": (1, 2)}
    assert not folder.begin("crossval", settings)
    folder.run("fold-1").prepare()
    assert folder.begin("crossval", settings)
    with pytest.raises(ConfigError, match="other settings") as caught:
        folder.begin("crossval", {**settings, "data": "others"})
    assert caught.value.problems == ("data: it has 'photos', and 'others' is asked for",)
    assert folder.run("fold-1").path.is_dir()
    (folder.path / "notes.txt").write_text("mine")
    assert not folder.begin("tune", {"data": "others"}, force=True)
    assert sorted(path.name for path in folder.path.iterdir()) == ["experiment.json", "notes.txt"]


def test_an_experiment_takes_no_folder_of_others(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    for force in (False, True):
        with pytest.raises(ArtifactError, match=r"holds no experiment of foveal: thesis\.tex"):
            ExperimentFolder(tmp_path).begin("tune", {}, force=force)
    assert (tmp_path / "thesis.tex").read_text() == "mine"
