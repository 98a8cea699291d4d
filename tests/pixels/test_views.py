"""Views: what each shows of a picture, and that it is the same for every picture."""

from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from foveal.errors import ConfigError, DataError
from foveal.pixels.geometry import Geometry, to_square, to_store
from foveal.pixels.views import MAX_VIEWS, PLAIN, View, view_square, views_of

GEOMETRIES = [
    Geometry(32, 37),
    Geometry(33, 40),  # an odd square in an even form has no exact middle
    Geometry(32, 32),
    Geometry(32, 32, "pad"),
    Geometry(32, 32, "squash"),
]
SHAPES = [(50, 50), (40, 130), (130, 41)]


def stored_form(geometry: Geometry, shape: tuple[int, int], seed: int = 0) -> NDArray[np.uint8]:
    picture = np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)
    return to_store(picture, geometry)


@pytest.mark.parametrize(
    ("tta", "num_views"), [("none", 1), ("flip", 2), ("dihedral", 8), ("crops5", 5), ("1", 1), ("2", 2), ("64", 64)]
)
def test_each_way_has_its_views_and_begins_with_the_plain_one(tta: str, num_views: int) -> None:
    views = views_of(tta)
    assert len(views) == len(set(views)) == num_views
    assert views[0] == PLAIN == View()
    assert views_of(f" {tta.upper()} ") == views


@pytest.mark.parametrize("tta", ["", "flips", "0", "65", "-3", "2.0", "²", "٣", "5 crops", "9" * 5000])
def test_an_unknown_way_is_refused_with_what_there_is(tta: str) -> None:
    with pytest.raises(ConfigError, match=f"none, flip, dihedral, crops5, or a number of views from 1 to {MAX_VIEWS}"):
        views_of(tta)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_plain_view_is_the_square_to_the_bit_and_turns_are_turns_of_it(
    geometry: Geometry, shape: tuple[int, int]
) -> None:
    stored = stored_form(geometry, shape)
    square = to_square(stored, geometry)
    np.testing.assert_array_equal(view_square(stored, geometry, PLAIN), square)
    plain, mirrored = (view_square(stored, geometry, view) for view in views_of("flip"))
    np.testing.assert_array_equal(
        mirrored, np.asarray(Image.fromarray(plain).transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    )
    turned = {view_square(stored, geometry, view).tobytes() for view in views_of("dihedral")}
    image = Image.fromarray(square)
    by_pillow = {np.asarray(image).tobytes()} | {np.asarray(image.transpose(way)).tobytes() for way in Image.Transpose}
    assert turned == by_pillow
    assert len(turned) == 8


@pytest.mark.parametrize("shape", SHAPES)
def test_corners_are_cut_without_a_resize_where_there_is_room(shape: tuple[int, int]) -> None:
    geometry = Geometry(32, 37)
    stored = stored_form(geometry, shape)
    wanted = [stored[:32, :32], stored[:32, -32:], stored[-32:, :32], stored[-32:, -32:]]
    for view, corner in zip(views_of("crops5")[1:], wanted, strict=True):
        np.testing.assert_array_equal(view_square(stored, geometry, view), corner)


@pytest.mark.parametrize("geometry", GEOMETRIES[2:])
def test_corners_are_seven_eighths_where_there_is_none(geometry: Geometry) -> None:
    stored = stored_form(geometry, (50, 50))
    corner = Image.fromarray(stored).crop((4, 0, 32, 28)).resize((32, 32), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(view_square(stored, geometry, views_of("crops5")[2]), np.asarray(corner))


def test_windows_are_mild_spread_and_the_same_for_fewer() -> None:
    views = views_of("64")[1:]
    assert views_of("7") == views_of("64")[:7]
    sides, across, down = (np.array([getattr(view, name) for view in views]) for name in ("side", "across", "down"))
    assert sides.min() >= 0.8
    assert sides.max() <= 1.0
    for values in ((sides - 0.8) / 0.2, across, down):  # no gap that chance would leave
        assert max(after - before for before, after in pairwise(sorted([0.0, *values, 1.0]))) < 0.06
    assert abs(sum(view.mirror for view in views) - 31.5) <= 1
    assert abs(np.corrcoef([view.mirror for view in views], across)[0, 1]) < 0.1  # left is not always mirrored


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_view_gives_a_square_whatever_the_form(geometry: Geometry, shape: tuple[int, int]) -> None:
    stored = stored_form(geometry, shape)
    before = stored.copy()
    stored.flags.writeable = False  # as a store's are
    for tta in ("dihedral", "crops5", "64"):
        for view in views_of(tta):
            square = view_square(stored, geometry, view)
            assert square.shape == (geometry.size_px, geometry.size_px, 3)
            assert square.dtype == np.uint8
            assert square.flags.c_contiguous
    np.testing.assert_array_equal(stored, before)


def test_a_window_of_one_size_is_resized_by_the_geometrys_own_filter() -> None:
    geometry = Geometry(32, 40, interpolation="lanczos")
    stored = stored_form(geometry, (40, 40))
    window = Image.fromarray(stored).crop((8, 0, 40, 32))
    view = View(side=0.8, across=1.0, down=0.0)
    np.testing.assert_array_equal(view_square(stored, geometry, view), np.asarray(window))  # 0.8 of 40 is 32
    window = Image.fromarray(stored).crop((2, 2, 38, 38)).resize((32, 32), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(view_square(stored, geometry, View(side=0.9)), np.asarray(window))


@pytest.mark.parametrize("view", [PLAIN, View(across=0.0), View(side=0.9)])
def test_a_form_that_is_too_small_is_refused(view: View) -> None:
    with pytest.raises(DataError, match="20 x 40 pixels cannot give 32 x 32"):
        view_square(np.zeros((40, 20, 3), np.uint8), Geometry(32, 32), view)
