"""The data of an extension: what a model was trained on and what is new, as one manifest with one split.

The old splits stay as they are, so that before and after are measured on the same images. What is new is shared out
around them, and nothing new that belongs together with an old image lies in another split than it.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foveal.data.class_names import shortened
from foveal.data.manifest import Manifest, sample_ids
from foveal.data.split import siblings, split
from foveal.data.subset import draw_subset
from foveal.errors import DataError
from foveal.extras import require
from foveal.files import natural_key
from foveal.types import SPLITS, Box

Bools = NDArray[np.bool_]
Integers = NDArray[np.int64]

_NONE = len(SPLITS)


@dataclass(frozen=True)
class Joined:
    """Old and new samples in one table.

    Attributes:
        manifest: the old rows first, then the new ones.
        num_old: how many are old.
        notes: sentences about what was left out.
    """

    manifest: Manifest
    num_old: int
    notes: tuple[str, ...] = ()

    @property
    def is_old(self) -> Bools:
        """Bool [rows]."""
        return np.arange(len(self.manifest)) < self.num_old


def join(old: Manifest, new: Manifest) -> Joined:
    """Put two manifests into one, below the deepest folder that holds the images of both.

    A sample that both name, the same part of the same file, is counted once, as an old one.

    Raises:
        DataError: both name a sample, and its class differs; or `new` has no class that `old` lacks.
    """
    added = [name for name in new.class_names if name not in old.class_names]
    if not added:
        raise DataError(
            f"The new data has no class that the model does not know: {shortened(new.class_names)}.",
            fix="to train on with more images of known classes: foveal train DATA --set model.weights=RUN.",
        )
    known = dict(zip(_keys(old), old.column("label"), strict=True))
    keys, labels = _keys(new), new.column("label")
    is_known = np.array([key in known for key in keys], dtype=np.bool_)
    if differing := [
        f"{key[0]}: {known[key]!r} before, {label!r} now"
        for key, label in zip(keys, labels, strict=True)
        if known.get(key, label) != label
    ]:
        raise DataError(
            f"{len(differing)} images have another class in the new data than in the old.",
            problems=differing,
            fix="decide which is right, and leave the others out of the new data.",
        )
    root = Path(os.path.commonpath([old.images_root, new.images_root]))
    parts = [_below(old, root), _below(new.take(~is_known), root)]
    pa = require("pyarrow", extra="train", purpose="read and write manifests")
    table = pa.concat_tables([part.table for part in parts])
    names = tuple(sorted({*old.class_names, *new.class_names}, key=natural_key))
    notes = [f"{int(is_known.sum()):,} images of the new data are among the old, and count once."]
    return Joined(Manifest(table, root, names), len(old), tuple(notes if is_known.any() else ()))


@dataclass(frozen=True)
class Shared:
    """The joint rows with their splits.

    Attributes:
        manifest: the old rows as they were, the new ones shared out.
        notes: sentences about what went where, for a person.
    """

    manifest: Manifest
    notes: tuple[str, ...]


def share_out(
    joined: Joined, old_names: Sequence[str], *, val_fraction: float, test_fraction: float, seed: int
) -> Shared:
    """Give every new row a split; those of the old rows stay.

    - A new image that is a copy of old ones, or of their group, goes where they are: to train, if any of them was
      trained on, and else to val or test. That holds against the split that the new data gives it.
    - A new image of an old class is more to train on, unless the new data says otherwise.
    - The images of new classes keep the split that the new data gives them; what is missing is drawn, stratified and
      grouped.

    Args:
        joined: decoded, copies in groups, with the splits of the old rows.
        old_names: the classes that the model knows.
        val_fraction: share of what is drawn that goes to val.
        test_fraction: the same for test.
        seed: decides the draw.

    Raises:
        DataError: a new class has too few independent images to be in every split.
    """
    manifest, is_old = joined.manifest, joined.is_old
    usable, codes, component = manifest.is_usable(), manifest.split_codes(), siblings(manifest)
    least = np.full(int(component.max(initial=-1)) + 1, _NONE)
    placed = usable & is_old & (codes >= 0)
    np.minimum.at(least, component[placed], codes[placed])
    linked = usable & ~is_old & (least[component] < _NONE)
    is_of_old = np.isin(manifest.label_ids(), [manifest.class_names.index(name) for name in old_names])
    more = usable & ~is_old & ~linked & is_of_old & (codes < 0)
    known = np.where(linked, least[component], np.where(more, 0, np.where(is_old, codes, -1)))
    given = np.where(is_old | linked, -1, codes)
    left = usable & ~is_old & ~linked & ~more
    if left.any() and (given[left] >= 0).all() and not all((given[left] == code).any() for code in (1, 2)):
        given = np.where(left & (given == 0), -1, given)  # what is missing is drawn from train
    places = np.array([*SPLITS, None], dtype=object)
    shared = split(
        manifest.with_columns(split=places[given]),
        val_fraction=val_fraction,
        test_fraction=test_fraction,
        seed=seed,
        known=known,
    )
    # A split that was drawn for old rows before their copies were known stays, come what may: they were trained on it.
    settled = np.where(is_old, codes, shared.split_codes())
    notes = []
    if linked.any():
        counts = ", ".join(f"{int((linked & (settled == code)).sum()):,} {name}" for code, name in enumerate(SPLITS))
        moved = int((linked & (codes >= 0) & (codes != settled)).sum())
        notes.append(
            f"{int(linked.sum()):,} new images are copies of old ones or of their groups, and went where those are: "
            f"{counts}." + (f" {moved:,} of them had been given another split." if moved else "")
        )
    if more.any():
        whose = [name for name in old_names if (manifest.column("label")[more] == name).any()]
        notes.append(
            f"{int(more.sum()):,} new images are of classes that the model knows ({shortened(whose)}); they are used "
            "as more training images of them."
        )
    notes += _contradictions(manifest, is_old)
    return Shared(manifest.with_columns(split=places[settled]), tuple(notes))


def _contradictions(manifest: Manifest, is_old: Bools) -> list[str]:
    """A sentence on new images that are an old one, byte for byte, under another class."""
    usable, labels = manifest.is_usable(), manifest.column("label")
    keys = list(zip(manifest.column("sha256"), manifest.boxes(), strict=True))
    known = {keys[row]: labels[row] for row in np.flatnonzero(usable & is_old).tolist() if keys[row][0] is not None}
    rows = [
        row for row in np.flatnonzero(usable & ~is_old).tolist() if known.get(keys[row], labels[row]) != labels[row]
    ]
    if not rows:
        return []
    first, are = rows[0], "image is" if len(rows) == 1 else "images are"
    return [
        f"{len(rows):,} new {are} among the old under another class, byte for byte, such as "
        f"{manifest.column('path')[first]}: {known[keys[first]]!r} there, {labels[first]!r} here. The model is taught "
        "both; leave out those that are wrong."
    ]


def replayed(manifest: Manifest, is_old: Bools, per_class: int | None, *, seed: int) -> tuple[Integers, str]:
    """Which rows take part, where so many old training images of each class are trained on again.

    All of val and test take part, old and new, and all that is new. A smaller draw lies within a larger one.

    Args:
        manifest: with its splits.
        is_old: bool [rows].
        per_class: images of each old class, 0 for none; None for all.
        seed: decides the draw.

    Returns:
        int64 [n], the rows in order; and a sentence that says what is trained on again.
    """
    trained = manifest.is_usable() & is_old & (manifest.split_codes() == 0)
    total = int(trained.sum())
    if per_class is None:
        return np.arange(len(manifest)), f"Replay: all {total:,} old training images are trained on again."
    kept, labels = np.zeros(len(manifest), dtype=np.bool_), manifest.label_ids()
    for number in np.unique(labels[trained]).tolist() if per_class else ():
        rows = np.flatnonzero(trained & (labels == number))
        # No draw of another class, and none of val or test, can have a say in this one's.
        alone = Manifest(manifest.table.take(rows), manifest.images_root, (manifest.class_names[number],))
        chosen = draw_subset(alone, per_class=min(per_class, len(rows)), seed=seed, num_parts=1)
        kept[rows[chosen]] = True
    if not per_class:
        sentence = (
            f"Replay: none of the {total:,} old training images is trained on again, so the model is free to forget "
            "what it knows; --replay all or --replay 50 keeps it, and --distill 1 slows it down."
        )
    else:
        sentence = (
            f"Replay: {int(kept.sum()):,} of {total:,} old training images are trained on again, up to {per_class:,} "
            "of each class."
        )
    return np.flatnonzero(~trained | kept), sentence


def _keys(manifest: Manifest) -> list[tuple[str, Box | None]]:
    """What each row is: a file, or a part of it."""
    paths = (os.path.normpath(path) for path in manifest.absolute_paths())
    return list(zip(paths, manifest.boxes(), strict=True))


def _below(manifest: Manifest, root: Path) -> Manifest:
    """The same rows with paths from another folder on, and the names that follow from them."""
    prefix = os.path.relpath(manifest.images_root, root)
    before = "" if prefix == "." else prefix.replace(os.sep, "/") + "/"
    paths = [before + path for path in manifest.table["path"].to_pylist()]
    return manifest.with_columns(path=paths, sample_id=sample_ids(paths, manifest.boxes()))
