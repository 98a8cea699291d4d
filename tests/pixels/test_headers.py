"""Headers read by hand: they find what Pillow finds, and what would make Pillow warn or hang never reaches it."""

import io
import struct
import time

import numpy as np
import pytest
from PIL import Image

import image_factory as factory
from foveal.pixels.headers import MAX_JPEG_SCANS, MAX_PNG_CHUNKS, PatchedStream, read_header
from foveal.pixels.policy import ImageRejectedError, decode
from foveal.pixels.sniffing import ALLOWED_FORMATS, NUM_HEAD_BYTES, Format, sniff

SAMPLES: dict[str, bytes] = {
    "JPEG": factory.jpeg(),
    "JPEG, progressive": factory.jpeg(progressive=True),
    "JPEG with everything": factory.icc_jpeg(factory.cmyk_profile()),
    "PNG": factory.saved(factory.scene(), "PNG"),
    "PNG, animated": factory.apng(3),
    "GIF": factory.animated_gif(1),
    "GIF, animated": factory.animated_gif(4),
    "WEBP, lossy": factory.saved(factory.scene(47, 31), "WEBP"),
    "WEBP, lossless": factory.saved(factory.scene(47, 31), "WEBP", lossless=True),
    "WEBP, extended": factory.saved(factory.scene(47, 31), "WEBP", icc_profile=factory.srgb_profile()),
    "BMP": factory.saved(factory.scene(47, 31), "BMP"),
    "TIFF": factory.saved(factory.scene(47, 31), "TIFF"),
    "TIFF, pages": factory.multipage_tiff(3),
    "BigTIFF, pages": factory.gray16_ramp_tiff(big=True, num_pages=4),
}


def header_of(content: bytes, max_pixels: int = 10**8):  # type: ignore[no-untyped-def]
    return read_header(sniff(content[:NUM_HEAD_BYTES]), io.BytesIO(content), len(content), max_pixels)


@pytest.mark.parametrize("name", SAMPLES)
def test_headers_say_what_pillow_says(name: str) -> None:
    header = header_of(SAMPLES[name])
    with Image.open(io.BytesIO(SAMPLES[name])) as image:
        assert (header.width, header.height) == image.size
        if not name.startswith("WEBP"):
            assert header.num_frames == getattr(image, "n_frames", 1)


@pytest.mark.parametrize("name", ALLOWED_FORMATS)
def test_a_file_that_ends_inside_its_header(name: Format) -> None:
    whole = SAMPLES[name] if name in SAMPLES else SAMPLES["WEBP, lossy"]
    for num_bytes in (12, 18, 20, 24):
        if name == "BMP" and num_bytes < 18:
            continue
        with pytest.raises(ImageRejectedError) as caught:
            decode(whole[:num_bytes])
        assert caught.value.code == "truncated", caught.value


def test_patched_stream() -> None:
    stream = PatchedStream(io.BytesIO(bytes(range(20))), ((3, b"abc"), (18, b"xyz")))
    expected = bytearray(range(20))
    expected[3:6], expected[18:20] = b"abc", b"xy"
    for start in range(20):
        for size in (-1, 0, 1, 4, 30):
            stream.seek(start)
            assert stream.read(size) == bytes(expected[start:] if size < 0 else expected[start : start + size])


@pytest.mark.parametrize(
    "tags",
    [
        {296: (3, 2, struct.pack("<HH", 2, 2))},  # two resolution units
        {305: (2, 4000, b"short")},  # a name that lies beyond the end
        {65000: (77, 9, b"????")},  # a type that does not exist
        {700: (1, 30, b'<x tiff:Orientation="6"/>     ')},  # XMP alone does not turn an image
        {34665: (4, 1, b"\xff\xff\xff\x7f")},  # an EXIF directory that lies nowhere
        {34675: (3, 2, b"\1\0\1\0")},  # a profile made of numbers
    ],
)
def test_tiff_tags_that_nobody_needs_do_no_harm(tags: dict[int, tuple[int, int, bytes]]) -> None:
    """Pillow warns about most of these, and a warning is an error here."""
    content = factory.tiff(factory.CORNERS, bits=8, photometric=2, tags=tags)
    decoded = decode(content)
    assert np.array_equal(decoded.pixels, factory.CORNERS)
    assert decoded.notes == ()


