"""All checks that need no network: from what is known of the data to what is to be told."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveal.auditing.broken_files import animated, corrupt_jpeg, unreadable
from foveal.auditing.checked import Checked
from foveal.auditing.classes import class_imbalance, class_names_alike, class_too_small, empty_classes
from foveal.auditing.config import AuditConfig
from foveal.auditing.copies import exact_duplicates, label_conflicts, near_duplicates
from foveal.auditing.duplicates import Pairs
from foveal.auditing.findings import Finding
from foveal.auditing.leaks import belonging, leakage, leaks
from foveal.auditing.names import copies_by_name
from foveal.auditing.originals import Originals, fewer_originals, originals
from foveal.auditing.picture_quality import picture_quality
from foveal.auditing.shortcut import shortcuts
from foveal.auditing.splits import class_missing_in_split, split_proportions
from foveal.data.facts import Facts
from foveal.data.manifest import Manifest

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Known:
    """What the checks look at.

    Attributes:
        manifest: as the decode pass left it, with the splits that the data brings.
        facts: of its rows.
        clusters: int64 [rows], near and exact duplicates of each other; -1 alone.
        pairs: of which the clusters are made.
        empty_classes: names of class folders without an image.
        set_aside: bool [rows], those that DATA, a manifest, had in quarantine already.
    """

    manifest: Manifest
    facts: Facts
    clusters: Integers
    pairs: Pairs
    empty_classes: Sequence[str] = ()
    set_aside: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Outcome:
    """What the checks made of it.

    Attributes:
        checked: one entry a check, in the order of `kinds.KINDS`' chapters.
        names: int64 [rows], copies of one original by their names; -1 alone.
        components: int64 [rows], all that belongs together: by group, photograph, bytes, content and name.
        originals: class counts without copies.
        leakage: see `leaks.leakage`.
    """

    checked: Sequence[Checked]
    names: Integers
    components: Integers
    originals: Originals
    leakage: dict[str, dict[str, Any]]

    @property
    def findings(self) -> list[Finding]:
        """The findings of all checks, in their order."""
        return [finding for each in self.checked for finding in each.findings]


def run_checks(known: Known, config: AuditConfig, *, seed: int = 0) -> Outcome:
    """Make all checks.

    Args:
        known: what is known of the data.
        config: what is looked for, and from where on it is told.
        seed: decides the folds of the search for shortcuts.
    """
    manifest, facts = known.manifest, known.facts
    names = np.full(len(manifest), -1, dtype=np.int64)
    by_name = Checked("copy_by_name", skipped="audit.copies_by_name is false.")
    if config.copies_by_name:
        names, by_name = copies_by_name(manifest)
    components = belonging(manifest, known.clusters, names)
    counts = originals(manifest, known.clusters, names)
    near = Checked("near_duplicate", skipped="audit.near_duplicates is false.")
    if config.near_duplicates:
        near = near_duplicates(manifest, known.pairs)
    checked = [
        leaks(manifest, components, known.pairs, names),
        label_conflicts(manifest, known.pairs),
        class_names_alike(manifest),
        class_too_small(manifest, components, config.classes, num_folds=config.num_folds),
        empty_classes(manifest, known.empty_classes),
        class_missing_in_split(manifest),
        unreadable(manifest, known.set_aside),
        corrupt_jpeg(manifest, facts),
        animated(facts),
        *picture_quality(manifest, facts, config.quality),
        exact_duplicates(manifest, known.pairs),
        near,
        by_name,
        fewer_originals(manifest, counts, config.classes),
        class_imbalance(manifest, counts, config.classes),
        split_proportions(manifest, config.classes),
        shortcuts(manifest, facts, components, config.shortcut, seed=seed),
    ]
    return Outcome(checked, names, components, counts, leakage(manifest, components))
