"""What each section of an audit's page shows, as the values that its template names."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveal.auditing.findings import SEVERITIES
from foveal.evaluation.drawing import split_name
from foveal.report import audit_words
from foveal.report.audit_contents import AuditContents
from foveal.report.audit_figures import draw_originals
from foveal.report.audit_pictures import Block, Pictures
from foveal.report.audit_summary import NO_SPLIT, ClassCounts, SplitLeakage
from foveal.report.figures import MAX_NAMED_CLASSES
from foveal.report.numbers import MISSING, counted, duration, fine, percent
from foveal.report.sections import MAX_STRIP_CLASSES, ClassSamples, Plot
from foveal.report.tables import Cell, Row, Table
from foveal.types import SPLITS

MAX_CLASS_ROWS = 1000
MAX_LEAK_ROWS = 100
MAX_LISTED = 100
MAX_NOTES = 30
MAX_RANKED = 10
QUANTILES = ("Least", "5 %", "Median", "95 %", "Largest")
_SIMILAR = 1.1
"""Classes that differ by a smaller factor are of one size."""
_SIZE_NAMES = {"width_px": "Width, px", "height_px": "Height, px", "aspect": "Width over height"}

Values = dict[str, Any]


def verdict(audit: AuditContents, blocks: Mapping[str, Block]) -> Values:
    """The sentence to remember, what matters first, and what to type next."""
    summary, said = audit.summary, audit_words.verdict(audit.summary)
    anchors = {told.finding: _anchor(audit, told.finding, blocks) for told in audit.told}
    sentences = {told.finding: told.sentence or told.kind.why for told in audit.told}
    ranked = [(told, anchors[told.finding], sentences[told.finding]) for told in audit.told]
    return {
        "verdict": said,
        "title": f"{said.figure} {said.text}",
        "tiles": _tiles(audit),
        "told": ranked[:MAX_RANKED],
        "told_later": ranked[MAX_RANKED:],
        "repairs": audit_words.REPAIR_WORDS,
        "steps": audit_words.next_steps(summary, audit.folder),
        "remarks": list(summary.notes[:MAX_NOTES]),
        "num_more_remarks": max(len(summary.notes) - MAX_NOTES, 0),
    }


def leakage(audit: AuditContents) -> Values:
    """How many images of each split have a copy in training, in all and by class."""
    leaks = audit.summary.leakage
    return {
        "leaks": [
            {
                "split": split,
                "percent": 100 * min(leak.leaked, 1.0),
                "text": f"{leak.num_with_siblings_in_train:,} of {leak.num_images:,}, {percent(leak.leaked)}",
            }
            for split, leak in leaks.items()
        ],
        "leak_sentences": audit_words.leakage_sentences(audit.summary),
        "leak_table": _leak_table(leaks),
    }


def classes(audit: AuditContents) -> Values:
    """Originals and copies of each class by split."""
    counts = audit.summary.classes
    splits = _splits_of(counts)
    images = _counts(counts, splits, lambda item, split: item.by_split.get(split, 0))
    originals = _counts(counts, splits, lambda item, split: _originals(item, split))
    originals = {split: np.minimum(originals[split], images[split]) for split in splits}
    own = [_own(item, [int(values[at]) for values in originals.values()]) for at, item in enumerate(counts)]
    plot = None
    if counts:
        label = f"Originals of each of {counted(len(counts), 'class', 'classes')} and copies of them, by split"
        svg = draw_originals([item.name for item in counts], images, originals, num_originals=own)
        plot = Plot.of(svg, prefix="originals", label=label)
    return {
        "distribution": plot,
        "distribution_table": _class_table(counts[:MAX_CLASS_ROWS], images, originals, own),
        "num_more_classes": max(len(counts) - MAX_CLASS_ROWS, 0),
        "distribution_words": _without_copies(counts, images, own),
        "as_strips": len(counts) <= MAX_STRIP_CLASSES,
        "is_ranked": len(counts) > MAX_NAMED_CLASSES,
        "class_findings": _class_findings(audit),
    }


def samples(audit: AuditContents, pictures: Pictures) -> Values:
    """A few samples of each class."""
    usable = audit.manifest.take(audit.manifest.usable())
    names = audit.manifest.class_names
    num = np.bincount(usable.label_ids(), minlength=len(names))
    return {
        "samples": [
            ClassSamples(name, int(num[at]), pictures.of_class[name])
            for at, name in enumerate(names)
            if name in pictures.of_class
        ],
        "num_classes": len(names),
        "samples_as_strips": len(names) <= MAX_STRIP_CLASSES,
        "has_boxes": bool(len(audit.manifest)) and not np.isnan(audit.manifest.column("xmin")).all(),
    }


def sizes(audit: AuditContents) -> Values:
    """Sizes, shapes, formats, modes, and the share of each split."""
    summary = audit.summary
    rows = [
        Row(
            _SIZE_NAMES.get(name, name),
            "",
            [Cell(_figure(values[at] if at < len(values) else None)) for at in range(5)],
        )
        for name, values in summary.sizes.items()
    ]
    splits = {split_name(split).capitalize(): part.num_images for split, part in summary.splits.items()}
    return {
        "sizes_table": Table("Sizes of the usable samples", ["Measure", *QUANTILES], rows, []),
        "parts": [
            _parts("Formats", "Format", summary.formats),
            _parts("Channels", "Mode", summary.modes),
            _parts("Splits", "Split", splits),
        ],
    }


def shortcuts(audit: AuditContents) -> Values:
    """What gives a class away without looking at the picture."""
    columns = audit.findings.columns
    places = audit.places.get("shortcut", [])[:MAX_LISTED]
    told = next((each for each in audit.told if each.finding == "shortcut"), None)
    return {
        "shortcut": told,
        "shortcuts": [
            (columns["label"][at] or "all classes", _share(columns["value"][at]), columns["detail"][at] or "")
            for at in places
        ],
        "shortcut_check": next((check for check in audit.summary.checks if check.check.startswith("shortcut")), None),
    }


def checks(audit: AuditContents) -> Values:
    """What was looked for and what was not, how long it took, and how to repeat it."""
    summary = audit.summary
    ordered = sorted(summary.checks, key=lambda check: check.status == "done")
    longest = max(summary.seconds.values(), default=0.0) or 1.0
    rows = [
        Row(name.replace("_", " "), "", [Cell(duration(seconds), bar=max(seconds, 0.0) / longest)])
        for name, seconds in summary.seconds.items()
    ]
    return {
        "checks": [(check.check.replace("_", " "), check.status, check.detail) for check in ordered],
        "num_skipped": sum(check.status == "skipped" for check in ordered),
        "seconds_table": Table("Time of each stage", ["Stage", "Time"], rows, []),
        "command": summary.command,
    }


def listed(audit: AuditContents, kind: str) -> list[tuple[str, str]]:
    """Paths and reasons of findings that have no picture."""
    columns = audit.findings.columns
    return [(columns["path"][at] or "", columns["detail"][at] or "") for at in audit.places.get(kind, [])[:MAX_LISTED]]


def _anchor(audit: AuditContents, kind: str, blocks: Mapping[str, Block]) -> str:
    if kind in blocks:
        return f"kind-{kind}"
    return "shortcuts" if kind == "shortcut" else "class-findings" if audit.places.get(kind) else "distribution"


def _tiles(audit: AuditContents) -> list[tuple[str, str, str]]:
    """The few figures that everyone asks for first: name, value, remark."""
    summary = audit.summary
    total = len(audit.manifest) if summary.num_samples is None else summary.num_samples
    usable = int(audit.manifest.is_usable().sum()) if summary.num_usable is None else summary.num_usable
    tiles = [("Usable samples", f"{usable:,}", f"of {total:,}" if usable != total else "all of them")]
    if summary.num_files is not None and summary.num_files != total:
        tiles.append(("Files", f"{summary.num_files:,}", "each holds one sample or more"))
    if summary.num_originals is not None:
        part = percent(summary.num_originals / usable) if usable else MISSING
        tiles.append(("Independent originals", f"{summary.num_originals:,}", f"{part} of the usable ones"))
    tiles.append(("Classes", f"{len(summary.classes) or len(audit.manifest.class_names):,}", ""))
    for split, leak in summary.leakage.items():
        if leak.num_images:
            of = f"of {leak.num_images:,}, {percent(leak.leaked)}"
            tiles.append(
                (f"{split_name(split).capitalize()} images leaked", f"{leak.num_with_siblings_in_train:,}", of)
            )
    return tiles


def _leak_table(leaks: Mapping[str, SplitLeakage]) -> Table | None:
    """Each class with its share of leaked images, the worst first where there are many."""
    worst: dict[str, float] = {}
    for leak in leaks.values():
        for name, (total, found) in leak.by_class.items():
            worst[name] = max(worst.get(name, 0.0), found / total if total else 0.0)
    if not worst:
        return None
    names = list(worst)
    if len(names) > MAX_STRIP_CLASSES:
        names = sorted(names, key=lambda name: -worst[name])[:MAX_LEAK_ROWS]
    rows = [Row(name, "", [_leak_cell(leak.by_class.get(name)) for leak in leaks.values()]) for name in names]
    caption = "Share of each class that has a copy in training"
    if len(names) < len(worst):
        caption += f"; the {len(names):,} worst of {len(worst):,} classes, summary.json has all of them"
    return Table(caption, ["Class", *(split_name(split).capitalize() for split in leaks)], rows, [])


def _leak_cell(counts: tuple[int, int] | None) -> Cell:
    if counts is None or not counts[0]:
        return Cell(MISSING)
    total, found = counts
    return Cell(f"{found:,} of {total:,}, {percent(found / total)}", bar=min(found / total, 1.0))


def _splits_of(counts: Sequence[ClassCounts]) -> list[str]:
    """The splits that the classes have counts for, training first; one for all where they have none."""
    names = {split for item in counts for split in item.by_split}
    known = [split for split in SPLITS if split in names]
    return [*known, *sorted(names - set(known))] or [NO_SPLIT]


def _counts(counts: Sequence[ClassCounts], splits: Sequence[str], of: Any) -> dict[str, NDArray[np.int64]]:
    def number(item: ClassCounts, split: str) -> int:
        if split == NO_SPLIT and not item.by_split:
            return item.num_images if of is None else of(item, split) or item.num_images
        return int(of(item, split))

    return {split: np.array([number(item, split) for item in counts], dtype=np.int64) for split in splits}


def _originals(item: ClassCounts, split: str) -> int:
    """Originals of a class in a split; where it is not known, everything counts as one."""
    if item.originals_by_split:
        return item.originals_by_split.get(split, 0)
    if split == NO_SPLIT and item.num_originals is not None:
        return item.num_originals
    return item.by_split.get(split, 0)


def _own(item: ClassCounts, by_split: Sequence[int]) -> int:
    """Originals of a class in all: fewer than those of its splits where one lies in several."""
    return sum(by_split) if item.num_originals is None else min(item.num_originals, sum(by_split))


def _class_table(
    counts: Sequence[ClassCounts],
    images: Mapping[str, NDArray[np.int64]],
    originals: Mapping[str, NDArray[np.int64]],
    num_originals: Sequence[int],
) -> Table:
    """Each class: images in each split with the originals among them, the sum, and the share that is copies."""
    rows = []
    for at, item in enumerate(counts):
        own = num_originals[at]
        whole = sum(int(values[at]) for values in images.values())
        cells = (
            [] if len(images) == 1 else [_pair(int(images[split][at]), int(originals[split][at])) for split in images]
        )
        copies = (whole - own) / whole if whole else 0.0
        remark = f"{counted(item.num_quarantined, 'file')} set aside" if item.num_quarantined else ""
        rows.append(
            Row(item.name, remark, [*cells, Cell(f"{whole:,}"), Cell(f"{own:,}"), Cell(percent(copies), bar=copies)])
        )
    splits = [] if len(images) == 1 else [split_name(split).capitalize() for split in images]
    caption = "Usable samples of each class" + (", and the originals among them" if splits else "")
    return Table(caption, ["Class", *splits, "All", "Originals", "Copies"], rows, [])


def _pair(images: int, originals: int) -> Cell:
    return Cell(f"{images:,}", f"{originals:,} originals" if originals != images else "")


def _without_copies(
    counts: Sequence[ClassCounts], images: Mapping[str, NDArray[np.int64]], num_originals: Sequence[int]
) -> str:
    """What the counts are without copies."""
    if not counts:
        return "No class was counted."
    whole, own = np.sum([*images.values()], axis=0), np.array(num_originals)
    if not (whole > own).any():
        return "No copies were found: every usable sample counts as an original."
    of = f"{own.sum():,} of {counted(int(whole.sum()), 'usable sample')}"
    text = f"{of} are independent originals; the others are copies of them."
    worst = int(np.argmin(own / np.maximum(whole, 1)))
    name = counts[worst].name
    text += f" “{name}” has {own[worst]:,} under {counted(int(whole[worst]), 'sample')}."
    if own.min() > 0 and max(whole.max() / whole.min(), own.max() / own.min()) > _SIMILAR:
        text += (
            f" The largest class has {whole.max() / whole.min():.3g} times the samples of the smallest, "
            f"and {own.max() / own.min():.3g} times the originals."
        )
    return text


def _class_findings(audit: AuditContents) -> Values:
    """Findings about classes, splits and the whole data: kind, severity, what it is about, and the evidence."""
    columns = audit.findings.columns
    kinds = [each.finding for each in audit.told if audit.about(each.finding) not in {"pair", "sample"}]
    places = [at for kind in kinds if kind != "shortcut" for at in audit.places.get(kind, [])]
    places.sort(key=lambda at: SEVERITIES.index(columns["severity"][at]))
    rows = []
    for at in places[:MAX_LISTED]:
        names = [name for name in (columns["label"][at], columns["related_label"][at]) if name]
        told = next(each for each in audit.told if each.finding == columns["finding"][at])
        rows.append(
            {
                "severity": columns["severity"][at],
                "title": told.kind.title,
                "names": names,
                "split": split_name(columns["split"][at] or ""),
                "value": _figure(columns["value"][at]),
                "unit": told.kind.value,
                "detail": columns["detail"][at] or "",
            }
        )
    return {"rows": rows, "num_more": max(len(places) - MAX_LISTED, 0)}


def _parts(caption: str, head: str, counts: Mapping[str, int]) -> Table:
    """How the samples are made up, the most frequent first."""
    whole = max(sum(counts.values()), 1)
    ordered = counts.items() if caption == "Splits" else sorted(counts.items(), key=lambda part: -part[1])
    rows = [
        Row(name or "unknown", "", [Cell(f"{number:,}"), Cell(percent(number / whole), bar=number / whole)])
        for name, number in [*ordered][:20]
    ]
    return Table(caption, [head, "Samples", "Share"], rows, [])


def _figure(value: float | None) -> str:
    if value is None or np.isnan(value):
        return MISSING
    return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 1000 else f"{value:.3g}"


def _share(value: float | None) -> str:
    return MISSING if value is None or np.isnan(value) else fine(value)
