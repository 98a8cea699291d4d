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
NUM_PARTS = NUM_RINGS * (2 * NUM_WAVES - 1)
"""Numbers that a disc is told by: the mean of each ring, then the real parts of its waves, then the imaginary ones."""
OUTER, INNER = 0.92, 0.10
"""Radii of the outermost and the innermost ring, in half sides of the square."""

_RADII_A_RING = 3
_SIDE_PX = 16  # the eight or so periods of the fastest wave need no more, and smoothing forgives a crop beside its view
_VIEWS_AT_ONCE = 1920  # what is made of them stays in the processor's cache
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
def _waves_of_pixels() -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """What each pixel adds to each part of each wave, the mean grey taken out.

    Returns:
        int64 [used], the pixels that any view takes in; float32 [used, views * `NUM_PARTS`].
    """
    side, angles = _SIDE_PX, np.arange(NUM_ANGLES) * 2 * np.pi / NUM_ANGLES
    phases, radii = np.arange(NUM_WAVES)[:, None] * angles, _radii()[:, None]
    turns = np.concatenate([np.cos(phases), -np.sin(phases)]) / NUM_ANGLES / _RADII_A_RING
    ring = np.arange(len(radii))[:, None] // _RADII_A_RING * NUM_ANGLES + np.arange(NUM_ANGLES)
    table = np.empty((len(VIEWS), NUM_RINGS, 2 * NUM_WAVES, side * side))
    for view, (zoom, right, down) in enumerate(VIEWS):
        x = np.clip((side - 1) / 2 + (right + zoom * radii * np.cos(angles)) * side / 2, 0, side - 1.0001)
        y = np.clip((side - 1) / 2 + (down + zoom * radii * np.sin(angles)) * side / 2, 0, side - 1.0001)
        column, row = x.astype(np.int64), y.astype(np.int64)
        across, along = x - column, y - row
        # Between four pixels, in proportion; rings count by their length, so by the root of it in each factor.
        share = np.stack([(1 - across) * (1 - along), across * (1 - along), (1 - across) * along, across * along])
        first = (ring * side + row) * side + column
        pixels = np.stack([first, first + 1, first + side, first + side + 1])
        added = np.bincount(pixels.ravel(), (share * radii**0.5).ravel(), NUM_RINGS * NUM_ANGLES * side * side)
        np.matmul(turns, added.reshape(NUM_RINGS, NUM_ANGLES, side * side), out=table[view])
    real, imaginary = table[:, :, :NUM_WAVES], table[:, :, NUM_WAVES:]
    weight = (_radii() ** 0.5).reshape(NUM_RINGS, _RADII_A_RING).mean(axis=1)
    still = real[:, :, 0]
    mean = np.einsum("vrp,r->vp", still, weight) / (weight @ weight)
    still = still - mean[:, None] * weight[:, None]
    moving = [2**0.5 * part[:, :, 1:].reshape(len(VIEWS), -1, side * side) for part in (real, imaginary)]
    parts = np.concatenate([still, *moving], axis=1)
    by_pixel = parts.reshape(-1, side * side).T
    used = np.flatnonzero(by_pixel.any(axis=1))
    return used, by_pixel[used].astype(np.float32)


