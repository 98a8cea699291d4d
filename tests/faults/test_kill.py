"""A `foveal` process that is killed, whenever: the run goes on to the same bundle, bit for bit."""

import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from commands import Command, kill_after
from foveal.cli import app
from foveal.files import sha256_file
from foveal.types import SPLITS
from small_runs import CLASSES, epochs, events, flags, quicken_plots

MakeImages = Callable[..., Path]

SAVED = "foveal.training.fit:_Loop:save_last"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken_plots(monkeypatch)


@pytest.fixture
def images(tmp_path: Path, make_images: MakeImages) -> Path:
    return make_images(tmp_path / "images", CLASSES, num_per_class=12)


def words(images: Path, run: Path) -> list[str]:
    """Three epochs of three steps, with a checkpoint after every step."""
    settings = flags("model.head.dropout=0.4", "train.batch_size=8", "train.checkpoint_minutes=0.0000001")
    return ["train", str(images), "--out", str(run), *settings]


def test_killed_within_an_epoch_and_at_its_end_it_comes_to_the_same_end(images: Path, tmp_path: Path) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert CliRunner().invoke(app, words(images, whole)).exit_code == 0
    resume = ["train", "--out", str(run), "--resume"]

    # Four checkpoints an epoch: one after each step, one at the end. The sixth is in the midst of the second epoch.
    kill_after(SAVED, 6, words(images, run))
    assert len(epochs(run)) == 1
    assert not (run / "bundle").exists()
    kill_after(SAVED, 2, resume)  # after one step more, and at its end; the table is not written yet
    assert (len(epochs(run)), len(events(run, "resume"))) == (1, 1)

    done = CliRunner().invoke(app, resume)
    assert done.exit_code == 0, done.stderr
    assert "epoch 3, step 0 of 3" in done.stderr
    assert sha256_file(run / "bundle" / "model.safetensors") == sha256_file(whole / "bundle" / "model.safetensors")
    assert epochs(run) == epochs(whole)
    assert len(epochs(run)) == 3
    assert not list(run.rglob("*.partial"))
    looks = json.loads((run / "evaluation" / "looks.json").read_text())
    assert [len(looks[split]) for split in SPLITS] == [1, 1, 1]


def test_killed_between_the_files_of_a_frozen_backbone_it_comes_to_the_same_end(images: Path, tmp_path: Path) -> None:
    frozen = ["--set", "model.freeze=all", "--set", "augment.policy=none"]
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert CliRunner().invoke(app, [*words(images, whole), *frozen]).exit_code == 0
    resume = ["train", "--out", str(run), "--resume"]
    written = "foveal.training.checkpoint::_write"

    kill_after(written, 1, [*words(images, run), *frozen])  # what is frozen alone
    assert {file.name for file in (run / "checkpoints").glob("*.ckpt")} == {"frozen.ckpt"}
    kill_after(written, 5, resume)  # that, three steps, and the best weights, which the position does not know of yet
    assert (run / "checkpoints" / "best.ckpt").is_file()
    kill_after(written, 6, resume)
    done = CliRunner().invoke(app, resume)

    assert done.exit_code == 0, done.stderr
    assert sha256_file(run / "bundle" / "model.safetensors") == sha256_file(whole / "bundle" / "model.safetensors")
    assert epochs(run) == epochs(whole)
    files = {file.name: file.stat().st_size for file in (run / "checkpoints").glob("*.ckpt")}
    assert max(files["last.ckpt"], files["best.ckpt"]) < files["frozen.ckpt"] / 3
    assert CliRunner().invoke(app, [*words(images, run), "--force"]).exit_code == 0
    assert not (run / "checkpoints" / "frozen.ckpt").exists()


def test_sigterm_from_outside_saves_and_ends_with_143(images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [*words(images, run), "--set", "train.epochs=1000"]
    with Command(command) as process:
        deadline = time.monotonic() + 100
        while not (run / "checkpoints" / "last.ckpt").exists() and time.monotonic() < deadline:
            assert process.returncode is None, process.communicate(timeout=0)
            time.sleep(0.05)
        # While it works there, another one keeps out, and so does a measurement.
        busy = CliRunner().invoke(app, ["train", "--out", str(run), "--resume"])
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert busy.exit_code == 1
    assert f"Another process (pid {process.pid}) is working in {run}" in " ".join(busy.stderr.split())
    assert process.returncode == 143
    assert out == ""
    assert "Traceback" not in err
    assert re.search(r"Stopped at epoch \d+, step \d+ of 3; everything is saved", err)
    assert f"foveal train --out {run} --resume" in " ".join(err.split())
    assert os.path.getsize(run / "checkpoints" / "last.ckpt") > 100_000
