"""A server from its start to its end: the worker first, the HTTP server beside it, signals, and the drain."""

import asyncio
import contextlib
import errno
import math
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from foveal.errors import ConfigError
from foveal.serving.access import Access, host_in_url, is_loopback
from foveal.serving.config import ServeConfig
from foveal.serving.messages import ModelFacts, ServedExport, WorkerSettings
from foveal.serving.worker_client import WorkerClient

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
PARENT_VARIABLE = "FOVEAL_SERVE_PARENT"
"""Process id of whoever started the server for as long as it lives itself, as `foveal.Server` does."""

_SPARE_FILES = 128
"""Beyond one a connection: sockets that are being turned away, the worker's, and what Python itself has open."""


@dataclass(frozen=True)
class Serving:
    """What is to be served, where, and for whom.

    Attributes:
        exports: the models, the default first.
        host: address or name to listen at.
        port: 0 for a free one.
        token: what clients must know; None for nothing.
        config: limits.
    """

    exports: tuple[ServedExport, ...]
    host: str
    port: int
    token: str | None
    config: ServeConfig


@dataclass(frozen=True)
class Ready:
    """A server that listens and whose models are ready.

    Attributes:
        url: where, without a slash at the end.
        models: what it serves.
        is_everywhere: whether it listens at all addresses of the machine.
    """

    url: str
    models: tuple[ModelFacts, ...]
    is_everywhere: bool


@dataclass(frozen=True)
class Stopped:
    """A server that has come to its end.

    Attributes:
        signal_number: that ended it; 0 where it was ended otherwise.
        num_requests: that were answered.
        num_given_up: that were under way and could not be waited for.
    """

    signal_number: int
    num_requests: int
    num_given_up: int


