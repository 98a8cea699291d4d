"""Damaged files of every kind give pixels or a rejection: never another error, a warning or a hang."""

import struct
import zlib

import numpy as np
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

import image_factory as factory
from foveal.pixels.policy import REJECTION_CODES, Decoded, ImageRejectedError, PixelPolicy, decode

MAX_PIXELS = 1_000_000
SMALL = factory.scene(24, 16)
SEEDS = [
    factory.jpeg(SMALL),
    factory.jpeg(SMALL, progressive=True),
    factory.cmyk_jpeg(profile=factory.cmyk_profile()),
    factory.exif_oriented(6, "JPEG"),
    factory.saved(SMALL, "PNG", icc_profile=factory.adobe_rgb_profile()),
    factory.exif_oriented(5, "PNG"),
    factory.palette_png_transparent(),
    factory.gray_key_png(2),
    factory.gray_key_png(16),
    factory.gray16_ramp_png(),
    factory.apng(),
    factory.animated_gif(),
    factory.animated_webp(),
    factory.saved(SMALL, "WEBP", exif=factory.exif_block(3)),
    factory.saved(SMALL, "BMP"),
    factory.bmp_with_opacity((1, 2, 3, 4), (5, 6, 7, 8)),
    factory.saved(Image.fromarray(SMALL).convert("P"), "BMP"),
    factory.multipage_tiff(2),
    factory.twelve_bit_tiff(),
    factory.float_tiff_ramp(),
    factory.gray16_ramp_tiff(">", num_pages=2),
    factory.gray16_ramp_tiff(big=True),
    factory.exif_oriented(8, "TIFF"),
    factory.saved(SMALL, "TIFF", compression="tiff_lzw"),
    factory.saved(SMALL, "TIFF", compression="jpeg"),
    factory.tiff(np.zeros((2, 2, 3), np.uint8), bits=8, photometric=8),
]
# (what, where as a share of the file, value): overwrite a byte, flip a bit, cut here, double or drop some bytes.
CHANGES = st.tuples(st.sampled_from("oobcdr"), st.floats(0, 1, exclude_max=True), st.integers(0, 255))


def changed(content: bytes, changes: list[tuple[str, float, int]]) -> bytes:
    damaged = bytearray(content)
    for what, share, value in changes:
        # Headers are where the traps are: square the share.
        at = int(share * share * len(damaged))
        if what == "o":
            damaged[at : at + 1] = bytes([value])
        elif what == "b" and at < len(damaged):
            damaged[at] ^= 1 << value % 8
        elif what == "c":
            del damaged[at + 1 :]
        elif what == "d":
            damaged[at:at] = damaged[at : at + value % 32]
        elif what == "r":
            del damaged[at : at + value % 32]
    return bytes(damaged)


def with_right_checksums(content: bytes) -> bytes:
    """Let a damaged PNG past the first door."""
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return content
    mended, position = content[:8], 8
    while position + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, position)
        if position + 12 + length > len(content):
            break
        body = content[position + 4 : position + 8 + length]
        mended += struct.pack(">I", length) + body + struct.pack(">I", zlib.crc32(body))
        position += 12 + length
    return mended + content[position:]


def outcome(content: bytes) -> Decoded | ImageRejectedError:
    try:
        return decode(content, PixelPolicy(max_pixels=MAX_PIXELS))
    except ImageRejectedError as error:
        return error


def check(result: Decoded | ImageRejectedError) -> None:
    if isinstance(result, Decoded):
        assert result.pixels.dtype == np.uint8
        assert result.pixels.ndim == 3
        assert result.pixels.shape[2] == 3
        assert 0 < result.pixels.size <= 3 * MAX_PIXELS
        return
    assert result.code in REJECTION_CODES
    assert str(result).isprintable()
    # Warnings are errors in the tests; a rejection that came of one would not be one elsewhere.
    cause: BaseException | None = result
    while cause is not None:
        assert not isinstance(cause, Warning)
        cause = cause.__cause__ or cause.__context__


@settings(max_examples=1500, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.sampled_from(SEEDS), changes=st.lists(CHANGES, min_size=1, max_size=6), mend=st.booleans())
@example(seed=SEEDS[0], changes=[], mend=False)
def test_row_54_damaged_files(seed: bytes, changes: list[tuple[str, float, int]], mend: bool) -> None:
    content = changed(seed, changes)
    check(outcome(with_right_checksums(content) if mend else content))


@settings(deadline=None, derandomize=True)
@given(st.binary(max_size=200))
def test_any_bytes_at_all(content: bytes) -> None:
    for start in (b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b"BM"):
        check(outcome(start + content))
