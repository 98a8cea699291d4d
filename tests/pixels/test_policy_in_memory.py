"""Images that are in memory already: opened by Pillow, or arrays."""

import io

import numpy as np
import pytest
from PIL import Image

import image_factory as factory
from foveal.pixels.policy import ImageRejectedError, PixelPolicy, decode, decode_array, decode_image


def test_an_opened_image_gives_the_same_as_its_file() -> None:
    contents = [
        factory.gray16_ramp_png(),
        factory.gray16_ramp_tiff(photometric=0),
        factory.twelve_bit_tiff(),
        factory.float_tiff_ramp(),
        factory.jpeg(),
        factory.rgba_hidden_colour(),
        factory.palette_png_transparent(),
        factory.cmyk_jpeg(),
        *[factory.gray_key_png(bits) for bits in (1, 2, 4, 8, 16)],
        *[factory.exif_oriented(6, name) for name in ("JPEG", "PNG", "WEBP", "TIFF")],
    ]
    for content in contents:
        with Image.open(io.BytesIO(content)) as image:
            opened = decode_image(image)
        from_file = decode(content)
        assert np.array_equal(opened.pixels, from_file.pixels)
        assert (opened.format, opened.mode) == (from_file.format, from_file.mode)


def test_an_opened_image_that_cannot_be_used() -> None:
    with Image.open(io.BytesIO(factory.truncated_jpeg())) as image, pytest.raises(ImageRejectedError) as caught:
        decode_image(image)
    assert caught.value.code == "truncated"
    with pytest.raises(ImageRejectedError, match="at most 99"):
        decode_image(Image.new("RGB", (10, 10)), PixelPolicy(max_pixels=99))
    with pytest.raises(ImageRejectedError, match="0 x 5"):
        decode_image(Image.new("RGB", (0, 5)))


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([[0, 128, 255]], np.uint8), [[[0] * 3, [128] * 3, [255] * 3]]),
        (np.array([[[7], [9]]], np.uint8), [[[7] * 3, [9] * 3]]),
        (np.array([[[1, 2, 3]]], np.uint8), [[[1, 2, 3]]]),
        (np.array([[[255, 0, 0, 0], [255, 0, 0, 255]]], np.uint8), [[[255] * 3, [255, 0, 0]]]),
        (np.array([[[0, 256, 65535]]], np.uint16), [[[0, 1, 255]]]),
        (np.array([[[0, 256, 65535]]], ">u2"), [[[0, 1, 255]]]),
        (np.array([[0.0, 0.5, 1.0]], np.float64), [[[0] * 3, [128] * 3, [255] * 3]]),
        (np.array([[0.0, 0.2, 1.0]], np.float16), [[[0] * 3, [51] * 3, [255] * 3]]),
        (np.array([[[1.0, 0.0, 0.0, 0.0]]], np.float32), [[[255] * 3]]),
        (np.array([[-1e308, 0.0, 1e308]]), [[[0] * 3, [128] * 3, [255] * 3]]),
        (np.array([[5.0, 5.0]]), [[[0] * 3, [0] * 3]]),
        (np.array([[True, False]]), [[[255] * 3, [0] * 3]]),
    ],
)
def test_arrays(array: np.ndarray, expected: list) -> None:
    before = array.copy()
    decoded = decode_array(array)
    assert decoded.pixels.tolist() == expected
    decoded.pixels[:] = 3
    assert np.array_equal(array, before)


@pytest.mark.parametrize(
    ("array", "code"),
    [
        (np.zeros((0, 5, 3), np.uint8), "empty"),
        (np.zeros((3, 20, 20), np.uint8), "unsupported"),
        (np.zeros((20, 20, 2), np.uint8), "unsupported"),
        (np.zeros(20, np.uint8), "unsupported"),
        (np.zeros((4, 4), np.int64), "unsupported"),
        (np.array([[0.0, np.nan]]), "unsupported"),
        (np.array([[0.0, np.inf]]), "unsupported"),
        (np.full((1, 1, 4), 2.0), "unsupported"),
    ],
)
def test_arrays_that_are_no_pictures(array: np.ndarray, code: str) -> None:
    with pytest.raises(ImageRejectedError) as caught:
        decode_array(array)
    assert caught.value.code == code
