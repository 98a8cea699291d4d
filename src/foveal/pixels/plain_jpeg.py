"""Small, plain JPEG files, decoded and checked in one go: the pixels of `policy.decode` in a tenth of its time.

Of a picture of 32 pixels Pillow spends nine tenths of the time on its header, in Python. Most such files hold nothing
but the tables, the frame and the scan; what holds anything more (EXIF, a colour profile, Adobe's marker, several
pictures) is left to Pillow, as is whatever libjpeg has a word to say about. Both libraries bring libjpeg-turbo, and are
asked for the same transform and the same upsampling.
"""

import struct
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

from PIL import ImageFile, features

from foveal.pixels.policy import POLICY_VERSION, Decoded, PixelPolicy

MAX_PIXELS = 1 << 16
"""Larger pictures take their time in the decoder proper, whoever calls it."""

_START = b"\xff\xd8\xff\xe0"
_JFIF, _TABLES, _FRAME, _RESTARTS, _SCAN = 0xE0, (0xDB, 0xC4), 0xC0, 0xDD, 0xDA
_MODES = {1: "L", 3: "RGB"}


def decode_plain(content: bytes, policy: PixelPolicy) -> Decoded | None:
    """Decode a small JPEG whose coded pixels make sense from the first to the last.

    Args:
        content: the file.
        policy: only its limit matters; such files have no opacity.

    Returns:
        What `policy.decode` gives, where `jpeg_fault` finds nothing; None where that has to be asked.
    """
    frame = _plain_frame(content) if content.startswith(_START) else None
    if frame is None or policy.version != POLICY_VERSION or ImageFile.LOAD_TRUNCATED_IMAGES:
        return None
    height, width, num_components = frame
    mode, decode = _MODES.get(num_components), _decoder()
    if mode is None or decode is None or not 0 < width * height <= min(MAX_PIXELS, policy.max_pixels):
        return None
    try:
        pixels = decode(content, "RGB", fastdct=False, fastupsample=False, strict=True)
    except ValueError:
        return None
    return Decoded(pixels, "JPEG", mode, ())


@cache
def _decoder() -> Callable[..., Any] | None:
    # A Pillow that was built with another libjpeg may round in another way.
    if not features.check_feature("libjpeg_turbo"):
        return None
    try:
        found: Callable[..., Any] = import_module("simplejpeg").decode_jpeg
    except ImportError:
        return None
    return found


def _plain_frame(content: bytes) -> tuple[int, int, int] | None:
    """Height, width and components of a baseline JPEG that has no segment but what decoding takes (ITU T.81)."""
    position, frame = 2, None
    try:
        while True:
            marker, kind, length = struct.unpack_from(">BBH", content, position)
            if marker != 0xFF or length < 2:
                return None
            if kind == _FRAME and frame is None:
                bits, height, width, num_components = struct.unpack_from(">BHHB", content, position + 4)
                frame = (height, width, num_components) if bits == 8 else None
            elif kind == _SCAN:
                return frame
            elif kind == _JFIF:
                if position != 2 or content[6:11] != b"JFIF\0":
                    return None
            elif kind not in _TABLES and kind != _RESTARTS:
                return None
            position += 2 + length
    except struct.error:
        return None
