"""Leakage across splits: samples to validate or test on that belong together with one to train on."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveal.auditing.checked import Checked
from foveal.auditing.duplicates import Pairs, same_content
from foveal.auditing.findings import Finding
from foveal.data.manifest import Manifest
from foveal.data.split import connected, siblings
from foveal.types import SPLITS

Integers = NDArray[np.int64]
_TRAIN, _VAL, _TEST = range(3)


def belonging(manifest: Manifest, *codes: Integers) -> Integers:
    """Which rows belong together: by group, photograph or bytes (`data.split.siblings`), or by any further code.

    Args:
        manifest: quarantined rows belong to nobody.
        *codes: int64 [rows] each, such as clusters of near duplicates or of copies by name; -1 where alone.

    Returns:
        int64 [rows], equal for rows that belong together, by first appearance.
    """
    usable = manifest.is_usable()
    return connected(len(manifest), [siblings(manifest), *(np.where(usable, code, -1) for code in codes)])


def leaks(manifest: Manifest, components: Integers, pairs: Pairs, names: Integers | None = None) -> Checked:
    """One finding for each usable val or test row that has a sibling in train, with its most similar one.

    A sibling by way of its group, its photograph, its bytes or its name has no similarity, and no value. What val and
    test share without train is told as a warning, once for each test row: it makes a choice by val look good on test.

    Args:
        manifest: with its splits.
        components: int64 [rows], what belongs together (`belonging`).
        pairs: similar rows.
        names: int64 [rows], clusters of copies by name, to say so; -1 where alone.
    """
    split = np.where(manifest.is_usable(), manifest.split_codes(), -1)
    if not (split == _TRAIN).any() or not (split > _TRAIN).any():
        return Checked("leak", skipped="The data brings no split with train and val or test, so nothing can leak yet.")
    leaked = _rows_with(components, split, split > _TRAIN, _TRAIN)
    shared = _rows_with(components, split, split == _TEST, _VAL)
    ties = _Ties(manifest, components, pairs, names, split)
    findings = _tell(ties, leaked, _TRAIN)
    findings += _tell(ties, np.setdiff1d(shared, leaked), _VAL)
    return Checked("leak", findings)


def leakage(manifest: Manifest, components: Integers) -> dict[str, dict[str, Any]]:
    """How many samples of val and test have a sibling in train.

    Returns:
        By split (those that have samples; none where there is no train): `num_images`,
        `num_with_siblings_in_train`, `share` (0..1) and `by_class`: name to [samples, those with a sibling].
    """
    split = np.where(manifest.is_usable(), manifest.split_codes(), -1)
    labels, names = manifest.label_ids(), manifest.class_names
    found: dict[str, dict[str, Any]] = {}
    if not (split == _TRAIN).any():
        return found
    for code in (_VAL, _TEST):
        if not (split == code).any():
            continue
        rows = _rows_with(components, split, split == code, _TRAIN)
        totals = np.bincount(labels[split == code], minlength=len(names)).tolist()
        counts = np.bincount(labels[rows], minlength=len(names)).tolist()
        found[SPLITS[code]] = {
            "num_images": sum(totals),
            "num_with_siblings_in_train": len(rows),
            "share": len(rows) / sum(totals),
            "by_class": {
                name: [total, count] for name, total, count in zip(names, totals, counts, strict=True) if total
            },
        }
    return found


def _rows_with(components: Integers, split: Integers, asked: NDArray[np.bool_], code: int) -> Integers:
    """The rows asked for that have a sibling in a split."""
    there = np.zeros(int(components.max()) + 1, dtype=np.bool_)
    there[components[split == code]] = True
    return np.flatnonzero(asked & there[components])


class _Ties:
    """What ties a row to one of another split, the closest tie first."""

    def __init__(
        self, manifest: Manifest, components: Integers, pairs: Pairs, names: Integers | None, split: Integers
    ) -> None:
        self.split, self.pairs = split, pairs
        usable = manifest.is_usable()
        codes = {name: np.where(usable, manifest.codes(name), -1) for name in ("sha256", "path", "group")}
        no_name = np.full(len(manifest), -1, dtype=np.int64)
        self.paths = codes["path"]
        self.groups = manifest.column("group")
        self.codes: Sequence[tuple[str, Integers]] = (
            ("content", same_content(manifest)),
            ("path", codes["path"]),
            ("sha256", codes["sha256"]),
            ("name", no_name if names is None else names),
            ("group", codes["group"]),
            ("component", components),
        )

    def most_similar(self, rows: Integers, code: int) -> tuple[Integers, NDArray[np.float64], Integers]:
        """Each row's most similar row in a split, -1 where no pair leads there; similarity; the place of the pair."""
        # Boxes of one photograph that overlap are similar, and no copies.
        true = self.pairs.is_exact | (self.paths[self.pairs.left] != self.paths[self.pairs.right])
        left, right = self.pairs.left[true], self.pairs.right[true]
        source, target = np.concatenate([left, right]), np.concatenate([right, left])
        similarity = np.concatenate([self.pairs.similarity[true]] * 2).astype(np.float64)
        is_exact = np.concatenate([self.pairs.is_exact[true]] * 2)
        is_asked = np.zeros(len(self.split), dtype=np.bool_)
        is_asked[rows] = True
        order = np.flatnonzero(is_asked[source] & (self.split[target] == code))
        order = order[np.lexsort((target[order], -similarity[order], ~is_exact[order], source[order]))]
        found, at = np.unique(source[order], return_index=True)
        best = np.full(len(self.split), -1, dtype=np.int64)
        best[found] = order[at]
        best = best[rows]
        related = np.where(best >= 0, target[best] if len(target) else -1, -1)
        value = np.where(best >= 0, similarity[best] if len(target) else np.nan, np.nan)
        pair = np.where(best >= 0, np.flatnonzero(true)[best % len(left)] if len(left) else -1, -1)
        return related, value, pair

    def first_by(self, codes: Integers, rows: Integers, code: int) -> Integers:
        """For each row the first of a split that shares its code, -1 where none does."""
        there = np.flatnonzero((self.split == code) & (codes >= 0))
        first = np.full(int(codes.max(initial=0)) + 1, -1, dtype=np.int64)
        first[codes[there][::-1]] = there[::-1]
        return np.where(codes[rows] >= 0, first[codes[rows]], -1)


