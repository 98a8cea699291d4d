"""A TIFF's first directory, read by hand, and made harmless for Pillow.

Pillow warns about any tag it cannot make sense of, and microscopes, scanners and cameras write many. Only the tags that
tell where the pixels are and what they mean are let through; the others get a type that readers must skip
(TIFF 6.0, section 2: "readers should skip over fields containing an unexpected field type").
"""

import struct
from dataclasses import dataclass
from typing import IO

from foveal.pixels.rejection import ImageRejectedError

MAX_PAGES_COUNTED = 2**16
_MAX_ENTRIES = 2**12

_WIDTH, _HEIGHT, _ORIENTATION = 256, 257, 274
_COMPRESSION, _PHOTOMETRIC = 259, 262
_YCBCR = 6
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
_SUBFILE_TYPE = 254
# What a decoder needs, by number; those of exactly one value first.
_SINGLE = {_WIDTH, _HEIGHT, _COMPRESSION, _PHOTOMETRIC, 266, 277, 278, 284, _TILE_WIDTH, _TILE_HEIGHT}
_NEEDED = _SINGLE | {258, 273, 279, 320, 324, 325, 338, 339, 530, 34675}
_READ_HERE = {_WIDTH, _HEIGHT, _COMPRESSION, _PHOTOMETRIC, _ORIENTATION, _TILE_WIDTH, _TILE_HEIGHT, _SUBFILE_TYPE}

# Field type -> bytes a value.
_TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_INTEGER_CODES = {1: "B", 3: "H", 4: "I", 16: "Q"}
_BYTES_TYPES = (1, 7)
_ICC_PROFILE = 34675


@dataclass(frozen=True, slots=True)
class TiffHeader:
    """The first page's facts; see `headers.Header`."""

    width: int
    height: int
    num_pages: int
    orientation: int | None
    patches: tuple[tuple[int, bytes], ...]


@dataclass(frozen=True, slots=True)
class _Layout:
    """What differs between byte orders and between TIFF and BigTIFF."""

    order: str
    count_code: str
    entry_code: str
    offset_code: str

    @property
    def entry_size(self) -> int:
        return struct.calcsize("<" + self.entry_code)

    def unpack(self, code: str, content: bytes) -> tuple[int, ...]:
        return struct.unpack(self.order + code, content)

    def read(self, code: str, stream: IO[bytes]) -> int:
        return self.unpack(code, stream.read(struct.calcsize("<" + code)))[0]


def read_tiff_header(stream: IO[bytes], size: int) -> TiffHeader:
    """Read the first directory and count the pages.

    Args:
        stream: the file, at its beginning.
        size: of the file, in bytes.

    Raises:
        ImageRejectedError: a tag that decoding needs is missing, cut off or senseless.
        struct.error: the file ends inside the directory.
    """
    head = stream.read(16)
    order = "<" if head.startswith(b"II") else ">"
    if head[2:4] in (b"\x2b\x00", b"\x00\x2b"):
        if order == ">":
            # Pillow takes it for an ordinary TIFF and warns.
            raise ImageRejectedError("a BigTIFF in big-endian byte order", "unsupported")
        layout = _Layout(order, "Q", "HHQ8s", "Q")
        (position,) = layout.unpack("Q", head[8:16])
    else:
        if head[8:10] == b"CR":
            raise ImageRejectedError("the content is a camera raw file (CR2)", "format_not_allowed")
        layout = _Layout(order, "H", "HHL4s", "L")
        (position,) = layout.unpack("L", head[4:8])
    found, patches, following = _read_directory(stream, layout, position, size)
    for tag in (_WIDTH, _HEIGHT):
        if tag not in found:
            raise ImageRejectedError(f"the TIFF file has no {_name(tag)}", "damaged")
    if found.get(_SUBFILE_TYPE, 0) & 1:
        raise ImageRejectedError(
            "the TIFF's first page is a thumbnail of another, as in camera raw files (DNG, NEF)", "unsupported"
        )
    if found.get(_COMPRESSION, 1) == 1 and found.get(_PHOTOMETRIC) == _YCBCR:
        # Pillow does not undo the subsampling, and before version 13 takes the values for RGB.
        raise ImageRejectedError("a TIFF with uncompressed YCbCr", "unsupported")
    _check_tiles(found)
    num_pages = 1 + _count_following(stream, layout, following, {position}, size)
    return TiffHeader(found[_WIDTH], found[_HEIGHT], num_pages, found.get(_ORIENTATION), patches)


