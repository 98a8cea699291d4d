"""Whether a JPEG's coded pixels make sense from the first to the last.

Pillow's decoder goes on silently with whatever it finds where the data in the middle of a JPEG are wrong, and the
picture is shifted, of other colours or grey from there on. libjpeg knows: it warns, and Pillow does not ask. The
library simplejpeg does; where it is not installed, nothing can be told.

What is found is what leaves the code out of step: data that end before the last block, are left over after it, or hold
a code that does not exist. A wrong bit that leads to other valid codes of the same length in all is a picture like any
other, only not the one that was meant; no decoder can tell. So a lost sector of a photograph is nearly always found,
and one turned bit in four.

Not every warning means damage. Cameras and programs leave bytes between the header's segments, pad the data before the
end marker, and write odd version numbers, colour profiles and marker orders; such pictures are whole.
"""

import re
import struct
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

JPEG_CHECK_VERSION = 1
"""To be raised with any change to what counts as damage: what another version looked at is looked at anew."""

CORRUPT_JPEG = "the JPEG data is damaged"
"""How the reason begins for which such a file is refused."""

TOO_SHORT = "it ends before the last block"
LEFT_OVER = "bytes are left over after the last block"
OUT_OF_STEP = "a restart marker is missing or out of turn"
BAD_CODE = "it holds a code that does not exist"
FAULTS = (TOO_SHORT, LEFT_OVER, OUT_OF_STEP, BAD_CODE)

_SAYS: tuple[tuple[str, str], ...] = (
    ("premature end of data segment", TOO_SHORT),
    ("bad Huffman code", BAD_CODE),
    ("bad arithmetic code", BAD_CODE),
    ("instead of RST", OUT_OF_STEP),
)
_EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker 0x([0-9a-f]{2})")
_END_OF_IMAGE = 0xD9
_END_MARKER = b"\xff\xd9"
_SCAN = 0xDA


def is_available() -> bool:
    """Whether the library that can tell is installed."""
    return _decoder() is not None


@cache
def _decoder() -> Callable[..., Any] | None:
    try:
        decoder: Callable[..., Any] = import_module("simplejpeg").decode_jpeg
    except ImportError:
        return None
    return decoder


def jpeg_fault(content: bytes) -> str | None:
    """What is wrong with the coded pixels of a JPEG that Pillow decodes; one of `FAULTS`.

    Args:
        content: the file.

    Returns:
        None where nothing is, or where it cannot be told.
    """
    warning = _warning(content)
    if warning is None:
        return None
    if "Premature end of JPEG file" in warning and not content.endswith(_END_MARKER):
        # The end marker alone may be missing, but not what was to come before it.
        return jpeg_fault(content + _END_MARKER)
    found = _EXTRANEOUS.search(warning)
    if found is None:
        return next((fault for words, fault in _SAYS if words in warning), None)
    tidy = _without_junk_in_header(content)
    if tidy is not None:
        # Only the first warning is told, so what follows the header's has to be asked for.
        return jpeg_fault(tidy)
    return _fault_of_left_over(content) if int(found[2], 16) == _END_OF_IMAGE else LEFT_OVER


def _warning(content: bytes) -> str | None:
    """The first thing that libjpeg finds to say, or None."""
    decode = _decoder()
    if decode is None:
        return None
    for colours in ("GRAY", "CMYK"):
        try:
            # All codes are read whatever is made of them, so the smallest picture does.
            decode(content, colours, min_height=1, min_width=1, min_factor=8, strict=True)
        except ValueError as error:
            words = str(error)
            if colours == "GRAY" and "color conversion" in words:
                continue
            return words
        return None
    return None


def _header_segments(content: bytes) -> list[tuple[int, int]] | None:
    """Where each segment lies up to the first scan's header, as (start, end); None where there is no scan."""
    segments, position = [(0, 2)], 2
    while True:
        position = content.find(b"\xff", position)
        if position < 0 or position + 4 > len(content):
            return None
        kind = content[position + 1]
        if kind in (0x00, 0xFF):
            position += 1
            continue
        if kind == 0x01 or 0xD0 <= kind <= 0xD8:
            segments.append((position, position + 2))
            position += 2
            continue
        if kind == _END_OF_IMAGE:
            return None
        (length,) = struct.unpack_from(">H", content, position + 2)
        end = position + 2 + max(length, 2)
        segments.append((position, end))
        if kind == _SCAN:
            return segments
        position = end


def _without_junk_in_header(content: bytes) -> bytes | None:
    """The file without the bytes between its header's segments; None where there are none."""
    segments = _header_segments(content)
    if segments is None:
        return None
    tidy = b"".join(content[start:end] for start, end in segments)
    end = segments[-1][1]
    return None if len(tidy) == end else tidy + content[end:]


def _fault_of_left_over(content: bytes) -> str | None:
    """Tell bytes that a camera filled up with, all the same, from the rest of a code that went out of step."""
    segments = _header_segments(content)
    end = content.find(_END_MARKER, segments[-1][1] if segments else 0)
    filled = content[end - 1 : end]
    start = len(content[:end].rstrip(filled))
    # One is left, as the last code may end in it. Zeros are codes too: where a download broke off in a file that had
    # its full length already, they were read as blocks, and without them blocks are missing.
    warning = _warning(content[: start + 1] + content[end:])
    if warning is None or "premature" not in warning:
        return None if end - start > 1 else LEFT_OVER
    return TOO_SHORT
