"""From upright pixels to the model's square: one resize, exact places, no surprises at odd shapes."""

import io
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import image_factory as factory
from foveal.errors import ConfigError, DataError
from foveal.pixels.geometry import MAX_ASPECT, Geometry, crop_box, to_square, to_store
from foveal.pixels.policy import ImageRejectedError, decode

RAMP = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)


def test_crop_keeps_the_aspect_and_is_resized_once() -> None:
    pixels = factory.scene(90, 60)
    stored = to_store(pixels, Geometry(32, 40))
    assert stored.shape == (40, 60, 3)
    assert np.array_equal(stored, np.asarray(Image.fromarray(pixels).resize((60, 40), Image.Resampling.BICUBIC)))
    square = to_square(stored, Geometry(32, 40))
    assert np.array_equal(square, stored[4:36, 14:46])
    assert square.flags.c_contiguous


@pytest.mark.parametrize(
    ("interpolation", "number"), [("bilinear", Image.Resampling.BILINEAR), ("lanczos", Image.Resampling.LANCZOS)]
)
def test_interpolation_is_pillows(interpolation: Any, number: Image.Resampling) -> None:
    pixels = factory.scene(90, 60)
    stored = to_store(pixels, Geometry(16, 16, "squash", interpolation))
    assert np.array_equal(stored, np.asarray(Image.fromarray(pixels).resize((16, 16), number)))


def test_a_size_that_fits_is_left_alone() -> None:
    pixels = factory.scene(60, 40)
    assert np.array_equal(to_store(pixels, Geometry(40, 40)), pixels)


def test_where_halves_go() -> None:
    """What cannot be cut equally loses more at its end; sizes are rounded half up."""
    assert np.array_equal(to_square(RAMP, Geometry(1, 2)), RAMP[1:2, 2:3])
    assert to_store(RAMP, Geometry(2, 2)).shape == (2, 3, 3)  # 5 * 2 / 4 = 2.5


def test_halving_by_hand() -> None:
    """Pillow's bilinear filter at half the size weighs 1, 3, 3, 1 (a triangle of twice the width)."""
    row = np.array([0, 0, 0, 0, 160, 160, 160, 160], np.uint8)
    pixels = np.repeat(np.tile(row, (8, 1))[..., None], 3, axis=2)
    stored = to_store(pixels, Geometry(4, 4, interpolation="bilinear"))
    assert stored[1, :, 0].tolist() == [0, 20, 140, 160]


def test_pad_centres_on_the_background() -> None:
    geometry = Geometry(8, 8, "pad", background=(9, 8, 7))
    stored = to_store(np.full((2, 4, 3), 200, np.uint8), geometry)
    expected = np.full((8, 8, 3), (9, 8, 7))
    expected[2:6] = 200
    assert stored.tolist() == expected.tolist()
    assert np.array_equal(to_square(stored, geometry), stored)
    tall = to_store(np.full((4, 2, 3), 200, np.uint8), geometry)
    assert np.array_equal(tall, stored.transpose(1, 0, 2))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 10_000), (10_000, 1), (3, 10_000)])
@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_extreme_shapes_give_a_square_without_taking_memory(height: int, width: int, fit: Any) -> None:
    pixels = np.full((height, width, 3), 77, np.uint8)
    geometry = Geometry(224, 256 if fit == "crop" else 224, fit)
    tracemalloc.start()
    stored = to_store(pixels, geometry)
    square = to_square(stored, geometry)
    assert tracemalloc.get_traced_memory()[1] < 6 * 2**20
    tracemalloc.stop()
    assert square.shape == (224, 224, 3)
    assert square[111, 111].tolist() == [77] * 3
    assert max(stored.shape) <= MAX_ASPECT * geometry.store_px


def test_a_long_image_is_cut_in_its_middle() -> None:
    pixels = np.zeros((2, 101, 3), np.uint8)
    pixels[:, 46:54] = 250  # the middle 8 = 4 x 2 columns: (101 - 8) // 2 = 46
    stored = to_store(pixels, Geometry(2, 2))
    assert stored.shape == (2, 8, 3)
    assert (stored == 250).all()


