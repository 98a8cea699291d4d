"""`foveal serve`: a REST interface and a page over exported models, without torch."""

import asyncio
import contextlib
import html
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from foveal.errors import ConfigError, FovealError
from foveal.extras import require
from foveal.progress import Progress, Silence
from foveal.serving.access import TOKEN_VARIABLE, read_token
from foveal.serving.config import ServeConfig, read_serve_config
from foveal.serving.finding import find_models
from foveal.serving.messages import ServedExport
from foveal.serving.running import PARENT_VARIABLE, Ready, Serving, Stopped, bind, run

PathOrText = str | PathLike[str]

_LIBRARIES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client", "onnxruntime")


@dataclass(frozen=True)
class ServePlan:
    """What `serve --dry-run` shows.

    Attributes:
        models: by name: what is served, the default first.
        host: where it would listen.
        port: likewise; 0 stands for a free one.
        needs_token: whether clients must send one.
        config: the limits.
    """

    models: tuple[ServedExport, ...]
    host: str
    port: int
    needs_token: bool
    config: ServeConfig

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "models": {model.name: model.path for model in self.models},
            "host": self.host,
            "port": self.port,
            "needs_token": self.needs_token,
            "serve": self.config.model_dump(mode="json"),
        }

    def __str__(self) -> str:
        width = max(len(model.name) for model in self.models)
        named = [f"{model.name:<{width}}  {model.path}" for model in self.models]
        config = self.config
        lines = [
            f"models      {named[0]}",
            *(f"            {each}" for each in named[1:]),
            f"listens at  {self.host}, {f'port {self.port}' if self.port else 'a free port'}",
            f"token       {'needed' if self.needs_token else 'not needed: nobody but this machine can reach it'}",
            f"one request {config.max_images} images, {config.max_upload_mib:g} MiB, {config.request_seconds:g} s",
            f"together    {config.queue_size} images waiting, {config.max_buffered_mib:g} MiB, "
            f"{config.max_connections:,} connections",
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class ServeResult:
    """A server that has come to its end.

    Attributes:
        url: where it was.
        model_names: what it served.
        num_requests: that were answered.
        num_given_up: that were under way and could not be waited for.
        signal_number: what ended it: SIGINT or SIGTERM.
    """

    url: str
    model_names: tuple[str, ...]
    num_requests: int
    num_given_up: int
    signal_number: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "url": self.url,
            "models": list(self.model_names),
            "num_requests": self.num_requests,
            "num_given_up": self.num_given_up,
            "signal_number": self.signal_number,
        }

    def _repr_html_(self) -> str:
        names = html.escape(", ".join(self.model_names))
        return f"<p>Served {names} at {html.escape(self.url)}: {self.num_requests:,} requests answered</p>"


def serve(
    bundles: PathOrText | Sequence[PathOrText],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token_file: PathOrText | None = None,
    config: ServeConfig | PathOrText | None = None,
    overrides: Sequence[str] = (),
    on_ready: Callable[[Ready], None] = lambda _: None,
    progress: Progress | None = None,
) -> ServeResult:
    """Serve models until Ctrl-C or SIGTERM. In a notebook or a test, take `foveal.Server`.

    Args:
        bundles: exported models; runs and bundles are exported on the way where torch is installed. The first answers
            where no model is named.
        host: address or name to listen at; others than this machine's own need a token.
        port: 0 takes a free one.
        token_file: a file with the token that clients must send; the environment's `FOVEAL_TOKEN` does the same.
        config: the `serve` section, or a YAML file that holds it.
        overrides: `serve.key=value` texts on top.
        on_ready: told once when the server listens and its models are ready.
        progress: where lines of the log go.

    Raises:
        ArtifactError: a model is missing, damaged, or can not be exported here.
        ConfigError: a key, the token or the address is wrong, or the address needs a token.
        MissingExtraError: what a server needs is not installed.
    """
    _refuse_within_a_loop()
    _refuse_missing()
    settings = read_serve_config(config, overrides)
    token = read_token(None if token_file is None else Path(token_file), os.environ.get(TOKEN_VARIABLE))
    bound = bind(host, port, has_token=token is not None)
    with bound:
        exports = find_models(_paths(bundles))
        ready: list[Ready] = []

        def is_ready(now: Ready) -> None:
            ready.append(now)
            on_ready(now)

        say = (progress or Silence()).say
        stopped: Stopped = run(Serving(exports, host, port, token, settings), bound, is_ready, say)
    names = tuple(export.name for export in exports)
    url = ready[0].url if ready else ""
    return ServeResult(url, names, stopped.num_requests, stopped.num_given_up, stopped.signal_number)


