"""What the store gives out: images and features as slices of memory-mapped shards."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foveal.errors import ArtifactError

PIXEL_SUFFIX, FEATURE_SUFFIX = ".rgb", ".f32"
_CELL_BYTES = {"": 0, PIXEL_SUFFIX: 3, FEATURE_SUFFIX: 4}
"""Bytes of one cell of what a shard holds, by the end of its name: red, green and blue, or one float32."""


class Place(NamedTuple):
    """Where one stored image lies: bytes `start` onwards of a shard. Features are a row of height 1.

    The shard is empty where no pixels are kept: with a `reason` where the box was unusable.
    """

    shard: str
    start: int
    height: int
    width: int
    reason: str | None = None

    @property
    def end(self) -> int:
        """The byte after its last."""
        return self.start + _CELL_BYTES[self.shard[-4:]] * self.height * self.width


class StoredPixels:
    """Stored images by row number, as slices of memory maps.

    Raises:
        ArtifactError: a shard is gone or shorter than it was.
    """

    def __init__(self, folder: Path, places: Sequence[Place | None]) -> None:
        ends = _ends(places)
        self._maps = [_mapped(folder / shard, end) for shard, end in ends.items()]
        number = {shard: i for i, shard in enumerate(ends)}
        self._places = [
            (number[place.shard], place.start, place.height, place.width) if place and place.shard else None
            for place in places
        ]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, row: int) -> NDArray[np.uint8]:
        place = self._places[row]
        if place is None:
            raise IndexError(f"row {row} is not in the store")
        shard, start, height, width = place
        return self._maps[shard][start : start + height * width * 3].reshape(height, width, 3)


class StoredFeatures:
    """Stored features by row number: each shard is a matrix with one row of features for each of its images.

    Raises:
        ArtifactError: a shard is gone or shorter than it was.
    """

    def __init__(self, folder: Path, places: Sequence[Place | None]) -> None:
        ends = _ends(places)
        widths = {place.width for place in places if place and place.shard}
        if len(widths) > 1:
            raise ValueError(f"features of one form are of one length, and these have {sorted(widths)}")
        self.num_features = widths.pop() if widths else 0
        row_bytes = 4 * self.num_features
        self._matrices = [
            _mapped(folder / shard, end)[: end - end % row_bytes].view(np.float32).reshape(-1, self.num_features)
            for shard, end in ends.items()
        ]
        number = {shard: i for i, shard in enumerate(ends)}
        found = [
            (number[place.shard], place.start // row_bytes) if place and place.shard else (-1, 0) for place in places
        ]
        self._shards, self._numbers = np.array(found, dtype=np.int64).reshape(-1, 2).T

    def __len__(self) -> int:
        return len(self._shards)

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The features of some rows, in their order: float32 [n, features].

        Raises:
            IndexError: there are none of a row.
        """
        shards, numbers = self._shards[rows], self._numbers[rows]
        if len(rows) and shards.min() < 0:
            raise IndexError(f"row {rows[shards < 0][0]} has no features in the store")
        taken = np.empty((len(rows), self.num_features), dtype=np.float32)
        for shard in np.unique(shards):
            is_here = shards == shard
            taken[is_here] = self._matrices[shard][numbers[is_here]]
        return taken


def _ends(places: Sequence[Place | None]) -> dict[str, int]:
    """How far each shard must reach."""
    ends: dict[str, int] = {}
    for place in places:
        if place and place.shard:
            ends[place.shard] = max(ends.get(place.shard, 0), place.end)
    return ends


def _mapped(file: Path, end: int) -> NDArray[np.uint8]:
    if file_size(file) < end:
        raise ArtifactError(
            f"{file} was deleted or cut off while it was being used.",
            fix="start again: what is missing is made anew. If it happens again, raise data.store_cap_gib.",
        )
    return np.memmap(file, dtype=np.uint8, mode="r").view(np.ndarray)


def file_size(file: Path) -> int:
    """Bytes of a file; -1 where there is none."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return -1
