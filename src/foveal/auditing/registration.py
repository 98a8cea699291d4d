"""Laying one picture over another: turn, zoom and shift, refined until the two agree, and how well they then do."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_RADIUS = 0.95
_MAX_STEP = 0.1
_SMALL_SIDE_PX = 16


@dataclass(frozen=True)
class Placement:
    """Where the points of right pictures lie in left ones: `matrix @ point + shift`, in half sides from the middle.

    Attributes:
        matrix: float32 [n, 2, 2], turn, zoom and mirror.
        shift: float32 [n, 2], to the right and down.
    """

    matrix: NDArray[np.float32]
    shift: NDArray[np.float32]

    @classmethod
    def of(cls, views: NDArray[np.float64], angles: NDArray[np.float64], is_mirrored: NDArray[np.bool_]) -> "Placement":
        """A first guess: right, whole, is left's view, turned by an angle after having been mirrored.

        Args:
            views: float64 [n, 3], zoom and shift of each left picture's disc.
            angles: float64 [n], radians.
            is_mirrored: bool [n].
        """
        cosine, sine = views[:, 0] * np.cos(angles), views[:, 0] * np.sin(angles)
        sign = np.where(is_mirrored, -1.0, 1.0)
        # What right has at an angle t, left has at t - a; where it is mirrored, at a - t.
        matrix = np.stack([cosine, sine, -sine * sign, cosine * sign], axis=1).reshape(-1, 2, 2)
        return cls(matrix.astype(np.float32), views[:, 1:].astype(np.float32))

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> "Placement":
        """Some of them."""
        return Placement(self.matrix[rows], self.shift[rows])

    @classmethod
    def joined(cls, parts: Sequence["Placement"]) -> "Placement":
        """Several one after the other."""
        return cls(np.concatenate([part.matrix for part in parts]), np.concatenate([part.shift for part in parts]))


class Registration:
    """Pairs of square pictures, laid over each other on the disc in the middle of the right one.

    Source: the inverse compositional algorithm, S. Baker, I. Matthews, "Lucas-Kanade 20 Years On", IJCV 56, 2004, with
    the brightness and contrast of the left picture fitted anew in each step.

    Args:
        left: float32 [n, side, side], grey values.
        right: the same of the others.
    """

    def __init__(self, left: NDArray[np.float32], right: NDArray[np.float32]) -> None:
        self._left, self._right = left, right
        side = left.shape[1]
        line = ((np.arange(side) - (side - 1) / 2) / (side / 2)).astype(np.float32)
        down, across = np.meshgrid(line, line, indexing="ij")
        self._inside = (across**2 + down**2) < _RADIUS**2
        self._points = np.stack([across[self._inside], down[self._inside]])

    def refine(self, placement: Placement, num_steps: int) -> Placement:
        """Move each placement downhill, so many steps."""
        template = self._right[:, self._inside]
        descent = self._descent(template)
        inverse = np.linalg.inv(descent @ descent.transpose(0, 2, 1) + 1e-3 * np.eye(4, dtype=np.float32))
        matrix, shift = placement.matrix, placement.shift
        target = _standardised(template)
        for _ in range(num_steps):
            seen, is_seen = self._seen(matrix, shift)
            error = (_standardised(seen) - target) * is_seen
            step = (inverse @ (descent @ error[:, :, None]))[:, :, 0].clip(-_MAX_STEP, _MAX_STEP)
            grow, turn = 1.0 + step[:, 0], step[:, 1]
            scale = 1.0 / (grow**2 + turn**2)
            back = np.stack([grow, turn, -turn, grow], axis=1).reshape(-1, 2, 2) * scale[:, None, None]
            matrix = (matrix @ back).astype(np.float32)
            shift = (shift - (matrix @ step[:, 2:, None])[:, :, 0]).astype(np.float32)
        return Placement(matrix, shift)

    def _descent(self, template: NDArray[np.float32]) -> NDArray[np.float32]:
        """How each right picture changes when it grows, turns, or moves, float32 [n, 4, points]."""
        half = self._right.shape[1] / 2
        spread = np.maximum(template.std(axis=1), 1.0)[:, None]
        right = (np.gradient(self._right, axis=2)[:, self._inside] * half / spread).astype(np.float32)
        down = (np.gradient(self._right, axis=1)[:, self._inside] * half / spread).astype(np.float32)
        x, y = self._points
        return np.stack([right * x + down * y, down * x - right * y, right, down], axis=1)

    def _seen(
        self, matrix: NDArray[np.float32], shift: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """The left pictures at the points of the right ones, and whether there is anything there."""
        return _sampled(self._left, matrix @ self._points + shift[:, :, None])

    def agreement(self, placement: Placement, band: "Band") -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The correlation of both within a band of detail where they overlap, and the share of the disc that does.

        Returns:
            float32 [n], -1..1; float32 [n], 0..1.
        """
        points = placement.matrix @ self._points + placement.shift[:, :, None]
        seen, is_seen = _sampled(band.of(self._left), points)
        template = band.of(self._right)[:, self._inside]
        overlap = is_seen.astype(np.float32)
        num = np.maximum(np.add.reduce(overlap, axis=1), np.float32(1.0))
        first, second = _centred(seen, overlap, num), _centred(template, overlap, num)
        product = np.sqrt(np.einsum("nm,nm->n", first, first) * np.einsum("nm,nm->n", second, second))
        correlation = np.einsum("nm,nm->n", first, second) / np.maximum(product, np.float32(1e-3))
        return correlation.astype(np.float32, copy=False), is_seen.mean(axis=1, dtype=np.float32)


