"""Views: the several squares of one image over whose probabilities test-time augmentation takes the mean.

A way to do it is a fixed tuple of views, the same for every image: so evaluating, predicting and serving say the same
of the same image, and nothing is drawn at random.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from foveal.errors import ConfigError
from foveal.pixels.geometry import Geometry, check_stored, resized, to_square

MAX_VIEWS = 64
"""Each view costs a pass through the network."""

TTA_WAYS = ("none", "flip", "dihedral", "crops5")
"""What `views_of` knows beside a number of views."""

NO_ROOM_SIDE = 7 / 8
"""Side of a corner's window as a share of the square, where the stored form leaves the square no room to move."""

_MIN_SIDE = 0.8
# Halton's sequence: one prime each for whether to mirror, where across, where down, and how large.
_PRIMES = (2, 3, 5, 7)


@dataclass(frozen=True, slots=True)
class View:
    """One way to cut the model's square from a stored form, the same for every image.

    Attributes:
        side: side of the window as a share of the stored form's shorter side, in (0, 1]; it is resized to the square.
            None is the square itself, without a resize; away from the middle of a form that leaves it no room to move,
            `NO_ROOM_SIDE` of it.
        across: where the window stands in the room that it has, 0 at the left edge, 0.5 in the middle, 1 at the right.
        down: likewise from the top.
        quarter_turns: by how many quarters the square is then turned, anticlockwise, 0 to 3.
        mirror: whether left and right are then exchanged.
    """

    side: float | None = None
    across: float = 0.5
    down: float = 0.5
    quarter_turns: int = 0
    mirror: bool = False

    @property
    def is_central(self) -> bool:
        """Whether it is cut as the plain square is, turned or mirrored though it may be."""
        return self.side is None and self.across == 0.5 and self.down == 0.5


PLAIN = View()
"""The central square, as a classifier sees it without test-time augmentation."""


def views_of(tta: str) -> tuple[View, ...]:
    """The views of a way of test-time augmentation; the plain one first.

    Args:
        tta: `none`: the plain view alone; `flip`: it and its mirror image; `dihedral`: its four quarter turns, each
            also mirrored; `crops5`: it and the four corners (Krizhevsky et al. 2012); a number N up to `MAX_VIEWS`: it
            and N - 1 windows of 0.8 to 1 times the stored form's shorter side, every other one mirrored, spread evenly
            by Halton's sequence (Halton 1960), so that the views of N are the first of those of N + 1.

    Raises:
        ConfigError: it is none of these.
    """
    text = str(tta).strip().lower()
    if text == "none":
        return (PLAIN,)
    if text == "flip":
        return (PLAIN, View(mirror=True))
    if text == "dihedral":
        return tuple(View(quarter_turns=turns, mirror=mirror) for mirror in (False, True) for turns in range(4))
    if text == "crops5":
        return (PLAIN, *(View(across=across, down=down) for down in (0.0, 1.0) for across in (0.0, 1.0)))
    if text.isascii() and text.isdigit() and len(text) < 5 and 1 <= int(text) <= MAX_VIEWS:
        return (PLAIN, *(_spread(number) for number in range(1, int(text))))
    raise ConfigError(
        f"Test-time augmentation {tta!r}: expected {', '.join(TTA_WAYS)}, or a number of views from 1 to {MAX_VIEWS}.",
        fix="choose one of these; flip is the cheapest.",
    )


def view_square(stored: NDArray[np.uint8], geometry: Geometry, view: View) -> NDArray[np.uint8]:
    """The square that a view shows of a stored form.

    Args:
        stored: uint8 [height, width, 3], what `to_store` gave for the same geometry.
        geometry: what is wanted.
        view: how to cut it.

    Returns:
        uint8 [size_px, size_px, 3], C-contiguous; for the plain view, what `to_square` gives.

    Raises:
        DataError: the stored form is smaller than the square.
    """
    square = to_square(stored, geometry) if view.is_central else _window(stored, geometry, view)
    if view.quarter_turns % 4:
        square = np.rot90(square, view.quarter_turns)
    if view.mirror:
        square = square[:, ::-1]
    return np.ascontiguousarray(square)


def _spread(number: int) -> View:
    mirror, across, down, side = (_radical_inverse(number, prime) for prime in _PRIMES)
    return View(side=_MIN_SIDE + (1 - _MIN_SIDE) * side, across=across, down=down, mirror=mirror >= 0.5)


def _radical_inverse(number: int, base: int) -> float:
    """`number` with its digits in `base` mirrored at the point: an element of the van der Corput sequence."""
    inverse, weight = Fraction(0), Fraction(1, base)
    while number:
        number, digit = divmod(number, base)
        inverse, weight = inverse + digit * weight, weight / base
    return float(inverse)


def _window(stored: NDArray[np.uint8], geometry: Geometry, view: View) -> NDArray[np.uint8]:
    height, width = stored.shape[:2]
    shorter, size_px = min(height, width), geometry.size_px
    check_stored(stored, geometry)
    if view.side is not None:
        side_px = max(1, math.floor(view.side * shorter + 0.5))
    elif shorter > size_px:
        side_px = size_px
    else:
        side_px = max(1, math.floor(NO_ROOM_SIDE * size_px + 0.5))
    left, top = math.floor(view.across * (width - side_px) + 0.5), math.floor(view.down * (height - side_px) + 0.5)
    return resized(stored[top : top + side_px, left : left + side_px], size_px, size_px, geometry)
