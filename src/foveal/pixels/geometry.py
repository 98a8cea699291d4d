"""How an upright RGB image becomes the square that the model sees.

There is one resize: `to_store` makes the form that the store keeps, `to_square` only cuts from it. So predicting from a
file and evaluating from the store see the same numbers.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foveal.errors import ConfigError, DataError
from foveal.pixels.rejection import ImageRejectedError
from foveal.types import Box

MAX_ASPECT = 4
"""With fit `crop`, the longer side is first cut, centrally, to this many times the shorter one."""

Fit = Literal["crop", "pad", "squash"]
Interpolation = Literal["bilinear", "bicubic", "lanczos"]
_FILTERS: dict[str, Image.Resampling] = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class Geometry:
    """How an upright RGB image becomes a square.

    Attributes:
        size_px: side of the square.
        store_px: shorter side of the stored form with fit `crop`, at least `size_px`, so that training can cut at
            random; with `pad` and `squash` equal to `size_px`.
        fit: `crop` keeps the aspect and cuts what sticks out; `pad` keeps the aspect and all, and fills up with the
            background; `squash` keeps all and not the aspect.
        interpolation: Pillow's filter, always with its support widened for shrinking (antialiased).
        background: sRGB, what `pad` fills up with.

    Raises:
        ConfigError: a value is out of range, or two do not go together.
    """

    size_px: int
    store_px: int
    fit: Fit = "crop"
    interpolation: Interpolation = "bicubic"
    background: tuple[int, int, int] = (255, 255, 255)

    def __post_init__(self) -> None:
        problems = []
        if self.size_px < 1:
            problems.append(f"size_px: at least 1 was expected, {self.size_px} came")
        if self.fit not in ("crop", "pad", "squash"):
            problems.append(f"fit: crop, pad or squash was expected, {self.fit!r} came")
        elif self.fit == "crop" and self.store_px < self.size_px:
            problems.append(f"store_px: at least size_px ({self.size_px}) was expected, {self.store_px} came")
        elif self.fit != "crop" and self.store_px != self.size_px:
            problems.append(
                f"store_px: with fit {self.fit}, size_px ({self.size_px}) was expected, {self.store_px} came"
            )
        if self.interpolation not in _FILTERS:
            problems.append(f"interpolation: {', '.join(_FILTERS)} was expected, {self.interpolation!r} came")
        problems += background_problems(self.background)
        if problems:
            raise ConfigError("The geometry of the images makes no sense.", problems=problems)


def background_problems(background: tuple[int, ...]) -> list[str]:
    """What is wrong with a colour that is put where an image has none."""
    if len(background) == 3 and all(0 <= value <= 255 for value in background):
        return []
    return [f"background: three values from 0 to 255 were expected, {background} came"]


def crop_box(pixels: NDArray[np.uint8], box: Box, margin: float = 0.0) -> NDArray[np.uint8]:
    """Cut a box out of an image, what lies outside the image being left away.

    Args:
        pixels: uint8 [height, width, 3], upright.
        box: in pixels of the upright image; xmax and ymax are exclusive.
        margin: added on each side, as a share of the box's own width (left and right) and height (top and bottom);
            rounded outwards.

    Returns:
        uint8 [height, width, 3], at least 1 x 1.

    Raises:
        ImageRejectedError: the box, without its margin, has no area inside the image.
        ConfigError: the margin is negative or not finite.
    """
    if not (math.isfinite(margin) and margin >= 0.0):
        raise ConfigError(f"The margin around boxes must be 0 or more; {margin} came.")
    height, width = pixels.shape[:2]
    xmin, ymin, xmax, ymax = box
    if min(xmax, width) <= max(xmin, 0) or min(ymax, height) <= max(ymin, 0):
        raise ImageRejectedError(
            f"the box xmin {xmin}, ymin {ymin}, xmax {xmax}, ymax {ymax} has no area inside the image of "
            f"{width} x {height} pixels",
            "bad_box",
        )
    across, down = margin * (xmax - xmin), margin * (ymax - ymin)
    left, right = max(math.floor(xmin - across), 0), min(math.ceil(xmax + across), width)
    top, bottom = max(math.floor(ymin - down), 0), min(math.ceil(ymax + down), height)
    return np.ascontiguousarray(pixels[top:bottom, left:right])


def to_store(pixels: NDArray[np.uint8], geometry: Geometry) -> NDArray[np.uint8]:
    """The form that the store keeps: scaled, not yet cut to a square.

    Args:
        pixels: uint8 [height, width, 3], upright.
        geometry: what is wanted.

    Returns:
        uint8 [height, width, 3]. With `crop` the shorter side is `store_px` and the longer one at most `MAX_ASPECT`
        times that; with `pad` and `squash` both are `store_px`.

    Raises:
        DataError: the array is no image.
    """
    _check_pixels(pixels)
    height, width = pixels.shape[:2]
    side = geometry.store_px
    if geometry.fit == "squash":
        return resized(pixels, side, side, geometry)
    if geometry.fit == "pad":
        longer = max(height, width)
        new_height, new_width = (max(1, _divided(edge * side, longer)) for edge in (height, width))
        inner = resized(pixels, new_height, new_width, geometry)
        padded = np.empty((side, side, 3), np.uint8)
        padded[:] = geometry.background
        top, left = (side - new_height) // 2, (side - new_width) // 2
        padded[top : top + new_height, left : left + new_width] = inner
        return padded
    # Cut before scaling, or 1 x 10000 pixels would be blown up to hundreds of megabytes.
    shorter = min(height, width)
    pixels = _centre(pixels, min(height, MAX_ASPECT * shorter), min(width, MAX_ASPECT * shorter))
    height, width = pixels.shape[:2]
    return resized(pixels, _divided(height * side, shorter), _divided(width * side, shorter), geometry)


def to_square(stored: NDArray[np.uint8], geometry: Geometry) -> NDArray[np.uint8]:
    """The square in the middle of the stored form, without any resize.

    Args:
        stored: what `to_store` gave for the same geometry.
        geometry: what is wanted.

    Returns:
        uint8 [size_px, size_px, 3], C-contiguous; with `pad` and `squash` the stored form itself.

    Raises:
        DataError: the stored form is smaller than the square.
    """
    _check_pixels(stored)
    check_stored(stored, geometry)
    return np.ascontiguousarray(_centre(stored, geometry.size_px, geometry.size_px))


def check_stored(stored: NDArray[np.uint8], geometry: Geometry) -> None:
    """Refuse a stored form that squares of this geometry cannot be cut from.

    Args:
        stored: uint8 [height, width, 3].
        geometry: what is wanted.

    Raises:
        DataError: it is smaller than the square.
    """
    height, width, size_px = *stored.shape[:2], geometry.size_px
    if min(height, width) < size_px:
        raise DataError(
            f"A stored image of {width} x {height} pixels cannot give {size_px} x {size_px}.",
            fix="use the geometry that the store was made with.",
        )


def _centre(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


def _divided(dividend: int, divisor: int) -> int:
    """The quotient, rounded half up; whole numbers, so that every machine agrees."""
    return (2 * dividend + divisor) // (2 * divisor)


def resized(pixels: NDArray[np.uint8], height: int, width: int, geometry: Geometry) -> NDArray[np.uint8]:
    """The image at another size, by the geometry's own filter; itself where it has that size already.

    Args:
        pixels: uint8 [h, w, 3].
        height: the height wanted, in pixels.
        width: the width wanted, in pixels.
        geometry: names the filter.

    Returns:
        uint8 [height, width, 3], C-contiguous.
    """
    if pixels.shape[:2] == (height, width):
        return np.ascontiguousarray(pixels)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    old_height, old_width = pixels.shape[:2]
    # Rows and columns are rounded to bytes in turn, and releases of Pillow differ in which come first. This is the
    # order of Pillow 13, which saves work; stated here, the pixels are the same with all of them.
    is_down_first = old_height - height > max(0, 2 * (old_width - width))
    for size in ((old_width, height) if is_down_first else (width, old_height), (width, height)):
        if image.size != size:
            # No reducing_gap: its box filter would make the result depend on the size by steps.
            image = image.resize(size, _FILTERS[geometry.interpolation], reducing_gap=None)
    return np.array(image)


def _check_pixels(pixels: NDArray[Any]) -> None:
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size:
        raise DataError(f"uint8 [height, width, 3] was expected; {pixels.dtype} {list(pixels.shape)} came.")
