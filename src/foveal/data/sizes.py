"""How large the samples are, from a quick look."""

from dataclasses import dataclass

import numpy as np

from foveal.data.manifest import Manifest
from foveal.pixels.policy import ImageRejectedError, decode

NUM_PEEKS = 96


@dataclass(frozen=True)
class Sizes:
    """Medians over the boxes, or over a sample of the images."""

    shorter_side_px: int
    aspect: float


def peek_sizes(manifest: Manifest) -> Sizes:
    """How large the samples are: of boxes where there are boxes, else of a sample spread over the files."""
    rows = manifest.usable()
    boxes = manifest.boxes()
    sides = [(box[2] - box[0], box[3] - box[1]) for row in rows.tolist() if (box := boxes[row]) is not None]
    if not sides and len(rows):
        paths = manifest.absolute_paths()
        for row in rows[np.linspace(0, len(rows) - 1, min(NUM_PEEKS, len(rows))).astype(np.int64)].tolist():
            try:
                height, width = decode(paths[row]).pixels.shape[:2]
            except (ImageRejectedError, OSError):
                continue  # the decode pass will quarantine it with its reason
            sides.append((width, height))
    if not sides:
        return Sizes(shorter_side_px=224, aspect=1.0)
    shorter = [max(1, min(side)) for side in sides]
    aspects = [max(side) / max(1, min(side)) for side in sides]
    return Sizes(int(np.median(shorter)), float(np.median(aspects)))
