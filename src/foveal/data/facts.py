"""What one look at a sample's pixels teaches beyond its size: brightness, sharpness, colours, border, hashes."""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foveal.data.sketch import SKETCH_BYTES, SKETCH_SIDE_PX, sketch

FACTS_VERSION = 1
"""To be raised with any change to a measure, the hash or the sketch: what another version made is made anew."""

MEASURES: tuple[str, ...] = (
    "brightness",
    "contrast",
    "entropy",
    "num_values",
    "top_two_share",
    "dark_share",
    "bright_share",
    "sharpness",
    "saturation",
    "border_brightness",
    "border_contrast",
)
"""What is measured of each sample:

- brightness: mean luma, 0..1
- contrast: standard deviation of the luma, 0..0.5
- entropy: of the histogram of 256 lumas, 0..8 bits
- num_values: distinct lumas, 1..256
- top_two_share: share of the pixels that have one of the two most frequent lumas, 0..1
- dark_share, bright_share: share of the pixels with a luma of at most 12, or at least 243, of 255
- sharpness: standard deviation of the Laplacian of the luma over that of the luma, at a shorter side of at most 256 px;
  0 where the picture is flat or narrower than 3 px
- saturation: mean over the pixels of (largest - smallest of red, green, blue) / 255, at a shorter side of 32 to 63 px;
  below 0.01 the picture is grey
- border_brightness, border_contrast: mean and standard deviation of the luma of the outermost ring, 0..1
"""

REDUCED_SIDE_PX = 256
REDUCED_PIXELS = 1 << 18
"""Largest shorter side, and largest number of pixels, of the picture that sharpness and sketch are taken from."""

_DARKEST, _BRIGHTEST = 12, 243
_GREY_SIDE_PX = 32
_SMALL_SIDE_PX = 64
"""Below this, nothing of a picture is reduced before it is measured."""
_LEVELS = np.arange(256) / 255.0
# What is summed over the histogram: level, its square, whether it is dark, whether bright.
_TABLE = np.stack(
    [_LEVELS, _LEVELS**2, np.arange(256) <= _DARKEST, np.arange(256) >= _BRIGHTEST], axis=1, dtype=np.float64
)

_HASH_SIDE, _HASHED_SIDE_PX = 8, 32
# The first rows of the DCT-II as scipy scales it: 2 cos(pi k (2 n + 1) / 2 N).
_COSINES = 2.0 * np.cos(
    np.pi * np.arange(_HASH_SIDE)[:, None] * (2 * np.arange(_HASHED_SIDE_PX) + 1) / (2 * _HASHED_SIDE_PX)
)
# Coefficients that are zero, as of flat and of symmetric pictures, come out as noise of 1e-11; true ones are whole
# numbers times cosines.
_NOISE_DIGITS = 6

