"""Refusals: what the server says when it does not do what it was asked, as problem+json (RFC 9457)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

from foveal.files import to_json

PROBLEM_TYPE = "application/problem+json"

KINDS: dict[str, tuple[int, str]] = {
    "malformed": (400, "The request cannot be understood"),
    "no-token": (401, "A token is needed"),
    "foreign-origin": (403, "Another web page may not ask this server"),
    "not-found": (404, "There is nothing here"),
    "wrong-method": (405, "This cannot be done here"),
    "slow-request": (408, "The request came too slowly"),
    "too-large": (413, "The request is too large"),
    "wrong-type": (415, "The body is of no kind that is taken here"),
    "foreign-host": (421, "This server does not go by that name"),
    "bad-parameter": (422, "A parameter is wrong"),
    "unreadable-image": (422, "The image cannot be used"),
    "large-head": (431, "The head of the request is too large"),
    "failed": (500, "The server failed"),
    "not-supported": (501, "This part of HTTP is not supported"),
    "not-ready": (503, "The server is not ready"),
    "busy": (503, "The server is busy"),
    "too-slow": (503, "The answer took too long"),
    "stopping": (503, "The server is stopping"),
}
"""By code: the status and what it means. `type` of a problem is the place on /docs that names it."""

RETRY_AFTER_SECONDS = {"not-ready": 1, "busy": 1, "too-slow": 5, "stopping": 5}


@dataclass(frozen=True, slots=True)
class Problem:
    """One refusal.

    Attributes:
        code: one of `KINDS`.
        detail: what was wrong with this very request, one sentence.
        headers: to go with the answer, by name.
    """

    code: str
    detail: str
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def status(self) -> int:
        """Of the answer."""
        return KINDS[self.code][0]

    def body(self) -> bytes:
        """The answer's body, UTF-8 JSON."""
        return to_json(
            {"type": f"/docs#{self.code}", "title": KINDS[self.code][1], "status": self.status, "detail": self.detail}
        ).encode("utf-8")

    def all_headers(self) -> dict[str, str]:
        """What the answer's head holds, by name in small letters."""
        headers = {"content-type": PROBLEM_TYPE, "cache-control": "no-store"}
        if self.code in RETRY_AFTER_SECONDS:
            headers["retry-after"] = str(RETRY_AFTER_SECONDS[self.code])
        if self.code == "no-token":
            headers["www-authenticate"] = 'Bearer realm="foveal"'
        return {**headers, **{name.lower(): value for name, value in self.headers.items()}}

    def as_http(self, headers: Mapping[str, str]) -> bytes:
        """The whole answer as it goes over the wire, for where no HTTP library is left to write it; it closes."""
        body = self.body()
        head = {**self.all_headers(), **headers, "content-length": str(len(body)), "connection": "close"}
        lines = [f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}", *(f"{k}: {v}" for k, v in head.items())]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


class RefusedError(Exception):
    """A request is refused, for the reason that its problem states; whoever catches it answers."""

    def __init__(self, code: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(detail)
        self.problem = Problem(code, detail, headers or {})


class ClientGoneError(Exception):
    """Nobody is left to answer to."""


def problem_of_status(status: int) -> str:
    """The code that a bare HTTP status stands for."""
    exact = [code for code, (of_code, _) in KINDS.items() if of_code == status]
    return exact[0] if exact else ("malformed" if status < 500 else "failed")
