"""A smaller set drawn from a large one: balanced, or in proportion, and nested: 50 a class lie within 100 a class."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from foveal.data.manifest import Manifest
from foveal.data.split import siblings
from foveal.data.stratify import mixed
from foveal.errors import DataError
from foveal.types import SPLITS

Integers = NDArray[np.int64]


def draw_subset(
    manifest: Manifest,
    *,
    per_class: int | None = None,
    total: int | None = None,
    seed: int,
    num_parts: int = 3,
    preferred: NDArray[np.bool_] | None = None,
) -> NDArray[np.bool_]:
    """Choose usable rows: so many of each class, or so many in all with the proportions of the classes.

    Every class has an order of its own, drawn from its rows and the seed, and a subset takes the first of it: a smaller
    subset lies within a larger one, and added images push few out. One row of each group comes before a second of any,
    so that copies of one picture do not fill the subset. Between the classes, and between the splits that the data
    brings within a class, shares are taken by the method of Webster and Sainte-Laguë, which never takes a seat away
    when the house grows. Each class gets enough groups to be in every part first.

    Args:
        manifest: rows to choose from; given splits keep their proportions.
        per_class: rows of each class.
        total: rows in all; one of the two is given.
        seed: another seed, another draw.
        num_parts: into how many parts, or folds and test, the rows without a split will be shared out.
        preferred: bool [rows], rows of an earlier manifest, which come first.

    Returns:
        bool [rows], the rows that are chosen.

    Raises:
        DataError: a class, or all, have fewer rows than are asked for, or fewer are asked for than parts need; with
            the counts of every class that is short.
    """
    rows, labels, split = manifest.usable(), manifest.label_ids(), manifest.split_codes()
    if not (split[rows] < 0).any():
        split = np.where(split == 0, -1, split)  # what is missing is drawn from train
    num_strata = len(SPLITS) + 1
    stratum = labels[rows] * num_strata + split[rows] + 1
    component = siblings(manifest)[rows]
    identity = _identity(manifest, rows)
    draws = mixed(mixed(identity, 0), seed + 1)
    first = np.ones(len(rows), dtype=np.bool_) if preferred is None else ~preferred[rows]
    turn = _places((stratum, component), (first, draws))
    place = _places((stratum,), (first, turn, draws))
    sizes = np.bincount(stratum, minlength=len(manifest.class_names) * num_strata)
    wanted = np.tile([num_parts, 1, 1, 1], (len(manifest.class_names), 1))
    wanted[np.unique(labels[rows[~first]]), 0] = 0  # what was chosen before lies in every part already
    minimum = np.minimum(wanted.ravel(), sizes)
    _check_sizes(manifest, labels[rows], minimum.reshape(-1, num_strata).sum(axis=1), per_class, total)
    is_extra = place >= minimum[stratum]
    share = np.where(is_extra, (place + 0.5) / sizes[stratum], 0.0)
    if per_class is None:
        order = np.lexsort((draws, place, share, first, is_extra))
        kept = order[: total or 0]
    else:
        kept = np.flatnonzero(_places((labels[rows],), (is_extra, first, share, place, draws)) < per_class)
    chosen = np.zeros(len(manifest), dtype=np.bool_)
    chosen[rows[kept]] = True
    return chosen


def _identity(manifest: Manifest, rows: Integers) -> NDArray[np.uint64]:
    """Each row's sample_id as a number, uint64 [rows]; any text will do."""
    ids = manifest.table["sample_id"].take(rows).to_pylist()
    return np.fromiter((_number(text) for text in ids), dtype=np.uint64, count=len(ids))


def _number(text: str) -> int:
    try:
        return int(text[:16], 16)
    except ValueError:
        return int.from_bytes(text.encode()[:8], "little")


def _places(within: Sequence[NDArray[np.generic]], by: Sequence[NDArray[np.generic]]) -> Integers:
    """Each row's place, from 0 on, among the rows that are equal in `within`, in the order of `by`."""
    order = np.lexsort((*reversed(by), *reversed(within)))
    is_new = np.ones(len(order), dtype=np.bool_)
    is_new[1:] = np.any([code[order[1:]] != code[order[:-1]] for code in within], axis=0)
    starts = np.flatnonzero(is_new)
    places = np.empty(len(order), dtype=np.int64)
    places[order] = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    return places


def _check_sizes(
    manifest: Manifest, labels: Integers, minimum: Integers, per_class: int | None, total: int | None
) -> None:
    names = manifest.class_names
    counts = np.bincount(labels, minlength=len(names))
    if per_class is not None:
        short = np.flatnonzero(counts < per_class)
        if short.size:
            raise DataError(
                f"A subset of {per_class:,} images of each class is asked for, and {short.size} of {len(names)} "
                "classes have fewer.",
                problems=[f"class {names[i]!r}: {counts[i]:,} usable images, not {per_class:,}" for i in short],
                fix=f"ask for at most {counts.min():,} a class, or add images.",
            )
        if (minimum > per_class).any():
            raise DataError(
                f"A subset of {per_class:,} images of each class cannot be in every part: at least "
                f"{minimum.max():,} of each are needed.",
                fix=f"ask for at least {minimum.max():,} a class.",
            )
    elif total is not None and (total > counts.sum() or total < minimum.sum()):
        raise DataError(
            f"A subset of {total:,} images is asked for; {counts.sum():,} are usable, and at least {minimum.sum():,} "
            f"are needed for all {len(names)} classes to be in every part.",
            problems=[f"class {name!r}: {count:,} usable images" for name, count in zip(names, counts, strict=True)],
            fix=f"ask for {minimum.sum():,} to {counts.sum():,}.",
        )
