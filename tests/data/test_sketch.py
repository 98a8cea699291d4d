"""The sketch: the middle square of a picture in 32 x 32 grey pixels."""

import numpy as np
import pytest
from PIL import Image

from foveal.data.sketch import SKETCH_BYTES, SKETCH_SIDE_PX, central_square, luma, sketch
from textured import pictures, pixels_of


def test_luma_is_that_of_itu_r_601() -> None:
    pixels = pixels_of(pictures(1)[0])
    assert luma(pixels) == pytest.approx(pixels @ np.array([0.299, 0.587, 0.114]), abs=1.0)


@pytest.mark.parametrize(("height", "width"), [(96, 96), (64, 200), (320, 64)])
def test_a_sketch_is_the_mean_of_blocks_of_the_middle(height: int, width: int) -> None:
    grey = np.asarray(pictures(1)[0].convert("L").resize((width, height)))
    shorter = min(height, width)
    top, left, block = (height - shorter) // 2, (width - shorter) // 2, shorter // SKETCH_SIDE_PX
    middle = grey[top : top + shorter, left : left + shorter]
    means = middle.reshape(SKETCH_SIDE_PX, block, SKETCH_SIDE_PX, block).mean(axis=(1, 3))
    assert sketch(grey).dtype == np.uint8
    assert sketch(grey).reshape(SKETCH_SIDE_PX, SKETCH_SIDE_PX) == pytest.approx(
        means, abs=1.01
    )  # Pillow rounds each way by itself


@pytest.mark.parametrize("shape", [(1, 1), (1, 10_000), (10_000, 1), (5, 7), (31, 33)])
def test_pictures_of_any_shape_have_one(shape: tuple[int, int]) -> None:
    grey = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert sketch(grey).shape == (SKETCH_BYTES,)
    assert central_square(np.full(shape, 77, np.uint8), 64) == pytest.approx(np.full((64, 64), 77))


def test_it_hardly_depends_on_the_size_of_the_picture() -> None:
    for image in pictures(5):
        large = sketch(np.asarray(image.convert("L")))
        small = sketch(np.asarray(image.resize((58, 58), Image.Resampling.BICUBIC).convert("L")))
        assert np.corrcoef(large, small)[0, 1] > 0.97


def test_a_turned_picture_has_the_turned_sketch() -> None:
    grey = np.asarray(pictures(1)[0].convert("L"))
    square = sketch(grey).reshape(SKETCH_SIDE_PX, SKETCH_SIDE_PX)
    for turned, expected in ((np.rot90(grey), np.rot90(square)), (grey[:, ::-1], square[:, ::-1])):
        assert sketch(turned).reshape(square.shape) == pytest.approx(expected, abs=1)
