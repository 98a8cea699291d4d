"""The rows of a manifest while they are repaired, what was found about them, and the log of what changed and why."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveal.auditing.findings import FindingsTable
from foveal.auditing.kinds import KINDS
from foveal.auditing.repair_policy import REPAIRABLE, RepairPolicy, default_repair
from foveal.data.manifest import Manifest
from foveal.errors import ArtifactError, DataError
from foveal.extras import require
from foveal.files import natural_key
from foveal.types import SPLITS

Integers = NDArray[np.int64]
Mask = NDArray[np.bool_]

LOG_COLUMNS = ("sample_id", "path", "label", "action", "before", "after", "finding", "reason")
PAIR_KINDS = ("label_conflict", "exact_duplicate", "near_duplicate", "copy_by_name", "leak")
"""Findings about two samples that show the same."""
NO_FOLD = -1


@dataclass(frozen=True)
class Found:
    """The findings, with samples as rows of the manifest.

    Attributes:
        kind: object [findings].
        row, related_row: int64 [findings]; -1 where there is none, or none any more.
        is_left: bool [findings], whether the audit leaves this one to a person, though its kind has a repair.
        label, related_label, detail: object [findings], text or None.
        num_absent: findings about samples that the manifest does not have.
    """

    kind: NDArray[np.object_]
    row: Integers
    related_row: Integers
    is_left: Mask
    label: NDArray[np.object_]
    related_label: NDArray[np.object_]
    detail: NDArray[np.object_]
    num_absent: int

    @classmethod
    def of(cls, findings: FindingsTable, manifest: Manifest) -> "Found":
        """Look the samples up.

        Raises:
            ArtifactError: none of the samples is in the manifest, so that the two are not of one audit.
            DataError: the manifest has two rows of one sample_id.
        """
        pa = require("pyarrow", extra="train", purpose="read findings")
        compute = require("pyarrow.compute", extra="train", purpose="read findings")
        known = manifest.table["sample_id"].combine_chunks()
        if compute.count_distinct(known).as_py() != len(known):
            raise DataError("The manifest has several rows of one sample_id.", fix="make the audit again.")
        rows, is_given = {}, {}
        for name in ("sample_id", "related_sample_id"):
            ids = pa.array(findings.columns[name], pa.string())
            rows[name] = compute.index_in(ids, value_set=known).fill_null(-1).to_numpy().astype(np.int64)
            is_given[name] = ids.is_valid().to_numpy(zero_copy_only=False)
        absent = is_given["sample_id"] & (rows["sample_id"] < 0)
        absent |= is_given["related_sample_id"] & (rows["related_sample_id"] < 0)
        if absent.any() and not (rows["sample_id"] >= 0).any():
            raise ArtifactError(
                f"The findings are of another manifest: none of {int(absent.sum()):,} that are about samples is about "
                f"one of its {len(manifest):,}.",
                fix="make the audit again: foveal audit DATA --out DIR",
            )
        names = ("finding", "label", "related_label", "detail", "repair")
        text = {name: np.array(findings.columns[name], dtype=object) for name in names}
        has_repair = np.isin(text["finding"], [kind for kind in REPAIRABLE if default_repair(kind) != "none"])
        return cls(
            kind=text["finding"],
            row=rows["sample_id"],
            related_row=rows["related_sample_id"],
            is_left=has_repair & (text["repair"] == "none"),
            label=text["label"],
            related_label=text["related_label"],
            detail=text["detail"],
            num_absent=int(absent.sum()),
        )

    def of_kind(self, *names: str) -> Integers:
        """Numbers of the findings of some kinds, but for those that are left to a person."""
        return np.flatnonzero(np.isin(self.kind, names) & ~self.is_left) if names else np.empty(0, dtype=np.int64)

    def num_left(self, policy: RepairPolicy) -> dict[str, int]:
        """How many findings by kind nothing is done about, the most first."""
        unrepaired = [kind for kind in set(self.kind) if policy.action(kind) == "none"]
        left = Counter(self.kind[self.is_left | np.isin(self.kind, unrepaired)].tolist())
        return dict(sorted(left.items(), key=lambda item: (-item[1], item[0])))

    def pairs(self, *names: str) -> Integers:
        """The pairs of rows of some kinds, int64 [pairs, 2]."""
        chosen = self.of_kind(*names)
        both = np.stack([self.row[chosen], self.related_row[chosen]], axis=1)
        kept: Integers = both[(both >= 0).all(axis=1)]
        return kept


class Rows:
    """The columns of a manifest that repairs change.

    Attributes:
        manifest: as the audit wrote it; never changed.
        class_names: of `label`; grows where a reviewed file brings in a class.
        label: int64 [rows], place in `class_names`.
        split: int64 [rows], place in `SPLITS`, or -1.
        fold: int64 [rows], or `NO_FOLD`.
        group: Arrow text [rows].
        usable: bool [rows], neither in quarantine nor dropped.
        dropped: bool [rows].
        reason: object [rows], why a row is in quarantine.
        is_stated: bool [rows], whether a person has stated the label.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.class_names = list(manifest.class_names)
        self.label = manifest.label_ids().copy()
        self.split = manifest.split_codes().copy()
        fold = manifest.column("fold")
        self.fold = np.where(np.isnan(fold), NO_FOLD, np.nan_to_num(fold)).astype(np.int64)
        self.group: Any = manifest.table["group"].combine_chunks()
        self.usable = manifest.is_usable().copy()
        self.dropped = np.zeros(len(manifest), dtype=np.bool_)
        self.reason = manifest.column("reason").copy()
        self.is_stated = np.zeros(len(manifest), dtype=np.bool_)
        self._touched: list[tuple[Integers, str, Sequence[str], Sequence[str]]] = []
        self._before = (self.label.copy(), self.split.copy(), self.fold.copy(), self.group, self.usable.copy())

    def __len__(self) -> int:
        return len(self.label)

    @cached_property
    def paths(self) -> NDArray[np.object_]:
        """Each row's path, object [rows]."""
        return self.manifest.column("path")

    @cached_property
    def rank(self) -> Integers:
        """Each row's place in the order of paths and sample ids, which does not depend on that of the rows."""
        compute = require("pyarrow.compute", extra="train", purpose="read manifests")
        order = compute.sort_indices(
            self.manifest.table, sort_keys=[("path", "ascending"), ("sample_id", "ascending")]
        ).to_numpy()
        rank = np.empty(len(self), dtype=np.int64)
        rank[order] = np.arange(len(self))
        return rank

    def counts(self) -> Integers:
        """Usable rows by split and class, int64 [4, classes]; the last are those without a split."""
        return tally(self.split[self.usable], self.label[self.usable], len(self.class_names))

    def touch(self, rows: Integers, action: str, finding: str | Sequence[str], reasons: Sequence[str]) -> None:
        """Note for the log why rows are changed."""
        if rows.size:
            self._touched.append(
                (rows, action, [finding] * len(rows) if isinstance(finding, str) else finding, reasons)
            )

    def quarantine(self, rows: Integers, action: str, finding: str | Sequence[str], reasons: Sequence[str]) -> None:
        """Take usable rows out of use."""
        self.touch(rows, action, finding, reasons)
        self.usable[rows] = False
        self.reason[rows] = reasons

    def drop(self, rows: Integers, finding: str, reasons: Sequence[str]) -> None:
        """Let rows leave the manifest."""
        self.touch(rows, "drop", finding, reasons)
        self.usable[rows] = False
        self.dropped[rows] = True

    def companions(self, component: Integers, rows: Integers) -> tuple[Integers, Integers]:
        """For each row the least of the others in its component, and how many there are in all, itself included.

        Args:
            component: int64 [all rows].
            rows: those to look at, whole components; each has at least two.
        """
        order = rows[np.lexsort((self.rank[rows], component[rows]))]
        of_order = component[order]
        starts = np.flatnonzero(np.diff(of_order, prepend=-1))
        place = np.searchsorted(of_order[starts], component[rows])
        first, second = order[starts], order[np.minimum(starts + 1, len(order) - 1)]
        sizes = np.diff(np.append(starts, len(order)))
        return np.where(first[place] == rows, second[place], first[place]), sizes[place]

    def result(self) -> Manifest:
        """The manifest as it is now, without the rows that were dropped and the classes that vanished."""
        pa = require("pyarrow", extra="train", purpose="write manifests")
        label, split, fold, _, usable = self._before
        changed: dict[str, Any] = {}
        if (label != self.label).any():
            changed["label"] = pa.array(self.class_names, pa.string()).take(pa.array(self.label))
        if (split != self.split).any():
            changed["split"] = pa.array(SPLITS, pa.string()).take(pa.array(self.split, mask=self.split < 0))
        if (fold != self.fold).any():
            changed["fold"] = np.where(self.fold == NO_FOLD, np.nan, self.fold)
        if (usable != self.usable).any():
            states = pa.array(["ok", "quarantined"]).take(pa.array((~self.usable).astype(np.int64)))
            changed |= {"status": states, "reason": self.reason}
        changed["group"] = self.group
        manifest = self.manifest.with_columns(**changed).take(~self.dropped)
        had_rows, has_rows = (np.bincount(codes, minlength=len(self.class_names)) > 0 for codes in self._both_labels())
        names = [
            name
            for number, name in enumerate(self.class_names)
            if has_rows[number] or (number < len(self.manifest.class_names) and not had_rows[number])
        ]
        # One chunk, so that the same rows always make the same file.
        return Manifest(manifest.table.combine_chunks(), manifest.images_root, tuple(sorted(names, key=natural_key)))

    def _both_labels(self) -> tuple[Integers, Integers]:
        return self._before[0], self.label[~self.dropped]

    def log(self) -> list[tuple[str, ...]]:
        """A line for each row that is not what it was, by `LOG_COLUMNS`, in the order of the paths."""
        before, after = self._changes()
        changed = sorted(before, key=lambda row: self.rank[row])
        why: dict[int, list[tuple[str, str, str]]] = {row: [] for row in changed}
        for rows, action, findings, reasons in self._touched:
            for row, finding, reason in zip(rows.tolist(), findings, reasons, strict=True):
                if row in why:
                    why[row].append((action, finding, reason))
        ids = self.manifest.table["sample_id"].take(np.array(changed, dtype=np.int64)).to_pylist()
        old = self._before[0]
        return [
            (
                *(identifier, self.paths[row], self.class_names[old[row]], _once(each[0] for each in why[row])),
                *(before[row], after[row], _once(each[1] for each in why[row]), _once(each[2] for each in why[row])),
            )
            for identifier, row in zip(ids, changed, strict=True)
        ]

    def _changes(self) -> tuple[dict[int, str], dict[int, str]]:
        """By row what was and what is, where they differ."""
        label, split, fold, group, usable = self._before
        names, sides = np.array(self.class_names, dtype=object), np.array([*SPLITS, ""], dtype=object)
        old_group, new_group = np.array(group, dtype=object), np.array(self.group, dtype=object)
        states = np.array(["quarantined", "ok"], dtype=object)
        columns: list[tuple[str, NDArray[np.object_], NDArray[np.object_]]] = [
            ("label", names[label], names[self.label]),
            ("split", sides[split], sides[self.split]),
            ("fold", _fold_names(fold), _fold_names(self.fold)),
            ("group", old_group, new_group),
            ("status", states[usable.astype(np.int64)], states[self.usable.astype(np.int64)]),
        ]
        before: dict[int, str] = {}
        after: dict[int, str] = {}
        for name, old, new in columns:
            for row in np.flatnonzero(np.asarray(old != new, dtype=np.bool_) & ~self.dropped).tolist():
                for values, text in ((old, before), (new, after)):
                    shown = f"{name}={'' if values[row] is None else values[row]}"
                    text[row] = f"{text[row]}, {shown}" if row in text else shown
        for row in np.flatnonzero(self.dropped).tolist():
            before[row], after[row] = f"status={'ok' if usable[row] else 'quarantined'}", "no row"
        return before, after


