"""An image's header, read by hand: its size before a decoder is touched, and what no decoder should see.

Pillow's own limits are a process-wide setting, and its way to tell of damaged metadata is a warning; neither can be
used from threads. So the size, the number of frames and the few traps are read here, from some hundred bytes, without
allocating what a header only claims. Where Pillow would stumble over metadata that is not needed, the bytes in
question are replaced as it reads them (`Header.patches`); the file itself is never written.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

from foveal.pixels.rejection import ImageRejectedError
from foveal.pixels.sniffing import Format
from foveal.pixels.tiff import read_tiff_header

MAX_METADATA_CHUNK_BYTES = 64 * 2**20
"""A PNG chunk other than pixels that is longer is refused: Pillow would hold it in memory."""
MAX_PNG_CHUNKS = 2**18
MAX_JPEG_JUNK_BYTES = 2**16
"""Bytes between JPEG segments that belong to none; decoders skip them one by one."""
MAX_JPEG_SCANS = 100
"""Scans of a progressive JPEG: encoders write about ten, and each costs a pass over all pixels (libjpeg-turbo's report
LJT-01-004)."""
MAX_WEBP_BYTES = 2**30
"""libwebp needs the whole file in memory."""
MAX_BMP_RLE_PIXELS = 2**24
"""Pillow unpacks run-length encoded BMP in Python, a few seconds for this many pixels."""

_BLOCK_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Header:
    """What a header claims.

    Attributes:
        width: of the first frame as stored, before any rotation, in pixels.
        height: likewise.
        num_frames: frames of an animation or pages of a TIFF; 1 where the format has none, or where Pillow counts them.
        orientation: the EXIF orientation where the header itself holds it (TIFF), else None.
        patches: (offset, bytes) that the decoder shall read in the place of what is there.
    """

    width: int
    height: int
    num_frames: int = 1
    orientation: int | None = None
    patches: tuple[tuple[int, bytes], ...] = ()


class PatchedStream:
    """A binary stream with some bytes replaced on their way out; everything else is the stream's own."""

    def __init__(self, stream: IO[bytes], patches: tuple[tuple[int, bytes], ...]) -> None:
        self._stream = stream
        self._patches = patches

    def read(self, size: int = -1) -> bytes:
        """Read as the stream would, patches applied."""
        start = self._stream.tell()
        content = self._stream.read(size)
        end = start + len(content)
        for offset, patch in self._patches:
            low, high = max(offset, start), min(offset + len(patch), end)
            if low < high:
                content = content[: low - start] + patch[low - offset : high - offset] + content[high - start :]
        return content

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def read_header(name: Format, stream: IO[bytes], size: int, max_pixels: int) -> Header:
    """Read the header of a file whose format is known.

    Args:
        name: from `sniffing.sniff`.
        stream: the file, seekable; its position is moved.
        size: of the file, in bytes.
        max_pixels: what width times height may be.

    Raises:
        ImageRejectedError: the header is cut off or makes no sense, or claims too much.
    """
    stream.seek(0)
    try:
        header = _READERS[name](stream, size)
    except struct.error as error:
        raise ImageRejectedError(f"the {name} file ends inside its header", "truncated") from error
    if header.width <= 0 or header.height <= 0:
        raise ImageRejectedError(f"the {name} header claims {header.width} x {header.height} pixels", "damaged")
    check_num_pixels(header.width, header.height, max_pixels)
    return header


def check_num_pixels(width: int, height: int, max_pixels: int) -> None:
    """Refuse a size over the limit.

    Raises:
        ImageRejectedError: there are more than `max_pixels` pixels.
    """
    if width * height > max_pixels:
        raise ImageRejectedError(
            f"too many pixels: {width} x {height} are {width * height:,}; at most {max_pixels:,} are allowed",
            "too_large",
        )


