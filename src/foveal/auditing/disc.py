"""A picture as a disc: the rings of it as waves over the angle, which a turn shifts and a mirror runs backwards.

The square in the middle of a picture is read along rings, and the course of the grey values along each ring is taken
apart into waves. Turning the picture changes the phase of a wave and mirroring its sign, neither its strength: so the
strengths alone find turned and mirrored copies, as one vector a picture, and the phases tell the turn afterwards. Crops
are found by looking at smaller discs within the picture, shifted and zoomed (`VIEWS`): a crop shows one of them.

Source: rings and angular Fourier coefficients as invariants of rotation after Y. Sheng, H. Arsenault, "Experiments on
pattern recognition using invariant Fourier-Mellin descriptors", J. Opt. Soc. Am. A 3, 1986.
"""

import functools

import numpy as np
from numpy.typing import NDArray

from foveal.data.sketch import SKETCH_SIDE_PX

NUM_RINGS = 8
NUM_WAVES = 9
NUM_ANGLES = 64
OUTER, INNER = 0.92, 0.10
"""Radii of the outermost and the innermost ring, in half sides of the square."""

_RADII_A_RING = 3
_SIDE_PX = 16  # the eight or so periods of the fastest wave need no more, and smoothing forgives a crop beside its view
_FLAT = 2.0
"""Discs whose grey values vary by less than about this many of 255 have nothing to be told by."""


def _views() -> NDArray[np.float64]:
    near = [(0.92, x, y) for x in (-0.05, 0.05) for y in (-0.05, 0.05)]
    middle = [(0.85, x, y) for x in (-0.1, 0.0, 0.1) for y in (-0.1, 0.0, 0.1)]
    far = [(0.79, x, y) for x in (-0.16, -0.05, 0.05, 0.16) for y in (-0.16, -0.05, 0.05, 0.16)]
    return np.array([(1.0, 0.0, 0.0), *near, *middle, *far])


VIEWS: NDArray[np.float64] = _views()
"""float64 [views, 3]: zoom, shift to the right and down in half sides. The first is the whole disc; the others are what
crops that keep 95 %, 85 % and less of each side may show."""


def _radii() -> NDArray[np.float64]:
    steps = np.arange(NUM_RINGS * _RADII_A_RING) / (NUM_RINGS * _RADII_A_RING - 1)
    return OUTER * (INNER / OUTER) ** steps


