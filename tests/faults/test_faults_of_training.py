"""Rows 4 to 6 and 13 to 15 of the list of faults: disk, folder, checkpoint, memory, worker, second process."""

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import foveal
from commands import Command, SmallDisk, SmallMemory, without_drawing
from foveal.cli import app
from foveal.errors import InterruptedRunError
from foveal.files import sha256_file
from foveal.progress import Silence
from foveal.training import checkpoint
from small_runs import CLASSES, TINY, copy_of, epochs, events, flags, quicken_plots

PATIENCE_SECONDS = 180
"""Of a run that takes five to ten on an idle machine."""
LONGEST_SECONDS_TO_TELL = 60
OVERRIDES = (*TINY, "model.head.dropout=0.4", "train.batch_size=8")

_made: dict[str, Path] = {}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken_plots(monkeypatch)


class StopAfter(Silence):
    """Asks to stop, as a cluster does, as soon as the given epoch is told."""

    def __init__(self, epoch: int) -> None:
        self._words = f"epoch {epoch:>3}/"

    def say(self, text: str) -> None:
        if text.startswith(self._words):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def stopped(make_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    """A run of three epochs that was stopped after two, the test's own; `_made` has one that was not."""
    if not _made:
        folder = tmp_path_factory.mktemp("faults-of-training")
        images = make_images(folder / "images", CLASSES, num_per_class=12)
        foveal.train(images, folder / "whole", overrides=OVERRIDES)
        with pytest.raises(InterruptedRunError):
            foveal.train(images, folder / "stopped", overrides=OVERRIDES, progress=StopAfter(2))
        _made.update(whole=folder / "whole", stopped=folder / "stopped", images=images)
    return copy_of(_made["stopped"], tmp_path / "run")


def said_by(status: int | None, out: str, err: str) -> str:
    """What a process that failed said, as one line; it must be ours, and not a traceback."""
    assert status == 1, err
    assert out == ""
    assert "Traceback" not in err
    return " ".join(err.split())


def test_row_4_a_full_disk_leaves_the_checkpoints_and_the_run_goes_on_where_there_is_room(stopped: Path) -> None:
    checkpoints = stopped / "checkpoints"
    size = (checkpoints / "last.ckpt").stat().st_size
    before = sha256_file(checkpoints / "last.ckpt")
    command = ["train", "--out", str(stopped), "--resume"]
    # Everything else that a run writes is smaller than half a checkpoint.
    with Command(command, SmallDisk(size // 2)) as process:
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
        said = said_by(process.returncode, out, err)
    assert ".ckpt could not be written" in said
    assert "free some space" in said
    assert sha256_file(checkpoints / "last.ckpt") == before
    assert {file.name for file in checkpoints.iterdir()} <= {"last.ckpt", "previous.ckpt", "best.ckpt", "origin.json"}
    for file in checkpoints.glob("*.ckpt"):
        checkpoint.load(file)
    assert CliRunner().invoke(app, command).exit_code == 0
    weights = Path("bundle") / "model.safetensors"
    assert sha256_file(stopped / weights) == sha256_file(_made["whole"] / weights)


def _below_a_file(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("mine")
    return tmp_path / "file" / "run"


def _without_permission(tmp_path: Path) -> Path:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    (tmp_path / "locked").mkdir(mode=0o555)
    return tmp_path / "locked" / "run"


def _where_nobody_writes(tmp_path: Path) -> Path:
    del tmp_path
    if not Path("/sys/kernel").is_dir():
        pytest.skip("needs a file system that even root cannot write to")
    return Path("/sys/kernel/run-of-foveal")


@pytest.mark.parametrize("place", [_below_a_file, _without_permission, _where_nobody_writes])
def test_row_5_a_folder_that_cannot_be_written_is_told_before_any_work(
    place: Callable[[Path], Path], make_images: Callable[..., Path], tmp_path: Path
) -> None:
    images, run = make_images(tmp_path / "images", CLASSES, num_per_class=4), place(tmp_path)
    done = CliRunner().invoke(app, ["train", str(images), "--out", str(run), *flags()])
    assert done.exit_code == 1
    assert f"The folder {run} cannot be written to" in " ".join(done.stderr.split())
    assert not Path(os.environ["FOVEAL_CACHE_DIR"]).exists(), "nothing was decoded"


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_row_6_a_truncated_checkpoint_gives_way_to_the_one_before_and_is_told(stopped: Path, share: float) -> None:
    last = stopped / "checkpoints" / "last.ckpt"
    os.truncate(last, int(share * last.stat().st_size))
    done = CliRunner().invoke(app, ["train", "--out", str(stopped), "--resume"])
    assert done.exit_code == 0, done.stderr
    assert f"The checkpoint {last} is damaged" in " ".join(done.stderr.split())
    (warning,) = (event["message"] for event in events(stopped, "warning") if "damaged" in event["message"])
    assert warning.endswith("Going on from the one before it.")
    weights = Path("bundle") / "model.safetensors"
    assert sha256_file(stopped / weights) == sha256_file(_made["whole"] / weights)
    assert epochs(stopped) == epochs(_made["whole"])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_row_13_memory_that_runs_out_says_what_to_lower(make_images: Callable[..., Path], tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", CLASSES, num_per_class=12)
    large = flags("data.image_size=768", "train.batch_size=24")
    command = ["train", str(images), "--out", str(tmp_path / "run"), *large]
    with Command(command, SmallMemory(900 << 20)) as process:
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
        said = said_by(process.returncode, out, err)
    assert "Memory ran out with train.batch_size=24 at data.image_size=768." in said
    assert "halve train.batch_size" in said


def children_of(pid: int) -> list[int]:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        files = Path(f"/proc/{pid}/task").glob("*/children")
        return [int(child) for file in files for child in file.read_text().split()]
    return []


def reads_within(pid: int, folder: Path) -> bool:
    """Whether a process has a file below a folder open at this moment."""
    with contextlib.suppress(OSError):
        return any(os.readlink(link).startswith(f"{folder}/") for link in Path(f"/proc/{pid}/fd").iterdir())
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_row_14_a_worker_that_is_killed_is_told_soon_and_none_is_left_behind(tmp_path: Path) -> None:
    images = tmp_path / "images"
    draw = np.random.default_rng(0)
    for name in CLASSES[:2]:
        (images / name).mkdir(parents=True)
        for number in range(1100):
            # Large enough for a reading that a busy machine does not miss.
            pixels = draw.integers(0, 256, (96, 96, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(images / name / f"{number}.bmp")
    command = ["train", str(images), "--out", str(tmp_path / "run"), *flags("data.num_workers=2")]
    workers: set[int] = set()
    with Command(command) as process:
        deadline, killed = time.monotonic() + PATIENCE_SECONDS, 0
        while not killed and time.monotonic() < deadline and process.returncode is None:
            workers.update(children_of(process.pid))
            killed = next((pid for pid in workers if reads_within(pid, images)), 0)
        assert killed, process.communicate(timeout=PATIENCE_SECONDS)
        os.kill(killed, signal.SIGKILL)
        out, err = process.communicate(timeout=LONGEST_SECONDS_TO_TELL)
        said = said_by(process.returncode, out, err)
    assert "A process that decodes images ended by signal SIGKILL while it read one of" in said
    assert "memory ran out" in said
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()], "all workers have ended"


def test_row_15_of_two_processes_that_start_at_once_one_works_and_the_other_says_why_not(
    make_images: Callable[..., Path], tmp_path: Path
) -> None:
    images, run = make_images(tmp_path / "images", CLASSES, num_per_class=12), tmp_path / "run"
    command = ["train", str(images), "--out", str(run), *flags("train.epochs=2")]
    with Command(command, without_drawing) as one, Command(command, without_drawing) as other:
        both = [one, other]
        ends = [process.communicate(timeout=PATIENCE_SECONDS) for process in both]
    assert sorted(process.returncode for process in both) == [0, 1], ends
    winner, loser = sorted(zip(both, ends, strict=True), key=lambda pair: pair[0].returncode)
    said = " ".join(loser[1][1].split())
    is_locked = f"Another process (pid {winner[0].pid}) is working in {run}" in said
    assert is_locked or f"{run} holds a run already" in said
    assert "Traceback" not in said
    assert len(epochs(run)) == 2
    assert len(events(run, "start")) == 1
    shutil.rmtree(run)