@pytest.mark.parametrize(
    ("tags", "code", "words"),
    [
        ({273: (4, 1, b"\xff\xff\xff\x7f")}, "truncated", "truncated"),  # the pixels lie beyond the end
        ({273: (4, 5000, b"\0\0\0\x01")}, "truncated", "StripOffsets lies beyond"),
        ({256: (3, 2, b"\1\0\1\0")}, "damaged", "2 values for its ImageWidth"),
        ({256: (4, 1, bytes(4))}, "damaged", "claims 0 x 16"),
        ({254: (4, 1, b"\1\0\0\0")}, "unsupported", "thumbnail"),
        ({322: (4, 1, b"\0\0\1\0"), 323: (4, 1, b"\0\0\1\0")}, "damaged", "tiles of 65536 x 65536"),
        ({259: (3, 1, b"\x63\0")}, "damaged", "99"),  # a compression that does not exist
        ({258: (3, 3, struct.pack("<HHH", 8, 9, 10))}, "unsupported", "unknown pixel mode"),
        ({320: (7, 1200, bytes(4)), 34675: (7, 1200, bytes(4))}, "damaged", "more bytes than the file"),
    ],
)
def test_tiff_tags_that_matter(tags: dict[int, tuple[int, int, bytes]], code: str, words: str) -> None:
    with pytest.raises(ImageRejectedError, match=words) as caught:
        decode(factory.tiff(factory.CORNERS, bits=8, photometric=2, tags=tags))
    assert caught.value.code == code


def test_tiff_variants_that_pillow_cannot_read() -> None:
    for content, code in (
        (factory.gray16_ramp_tiff(">", big=True), "unsupported"),
        (b"II*\0\x10\0\0\0CR\2\0" + bytes(100), "format_not_allowed"),
        (factory.tiff(factory.CORNERS, bits=8, photometric=6), "unsupported"),
        (factory.tiff(np.zeros((4, 4)), bits=64, sample_format=3), "unsupported"),
    ):
        with pytest.raises(ImageRejectedError) as caught:
            decode(content)
        assert caught.value.code == code


def test_tiff_pages_in_a_circle_are_counted_once() -> None:
    content = factory.gray16_ramp_tiff(num_pages=1)
    (first,) = struct.unpack("<I", content[4:8])
    assert decode(content[:-4] + struct.pack("<I", first)).notes == ("16-bit scaled",)
    assert decode(content[:-4] + struct.pack("<I", 2**31)).notes == ("16-bit scaled",)


def test_gif_frame_that_sticks_out_of_its_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    # Pillow would ask its own limit, and warn.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    whole = factory.animated_gif(2)
    content = whole[:6] + struct.pack("<HH", 3, 2) + whole[10:]
    assert np.array_equal(decode(content).pixels, factory.CORNERS)


def test_png_whose_text_does_not_end() -> None:
    whole = factory.one_bit_png()
    endless = struct.pack(">I4s", 2**31 - 1, b"tEXt") + b"Comment\0" * 9
    with pytest.raises(ImageRejectedError) as caught:
        decode(whole[:33] + endless)
    assert caught.value.code == "truncated"


def test_png_with_a_senseless_animation_and_apples_own() -> None:
    for count in (0, 2**31):
        control = factory.chunk(b"acTL", struct.pack(">II", count, 0))
        with pytest.raises(ImageRejectedError, match="animation"):
            decode(factory.png(1, 1, 8, 0, b"\0", before=control))
    control = factory.chunk(b"acTL", struct.pack(">II", 1, 0))
    with pytest.raises(ImageRejectedError, match="animation"):
        decode(factory.png(1, 1, 8, 0, b"\0", before=control * 2))
    whole = factory.one_bit_png()
    with pytest.raises(ImageRejectedError, match="Apple"):
        decode(whole[:8] + factory.chunk(b"CgBI", bytes(4)) + whole[8:])


def with_junk(junk: bytes) -> bytes:
    """A JPEG with bytes that belong to no segment."""
    whole = factory.jpeg()
    at = whole.index(b"\xff\xdb")
    return whole[:at] + junk + whole[at:]


def test_what_would_keep_a_decoder_busy_is_refused_quickly() -> None:
    progressive = factory.jpeg(progressive=True)
    at = progressive.rindex(b"\xff\xda")
    scan = progressive[at:-2]
    contents = {
        "scans": progressive[:-2] + scan * MAX_JPEG_SCANS + b"\xff\xd9",
        "no segment": with_junk(bytes(10**6)),
        "chunks": factory.png(1, 1, 8, 0, b"\0", before=factory.chunk(b"teST", b"") * MAX_PNG_CHUNKS),
    }
    for words, content in contents.items():
        start = time.thread_time()
        with pytest.raises(ImageRejectedError, match=words):
            decode(content)
        assert time.thread_time() - start < 1.0


def test_jpegs_that_are_odd_but_right() -> None:
    plain = decode(factory.jpeg())
    fill_bytes = factory.jpeg()[:2] + b"\xff" * 7 + factory.jpeg()[2:]
    trailing = factory.jpeg() + factory.jpeg()
    for content in (fill_bytes, with_junk(b"junk"), trailing, factory.jpeg_with_segment(0xE2, b"MPF\0MM\0*nonsense")):
        assert np.array_equal(decode(content).pixels, plain.pixels)
        assert decode(content).notes == ()


def test_12_bit_jpeg_is_named() -> None:
    content = bytearray(factory.jpeg())
    content[content.index(b"\xff\xc0") + 4] = 12
    with pytest.raises(ImageRejectedError, match="12 bits") as caught:
        decode(bytes(content))
    assert caught.value.code == "unsupported"
