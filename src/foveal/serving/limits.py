"""Connections that cannot be held for ever: deadlines, a cap on their number, and answers where no app has a say.

uvicorn waits for ever for the rest of a request's head, and for a client to take its answer; and it answers what is no
HTTP in plain text. Here every state of a connection has a deadline, and every answer is problem+json.
"""

import asyncio
import contextlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from foveal.serving.problems import Problem

LINGER_SECONDS = 2.0
"""How long what a client still sends is thrown away after a refusal: if the server closed at once, the client's system
would drop the answer unread."""

_BODY_IS_IN = (h11.DONE, h11.MUST_CLOSE, h11.CLOSED, h11.IDLE)
_BY_STATUS = {431: "large-head", 501: "not-supported"}


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """How long a connection may take for what, in seconds, and how many may be open.

    Attributes:
        head_seconds: for the head of a request, from its first byte, or from when the connection was made.
        request_seconds: from the head to the end of the answer, whatever the reason; a last resort.
        write_seconds: for taking a part of the answer that no buffer holds, and what is left of it when the server
            closes.
        max_connections: how many may be open at a time.
        headers: of each answer that is written here.
    """

    head_seconds: float
    request_seconds: float
    write_seconds: float
    max_connections: int
    headers: Mapping[str, str]


class BoundedProtocol(H11Protocol):
    """uvicorn's HTTP over h11, with a deadline for every state.

    Args:
        config: uvicorn's.
        server_state: uvicorn's.
        app_state: uvicorn's.
        limits: the deadlines and the cap.
        refused: is told of each answer that is given here, by its problem.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: ConnectionLimits,
        refused: Callable[[Problem], None],
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits = limits
        self._tell_refused = refused
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._has_begun = False
        self._is_deaf = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, or turn it away where there are too many."""
        lingering = LingeringTransport(transport, self._close_inner, self.loop)
        if len(self.connections) >= self._limits.max_connections:
            self.transport = lingering
            self._refuse(Problem("busy", "Too many connections are open."))
            return
        super().connection_made(lingering)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Bytes of a request."""
        if self._is_deaf:
            return
        if not self._has_begun and not self._is_answering():
            self._has_begun = True
            self._expect_head()
        super().data_received(data)
        if self._is_answering() and self._has_begun:
            # The app keeps the times of body and answer; this is for a client that does not take the answer.
            self._has_begun = False
            self._within(self._limits.request_seconds, self.transport.abort)

    def on_response_complete(self) -> None:
        """An answer was written: wait for the next request, for as long as uvicorn's own timer runs."""
        self._cancel_timer()
        self._has_begun = False
        super().on_response_complete()
        if self._is_answering():
            self._within(self._limits.request_seconds, self.transport.abort)
        elif not self.transport.is_closing() and self.conn.trailing_data[0]:
            # The head of the next request has begun in the same packet as the last.
            self._has_begun = True
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._cancel_timer()
        self.resume_writing()
        if self.flow is not None:  # else it was turned away
            super().connection_lost(exc)
        if isinstance(self.transport, LingeringTransport):
            self.transport.forget()

    def pause_writing(self) -> None:
        """The client does not take its answer as fast as it comes: it has so long to catch up."""
        self._write_timer = self.loop.call_later(self._limits.write_seconds, self.transport.abort)
        if self.flow is not None:
            super().pause_writing()

    def resume_writing(self) -> None:
        """The client has caught up, or is gone."""
        if self._write_timer is not None:
            self._write_timer.cancel()
        if self.flow is not None:
            super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, or more than is taken; called by uvicorn where h11 has raised."""
        del msg  # uvicorn's one sentence for all of them
        error = sys.exc_info()[1]
        code = _BY_STATUS.get(getattr(error, "error_status_hint", 400), "malformed")
        words = "This is no HTTP" if error is None else str(error).partition(": bytearray(")[0]
        self._refuse(Problem(code, f"{words}."))

    def _refuse(self, problem: Problem) -> None:
        """Answer below the app, and close."""
        if self._is_answering():
            # The body was broken while the app was reading it: it learns that nobody is left to answer.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.cycle.response_started:
                self.transport.abort()
                return
        self._tell_refused(problem)
        self.transport.write(problem.as_http(self._limits.headers))
        self.transport.close()

    def _close_inner(self, inner: asyncio.Transport) -> float:
        """Close for good, or say that nothing more is written and let the client finish.

        Returns:
            Seconds after which the connection is cut, if the client has not gone.
        """
        self._cancel_timer()
        self._unset_keepalive_if_required()
        if self.flow is not None and self.conn.their_state in _BODY_IS_IN and not self._is_deaf:
            inner.close()
            return self._limits.write_seconds
        self._is_deaf = True
        with contextlib.suppress(RuntimeError, OSError):  # the client may have gone by itself
            inner.resume_reading()
            inner.write_eof()
        return LINGER_SECONDS

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _expect_head(self) -> None:
        self._within(self._limits.head_seconds, self._head_is_late)

    def _head_is_late(self) -> None:
        if self._has_begun:
            seconds = f"{self._limits.head_seconds:g}"
            self._is_deaf = True
            self._refuse(Problem("slow-request", f"The head of the request did not come within {seconds} s."))
        else:
            self.transport.close()

    def _within(self, seconds: float, action: Callable[[], None]) -> None:
        self._cancel_timer()
        self._timer = self.loop.call_later(seconds, action)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class LingeringTransport(asyncio.Transport):
    """A transport whose `close` lets the client read its answer, and does not wait for it longer than it was told.

    Args:
        inner: the transport of the socket.
        close_inner: closes it, and says after how many seconds it is cut.
        loop: the event loop.
    """

    def __init__(
        self,
        inner: asyncio.Transport,
        close_inner: Callable[[asyncio.Transport], float],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__()
        self._inner, self._close_inner, self._loop = inner, close_inner, loop
        self._cut: asyncio.TimerHandle | None = None

    def close(self) -> None:
        """Close once all is written, and cut it where that takes too long."""
        if self._cut is None:
            self._cut = self._loop.call_later(self._close_inner(self._inner), self._inner.abort)

    def forget(self) -> None:
        """The connection is gone by itself."""
        if self._cut is not None:
            self._cut.cancel()

    def is_closing(self) -> bool:
        """Whether `close` was called, or the connection is lost."""
        return self._cut is not None or self._inner.is_closing()

    def abort(self) -> None:
        """Cut it at once."""
        self._inner.abort()

    def write(self, data: Any) -> None:
        """Write, unless it is closing."""
        if not self.is_closing():
            self._inner.write(data)

    def pause_reading(self) -> None:
        """Leave in the socket what comes."""
        self._inner.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        self._inner.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """What is known of the socket."""
        return self._inner.get_extra_info(name, default)
