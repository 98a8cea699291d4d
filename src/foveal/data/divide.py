"""All of `foveal split` that needs no image: groups, subset, what is kept from before, splits and folds."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foveal.data.class_names import shortened
from foveal.data.earlier import Earlier, recall
from foveal.data.folds import draw_folds
from foveal.data.grouping import GroupSource, group_sources, names_by_pattern, regroup
from foveal.data.manifest import Manifest
from foveal.data.split import identities, siblings, split, straddling
from foveal.data.split_config import SplitConfig
from foveal.data.stratify import least_of
from foveal.data.subset import draw_subset
from foveal.types import SPLITS

Integers = NDArray[np.int64]

LARGEST_DEVIATION = 0.02
"""A share that differs by more from what was wished is told."""
LARGE_GROUP = 0.1
"""A group with a larger share of the images is told: it can hardly be shared out."""


@dataclass(frozen=True)
class Shares:
    """What the seed and the shares of a draw are."""

    val_fraction: float
    test_fraction: float
    seed: int


@dataclass(frozen=True)
class PartCounts:
    """How many images and independent groups of each class lie in each part.

    Attributes:
        parts: `train`, `val`, `test`; or `fold 0`, `fold 1`, ... and `test`.
        class_names: the classes.
        num_images: int64 [parts, classes].
        num_groups: int64 [parts, classes].
    """

    parts: tuple[str, ...]
    class_names: tuple[str, ...]
    num_images: Integers
    num_groups: Integers


@dataclass(frozen=True)
class Divided:
    """A manifest with its splits or folds, and what there is to say about them."""

    manifest: Manifest
    sources: tuple[GroupSource, ...]
    notes: tuple[str, ...]


def divide(
    manifest: Manifest,
    config: SplitConfig,
    shares: Shares,
    *,
    clusters: Integers | None = None,
    earlier: Manifest | None = None,
) -> Divided:
    """Group, choose and share out the usable rows of a manifest, without opening an image.

    Args:
        manifest: with hashes where copies of the same bytes are to stay together.
        config: the section `split`.
        shares: how much goes where, where the data does not say it.
        clusters: int64 [rows], the cluster of near duplicates that a row is in; -1 where in none.
        earlier: a manifest whose splits and folds are kept for the samples that are in it.

    Raises:
        DataError: a wish cannot be met; with the counts of every class that is too small.
        ConfigError: the regular expression finds nothing, or the shares leave nothing to train on.
    """
    notes: list[str] = []
    if config.given == "redraw":
        nothing = [None] * len(manifest)
        manifest = manifest.with_columns(split=nothing, fold=nothing)
    names = names_by_pattern(manifest, config.group_by) if config.group_by else None
    sources = group_sources(manifest, clusters, names)
    identity, codes = _identity(manifest, names), [clusters] if clusters is not None else []
    if names is not None:
        notes += _unmatched(manifest, names)
    manifest = regroup(manifest, codes, names=names)
    # Of the whole group, so that a subset of it is drawn for as the group is.
    identity = least_of(siblings(manifest), identity)
    before = recall(manifest, earlier) if earlier is not None else None
    if config.per_class is not None or config.total is not None:
        chosen = _subset(manifest, config, shares, before)
        notes.append(_left_out(manifest, chosen))
        manifest, identity = manifest.take(chosen), identity[chosen]
        before = recall(manifest, earlier) if earlier is not None else None
    divided = _share_out(manifest, config, shares, before, identity)
    if before is not None:
        notes += _kept(divided, before, in_folds=config.folds is not None)
    elif config.folds is None and divided.table["split"].equals(manifest.table["split"]):
        notes.append("All images have a split already, and keep it; --set split.given=redraw draws anew.")
    notes += _warnings(divided, manifest, config, shares)
    return Divided(divided, tuple(sources), tuple(notes))


def count_parts(manifest: Manifest) -> PartCounts:
    """Images and groups of each class by split, or by fold and test where there are folds."""
    labels, component, num_classes = manifest.label_ids(), siblings(manifest), len(manifest.class_names)
    fold = _folds(manifest)
    members: dict[str, Integers] = {name: manifest.of_split(name) for name in SPLITS}
    if fold[members["train"]].max(initial=-1) >= 0:
        train = members.pop("train")
        by_fold = {f"fold {number}": train[fold[train] == number] for number in range(int(fold[train].max()) + 1)}
        members = {**by_fold, **{name: rows for name, rows in members.items() if rows.size}}
    images = np.array([np.bincount(labels[rows], minlength=num_classes) for rows in members.values()])
    pairs = [np.unique(component[rows] * num_classes + labels[rows]) % num_classes for rows in members.values()]
    groups = np.array([np.bincount(pair, minlength=num_classes) for pair in pairs])
    return PartCounts(tuple(members), manifest.class_names, images, groups)


def _identity(manifest: Manifest, names: NDArray[np.object_] | None) -> NDArray[np.uint64]:
    """What each row is by itself, before unions: so that a copy that is found later changes as little as can be."""
    if names is None:
        return identities(manifest)
    given = manifest.column("group")
    return identities(manifest.with_columns(group=np.where(given == None, names, given)))  # noqa: E711  by element


def _subset(manifest: Manifest, config: SplitConfig, shares: Shares, before: Earlier | None) -> NDArray[np.bool_]:
    num_parts = 1 + (shares.test_fraction > 0) + (shares.val_fraction > 0)
    if config.folds is not None:
        num_parts = config.folds + (shares.test_fraction > 0)
    if before is not None:
        given = manifest.split_codes()
        names = np.array([*SPLITS, None], dtype=object)
        manifest = manifest.with_columns(split=names[np.where(given < 0, before.split, given)])
    return draw_subset(
        manifest,
        per_class=config.per_class,
        total=config.total,
        seed=shares.seed,
        num_parts=num_parts,
        preferred=before.is_there if before is not None else None,
    )


def _share_out(
    manifest: Manifest, config: SplitConfig, shares: Shares, before: Earlier | None, identity: NDArray[np.uint64]
) -> Manifest:
    """Splits, and folds where they are asked for."""
    given_fold, num_folds = _folds(manifest), config.folds
    if num_folds is not None:
        codes = manifest.split_codes()
        # A fold validates in its turn, so that what the data keeps for validation is in one, too.
        names = np.array([*SPLITS, None], dtype=object)
        manifest = manifest.with_columns(split=names[np.where(codes == 1, 0, codes)])
    known = _known_splits(manifest, before, in_folds=num_folds is not None)

    def draw(data: Manifest, val: float, test: float, kept: Integers | None) -> Manifest:
        return split(
            data,
            val_fraction=val,
            test_fraction=test,
            seed=shares.seed,
            method=config.method,
            known=kept,
            identity=identity,
            num_train_groups=num_folds or 1,
        )

    if num_folds is not None:
        divided = draw(manifest, 0.0, shares.test_fraction, known)
        known_fold = given_fold if int(given_fold.max(initial=-1)) + 1 == num_folds else np.full(len(manifest), -1)
        if before is not None and before.num_folds == num_folds:
            known_fold = np.where(before.fold >= 0, before.fold, known_fold)
        return draw_folds(
            divided, num_folds, seed=shares.seed, method=config.method, known=known_fold, identity=identity
        )
    if before is not None and before.num_folds and not (before.split == 1).any():
        # Folds were asked for then and val is now: what was in a fold must not come into test.
        divided = draw(manifest, 0.0, shares.test_fraction, known)
        return draw(divided, shares.val_fraction / (1.0 - shares.test_fraction), shares.test_fraction, None)
    return draw(manifest, shares.val_fraction, shares.test_fraction, known)


def _known_splits(manifest: Manifest, before: Earlier | None, *, in_folds: bool) -> Integers | None:
    """The splits of an earlier draw, but where the data itself says otherwise now."""
    if before is None:
        return None
    known = np.where(before.split == 1, 0, before.split) if in_folds else before.split
    given, usable = manifest.split_codes(), manifest.is_usable()
    is_brought = np.array([*(bool((usable & (given == code)).any()) for code in range(len(SPLITS))), False])
    return np.where((given >= 0) & (known != given) & is_brought[known], -1, known)


def _folds(manifest: Manifest) -> Integers:
    """The fold of each row, int64 [rows]; -1 where there is none."""
    fold = manifest.column("fold")
    numbers: Integers = np.where(np.isnan(fold), -1, fold).astype(np.int64)
    return numbers


def _unmatched(manifest: Manifest, names: NDArray[np.object_]) -> Iterator[str]:
    rows = manifest.usable()
    alone = rows[[names[row] is None for row in rows.tolist()]]
    if alone.size:
        shown = shortened([manifest.table["path"][row].as_py() for row in alone[:3].tolist()])
        yield f"{alone.size:,} of {rows.size:,} paths are not matched by split.group_by, such as {shown}."


def _left_out(manifest: Manifest, chosen: NDArray[np.bool_]) -> str:
    num_usable, num_rows = len(manifest.usable()), len(manifest)
    broken = f", and {num_rows - num_usable:,} quarantined rows" if num_rows > num_usable else ""
    return f"The subset holds {chosen.sum():,} of {num_usable:,} images; the others{broken} are not in the manifest."


def _kept(divided: Manifest, before: Earlier, *, in_folds: bool) -> Iterator[str]:
    usable = divided.is_usable()
    num_known = int((usable & (before.split >= 0)).sum())
    new = len(divided.usable()) - num_known
    moved = f" ({before.num_moved:,} of them moved or renamed)" if before.num_moved else ""
    yield f"{num_known:,} images{moved} were in the earlier manifest; {new:,} are new."
    if before.num_gone:
        yield f"{before.num_gone:,} images of the earlier manifest are not in this one."
    if before.num_changed:
        yield f"{before.num_changed:,} images have the name of an earlier one, and another content."
    was = np.where(before.split == 1, 0, before.split) if in_folds else before.split
    elsewhere = usable & (was >= 0) & (divided.split_codes() != was)
    if before.num_folds and not in_folds:
        yield "The earlier manifest has folds and no val: val was drawn from them, and test was left as it is."
    elif elsewhere.any():
        yield f"{elsewhere.sum():,} images lie in another split than before, as the data itself says now."


def _warnings(divided: Manifest, manifest: Manifest, config: SplitConfig, shares: Shares) -> Iterator[str]:
    leaks = straddling(divided)
    if leaks.any():
        again = "" if config.given == "redraw" else "; --set split.given=redraw draws anew"
        yield f"{leaks.sum():,} images of val and test have a sibling in train, by splits that were given{again}."
    counts, fold = count_parts(divided), _folds(divided)
    rows = np.flatnonzero(fold >= 0)
    pairs = np.unique(np.stack([siblings(divided)[rows], fold[rows]]), axis=1)[0]
    if (num_cut := int((np.bincount(pairs, minlength=1) > 1).sum())) and config.folds is not None:
        yield f"{num_cut:,} groups lie in several folds, as they were before they became one."
    for part, per_class in zip(counts.parts, counts.num_images, strict=True):
        if per_class.any() and not per_class.all():
            lacking = [counts.class_names[place] for place in np.flatnonzero(per_class == 0)]
            yield f"{part} has no image of {shortened(lacking)}."
    component = siblings(divided)[divided.usable()]
    if (largest := float(np.bincount(component).max() / len(component))) > LARGE_GROUP:
        yield f"The largest group holds {largest:.1%} of the images."
    if (manifest.split_codes()[manifest.usable()] >= 0).any():
        return  # the shares are those that the data brings
    wishes = {"test": shares.test_fraction}
    if config.folds is None:
        wishes |= {"val": shares.val_fraction}
    else:
        wishes |= {f"fold {fold}": (1.0 - shares.test_fraction) / config.folds for fold in range(config.folds)}
    total = counts.num_images.sum()
    for part, wish in wishes.items():
        share = counts.num_images[counts.parts.index(part)].sum() / total if part in counts.parts else 0.0
        if abs(share - wish) > LARGEST_DEVIATION:
            yield f"{part} has {share:.1%} of the images, where {wish:.1%} was wished."
