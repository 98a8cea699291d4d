"""Images out of a request's body, read piece by piece within limits: bytes, parts, time, memory of all requests.

Nothing is written to disk, and nothing is set aside that has not come: a limit is met before a body is in memory.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from foveal.serving.access import Headers
from foveal.serving.problems import ClientGoneError, RefusedError

IMAGE_PART = "image"
"""How parts with an image are called."""

MAX_PART_HEADERS = 8
MAX_NAME_LETTERS = 1024
_MAX_BOUNDARY_BYTES = 70  # RFC 2046, 5.1.1
_PLAIN_ENCODINGS = {b"", b"7bit", b"8bit", b"binary"}
_WHAT_IS_TAKEN = (
    f"Send multipart/form-data with parts named '{IMAGE_PART}', or one image as the body with an image/* type or "
    "application/octet-stream."
)

# The parser warns of bytes behind the last boundary, which is the client's affair.
logging.getLogger("python_multipart.multipart").setLevel(logging.CRITICAL)

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class Upload:
    """One image as it came.

    Attributes:
        name: the client's file name; empty where there is none. Never used as a path.
        content: the bytes of the file.
    """

    name: str
    content: bytes


@dataclass(frozen=True, slots=True)
class UploadLimits:
    """What one request may bring.

    Attributes:
        max_bytes: of the whole body.
        max_images: parts.
        body_seconds: in which it must have come.
    """

    max_bytes: int
    max_images: int
    body_seconds: float


class BufferBudget:
    """The memory that the bodies of all requests may take together.

    Args:
        max_bytes: all there is.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.used_bytes = max_bytes, 0

    @contextmanager
    def account(self) -> Iterator["Account"]:
        """What one request takes, given back at the end."""
        account = Account(self)
        try:
            yield account
        finally:
            self.used_bytes -= account.taken_bytes


class Account:
    """What one request has taken of the budget.

    Args:
        budget: of all requests.
    """

    def __init__(self, budget: BufferBudget) -> None:
        self._budget, self.taken_bytes = budget, 0

    def take(self, num_bytes: int) -> None:
        """Take room for bytes that have come.

        Raises:
            RefusedError: 503, there is none.
        """
        if self._budget.used_bytes + num_bytes > self._budget.max_bytes:
            raise RefusedError("busy", "Too many uploads are under way; try again.")
        self._budget.used_bytes += num_bytes
        self.taken_bytes += num_bytes


async def read_uploads(headers: Headers, receive: Receive, limits: UploadLimits, account: Account) -> list[Upload]:
    """The images that a request brings.

    Args:
        headers: of the request, names in small letters.
        receive: gives the ASGI messages of the body.
        limits: what one request may bring.
        account: where room for it is taken.

    Raises:
        RefusedError: 400, 408, 413, 415 or 503.
        ClientGoneError: the client has left.
    """
    values = {name: value.decode("latin-1") for name, value in headers}
    kind, options = parse_options_header(values.get(b"content-type"))
    if values.get(b"content-encoding", "identity").lower() != "identity":
        raise RefusedError("wrong-type", "A compressed body is not taken: images are compressed already.")
    is_form = kind == b"multipart/form-data"
    if not is_form and kind != b"application/octet-stream" and not kind.startswith(b"image/"):
        raise RefusedError("wrong-type", _WHAT_IS_TAKEN)
    form = _Form(options.get(b"boundary", b""), limits.max_images) if is_form else None
    declared = values.get(b"content-length", "")
    if declared.isdigit() and int(declared[:20]) > limits.max_bytes:
        raise _too_large(limits)
    pieces: list[bytes] = []
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for piece in _pieces(receive, limits, account):
                if form is not None:
                    form.write(piece)
                else:
                    pieces.append(piece)
        if form is not None:
            return form.finish()
    except TimeoutError as error:
        raise RefusedError("slow-request", f"The body did not come within {limits.body_seconds:g} s.") from error
    finally:
        if form is not None:
            form.let_go()
    content = b"".join(pieces)
    if not content:
        raise RefusedError("malformed", f"The body is empty. {_WHAT_IS_TAKEN}")
    return [Upload("", content)]


