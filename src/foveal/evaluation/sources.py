"""The pixels that an evaluation runs on: each file decoded once for every form that a classifier's members want."""

from collections.abc import Sequence
from dataclasses import dataclass

from foveal.data.config import DataConfig
from foveal.data.ingest import Ingested, Recipe, ingest
from foveal.data.manifest import Manifest
from foveal.data.store import PixelSource
from foveal.inference import Predictor
from foveal.machine import num_threads
from foveal.progress import Progress
from foveal.training.resolve import store_bytes

ASSUMED_ASPECT = 1.5
"""Longer by shorter side, for a guess at the size of data that nobody has looked at yet."""


@dataclass(frozen=True)
class Stored:
    """Images ready for a classifier.

    Attributes:
        manifest: the same rows, decoded, with the unusable ones quarantined.
        sources: stored forms by row number, one for each member of the classifier.
    """

    manifest: Manifest
    sources: Sequence[PixelSource]


def stored_for(predictor: Predictor, manifest: Manifest, config: DataConfig, progress: Progress) -> Stored:
    """The decode pass as a classifier wants it, whatever the configuration says of sizes.

    Args:
        predictor: one network or several.
        manifest: which images.
        config: whether pixels are kept, how many threads decode.
        progress: where to show it.
    """
    made: dict[Recipe, Ingested] = {}
    for member in predictor.members:
        recipe = member.recipe
        if recipe not in made:
            cap_bytes = int(config.store_cap_gib * (1 << 30))
            fits = store_bytes(len(manifest), ASSUMED_ASPECT, recipe.geometry.store_px) <= cap_bytes
            made[recipe] = ingest(
                manifest,
                recipe,
                keep_pixels=config.store == "on" or (config.store == "auto" and fits),
                cap_bytes=cap_bytes,
                num_workers=num_threads(config.num_workers),
                progress=progress,
            )
    first = made[predictor.members[0].recipe]
    return Stored(first.manifest, [made[member.recipe].source for member in predictor.members])
