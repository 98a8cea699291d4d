"""Frames: what passes between the server's two processes, over a socket pair.

A frame is a header, which is JSON, and any number of blobs, which are bytes:

```
4 bytes  "fvl1"
4 bytes  length of the header      4 bytes  number of blobs        big-endian
8 bytes  length of each blob
header   UTF-8
blobs
```

Nothing in it can name code, as a pickle could. Every length is checked against a limit before memory is set aside for
it, in both directions: either process may have been broken by what it was fed.
"""

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from foveal.errors import FovealError

if TYPE_CHECKING:
    import asyncio

MAGIC = b"fvl1"
MAX_HEADER_BYTES = 16 * 2**20
MAX_BLOBS = 4096
MAX_FRAME_BYTES = 2**31
"""Of all blobs of a frame together; whoever reads may set less."""

_PREFIX = struct.Struct("!4sII")


class ProtocolError(FovealError):
    """What came is no frame, or is larger than agreed; nothing can be read after it."""


class TornFrameError(ProtocolError):
    """The other side was gone before its frame was whole."""

    def __init__(self) -> None:
        super().__init__("The connection ended within a frame.")


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One message.

    Attributes:
        header: what it says; `type` says what kind of message it is.
        blobs: the bytes that go with it, such as images.
    """

    header: dict[str, Any]
    blobs: tuple[bytes, ...] = ()

    @property
    def type(self) -> str:
        """The kind of message."""
        return str(self.header.get("type", ""))


def packed(header: dict[str, Any], blobs: Sequence[bytes] = ()) -> list[bytes]:
    """A frame as pieces to be written one after the other; blobs are not copied.

    Raises:
        ProtocolError: it is larger than any reader would take.
        ValueError: the header holds a number that JSON has not, such as NaN.
    """
    text = json.dumps(header, allow_nan=False, separators=(",", ":")).encode("ascii")
    lengths = [len(blob) for blob in blobs]
    _check_counts(len(text), len(lengths))
    _check_blobs(lengths, MAX_FRAME_BYTES)
    start = _PREFIX.pack(MAGIC, len(text), len(lengths)) + struct.pack(f"!{len(lengths)}Q", *lengths)
    return [start + text, *blobs]


def read_frame(stream: IO[bytes], *, max_frame_bytes: int = MAX_FRAME_BYTES) -> Frame | None:
    """Read the next frame, waiting for it; None where the other side has closed between two frames.

    Args:
        stream: buffered, so that a read gives all that was asked for unless the other side closes.
        max_frame_bytes: how much all blobs of a frame may have together.

    Raises:
        ProtocolError: what comes is no frame, is too large, or ends in the middle.
    """
    prefix = stream.read(_PREFIX.size)
    if not prefix:
        return None
    header_length, num_blobs = _read_prefix(_whole(prefix, _PREFIX.size))
    lengths = _read_lengths(_whole(stream.read(8 * num_blobs), 8 * num_blobs), max_frame_bytes)
    header = _read_header(_whole(stream.read(header_length), header_length))
    return Frame(header, tuple(_whole(stream.read(length), length) for length in lengths))


async def receive_frame(stream: "asyncio.StreamReader", *, max_frame_bytes: int = MAX_FRAME_BYTES) -> Frame | None:
    """Like `read_frame`, for asyncio.

    Raises:
        ProtocolError: what comes is no frame, is too large, or ends in the middle.
    """
    # Here, so that the worker, which is waited for when it starts, does not import it.
    import asyncio

    try:
        prefix = await stream.readexactly(_PREFIX.size)
    except asyncio.IncompleteReadError as error:
        if not error.partial:
            return None
        raise TornFrameError from error
    header_length, num_blobs = _read_prefix(prefix)
    try:
        lengths = _read_lengths(await stream.readexactly(8 * num_blobs), max_frame_bytes)
        header = _read_header(await stream.readexactly(header_length))
        return Frame(header, tuple([await stream.readexactly(length) for length in lengths]))
    except asyncio.IncompleteReadError as error:
        raise TornFrameError from error


def _whole(content: bytes, length: int) -> bytes:
    if len(content) < length:
        raise TornFrameError
    return content


def _read_prefix(content: bytes) -> tuple[int, int]:
    magic, header_length, num_blobs = _PREFIX.unpack(content)
    if magic != MAGIC:
        raise ProtocolError(f"A frame was expected, and {magic!r} came.")
    _check_counts(header_length, num_blobs)
    return header_length, num_blobs


def _read_lengths(content: bytes, max_frame_bytes: int) -> list[int]:
    lengths = list(struct.unpack(f"!{len(content) // 8}Q", content))
    _check_blobs(lengths, max_frame_bytes)
    return lengths


def _read_header(content: bytes) -> dict[str, Any]:
    try:
        header = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("The header of a frame is no JSON.") from error
    if not isinstance(header, dict):
        raise ProtocolError(f"The header of a frame is no JSON object but {type(header).__name__}.")
    return header


def _check_counts(header_length: int, num_blobs: int) -> None:
    if header_length > MAX_HEADER_BYTES:
        raise ProtocolError(f"A frame's header of {header_length:,} bytes; at most {MAX_HEADER_BYTES:,} are allowed.")
    if num_blobs > MAX_BLOBS:
        raise ProtocolError(f"A frame with {num_blobs:,} blobs; at most {MAX_BLOBS:,} are allowed.")


def _check_blobs(lengths: Sequence[int], limit: int) -> None:
    if sum(lengths) > limit:
        raise ProtocolError(f"A frame of {sum(lengths):,} bytes; at most {limit:,} are allowed.")
