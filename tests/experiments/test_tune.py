"""A study from end to end: real small trainings, the winner against the default, and what must not be."""

import csv
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import foveal
from foveal.cli import app
from foveal.config import load
from foveal.errors import ArtifactError, ConfigError, TrainingError
from foveal.experiments.tune import tuning
from foveal.files import sha256_file
from foveal.metrics.paired import compare_paired
from foveal.model.bundle import read_bundle
from foveal.training.config import Config, ResolvedConfig
from small_runs import columns_of, events
from small_study import AROUND, NUM_TRIALS, SPACE, images_of_study, quicken_study, small_study, trials_of, words

MakeImages = Callable[..., Path]
FIXED = {"optim.lr": {"type": "categorical", "choices": [0.05, 0.01]}}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken_study(monkeypatch)


@pytest.fixture
def study(make_images: MakeImages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_study(make_images, tmp_path_factory)


@pytest.fixture
def images(make_images: MakeImages, tmp_path: Path) -> Path:
    return images_of_study(make_images, tmp_path)


def summary(study: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((study / "summary.json").read_text())
    return found


def test_the_summary_has_a_row_a_trial_and_the_best_is_the_best(study: Path) -> None:
    found = summary(study)
    rows = found["rows"]
    assert [row["number"] for row in rows] == list(range(NUM_TRIALS))
    assert {row["state"] for row in rows} == {"complete"}
    for row in rows:
        with (study / "runs" / row["name"] / "metrics.csv").open(newline="") as stream:
            epochs = [float(line["val_macro_f1"]) for line in csv.DictReader(stream)]
        assert row["figure"] == max(epochs)
        assert [row["reported"][str(epoch + 1)] for epoch in range(2)] == epochs
        assert row["macro_f1"] == pytest.approx(row["figure"])  # the metrics of validation, measured anew
        assert row["split"] == "val"
        assert ("optim.momentum" in row["values"]) == (row["values"]["optim.name"] == "sgd")
    best = max(rows, key=lambda row: (row["figure"], -row["number"]))
    assert found["best"] == best["name"]
    assert found["best_values"] == best["values"]


def test_no_trial_has_looked_at_the_test_split(study: Path) -> None:
    for run in sorted((study / "runs").glob("trial-*")):
        looks = json.loads((run / "evaluation" / "looks.json").read_text())
        assert set(looks) == {"val"}
        assert not (run / "evaluation" / "test").exists()
        # What is left of a trial is what can be read, and no weights.
        assert not (run / "checkpoints").exists()
        assert not (run / "bundle").exists()
        assert all((run / name).is_file() for name in ("config.yaml", "metrics.csv", "log.jsonl"))
    for name in ("default", "best"):
        looks = json.loads((study / "runs" / name / "evaluation" / "looks.json").read_text())
        assert len(looks["test"]) == 1


def test_default_and_best_are_compared_on_the_same_test_images(study: Path) -> None:
    found = summary(study)
    tables = [
        columns_of(study / "runs" / name / "evaluation" / "test" / "predictions.parquet")
        for name in ("default", "best")
    ]
    assert tables[0]["path"].tolist() == tables[1]["path"].tolist()
    right = [table["label"] == table["predicted"] for table in tables]
    comparison = found["comparison"]
    assert comparison["only_first_right"] == int((right[0] & ~right[1]).sum())
    assert comparison["only_second_right"] == int((right[1] & ~right[0]).sum())
    names = read_bundle(study / "bundle").spec.class_names
    labels = np.array([names.index(label) for label in tables[0]["label"]])
    probabilities = [np.stack([table[f"p_{name}"] for name in names], axis=1) for table in tables]
    alone = compare_paired(labels, *probabilities, seed=0)
    assert comparison["verdict"] == found["verdict"] == alone.verdict
    assert comparison["intervals"]["accuracy"] == pytest.approx(alone.intervals["accuracy"])
    assert found["sentences"][0].startswith("On the test images, ")
    assert "the default configuration" in found["sentences"][0]


def test_the_winner_is_what_best_yaml_and_the_bundle_hold(study: Path) -> None:
    found = summary(study)
    config = load(Config, study / "best.yaml")
    assert config.optim.lr == found["best_values"]["optim.lr"]
    assert config.optim.name == found["best_values"]["optim.name"]
    assert config.model.name == "small_cnn"
    resolved = load(ResolvedConfig, study / "runs" / "best" / "config.yaml")
    assert resolved.optim.lr == config.optim.lr
    assert load(ResolvedConfig, study / "runs" / "default" / "config.yaml").optim.name == "adamw"
    for name in ("bundle.json", "model.safetensors"):
        assert sha256_file(study / "bundle" / name) == sha256_file(study / "runs" / "best" / "bundle" / name)
    # The winner was retrained to just what it was as a trial.
    with (study / "runs" / "best" / "metrics.csv").open(newline="") as stream:
        again = [float(row["val_macro_f1"]) for row in csv.DictReader(stream)]
    trial = next(row for row in found["rows"] if row["name"] == found["best"])
    assert again == list(trial["reported"].values())


def test_nothing_is_decoded_twice_and_the_time_outside_training_is_told(study: Path) -> None:
    (decoded,) = events(study, "decode")
    assert decoded["num_decoded"] + decoded["num_from_store"] == 60
    for run in (study / "runs").iterdir():
        assert not events(run, "decode")
        assert "decode" not in json.loads((run / "timings.json").read_text())
    timings = json.loads((study / "timings.json").read_text())
    assert {"scan", "claim", "sample", "trial", "record"} <= set(timings)
    rows = summary(study)["rows"]
    wall = sum(timings[stage]["wall_seconds"] for stage in ("claim", "sample", "trial", "record"))
    training = sum(row["training_seconds"] for row in rows)
    assert summary(study)["outside_training_share"] == pytest.approx(1 - training / wall, abs=1e-6)


def test_the_page_shows_the_verdict_the_trials_and_the_plots(study: Path) -> None:
    page = (study / "report.html").read_text(encoding="utf-8")
    found = summary(study)
    assert found["sentences"][0] in page
    assert {file.stem for file in (study / "plots").glob("*.svg")} >= {"history", "timeline", "parallel"}
    history = (study / "plots" / "history.svg").read_text()
    assert "best so far" in history
    assert "://" not in page
    assert "<script" not in page


def test_the_same_call_again_does_nothing_twice_and_a_longer_one_goes_on(images: Path, tmp_path: Path) -> None:
    out, asked = tmp_path / "study", {"space": FIXED, "sampler": "random", "pruner": "none", "overrides": AROUND}
    first = foveal.tune(images, out, trials=1, **asked)
    begun = (out / "runs" / "trial-0000" / "log.jsonl").read_text()
    again = foveal.tune(images, out, trials=1, **asked)
    assert [row["figure"] for row in again.trials] == [row["figure"] for row in first.trials]
    assert (out / "runs" / "trial-0000" / "log.jsonl").read_text() == begun
    longer = foveal.tune(None, out, resume=True, trials=3)
    assert [row["number"] for row in longer.trials] == [0, 1, 2]
    assert (out / "runs" / "trial-0000" / "log.jsonl").read_text() == begun
    assert longer.trials[0]["figure"] == first.trials[0]["figure"]
    # The comparison is that of the best by now.
    assert load(ResolvedConfig, out / "runs" / "best" / "config.yaml").optim.lr == longer.best_values["optim.lr"]
    assert longer.to_dict()["best"] == json.loads((out / "summary.json").read_text())["best"]
    assert "trial" in longer._repr_html_()


def test_another_study_in_the_same_folder_is_refused_with_what_differs(study: Path, tmp_path: Path) -> None:
    images, before = study.parent / "images", sha256_file(study / "study.db")
    asked: dict[str, Any] = {"space": study.parent / "space.yaml", "trials": NUM_TRIALS, "pruner": "none"}
    for changed, expected in (
        ({"overrides": [*AROUND, "seed=9"]}, "seed"),
        ({"overrides": [*AROUND, "train.epochs=3"]}, "train.epochs"),
        ({"space": FIXED}, "space of optim.lr"),
        ({"sampler": "random"}, "sampler"),
        ({"pruner": "median"}, "pruner"),
    ):
        with pytest.raises(ConfigError) as caught:
            foveal.tune(images, study, **{"overrides": AROUND, **asked, **changed})
        assert any(
            problem.startswith(expected) or f"configured {expected}" in problem for problem in caught.value.problems
        )
    (tmp_path / "others").mkdir()
    with pytest.raises(ConfigError, match="other settings"):
        foveal.tune(tmp_path / "others", study, overrides=AROUND, **asked)
    assert sha256_file(study / "study.db") == before


def test_failed_trials_are_told_counted_and_do_not_end_the_study(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = {
        "optim.lr": {"type": "categorical", "choices": [0.01, 1e30]},
        "optim.name": {"type": "categorical", "choices": ["sgd"]},
    }
    outcome = foveal.tune(images, tmp_path / "study", space=space, sampler="grid", pruner="none", overrides=AROUND)
    by_lr = {row["values"]["optim.lr"]: row for row in outcome.trials}
    assert by_lr[0.01]["state"] == "complete"
    assert by_lr[1e30]["state"] == "failed"
    assert "infinite or NaN" in by_lr[1e30]["reason"] or "became" in by_lr[1e30]["reason"]
    assert outcome.best_values["optim.lr"] == 0.01

    def no_memory(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(tuning, "train_in", no_memory)
    with pytest.raises(TrainingError, match="first 3 trials have all failed") as caught:
        foveal.tune(images, tmp_path / "hopeless", space=FIXED, trials=9, overrides=AROUND)
    assert all("out of memory" in problem for problem in caught.value.problems)
    assert [trial.state.name for trial in trials_of(tmp_path / "hopeless")] == ["FAIL"] * 3


def test_a_full_disk_is_no_fault_of_the_trial(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tuning, "train_in", full)
    with pytest.raises(OSError, match="No space"):
        foveal.tune(images, tmp_path / "study", space=FIXED, trials=1, overrides=AROUND)
    assert [trial.state.name for trial in trials_of(tmp_path / "study")] == ["WAITING"]


def test_pruning_saves_epochs(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foveal.experiments.tune.trials.PRUNE_AFTER_TRIALS", 2)
    monkeypatch.setattr("foveal.experiments.tune.trials.PRUNE_AFTER_EPOCHS", 1)
    # The grid's order is the seed's; rates that learn nothing come to nothing, whenever they come.
    space = {"optim.lr": {"type": "categorical", "choices": [0.02, 0.03, 0.01, 1e-9, 2e-9]}}
    outcome = foveal.tune(
        images, tmp_path / "study", space=space, sampler="grid", overrides=[*AROUND, "train.epochs=4", "seed=3"]
    )
    pruned = [row for row in outcome.trials if row["state"] == "pruned"]
    assert pruned
    for row in pruned:
        assert row["num_epochs"] < 4
        with (tmp_path / "study" / "runs" / row["name"] / "metrics.csv").open() as stream:
            assert len(list(csv.DictReader(stream))) == row["num_epochs"]
    assert len(outcome.trials) == 5


def test_hours_end_a_study_in_the_middle_of_a_trial_which_goes_on(images: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = {
        "space": FIXED,
        "sampler": "random",
        "pruner": "none",
        "overrides": [*AROUND, "train.epochs=6"],
    }
    out = tmp_path / "study"
    # The clock of the study alone: it is asked at the beginning, before the trial, and after each epoch.
    calls = iter(range(1000))
    clock = SimpleNamespace(
        monotonic=lambda: 0.0 if next(calls) < 3 else 3601.0, perf_counter=time.perf_counter, sleep=time.sleep
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "time", clock)
        with pytest.raises(TrainingError, match="No trial has come to its end"):
            foveal.tune(images, out, hours=1, **asked)
    (trial,) = trials_of(out)
    assert trial.state.name == "WAITING"
    num_done = len(trial.intermediate_values)
    assert num_done == 2
    done = foveal.tune(images, out, trials=1, **asked)
    assert [row["state"] for row in done.trials] == ["complete"]
    assert done.trials[0]["num_epochs"] == 6
    (resumed,) = events(out / "runs" / "trial-0000", "resume")
    assert resumed["epoch"] == num_done + 1


def test_the_command_line(study: Path, tmp_path: Path) -> None:
    images, space = study.parent / "images", study.parent / "space.yaml"
    done = CliRunner().invoke(app, ["tune", "--out", str(study), "--resume"])
    assert done.exit_code == 0, done.stderr
    assert summary(study)["sentences"][0] in done.stdout
    assert str(study / "best.yaml") in done.stdout
    planned = CliRunner().invoke(app, words(images, space, tmp_path / "new", "--trials", "7", "--dry-run", "--json"))
    assert json.loads(planned.stdout)["num_trials"] == 7
    assert not (tmp_path / "new").exists()
    for wrong, expected in (
        (words(images, space, tmp_path / "new"), "--trials N, --hours H"),
        (words(images, space, tmp_path / "new", "--trials", "0"), "expected 1 or more"),
        (words(images, space, images / "inside", "--trials", "1"), "lies in DATA"),
        (["tune", "--out", str(tmp_path / "new"), "--resume"], "holds no study"),
        (["tune", str(images), "--trials", "3", "--out", str(tmp_path / "new")], "needs a search space"),
        (words(images, space, study, "--trials", "2", "--resume", "--force"), "give one of them"),
    ):
        refused = CliRunner().invoke(app, wrong)
        assert refused.exit_code in (1, 2)
        assert expected in " ".join(refused.stderr.split())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="not empty"):
        foveal.tune(images, tmp_path / "full", space=space, trials=1, overrides=AROUND, force=True)
    assert math.isfinite(summary(study)["comparison"]["mcnemar_p"])
    assert SPACE