def _jpeg_header(stream: IO[bytes], size: int) -> Header:
    """Walk the segments up to the first scan (ITU T.81, annex B)."""
    position, junk_bytes, frame = 2, 0, None
    while True:
        stream.seek(position)
        marker = stream.read(2)
        if len(marker) < 2:
            raise ImageRejectedError("the JPEG file ends before its pixels", "truncated")
        if marker[0] != 0xFF or marker[1] in (0x00, 0xFF):
            # A fill byte (FF FF) or junk; Pillow skips it too.
            position, junk_bytes = position + 1, junk_bytes + 1
            if junk_bytes > MAX_JPEG_JUNK_BYTES:
                raise ImageRejectedError("the JPEG header is full of bytes that belong to no segment", "damaged")
            continue
        kind = marker[1]
        position += 2
        if kind == 0x01 or 0xD0 <= kind <= 0xD8:
            continue
        if kind == 0xD9:
            raise ImageRejectedError("the JPEG file has no pixels", "truncated")
        (length,) = struct.unpack(">H", stream.read(2))
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            frame = (kind, *struct.unpack(">BHHB", stream.read(6)))
        if kind == 0xDA:
            break
        position += max(length, 2)
    if frame is None:
        raise ImageRejectedError("the JPEG file has a scan but no frame header", "damaged")
    kind, bits, height, width, num_components = frame
    if bits != 8 or num_components not in (1, 3, 4):
        raise ImageRejectedError(f"a JPEG of {num_components} components with {bits} bits each", "unsupported")
    if kind in (0xC2, 0xC6, 0xCA, 0xCE):
        _check_num_scans(stream, position)
    return Header(width, height)


def _check_num_scans(stream: IO[bytes], position: int) -> None:
    stream.seek(position)
    num_scans, last = 0, b""
    while block := stream.read(_BLOCK_BYTES):
        num_scans += (last + block).count(b"\xff\xda")
        last = block[-1:]
    if num_scans > MAX_JPEG_SCANS:
        raise ImageRejectedError(
            f"a progressive JPEG of {num_scans} scans; at most {MAX_JPEG_SCANS} are allowed", "too_large"
        )


def _png_header(stream: IO[bytes], size: int) -> Header:
    """Walk all chunks without reading them (W3C PNG, third edition, section 5)."""
    position, num_frames, is_animated = 8, 1, False
    found: tuple[int, int] | None = None
    for index in range(MAX_PNG_CHUNKS):
        stream.seek(position)
        start = stream.read(8)
        if len(start) < 8:
            break
        length, kind = struct.unpack(">I4s", start)
        if index == 0:
            if kind == b"CgBI":
                raise ImageRejectedError("a PNG in Apple's own variant (CgBI)", "unsupported")
            if kind != b"IHDR":
                raise ImageRejectedError(f"the PNG file begins with a chunk {kind!r} in the place of IHDR", "damaged")
            found = struct.unpack(">II", stream.read(8))
        elif kind == b"acTL":
            (count,) = struct.unpack(">I", stream.read(4))
            if is_animated or not 0 < count < 2**31:
                raise ImageRejectedError("the PNG's animation control chunk makes no sense", "damaged")
            num_frames, is_animated = count, True
        elif kind == b"IEND" or position + length > size:
            break
        elif kind not in (b"IDAT", b"fdAT") and length > MAX_METADATA_CHUNK_BYTES:
            raise ImageRejectedError(f"a PNG chunk {kind!r} of {length:,} bytes", "too_large")
        position += 12 + length
    else:
        raise ImageRejectedError(f"a PNG of more than {MAX_PNG_CHUNKS:,} chunks", "damaged")
    if found is None:
        raise ImageRejectedError("the PNG file ends inside its header", "truncated")
    return Header(found[0], found[1], num_frames)


