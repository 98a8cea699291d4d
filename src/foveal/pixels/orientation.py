"""The EXIF orientation, read by hand.

Pillow's EXIF reader warns about damaged metadata, and warnings are process-wide; so the one value that matters is read
here. Orientation in XMP alone is not followed, as in browsers.
"""

import struct
from collections.abc import Mapping
from typing import Any

from PIL import Image

_ORIENTATION_TAG = 0x0112
_CODES = {1: "B", 3: "H", 4: "I"}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def exif_block(info: Mapping[Any, Any]) -> bytes | None:
    """The EXIF bytes in the metadata of a Pillow image, or None.

    ImageMagick hides them in a PNG's text, as hexadecimal digits below three lines of heading.
    """
    block = info.get("exif")
    if isinstance(block, bytes):
        return block
    text = info.get("Raw profile type exif")
    if not isinstance(text, str):
        return None
    try:
        return bytes.fromhex("".join(text.split("\n")[3:]))
    except ValueError:
        return b""


def read_orientation(exif: bytes) -> int | None:
    """The orientation that an EXIF block states (Exif 2.32, 4.6.4), or None where it states none.

    Raises:
        ValueError: the block is damaged.
    """
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    orders = {b"II*\0": "<", b"MM\0*": ">"}
    order = orders.get(exif[:4])
    if order is None:
        raise ValueError("the EXIF block does not begin as one")
    try:
        (position,) = struct.unpack_from(order + "I", exif, 4)
        (num_entries,) = struct.unpack_from(order + "H", exif, position)
        for index in range(num_entries):
            at = position + 2 + 12 * index
            tag, kind, count = struct.unpack_from(order + "HHI", exif, at)
            if tag == _ORIENTATION_TAG:
                if kind not in _CODES or count != 1:
                    raise ValueError("the EXIF orientation is not a number")
                (value,) = struct.unpack_from(order + _CODES[kind], exif, at + 8)
                return int(value)
    except struct.error as error:
        raise ValueError("the EXIF block ends inside its directory") from error
    return None


def turn_upright(image: Image.Image, stated: int | None, notes: list[str]) -> Image.Image:
    """Undo the stated orientation.

    Args:
        image: as stored.
        stated: the orientation; None, 0 ("unknown") and 1 mean upright.
        notes: gets a line for whatever was done.
    """
    if stated is None or stated in (0, 1):
        return image
    if stated not in _TURNS:
        notes.append(f"impossible EXIF orientation {stated} ignored")
        return image
    notes.append(f"rotated by EXIF {stated}")
    return image.transpose(_TURNS[stated])
