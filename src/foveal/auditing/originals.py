"""How many independent originals there are: the class counts without copies."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveal.auditing.checked import Checked
from foveal.auditing.config import ClassesConfig
from foveal.auditing.duplicates import same_content
from foveal.auditing.findings import Finding
from foveal.data.manifest import Manifest
from foveal.data.split import connected
from foveal.types import SPLITS

Integers = NDArray[np.int64]

NO_SPLIT = "all"
"""The name of what has no split."""


@dataclass(frozen=True)
class Originals:
    """Usable samples, and the originals behind them, by class and split.

    Attributes:
        num_images: int64 [classes, 4], in train, val, test and without a split.
        num_originals: int64 [classes, 4]; one whose copies lie in two splits counts in each.
        num_originals_in_all: int64 [classes]; one whose copies lie under two labels counts for each.
        total: of all classes, each once.
    """

    num_images: Integers
    num_originals: Integers
    num_originals_in_all: Integers
    total: int


def originals(manifest: Manifest, clusters: Integers, names: Integers) -> Originals:
    """Count what is left when all copies of one picture count as one.

    Copies are what the content says (exact and near duplicates) and what names say. Not what merely belongs together:
    two photographs of one patient, or two boxes of one photograph, are two originals. Names are those of files, and
    say nothing of the boxes in them, so that for a sample with a box only the content counts.

    Args:
        manifest: quarantined rows count nowhere.
        clusters: int64 [rows], copies by content; -1 alone.
        names: int64 [rows], copies by name; -1 alone.
    """
    usable, labels = manifest.is_usable(), manifest.label_ids()
    boxed = ~np.isnan(manifest.column("xmin"))
    codes = [same_content(manifest), np.where(usable, clusters, -1), np.where(usable & ~boxed, names, -1)]
    component = connected(len(manifest), codes)
    split = manifest.split_codes()
    split = np.where(split < 0, len(SPLITS), split)
    num_classes, num_splits = len(manifest.class_names), len(SPLITS) + 1
    place = labels[usable] * num_splits + split[usable]
    num_images = np.bincount(place, minlength=num_classes * num_splits).reshape(num_classes, num_splits)
    in_split = _distinct(component[usable], place, num_classes * num_splits).reshape(num_classes, num_splits)
    in_all = _distinct(component[usable], labels[usable], num_classes)
    return Originals(num_images, in_split, in_all, len(np.unique(component[usable])))


def fewer_originals(manifest: Manifest, found: Originals, config: ClassesConfig) -> Checked:
    """Classes whose files are mostly, or in good part, copies of each other; the emptiest truth first."""
    num_images = found.num_images.sum(axis=1)
    share = found.num_originals_in_all / np.maximum(num_images, 1)
    findings = []
    for number in np.argsort(share, kind="stable").tolist():
        if share[number] >= config.originals_share or not num_images[number]:
            continue
        files, left = int(num_images[number]), int(found.num_originals_in_all[number])
        by_split = [
            f"{found.num_originals[number, code]:,} of {found.num_images[number, code]:,} in {name}"
            for code, name in enumerate(SPLITS)
            if found.num_images[number, code]
        ]
        findings.append(
            Finding(
                "fewer_originals",
                "warning",
                "regroup",
                label=manifest.class_names[number],
                value=float(left),
                detail=f"{files:,} images, {left:,} originals" + (f": {', '.join(by_split)}." if by_split else "."),
            )
        )
    return Checked("fewer_originals", findings)


def class_counts(manifest: Manifest, found: Originals) -> list[dict[str, Any]]:
    """Each class as summary.json tells it.

    Returns:
        For each class `name`, `num_images`, `num_originals`, `num_quarantined`, and, by the splits that have images
        ("all" where there is none), `by_split` and `originals_by_split`.
    """
    names = (*SPLITS, NO_SPLIT)
    labels, usable = manifest.label_ids(), manifest.is_usable()
    quarantined = np.bincount(labels[~usable], minlength=len(manifest.class_names))
    present = [code for code in range(len(names)) if found.num_images[:, code].any()]
    return [
        {
            "name": name,
            "num_images": int(found.num_images[number].sum()),
            "num_originals": int(found.num_originals_in_all[number]),
            "num_quarantined": int(quarantined[number]),
            "by_split": {names[code]: int(found.num_images[number, code]) for code in present},
            "originals_by_split": {names[code]: int(found.num_originals[number, code]) for code in present},
        }
        for number, name in enumerate(manifest.class_names)
    ]


def _distinct(component: Integers, place: Integers, num_places: int) -> Integers:
    """How many different components lie in each place, int64 [places]."""
    kinds = np.unique(component * num_places + place)
    return np.bincount(kinds % num_places, minlength=num_places)