def plan_serve(
    bundles: PathOrText | Sequence[PathOrText],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token_file: PathOrText | None = None,
    config: ServeConfig | PathOrText | None = None,
    overrides: Sequence[str] = (),
) -> ServePlan:
    """What `serve` would do: everything is checked, the address included, and nothing is exported or served.

    Raises:
        ArtifactError: as `serve`, for what can be seen without opening a model.
        ConfigError: as `serve`.
    """
    settings = read_serve_config(config, overrides)
    token = read_token(None if token_file is None else Path(token_file), os.environ.get(TOKEN_VARIABLE))
    bind(host, port, has_token=token is not None).close()
    exports = find_models(_paths(bundles), is_exporting=False)
    return ServePlan(exports, host, port, token is not None, settings)


class Server:
    """A server in a process of its own, for notebooks and tests: `foveal serve`, started and stopped by a `with` block.

    Args:
        bundles: as for `serve`.
        host: as for `serve`.
        port: as for `serve`; by default a free one.
        token: what clients must send; None for nothing.
        overrides: `serve.key=value` texts.
        start_seconds: how long it may take until it is ready.

    Attributes:
        url: where it listens, without a slash at the end.
        model_names: what it serves, the default first.
        log: lines that it wrote on stderr so far.

    Example:
        >>> with foveal.Server("exports/signs") as server:  # doctest: +SKIP
        ...     httpx.post(f"{server.url}/v1/predict", files={"image": open("photo.jpg", "rb")}).json()
    """

    def __init__(
        self,
        bundles: PathOrText | Sequence[PathOrText],
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        token: str | None = None,
        overrides: Sequence[str] = (),
        start_seconds: float = 600.0,
    ) -> None:
        words = [os.fspath(path) for path in _paths(bundles)]
        flags = [word for text in overrides for word in ("--set", text)]
        self._command = [sys.executable, "-P", "-m", "foveal", "serve", "--json", f"--host={host}", f"--port={port}"]
        self._command += [*flags, "--", *words]
        self._environment = {name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE}
        self._environment[PARENT_VARIABLE] = str(os.getpid())
        if token is not None:
            self._environment[TOKEN_VARIABLE] = token
        self._start_seconds = start_seconds
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self.url = ""
        self.model_names: tuple[str, ...] = ()
        self.log: list[str] = []

    @property
    def pid(self) -> int | None:
        """Of its process; None where it does not run."""
        return None if self._process is None else self._process.pid

    def start(self) -> Self:
        """Start it and wait until it is ready.

        Raises:
            FovealError: it ended before that; the message is its own.
        """
        process = subprocess.Popen(
            self._command, env=self._environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, encoding="utf-8", errors="surrogateescape", start_new_session=True,
        )  # fmt: skip
        self._process = process
        self._reader = threading.Thread(target=self._read_log, args=(process.stderr,), daemon=True)
        self._reader.start()
        late = threading.Timer(self._start_seconds, process.kill)
        late.start()
        try:
            said = _first_value(process.stdout)
        finally:
            late.cancel()
        try:
            facts = json.loads(said)
        except ValueError as error:
            exit_code = self.stop()
            words = "\n".join(self.log).removeprefix("foveal: ")
            raise FovealError(words or f"The server ended with exit code {exit_code} before it was ready.") from error
        self.url, self.model_names = facts["url"], tuple(facts["models"])
        return self

    def stop(self, wait_seconds: float = 60.0) -> int | None:
        """Let it answer what is under way, and end it; its exit code, or None where it did not run."""
        process, self._process = self._process, None
        if process is None:
            return None
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(wait_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
        if self._reader is not None:
            self._reader.join()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        return process.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _read_log(self, stream: IO[str]) -> None:
        self.log.extend(line.rstrip("\n") for line in stream)

    def _repr_html_(self) -> str:
        if not self.url:
            return "<p>A server that has not been started</p>"
        url = html.escape(self.url)
        return f'<p>{html.escape(", ".join(self.model_names))} at <a href="{url}">{url}</a></p>'


def _first_value(stream: IO[str] | None) -> str:
    """The lines of one JSON object, as the command line prints it; fewer where the stream ends before."""
    lines: list[str] = []
    for line in stream or ():
        lines.append(line)
        if line.startswith("}"):
            break
    return "".join(lines)


def _paths(bundles: PathOrText | Sequence[PathOrText]) -> list[Path]:
    paths = [Path(bundles)] if isinstance(bundles, str | PathLike) else [Path(each) for each in bundles]
    if not paths:
        raise ConfigError("At least one model was expected, and none came.", fix="name an export, a run or a bundle.")
    return paths


def _refuse_missing() -> None:
    """Say what is not installed, without importing it: the worker is to start first.

    Raises:
        MissingExtraError: something is not.
    """
    for library in _LIBRARIES:
        if find_spec(library) is None:
            require(library, extra="serve", purpose="serve models")


def _refuse_within_a_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise ConfigError(
        "foveal.serve runs an event loop of its own, and one is running here, as in a notebook.",
        fix="use foveal.Server, which runs it in a process of its own.",
    )
