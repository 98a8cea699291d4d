"""The split into train, val and test: seeded, stratified by class, and never through what belongs together."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from foveal.data.class_names import exclude_option
from foveal.data.components import components
from foveal.data.manifest import Manifest
from foveal.data.stratify import share_by_hash, stratify
from foveal.errors import ConfigError, DataError
from foveal.types import SPLITS

Method = Literal["stratified", "hashed"]

COPIES = "copies-"
"""What the name of a group begins with that nobody named: copies of one picture, or boxes of one photograph."""

_OF_COPIES = re.compile(COPIES + r"[0-9a-f]{8}(?:[0-9a-f]{8})?")
_NONE = len(SPLITS)


def is_of_copies(group: str) -> bool:
    """Whether a group has its name from a union of mere copies, so that nobody gave it."""
    return _OF_COPIES.fullmatch(group) is not None


def siblings(manifest: Manifest) -> NDArray[np.int64]:
    """Which rows belong together: of one group, of one photograph (its boxes), or of the same bytes, and so on.

    Quarantined rows belong to nobody: a thousand empty files have the same bytes and nothing else in common.

    Returns:
        int64 [rows], equal for rows that belong together, numbered by first appearance.
    """
    usable = manifest.is_usable()
    return connected(
        len(manifest), [np.where(usable, manifest.codes(each), -1) for each in ("group", "path", "sha256")]
    )


def connected(
    num_rows: int, codes: Sequence[NDArray[np.int64]], pairs: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Rows that share a code in any of several columns, or are a pair, directly or by way of others.

    Args:
        num_rows: how many rows there are.
        codes: int64 [rows] each; -1 where a row shares nothing.
        pairs: int64 [pairs, 2], rows that belong together.

    Returns:
        int64 [rows], the number of each row's component, by first appearance.
    """
    linked = np.empty((0, 2), dtype=np.int64) if pairs is None else pairs
    ends = [(linked[:, 0], linked[:, 1])]
    for code in codes:
        order = np.argsort(code, kind="stable")
        order = order[code[order] >= 0]
        same = code[order[1:]] == code[order[:-1]]
        ends.append((order[:-1][same], order[1:][same]))
    left, right = (np.concatenate(each) for each in zip(*ends, strict=True))
    return components(num_rows, left, right)


def straddling(manifest: Manifest) -> NDArray[np.bool_]:
    """Which rows of val and test have a sibling in train, bool [rows]: their result says nothing about new images."""
    component, split, usable = siblings(manifest), manifest.split_codes(), manifest.is_usable()
    trained = np.zeros(len(manifest), dtype=np.bool_)
    trained[component[usable & (split == 0)]] = True
    return usable & (split > 0) & trained[component]


@dataclass(frozen=True)
class _Plan:
    """What a split has to draw.

    Attributes:
        fractions: share of train, val and test in what is drawn; 0 where a split is given already.
        component: int64 [rows], which rows belong together.
        inherited: int64 [rows], the split that a row gets by its siblings or keeps; -1 where it is drawn.
        drawn: bool [rows], the rows to draw for.
        placed: int64 [splits, classes], rows that keep a place from an earlier draw and count for the shares.
        is_trained: bool [classes], classes that are in train whatever is drawn.
    """

    fractions: tuple[float, float, float]
    component: NDArray[np.int64]
    inherited: NDArray[np.int64]
    drawn: NDArray[np.bool_]
    placed: NDArray[np.int64]
    is_trained: NDArray[np.bool_]


