"""Heat laid over a picture, for people to look at."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foveal.explaining.explanation import Explanation, MemberMap
from foveal.extras import require

LARGEST_OPACITY = 0.72
"""Of the heat over the picture, where it is hottest; where it is cold, the picture is as it was."""
UNSEEN_LIGHT = 0.35
"""How much light is left to the part of the picture that the network never saw."""


def overlay(explanation: Explanation, member: MemberMap | None = None) -> NDArray[np.uint8]:
    """The picture with its heat, the part that the network never saw dimmed.

    The colours are matplotlib's inferno, which is even in lightness and can be told apart with any colour vision.

    Args:
        explanation: of an image that did not fail.
        member: the network whose map to show; the mean of all, if None.

    Returns:
        uint8 [h, w, 3], of the size of `explanation.picture`.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    picture = explanation.picture
    drawn = (picture.shape[0], picture.shape[1])
    heat = explanation.small_map if member is None else member.placed(explanation.size, drawn)
    light = np.where(_is_seen(explanation, member, drawn), 1.0, UNSEEN_LIGHT).astype(np.float32)[..., None]
    opacity = (LARGEST_OPACITY * heat)[..., None]
    mixed = (1.0 - opacity) * light * picture.astype(np.float32) + opacity * _colours(heat)
    return np.asarray(np.clip(mixed + 0.5, 0.0, 255.0), dtype=np.uint8)


def squared(pixels: NDArray[np.uint8], side_px: int) -> NDArray[np.uint8]:
    """A picture in the middle of a white square: uint8 [side_px, side_px, 3].

    Args:
        pixels: uint8 [h, w, 3].
        side_px: side of the square.
    """
    picture = Image.fromarray(pixels)
    scale = side_px / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)
    sheet = Image.new("RGB", (side_px, side_px), "white")
    sheet.paste(picture, ((side_px - size[0]) // 2, (side_px - size[1]) // 2))
    return np.asarray(sheet)


def _colours(heat: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 [h, w, 3], 0..255."""
    matplotlib = require("matplotlib", extra="train", purpose="colour heatmaps")
    return np.asarray(matplotlib.colormaps["inferno"](heat)[..., :3] * 255.0, dtype=np.float32)


def _is_seen(explanation: Explanation, member: MemberMap | None, drawn: tuple[int, int]) -> NDArray[np.bool_]:
    left, top, right, bottom = explanation.seen if member is None else member.placement.picture
    y = (np.arange(drawn[0]) + 0.5) * (explanation.size[0] / drawn[0])
    x = (np.arange(drawn[1]) + 0.5) * (explanation.size[1] / drawn[1])
    return ((y >= top) & (y <= bottom))[:, None] & ((x >= left) & (x <= right))[None, :]
