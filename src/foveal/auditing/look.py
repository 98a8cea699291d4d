"""One look at all pictures: the decode pass, and which of them are copies of each other."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from foveal.auditing.duplicates import Pairs, exact_pairs, find_duplicates, group_copies
from foveal.auditing.remembered import remembered
from foveal.data.config import DataConfig
from foveal.data.ingest import Ingested, Recipe, ingest
from foveal.data.manifest import Manifest
from foveal.machine import num_threads
from foveal.pixels.policy import Geometry, PixelPolicy
from foveal.progress import Progress

_SIDE_PX = 64
"""Side to which pictures are reduced where two have to be laid over each other."""


@dataclass(frozen=True)
class Looked:
    """What the pictures are.

    Attributes:
        ingested: the decode pass.
        pairs: copies of each other.
        clusters: int64 [rows], which rows are copies of each other; -1 alone.
    """

    ingested: Ingested
    pairs: Pairs
    clusters: NDArray[np.int64]

    def without_sketches(self) -> "Looked":
        """The same when all searches are over; the sketches are most of what is known, a GiB for a million pictures."""
        return replace(self, ingested=replace(self.ingested, facts=self.ingested.facts.without_sketches()))


def look(manifest: Manifest, config: DataConfig, *, near_duplicates: bool, progress: Progress) -> Looked:
    """Decode what is not yet known, and search for copies. No pixels are kept: what was learnt of them is.

    Args:
        manifest: rows to fill.
        config: the background, the margin of boxes, and the number of workers.
        near_duplicates: whether pictures are compared, or only bytes.
        progress: where to show it.
    """
    recipe = Recipe(
        Geometry(size_px=_SIDE_PX, store_px=_SIDE_PX), PixelPolicy(background=config.background), config.box_margin
    )
    workers = num_threads(config.num_workers)
    ingested = ingest(manifest, recipe, keep_pixels=False, cap_bytes=0, num_workers=workers, progress=progress)
    return with_copies(ingested, near_duplicates=near_duplicates, num_workers=workers, progress=progress)


def with_copies(ingested: Ingested, *, near_duplicates: bool, num_workers: int, progress: Progress) -> Looked:
    """Search for copies among what a decode pass has found; what was found before is remembered."""
    if near_duplicates:
        pairs = remembered(
            ingested.manifest,
            ingested.facts,
            lambda: find_duplicates(
                ingested.manifest, ingested.facts, ingested.source, num_workers=num_workers, progress=progress
            ),
        )
    else:
        pairs = exact_pairs(ingested.manifest)
    return Looked(ingested, pairs, group_copies(len(ingested.manifest), pairs))
