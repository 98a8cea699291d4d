"""Where on the upright picture the square lies that a network saw of it, and maps laid over pictures."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foveal.pixels.geometry import MAX_ASPECT, Geometry

Bounds = tuple[float, float, float, float]
"""Left, top, right, bottom."""


@dataclass(frozen=True)
class Placement:
    """What part of a picture is what part of the square.

    Attributes:
        picture: the part of the upright picture that was seen, in its pixels.
        square: the part of the square that holds it, in 0..1; the rest is padding.
    """

    picture: Bounds
    square: Bounds = (0.0, 0.0, 1.0, 1.0)


def placement_of(height: int, width: int, geometry: Geometry) -> Placement:
    """Where `to_square(to_store(pixels))` comes from and goes to.

    Args:
        height: of the upright picture, in pixels.
        width: of the upright picture, in pixels.
        geometry: how it became a square.
    """
    side, size = geometry.store_px, geometry.size_px
    if geometry.fit == "squash":
        return Placement((0.0, 0.0, float(width), float(height)))
    if geometry.fit == "pad":
        longer = max(height, width)
        new_height, new_width = (max(1, _divided(edge * side, longer)) for edge in (height, width))
        top, left = (side - new_height) // 2, (side - new_width) // 2
        inner = (left / side, top / side, (left + new_width) / side, (top + new_height) / side)
        return Placement((0.0, 0.0, float(width), float(height)), inner)
    shorter = min(height, width)
    down = _seen_of(height, shorter, side, size)
    across = _seen_of(width, shorter, side, size)
    return Placement((across[0], down[0], across[1], down[1]))


def _seen_of(edge: int, shorter: int, side: int, size: int) -> tuple[float, float]:
    """The part of an edge that a central square shows, in pixels of the picture."""
    kept = min(edge, MAX_ASPECT * shorter)
    before = (edge - kept) // 2
    stored = _divided(kept * side, shorter)
    start = (stored - size) // 2
    scale = kept / stored
    return before + start * scale, before + (start + size) * scale


def _divided(dividend: int, divisor: int) -> int:
    """As in `foveal.pixels.geometry`: rounded half up."""
    return (2 * dividend + divisor) // (2 * divisor)


def place(
    heat: NDArray[np.float32], placement: Placement, size: tuple[int, int], drawn: tuple[int, int]
) -> NDArray[np.float32]:
    """Lay a map of the square over the picture, bilinearly; 0 where the network saw nothing.

    Args:
        heat: float32 [h, w], over the square.
        placement: where the square lies.
        size: height and width of the picture, in pixels.
        drawn: height and width of the result, in pixels: the picture's, or those of a smaller copy.

    Returns:
        float32 [height, width].
    """
    placed = np.zeros(drawn, dtype=np.float32)
    left, top, right, bottom = placement.picture
    from_left, from_top, to_right, to_bottom = placement.square
    rows, down = _taps(drawn[0], size[0], (top, bottom), (from_top, to_bottom), heat.shape[0])
    columns, across = _taps(drawn[1], size[1], (left, right), (from_left, to_right), heat.shape[1])
    placed[rows, columns] = down @ heat.astype(np.float32) @ across.T
    return placed


def resized_map(heat: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """The same map at another size, bilinearly: float32 [height, width]."""
    whole = Placement((0.0, 0.0, float(width), float(height)))
    return place(heat, whole, (height, width), (height, width))


def centre_of_cell(
    cell: tuple[int, int], cells: tuple[int, int], placement: Placement, size: tuple[int, int]
) -> tuple[float, float]:
    """Where on the picture the middle of a place of the map lies, x and y in its pixels; at its edge where outside."""
    left, top, right, bottom = placement.picture
    from_left, from_top, to_right, to_bottom = placement.square
    across = ((cell[1] + 0.5) / cells[1] - from_left) / (to_right - from_left)
    down = ((cell[0] + 0.5) / cells[0] - from_top) / (to_bottom - from_top)
    x, y = left + across * (right - left), top + down * (bottom - top)
    return min(max(x, 0.0), float(size[1])), min(max(y, 0.0), float(size[0]))


def _taps(
    num_drawn: int, num_pixels: int, seen: tuple[float, float], held: tuple[float, float], num_cells: int
) -> tuple[slice, NDArray[np.float32]]:
    """Along one axis: which pixels of the result are covered, and what each takes of each place of the map."""
    at = (np.arange(num_drawn) + 0.5) * (num_pixels / num_drawn)
    covered = np.flatnonzero((at >= seen[0]) & (at <= seen[1]))
    if not len(covered):  # the seen part is thinner than a drawn pixel
        covered = np.array([int(np.argmin(np.abs(at - 0.5 * (seen[0] + seen[1]))))])
    share = (at[covered] - seen[0]) / (seen[1] - seen[0])
    places = (held[0] + share * (held[1] - held[0])) * num_cells - 0.5
    places = np.clip(places, 0.0, num_cells - 1.0)
    lower = np.minimum(np.floor(places).astype(int), num_cells - 1)
    upper = np.minimum(lower + 1, num_cells - 1)
    weights = np.zeros((len(covered), num_cells), dtype=np.float32)
    rows = np.arange(len(covered))
    np.add.at(weights, (rows, lower), (1.0 - (places - lower)).astype(np.float32))
    np.add.at(weights, (rows, upper), (places - lower).astype(np.float32))
    return slice(int(covered[0]), int(covered[-1]) + 1), weights
