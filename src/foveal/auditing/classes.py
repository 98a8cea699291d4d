"""Classes: unequal, too small, empty, or of nearly the same name."""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from foveal.auditing.checked import Checked
from foveal.auditing.config import ClassesConfig
from foveal.auditing.findings import Finding, Severity
from foveal.auditing.originals import Originals
from foveal.data.manifest import Manifest
from foveal.types import SPLITS

Integers = NDArray[np.int64]

_SEVERE_IMBALANCE = 10.0
_SEPARATORS = re.compile(r"[\s_\-‐‑‒–—]+")
_BETWEEN_DIGITS = re.compile(r"(?<=[0-9])[\s_\-‐‑‒–—]+(?=[0-9])")


def class_imbalance(manifest: Manifest, found: Originals, config: ClassesConfig) -> Checked:
    """How many times larger the largest class is than the smallest, by images and by originals.

    Sets that are balanced on paper by copies of the rare classes are told by their originals.
    """
    names, num_images = manifest.class_names, found.num_images.sum(axis=1)
    ratios = {}
    for what, counts in (("images", num_images), ("originals", found.num_originals_in_all)):
        present = np.flatnonzero(counts)
        if present.size < 2:
            return Checked("class_imbalance", skipped="There are fewer than two classes with images.")
        large, small = int(present[np.argmax(counts[present])]), int(present[np.argmin(counts[present])])
        ratio = float(counts[large] / counts[small])
        sentence = f"{names[large]!r} has {counts[large]:,} {what} and {names[small]!r} has {counts[small]:,}"
        ratios[what] = (ratio, sentence)
    ratio, sentence = ratios["images"]
    true_ratio, true_sentence = ratios["originals"]
    # Copies may widen the gap or hide it; the originals are the truth, and told where it is another one.
    if true_ratio > 1.2 * ratio and true_ratio >= config.imbalance_ratio:
        ratio, sentence = (
            true_ratio,
            f"{true_sentence}; by images, copies included, it looks more even ({ratio:.1f} to 1)",
        )
    if ratio < config.imbalance_ratio:
        return Checked("class_imbalance")
    severity: Severity = "warning" if ratio >= _SEVERE_IMBALANCE else "note"
    return Checked(
        "class_imbalance", [Finding("class_imbalance", severity, value=ratio, detail=f"{sentence}: {ratio:,.1f} to 1.")]
    )


def class_too_small(manifest: Manifest, components: Integers, config: ClassesConfig, *, num_folds: int) -> Checked:
    """Classes with fewer independent images than splits, folds and honest figures need.

    What belongs together (`leaks.belonging`: a group, a photograph, copies) goes to one side of every split, and so
    counts once. Fewer than the splits that are still to be drawn, and `foveal.data.split` refuses: blocking.

    Args:
        manifest: with the splits that the data brings.
        components: int64 [rows], what belongs together.
        config: `min_originals` is looked at.
        num_folds: folds that cross-validation will want.
    """
    labels, usable, split = manifest.label_ids(), manifest.is_usable(), manifest.split_codes()
    names = manifest.class_names
    num_images = np.bincount(labels[usable], minlength=len(names))
    independent = _independent(components, labels, usable, len(names))
    waiting = usable & (split < 0)
    drawn = waiting if waiting.any() else usable & (split == 0)
    given = [bool((usable & (split == code)).any()) for code in range(len(SPLITS))]
    to_draw = [SPLITS[code] for code in (1, 2) if not given[code]]
    is_trained = np.bincount(labels[usable & (split == 0)], minlength=len(names)) > 0
    can_be_drawn = _independent(components, labels, drawn, len(names))
    needed = len(to_draw) + (~is_trained if waiting.any() else np.ones(len(names), dtype=np.int64))
    findings = []
    for number in np.argsort(independent, kind="stable").tolist():
        count = int(independent[number])
        if not num_images[number] or count >= max(config.min_originals, num_folds):
            continue
        severity: Severity = "warning" if count < num_folds else "note"
        is_short = bool(to_draw or waiting.any()) and can_be_drawn[number] < needed[number]
        detail = f"{num_images[number]:,} image{'s' if num_images[number] > 1 else ''}"
        detail += (
            f", of which {count:,} independent" if count < num_images[number] else ", all independent" * (count > 1)
        )
        if is_short:
            severity = "blocking"
            detail += f"; to draw {' and '.join(['train', *to_draw])}, at least {needed[number]} are needed"
            detail += f" and {can_be_drawn[number]:,} can be drawn from." if waiting.any() != usable.any() else "."
        elif count < num_folds:
            detail += f"; {num_folds} folds need at least {num_folds}."
        else:
            detail += f"; with fewer than {config.min_originals}, its figures are hardly more than a guess."
        findings.append(Finding("class_too_small", severity, label=names[number], value=float(count), detail=detail))
    return Checked("class_too_small", findings)


def empty_classes(manifest: Manifest, empty: Sequence[str] = ()) -> Checked:
    """Classes without a usable image: those that the scan named (empty folders), and those whose images all failed."""
    labels, usable = manifest.label_ids(), manifest.is_usable()
    names = manifest.class_names
    num_rows = np.bincount(labels, minlength=len(names))
    num_usable = np.bincount(labels[usable], minlength=len(names))
    findings = []
    for number in np.flatnonzero(num_usable == 0).tolist():
        count = int(num_rows[number])
        detail = f"None of its {count:,} files can be used." if count else "There is no image in it."
        findings.append(Finding("empty_class", "blocking", label=names[number], value=0.0, detail=detail))
    findings += [
        Finding("empty_class", "blocking", label=name, value=0.0, detail="There is no image in its folder.")
        for name in empty
        if name not in names
    ]
    return Checked("empty_class", findings)


def class_names_alike(manifest: Manifest) -> Checked:
    """Names that differ only by case, spaces, underscores, hyphens or the Unicode form of their letters.

    Each smaller class is told against the largest of its kind, into which `clean` would merge it. Single letters and
    signs are left alone: `a` and `A` are two classes of handwriting. Numbers apart (`1-1`) and joined (`11`) differ.
    """
    counts = np.bincount(manifest.label_ids()[manifest.is_usable()], minlength=len(manifest.class_names)).tolist()
    alike: dict[str, list[int]] = {}
    for number, name in enumerate(manifest.class_names):
        key = comparable_name(name)
        if len(key) > 1:
            alike.setdefault(key, []).append(number)
    findings = []
    for numbers in alike.values():
        largest, *others = sorted(numbers, key=lambda number: -counts[number])
        for number in others:
            one, two = manifest.class_names[number], manifest.class_names[largest]
            detail = f"{one!r} has {counts[number]:,} and {two!r} has {counts[largest]:,} images."
            findings.append(
                Finding(
                    "class_names_alike",
                    "blocking",
                    "merge_classes",
                    label=one,
                    related_label=two,
                    value=float(counts[number]),
                    detail=detail,
                )
            )
    return Checked("class_names_alike", findings)


def comparable_name(name: str) -> str:
    """A class name without what people do not see as a difference."""
    text = "".join(letter for letter in unicodedata.normalize("NFKC", name) if unicodedata.category(letter) != "Cf")
    text = _SEPARATORS.sub("", _BETWEEN_DIGITS.sub("\0", text.strip()))
    return unicodedata.normalize("NFKC", text.casefold())


def _independent(components: Integers, labels: Integers, rows: NDArray[np.bool_], num_classes: int) -> Integers:
    """How many different components each class has among some rows, int64 [classes]."""
    kinds = np.unique(components[rows] * num_classes + labels[rows])
    return np.bincount(kinds % num_classes, minlength=num_classes)
