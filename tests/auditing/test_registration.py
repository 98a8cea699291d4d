"""Laying one picture over another, on pictures that are known at every point; smoothing against scipy's."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from foveal.auditing.registration import Band, Placement, Registration, smoothed
from textured import pictures, pixels_of

SIDE_PX = 64
Field = tuple[np.ndarray, np.ndarray, np.ndarray]


def fields(number: int, seed: int = 0) -> list[Field]:
    """Sums of waves: pictures that can be asked at any point, so that no interpolation comes between."""
    rng = np.random.default_rng(seed)
    return [(rng.normal(0, 5, (2, 25)), rng.uniform(0, 6.3, 25), rng.uniform(5, 15, 25)) for _ in range(number)]


def grid() -> np.ndarray:
    line = (np.arange(SIDE_PX) - (SIDE_PX - 1) / 2) / (SIDE_PX / 2)
    down, across = np.meshgrid(line, line, indexing="ij")
    return np.stack([across.ravel(), down.ravel()])


def seen(field: Field, points: np.ndarray) -> np.ndarray:
    waves, phase, strength = field
    values = (strength[:, None] * np.cos(waves.T @ points + phase[:, None])).sum(axis=0)
    return (125 + values).reshape(SIDE_PX, SIDE_PX).astype(np.float32)


def similarity(degrees: float, zoom: float, *, mirrored: bool) -> np.ndarray:
    turn = np.radians(degrees)
    matrix = zoom * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return matrix @ np.diag([1.0, -1.0]) if mirrored else matrix


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 94, -171])
def test_a_similarity_is_recovered_to_a_tenth_of_a_pixel(degrees: float, mirrored: bool) -> None:
    """Start as far off as the waves leave it: three degrees, a few per cent, two pixels."""
    number = 12
    rng = np.random.default_rng(1)
    true = np.stack([similarity(degrees, 0.85, mirrored=mirrored)] * number)
    shift = rng.uniform(-0.08, 0.08, (number, 2))
    # The start is a guess that is off by another turn, zoom and shift.
    off = [similarity(rng.uniform(-3, 3), rng.uniform(0.97, 1.03), mirrored=False) for _ in range(number)]
    start = Placement(
        np.stack([each @ wrong for each, wrong in zip(true, off, strict=True)]).astype(np.float32),
        (shift + rng.uniform(-0.05, 0.05, (number, 2))).astype(np.float32),
    )
    some = fields(number)
    left = np.stack([seen(each, grid()) for each in some])
    right = np.stack([seen(some[n], true[n] @ grid() + shift[n][:, None]) for n in range(number)])
    # Brightness and contrast of the copy differ.
    found = Registration(left, (0.7 * right + 40).astype(np.float32)).refine(start, 12)
    inside = grid()[:, (grid() ** 2).sum(axis=0) < 0.9**2]
    for n in range(number):
        error = (found.matrix[n] - true[n]) @ inside + (found.shift[n] - shift[n])[:, None]
        assert np.linalg.norm(error, axis=0).max() * SIDE_PX / 2 < 0.1


def test_agreement_is_the_correlation_where_both_overlap() -> None:
    left = np.stack([seen(each, grid()) for each in fields(4)])
    same = Placement(np.stack([np.eye(2, dtype=np.float32)] * 4), np.zeros((4, 2), np.float32))
    band = Band(0.0, 3.0)
    alike, overlap = Registration(left, 0.5 * left + 60).agreement(same, band)
    assert alike == pytest.approx(np.ones(4), abs=1e-4)
    assert overlap == pytest.approx(np.ones(4))
    rng = np.random.default_rng(0)
    noisy = (left + rng.normal(0, 10, left.shape)).astype(np.float32)
    found = Registration(left, noisy).agreement(same, band)[0]
    inside = ((grid() ** 2).sum(axis=0) < 0.95**2).reshape(SIDE_PX, SIDE_PX)
    for n in range(4):
        parts = [each[n] - gaussian_filter(each[n], 3.0, mode="nearest") for each in (left, noisy)]
        assert found[n] == pytest.approx(np.corrcoef(parts[0][inside], parts[1][inside])[0, 1], abs=2e-3)
    apart = Placement(same.matrix, np.full((4, 2), 0.5, np.float32))
    assert (Registration(left, left).agreement(apart, band)[1] < 0.75).all()


def test_pictures_without_detail_do_not_agree() -> None:
    flat = np.full((2, SIDE_PX, SIDE_PX), 200, np.float32)
    flat[1] = 40
    same = Placement(np.stack([np.eye(2, dtype=np.float32)] * 2), np.zeros((2, 2), np.float32))
    registration = Registration(flat, flat[::-1].copy())
    moved = registration.refine(same, 4)
    assert np.isfinite(moved.matrix).all()
    assert (registration.agreement(moved, Band(1.0, 3.0))[0] < 0.5).all()


@pytest.mark.parametrize("side", [16, 32, 64])
@pytest.mark.parametrize("sigma_px", [0.0, 0.5, 0.8, 1.0, 1.5, 3.0])
def test_smoothing_is_that_of_scipy(side: int, sigma_px: float) -> None:
    stack = np.stack([pixels_of(image.resize((side, side)))[..., 1] for image in pictures(3)]).astype(np.float32)
    expected = np.stack([gaussian_filter(each, sigma_px, mode="nearest") if sigma_px else each for each in stack])
    assert smoothed(stack, sigma_px) == pytest.approx(expected, abs=0.02)
    coarse = np.stack([gaussian_filter(each, 3.0, mode="nearest") for each in stack])
    assert Band(sigma_px, 3.0).of(stack) == pytest.approx(expected - coarse, abs=0.04)