RECORD = np.dtype(
    [
        ("width_px", "<u4"),
        ("height_px", "<u4"),
        ("phash", "<u8"),
        ("measures", "<f4", (len(MEASURES),)),
        ("sketch", "u1", (SKETCH_BYTES,)),
    ]
)
"""The facts of one sample as they are kept: about a kilobyte."""
_RECORD_HEAD = struct.Struct("<IIQ")


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured of one sample.

    Attributes:
        values: float32 [measures], in the order of `MEASURES`.
        phash: the perceptual hash, 64 bits.
        sketch: uint8 [SKETCH_BYTES].
    """

    values: NDArray[np.float32]
    phash: int
    sketch: NDArray[np.uint8]


@dataclass(frozen=True)
class Facts:
    """The facts of every row of a manifest, by column.

    Attributes:
        is_known: bool [rows], whether the sample could be used, so that the rest is there.
        format: object [rows], `JPEG`, `PNG`, ... of the file, or None.
        notes: object [rows], what the pixel policy did that is not a matter of course; "" where nothing.
        num_bytes: float64 [rows], of the file; NaN where unknown.
        width_px, height_px: float64 [rows], of the sample: where there is a box, of what was cut out of the image for
            it; NaN where unknown.
        measures: float32 [rows, measures], in the order of `MEASURES`; NaN where unknown.
        phash: uint64 [rows], the perceptual hash (`phash`); 0 where unknown.
        sketch: uint8 [rows, SKETCH_BYTES], what near duplicates are searched by (`sketch`); 0 where unknown.
    """

    is_known: NDArray[np.bool_]
    format: NDArray[np.object_]
    notes: NDArray[np.object_]
    num_bytes: NDArray[np.float64]
    width_px: NDArray[np.float64]
    height_px: NDArray[np.float64]
    measures: NDArray[np.float32]
    phash: NDArray[np.uint64]
    sketch: NDArray[np.uint8]

    def measure(self, name: str) -> NDArray[np.float32]:
        """One measure, float32 [rows]; NaN where unknown."""
        column: NDArray[np.float32] = self.measures[:, MEASURES.index(name)]
        return column

    @classmethod
    def unknown(cls, num_rows: int) -> "Facts":
        """Facts of rows of which nothing is known yet, to be filled in."""
        return cls(
            is_known=np.zeros(num_rows, np.bool_),
            format=np.full(num_rows, None, object),
            notes=np.full(num_rows, "", object),
            num_bytes=np.full(num_rows, np.nan),
            width_px=np.full(num_rows, np.nan),
            height_px=np.full(num_rows, np.nan),
            measures=np.full((num_rows, len(MEASURES)), np.nan, np.float32),
            phash=np.zeros(num_rows, np.uint64),
            sketch=np.zeros((num_rows, SKETCH_BYTES), np.uint8),
        )

    def fill(self, rows: Sequence[int], records: Sequence[bytes]) -> None:
        """Fill in what was kept of some rows."""
        found, some = np.frombuffer(b"".join(records), RECORD), np.array(rows, np.int64)
        self.is_known[some] = True
        for name in RECORD.names or ():
            getattr(self, name)[some] = found[name]

    def without_sketches(self) -> "Facts":
        """The same without the kibibyte a row that only the search for copies looks at."""
        none = np.broadcast_to(np.zeros((1, SKETCH_BYTES), np.uint8), (len(self.is_known), SKETCH_BYTES))
        return replace(self, sketch=none)

    def phash_texts(self) -> NDArray[np.object_]:
        """The perceptual hashes as a manifest holds them, object [rows]: 16 hexadecimal digits; None where unknown."""
        digits = self.phash.astype(">u8").tobytes().hex()
        texts = np.full(len(self.phash), None, object)
        for row in np.flatnonzero(self.is_known).tolist():
            texts[row] = digits[16 * row : 16 * row + 16]
        return texts


def record(measured: Measured, width_px: int, height_px: int) -> bytes:
    """The facts of a sample as they are kept; one of `RECORD`."""
    head = _RECORD_HEAD.pack(width_px, height_px, measured.phash)
    return head + measured.values.astype("<f4", copy=False).tobytes() + measured.sketch.tobytes()


def measure(pixels: NDArray[np.uint8]) -> Measured:
    """Measure one sample.

    Args:
        pixels: uint8 [height, width, 3], sRGB, upright.
    """
    return measured([look(pixels)])[0]


class Look(NamedTuple):
    """What has to be taken from each picture by itself; `measured` makes the rest of it for many at once.

    Attributes:
        levels: how many pixels have each of the 256 lumas.
        small: uint8 [32, 32], the luma that is hashed.
        sketch: uint8 [SKETCH_BYTES].
        edges: standard deviation of the Laplacian, at a shorter side of at most `REDUCED_SIDE_PX`.
        spread: that of the luma there; negative where the picture is not larger anyway.
        saturation, border_brightness, border_contrast: as in `MEASURES`.
    """

    levels: list[int]
    small: NDArray[np.uint8]
    sketch: NDArray[np.uint8]
    edges: float
    spread: float
    saturation: float
    border_brightness: float
    border_contrast: float


def look(pixels: NDArray[np.uint8]) -> Look:
    """Look at one sample: uint8 [height, width, 3], sRGB, upright."""
    image = Image.fromarray(pixels)
    grey = image.convert("L")
    luma = np.asarray(grey)
    reduced = _reduced(grey, luma)
    size = (_HASHED_SIDE_PX, _HASHED_SIDE_PX)
    small = luma if grey.size == size else np.asarray(grey.resize(size, Image.Resampling.LANCZOS))
    spread = -1.0 if reduced is luma else _spread(reduced.astype(np.float32))
    saturation = _saturation(_coarse(image, pixels))
    return Look(grey.histogram(), small, sketch(reduced), _edges(reduced), spread, saturation, *_of_border(luma))


def glance(pixels: NDArray[np.uint8]) -> Look | NDArray[np.uint8]:
    """A look at a sample; or the sample itself where it is so small that many are better looked at together."""
    return pixels if max(pixels.shape[:2]) < _SMALL_SIDE_PX else look(pixels)


def measured(looks: Sequence[Look | NDArray[np.uint8]]) -> list[Measured]:
    """What was looked at, measured; of many small pictures together in a fraction of the time.

    Args:
        looks: one by one, or small samples, uint8 [height, width, 3], with sides of less than 64 pixels.
    """
    # By size; all that were looked at one by one have no more to do with theirs.
    places: dict[tuple[int, ...], list[int]] = {}
    for place, one in enumerate(looks):
        places.setdefault(() if isinstance(one, Look) else one.shape, []).append(place)
    result: list[Measured] = []
    for shape, some in places.items():
        alike: list[Any] = [looks[i] for i in some]
        result += _measured(*(_together(np.stack(alike)) if shape else _stacked(alike)))
    order = [place for some in places.values() for place in some]
    return [one for _, one in sorted(zip(order, result, strict=True), key=lambda each: each[0])]


_Parts = tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float64]]
"""The fields of many looks: levels, int64 [n, 256]; small and sketch, uint8 [n, ...]; the rest, float64 [n, 5]."""


def _stacked(looks: Sequence[Any]) -> _Parts:
    return (
        np.array([one.levels for one in looks], np.int64),
        np.array([one.small for one in looks]),
        np.array([one.sketch for one in looks]),
        np.array([one[3:] for one in looks]),
    )


def _together(pixels: NDArray[np.uint8]) -> _Parts:
    """What `look` gives of each of many small pictures of one size, uint8 [n, height, width, 3], bit for bit."""
    num, height, width, _ = pixels.shape
    # One below the other, they are one picture.
    luma = np.asarray(Image.fromarray(pixels.reshape(num * height, width, 3)).convert("L")).reshape(num, height, width)
    flat = luma.reshape(num, -1)
    levels = np.bincount((flat + (np.arange(num) * 256)[:, None]).ravel(), minlength=256 * num).reshape(num, 256)
    if height == width == _HASHED_SIDE_PX == SKETCH_SIDE_PX:
        small, sketches = luma, flat
    else:
        size = (_HASHED_SIDE_PX, _HASHED_SIDE_PX)
        small = np.array([Image.fromarray(one).resize(size, Image.Resampling.LANCZOS) for one in luma])
        sketches = np.array([sketch(one) for one in luma])
    rest = np.empty((num, 5))
    rest[:, 0] = _spreads(_laplacian(luma).reshape(num, -1)) if min(height, width) >= 3 else 0.0
    rest[:, 1] = -1.0
    rest[:, 2] = _colourfulness(pixels)
    ring = _ring(luma)
    rest[:, 3] = ring.sum(axis=1, dtype=np.int64) / (255.0 * ring.shape[1])
    rest[:, 4] = _spreads(ring.astype(np.float32)) / 255.0
    return levels, small, sketches, rest


def _measured(
    levels: NDArray[np.int64], small: NDArray[np.uint8], sketches: NDArray[np.uint8], rest: NDArray[np.float64]
) -> list[Measured]:
    values = np.empty((len(levels), len(MEASURES)))
    values[:, :7] = _of_levels(levels)
    spread = np.where(rest[:, 1] < 0.0, 255.0 * values[:, 1], rest[:, 1])
    values[:, 7] = np.divide(rest[:, 0], spread, out=np.zeros(len(levels)), where=spread > 0.0)
    values[:, 8:] = rest[:, 2:]
    hashes = _hashes(small).tolist()
    narrow = values.astype(np.float32)
    return [Measured(narrow[i], hashes[i], sketches[i]) for i in range(len(levels))]


def _of_levels(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """The first seven measures, float64 [pictures, 7], of histograms, int64 [pictures, 256]."""
    num_pixels = counts.sum(axis=1)
    brightness, square, dark, bright = (counts @ _TABLE / num_pixels[:, None]).T
    num_values = np.count_nonzero(counts, axis=1)
    contrast = np.sqrt(np.maximum(square - brightness**2, 0.0)) * (num_values > 1)
    entropy = np.log2(num_pixels) - (counts * np.log2(np.maximum(counts, 1))).sum(axis=1) / num_pixels
    top_two = np.partition(counts, 254, axis=1)[:, 254:].sum(axis=1) / num_pixels
    return np.stack([brightness, contrast, np.maximum(entropy, 0.0), num_values, top_two, dark, bright], axis=1)


def _hashes(small: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Perceptual hashes of luma pictures, uint8 [pictures, 32, 32]; the first coefficient's bit is the highest.

    Source: N. Krawetz, "Looks Like It" (The Hacker Factor Blog, 2011), as the library imagehash computes it: the lowest
    8 x 8 coefficients of the cosine transform at 32 x 32 pixels, each against their median. Written as
    `f"{phash:016x}"` it is what `str(imagehash.phash(image))` gives.
    """
    low = (_COSINES @ small @ _COSINES.T).round(_NOISE_DIGITS).reshape(len(small), -1)
    middle = np.partition(low, (31, 32), axis=1)[:, 31:33]
    bits = low > middle.mean(axis=1, keepdims=True)
    hashes: NDArray[np.uint64] = np.packbits(bits, axis=1).view(">u8")[:, 0].astype(np.uint64)
    return hashes