def tally(split: Integers, label: Integers, num_classes: int) -> Integers:
    """Rows by split and class, int64 [4, classes]; the last are those without a split."""
    place = np.where(split < 0, len(SPLITS), split) * num_classes + label
    return np.bincount(place, minlength=(len(SPLITS) + 1) * num_classes).reshape(-1, num_classes).astype(np.int64)


def first_kind(findings: Found, component: Integers, kinds: Sequence[str]) -> NDArray[np.object_]:
    """The first of some kinds of pairs that links rows of each component, object [components]; None where none does."""
    first = np.full(int(component.max(initial=-1)) + 1, len(kinds), dtype=np.int64)
    for place, kind in enumerate(kinds):
        pairs = findings.pairs(kind)
        if len(pairs):
            np.minimum.at(first, component[pairs[:, 0]], place)
    return np.array([*kinds, None], dtype=object)[first]


def told(kind: str, detail: str | None) -> str:
    """Why a row is in quarantine, in the words of its finding."""
    title = kind.replace("_", " ")
    return f"{title}: {detail or KINDS[kind].title.lower()}"


def _once(texts: Iterator[str]) -> str:
    return "; ".join(dict.fromkeys(texts))


def _fold_names(folds: NDArray[np.int64]) -> NDArray[np.object_]:
    names: NDArray[np.object_] = folds.astype(object)
    names[folds == NO_FOLD] = None
    return names
