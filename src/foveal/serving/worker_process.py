"""The worker's process, seen from the server: how it is started, and how it ended."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from foveal.errors import FovealError
from foveal.serving.access import TOKEN_VARIABLE
from foveal.serving.messages import WorkerSettings
from foveal.serving.protocol import packed


def launched(settings: WorkerSettings) -> "tuple[subprocess.Popen[bytes], socket.socket]":
    """A worker that has just been started, and the socket to it, which does not block.

    Args:
        settings: what it is told first.

    Raises:
        FovealError: this system cannot hand a socket to a child process.
    """
    if os.name != "posix":
        raise FovealError("foveal serve needs a POSIX system.", fix="run it in WSL or in a container.")
    ours, theirs = socket.socketpair()
    # `-P`: what lies in the current folder is no module of ours.
    command = [sys.executable, "-P", "-m", "foveal.serving.worker", str(theirs.fileno())]
    try:
        with theirs, _signals_blocked():
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(),), env=_environment()
            )
    except OSError:
        ours.close()
        raise
    with suppress(ConnectionError):
        # It fits into the socket's buffer. A child that is dead already is found dead by whoever reads.
        ours.sendall(b"".join(packed(settings.to_header())))
    ours.setblocking(False)
    return process, ours


def reaped(process: "subprocess.Popen[bytes]", patience_seconds: float) -> int:
    """The exit code of a process that is about to end; it is killed if it has not by then."""
    try:
        return process.wait(patience_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def ending(exit_code: int | None) -> str:
    """How a process ended, in words."""
    if exit_code is None:
        return "it is gone"
    if exit_code >= 0:
        return f"exit code {exit_code}"
    name = signal.Signals(-exit_code).name if -exit_code in set(signal.Signals) else str(-exit_code)
    hint = ", as where memory runs out" if name == "SIGKILL" else ""
    return f"ended by {name}{hint}"


def _environment() -> dict[str, str]:
    """Ours without the token: who breaks a decoder by an image shall not find it in the process."""
    return {name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE}


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """A child that is started meanwhile gets no signal until it has said that it ignores them."""
    before: Any = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
