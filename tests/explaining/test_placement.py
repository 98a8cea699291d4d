"""A map lies on the picture where the network saw what it marks."""

import numpy as np
import pytest
from numpy.typing import NDArray

from foveal.explaining.placement import centre_of_cell, place, placement_of, resized_map
from foveal.pixels.geometry import Geometry, to_square, to_store

SIZES = [(100, 100), (60, 200), (210, 64), (300, 41), (48, 500), (37, 37)]


def geometries() -> list[Geometry]:
    return [
        Geometry(size_px=32, store_px=36),
        Geometry(size_px=32, store_px=32, fit="pad"),
        Geometry(size_px=32, store_px=32, fit="squash"),
    ]


def ramps(height: int, width: int) -> NDArray[np.uint8]:
    """A picture whose red says how far right a pixel is, and whose green how far down."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[..., 0] = np.linspace(0, 255, width)[None, :].round()
    picture[..., 1] = np.linspace(0, 255, height)[:, None].round()
    return picture


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("geometry", geometries(), ids=lambda geometry: geometry.fit)
def test_a_map_of_the_square_falls_back_onto_the_picture(geometry: Geometry, size: tuple[int, int]) -> None:
    """The square's own colours, laid back as if they were a map, are the picture's where it was seen."""
    picture = ramps(*size)
    square = to_square(to_store(picture, geometry), geometry)
    placement = placement_of(*size, geometry)
    left, top, right, bottom = (round(bound) for bound in placement.picture)
    assert (right - left) * (bottom - top) > 0
    # At the edges, padding blurs into the picture.
    edge = 4 + (3 * max(size) // 64 if geometry.fit == "pad" else 0)
    inner = (slice(top + edge, max(top + edge, bottom - edge)), slice(left + edge, right - edge))
    assert picture[inner].size or geometry.fit == "pad"
    for channel in (0, 1):
        laid = place(square[..., channel].astype(np.float32), placement, size, size)
        step = 255 / (size[1 - channel] - 1) * max(1.0, min(size) / 32)
        tolerance = 4.0 + 2.0 * step + (12.0 if geometry.fit == "pad" else 0.0)
        assert np.abs(laid[inner] - picture[inner][..., channel]).max(initial=0.0) <= tolerance
        outside = np.ones(size, dtype=bool)
        outside[top - 1 if top else 0 : bottom + 1, left - 1 if left else 0 : right + 1] = False
        assert not laid[outside].any()


def test_what_is_cut_off_is_outside() -> None:
    assert placement_of(100, 300, Geometry(size_px=32, store_px=32)).picture == pytest.approx((100, 0, 200, 100))
    assert placement_of(100, 1000, Geometry(size_px=32, store_px=32)).picture == pytest.approx((450, 0, 550, 100))
    padded = placement_of(50, 100, Geometry(size_px=32, store_px=32, fit="pad"))
    assert padded.picture == (0, 0, 100, 50)
    assert padded.square == pytest.approx((0, 0.25, 1, 0.75))


def test_a_cell_comes_back_to_its_own_place_and_a_smaller_copy_agrees() -> None:
    heat = np.zeros((4, 4), np.float32)
    heat[1, 2] = 1.0
    geometry = Geometry(size_px=32, store_px=32)
    placement = placement_of(80, 200, geometry)  # seen: 60..140 across
    assert centre_of_cell((1, 2), (4, 4), placement, (80, 200)) == pytest.approx((110, 30))
    whole, small = (place(heat, placement, (80, 200), drawn) for drawn in ((80, 200), (20, 50)))
    for laid, scale in ((whole, 1), (small, 4)):
        row, column = np.unravel_index(laid.argmax(), laid.shape)
        assert abs((column + 0.5) * scale - 110) <= 4
        assert abs((row + 0.5) * scale - 30) <= 4
    blocks = whole.reshape(20, 4, 50, 4).mean(axis=(1, 3))
    assert np.abs(blocks - small).max() < 0.11


def test_resizing_a_map_keeps_constants_and_ends() -> None:
    assert np.allclose(resized_map(np.full((2, 3), 0.7, np.float32), 9, 11), 0.7)
    finer = resized_map(np.array([[0.0, 1.0]], np.float32), 1, 8)[0]
    assert finer[0] == 0.0
    assert finer[-1] == 1.0
    assert (np.diff(finer) >= 0).all()
