"""What training does about copies: they share a group, and those across given splits are told, left out, or refused."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from foveal.auditing.config import AuditConfig
from foveal.auditing.names import copies_by_name
from foveal.data.grouping import regroup
from foveal.data.manifest import Manifest
from foveal.data.split import siblings
from foveal.errors import DataError
from foveal.types import SPLITS

LeakPolicy = Literal["report", "drop", "error"]

LEFT_OUT = "left out: it belongs together with an image in"
"""How the reason begins of a row that `data.leaks=drop` has set aside."""

_MAX_EXAMPLES = 20


def with_copies_grouped(manifest: Manifest, clusters: NDArray[np.int64], config: AuditConfig) -> Manifest:
    """The same rows, copies of each other sharing a group, so that no split and no interval counts them as independent.

    Args:
        manifest: after the decode pass.
        clusters: int64 [rows], copies by content; -1 alone.
        config: whether names count, too.
    """
    codes: Sequence[NDArray[np.int64]] = [clusters]
    if config.copies_by_name:
        codes = [clusters, copies_by_name(manifest)[0]]
    return regroup(manifest, codes)


def apply_leak_policy(manifest: Manifest, policy: LeakPolicy) -> tuple[Manifest, str]:
    """Do what was asked about samples whose siblings lie in another split.

    To drop keeps test whole, for it is what the result is read from: rows of train with a sibling in val or test, and
    rows of val with one in test, are set aside with the reason.

    Args:
        manifest: with its splits and groups.
        policy: `report` changes nothing, `drop` sets rows aside, `error` refuses.

    Returns:
        The manifest, and a sentence for a person; empty where nothing leaks.

    Raises:
        DataError: something leaks and the policy is `error`; or nothing would be left of a class to train on.
    """
    component, split = siblings(manifest), np.where(manifest.is_usable(), manifest.split_codes(), -1)
    later = np.full(int(component.max(initial=-1)) + 1, -1)
    np.maximum.at(later, component[split >= 0], split[split >= 0])
    earlier = np.full(len(later), len(SPLITS))
    np.minimum.at(earlier, component[split >= 0], split[split >= 0])
    leaked = (split > 0) & (earlier[component] == 0)
    shared = (split == 1) & (later[component] == 2)
    if not leaked.any() and not shared.any():
        return manifest, ""
    told = _counted(split, leaked, shared)
    if policy == "error":
        raise _refusal(manifest, split, told, leaked if leaked.any() else shared)
    if policy == "report":
        meant = "the report gives the accuracy without them, too" if leaked.any() else "a choice by val flatters test"
        return manifest, f"{told} They count, and {meant}."
    dropped = (split >= 0) & (later[component] > split)
    left = _left_out(manifest, dropped, later[component])
    num_train, num_val = (int((dropped & (split == code)).sum()) for code in (0, 1))
    _check_left(manifest, left)
    return left, f"{told} Left out for that (data.leaks=drop): {num_train:,} images of train, {num_val:,} of val."


def _counted(split: NDArray[np.int64], leaked: NDArray[np.bool_], shared: NDArray[np.bool_]) -> str:
    """How many images of val and test have a sibling in train; where none has, how many of val have one in test."""
    if not leaked.any():
        num, of = int(shared.sum()), int((split == 1).sum())
        return f"Images that belong together with one in test, as copies or by their group: {num:,} of {of:,} in val."
    counts = ", ".join(
        f"{int((leaked & (split == code)).sum()):,} of {int((split == code).sum()):,} in {name}"
        for code, name in enumerate(SPLITS)
        if code and (split == code).any()
    )
    return f"Images that belong together with one in train, as copies or by their group: {counts}."


def _refusal(manifest: Manifest, split: NDArray[np.int64], told: str, refused: NDArray[np.bool_]) -> DataError:
    paths, rows = manifest.column("path"), np.flatnonzero(refused)
    examples = [f"{paths[row]} ({SPLITS[split[row]]})" for row in rows[:_MAX_EXAMPLES].tolist()]
    return DataError(
        f"{told} The result on them would say nothing about new images.",
        problems=[*examples, *([f"and {len(rows) - _MAX_EXAMPLES:,} more"] if len(rows) > _MAX_EXAMPLES else [])],
        fix="foveal audit DATA shows the pairs and foveal clean moves them to one side; or leave their siblings in "
        "earlier splits out: --set data.leaks=drop; or only be told: --set data.leaks=report.",
    )


def _left_out(manifest: Manifest, dropped: NDArray[np.bool_], later: NDArray[np.int64]) -> Manifest:
    status, reason = manifest.column("status").copy(), manifest.column("reason").copy()
    status[dropped] = "quarantined"
    for code in (1, 2):
        reason[dropped & (later == code)] = f"{LEFT_OUT} {SPLITS[code]}"
    return manifest.with_columns(status=status, reason=reason)


def _check_left(before: Manifest, after: Manifest) -> None:
    labels, split = before.label_ids(), before.split_codes()
    problems = []
    for code in (0, 1):
        was = np.bincount(labels[before.is_usable() & (split == code)], minlength=len(before.class_names))
        now = np.bincount(labels[after.is_usable() & (split == code)], minlength=len(before.class_names))
        problems += [
            f"class {before.class_names[at]!r} in {SPLITS[code]}: 0 of {was[at]:,}"
            for at in np.flatnonzero((was > 0) & (now == 0)).tolist()
        ]
    if problems:
        raise DataError(
            "data.leaks=drop leaves nothing of some classes, since all of it belongs together with images of later "
            "splits.",
            problems=problems,
            fix="share the data out anew: foveal split DATA --out manifest.parquet --set split.given=redraw",
        )