def waves(sketches: NDArray[np.uint8], views: int = len(VIEWS)) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The waves of each ring, of the first so many views.

    Args:
        sketches: uint8 [n, SKETCH_BYTES].
        views: how many of `VIEWS`.

    Returns:
        float32 [n, views, NUM_PARTS] with the mean grey taken out and of length 1, so that neither brightness nor
        contrast matters; and bool [n], whether there is anything to be told by in the whole disc.
    """
    used, table = _waves_of_pixels()
    table = table[:, : views * NUM_PARTS]
    result = np.empty((len(sketches), views, NUM_PARTS), np.float32)
    is_telling = np.empty(len(sketches), np.bool_)
    step = max(1, _VIEWS_AT_ONCE // views)
    for at in range(0, len(sketches), step):
        part = result[at : at + step]
        pixels = reduced(sketches[at : at + step], _SIDE_PX).reshape(len(part), _SIDE_PX**2)[:, used]
        np.matmul(pixels, table, out=part.reshape(len(part), -1))
        length = np.sqrt(np.einsum("nvp,nvp->nv", part, part))
        part *= (1.0 / np.maximum(length, _FLAT))[..., None]
        is_telling[at : at + step] = length[:, 0] > _FLAT
    return result, is_telling


def reduced(sketches: NDArray[np.uint8], side_px: int) -> NDArray[np.float32]:
    """Sketches as pictures of a side that divides their own, float32 [n, side, side]."""
    square = sketches.reshape(len(sketches), SKETCH_SIDE_PX, SKETCH_SIDE_PX)
    if side_px == SKETCH_SIDE_PX:
        return square.astype(np.float32)
    if 2 * side_px == SKETCH_SIDE_PX:
        # Neighbours as the two bytes of one number, a tenth of the time of a sum over two axes.
        both = np.ascontiguousarray(square).view(np.uint16)
        across = (both & np.uint16(0xFF)) + (both >> np.uint16(8))
        means: NDArray[np.float32] = (across[:, ::2] + across[:, 1::2]).astype(np.float32) * np.float32(0.25)
        return means
    factor = SKETCH_SIDE_PX // side_px
    blocks = square.reshape(len(sketches), side_px, factor, side_px, factor)
    result: NDArray[np.float32] = blocks.mean(axis=(2, 4), dtype=np.float32)
    return result


def strengths(of_waves: NDArray[np.float32]) -> NDArray[np.float32]:
    """What neither turning nor mirroring changes: float32 [n, views, rings * waves], of length 1."""
    num, views, _ = of_waves.shape
    result = np.empty((num, views, NUM_RINGS * NUM_WAVES), np.float32)
    for at in range(0, num, _VIEWS_AT_ONCE // views):
        step = slice(at, at + _VIEWS_AT_ONCE // views)
        still, real, imaginary = _parts(of_waves[step] * of_waves[step])
        real += imaginary
        np.sqrt(still, out=result[step, :, :NUM_RINGS])
        np.sqrt(real, out=result[step, :, NUM_RINGS:])
    return result


def best_turn(
    left: NDArray[np.float32], right: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_]]:
    """The turn, and mirror, by which two discs agree best.

    Args:
        left: float32 [n, NUM_PARTS].
        right: the same of the others.

    Returns:
        float32 [n], the correlation there, at most 1; float64 [n], the angle by which the left disc must be turned to
        become the right one, in radians; bool [n], whether it must be mirrored (top to bottom) first.
    """
    # The sum over the waves of a product of one with the conjugate of the other is their correlation at every turn.
    # Of that the real part is wanted; and a mirrored disc is the conjugate of a plain one.
    still, real, imaginary = (tuple(of) for of in zip(_parts(left), _parts(right), strict=True))
    level = np.einsum("nr,nr->n", *still)
    one, other = _by_wave(real[0], real[1]), _by_wave(imaginary[0], imaginary[1])
    ahead, behind = _by_wave(real[0], imaginary[1]), _by_wave(imaginary[0], real[1])
    plain = np.concatenate([one + other, ahead - behind], axis=1) @ _turns()
    mirror = np.concatenate([one - other, ahead + behind], axis=1) @ _turns()
    place, mirror_place = plain.argmax(axis=1), mirror.argmax(axis=1)
    rows = np.arange(len(left))
    found, mirror_found = plain[rows, place] + level, mirror[rows, mirror_place] + level
    is_mirrored = mirror_found > found
    place = np.where(is_mirrored, mirror_place, place)
    return np.maximum(found, mirror_found), place * 2 * np.pi / NUM_ANGLES, is_mirrored


def _parts(of_waves: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """The rings' means, and the real and the imaginary parts of their waves."""
    half = (NUM_PARTS + NUM_RINGS) // 2
    return of_waves[..., :NUM_RINGS], of_waves[..., NUM_RINGS:half], of_waves[..., half:]


def _by_wave(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float32]:
    """Products summed over the rings, float32 [n, waves but the first]."""
    shape = len(left), NUM_RINGS, NUM_WAVES - 1
    result: NDArray[np.float32] = np.einsum("nrw,nrw->nw", left.reshape(shape), right.reshape(shape))
    return result


@functools.cache
def _turns() -> NDArray[np.float32]:
    """What the real and the imaginary part of each wave, but the first, add at every turn: [2 * waves, angles]."""
    angles = np.arange(1, NUM_WAVES)[:, None] * np.arange(NUM_ANGLES) * 2 * np.pi / NUM_ANGLES
    return np.concatenate([np.cos(angles), -np.sin(angles)]).astype(np.float32)