@settings(deadline=None, derandomize=True)
@given(
    height=st.integers(1, 80),
    width=st.integers(1, 80),
    size=st.integers(1, 40),
    more=st.integers(0, 20),
    fit=st.sampled_from(["crop", "pad", "squash"]),
)
def test_every_shape_gives_a_square(height: int, width: int, size: int, more: int, fit: Any) -> None:
    geometry = Geometry(size, size + more if fit == "crop" else size, fit)
    stored = to_store(np.full((height, width, 3), 50, np.uint8), geometry)
    if fit == "crop":
        assert min(stored.shape[:2]) == geometry.store_px
    else:
        assert stored.shape == (size, size, 3)
    square = to_square(stored, geometry)
    assert square.shape == (size, size, 3)
    assert square.dtype == np.uint8
    assert fit == "pad" or (square == 50).all()


def test_stored_as_a_file_or_not_is_the_same() -> None:
    """What `predict` does with a file is what training and evaluation read from the store."""
    content = factory.exif_oriented(6)
    geometry = Geometry(12, 14)
    stored = to_store(decode(content).pixels, geometry)
    kept = io.BytesIO()
    np.save(kept, stored)
    kept.seek(0)
    assert np.array_equal(to_square(np.load(kept), geometry), to_square(stored, geometry))
    assert np.array_equal(to_store(decode(content).pixels, geometry), stored)


@pytest.mark.parametrize(
    ("box", "margin", "rows", "columns"),
    [
        ((1, 1, 3, 2), 0.0, slice(1, 2), slice(1, 3)),
        ((0, 0, 5, 4), 0.0, slice(0, 4), slice(0, 5)),
        ((-9, 2, 2, 99), 0.0, slice(2, 4), slice(0, 2)),
        ((2, 1, 4, 3), 0.5, slice(0, 4), slice(1, 5)),  # half of 2 on each side
        ((2, 1, 3, 3), 0.5, slice(0, 4), slice(1, 4)),  # half of 1, rounded outwards
        ((1, 1, 2, 2), 2.0, slice(0, 4), slice(0, 4)),
    ],
)
def test_crop_box(box: tuple[int, int, int, int], margin: float, rows: slice, columns: slice) -> None:
    cut = crop_box(RAMP, box, margin)
    assert np.array_equal(cut, RAMP[rows, columns])
    assert cut.flags.c_contiguous


@pytest.mark.parametrize("box", [(5, 0, 9, 4), (-4, 0, 0, 4), (0, 4, 5, 9), (3, 1, 3, 2), (4, 1, 2, 3), (1, 3, 2, 2)])
def test_a_box_without_area_is_refused_with_its_numbers(box: tuple[int, int, int, int]) -> None:
    with pytest.raises(ImageRejectedError) as caught:
        crop_box(RAMP, box, margin=2.0)
    assert caught.value.code == "bad_box"
    for number in (*box, 5, 4):
        assert str(number) in str(caught.value)


@pytest.mark.parametrize("margin", [-0.1, float("nan"), float("inf")])
def test_a_margin_that_makes_no_sense(margin: float) -> None:
    with pytest.raises(ConfigError, match="margin"):
        crop_box(RAMP, (0, 0, 1, 1), margin)


def test_a_geometry_that_makes_no_sense_tells_all_at_once() -> None:
    wrong: Any = {"fit": "stretch", "interpolation": "cubic", "background": (1, 2)}
    with pytest.raises(ConfigError) as caught:
        Geometry(0, 10, **wrong)
    assert len(caught.value.problems) == 4
    for geometry in ((20, 10, "crop"), (20, 30, "pad"), (20, 10, "squash")):
        with pytest.raises(ConfigError, match="geometry"):
            Geometry(*geometry)  # type: ignore[arg-type]


def test_arrays_that_are_no_pictures() -> None:
    for array in (
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3)),
        np.zeros((0, 4, 3), np.uint8),
    ):
        with pytest.raises(DataError, match="was expected"):
            to_store(array, Geometry(2, 2))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="cannot give"):
        to_square(RAMP, Geometry(6, 6))
