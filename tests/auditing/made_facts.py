"""Facts and pairs for tests: by hand, or measured on pictures that are made here."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveal.auditing.duplicates import Pairs
from foveal.data.facts import MEASURES, Facts, measure, record

PHOTOGRAPH = {
    "brightness": 0.5, "contrast": 0.2, "entropy": 7.0, "num_values": 200, "top_two_share": 0.03, "dark_share": 0.01,
    "bright_share": 0.01, "sharpness": 0.3, "saturation": 0.2, "border_brightness": 0.5, "border_contrast": 0.15,
}  # fmt: skip


def made_facts(num_rows: int, *, seed: int = 0, **columns: Any) -> Facts:
    """Photographs of 640 x 480 px with a little spread in every measure, and the given columns."""
    rng = np.random.default_rng(seed)
    facts = Facts.unknown(num_rows)
    facts.is_known[:] = True
    facts.format[:] = "JPEG"
    facts.num_bytes[:] = 640 * 480 * rng.uniform(0.2, 0.4, num_rows)
    facts.width_px[:], facts.height_px[:] = 640, 480
    for place, name in enumerate(MEASURES):
        facts.measures[:, place] = PHOTOGRAPH[name] * rng.uniform(0.9, 1.1, num_rows)
    for name, values in columns.items():
        if name in MEASURES:
            facts.measures[:, MEASURES.index(name)] = values
        else:
            getattr(facts, name)[:] = values
    return facts


def measured(pictures: Sequence[NDArray[np.uint8]]) -> Facts:
    """What the decode pass would measure of some pictures."""
    facts = Facts.unknown(len(pictures))
    facts.fill(range(len(pictures)), [record(measure(each), each.shape[1], each.shape[0]) for each in pictures])
    facts.format[:], facts.num_bytes[:] = "PNG", [each.nbytes / 3 for each in pictures]
    return facts


def made_pairs(*pairs: tuple[int, int, float]) -> Pairs:
    """Pairs of rows with their similarity; 1 is the same bytes."""
    left, right = (np.array([each[place] for each in pairs], dtype=np.int64) for place in (0, 1))
    similarity = np.array([each[2] for each in pairs], dtype=np.float32)
    ones, no = np.ones(len(pairs), np.float32), np.zeros(len(pairs), np.bool_)
    return Pairs(left, right, similarity, similarity == 1.0, ones, ones * 0, no)