def bind(host: str, port: int, *, has_token: bool) -> socket.socket:
    """Take the port, without listening yet.

    Args:
        host: address or name.
        port: 0 for a free one.
        has_token: whether clients must send one.

    Raises:
        ConfigError: the address is not this machine's, is taken, or can be reached by others and there is no token.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--host {host} --port {port}: {error}.", fix="give an address of this machine.") from error
    if not is_loopback(str(address[0])) and not has_token:
        raise ConfigError(
            f"--host {host} can be reached from other machines, and no token was given.",
            fix="give --token-file FILE (or FOVEAL_TOKEN); make one with: "
            "python -c 'import secrets; print(secrets.token_urlsafe(32))' > token.txt",
        )
    bound = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        taken = error.errno == errno.EADDRINUSE
        raise ConfigError(
            f"--host {host} --port {port}: {'another program listens there' if taken else error.strerror}.",
            fix="choose another --port; 0 takes a free one.",
        ) from error
    bound.setblocking(False)
    return bound


def run(
    serving: Serving, bound: socket.socket, on_ready: Callable[[Ready], None], say: Callable[[str], None]
) -> Stopped:
    """Serve until a signal comes.

    Args:
        serving: what and for whom.
        bound: the socket from `bind`.
        on_ready: told once when it listens and its models are ready.
        say: takes one line for the server's log.

    Raises:
        FovealError: a model cannot be opened.
    """
    config = serving.config
    settings = WorkerSettings(
        serving.exports,
        num_threads=None if config.num_threads == "auto" else config.num_threads,
        max_batch=config.max_batch,
        max_wait_ms=config.max_wait_ms,
        queue_size=config.queue_size,
        queue_mib=math.ceil(config.max_buffered_mib),
    )
    worker = WorkerClient(settings, on_event=say)
    with bound:
        # Before anything else is imported: it has its own libraries to load, on another processor.
        worker.launch()
        _allow_open_files(config.max_connections + _SPARE_FILES)
        return asyncio.run(_Run(serving, bound, worker, on_ready, say).run())


class _Run:
    def __init__(
        self,
        serving: Serving,
        bound: socket.socket,
        worker: WorkerClient,
        on_ready: Callable[[Ready], None],
        say: Callable[[str], None],
    ) -> None:
        self._serving, self._bound, self._worker = serving, bound, worker
        self._on_ready, self._say = on_ready, say
        self._signal_number = 0
        self._stopping = asyncio.Event()

    async def run(self) -> Stopped:
        asyncio.get_running_loop().set_exception_handler(self._broken)
        with self._signals():
            opening = asyncio.create_task(self._worker.start())
            server = self._make_server()
            listening = asyncio.create_task(server.serve(sockets=[self._bound]))
            ending = asyncio.create_task(self._stopping.wait())
            watching = asyncio.create_task(self._stop_with_parent(os.environ.get(PARENT_VARIABLE)))
            try:
                await asyncio.wait((opening, listening, ending), return_when=asyncio.FIRST_COMPLETED)
                if opening.done() and not ending.done():
                    opening.result()  # raises what the worker says of a model
                    while not server.started and not listening.done():
                        await asyncio.sleep(0.005)
                    self._on_ready(self._ready())
                    await asyncio.wait((listening, ending), return_when=asyncio.FIRST_COMPLETED)
            finally:
                num_given_up = await self._wind_up(server, listening, opening, ending, watching)
            return Stopped(self._signal_number, server.server_state.total_requests, num_given_up)

    async def _wind_up(self, server: Any, listening: "asyncio.Task[None]", *others: "asyncio.Task[Any]") -> int:
        """Answer what is under way, and end everything; how many were given up."""
        self._stopping.set()
        server.should_exit = True
        limit = self._serving.config.drain_seconds
        try:
            await asyncio.wait((listening,), timeout=limit)
            given_up = tuple(server.server_state.tasks)
            for task in given_up:
                task.cancel()  # each is told so by the gate
            await listening
        finally:
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await self._worker.stop(drain_seconds=0.0)
        return len(given_up)

    async def _stop_with_parent(self, parent: str | None) -> None:
        """Stop when whoever started this server has died without stopping it."""
        while parent is not None and str(os.getppid()) == parent:
            await asyncio.sleep(1.0)
        if parent is not None:
            self._stopping.set()

    def _make_server(self) -> Any:
        from foveal.serving.app import Front
        from foveal.serving.listening import make_server
        from foveal.serving.monitoring import Monitor
        from foveal.serving.uploads import BufferBudget

        serving = self._serving
        config = serving.config
        names = tuple(export.name for export in serving.exports)
        monitor = Monitor(names)
        monitor.watch_worker(self._worker)
        front = Front(
            worker=self._worker,
            names=names,
            config=config,
            monitor=monitor,
            needs_token=serving.token is not None,
            budget=BufferBudget(config.max_buffered_bytes),
            stopping=self._stopping,
        )
        own = (serving.host, str(self._bound.getsockname()[0]))
        access = Access.of(own, serving.token, config.allowed_hosts, config.allowed_origins)
        return make_server(front, access, self._say)

    def _ready(self) -> Ready:
        address, port = self._bound_at()
        is_everywhere = address in {"0.0.0.0", "::"}
        shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
        return Ready(f"http://{host_in_url(shown)}:{port}", self._worker.models, is_everywhere)

    def _bound_at(self) -> tuple[str, int]:
        address, port, *_ = self._bound.getsockname()
        return str(address), int(port)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """The first signal begins the drain, the second ends the process."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()

        def hear(number: int, frame: object) -> None:
            del frame
            if self._signal_number:
                self._end_at_once(number)
            self._signal_number = number
            loop.call_soon_threadsafe(self._stopping.set)

        before = {number: signal.signal(number, hear) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _end_at_once(self, number: int) -> None:
        if (pid := self._worker.pid) is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        os._exit(128 + number)

    def _broken(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What asyncio could not hand to anybody, in a line; never what a client sent, which an error may quote."""
        from foveal.serving.gate import where

        del loop
        error = context.get("exception")
        words = "" if error is None else f": {where(error)}"
        if isinstance(error, OSError) and error.strerror:
            words += f": {error.strerror}"
        self._say(f"{context.get('message', 'an error')}{words}".splitlines()[0])


def _allow_open_files(wanted: int) -> None:
    """Raise this process's own limit on open files, as far as the system lets it."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
