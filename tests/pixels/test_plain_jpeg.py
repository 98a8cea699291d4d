"""Plain JPEG files: the same pixels as Pillow's, and left to Pillow wherever there is more to them."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageCms, features

from foveal.pixels.plain_jpeg import MAX_PIXELS, decode_plain
from foveal.pixels.policy import PixelPolicy, decode
from foveal.pixels.strict_jpeg import is_available, jpeg_fault

pytestmark = pytest.mark.skipif(
    not (is_available() and features.check_feature("libjpeg_turbo")), reason="takes simplejpeg and libjpeg-turbo"
)
POLICY = PixelPolicy()


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, **settings: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", **settings)
    return stream.getvalue()


def test_pixels_are_those_of_pillow_whatever_the_encoder_did() -> None:
    rng = np.random.default_rng(1)
    for number in range(300):
        width, height = (int(side) for side in rng.integers(1, 100, 2))
        image = picture(width, height, number)
        content = encoded(
            image.convert("L") if number % 5 == 0 else image,
            quality=int(rng.integers(1, 101)),
            subsampling=int(rng.integers(3)),
            optimize=bool(rng.integers(2)),
            restart_marker_blocks=int(rng.integers(3)),
        )
        plain, expected = decode_plain(content, POLICY), decode(content, POLICY)
        assert plain is not None
        np.testing.assert_array_equal(plain.pixels, expected.pixels)
        assert (plain.format, plain.mode, plain.notes) == (expected.format, expected.mode, expected.notes)
        assert plain.pixels.flags.c_contiguous
        assert plain.pixels.flags.writeable


def _with_exif(image: Image.Image) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(image, exif=exif)


LEFT_TO_PILLOW: dict[str, Callable[[Image.Image], bytes]] = {
    "progressive": lambda image: encoded(image, progressive=True),
    "turned by EXIF": _with_exif,
    "a colour profile": lambda image: encoded(
        image, icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    ),
    "CMYK": lambda image: encoded(image.convert("CMYK")),
    "RGB as it is": lambda image: encoded(image, keep_rgb=True),
    "cut off": lambda image: encoded(image)[:-40],
    "bytes between segments": lambda image: encoded(image)[:20] + b"\0\0\0" + encoded(image)[20:],
    "no JPEG": lambda image: b"\x89PNG\r\n\x1a\n" + encoded(image),
    "the start alone": lambda image: encoded(image)[:30],
    "nothing": lambda image: b"",
}


@pytest.mark.parametrize("name", LEFT_TO_PILLOW)
def test_all_others_are_left_to_pillow(name: str) -> None:
    assert decode_plain(LEFT_TO_PILLOW[name](picture(48, 40)), POLICY) is None


def test_of_damaged_files_those_are_taken_that_the_check_passes_and_pillow_sees_the_same() -> None:
    rng = np.random.default_rng(2)
    taken = 0
    for number in range(300):
        content = bytearray(encoded(picture(48, 40, number), restart_marker_blocks=number % 3))
        for place in rng.integers(0 if number % 4 == 0 else 600, len(content), rng.integers(1, 4)):
            content[place] = rng.integers(256)
        plain = decode_plain(bytes(content), POLICY)
        if plain is not None:
            taken += 1
            assert jpeg_fault(bytes(content)) is None
            np.testing.assert_array_equal(plain.pixels, decode(bytes(content), POLICY).pixels)
    assert 50 < taken < 290


def test_the_limits_are_kept() -> None:
    content = encoded(picture(64, 32))
    assert decode_plain(content, PixelPolicy(max_pixels=64 * 32)) is not None
    assert decode_plain(content, PixelPolicy(max_pixels=64 * 32 - 1)) is None
    side = int(MAX_PIXELS**0.5)
    assert decode_plain(encoded(picture(side, side)), POLICY) is not None
    assert decode_plain(encoded(picture(side + 1, side)), POLICY) is None
