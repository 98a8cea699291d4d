"""The images that an ensemble is fitted and measured on, and that none of its members has learnt from."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveal.config import load
from foveal.data.config import DataConfig
from foveal.data.manifest import BOX_COLUMNS, Manifest
from foveal.data.scan import scan
from foveal.data.split import straddling
from foveal.errors import ConfigError, DataError
from foveal.experiments.ensemble.members import Candidate
from foveal.training.config import Config, ResolvedConfig
from foveal.types import Split

Keys = NDArray[np.object_]


@dataclass(frozen=True)
class VoteData:
    """Images to fit a vote on, and to measure it on.

    Attributes:
        manifest: rows of val and test alone.
        config: how they are read and kept.
        siblings: bool [rows], whether some member was trained on a copy or group member; None where nobody knows.
        majority: the most frequent class of training, by name; None where nobody knows.
        is_own: whether they are the members' own, whose looks are counted, and which must not have changed.
        notes: what else there is to say about them.
    """

    manifest: Manifest
    config: DataConfig
    siblings: NDArray[np.bool_] | None
    majority: str | None
    is_own: bool
    notes: tuple[str, ...]


def own_data(candidates: Sequence[Candidate]) -> VoteData:
    """The validation and test images that all members' runs share.

    Raises:
        ConfigError: a member is a bundle without a run.
        DataError: an image that one is tested on is one that another learnt from, or was chosen by; or none is shared.
    """
    if alone := [candidate for candidate in candidates if candidate.run is None]:
        raise ConfigError(
            "Bundles bring no images of their own to fit and to measure the vote on.",
            problems=[f"{candidate.path} is a bundle without its run" for candidate in alone],
            fix="give labelled images with a val and a test split: --data DATA",
        )
    manifests = [manifest for candidate in candidates if (manifest := candidate.manifest()) is not None]
    keys = [keys_of(manifest) for manifest in manifests]
    _check_apart(candidates, manifests, keys)
    first, notes = manifests[0], []
    chosen = np.zeros(len(first), dtype=np.bool_)
    for split in ("val", "test"):
        rows = first.of_split(split)
        shared = np.ones(len(rows), dtype=np.bool_)
        for manifest, others in zip(manifests[1:], keys[1:], strict=True):
            shared &= np.isin(keys[0][rows], others[manifest.of_split(split)])
        if not shared.any():
            raise DataError(
                f"The runs share no image of the {split} split.", fix="measure on images new to all: --data DATA"
            )
        most = max(len(manifest.of_split(split)) for manifest in manifests)
        if int(shared.sum()) < most:
            notes.append(
                f"Of up to {most:,} {split} images the {int(shared.sum()):,} that all members share are taken."
            )
        chosen[rows[shared]] = True
    _check_labels(candidates, manifests, keys, chosen)
    run = candidates[0].run
    if run is None:
        raise ValueError("every member has a run here")
    rows = np.flatnonzero(chosen)
    labels = first.column("label")[first.of_split("train")]
    names, counts = np.unique(labels.astype(str), return_counts=True)
    return VoteData(
        manifest=first.take(rows),
        config=load(ResolvedConfig, run.config).data,
        siblings=_siblings(manifests, keys, keys[0][rows]),
        majority=str(names[counts.argmax()]) if len(names) else None,
        is_own=True,
        notes=tuple(notes),
    )


def other_data(data: str | PathLike[str], config: Config) -> VoteData:
    """Images of another origin, before they are decoded; see `check_new`.

    Raises:
        DataError: they cannot be read, or bring no val or test split.
    """
    manifest = scan(fspath(data), config.data).manifest
    missing = [split for split in _MEASURED if not len(manifest.of_split(split))]
    if missing:
        raise DataError(
            f"DATA brings no {' and no '.join(missing)} split: weights and temperature of the vote are fitted on "
            "validation, and it is measured on test.",
            fix="foveal split " + shlex.quote(fspath(data)) + " --out manifest.parquet, and give that manifest.",
        )
    rows = np.sort(np.concatenate([manifest.of_split(split) for split in _MEASURED]))
    return VoteData(manifest.take(rows), config.data, None, None, is_own=False, notes=())


def check_new(candidates: Sequence[Candidate], manifest: Manifest) -> tuple[str, ...]:
    """Refuse images that a member has learnt from, or was chosen by; what cannot be known is told.

    Args:
        candidates: what votes.
        manifest: decoded, so that contents are known.

    Returns:
        Notes on members whose images nobody knows.

    Raises:
        DataError: with how many images of which member.
    """
    keys, problems, unknown = keys_of(manifest), [], []
    for candidate in candidates:
        known = candidate.manifest()
        if known is None:
            unknown.append(candidate.name)
            continue
        theirs = keys_of(known)
        problems += _overlaps("DATA", manifest, keys, candidate.name, known, theirs)
    _refuse(problems)
    if unknown:
        return (f"What {', '.join(unknown)} learnt from is not known: that DATA is new to it is taken on trust.",)
    return ()


def keys_of(manifest: Manifest) -> Keys:
    """What each sample is, by its content (or its path, where that is not known) and its box: object [rows]."""
    contents = manifest.column("sha256")
    known = np.where(contents == None, manifest.column("sample_id"), contents)  # noqa: E711  by element
    corners = [manifest.table[name].to_pylist() for name in BOX_COLUMNS]
    boxes = ["" if box[0] is None else ",".join(map(str, box)) for box in zip(*corners, strict=True)]
    return np.array([f"{content}|{box}" for content, box in zip(known, boxes, strict=True)], dtype=object)


_MEASURED: tuple[Split, ...] = ("val", "test")


def _check_apart(candidates: Sequence[Candidate], manifests: Sequence[Manifest], keys: Sequence[Keys]) -> None:
    problems = []
    for at, candidate in enumerate(candidates):
        for other, against in enumerate(candidates):
            if at != other:
                problems += _overlaps(
                    candidate.name, manifests[at], keys[at], against.name, manifests[other], keys[other]
                )
    _refuse(problems)


def _overlaps(name: str, manifest: Manifest, keys: Keys, other: str, theirs: Manifest, other_keys: Keys) -> list[str]:
    """Images that one measures on and another has learnt from or was chosen by, as sentences."""
    found = []
    pairs: tuple[tuple[Split, Split, str], ...] = (
        ("test", "train", "trained on"),
        ("test", "val", "was chosen by"),
        ("val", "train", "trained on"),
    )
    for split, place, verb in pairs:
        rows = keys[manifest.of_split(split)]
        count = int(np.isin(rows, other_keys[theirs.of_split(place)]).sum())
        if count:
            found.append(f"{count:,} of the {len(rows):,} {split} images of {name} are images that {other} {verb}")
    return found


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise DataError(
            "The members do not have the same splits, so that the ensemble would be measured on images that part of it "
            "knows, and the number would be too good.",
            problems=problems,
            fix="train all on one split (foveal split DATA --out manifest.parquet), or measure on images that are new "
            "to all of them: --data DATA",
        )


def _check_labels(
    candidates: Sequence[Candidate], manifests: Sequence[Manifest], keys: Sequence[Keys], chosen: NDArray[np.bool_]
) -> None:
    """Refuse runs that call the same image by two names."""
    rows = np.flatnonzero(chosen)
    expected = dict(zip(keys[0][rows].tolist(), manifests[0].column("label")[rows].tolist(), strict=True))
    problems = []
    for candidate, manifest, theirs in zip(candidates[1:], manifests[1:], keys[1:], strict=True):
        own = zip(theirs.tolist(), manifest.column("label").tolist(), manifest.is_usable().tolist(), strict=True)
        other = [key for key, label, usable in own if usable and expected.get(key, label) != label]
        if other:
            problems.append(f"{candidate.name} has another label for {len(other):,} of {len(expected):,} images")
    if problems:
        raise DataError(
            f"The runs do not agree with {candidates[0].name} on what images are.",
            problems=problems,
            fix="train them on the same labels.",
        )


def _siblings(manifests: Sequence[Manifest], keys: Sequence[Keys], wanted: Keys) -> NDArray[np.bool_]:
    """Whether any member was trained on something that belongs together with an image: bool [n]."""
    found = np.zeros(len(wanted), dtype=np.bool_)
    for manifest, theirs in zip(manifests, keys, strict=True):
        found |= np.isin(wanted, theirs[straddling(manifest)])
    return found


def settings_data(data: str | PathLike[str] | None, config: Config) -> dict[str, Any]:
    """What of the data decides the result."""
    if data is None:
        return {"data": None}
    return {"data": str(Path(data).resolve()), "read": config.data.model_dump(mode="json", exclude={"num_workers"})}
