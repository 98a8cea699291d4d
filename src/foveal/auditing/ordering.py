"""What matters first: all findings of a kind in one sentence, the most severe kinds on top."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveal.auditing.broken_files import fault_of
from foveal.auditing.findings import SEVERITIES, Finding
from foveal.auditing.kinds import KINDS
from foveal.data.manifest import Manifest
from foveal.types import SPLITS

_MAX_NAMES = 3


@dataclass(frozen=True)
class _Context:
    """The manifest's columns that sentences need.

    Attributes:
        labels: object [rows].
        splits: int64 [rows], place in `SPLITS`, -1 where there is none or the row is not usable.
        num_rows, num_usable: counts of rows.
    """

    labels: NDArray[np.object_]
    splits: NDArray[np.int64]
    num_rows: int
    num_usable: int

    def label_of(self, finding: Finding) -> str | None:
        if finding.label is not None or finding.row is None:
            return finding.label
        label: str = self.labels[finding.row]
        return label


def ranked(findings: Sequence[Finding], manifest: Manifest) -> list[dict[str, Any]]:
    """One entry for each kind and severity: the severe first, and of one severity in the order of `kinds.KINDS`.

    Returns:
        For each `finding`, `severity`, `num` (findings), `repair` and `sentence`: one plain sentence with numbers.
    """
    context = _Context(
        manifest.column("label"),
        np.where(manifest.is_usable(), manifest.split_codes(), -1),
        len(manifest),
        int(np.count_nonzero(manifest.is_usable())),
    )
    places = {kind: place for place, kind in enumerate(KINDS)}
    by_kind: dict[tuple[str, str], list[Finding]] = {}
    for each in findings:
        by_kind.setdefault((each.severity, each.finding), []).append(each)
    order = sorted(
        by_kind,
        key=lambda key: (SEVERITIES.index(key[0]), places.get(key[1], len(places)), key[1]),
    )
    entries = []
    for severity, kind in order:
        found = by_kind[severity, kind]
        repairs = Counter(each.repair for each in found if each.repair != "none")
        entries.append(
            {
                "finding": kind,
                "severity": severity,
                "num": len(found),
                "repair": repairs.most_common(1)[0][0] if repairs else "none",
                "sentence": sentence(kind, found, context),
            }
        )
    return entries


def sentence(kind: str, found: Sequence[Finding], context: _Context) -> str:
    """All findings of one kind and severity in one sentence."""
    # A finding about the whole data says all there is to say.
    whole = [each for each in found if each.row is None and each.label is None and each.split is None]
    if whole and len(whole) == len(found):
        return " ".join(each.detail for each in whole)
    samples = [each for each in found if each.row is not None]
    if samples and (tell := _OF_SAMPLES.get(kind)):
        text = tell(samples, context)
    elif kind in _OF_CLASSES:
        text = _OF_CLASSES[kind](found, context)
    elif samples:
        title = KINDS[kind].title if kind in KINDS else kind
        text = f"{title}: {_images(len(samples))}{_worst(samples, context)}."
    else:
        text = " ".join(each.detail for each in found[:_MAX_NAMES])
    return " ".join([text, *(each.detail for each in whole)])


def _leak(found: Sequence[Finding], context: _Context) -> str:
    parts = []
    for code, split in enumerate(SPLITS):
        rows = np.array([each.row for each in found if context.splits[each.row or 0] == code], dtype=np.int64)
        total = int(np.count_nonzero(context.splits == code))
        if rows.size:
            parts.append(f"{len(rows):,} of {total:,} {split} images ({_percent(len(rows), total)})")
    where = "training" if found[0].severity == "blocking" else "validation"
    have = "has" if len(found) == 1 else "have"
    return f"{listed(parts)} {have} a copy or sibling in {where}{_worst_share(found, context)}."


def _worst_share(found: Sequence[Finding], context: _Context) -> str:
    """The class with the largest share of its images among the findings, in the splits that they are about."""
    counts = Counter(context.label_of(each) for each in found)
    evaluated = np.isin(context.splits, [context.splits[each.row] for each in found if each.row is not None])
    labels, totals = np.unique(context.labels[evaluated].astype(str), return_counts=True)
    if len(labels) < 2 or len(found) < 2:
        return ""
    total_of = dict(zip(labels.tolist(), totals.tolist(), strict=True))
    worst, count = max(counts.items(), key=lambda item: (item[1] / total_of.get(str(item[0]), np.inf), item[1]))
    return f"; worst in class {worst!r} ({count:,} of {total_of[str(worst)]:,})"


def _label_conflict(found: Sequence[Finding], context: _Context) -> str:
    pairs = Counter(
        tuple(sorted((str(context.label_of(each)), str(context.labels[each.related_row])))) for each in found
    )
    (one, other), count = pairs.most_common(1)[0]
    text = f"{_images(len(found))} {'is' if len(found) == 1 else 'are'} also filed under another class"
    return (
        f"{text}: {one!r} and {other!r}."
        if len(pairs) == 1
        else f"{text}, most often {one!r} and {other!r} ({count:,})."
    )


def _exact_duplicate(found: Sequence[Finding], context: _Context) -> str:
    sets = len({each.related_row for each in found})
    across = _across(found, context)
    verb = "is an exact copy" if len(found) == 1 else "are exact copies"
    return f"{_images(len(found))} {verb} of {sets:,} other{'s' if sets > 1 else ''}{across}{_worst(found, context)}."


def _near_duplicate(found: Sequence[Finding], context: _Context) -> str:
    rows = len({row for each in found for row in (each.row, each.related_row)})
    share = _percent(rows, context.num_usable)
    across = _across(found, context)
    return (
        f"{_images(rows)} ({share}) {'is a copy' if rows == 1 else 'are copies'} of one another, resized, turned, "
        + (f"recoloured or cut{across}.")
    )


def _copy_by_name(found: Sequence[Finding], context: _Context) -> str:
    sets = len({each.related_row for each in found})
    say = "says" if len(found) == 1 else "say"
    if found[0].severity == "note":
        return f"{_images(len(found))} {say} by name to be made from one of another class."
    made = f"made from {sets:,} original{'s' if sets > 1 else ''}"
    whose = "its" if len(found) == 1 else "their"
    return f"{_images(len(found))} {say} by {whose} name to be {made}{_across(found, context)}."


def _unreadable(found: Sequence[Finding], context: _Context) -> str:
    reasons = Counter(fault_of(each.detail) for each in found).most_common()
    told = [f"{reason[:1].lower()}{reason[1:]} ({count:,})" for reason, count in reasons[:_MAX_NAMES]]
    rest = sum(count for _, count in reasons[_MAX_NAMES:])
    many = f"{len(found):,} of {context.num_rows:,} samples cannot be used"
    return f"{many}: {'; '.join([*told, f'other faults ({rest:,})'] if rest else told)}."


def _of_pictures(one: str, many: str) -> Callable[[Sequence[Finding], _Context], str]:
    def tell(found: Sequence[Finding], context: _Context) -> str:
        what = one if len(found) == 1 else many
        return f"{_images(len(found))} ({_percent(len(found), context.num_rows)}) {what}{_worst(found, context)}."

    return tell


def _class_names_alike(found: Sequence[Finding], context: _Context) -> str:
    del context
    told = [f"{each.label!r} and {each.related_label!r}" for each in found]
    return f"Class names that are probably one: {_some(told)}."


def _class_too_small(found: Sequence[Finding], context: _Context) -> str:
    del context
    told = [f"{each.label!r} ({each.value:,.0f})" for each in found]
    if found[0].severity == "blocking":
        return f"{_classes(found)} too few independent images to be split: {_some(told)}."
    return f"{_classes(found)} few independent images: {_some(told)}."


def _empty_class(found: Sequence[Finding], context: _Context) -> str:
    del context
    return f"{_classes(found)} no usable image: {_some([repr(each.label) for each in found])}."


def _class_missing(found: Sequence[Finding], context: _Context) -> str:
    del context
    by_split: dict[str, list[str]] = {}
    for each in found:
        by_split.setdefault(str(each.split), []).append(repr(each.label))
    return " ".join(f"No image of {_some(names)} is in {split}." for split, names in by_split.items())


def _fewer_originals(found: Sequence[Finding], context: _Context) -> str:
    del context
    worst = found[0]
    return f"{_classes(found)} fewer originals than files; worst {worst.label!r}: {worst.detail}"


def _shortcut(found: Sequence[Finding], context: _Context) -> str:
    del context
    best: dict[str, float] = {}
    for each in found:
        best[str(each.label)] = max(best.get(str(each.label), 0.0), each.value or 0.0)
    many = "1 class can" if len(best) == 1 else f"{len(best):,} classes can"
    what = "file, size or border" if found[0].severity == "warning" else "box or light"
    told = [f"{label!r} ({value:.2f})" for label, value in best.items()]
    return f"{many} be told by {what} alone, by balanced accuracy: {_some(told)}."


_OF_SAMPLES: Mapping[str, Callable[[Sequence[Finding], _Context], str]] = {
    "leak": _leak,
    "label_conflict": _label_conflict,
    "unreadable": _unreadable,
    "corrupt_jpeg": _of_pictures("is a JPEG with damaged data", "are JPEG files with damaged data"),
    "animated": _of_pictures("has several frames or pages", "have several frames or pages"),
    "blank": _of_pictures("is blank", "are blank"),
    "tiny": _of_pictures("is tiny", "are tiny"),
    "blurred": _of_pictures("is blurred", "are blurred"),
    "dark": _of_pictures("is nearly black", "are nearly black"),
    "overexposed": _of_pictures("is nearly white", "are nearly white"),
    "odd_aspect": _of_pictures("has an unusual shape", "have an unusual shape"),
    "binarised": _of_pictures("has a few values only, as masks have", "have a few values only, as masks have"),
    "odd_channels": _of_pictures(
        "differs from the rest in having colour or none", "differ from the rest in having colour or none"
    ),
    "exact_duplicate": _exact_duplicate,
    "near_duplicate": _near_duplicate,
    "copy_by_name": _copy_by_name,
    "off_domain": _of_pictures("does not look like the others", "do not look like the others"),
    "wrong_label": _of_pictures("probably has a wrong label", "probably have a wrong label"),
}
_OF_CLASSES: Mapping[str, Callable[[Sequence[Finding], _Context], str]] = {
    "class_names_alike": _class_names_alike,
    "class_too_small": _class_too_small,
    "empty_class": _empty_class,
    "class_missing_in_split": _class_missing,
    "fewer_originals": _fewer_originals,
    "shortcut": _shortcut,
}


def _worst(found: Sequence[Finding], context: _Context) -> str:
    """The class that most of the findings are in, where it is not a matter of course."""
    counts = Counter(context.label_of(each) for each in found)
    if len(found) < 4:
        return ""
    worst, count = counts.most_common(1)[0]
    return f"; all in class {worst!r}" if len(counts) == 1 else f"; most in class {worst!r} ({count:,})"


def _across(found: Sequence[Finding], context: _Context) -> str:
    num = sum(
        1
        for each in found
        if each.row is not None
        and each.related_row is not None
        and context.splits[each.row] != context.splits[each.related_row]
    )
    return f", {num:,} of {len(found):,} pairs in two splits" if num else ""


def _images(num: int) -> str:
    return f"{num:,} image{'' if num == 1 else 's'}"


def _classes(found: Sequence[Finding]) -> str:
    return "1 class has" if len(found) == 1 else f"{len(found):,} classes have"


def _some(names: Sequence[str]) -> str:
    shown = list(names[:_MAX_NAMES])
    return ", ".join(shown) + (f" and {len(names) - len(shown):,} more" if len(names) > len(shown) else "")


def listed(parts: Sequence[str]) -> str:
    """`a, b and c`; at least one."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _percent(num: int, total: int) -> str:
    share = 100 * num / max(total, 1)
    return f"{share:.1f} %" if share >= 0.1 or not num else f"{share:.2g} %"
