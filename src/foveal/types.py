"""Small types that every layer may speak of."""

from typing import Literal

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

Box = tuple[int, int, int, int]
"""xmin, ymin, xmax, ymax in pixels of the upright image; xmax and ymax are exclusive."""
