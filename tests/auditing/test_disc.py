"""Discs: what a turn and a mirror leave alone, and the turn and the mirror themselves."""

import numpy as np
import pytest
from PIL import Image

from foveal.auditing.disc import NUM_ANGLES, VIEWS, best_turn, reduced, strengths, waves
from foveal.data.sketch import SKETCH_BYTES, SKETCH_SIDE_PX, luma, sketch
from textured import pictures, pixels_of

Pixels = np.ndarray


@pytest.fixture(scope="module")
def lumas() -> list[Pixels]:
    return [luma(pixels_of(image)) for image in pictures(40, seed=3)]


def of(lumas: list[Pixels]) -> Pixels:
    return np.stack([sketch(each) for each in lumas])


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
@pytest.mark.parametrize("is_mirrored", [False, True])
def test_the_turn_and_the_mirror_are_those_that_were_made(
    lumas: list[Pixels], quarters: int, is_mirrored: bool
) -> None:
    left, _ = waves(of(lumas), 1)
    right, _ = waves(of([np.rot90(each[::-1] if is_mirrored else each, quarters) for each in lumas]), 1)
    agreement, angle, mirrored = best_turn(left[:, 0], right[:, 0])
    assert (agreement > 0.98).all()
    assert (mirrored == is_mirrored).all()
    # Angles run from right to down, so numpy's quarter turn, from right to up, is one backwards.
    error = np.angle(np.exp(1j * (angle + quarters * np.pi / 2)))
    assert np.abs(error).max() <= 2 * np.pi / NUM_ANGLES


@pytest.mark.parametrize("degrees", [8, -8, 37, 123])
def test_a_turn_by_any_angle_is_found(lumas: list[Pixels], degrees: float) -> None:
    left, _ = waves(of(lumas), 1)
    turned = [np.asarray(Image.fromarray(each).rotate(degrees, Image.Resampling.BICUBIC)) for each in lumas]
    right, _ = waves(of(turned), 1)
    agreement, angle, mirrored = best_turn(left[:, 0], right[:, 0])
    assert (agreement > 0.9).all()
    assert not mirrored.any()
    assert np.abs(np.degrees(np.angle(np.exp(1j * (angle + np.radians(degrees)))))).max() < 6


def test_strengths_tell_pictures_apart_but_not_their_turns(lumas: list[Pixels]) -> None:
    one = strengths(waves(of(lumas))[0])
    turned = strengths(waves(of([np.rot90(each)[::-1] for each in lumas]))[0])
    assert one.shape[:2] == (40, len(VIEWS))
    assert np.linalg.norm(one[:, 0], axis=1) == pytest.approx(1.0, abs=1e-4)
    likeness = one[:, 0] @ turned[:, 0].T
    own = np.diag(likeness).copy()
    np.fill_diagonal(likeness, 0)
    assert own.min() > 0.995
    assert likeness.max() < own.min()


def test_neither_brightness_nor_contrast_matters(lumas: list[Pixels]) -> None:
    sketches = of(lumas)
    faded = (sketches * 0.5 + 90).round().astype(np.uint8)
    one, other = waves(sketches)[0], waves(faded)[0]
    assert (best_turn(one[:, 0], other[:, 0])[0] > 0.995).all()


def test_each_crop_is_seen_by_one_of_the_views(lumas: list[Pixels]) -> None:
    whole = waves(of(lumas))[0]
    rng = np.random.default_rng(0)
    for share in (0.95, 0.85):
        side = round(share * 96)
        corners = rng.integers(0, 96 - side + 1, (len(lumas), 2))
        crops = [each[y : y + side, x : x + side] for each, (y, x) in zip(lumas, corners, strict=True)]
        part = waves(of(crops), 1)[0]
        agreement = np.stack([best_turn(whole[:, view], part[:, 0])[0] for view in range(len(VIEWS))])
        assert (agreement.max(axis=0) > 0.9).mean() > 0.95
        assert np.median(agreement.max(axis=0)) > np.median(agreement[0])


def test_flat_pictures_have_nothing_to_be_told_by() -> None:
    rng = np.random.default_rng(0)
    flat = np.full((3, SKETCH_BYTES), 255, np.uint8)
    flat[1] = 0
    flat[2] = 128 + rng.integers(-1, 2, SKETCH_BYTES)
    found, is_telling = waves(flat)
    assert not is_telling.any()
    assert np.isfinite(found.view(np.float32)).all()


def test_reduced_pictures_are_means_of_blocks(lumas: list[Pixels]) -> None:
    sketches = of(lumas[:3])
    square = sketches.reshape(3, SKETCH_SIDE_PX, SKETCH_SIDE_PX)
    assert reduced(sketches, SKETCH_SIDE_PX) == pytest.approx(square)
    expected = sum(square[:, down::2, right::2].astype(float) for down in (0, 1) for right in (0, 1)) / 4
    assert reduced(sketches, 16) == pytest.approx(expected)