def _tell(ties: _Ties, rows: Integers, code: int) -> list[Finding]:
    if not rows.size:
        return []
    related, values, pair = ties.most_similar(rows, code)
    is_exact = (pair >= 0) & (ties.pairs.is_exact[pair] if len(ties.pairs) else False)
    reasons = np.where(is_exact, "content", "pair").astype(object)
    for reason, codes in ties.codes:
        by_code = ties.first_by(codes, rows, code)
        # The same bytes are a closer tie than any similarity; all others come in where no pair leads.
        wins = (by_code >= 0) & ((related < 0) | ((reason == "content") & ~is_exact))
        related, values = np.where(wins, by_code, related), np.where(wins, np.nan, values)
        reasons[wins] = reason
    findings = []
    listed = (each.tolist() for each in (rows, related, values, reasons, pair))
    for row, other, value, reason, place in zip(*listed, strict=True):
        change = ties.pairs.describe(place) if reason == "pair" else ""
        findings.append(
            Finding(
                "leak",
                "blocking" if code == _TRAIN else "warning",
                "move",
                row=row,
                related_row=other,
                value=None if value != value else value,
                detail=_sentence(reason, SPLITS[ties.split[row]], SPLITS[code], change, ties.groups[row]),
            )
        )
    return findings


def _sentence(reason: str, split: str, where: str, change: str, group: str | None) -> str:
    return {
        "content": f"This {split} image is also in {where}: the same bytes.",
        "pair": f"A copy of this {split} image is in {where}: {change}.",
        "path": f"Another box of its photograph is in {where}.",
        "sha256": f"A box of the same photograph, under another name, is in {where}.",
        "name": f"By its name it was made from the same original as an image in {where}.",
        "group": f"Others of its group {group!r} are in {where}.",
        "component": f"A copy of a copy of it, or of one of its group, is in {where}.",
    }[reason]
