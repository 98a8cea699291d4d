"""The splits that the data brings: classes that one lacks, sizes, and classes in other shares than in train."""

import numpy as np
from numpy.typing import NDArray

from foveal.auditing.checked import Checked
from foveal.auditing.config import ClassesConfig
from foveal.auditing.findings import Finding, Severity
from foveal.data.manifest import Manifest
from foveal.types import SPLITS

_NO_SPLITS = "The data brings no splits; foveal draws them, by class and without cutting what belongs together."


def class_missing_in_split(manifest: Manifest) -> Checked:
    """Classes that occur in one split and not in another; in train, that is blocking."""
    counts = _counts(manifest)
    if counts is None:
        return Checked("class_missing_in_split", skipped=_NO_SPLITS)
    names, findings = manifest.class_names, []
    for code, name in enumerate(SPLITS):
        if not counts[code].any():
            continue
        for number in np.flatnonzero((counts[code] == 0) & (counts.sum(axis=0) > 0)).tolist():
            others = int(counts[:, number].sum())
            severity: Severity = "warning"
            if name == "train":
                severity, detail = "blocking", f"{_all_of(others)} outside train, so it cannot be learnt."
            else:
                detail = f"{_all_of(others)} outside {name}, so nothing is measured there."
            findings.append(
                Finding(
                    "class_missing_in_split",
                    severity,
                    label=names[number],
                    split=name,
                    value=float(others),
                    detail=detail,
                )
            )
    return Checked("class_missing_in_split", findings)


def split_proportions(manifest: Manifest, config: ClassesConfig) -> Checked:
    """Val and test that are unusually small or large, or whose classes have other shares than in train."""
    counts = _counts(manifest)
    if counts is None:
        return Checked("split_proportions", skipped=_NO_SPLITS)
    sizes, total, findings = counts.sum(axis=1), int(counts.sum()), []
    for code in (1, 2):
        name, size = SPLITS[code], int(sizes[code])
        if not size:
            continue
        share = size / total
        has = f"{name} has {size:,} of {total:,} images ({100 * share:.1f} %)"
        if size < config.small_split_images:
            spread = 100 * 1.96 * (0.25 / size) ** 0.5
            detail = f"{has}; a share measured on so few is known to about ±{spread:.0f} points."
            findings.append(Finding("split_proportions", "warning", split=name, value=share, detail=detail))
        elif share < config.small_split_share:
            findings.append(
                Finding("split_proportions", "note", split=name, value=share, detail=f"{has}: a small one.")
            )
        elif share > config.large_split_share:
            detail = f"{has}, which leaves {int(sizes[0]):,} to train on."
            findings.append(Finding("split_proportions", "note", split=name, value=share, detail=detail))
        told = _other_shares(counts, code, manifest.class_names, config)
        if told and sizes[0]:
            findings.append(Finding("split_proportions", "note", split=name, value=share, detail=told))
    return Checked("split_proportions", findings)


def _other_shares(counts: NDArray[np.int64], code: int, class_names: tuple[str, ...], config: ClassesConfig) -> str:
    """What is said where a split's classes have other shares than train's, beyond what chance makes of its size."""
    train, other = counts[0], counts[code]
    if not train.sum() or not other.sum():
        return ""
    expected, came = train / train.sum(), other / other.sum()
    distance = float(np.abs(expected - came).sum() / 2)
    # The mean distance of a draw of this size is near half the sum of sqrt(2 p (1 - p) / (pi n)).
    by_chance = float(np.sqrt(2 * expected * (1 - expected) / (np.pi * other.sum())).sum() / 2)
    if distance < config.split_distance or distance < 2 * by_chance:
        return ""
    most = int(np.argmax(np.abs(expected - came)))
    return (
        f"The classes of {SPLITS[code]} have other shares than those of train: {class_names[most]!r} is "
        f"{100 * came[most]:.1f} % of {SPLITS[code]} and {100 * expected[most]:.1f} % of train."
    )


def _all_of(num_images: int) -> str:
    return "Its one image lies" if num_images == 1 else f"All of its {num_images:,} images lie"


def _counts(manifest: Manifest) -> NDArray[np.int64] | None:
    """Usable images, int64 [splits, classes]; None where fewer than two splits have any."""
    split = np.where(manifest.is_usable(), manifest.split_codes(), -1)
    labels, num_classes = manifest.label_ids(), len(manifest.class_names)
    chosen = split >= 0
    counts = np.bincount(split[chosen] * num_classes + labels[chosen], minlength=len(SPLITS) * num_classes)
    counts = counts.reshape(len(SPLITS), num_classes)
    return counts if np.count_nonzero(counts.sum(axis=1)) > 1 else None
