"""Folders of splits full of pictures like photographs: what an audit is run on, where no two are alike by chance."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from textured import textured


def write_pile(folder: Path, num_per_class: Mapping[str, int], classes: Sequence[str], *, side_px: int = 64) -> Path:
    """Write `folder/SPLIT/CLASS/N.png` for so many a class in each split; every picture is another."""
    rng = np.random.default_rng(0)
    for split, num in num_per_class.items():
        for name in classes:
            (folder / split / name).mkdir(parents=True)
            for number in range(num):
                textured(rng, side_px).save(folder / split / name / f"{number}.png")
    return folder
