"""From what an audit found to a repaired manifest and a log of every row that changed: a pure function of tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from foveal.auditing.findings import FindingsTable
from foveal.auditing.repair_copies import keep_one, move, write_groups
from foveal.auditing.repair_policy import RepairPolicy
from foveal.auditing.repair_rows import Found, Integers, Rows, told
from foveal.auditing.reviewed import Corrections
from foveal.data.class_names import exclude_option
from foveal.data.manifest import Manifest
from foveal.data.split import connected
from foveal.errors import DataError
from foveal.files import natural_key
from foveal.types import SPLITS

SAMPLE_KINDS = (
    *("unreadable", "corrupt_jpeg", "blank", "wrong_label", "off_domain", "tiny", "blurred", "dark", "overexposed"),
    *("odd_aspect", "binarised", "odd_channels", "animated"),
)


@dataclass(frozen=True)
class Cleaned:
    """A repaired manifest.

    Attributes:
        manifest: the rows in their order, without those that were dropped.
        log: a line for each row that is not what it was, by `LOG_COLUMNS`, in the order of the paths.
        num_left: findings by kind that the policy does nothing about.
        notes: what is worth telling.
    """

    manifest: Manifest
    log: list[tuple[str, ...]]
    num_left: Mapping[str, int]
    notes: tuple[str, ...]


def clean(
    manifest: Manifest, findings: FindingsTable, policy: RepairPolicy, corrections: Corrections | None = None
) -> Cleaned:
    """Apply a policy. Done again on its own result, it changes nothing; the order of the rows decides nothing.

    Labels first, for they decide what a conflict and a set of copies is; then what is unusable; then copies; and the
    sides last, for they depend on what is left.

    Args:
        manifest: as the audit wrote it.
        findings: of the same audit.
        policy: an action for each kind of finding.
        corrections: labels that a person has stated.

    Raises:
        ArtifactError: the findings are of another manifest.
        DataError: a class would be left without an image to train on, or a split without any.
    """
    found, rows = Found.of(findings, manifest), Rows(manifest)
    notes: list[str] = []
    if corrections is not None:
        _relabel(rows, corrections)
    _merge_classes(rows, found, policy)
    _remove_samples(rows, found, policy)
    _remove_conflicts(rows, found, policy)
    keep_one(rows, found, policy)
    write_groups(rows, found, policy)
    notes += move(rows, found, policy)
    _refuse_untrained(rows)
    cleaned = rows.result()
    left = found.num_left(policy)
    return Cleaned(cleaned, rows.log(), left, (*notes, *_notes(rows, cleaned, found)))


def _relabel(rows: Rows, corrections: Corrections) -> None:
    rows.class_names += sorted(set(corrections.labels) - set(rows.class_names))
    places = {name: number for number, name in enumerate(rows.class_names)}
    wanted = np.array([places[name] for name in corrections.labels], dtype=np.int64)
    rows.is_stated[corrections.rows] = True
    changed = wanted != rows.label[corrections.rows]
    of_changed = corrections.rows[changed]
    reasons = [f"{corrections.noun} {number} of {corrections.name}" for number in corrections.numbers[changed]]
    rows.touch(of_changed, "relabel", "reviewed", reasons)
    rows.label[of_changed] = wanted[changed]


def _merge_classes(rows: Rows, found: Found, policy: RepairPolicy) -> None:
    """Classes of nearly one name become that with most usable images; of equal ones the first in natural order."""
    if policy.class_names_alike == "none":
        return
    places = {name: number for number, name in enumerate(rows.class_names)}
    chosen = found.of_kind("class_names_alike")
    ends = [
        (places[one], places[other])
        for one, other in zip(found.label[chosen], found.related_label[chosen], strict=True)
        if one in places and other in places
    ]
    if not ends:
        return
    one_class = connected(len(places), [], np.array(ends, dtype=np.int64))
    counts = rows.counts().sum(axis=0)
    best = sorted(range(len(places)), key=lambda number: (-counts[number], natural_key(rows.class_names[number])))
    target_of = {int(one_class[number]): number for number in reversed(best)}
    target = np.array([target_of[int(number)] for number in one_class], dtype=np.int64)
    changed = np.flatnonzero(target[rows.label] != rows.label)
    new = target[rows.label[changed]]
    names = np.array(rows.class_names, dtype=object)
    reasons = [
        f"{old!r} and {name!r} are one class" for old, name in zip(names[rows.label[changed]], names[new], strict=True)
    ]
    rows.touch(changed, "merge_classes", "class_names_alike", reasons)
    rows.label[changed] = new


def _remove_samples(rows: Rows, found: Found, policy: RepairPolicy) -> None:
    """Quarantine or drop what findings about single samples name; the first kind of the policy gives the reason."""
    for kind in policy.kinds_with("quarantine", "drop"):
        if kind not in SAMPLE_KINDS:
            continue
        chosen = found.of_kind(kind)
        chosen = chosen[found.row[chosen] >= 0]
        texts: dict[int, str] = {}
        for row, detail in zip(found.row[chosen].tolist(), found.detail[chosen], strict=True):
            text = told(kind, detail)
            texts[row] = min(text, texts.get(row, text))  # whichever finding comes first
        if kind == "wrong_label":
            texts = {row: text for row, text in texts.items() if not rows.is_stated[row]}
        _remove(rows, kind, policy, np.array(sorted(texts), dtype=np.int64), texts)


def _remove(rows: Rows, kind: str, policy: RepairPolicy, which: Integers, texts: Mapping[int, str]) -> None:
    if policy.action(kind) == "drop":
        gone = which[~rows.dropped[which]]
        rows.drop(gone, kind, [texts[row] for row in gone.tolist()])
    else:
        used = which[rows.usable[which]]
        rows.quarantine(used, "quarantine", kind, [texts[row] for row in used.tolist()])


def _remove_conflicts(rows: Rows, found: Found, policy: RepairPolicy) -> None:
    """Quarantine or drop all copies of a picture under two labels, but for those whose label a person has stated."""
    if policy.label_conflict == "none":
        return
    pairs = found.pairs("label_conflict")
    pairs = pairs[rows.label[pairs[:, 0]] != rows.label[pairs[:, 1]]]
    pairs = pairs[~rows.dropped[pairs].any(axis=1)]
    if not len(pairs):
        return
    same = found.pairs("exact_duplicate")
    picture = connected(len(rows), [], np.concatenate([pairs, same[~rows.dropped[same].any(axis=1)]]))
    members = np.flatnonzero(np.isin(picture, picture[pairs[:, 0]]))
    order = members[np.lexsort((rows.rank[members], picture[members]))]
    firsts = order[np.diff(picture[order], prepend=-1) != 0]
    first_of = dict(zip(picture[firsts].tolist(), firsts.tolist(), strict=True))
    other_of: dict[int, int] = {}
    for row in order.tolist():
        if rows.label[row] != rows.label[first_of[int(picture[row])]]:
            other_of.setdefault(int(picture[row]), row)
    texts: dict[int, str] = {}
    for row in members[~rows.is_stated[members]].tolist():
        number = int(picture[row])
        first = first_of[number]
        other = other_of[number] if rows.label[row] == rows.label[first] else first
        name = rows.class_names[rows.label[other]]
        texts[row] = f"label conflict: the same picture is {rows.paths[other]}, labelled {name!r}"
    _remove(rows, "label_conflict", policy, np.array(list(texts), dtype=np.int64), texts)


def _refuse_untrained(rows: Rows) -> None:
    """Refuse a result in which a class has images to measure on and none to learn from, where it had some."""
    before = Rows(rows.manifest).counts()
    after, names = rows.counts(), rows.class_names
    trained = before[0].copy()
    trained.resize(len(names))
    lost = np.flatnonzero((trained > 0) & (after[0] == 0) & (after[1:3].sum(axis=0) > 0))
    if not lost.size:
        return
    raise DataError(
        f"{len(lost)} of {len(names)} classes would be left without an image to train on.",
        problems=[_where_they_went(rows, int(number)) for number in lost],
        fix="change the policy: regroup in place of keep_one keeps all copies, and move_to: train or balance leaves a "
        f"class in train; or leave these classes out of the audit: {exclude_option(names[number] for number in lost)}",
    )


def _where_they_went(rows: Rows, number: int) -> str:
    manifest = rows.manifest
    of_class = np.flatnonzero(manifest.is_usable() & (manifest.split_codes() == 0) & (manifest.label_ids() == number))
    out = ~rows.usable[of_class]
    renamed = ~out & (rows.label[of_class] != number)
    counts = [f"{int(out.sum())} quarantined or dropped", f"{int(renamed.sum())} given another label"]
    still = of_class[~out & ~renamed]
    counts += [f"{int((rows.split[still] == code).sum())} moved to {name}" for code, name in enumerate(SPLITS) if code]
    counts = [text for text in counts if not text.startswith("0 ")]
    return f"class {rows.class_names[number]!r}: of {len(of_class)} images in train {', '.join(counts)}"


def _notes(rows: Rows, cleaned: Manifest, found: Found) -> Sequence[str]:
    notes = []
    gone = [name for name in rows.manifest.class_names if name not in cleaned.class_names]
    if gone:
        notes.append(f"Classes that are no more: {', '.join(map(repr, gone))}.")
    before, after = Rows(rows.manifest).counts(), rows.counts()
    before = np.pad(before, ((0, 0), (0, after.shape[1] - before.shape[1])))
    kept = [number for number, name in enumerate(rows.class_names) if name in cleaned.class_names]
    unusable = [rows.class_names[n] for n in kept if before[:, n].sum() and not after[:, n].sum()]
    if unusable:
        notes.append(
            f"Classes without a usable image now: {', '.join(map(repr, unusable))}. Leave them out of what comes next: "
            + exclude_option(unusable)
        )
    for code, split in enumerate(SPLITS):
        lost = [rows.class_names[n] for n in kept if before[code, n] and not after[code, n] and after[:, n].sum()]
        if lost:
            notes.append(f"Classes that {split} has lost: {', '.join(map(repr, lost))}.")
    if found.num_absent:
        notes.append(f"{found.num_absent:,} findings are about samples that the manifest does not have; passed over.")
    return notes