def split(
    manifest: Manifest,
    *,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    method: Method = "stratified",
    known: NDArray[np.int64] | None = None,
    identity: NDArray[np.uint64] | None = None,
    num_train_groups: int = 1,
) -> Manifest:
    """Give every usable row a split; what the data brings is kept.

    - Rows without a split get one: those with a sibling in a given split join it, the others are shared out. A split
      that is given is complete: where val is given, none is drawn, and the same with test.
    - Where all rows have a split but none is val (or test), as in folders of train/ and test/, it is drawn from train.
    - Quarantined rows have none.
    - Rows that an earlier draw has placed (`known`) stay, their new siblings join them, and what is new makes up the
      shares.

    The draw is stratified by class and keeps siblings together. It depends on the rows and the seed, not on the order.

    Args:
        manifest: hashes that are known already make copies siblings, so split after the decode pass.
        val_fraction: share of what is drawn from that goes to val, where val is not given; 0 for none.
        test_fraction: the same for test.
        seed: decides the draw.
        method: `hashed` lets the part of a group depend on nothing but its identity and the seed.
        known: int64 [rows], the place in `SPLITS` that an earlier draw gave a row; -1 where there is none.
        identity: uint64 [rows], as from `identities`, which is taken if not given.
        num_train_groups: how many independent groups of each class must be left to train on, as for folds.

    Raises:
        DataError: there are fewer than two classes, nothing to train on, or classes with too few independent groups.
        ConfigError: the fractions leave nothing to train on.
    """
    plan = _plan(manifest, val_fraction, test_fraction, known)
    labels = manifest.label_ids()
    _check(manifest, labels, plan, num_train_groups)
    codes = plan.inherited.copy()
    rows = np.flatnonzero(plan.drawn)
    if rows.size:
        parts = [code for code in range(len(SPLITS)) if plan.fractions[code] > 0]
        shares = [plan.fractions[code] for code in parts]
        identity = identities(manifest) if identity is None else identity
        group, label, own = plan.component[rows], labels[rows], identity[rows]
        if method == "hashed":
            places = share_by_hash(group, own, shares, seed=seed)
        else:
            places = stratify(group, label, own, shares, seed=seed, placed=plan.placed[parts])
        codes[rows] = np.asarray(parts)[places]
    names = np.array([*SPLITS, None], dtype=object)  # the code -1 is the last
    divided = manifest.with_columns(split=names[codes])
    if method == "hashed":
        _refuse_untrained(divided, labels)
    return divided


def check_splittable(manifest: Manifest, *, val_fraction: float = 0.15, test_fraction: float = 0.15) -> None:
    """Refuse data that `split` could not share out, before any work.

    Raises:
        DataError: as `split` does, naming every class with its counts.
        ConfigError: the fractions leave nothing to train on.
    """
    _check(manifest, manifest.label_ids(), _plan(manifest, val_fraction, test_fraction))


def _plan(
    manifest: Manifest, val_fraction: float, test_fraction: float, known: NDArray[np.int64] | None = None
) -> _Plan:
    if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
        raise ConfigError(
            "data.val_fraction and data.test_fraction leave nothing to train on.",
            problems=[f"data.val_fraction: {val_fraction}", f"data.test_fraction: {test_fraction}"],
            fix="both must be at least 0, and together less than 1.",
        )
    usable, codes = manifest.is_usable(), manifest.split_codes()
    waiting = usable & (codes < 0)
    drawn = waiting if waiting.any() else usable & (codes == 0)
    if not drawn.any():
        found = ", ".join(f"{int((usable & (codes == code)).sum())} in {name}" for code, name in enumerate(SPLITS))
        raise DataError(f"There is no usable sample to train on: {found}.", fix="add a train split, or images.")
    share_val, share_test = (
        fraction if not (usable & (codes == code)).any() else 0.0
        for code, fraction in ((1, val_fraction), (2, test_fraction))
    )
    component = siblings(manifest)
    known = np.full(len(manifest), -1) if known is None else known
    fixed, stays = usable & ~drawn, drawn & (known >= 0)
    of_given, of_known = _least_of(component, codes, fixed), _least_of(component, known, stays)
    inherited = np.where(fixed, codes, np.where(stays, known, -1))
    free = drawn & ~stays
    joins = free & (of_given < _NONE)
    inherited[joins] = of_given[joins] if waiting.any() else 0
    joins_known = free & ~joins & (of_known < _NONE)
    inherited[joins_known] = of_known[joins_known]
    labels, num_classes = manifest.label_ids(), len(manifest.class_names)
    is_trained = np.zeros(num_classes, dtype=np.bool_)
    is_trained[labels[inherited == 0]] = True
    counted = stays | joins_known
    placed = np.zeros((len(SPLITS), num_classes), dtype=np.int64)
    np.add.at(placed, (inherited[counted], labels[counted]), 1)
    fractions = (1.0 - share_val - share_test, share_val, share_test)
    return _Plan(fractions, component, inherited, free & ~joins & ~joins_known, placed, is_trained)


