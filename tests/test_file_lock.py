"""Locks between processes: refused or waited for, and gone with whoever held them."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from foveal import file_lock
from foveal.errors import ArtifactError
from foveal.file_lock import is_locked, locked, locked_in_turn, take_lock

HOLD = """
import sys; from pathlib import Path; from foveal.file_lock import locked
with locked(Path(sys.argv[1]), "", fix=""):
    print("held", flush=True); sys.stdin.readline()
"""
WAIT = """
import sys; from pathlib import Path; from foveal.file_lock import locked_in_turn
with locked_in_turn(Path(sys.argv[1]), "making it", lambda words: print(words, flush=True)):
    print("mine", flush=True)
"""


@contextmanager
def another(script: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ".lock"


def test_it_is_refused_with_who_holds_it_and_falls_with_kill_9(path: Path) -> None:
    assert not is_locked(path)
    with another(HOLD, path) as holder:
        assert said(holder) == "held"
        assert is_locked(path)
        with pytest.raises(ArtifactError) as caught, locked(path, "making it", fix="wait."):
            pass
        assert caught.value.message == f"Another process (pid {holder.pid}) is making it."
        assert caught.value.fix == "wait."
        holder.send_signal(signal.SIGKILL)
    assert not is_locked(path)
    with locked(path, "making it", fix=""):
        assert is_locked(path)
        assert path.read_text() == f"pid {os.getpid()}"


def test_who_waits_says_so_once_and_for_whom_and_comes_in_when_the_other_ends(path: Path) -> None:
    heard: list[str] = []
    with locked_in_turn(path, "making it", heard.append), another(WAIT, path) as waiting:
        assert said(waiting) == f"Another process (pid {os.getpid()}) is making it; waiting for it to end."
        assert waiting.poll() is None
    assert not heard
    with another(WAIT, path) as next_one:
        assert said(next_one) == "mine"


def test_who_waits_goes_on_when_the_other_is_killed(path: Path) -> None:
    with another(HOLD, path) as holder:
        assert said(holder) == "held"
        with another(WAIT, path) as waiting:
            assert said(waiting).startswith(f"Another process (pid {holder.pid})")
            holder.send_signal(signal.SIGKILL)
            assert said(waiting) == "mine"


def test_a_disk_without_locks_is_told_and_is_no_busy_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    for attempt in (locked(path, "making it", fix=""), locked_in_turn(path)):
        with pytest.raises(ArtifactError, match="cannot be locked: No locks available") as caught, attempt:
            pass
        assert str(path.parent) in caught.value.fix
    with pytest.raises(ArtifactError, match="cannot be locked"):
        is_locked(path)


def test_without_such_locks_everybody_goes_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_lock, "HAS_LOCKS", False)
    with locked(path, "making it", fix=""), locked(path, "making it", fix=""), locked_in_turn(path):
        assert not is_locked(path)


def test_a_folder_can_be_locked(tmp_path: Path) -> None:
    first, second = (os.open(tmp_path, os.O_RDONLY) for _ in range(2))
    assert take_lock(first, tmp_path)
    assert not take_lock(second, tmp_path)
    os.close(first)
    assert take_lock(second, tmp_path)
    os.close(second)