def _read_directory(
    stream: IO[bytes], layout: _Layout, position: int, size: int
) -> tuple[dict[int, int], tuple[tuple[int, bytes], ...], int]:
    """The values that are read here, the patches, and the offset of the next directory."""
    _seek(stream, position, size)
    num_entries = layout.read(layout.count_code, stream)
    if not 0 < num_entries <= _MAX_ENTRIES:
        raise ImageRejectedError(f"the TIFF's first directory has {num_entries} entries", "damaged")
    first = stream.tell()
    entries = stream.read(num_entries * layout.entry_size)
    following = layout.read(layout.offset_code, stream)
    found: dict[int, int] = {}
    patches: list[tuple[int, bytes]] = []
    num_bytes_elsewhere = 0
    for index in range(num_entries):
        at = index * layout.entry_size
        tag, kind, count, inline = struct.unpack(layout.order + layout.entry_code, entries[at : at + layout.entry_size])
        if tag in _READ_HERE and kind in _INTEGER_CODES and count == 1 and tag not in found:
            code = _INTEGER_CODES[kind]
            if struct.calcsize("<" + code) <= len(inline):
                (found[tag],) = layout.unpack(code, inline[: struct.calcsize("<" + code)])
        if tag not in _NEEDED or kind not in _TYPE_SIZES or (tag == _ICC_PROFILE and kind not in _BYTES_TYPES):
            patches.append((first + at + 2, b"\0\0"))
            continue
        num_bytes_elsewhere += _check_entry(layout, tag, kind, count, inline, size)
    if num_bytes_elsewhere > size:
        raise ImageRejectedError("the TIFF's tags claim more bytes than the file has", "damaged")
    return found, tuple(patches), following


def _check_entry(layout: _Layout, tag: int, kind: int, count: int, inline: bytes, size: int) -> int:
    """Refuse an entry that Pillow would have to guess about; how many bytes lie outside the directory."""
    if tag in _SINGLE and count != 1:
        raise ImageRejectedError(f"the TIFF file gives {count} values for its {_name(tag)}", "damaged")
    num_bytes = count * _TYPE_SIZES[kind]
    if num_bytes <= len(inline):
        return 0
    (offset,) = layout.unpack(layout.offset_code, inline)
    if offset + num_bytes > size:
        raise ImageRejectedError(f"the TIFF's {_name(tag)} lies beyond the end of the file", "truncated")
    return num_bytes


def _check_tiles(found: dict[int, int]) -> None:
    """A decoder holds at least one tile, whatever the size of the image."""
    width, height = found[_WIDTH], found[_HEIGHT]
    tile_width, tile_height = found.get(_TILE_WIDTH, 0), found.get(_TILE_HEIGHT, 0)
    # Tiles are multiples of 16 that may stick out of the image (TIFF 6.0, section 15); 1024 is generous.
    if tile_width > max(4 * width, 1024) or tile_height > max(4 * height, 1024):
        raise ImageRejectedError(
            f"a TIFF of {width} x {height} pixels in tiles of {tile_width} x {tile_height}", "damaged"
        )


def _count_following(stream: IO[bytes], layout: _Layout, position: int, seen: set[int], size: int) -> int:
    """How many more directories can be reached; a broken chain ends the count, as the first page does not need it."""
    num_pages = 0
    while position and position not in seen and position < size and num_pages < MAX_PAGES_COUNTED:
        seen.add(position)
        try:
            stream.seek(position)
            num_entries = layout.read(layout.count_code, stream)
            if not 0 < num_entries <= _MAX_ENTRIES:
                break
            stream.seek(num_entries * layout.entry_size, 1)
            position = layout.read(layout.offset_code, stream)
        except struct.error:
            break
        num_pages += 1
    return num_pages


def _seek(stream: IO[bytes], position: int, size: int) -> None:
    if not 0 < position < size:
        raise ImageRejectedError("the TIFF's first directory lies beyond the end of the file", "truncated")
    stream.seek(position)


def _name(tag: int) -> str:
    names = {
        256: "ImageWidth",
        257: "ImageLength",
        258: "BitsPerSample",
        273: "StripOffsets",
        279: "StripByteCounts",
        320: "ColorMap",
        324: "TileOffsets",
        325: "TileByteCounts",
        34675: "ICC profile",
    }
    return names.get(tag, f"tag {tag}")