def _least_of(component: NDArray[np.int64], codes: NDArray[np.int64], rows: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The least code among those rows that are siblings of each row, int64 [rows]; `_NONE` where there is none.

    Of several splits that is train: a sample that leaks anyway must not be tested on.
    """
    least = np.full(len(component), _NONE)
    np.minimum.at(least, component[rows], codes[rows])
    return least[component]


def _check(manifest: Manifest, labels: NDArray[np.int64], plan: _Plan, num_train_groups: int = 1) -> None:
    names = manifest.class_names
    counts = np.bincount(labels[manifest.is_usable()], minlength=len(names))
    if np.count_nonzero(counts) < 2:
        raise DataError(
            f"There must be at least two classes to tell apart; there is {np.count_nonzero(counts)}.",
            problems=[f"class {name!r}: {count} usable samples" for name, count in zip(names, counts, strict=True)],
            fix="add images of another class.",
        )
    num_drawn = sum(fraction > 0 for fraction in plan.fractions[1:])
    # What an earlier draw has placed is not refused now for what it lacked then, unless nothing of it is in train.
    needed = np.where(plan.placed.any(axis=0), 0, num_drawn) + num_train_groups * ~plan.is_trained
    pairs = np.unique(np.stack([plan.component[plan.drawn], labels[plan.drawn]]), axis=1)
    num_groups = np.bincount(pairs[1], minlength=len(names))
    num_samples = np.bincount(labels[plan.drawn], minlength=len(names))
    short = np.flatnonzero(num_groups < needed)
    if short.size:
        wanted = [name for name, fraction in zip(SPLITS, plan.fractions, strict=True) if fraction > 0]
        raise DataError(
            f"{len(short)} of {len(names)} classes are too small to be split into {', '.join(wanted)}: "
            "each split needs a sample, and samples of one group, photograph or content stay together."
            + (f" Each of {num_train_groups} folds needs one, too." if num_train_groups > 1 else ""),
            problems=[
                f"class {names[i]!r}: {num_samples[i]} samples in {num_groups[i]} independent groups, not {needed[i]}"
                for i in short
            ],
            fix=f"add images; or leave these classes out: {exclude_option(names[i] for i in short)}; "
            "or say in a column 'split' of a table what goes where.",
        )


def _refuse_untrained(manifest: Manifest, labels: NDArray[np.int64]) -> None:
    names = manifest.class_names
    counts = [np.bincount(labels[manifest.of_split(part)], minlength=len(names)) for part in SPLITS]
    untrained = np.flatnonzero(counts[0] == 0)
    if untrained.size:
        raise DataError(
            f"split.method=hashed leaves {len(untrained)} of {len(names)} classes without a sample in train.",
            problems=[
                f"class {names[i]!r}: " + ", ".join(f"{counts[k][i]} in {part}" for k, part in enumerate(SPLITS))
                for i in untrained
            ],
            fix="--set split.method=stratified gives every part its share; or choose another --seed.",
        )


def identities(manifest: Manifest) -> NDArray[np.uint64]:
    """A hash of what each row is, uint64 [rows]: of its group, or of its path where nobody gave it one.

    That a union of copies was found does not change what the rows are, so its name does not count.
    """
    known: dict[tuple[bool, str], int] = {}
    result = np.empty(len(manifest), dtype=np.uint64)
    columns = (manifest.table[name].to_pylist() for name in ("group", "path"))
    for row, (group, path) in enumerate(zip(*columns, strict=True)):
        is_given = group is not None and not is_of_copies(group)
        key = (is_given, group if is_given else path)
        value = known.get(key)
        if value is None:
            digest = hashlib.sha256(f"{key[0]:d}{key[1]}".encode()).digest()
            value = known[key] = int.from_bytes(digest[:8], "little")
        result[row] = value
    return result