@dataclass(frozen=True)
class Band:
    """Detail between two sizes: a picture, smoothed a little, less the same, smoothed more.

    Attributes:
        fine_px: standard deviation of the first smoothing; 0 for none.
        coarse_px: of the second.
    """

    fine_px: float
    coarse_px: float

    def of(self, pictures: NDArray[np.float32]) -> NDArray[np.float32]:
        """The band of each, float32 [n, side, side]."""
        fine = smoothed(pictures, self.fine_px)
        return fine - smoothed(pictures, self.coarse_px)


def smoothed(pictures: NDArray[np.float32], sigma_px: float) -> NDArray[np.float32]:
    """Gaussian smoothing of each of float32 [n, side, side]; edges are continued."""
    if sigma_px <= 0:
        return pictures
    num, side = pictures.shape[:2]
    if side <= _SMALL_SIDE_PX:
        # All pictures in one product, for the loop over small matrices takes longer than their products.
        return (pictures.reshape(num, -1) @ _smoothing_both(side, sigma_px)).reshape(pictures.shape)
    matrix = _smoothing(side, sigma_px)
    result: NDArray[np.float32] = (matrix @ pictures @ matrix.T).astype(np.float32, copy=False)
    return result


@functools.lru_cache(maxsize=4)
def _smoothing_both(side: int, sigma_px: float) -> NDArray[np.float32]:
    """What a small picture becomes, float32 [pixels, pixels]."""
    matrix = _smoothing(side, sigma_px)
    return np.ascontiguousarray(np.kron(matrix, matrix).T)


@functools.lru_cache(maxsize=16)
def _smoothing(side: int, sigma_px: float) -> NDArray[np.float32]:
    """What a line of pixels becomes, float32 [side, side]."""
    places = np.arange(side)
    reach = np.arange(-int(4 * sigma_px), int(4 * sigma_px) + 1)
    kernel = np.exp(-0.5 * (reach / sigma_px) ** 2)
    kernel /= kernel.sum()
    matrix = np.zeros((side, side), np.float32)
    for offset, weight in zip(reach, kernel, strict=True):
        np.add.at(matrix, (places, np.clip(places + offset, 0, side - 1)), weight)
    return matrix


def _standardised(values: NDArray[np.float32]) -> NDArray[np.float32]:
    result: NDArray[np.float32] = values - (np.add.reduce(values, axis=1) / np.float32(values.shape[1]))[:, None]
    spread = np.sqrt(np.einsum("nm,nm->n", result, result) / np.float32(values.shape[1]))
    result /= np.maximum(spread, np.float32(1.0))[:, None]
    return result


def _centred(
    values: NDArray[np.float32], overlap: NDArray[np.float32], num: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Values less their mean where both are seen, and 0 elsewhere."""
    result: NDArray[np.float32] = values - (np.einsum("nm,nm->n", values, overlap) / num)[:, None]
    result *= overlap
    return result


def _sampled(
    pictures: NDArray[np.float32], points: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Pictures between their pixels.

    Args:
        pictures: float32 [n, side, side].
        points: float32 [n, 2, m], in half sides from the middle.

    Returns:
        float32 [n, m], and bool [n, m], whether the point lies within the picture.
    """
    side = pictures.shape[1]
    is_within: NDArray[np.bool_] = np.abs(points).max(axis=1) < 1.0
    place = points * np.float32(side / 2)
    place += np.float32((side - 1) / 2)
    np.clip(place, 0.0, side - 1.001, out=place)
    whole = place.astype(np.int32)
    place -= whole
    across, along = place[:, 0], place[:, 1]
    start = whole[:, 1] * side
    start += whole[:, 0]
    start = start + (np.arange(len(pictures)) * side * side)[:, None]
    flat = pictures.reshape(-1)
    # A value and its steps to the right and down: a product less than weighing all four.
    upper, lower = flat.take(start), flat.take(start + side)
    upper += (flat.take(start + 1) - upper) * across
    lower += (flat.take(start + side + 1) - lower) * across
    lower -= upper
    lower *= along
    lower += upper
    return lower, is_within
