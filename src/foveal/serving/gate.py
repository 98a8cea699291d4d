"""The way into the app and out of it: access rules first, the same headers on every answer, no error unanswered."""

import asyncio
import contextlib
import time
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from foveal.serving.access import Access, Headers, preflight_headers
from foveal.serving.monitoring import OTHER_ROUTE, Monitor
from foveal.serving.problems import Problem, RefusedError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SECURITY_HEADERS = {
    "content-security-policy": CONTENT_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "x-frame-options": "DENY",
}
"""Of every answer."""


class Gate:
    """An ASGI app around another.

    Args:
        app: what answers.
        access: for whom.
        monitor: what counts.
        say: takes one line for the server's log.
        is_logging_requests: whether each request is a line, too.
    """

    def __init__(
        self, app: App, access: Access, monitor: Monitor, say: Callable[[str], None], *, is_logging_requests: bool
    ) -> None:
        self._app, self._access, self._monitor = app, access, monitor
        self._say, self._is_logging_requests = say, is_logging_requests

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            raise RuntimeError(f"an HTTP request was expected, and {scope['type']} came")
        start = time.monotonic()
        exchange = _Exchange(scope["headers"], receive, send)
        # HEAD is GET whose body is not sent, which the HTTP library sees to.
        method = scope["method"]
        inner = {**scope, "method": "GET"} if method == "HEAD" else {**scope}
        try:
            await self._answer(inner, exchange)
        except RefusedError as refusal:
            await exchange.answer(refusal.problem)
        except asyncio.CancelledError:
            with contextlib.suppress(asyncio.CancelledError):
                await exchange.answer(Problem("stopping", "The server is stopping; ask again."))
            raise
        # Whatever it is: the client gets its answer, the log its line, and the server goes on.
        except Exception as error:  # noqa: BLE001
            self._say(f"{method} {self._route(inner)} failed: {where(error)}")
            await exchange.answer(Problem("failed", "The server failed; its log says where."))
        finally:
            route = self._route(inner)
            self._monitor.request(route, exchange.status)
            if self._is_logging_requests:
                self._say(f"{method} {route} {exchange.status} {1000 * (time.monotonic() - start):.1f} ms")

    async def _answer(self, scope: MutableMapping[str, Any], exchange: "_Exchange") -> None:
        headers: Headers = scope["headers"]
        address = scope["server"][0] if scope.get("server") else None
        self._access.check_head(headers, scope.get("raw_path", b"") + scope.get("query_string", b""))
        self._access.check_host(headers, address)
        origin = self._access.check_origin(headers)
        if origin is not None:
            exchange.extra["access-control-allow-origin"] = origin
        if self._access.origins:
            exchange.extra["vary"] = "Origin"
        if scope["method"] == "OPTIONS" and any(name == b"access-control-request-method" for name, _ in headers):
            await exchange.answer_empty(204, preflight_headers(origin))
            return
        self._access.check_token(headers, scope["path"])
        await self._app(scope, exchange.receive, exchange.send)

    def _route(self, scope: MutableMapping[str, Any]) -> str:
        return str(getattr(scope.get("route"), "path", OTHER_ROUTE))


class _Exchange:
    """One request and its answer, with what every answer has."""

    def __init__(self, headers: Headers, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        names = {name for name, _ in headers}
        self._is_body_left = b"transfer-encoding" in names or any(
            name == b"content-length" and value.strip() != b"0" for name, value in headers
        )
        self._has_begun = False
        self.extra: dict[str, str] = {}
        self.status = 500

    async def receive(self) -> Message:
        """The next message of the client."""
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            self._is_body_left = False
        return message

    async def send(self, message: Message) -> None:
        """A message to the client."""
        if message["type"] == "http.response.start":
            self._has_begun, self.status = True, message["status"]
            headers = list(message.get("headers", ()))
            known = {name.lower() for name, _ in headers}
            added = {**SECURITY_HEADERS, **self.extra}
            if self._is_body_left:
                added["connection"] = "close"  # who is not read to the end is not read on
            headers += [
                (name.encode("latin-1"), value.encode("latin-1"))
                for name, value in added.items()
                if name.encode("latin-1") not in known
            ]
            message = {**message, "headers": headers}
        await self._send(message)

    async def answer(self, problem: Problem) -> None:
        """Answer with a problem, unless an answer has begun: the HTTP library cuts one that was not ended."""
        if not self._has_begun:
            await self._answer(problem.status, problem.all_headers(), problem.body())

    async def answer_empty(self, status: int, headers: dict[str, str]) -> None:
        """Answer without a body."""
        await self._answer(status, headers, b"")

    async def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        if status != 204:
            encoded.append((b"content-length", str(len(body)).encode()))
        await self.send({"type": "http.response.start", "status": status, "headers": encoded})
        await self.send({"type": "http.response.body", "body": body})


def where(error: BaseException) -> str:
    """An error in a line: what it is and which line of ours it came through last; never what it was given."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "foveal" in Path(frame.filename).parts] or frames
    place = f" at {Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""
    return f"{type(error).__name__}{place}"
