"""The sketch: the few grey pixels of a picture that near duplicates are searched by."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SKETCH_SIDE_PX = 32
SKETCH_BYTES = SKETCH_SIDE_PX**2


def sketch(luma: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The square in the middle of a picture, scaled to 32 x 32 grey pixels.

    Whatever the search compares (turned, mirrored and zoomed discs of it) is computed from these later, so that what is
    kept stays the same when the search gets better.

    Args:
        luma: uint8 [height, width], 0..255.

    Returns:
        uint8 [SKETCH_BYTES], row by row.
    """
    return central_square(luma, SKETCH_SIDE_PX).ravel()


def luma(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The grey value of each pixel (ITU-R 601): uint8 [height, width] of uint8 [height, width, 3]."""
    return np.asarray(Image.fromarray(pixels).convert("L"))


def central_square(luma: NDArray[np.uint8], side_px: int) -> NDArray[np.uint8]:
    """The square in the middle of a picture, scaled to `side_px`: averaged where it shrinks, bicubic where it grows.

    Returns:
        uint8 [side_px, side_px].
    """
    height, width = luma.shape
    if height == width == side_px:
        return luma
    shorter = min(height, width)
    left, top = (width - shorter) // 2, (height - shorter) // 2
    method = Image.Resampling.BOX if shorter >= side_px else Image.Resampling.BICUBIC
    square = Image.fromarray(luma).resize((side_px, side_px), method, (left, top, left + shorter, top + shorter))
    return np.asarray(square)
