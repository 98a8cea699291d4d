"""Repairs of copies: keep one of a set, give a cluster one group, and bring it to one side of every split."""

import numpy as np
from numpy.typing import NDArray

from foveal.auditing.repair_policy import RepairPolicy
from foveal.auditing.repair_rows import NO_FOLD, PAIR_KINDS, Found, Integers, Mask, Rows, first_kind, tally
from foveal.data.grouping import regroup
from foveal.data.split import connected, identities
from foveal.data.stratify import stratify
from foveal.errors import DataError
from foveal.extras import require
from foveal.types import SPLITS

_TRAIN, _VAL, _TEST = range(3)
_ORDERS = {"train": (_TRAIN, _VAL, _TEST), "test": (_TEST, _VAL, _TRAIN)}
_MOST_LOST = 0.5


def keep_one(rows: Rows, found: Found, policy: RepairPolicy) -> None:
    """Of each set of copies under one label one stays; the others are quarantined.

    Exact duplicates: that in test before that in val before one in train, so that the scarce pictures of a test last,
    unless that costs train more than half of its images or the last of a class. Where other copies are in the set, the
    largest picture, for copies are made smaller. Then the shortest path, for copies are named longer, and of these the
    first.
    """
    kinds = policy.kinds_with("keep_one")
    pairs = found.pairs(*kinds)
    if not len(pairs):
        return
    cluster = connected(len(rows), [], pairs)
    kind = first_kind(found, cluster, kinds)
    # A set of two labels is no set: which of them is right is not for a rule to say.
    sets = cluster * len(rows.class_names) + rows.label
    members = np.flatnonzero(rows.usable & (kind[cluster] != None))  # noqa: E711  elementwise
    is_mixed = np.zeros(len(kind), dtype=np.bool_)
    is_mixed[cluster[found.pairs(*(name for name in kinds if name != "exact_duplicate"))[:, 0]]] = True
    areas, lengths = _areas(rows)[members], _lengths(rows)[members]
    for side in (rows.split[members], np.zeros(len(members))):
        preferred = np.where(is_mixed[cluster[members]], areas, side)
        order = members[np.lexsort((rows.rank[members], lengths, -preferred, sets[members]))]
        is_first = np.diff(sets[order], prepend=-1) != 0
        others = order[~is_first]
        stays = rows.usable.copy()
        stays[others] = False
        after = tally(rows.split[stays], rows.label[stays], len(rows.class_names))
        if _keeps_enough(rows.counts()[_TRAIN:_VAL], after[_TRAIN:_VAL]):
            break
    kept = order[is_first][np.cumsum(is_first) - 1][~is_first]
    reasons = [f"duplicate of {path}" for path in rows.paths[kept]]
    rows.quarantine(others, "keep_one", kind[cluster[others]].tolist(), reasons)


def _keeps_enough(before: Integers, after: Integers) -> bool:
    """Whether every split keeps at least half of its images, and one of each class that it has; [splits, classes]."""
    keeps_half = after.sum(axis=1) >= (1 - _MOST_LOST) * before.sum(axis=1)
    return bool(keeps_half.all() and not ((before > 0) & (after == 0)).any())


def _lengths(rows: Rows) -> Integers:
    compute = require("pyarrow.compute", extra="train", purpose="read manifests")
    lengths: Integers = compute.utf8_length(rows.manifest.table["path"]).to_numpy().astype(np.int64)
    return lengths


def _areas(rows: Rows) -> NDArray[np.float64]:
    """Pixels of each sample, of the box where there is one, float64 [rows]; 0 where unknown."""
    column = rows.manifest.column
    of_box = (column("xmax") - column("xmin")) * (column("ymax") - column("ymin"))
    areas: NDArray[np.float64] = np.nan_to_num(np.where(np.isnan(of_box), column("width") * column("height"), of_box))
    return areas


def clusters(rows: Rows, found: Found, policy: RepairPolicy) -> tuple[Integers, Integers]:
    """What shows the same, directly or by way of others, also of such as are in quarantine by now.

    Findings whose action is none link nothing, but for one picture under two labels, which is one picture in any case.

    Returns:
        The linked pairs, int64 [pairs, 2], and each row's cluster, int64 [rows].
    """
    kinds = [kind for kind in PAIR_KINDS if policy.action(kind) != "none" or kind == "label_conflict"]
    pairs = found.pairs(*kinds)
    return pairs, connected(len(rows), [], pairs)


