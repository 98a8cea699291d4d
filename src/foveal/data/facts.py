"""What one look at a sample's pixels teaches beyond its size: brightness, sharpness, colours, border, hashes."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
- sharpness: standard deviation of the Laplacian of the luma over that of the luma, at a shorter side of at most 256 px
- saturation: mean over the pixels of (largest - smallest of red, green, blue) / 255, at a shorter side of 32 px; below
  0.01 the picture is grey
- border_brightness, border_contrast: mean and standard deviation of the luma of the outermost ring, 0..1
"""


@dataclass(frozen=True)
class Facts:
    """The facts of every row of a manifest, by column.

    Attributes:
        is_known: bool [rows], whether the sample could be used, so that the rest is there.
        format: object [rows], `JPEG`, `PNG`, ... of the file, or None.
        notes: object [rows], what the pixel policy did that is not a matter of course; "" where nothing.
        num_bytes: float64 [rows], of the file; NaN where unknown.
        width_px, height_px: float64 [rows], of the sample: of the box where there is one; NaN where unknown.
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
