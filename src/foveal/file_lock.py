"""Locks that fall with the process, however it ends, also by kill -9.

The operating system holds them (flock), so that no file that is left behind locks anybody out. Windows has none of this
kind: there everybody gets every lock, and two processes at once do not notice each other.
"""

import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TextIO

from foveal.errors import ArtifactError

HAS_LOCKS = find_spec("fcntl") is not None
"""Whether this system has them."""


def take_lock(descriptor: int, path: Path, *, is_waiting: bool = False) -> bool:
    """Lock an open file or folder; it is free again when it is closed, or when the process is gone.

    Args:
        descriptor: of the open file.
        path: its path, for the error.
        is_waiting: whether to wait while another process holds it.

    Returns:
        Whether it is held now; False where another process holds it.

    Raises:
        ArtifactError: its disk has no locks.
    """
    if not HAS_LOCKS:
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if is_waiting else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be locked: {error.strerror or error}.",
            fix=f"choose a folder on a disk of this machine, instead of {shlex.quote(str(path.parent))}; not every "
            "network disk has locks.",
        ) from error
    return True


@contextmanager
def locked(path: Path, doing: str, *, fix: str) -> Iterator[None]:
    """Hold a lock file for the length of the block, or refuse.

    Args:
        path: the lock file; it is made where it is not there, says who holds it, and stays.
        doing: what only one process at a time may be, as in "working in RUN".
        fix: what to do where another process is.

    Raises:
        ArtifactError: another process holds it, or its disk has no locks.
    """
    with path.open("a+") as stream:
        if not take_lock(stream.fileno(), path):
            raise ArtifactError(f"{_holder(stream)} is {doing}.", fix=fix)
        _sign(stream)
        yield


@contextmanager
def locked_in_turn(path: Path, doing: str = "", say: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold a lock file for the length of the block; wait for it while another process does.

    Args:
        path: the lock file; it is made where it is not there, says who holds it, and stays.
        doing: what only one process at a time may be, as in "exporting RUN".
        say: is told once whom it waits for; None where nobody waits for long.

    Raises:
        ArtifactError: its disk has no locks.
    """
    with path.open("a+") as stream:
        if not take_lock(stream.fileno(), path):
            if say:
                say(f"{_holder(stream)} is {doing}; waiting for it to end.")
            take_lock(stream.fileno(), path, is_waiting=True)
        _sign(stream)
        yield


def is_locked(path: Path) -> bool:
    """Whether a process holds a lock file; False where nobody can tell.

    Raises:
        ArtifactError: its disk has no locks.
    """
    if not HAS_LOCKS:
        return False
    with path.open("a+") as stream:
        return not take_lock(stream.fileno(), path)


def _holder(stream: TextIO) -> str:
    stream.seek(0)
    who = stream.read().strip()
    return f"Another process ({who})" if who else "Another process"


def _sign(stream: TextIO) -> None:
    # To hold a lock needs no space on the disk, and to be named is a courtesy.
    with suppress(OSError):
        os.ftruncate(stream.fileno(), 0)
        os.write(stream.fileno(), f"pid {os.getpid()}".encode())
