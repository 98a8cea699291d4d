"""A bounded part of the data for the checks before a training: some rows, decoded once, as squares in memory."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foveal.data.ingest import Recipe, ingest
from foveal.data.manifest import Manifest
from foveal.data.split import siblings, split
from foveal.errors import DataError
from foveal.pixels.policy import PixelPolicy, to_square
from foveal.progress import Progress
from foveal.training.config import ResolvedConfig
from foveal.training.resolve import geometry_of
from foveal.types import SPLITS

MOST_TRAIN, MOST_VAL = 1_000, 300
MOST_BYTES = 256 << 20
LEAST_ROWS = 64

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class CheckData:
    """Images to try a set-up on; those of training come first.

    Attributes:
        images: uint8 [n, 3, side, side], 0..255, the squares that the model sees.
        labels: int64 [n], class numbers.
        num_train: how many of them are for training; the others validate.
        class_names: all classes, in the order of their numbers.
        copies: int64 [c], places of validation images whose content is also among the training images here.
    """

    images: NDArray[np.uint8]
    labels: Integers
    num_train: int
    class_names: tuple[str, ...]
    copies: Integers

    @property
    def train(self) -> Integers:
        """Places of the training images, int64."""
        return np.arange(self.num_train)

    @property
    def val(self) -> Integers:
        """Places of the validation images, int64."""
        return np.arange(self.num_train, len(self.labels))


def read_check_data(manifest: Manifest, config: ResolvedConfig, progress: Progress) -> CheckData:
    """Draw some rows of train and val, and decode these and no others.

    Rows are drawn in proportion to the classes, at most 1,000 and 300, fewer where images are large. Where DATA brings
    no split, copies of training images are left out of validation, since the training puts them together.

    Args:
        manifest: what was found; nothing needs to be decoded yet.
        config: for the square, the split and the store.
        progress: where to show the decoding.

    Raises:
        DataError: too few images can be read.
    """
    is_given = (manifest.split_codes()[manifest.usable()] == 1).any()
    drawn = split(
        manifest, val_fraction=config.data.val_fraction, test_fraction=config.data.test_fraction, seed=config.seed
    )
    geometry = geometry_of(config)
    share = min(1.0, MOST_BYTES / (3 * geometry.size_px**2) / (MOST_TRAIN + MOST_VAL))
    labels, most = drawn.label_ids(), {"train": MOST_TRAIN, "val": MOST_VAL}
    parts = [
        _drawn(drawn.of_split(name), labels, max(LEAST_ROWS, int(share * most[name])), config.seed)
        for name in SPLITS
        if name in most
    ]
    some = drawn.take(np.concatenate(parts))
    ingested = ingest(
        some,
        Recipe(geometry, PixelPolicy(background=config.data.background), config.data.box_margin),
        keep_pixels=config.data.store == "on",
        cap_bytes=int(config.data.store_cap_gib * (1 << 30)),
        num_workers=config.data.num_workers,
        progress=progress,
    )
    some = ingested.manifest
    rows = some.usable()
    is_copy = _copies(some, rows, some.split_codes()[rows] == 0)
    if not is_given:
        rows, is_copy = rows[~is_copy], is_copy[~is_copy]
    is_train = some.split_codes()[rows] == 0
    if is_train.sum() < 2 or not (~is_train).any():
        raise DataError(
            f"Of {len(some)} images that were drawn for the checks, {int(is_train.sum())} of train and "
            f"{int((~is_train).sum())} of val can be read.",
            fix="foveal audit DATA says which files are broken.",
        )
    images = np.stack([to_square(ingested.source[row], geometry) for row in rows.tolist()])
    return CheckData(
        images=np.ascontiguousarray(images.transpose(0, 3, 1, 2)),
        labels=some.label_ids()[rows],
        num_train=int(is_train.sum()),
        class_names=some.class_names,
        copies=np.flatnonzero(is_copy),
    )


def _drawn(rows: Integers, labels: Integers, most: int, seed: int) -> Integers:
    """So many of the rows, in proportion to their classes."""
    if len(rows) <= most:
        return rows
    order = np.random.default_rng(seed).permutation(rows)
    order = order[np.argsort(labels[order], kind="stable")]
    return np.sort(order[(np.arange(most) * len(order)) // most])


def _copies(manifest: Manifest, rows: Integers, is_train: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which of the rows validate and are a copy of one that trains: the same bytes, the same photograph or group."""
    component = siblings(manifest)[rows]
    return ~is_train & np.isin(component, component[is_train])
