"""Folds for cross-validation: stratified, grouped, and never touching the held-out test."""

import numpy as np
from numpy.typing import NDArray

from foveal.data.class_names import exclude_option
from foveal.data.manifest import Manifest
from foveal.data.split import Method, identities, siblings
from foveal.data.stratify import mixed, share_by_hash, stratify
from foveal.errors import DataError

Integers = NDArray[np.int64]

_SALT = 0x666F6C64
"""So that the fold of a sample has nothing to do with whether its neighbours are in test."""


def draw_folds(
    manifest: Manifest,
    num_folds: int,
    *,
    seed: int,
    method: Method = "stratified",
    known: Integers | None = None,
    identity: NDArray[np.uint64] | None = None,
) -> Manifest:
    """Give every usable row of train a fold from 0 on; all others have none.

    Args:
        manifest: with its splits drawn.
        num_folds: at least 2.
        seed: decides the draw.
        method: as in `split`.
        known: int64 [rows], folds of an earlier draw, which stay; -1 where there is none.
        identity: uint64 [rows], as from `identities`, which is taken if not given.

    Raises:
        DataError: a class has fewer independent groups than there are folds.
    """
    rows, labels = manifest.of_split("train"), manifest.label_ids()
    component = siblings(manifest)
    fold = np.full(len(manifest), -1)
    if known is not None:
        fold[rows] = known[rows]
        kept = rows[fold[rows] >= 0]
        least = np.full(len(manifest), num_folds)
        np.minimum.at(least, component[kept], fold[kept])
        joins = rows[(fold[rows] < 0) & (least[component[rows]] < num_folds)]
        fold[joins] = least[component[joins]]
    placed = np.zeros((num_folds, len(manifest.class_names)), dtype=np.int64)
    there = rows[fold[rows] >= 0]
    np.add.at(placed, (fold[there], labels[there]), 1)
    drawn = rows[fold[rows] < 0]
    _check(manifest, labels, component, drawn, placed)
    if drawn.size:
        own = mixed((identities(manifest) if identity is None else identity)[drawn], _SALT)
        shares = [1.0 / num_folds] * num_folds
        group, label = component[drawn], labels[drawn]
        if method == "hashed":
            fold[drawn] = share_by_hash(group, own, shares, seed=seed)
        else:
            fold[drawn] = stratify(group, label, own, shares, seed=seed, placed=placed)
        _refuse_unlearnable(manifest, labels, fold, num_folds)
    return manifest.with_columns(fold=np.where(fold < 0, np.nan, fold))


def _check(manifest: Manifest, labels: Integers, component: Integers, drawn: Integers, placed: Integers) -> None:
    """Each class needs a group for every fold, unless an earlier draw has placed it."""
    num_folds, names = len(placed), manifest.class_names
    pairs = np.unique(np.stack([component[drawn], labels[drawn]]), axis=1)
    num_groups = np.bincount(pairs[1], minlength=len(names))
    num_samples = np.bincount(labels[drawn], minlength=len(names))
    short = np.flatnonzero((num_groups < num_folds) & ~placed.any(axis=0))
    if short.size:
        raise DataError(
            f"{len(short)} of {len(names)} classes are too small for {num_folds} folds: each fold needs a sample, and "
            "samples of one group, photograph or content stay together.",
            problems=[
                f"class {names[i]!r}: {num_samples[i]} samples in {num_groups[i]} independent groups outside of test, "
                f"not {num_folds}"
                for i in short
            ],
            fix="ask for fewer folds, or add images"
            + (
                f"; or leave these out: {exclude_option(names[i] for i in short)}"
                if len(names) - len(short) > 1
                else "."
            ),
        )


def _refuse_unlearnable(manifest: Manifest, labels: Integers, fold: Integers, num_folds: int) -> None:
    """A class that lies in one fold alone could not be learnt when that fold validates."""
    names, there = manifest.class_names, fold >= 0
    counts = np.zeros((num_folds, len(names)), dtype=np.int64)
    np.add.at(counts, (fold[there], labels[there]), 1)
    lonely = np.flatnonzero(np.count_nonzero(counts, axis=0) < 2)
    if lonely.size:
        raise DataError(
            f"{len(lonely)} of {len(names)} classes lie in one fold alone, and could not be learnt without it.",
            problems=[
                f"class {names[i]!r}: {counts[:, i].sum()} samples in fold {counts[:, i].argmax()}" for i in lonely
            ],
            fix="--set split.method=stratified gives every fold its share; or add images.",
        )