def _reduced(grey: Image.Image, luma: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The luma at a shorter side of at most `REDUCED_SIDE_PX`."""
    height, width = luma.shape
    scale = max(min(width, height) / REDUCED_SIDE_PX, math.sqrt(width * height / REDUCED_PIXELS))
    if scale <= 1.0:
        return luma
    size = max(1, int(width / scale)), max(1, int(height / scale))
    return np.asarray(grey.resize(size, Image.Resampling.BOX, reducing_gap=2.0))


def _coarse(image: Image.Image, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The colours at a shorter side of 32 to 63 px."""
    factor = min(image.size) // _GREY_SIDE_PX
    return np.asarray(image.reduce(factor)) if factor > 1 else pixels


def _edges(luma: NDArray[np.uint8]) -> float:
    """The standard deviation of the Laplacian."""
    return _spread(_laplacian(luma[None])[0]) if min(luma.shape) >= 3 else 0.0


def _laplacian(luma: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Of each of uint8 [n, height, width], without the outermost ring."""
    values = luma.astype(np.float32)
    edges = values[:, 1:-1, 1:-1] * np.float32(-4.0)
    edges += values[:, :-2, 1:-1]
    edges += values[:, 2:, 1:-1]
    edges += values[:, 1:-1, :-2]
    edges += values[:, 1:-1, 2:]
    return edges


def _spread(values: NDArray[np.float32]) -> float:
    """The standard deviation."""
    return float(_spreads(values.reshape(1, -1))[0])


def _spreads(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """The standard deviation of each row."""
    num, size = values.shape
    means = (np.add.reduce(values, axis=1).astype(np.float64) / size).astype(np.float32)
    rest = values - means[:, None]
    # Row by row, so that one has the same sum among many as alone.
    squares = np.matmul(rest[:, None, :], rest[:, :, None]).reshape(num)
    result: NDArray[np.float64] = np.sqrt(squares.astype(np.float64) / size)
    return result


def _saturation(pixels: NDArray[np.uint8]) -> float:
    return float(_colourfulness(pixels[None])[0])


def _colourfulness(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Largest less smallest of the three colours, the mean of each of uint8 [n, height, width, 3], 0..1."""
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    largest, smallest = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    sums = (largest - smallest).reshape(len(pixels), -1).sum(axis=1, dtype=np.int64)
    result: NDArray[np.float64] = sums / (255.0 * largest[0].size)
    return result


def _of_border(luma: NDArray[np.uint8]) -> tuple[float, float]:
    ring = _ring(luma[None])[0]
    return int(ring.sum()) / (255.0 * ring.size), _spread(ring.astype(np.float32)) / 255.0


def _ring(luma: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The outermost pixels of each of uint8 [n, height, width]."""
    parts = [luma[:, 0], luma[:, 1:-1, 0]]
    if luma.shape[1] > 1:
        parts.append(luma[:, -1])
    if luma.shape[2] > 1:
        parts.append(luma[:, 1:-1, -1])
    return np.concatenate(parts, axis=1)
