"""The split into train, val and test: seeded, stratified by class, and never through what belongs together."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foveal.data.class_names import exclude_option
from foveal.data.manifest import Manifest
from foveal.data.stratify import stratify
from foveal.errors import ConfigError, DataError
from foveal.types import SPLITS

_NONE = len(SPLITS)


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


def connected(num_rows: int, codes: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Rows that share a code in any of several columns, directly or by way of others.

    Source: hooking and pointer jumping, as in Y. Shiloach, U. Vishkin, "An O(log n) Parallel Connectivity Algorithm",
    Journal of Algorithms 3, 1982; here over whole arrays.

    Args:
        num_rows: how many rows there are.
        codes: int64 [rows] each; -1 where a row shares nothing.

    Returns:
        int64 [rows], the number of each row's component, by first appearance.
    """
    ends: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    for code in codes:
        order = np.argsort(code, kind="stable")
        order = order[code[order] >= 0]
        same = code[order[1:]] == code[order[:-1]]
        ends.append((order[:-1][same], order[1:][same]))
    left = np.concatenate([pair[0] for pair in ends]) if ends else np.empty(0, dtype=np.int64)
    right = np.concatenate([pair[1] for pair in ends]) if ends else left
    root = np.arange(num_rows)
    while True:
        low, high = np.minimum(root[left], root[right]), np.maximum(root[left], root[right])
        open_ends = low != high
        if not open_ends.any():
            break
        left, right = left[open_ends], right[open_ends]
        np.minimum.at(root, high[open_ends], low[open_ends])
        while not np.array_equal(jumped := root[root], root):
            root = jumped
    _, component = np.unique(root, return_inverse=True)
    return component.astype(np.int64)


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
        is_trained: bool [classes], classes that are in train whatever is drawn.
    """

    fractions: tuple[float, float, float]
    component: NDArray[np.int64]
    inherited: NDArray[np.int64]
    drawn: NDArray[np.bool_]
    is_trained: NDArray[np.bool_]


def split(manifest: Manifest, *, val_fraction: float, test_fraction: float, seed: int) -> Manifest:
    """Give every usable row a split; what the data brings is kept.

    - Rows without a split get one: those with a sibling in a given split join it, the others are shared out. A split
      that is given is complete: where val is given, none is drawn, and the same with test.
    - Where all rows have a split but none is val (or test), as in folders of train/ and test/, it is drawn from train.
    - Quarantined rows have none.

    The draw is stratified by class and keeps siblings together. It depends on the rows and the seed, not on the order.

    Args:
        manifest: hashes that are known already make copies siblings, so split after the decode pass.
        val_fraction: share of what is drawn from that goes to val, where val is not given; 0 for none.
        test_fraction: the same for test.
        seed: decides the draw.

    Raises:
        DataError: there are fewer than two classes, nothing to train on, or classes with too few independent groups.
        ConfigError: the fractions leave nothing to train on.
    """
    plan = _plan(manifest, val_fraction, test_fraction)
    labels = manifest.label_ids()
    _check(manifest, labels, plan)
    codes = plan.inherited.copy()
    rows = np.flatnonzero(plan.drawn)
    if rows.size:
        parts = [code for code in range(len(SPLITS)) if plan.fractions[code] > 0]
        shares = [plan.fractions[code] for code in parts]
        places = stratify(plan.component[rows], labels[rows], _identities(manifest)[rows], shares, seed=seed)
        codes[rows] = np.asarray(parts)[places]
    names = np.array([*SPLITS, None], dtype=object)  # the code -1 is the last
    return manifest.with_columns(split=names[codes])


def check_splittable(manifest: Manifest, *, val_fraction: float = 0.15, test_fraction: float = 0.15) -> None:
    """Refuse data that `split` could not share out, before any work.

    Raises:
        DataError: as `split` does, naming every class with its counts.
        ConfigError: the fractions leave nothing to train on.
    """
    _check(manifest, manifest.label_ids(), _plan(manifest, val_fraction, test_fraction))


def _plan(manifest: Manifest, val_fraction: float, test_fraction: float) -> _Plan:
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
    fixed = usable & ~drawn
    by_component = np.full(len(manifest), _NONE)
    # Of several splits among the siblings the first, train: a sample that leaks anyway must not be tested on.
    np.minimum.at(by_component, component[fixed], codes[fixed])
    of_siblings = by_component[component]
    inherited = np.where(fixed, codes, -1)
    joins = drawn & (of_siblings < _NONE)
    inherited[joins] = of_siblings[joins] if waiting.any() else 0
    is_trained = np.zeros(len(manifest.class_names), dtype=np.bool_)
    is_trained[manifest.label_ids()[inherited == 0]] = True
    fractions = (1.0 - share_val - share_test, share_val, share_test)
    return _Plan(fractions, component, inherited, drawn & ~joins, is_trained)


def _check(manifest: Manifest, labels: NDArray[np.int64], plan: _Plan) -> None:
    names = manifest.class_names
    counts = np.bincount(labels[manifest.is_usable()], minlength=len(names))
    if np.count_nonzero(counts) < 2:
        raise DataError(
            f"There must be at least two classes to tell apart; there is {np.count_nonzero(counts)}.",
            problems=[f"class {name!r}: {count} usable samples" for name, count in zip(names, counts, strict=True)],
            fix="add images of another class.",
        )
    num_drawn = sum(fraction > 0 for fraction in plan.fractions[1:])
    needed = num_drawn + ~plan.is_trained
    pairs = np.unique(np.stack([plan.component[plan.drawn], labels[plan.drawn]]), axis=1)
    num_groups = np.bincount(pairs[1], minlength=len(names))
    num_samples = np.bincount(labels[plan.drawn], minlength=len(names))
    short = np.flatnonzero(num_groups < needed)
    if short.size:
        wanted = [name for name, fraction in zip(SPLITS, plan.fractions, strict=True) if fraction > 0]
        raise DataError(
            f"{len(short)} of {len(names)} classes are too small to be split into {', '.join(wanted)}: "
            "each split needs a sample, and samples of one group, photograph or content stay together.",
            problems=[
                f"class {names[i]!r}: {num_samples[i]} samples in {num_groups[i]} independent groups, not {needed[i]}"
                for i in short
            ],
            fix=f"add images; or leave these classes out: {exclude_option(names[i] for i in short)}; "
            "or say in a column 'split' of a table what goes where.",
        )


def _identities(manifest: Manifest) -> NDArray[np.uint64]:
    """A hash of each row's group, or of its path where it has none, uint64 [rows]."""
    known: dict[tuple[bool, str], int] = {}
    result = np.empty(len(manifest), dtype=np.uint64)
    columns = (manifest.table[name].to_pylist() for name in ("group", "path"))
    for row, (group, path) in enumerate(zip(*columns, strict=True)):
        key = (group is not None, path if group is None else group)
        value = known.get(key)
        if value is None:
            digest = hashlib.sha256(f"{key[0]:d}{key[1]}".encode()).digest()
            value = known[key] = int.from_bytes(digest[:8], "little")
        result[row] = value
    return result
