"""Corruptions: what goes wrong with pictures outside of the folder that a model was tested on.

The method is that of Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations" (2019): kinds of corruption, each at five strengths, put on the same images. The strengths are this
project's own. Theirs are numbers of pixels for pictures of 224 pixels; these are shares of the picture's own size or
range wherever there is one to take, so that they mean the same for a cell of 64 pixels and a retina of 512.

| corruption | what it does | strengths 1 to 5 |
|---|---|---|
| noise | white noise is added to each pixel and channel; its standard deviation as a share of 255 | `NOISE` |
| blur | Gaussian blur; its standard deviation as a share of the shorter side | `BLUR` |
| jpeg | written and read as JPEG; the quality | `JPEG` |
| darker | all values are multiplied | `DARKER` |
| brighter | the largest of red, green and blue is raised, hue and saturation stay; by a share of 255 | `BRIGHTER` |
| contrast | each channel is drawn towards its mean; the share of contrast that is left | `CONTRAST` |
| saturation | colours are drawn towards grey of the same luma; the share of colour that is left | `SATURATION` |
| resize | scaled down and up again; the share of the sides that is left in between | `RESIZE` |

The blocks of a JPEG have eight pixels in a small picture too, so `jpeg` alone weighs the more the smaller it is.
"""

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foveal.errors import ConfigError

NUM_STRENGTHS = 5

NOISE = (0.04, 0.08, 0.12, 0.18, 0.26)
BLUR = (0.005, 0.01, 0.015, 0.02, 0.03)
JPEG = (60, 40, 25, 15, 8)
DARKER = (0.8, 0.65, 0.5, 0.35, 0.2)
BRIGHTER = (0.1, 0.2, 0.3, 0.4, 0.5)
CONTRAST = (0.75, 0.5, 0.35, 0.2, 0.1)
SATURATION = (0.75, 0.5, 0.3, 0.15, 0.0)
RESIZE = (0.7, 0.5, 0.35, 0.25, 0.15)

CORRUPTIONS = ("noise", "blur", "jpeg", "darker", "brighter", "contrast", "saturation", "resize")
"""In the order in which they are shown; their places are part of the noise's seed, so new ones go to the end."""

_TOGETHER = {"all": CORRUPTIONS, "brightness": ("darker", "brighter")}
# ITU-R BT.601, as JPEG and Pillow have it.
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def corruptions_of(text: str) -> tuple[str, ...]:
    """Which corruptions a list with commas names, in the order of `CORRUPTIONS`, each once.

    Args:
        text: names of `CORRUPTIONS`, `brightness` for darker and brighter, or `all`.

    Raises:
        ConfigError: it names something else, or nothing.
    """
    asked = [part.strip().lower() for part in str(text).split(",")]
    unknown = [part for part in asked if part not in CORRUPTIONS and part not in _TOGETHER]
    if unknown:
        raise ConfigError(
            f"--corrupt {text}: there is no such corruption.",
            problems=[f"{part!r}" if part else "an empty name" for part in dict.fromkeys(unknown)],
            fix=f"choose from all, {', '.join(CORRUPTIONS)}, brightness (darker and brighter); commas between them.",
        )
    wanted = {name for part in asked for name in _TOGETHER.get(part, (part,))}
    return tuple(name for name in CORRUPTIONS if name in wanted)


def corrupt(pixels: NDArray[np.uint8], name: str, strength: int, *, row: int = 0) -> NDArray[np.uint8]:
    """A picture as it would be had something gone wrong with it.

    Args:
        pixels: uint8 [height, width, 3]; left as it is.
        name: one of `CORRUPTIONS`.
        strength: 1 to 5; 0 for none.
        row: the image's number; with the name and the strength it decides the noise, and nothing else does.

    Returns:
        uint8 [height, width, 3].

    Raises:
        ConfigError: there is no such corruption or strength.
    """
    if name not in CORRUPTIONS or not 0 <= strength <= NUM_STRENGTHS:
        raise ConfigError(
            f"Corruption {name!r} at strength {strength}: expected one of {', '.join(CORRUPTIONS)}, "
            f"and a strength from 0 to {NUM_STRENGTHS}."
        )
    if strength == 0:
        return pixels
    at = strength - 1
    if name == "noise":
        return _with_noise(pixels, NOISE[at], (row, CORRUPTIONS.index(name), strength))
    if name == "blur":
        return _blurred(pixels, BLUR[at] * min(pixels.shape[:2]))
    if name == "jpeg":
        return _through_jpeg(pixels, JPEG[at])
    if name == "darker":
        return _to_bytes(pixels * np.float32(DARKER[at]))
    if name == "brighter":
        return _brighter(pixels, BRIGHTER[at])
    if name == "contrast":
        mean = pixels.mean(axis=(0, 1), dtype=np.float64).astype(np.float32)
        return _to_bytes(mean + (pixels - mean) * np.float32(CONTRAST[at]))
    if name == "saturation":
        luma = (pixels @ _LUMA)[..., None]
        return _to_bytes(luma + (pixels - luma) * np.float32(SATURATION[at]))
    return _down_and_up(pixels, RESIZE[at])


def _to_bytes(values: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    rounded: NDArray[np.uint8] = np.rint(values).clip(0, 255).astype(np.uint8)
    return rounded


def _with_noise(pixels: NDArray[np.uint8], deviation: float, seed: Sequence[int]) -> NDArray[np.uint8]:
    draw = np.random.Generator(np.random.PCG64(np.random.SeedSequence(list(seed))))
    noise = draw.standard_normal(pixels.shape, dtype=np.float32)
    return _to_bytes(pixels + np.float32(255 * deviation) * noise)


def _blurred(pixels: NDArray[np.uint8], deviation_px: float) -> NDArray[np.uint8]:
    """Gaussian blur in two passes, the edge pixels repeated. Pillow's own is made of boxes, and coarse below 1 px."""
    reach = max(1, math.ceil(4 * deviation_px))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation_px) ** 2)
    weights = (weights / weights.sum()).astype(np.float32)
    values = pixels.astype(np.float32)
    for axis in (0, 1):
        ends = [(reach, reach) if each == axis else (0, 0) for each in range(3)]
        padded, length = np.pad(values, ends, mode="edge"), values.shape[axis]
        values = np.zeros_like(values)
        for place, weight in enumerate(weights):
            values += weight * padded.take(range(place, place + length), axis=axis)
    return _to_bytes(values)


def _through_jpeg(pixels: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, "JPEG", quality=quality, subsampling="4:2:0")
    stream.seek(0)
    with Image.open(stream, formats=("JPEG",)) as picture:
        return np.array(picture)


def _brighter(pixels: NDArray[np.uint8], share: float) -> NDArray[np.uint8]:
    """The value of HSV raised: black becomes grey, and what is bright already white or its pure colour."""
    value = pixels.max(axis=2, keepdims=True).astype(np.float32)
    raised = np.minimum(value + np.float32(255 * share), 255)
    return _to_bytes(np.where(value > 0, pixels * (raised / np.maximum(value, 1)), raised))


def _down_and_up(pixels: NDArray[np.uint8], share: float) -> NDArray[np.uint8]:
    height, width = pixels.shape[:2]
    small = (max(1, round(width * share)), max(1, round(height * share)))
    picture = Image.fromarray(np.ascontiguousarray(pixels)).resize(small, Image.Resampling.BICUBIC)
    return np.array(picture.resize((width, height), Image.Resampling.BICUBIC))
