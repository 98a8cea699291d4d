"""Readers in processes of their own, for many small files.

Of a small picture the decoding proper is a tenth of the work, the rest is Python, and only one thread runs Python at a
time. The processes are started by hand and not by `multiprocessing`, which imports the user's script again in each of
them (so that a script without `if __name__ == "__main__"` would run twice) or forks a process that has threads.

A process is asked through its standard input and answers through its standard output; it ends when its input does, so
none outlives the one that started it, however that ends.
"""

import contextlib
import os
import pickle
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

from foveal.data.reading import Found, Reader, Recipe, Wanted
from foveal.data.store import Store
from foveal.errors import FovealError

Read = Callable[[Sequence[Wanted]], list[Found]]
"""What finds out about a portion of files; many threads may call it."""

END_SECONDS = 5.0
_LENGTH = struct.Struct("<Q")
# Ctrl-C reaches every process of the terminal; the one that started these decides what is to be done.
_PROGRAM = """
import signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
import os, sys
sys.path[:] = sys.argv[1:]
from foveal.data.reading_processes import serve
serve()
# Taking the interpreter apart takes as long as reading two hundred pictures, and there is nothing left to be done.
os._exit(0)
"""
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

_Process = subprocess.Popen[bytes]


@contextmanager
def reading_processes(folder: Path, recipe: Recipe, *, keep_pixels: bool, num_processes: int) -> Iterator[Read | None]:
    """Start processes that read files as `Reader.read` does, and end them.

    Args:
        folder: the cache folder.
        recipe: how pixels become the stored form.
        keep_pixels: whether the stored form is wanted too.
        num_processes: how many.

    Yields:
        What reads a portion of files in the next idle process; None where no process can be started here.
    """
    processes: list[_Process] = []
    try:
        is_ready = _start(processes, num_processes, (folder, recipe, keep_pixels))
        if not is_ready:
            yield None
            return
        idle: SimpleQueue[_Process] = SimpleQueue()
        for process in processes:
            idle.put(process)

        def read(wanted: Sequence[Wanted]) -> list[Found]:
            process = idle.get()
            try:
                return _ask(process, wanted)
            finally:
                idle.put(process)

        try:
            yield read
        except BaseException:
            # Threads that wait for an answer are let go.
            for process in processes:
                process.kill()
            raise
    finally:
        _end(processes)


def serve() -> None:
    """What such a process does: answer what its input asks, until that ends."""
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    # What a library prints must not get between the answers.
    os.dup2(2, 1)
    with contextlib.suppress(BrokenPipeError, EOFError):
        folder, recipe, keep_pixels = _receive(source)
        with Store(folder) as store:
            reader = Reader(store, recipe, keep_pixels=keep_pixels)
            _send(sink, True)
            while True:
                wanted = _receive(source)
                try:
                    answer: Any = reader.read(wanted)
                except Exception as error:  # noqa: BLE001 - raised again by the one who asked
                    answer = error
                _send(sink, answer)


def _start(processes: list[_Process], num_processes: int, task: tuple[Path, Recipe, bool]) -> bool:
    """Start processes and wait until all are ready; whether they are."""
    # Where Python is built into another program, that is what would be started.
    if not re.match("python|pypy", Path(sys.executable or "").name.lower()) or getattr(sys, "frozen", False):
        return False
    command = [sys.executable, "-P", "-c", _PROGRAM, *(part for part in sys.path if isinstance(part, str))]
    try:
        for _ in range(num_processes):
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **_ONE_THREAD}
            )
            processes.append(process)
            _send(_pipe(process.stdin), task)
        return all(_receive(_pipe(process.stdout)) is True for process in processes)
    except (OSError, EOFError):
        return False


def _ask(process: _Process, wanted: Sequence[Wanted]) -> list[Found]:
    try:
        _send(_pipe(process.stdin), wanted)
        answer = _receive(_pipe(process.stdout))
    except (OSError, EOFError, ValueError) as error:
        raise _ended(process, wanted) from error
    if isinstance(answer, Exception):
        raise answer
    found: list[Found] = answer
    return found


def _ended(process: _Process, wanted: Sequence[Wanted]) -> FovealError:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(END_SECONDS)
    code = process.poll()
    how = f"with code {code}"
    if code is not None and code < 0:
        how = f"by signal {signal.Signals(-code).name}"
    return FovealError(
        f"A process that decodes images ended {how} while it read one of {len(wanted)} files.",
        problems=[file.path for file in wanted],
        fix="SIGKILL mostly means that memory ran out: free some, or --set data.num_workers=1. If it always ends at "
        "the same files, take them out one by one.",
    )


def _end(processes: Sequence[_Process]) -> None:
    """Let all go before the first is waited for."""
    for process in processes:
        for pipe in (process.stdin, process.stdout):
            if pipe:
                with contextlib.suppress(OSError):
                    pipe.close()
    for process in processes:
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise EOFError
    return pipe


def _send(sink: IO[bytes], value: Any) -> None:
    content = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    sink.write(_LENGTH.pack(len(content)))
    sink.write(content)
    sink.flush()


def _receive(source: IO[bytes]) -> Any:
    (length,) = _LENGTH.unpack(_exactly(source, _LENGTH.size))
    return pickle.loads(_exactly(source, length))  # noqa: S301 - both ends of the pipe are ours


def _exactly(source: IO[bytes], length: int) -> bytes:
    content = source.read(length)
    if len(content) < length:
        raise EOFError
    return content
