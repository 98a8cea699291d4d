"""Copies by content: exact and near duplicates, and the same picture under two labels."""

import numpy as np
from numpy.typing import NDArray

from foveal.auditing.checked import Checked
from foveal.auditing.duplicates import Pairs, same_content
from foveal.auditing.findings import Finding
from foveal.data.components import components
from foveal.data.manifest import Manifest
from foveal.data.split import connected

Integers = NDArray[np.int64]


def exact_sets(manifest: Manifest, pairs: Pairs) -> Integers:
    """The first row of each row's set of exact duplicates, int64 [rows]; of a row that has none, itself."""
    left, right = pairs.left[pairs.is_exact], pairs.right[pairs.is_exact]
    component = connected(len(manifest), [same_content(manifest)], np.stack([left, right], axis=1))
    _, first = np.unique(component, return_index=True)
    return first.astype(np.int64)[component]


def exact_duplicates(manifest: Manifest, pairs: Pairs) -> Checked:
    """Samples of the same bytes and box: of a set of n, n - 1 findings against its first row."""
    first, splits = exact_sets(manifest, pairs), manifest.split_codes()
    rows = np.flatnonzero(first != np.arange(len(first)))
    rows = rows[np.argsort(first[rows], kind="stable")]
    findings = [
        Finding(
            "exact_duplicate",
            "warning",
            "keep_one",
            row=row,
            related_row=other,
            value=1.0,
            detail="The same bytes." if same else "The same bytes, in another split.",
        )
        for row, other, same in zip(
            rows.tolist(), first[rows].tolist(), (splits[rows] == splits[first[rows]]).tolist(), strict=True
        )
    ]
    return Checked("exact_duplicate", findings)


def near_duplicates(manifest: Manifest, pairs: Pairs) -> Checked:
    """The pairs that hold each cluster of near duplicates together (`spanning_pairs`), most similar first.

    Exact duplicates count as one sample, so that ten copies of one file beside a resized one are one pair and not ten.
    Two boxes of one photograph are not copies of each other, however much they overlap.
    """
    first = exact_sets(manifest, pairs)
    near = _near(manifest, pairs)
    left, right = first[pairs.left[near]], first[pairs.right[near]]
    kept = spanning_pairs(left, right, pairs.similarity[near])
    splits = manifest.split_codes()
    findings = []
    for place, one, two in zip(near[kept].tolist(), left[kept].tolist(), right[kept].tolist(), strict=True):
        row, other = min(one, two), max(one, two)
        where = "" if splits[row] == splits[other] else " They are in two splits."
        findings.append(
            Finding(
                "near_duplicate",
                "warning",
                "regroup",
                row=row,
                related_row=other,
                value=float(pairs.similarity[place]),
                detail=f"Copies of one picture: {pairs.describe(place)}.{where}",
            )
        )
    return Checked("near_duplicate", findings)


def label_conflicts(manifest: Manifest, pairs: Pairs) -> Checked:
    """The same picture under two labels: exact duplicates first, then near ones.

    Of exact duplicates, each row whose label is not that of most of its set (of the first row, where none leads) is
    told against one that has it; of near ones, each with the most similar of another label. Which of the two labels is
    wrong, or whether both are right, only a person can tell.
    """
    labels, splits = manifest.codes("label"), manifest.split_codes()
    first = exact_sets(manifest, pairs)
    rows, others = _exact_conflicts(first, labels)
    near = _near(manifest, pairs)
    near = near[labels[pairs.left[near]] != labels[pairs.right[near]]]
    # Copies of the same bytes under one label count once; under two labels, each label counts.
    _, lowest, of_label = np.unique(
        first * (int(labels.max(initial=0)) + 1) + labels, return_index=True, return_inverse=True
    )
    lead = lowest.astype(np.int64)[of_label]
    left, right = lead[pairs.left[near]], lead[pairs.right[near]]
    kept = spanning_pairs(left, right, pairs.similarity[near])
    rows = np.concatenate([rows, np.minimum(left, right)[kept]])
    others = np.concatenate([others, np.maximum(left, right)[kept]])
    values = np.concatenate([np.ones(len(rows) - len(kept)), pairs.similarity[near][kept]])
    names = manifest.column("label")
    findings = []
    for row, other, value in zip(rows.tolist(), others.tolist(), values.tolist(), strict=True):
        same = "The same bytes are" if value == 1.0 and first[row] == first[other] else "Copies of one picture are"
        where = "" if splits[row] == splits[other] else ", in two splits"
        detail = f"{same} filed under {names[row]!r} and under {names[other]!r}{where}."
        findings.append(
            Finding("label_conflict", "blocking", "quarantine", row=row, related_row=other, value=value, detail=detail)
        )
    return Checked("label_conflict", findings)


def spanning_pairs(left: Integers, right: Integers, similarity: NDArray[np.float32]) -> Integers:
    """The pairs that hold each cluster together, most similar first: a cluster of n copies keeps n - 1 of them.

    All pairs of n copies would be up to n² / 2; these join the same rows, and each row's most similar other is among
    them. It is the spanning forest of the greatest similarity.

    Source: O. Borůvka, "O jistém problému minimálním", 1926, here over whole arrays.

    Args:
        left: int64 [pairs], one row of each, in any order; pairs of a row with itself are dropped.
        right: int64 [pairs], the other row.
        similarity: float32 [pairs].

    Returns:
        int64 [kept], places in what was given.
    """
    low, high = np.minimum(left, right), np.maximum(left, right)
    order = np.flatnonzero(low != high)
    order = order[np.lexsort((high[order], low[order], -similarity[order]))]
    nodes, places = np.unique(np.concatenate([low[order], high[order]]), return_inverse=True)
    one, two = places[: len(order)], places[len(order) :]
    kept = np.zeros(len(order), dtype=np.bool_)
    component, waiting = np.arange(len(nodes)), np.arange(len(order))
    while waiting.size:
        # The first pair that leads out of each component is its most similar; no two are equal, so none closes a ring.
        ends = np.stack([component[one[waiting]], component[two[waiting]]], axis=1).reshape(-1)
        _, first = np.unique(ends, return_index=True)
        kept[waiting[np.unique(first // 2)]] = True
        component = components(len(nodes), one[kept], two[kept])
        waiting = waiting[component[one[waiting]] != component[two[waiting]]]
    return order[kept]


def _near(manifest: Manifest, pairs: Pairs) -> Integers:
    """Places of the pairs that are near duplicates, of two photographs."""
    paths = manifest.codes("path")
    return np.flatnonzero(~pairs.is_exact & (paths[pairs.left] != paths[pairs.right]))


def _exact_conflicts(first: Integers, labels: Integers) -> tuple[Integers, Integers]:
    """Rows whose label is not their set's, each with the first row that has the set's label."""
    sizes = np.bincount(first, minlength=len(first))
    rows = np.flatnonzero(sizes[first] > 1)
    if not rows.size:
        return rows, rows
    num_labels = int(labels.max()) + 1
    kinds, at, counts = np.unique(first[rows] * num_labels + labels[rows], return_index=True, return_counts=True)
    sets, at = kinds // num_labels, rows[at]
    # Of each set, the label with most rows; of equal ones, that whose first row comes first.
    order = np.lexsort((at, -counts, sets))
    _, leaders = np.unique(sets[order], return_index=True)
    leading = order[leaders]
    leader_of = np.full(len(first), -1, dtype=np.int64)
    leader_of[sets[leading]] = at[leading]
    related = leader_of[first[rows]]
    differs = labels[rows] != labels[related]
    return rows[differs], related[differs]
