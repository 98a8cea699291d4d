"""Laying one picture over another: turn, zoom and shift, refined until the two agree, and how well they then do."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_RADIUS = 0.95
_MAX_STEP = 0.1


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
        num = np.maximum(is_seen.sum(axis=1), 1)[:, None]
        first = (seen - (seen * is_seen).sum(axis=1)[:, None] / num) * is_seen
        second = (template - (template * is_seen).sum(axis=1)[:, None] / num) * is_seen
        product = np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
        correlation = (first * second).sum(axis=1) / np.maximum(product, 1e-3)
        return correlation.astype(np.float32), is_seen.mean(axis=1, dtype=np.float32)


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
    side = pictures.shape[1]
    places = np.arange(side)
    reach = np.arange(-int(4 * sigma_px), int(4 * sigma_px) + 1)
    kernel = np.exp(-0.5 * (reach / sigma_px) ** 2)
    kernel /= kernel.sum()
    matrix = np.zeros((side, side), np.float32)
    for offset, weight in zip(reach, kernel, strict=True):
        np.add.at(matrix, (places, np.clip(places + offset, 0, side - 1)), weight)
    result: NDArray[np.float32] = (matrix @ pictures @ matrix.T).astype(np.float32, copy=False)
    return result


def _standardised(values: NDArray[np.float32]) -> NDArray[np.float32]:
    result: NDArray[np.float32] = (values - values.mean(axis=1)[:, None]) / np.maximum(values.std(axis=1), 1.0)[:, None]
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
    place = np.clip(points * (side / 2) + (side - 1) / 2, 0.0, side - 1.001)
    whole = np.floor(place)
    across, along = place[:, 0] - whole[:, 0], place[:, 1] - whole[:, 1]
    first = (np.arange(len(pictures)) * side * side)[:, None]
    start = whole[:, 1].astype(np.int64) * side + whole[:, 0].astype(np.int64) + first
    flat = pictures.reshape(-1)
    upper = flat[start] * (1 - across) + flat[start + 1] * across
    lower = flat[start + side] * (1 - across) + flat[start + side + 1] * across
    return upper * (1 - along) + lower * along, is_within