def write_groups(rows: Rows, found: Found, policy: RepairPolicy) -> None:
    """Give each cluster one group, so that no split cuts it; groups that it reaches into become part of it."""
    kinds = policy.kinds_with("regroup")
    if not len(found.pairs(*kinds)):
        return
    pairs, cluster = clusters(rows, found, policy)
    codes = np.where(rows.usable & np.isin(cluster, cluster[pairs.ravel()]), cluster, -1)
    current = rows.manifest.with_columns(status=np.where(rows.usable, "ok", "quarantined"))
    written = np.array(regroup(current, [codes]).table["group"].combine_chunks(), dtype=object)
    # Only what these findings reach into: boxes of one photograph stay together without a group.
    component = _siblings(rows, pairs)
    kind = first_kind(found, component, kinds)
    is_reached = kind[component] != None  # noqa: E711  elementwise
    group = current.codes("group")
    follows = ~rows.usable & np.isin(group, np.unique(group[rows.usable & is_reached & (group >= 0)]))
    old = np.array(rows.group, dtype=object)
    is_changed = (rows.usable & is_reached | follows) & np.asarray(old != written, dtype=np.bool_)
    pa = require("pyarrow", extra="train", purpose="write manifests")
    rows.group = pa.array(np.where(is_changed, written, old), pa.string())
    _tell_groups(rows, component, kind, is_changed & rows.usable, rows.usable & is_reached)
    followers = np.flatnonzero(is_changed & ~rows.usable)
    rows.touch(followers, "regroup", kinds[0], ["its group was joined with another"] * len(followers))


def _tell_groups(rows: Rows, component: Integers, kind: NDArray[np.object_], is_changed: Mask, is_member: Mask) -> None:
    members, changed = np.flatnonzero(is_member), np.flatnonzero(is_changed)
    anchor, count = rows.companions(component, members)
    place = np.searchsorted(members, changed)
    reasons = [
        f"{number} pictures that belong together, as {path}" if number > 1 else "its group was joined with another"
        for number, path in zip(count[place], rows.paths[anchor[place]], strict=True)
    ]
    rows.touch(changed, "regroup", kind[component[changed]].tolist(), reasons)


def _siblings(rows: Rows, pairs: Integers) -> Integers:
    """What `split.siblings` brings together, and the pairs."""
    codes = [np.where(rows.usable, rows.manifest.codes(name), -1) for name in ("path", "sha256")]
    return connected(len(rows), [*codes, np.where(rows.usable, group_codes(rows), -1)], pairs)


def group_codes(rows: Rows) -> Integers:
    """Groups as numbers, int64 [rows]; -1 where there is none."""
    encoded = rows.group.dictionary_encode()
    codes: Integers = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return codes


def move(rows: Rows, found: Found, policy: RepairPolicy) -> list[str]:
    """Bring what shows the same to one side of every split, and into one fold.

    Returns:
        What is worth telling.

    Raises:
        DataError: a split would be left without an image.
    """
    if policy.leak == "none":
        return []
    pairs, _ = clusters(rows, found, policy)
    component = _siblings(rows, pairs)
    placed = rows.usable & (rows.split >= 0)
    counts = tally(rows.split[placed], component[placed], int(component.max(initial=-1)) + 1)[: len(SPLITS)]
    is_cut = np.count_nonzero(counts, axis=0) > 1
    cut = np.flatnonzero(placed & is_cut[component])
    notes: list[str] = []
    if cut.size:
        side, rule = _sides(rows, component, counts, cut, policy)
        outside = cut[rows.split[cut] != side[component[cut]]]
        anchor, number = rows.companions(component, cut)
        place = np.searchsorted(cut, outside)
        names = [SPLITS[code] for code in side[component[outside]]]
        shown = zip(number[place], rows.paths[anchor[place]], names, strict=True)
        before = rows.counts()[: len(SPLITS)].sum(axis=1)
        if policy.leak == "quarantine":
            told = [f"leak: {n} copies lay in several splits, as {path}; those in {to} stay" for n, path, to in shown]
            rows.quarantine(outside, "quarantine", "leak", told)
        else:
            told = [f"{n} copies lay in several splits, as {path}; all go to {to}" for n, path, to in shown]
            rows.touch(outside, "move", "leak", told)
            rows.split[outside] = side[component[outside]]
        _refuse_empty(before, rows.counts()[: len(SPLITS)].sum(axis=1))
        num_clusters = len(np.unique(component[cut]))
        out = "; what lay elsewhere is quarantined" if policy.leak == "quarantine" else ""
        notes.append(f"{num_clusters:,} clusters of {len(cut):,} images lay in several splits; {_RULES[rule]}{out}.")
    _join_folds(rows, component, is_cut)
    return notes


_RULES = {
    "train": "all of a cluster go to train, or to val where none was in train",
    "test": "all of a cluster go to test, or to val where none was in test",
    "largest": "all of a cluster go to the split that has most of it",
    "balance": "whole clusters were drawn anew, so that each split keeps its share of each class",
    "auto": "they go to train, but those of classes of which a split would lose more than half, which were drawn anew",
}


