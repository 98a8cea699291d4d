"""`foveal` commands as processes of their own that start at once, also with a wire that kills them at a set moment.

Importing torch, timm and Lightning takes a process several seconds, and the tests of faults start dozens of processes.
These are forked from one that has imported the libraries; foveal itself, each of them imports anew. A kill, a signal,
an exit status are those of a real process. What needs a fresh Python, for instance a test of imports, starts its own.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import TracebackType

# None of them starts a thread when it is imported, or the fork could catch one that holds a lock; pyarrow does.
LIBRARIES = ("torch", "timm", "lightning.fabric", "kornia", "optuna", "sqlalchemy")
_server = multiprocessing.get_context("forkserver") if sys.platform != "win32" else multiprocessing.get_context()


class Command:
    """A command under way; the names are those of `subprocess.Popen`. A `with` block ends it for good at its end."""

    def __init__(
        self, words: Sequence[str], *traps: Callable[[], None], environment: Mapping[str, str] | None = None
    ) -> None:
        """Start `foveal` with these words; each of the traps is called first, and is pickled on its way there."""
        if _server.get_start_method() == "forkserver":
            _server.set_forkserver_preload(list(LIBRARIES))
        self._files = tempfile.TemporaryDirectory(prefix="foveal-said-")
        self._said = [Path(self._files.name, name) for name in ("out", "err")]
        told = dict(os.environ if environment is None else environment)
        self._process = _server.Process(target=_carry_out, args=(list(words), traps, told, Path.cwd(), self._said))
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while it works, minus the number of the signal that ended it."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Wait for its end; gives what it wrote to stdout and stderr.

        Raises:
            subprocess.TimeoutExpired: It has not ended after so many seconds.
        """
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("foveal", timeout, stderr=self._said[1].read_bytes())
        out, err = (file.read_text(encoding="utf-8") if file.exists() else "" for file in self._said)
        return out, err

    def __enter__(self) -> "Command":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.returncode is None:
            self._process.kill()
        self._process.join()
        self._files.cleanup()


def kill_after(trap: str, count: int, words: Sequence[str], *traps: Callable[[], None]) -> None:
    """Let a command run until the n-th call of a function has returned, `module:class or nothing:function`."""
    with Command(words, *traps, Killed(trap, count)) as command:
        _, err = command.communicate(timeout=300)
        assert command.returncode == -signal.SIGKILL, err


class Killed:
    """Kill this process for good right after the n-th call of a function."""

    def __init__(self, trap: str, count: int) -> None:
        self.trap, self.count = trap, count

    def __call__(self) -> None:
        module, name, attribute = self.trap.split(":")
        owner = getattr(import_module(module), name) if name else import_module(module)
        whole, calls = getattr(owner, attribute), iter(range(1, 1000))

        def trapped(*args: object, **kwargs: object) -> object:
            result = whole(*args, **kwargs)
            if next(calls) == self.count:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(owner, attribute, trapped)


class SmallDisk:
    """No file can grow beyond a size: what a write meets then is what a full disk gives."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes

    def __call__(self) -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (self.num_bytes, self.num_bytes))


class SmallMemory:
    """So much more memory than the libraries have taken already, in addresses: with them, that is gigabytes. Linux."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes

    def __call__(self) -> None:
        import ctypes
        import resource

        # As MALLOC_ARENA_MAX=1 does at the start of a process: an arena for each thread would take addresses, too.
        m_arena_max = -8
        assert ctypes.CDLL(None).mallopt(m_arena_max, 1) == 1
        status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        (used_kib,) = (int(line.split()[1]) for line in status if line.startswith("VmSize"))
        limit = 1024 * used_kib + self.num_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


class Meeting:
    """Before a worker claims its first trial of a study, it waits at a place until a second one is there."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __call__(self) -> None:
        from foveal.experiments.tune.trials import Trials

        claim = Trials.claim

        def claim_together(*args: object, **kwargs: object) -> object:
            (self.place / str(os.getpid())).touch()
            deadline = time.monotonic() + 120
            while len(list(self.place.iterdir())) < 2 and time.monotonic() < deadline:
                time.sleep(0.02)
            return claim(*args, **kwargs)

        Trials.claim = claim_together


def without_drawing() -> None:
    """Leave out the drawing of plots, which have tests of their own; all files are written."""
    empty = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"></svg>'
    for name in ("foveal.evaluation.plots", "foveal.report.figures", "foveal.report.tune_figures"):
        import_module(name).draw_svg = lambda *_, **__: empty


def _carry_out(
    words: list[str], traps: Sequence[Callable[[], None]], environment: dict[str, str], folder: Path, said: list[Path]
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for descriptor, file in zip((1, 2), said, strict=True):
        opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.argv = ["foveal", *words]
    for trap in traps:
        trap()
    from foveal.cli import main

    main()