async def _pieces(receive: Receive, limits: UploadLimits, account: Account) -> AsyncIterator[bytes]:
    num_bytes, is_more = 0, True
    while is_more:
        message = await receive()
        if message["type"] != "http.request":
            raise ClientGoneError
        piece, is_more = message.get("body", b""), message.get("more_body", False)
        num_bytes += len(piece)
        if num_bytes > limits.max_bytes:
            raise _too_large(limits)
        account.take(len(piece))
        if piece:
            yield piece


def _too_large(limits: UploadLimits) -> RefusedError:
    return RefusedError("too-large", f"At most {limits.max_bytes:,} bytes are taken in one request.")


class _Form:
    """The parts of a form as they come in.

    Args:
        boundary: what divides the parts.
        max_images: how many there may be.
    """

    def __init__(self, boundary: bytes, max_images: int) -> None:
        if not 0 < len(boundary) <= _MAX_BOUNDARY_BYTES or not boundary.isascii():
            raise RefusedError("malformed", f"A boundary of 1 to {_MAX_BOUNDARY_BYTES} letters was expected.")
        self._max_images = max_images
        self._uploads: list[Upload] = []
        self._num_parts, self._is_whole = 0, False
        self._headers: dict[bytes, bytes] = {}
        self._name, self._key, self._value, self._content = "", b"", b"", bytearray()
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin_part,
                "on_header_field": self._add_key,
                "on_header_value": self._add_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_part_data": self._add_content,
                "on_part_end": self._end_part,
                "on_end": self._end,
            },
            max_header_count=MAX_PART_HEADERS,
        )

    def write(self, piece: bytes) -> None:
        """Take the next bytes of the body.

        Raises:
            RefusedError: they are no form, or more than is taken.
        """
        try:
            self._parser.write(piece)
        except FormParserError as error:
            raise RefusedError("malformed", f"The body is no multipart/form-data: {error}.") from error

    def finish(self) -> list[Upload]:
        """The images, once all bytes are in.

        Raises:
            RefusedError: the form ends in the middle, or holds no image.
        """
        if not self._is_whole:
            raise RefusedError("malformed", "The body ends before its last boundary.")
        if not self._uploads:
            raise RefusedError("malformed", f"The form has no part. {_WHAT_IS_TAKEN}")
        return self._uploads

    def let_go(self) -> None:
        """Hold nothing of the body any more.

        Form and parser hold each other: what they hold would stay in memory until Python looks for such circles, which
        is many large bodies later, and beyond all limits.
        """
        self._uploads, self._content = [], bytearray()
        self._parser.callbacks = {}

    def _begin_part(self) -> None:
        self._num_parts += 1
        if self._num_parts > self._max_images:
            raise RefusedError("too-large", f"At most {self._max_images} images are taken in one request.")
        self._headers, self._content = {}, bytearray()

    def _add_key(self, data: bytes, start: int, end: int) -> None:
        self._key += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        key = self._key.lower()
        if key in self._headers:
            raise RefusedError("malformed", "A part has the same header twice.")
        self._headers[key] = self._value
        self._key, self._value = b"", b""

    def _end_headers(self) -> None:
        kind, options = parse_options_header(self._headers.get(b"content-disposition"))
        if kind != b"form-data" or b"name" not in options:
            raise RefusedError("malformed", "A part lacks 'Content-Disposition: form-data; name=...'.")
        if options[b"name"] != IMAGE_PART.encode():
            raise RefusedError("malformed", f"Parts named '{IMAGE_PART}' alone are taken, and one has another name.")
        if self._headers.get(b"content-type", b"").strip().lower().startswith(b"multipart/"):
            raise RefusedError("malformed", "A form within a part is not taken.")
        if self._headers.get(b"content-transfer-encoding", b"").strip().lower() not in _PLAIN_ENCODINGS:
            raise RefusedError("malformed", "Parts are taken as they are, without a transfer encoding.")
        name = options.get(b"filename", b"")
        try:
            self._name = name.decode("utf-8")
        except UnicodeDecodeError:
            self._name = name.decode("latin-1")
        self._name = self._name[:MAX_NAME_LETTERS]

    def _add_content(self, data: bytes, start: int, end: int) -> None:
        self._content += data[start:end]

    def _end_part(self) -> None:
        self._uploads.append(Upload(self._name, bytes(self._content)))
        self._content = bytearray()

    def _end(self) -> None:
        self._is_whole = True