def _gif_header(stream: IO[bytes], size: int) -> Header:
    """Walk the blocks; count the images (CompuServe GIF89a specification)."""
    head = stream.read(13)
    width, height, flags = struct.unpack("<HHB", head[6:11])
    stream.seek((3 << ((flags & 7) + 1)) if flags & 0x80 else 0, 1)
    num_frames, patches = 0, []
    while (introducer := stream.read(1)) and introducer != b";":
        if introducer == b"!":
            label = stream.read(1)
            if label == b"\xf9" and not num_frames and stream.read(1) == b"\x04":
                # How the first frame is removed before the second matters to nobody here, but makes Pillow allocate.
                (control,) = stream.read(1) or b"\0"
                patches.append((stream.tell() - 1, bytes([control & ~0x1C])))
                stream.seek(3, 1)
            _skip_gif_blocks(stream)
        elif introducer == b",":
            place = stream.read(9)
            if num_frames and len(place) < 9:
                break
            left, top, frame_width, frame_height, flags = struct.unpack("<HHHHB", place)
            num_frames += 1
            if num_frames == 1:
                # Pillow grows the canvas to hold the first frame; here it is told so from the beginning.
                width, height = max(width, left + frame_width), max(height, top + frame_height)
                if max(width, height) > 65535:
                    raise ImageRejectedError(f"the GIF's first frame ends at {width}, {height}", "damaged")
                patches.append((6, struct.pack("<HH", width, height)))
            stream.seek((3 << ((flags & 7) + 1)) + 1 if flags & 0x80 else 1, 1)
            _skip_gif_blocks(stream)
    if not num_frames:
        raise ImageRejectedError("the GIF file ends before its first image", "truncated")
    return Header(width, height, num_frames, patches=tuple(patches))


def _skip_gif_blocks(stream: IO[bytes]) -> None:
    while (length := stream.read(1)) and length != b"\0":
        stream.seek(length[0], 1)


def _bmp_header(stream: IO[bytes], size: int) -> Header:
    """The two fixed headers (Microsoft, BITMAPFILEHEADER and BITMAPINFOHEADER)."""
    stream.seek(14)
    (header_size,) = struct.unpack("<I", stream.read(4))
    if header_size == 12:
        width, height = struct.unpack("<HH", stream.read(4))
        compression = 0
    else:
        width, height, _, _, compression = struct.unpack("<iiHHI", stream.read(16))
    if compression in (1, 2) and width * abs(height) > MAX_BMP_RLE_PIXELS:
        raise ImageRejectedError(f"a run-length encoded BMP of {width} x {abs(height)} pixels", "too_large")
    return Header(width, abs(height))


def _webp_header(stream: IO[bytes], size: int) -> Header:
    """The canvas (RFC 9649): libwebp allocates it as soon as it is shown the file."""
    head = stream.read(30)
    (riff_size,) = struct.unpack("<I", head[4:8])
    if riff_size + 8 > size:
        raise ImageRejectedError(
            f"the WEBP file says that it has {riff_size + 8:,} bytes, but has {size:,}", "truncated"
        )
    if size > MAX_WEBP_BYTES:
        raise ImageRejectedError(f"a WEBP file of {size:,} bytes; at most {MAX_WEBP_BYTES:,} are allowed", "too_large")
    kind = head[12:16]
    if kind == b"VP8X":
        low_width, high_width, low_height, high_height = struct.unpack("<HBHB", head[24:30])
        return Header(low_width + (high_width << 16) + 1, low_height + (high_height << 16) + 1)
    if kind == b"VP8L":
        (packed,) = struct.unpack("<I", head[21:25])
        return Header((packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1)
    if kind == b"VP8 ":
        width, height = struct.unpack("<HH", head[26:30])
        return Header(width & 0x3FFF, height & 0x3FFF)
    raise ImageRejectedError(f"the WEBP file begins with a chunk {kind!r}", "damaged")


def _tiff_header(stream: IO[bytes], size: int) -> Header:
    tiff = read_tiff_header(stream, size)
    return Header(tiff.width, tiff.height, tiff.num_pages, tiff.orientation, tiff.patches)


_READERS: dict[Format, Callable[[IO[bytes], int], Header]] = {
    "JPEG": _jpeg_header,
    "PNG": _png_header,
    "WEBP": _webp_header,
    "BMP": _bmp_header,
    "TIFF": _tiff_header,
    "GIF": _gif_header,
}