def _sides(
    rows: Rows, component: Integers, counts: Integers, cut: Integers, policy: RepairPolicy
) -> tuple[Integers, str]:
    """The split for each component that is cut, int64 [components], and the rule that chose it."""
    rule = policy.move_to
    if rule == "auto" and policy.leak == "quarantine":
        rule = "test"
    if rule == "largest":
        return counts.argmax(axis=0), rule
    if rule in _ORDERS:
        return _first_side(counts, _ORDERS[rule]), rule
    side = _first_side(counts, _ORDERS["train"])
    is_drawn = np.ones(counts.shape[1], dtype=np.bool_)
    if rule == "auto":
        before, after = rows.counts(), _counts_with(rows, cut, side[component[cut]])
        less = np.asarray(after[: len(SPLITS)] < (1 - _MOST_LOST) * before[: len(SPLITS)])
        suffers = np.flatnonzero(less.any(axis=0))
        if not len(suffers):
            return side, "train"
        is_drawn[:] = False
        is_drawn[component[cut[np.isin(rows.label[cut], suffers)]]] = True
        rule = "balance" if is_drawn[component[cut]].all() else "auto"
    drawn = is_drawn[component[cut]]
    _draw_sides(rows, component, cut, drawn, side)
    return side, rule


def _counts_with(rows: Rows, cut: Integers, sides: Integers) -> Integers:
    """Usable rows by split and class if these rows lay on these sides."""
    split = rows.split.copy()
    split[cut] = sides
    return tally(split[rows.usable], rows.label[rows.usable], len(rows.class_names))


def _first_side(counts: Integers, order: tuple[int, ...]) -> Integers:
    first: Integers = np.asarray(order)[(counts[list(order)] > 0).argmax(axis=0)]
    return first


def _draw_sides(rows: Rows, component: Integers, cut: Integers, drawn: Mask, side: Integers) -> None:
    """Draw sides by which each split keeps its share of each class, as far as whole clusters allow.

    Args:
        rows: what is repaired.
        component: int64 [all rows].
        cut: rows of components that lie in several splits.
        drawn: bool [cut], the rows to draw for; the others go where `side` says.
        side: int64 [components], changed here.
    """
    before = rows.counts()[: len(SPLITS)]
    parts = np.flatnonzero(before.sum(axis=1) > 0)
    placed = _counts_with(rows, cut, np.where(drawn, -1, side[component[cut]]))[parts]
    fractions = before[parts].sum(axis=1) / before.sum()
    chosen = cut[drawn]
    identity = identities(rows.manifest.take(chosen))
    places = stratify(component[chosen], rows.label[chosen], identity, fractions.tolist(), seed=0, placed=placed)
    side[component[chosen]] = parts[places]
    # A class that has been in train stays there, whatever the draw says.
    lost = (before[_TRAIN] > 0) & (_counts_with(rows, cut, side[component[cut]])[_TRAIN] == 0)
    side[component[chosen[lost[rows.label[chosen]]]]] = _TRAIN


def _refuse_empty(before: Integers, after: Integers) -> None:
    emptied = np.flatnonzero((before > 0) & (after == 0))
    if emptied.size:
        raise DataError(
            "Bringing copies to one side would leave a split without an image.",
            problems=[f"{SPLITS[code]}: {before[code]:,} images before, 0 after" for code in emptied],
            fix="let a split draw them anew: foveal clean with --set leak=none, and then foveal split with "
            "--set split.given=redraw; or choose another move_to in the policy.",
        )


def _join_folds(rows: Rows, component: Integers, is_cut: Mask) -> None:
    """Rows that belong together lie in the fold of most of them, in splits that have folds at all."""
    known = np.flatnonzero(rows.usable & (rows.fold != NO_FOLD))
    if not known.size:
        return
    entries, counts = np.unique(np.stack([component[known], rows.fold[known]]), axis=1, return_counts=True)
    order = np.lexsort((entries[1], -counts, entries[0]))
    first = order[np.diff(entries[0][order], prepend=-1) != 0]
    fold = np.full(len(is_cut), NO_FOLD, dtype=np.int64)
    fold[entries[0][first]] = entries[1][first]
    num_folds = np.bincount(entries[0], minlength=len(is_cut))
    has_folds = np.zeros(len(SPLITS) + 1, dtype=np.bool_)
    has_folds[rows.manifest.split_codes()[known]] = True
    affected = np.flatnonzero(rows.usable & (is_cut | (num_folds > 1))[component])
    wanted = np.where(has_folds[rows.split[affected]], fold[component[affected]], NO_FOLD)
    changed = wanted != rows.fold[affected]
    moved = affected[changed]
    rows.touch(moved, "move", "leak", ["what belongs together lies in one fold"] * len(moved))
    rows.fold[moved] = wanted[changed]