@functools.cache
def _waves_of_pixels() -> NDArray[np.float32]:
    """float32 [pixels, views * rings * waves * 2]: what each pixel adds to each wave, real parts before imaginary."""
    side, angles = _SIDE_PX, np.arange(NUM_ANGLES) * 2 * np.pi / NUM_ANGLES
    table = np.zeros((len(VIEWS), NUM_RINGS, NUM_WAVES, side * side), np.complex128)
    turns = np.exp(-1j * np.arange(NUM_WAVES)[:, None] * angles) / NUM_ANGLES / _RADII_A_RING
    for view, (zoom, right, down) in enumerate(VIEWS):
        for number, radius in enumerate(_radii()):
            x = np.clip((side - 1) / 2 + (right + zoom * radius * np.cos(angles)) * side / 2, 0, side - 1.0001)
            y = np.clip((side - 1) / 2 + (down + zoom * radius * np.sin(angles)) * side / 2, 0, side - 1.0001)
            column, row = np.floor(x).astype(int), np.floor(y).astype(int)
            across, along = x - column, y - row
            # Between four pixels, in proportion; rings count by their length, so by the root of it in each factor.
            for step_x, step_y, share in (
                (0, 0, (1 - across) * (1 - along)),
                (1, 0, across * (1 - along)),
                (0, 1, (1 - across) * along),
                (1, 1, across * along),
            ):
                pixels = (row + step_y) * side + column + step_x
                for wave in range(NUM_WAVES):
                    np.add.at(table[view, number // _RADII_A_RING, wave], pixels, share * turns[wave] * radius**0.5)
    flat = table.reshape(-1, side * side).T
    return np.concatenate([flat.real, flat.imag], axis=1).astype(np.float32)


def waves(sketches: NDArray[np.uint8], views: int = len(VIEWS)) -> tuple[NDArray[np.complex64], NDArray[np.bool_]]:
    """The waves of each ring, of the first so many views.

    Args:
        sketches: uint8 [n, SKETCH_BYTES].
        views: how many of `VIEWS`.

    Returns:
        complex64 [n, views, rings, waves] with the mean grey taken out and of length 1, so that neither brightness nor
        contrast matters; and bool [n], whether there is anything to be told by in the whole disc.
    """
    table = _waves_of_pixels()
    half, wanted = table.shape[1] // 2, views * NUM_RINGS * NUM_WAVES
    pixels = reduced(sketches, _SIDE_PX).reshape(len(sketches), _SIDE_PX**2)
    real, imaginary = pixels @ table[:, :wanted], pixels @ table[:, half : half + wanted]
    result = np.empty((len(sketches), views, NUM_RINGS, NUM_WAVES), np.complex64)
    result.real = real.reshape(result.shape)
    result.imag = imaginary.reshape(result.shape)
    weight = (_radii() ** 0.5).reshape(NUM_RINGS, _RADII_A_RING).mean(axis=1).astype(np.float32)
    mean = (result[..., 0].real @ weight) / (weight @ weight)
    result[..., 0] -= mean[..., None] * weight
    result[..., 1:] *= np.float32(2**0.5)  # each stands for its mirror image among the negative waves, too
    length = np.sqrt((result.real**2).sum(axis=(2, 3)) + (result.imag**2).sum(axis=(2, 3)))
    result /= np.maximum(length, _FLAT)[..., None, None]
    return result, length[:, 0] > _FLAT


def reduced(sketches: NDArray[np.uint8], side_px: int) -> NDArray[np.float32]:
    """Sketches as pictures of a side that divides their own, float32 [n, side, side]."""
    factor = SKETCH_SIDE_PX // side_px
    blocks = sketches.reshape(len(sketches), side_px, factor, side_px, factor)
    # Slice by slice, which takes a fifth of the time of a sum over two axes.
    result = np.zeros((len(sketches), side_px, side_px), np.float32)
    for down in range(factor):
        for across in range(factor):
            result += blocks[:, :, down, :, across]
    result /= factor**2
    return result


def strengths(of_waves: NDArray[np.complex64]) -> NDArray[np.float32]:
    """What neither turning nor mirroring changes: float32 [n, views, rings * waves], of length 1."""
    result: NDArray[np.float32] = np.abs(of_waves).reshape(*of_waves.shape[:2], NUM_RINGS * NUM_WAVES)
    return result


def best_turn(
    left: NDArray[np.complex64], right: NDArray[np.complex64]
) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_]]:
    """The turn, and mirror, by which two discs agree best.

    Args:
        left: complex64 [n, rings, waves].
        right: the same of the others.

    Returns:
        float32 [n], the correlation there, at most 1; float64 [n], the angle by which the left disc must be turned to
        become the right one, in radians; bool [n], whether it must be mirrored (top to bottom) first.
    """
    # The sum over the waves of a product of one with the conjugate of the other is their correlation at every turn.
    # Of that the real part is wanted, which is a product of real matrices.
    angles = np.arange(NUM_WAVES)[:, None] * np.arange(NUM_ANGLES) * 2 * np.pi / NUM_ANGLES
    steps = np.concatenate([np.cos(angles), -np.sin(angles)]).astype(np.float32)
    best = []
    for first in (left.conj(), left):
        products = np.einsum("nrw,nrw->nw", first, right)
        best.append(np.concatenate([products.real, products.imag], axis=1) @ steps)
    plain, mirror = (each.max(axis=1) for each in best)
    is_mirrored = mirror > plain
    place = np.where(is_mirrored, best[1].argmax(axis=1), best[0].argmax(axis=1))
    return np.maximum(plain, mirror).astype(np.float32), place * 2 * np.pi / NUM_ANGLES, is_mirrored
