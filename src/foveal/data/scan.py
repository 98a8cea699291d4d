"""From DATA, whatever it is, to a manifest."""

from collections import Counter
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

import numpy as np

from foveal.data.class_names import exclude_option, name_classes, shortened
from foveal.data.config import DataConfig
from foveal.data.folders import read_folders
from foveal.data.locate import IMAGE_SUFFIXES, TABLE_SUFFIXES, Root, locate
from foveal.data.manifest import Manifest, is_manifest
from foveal.data.tables import path_advice, read_table
from foveal.errors import DataError
from foveal.files import natural_key
from foveal.run_folder import is_run_folder
from foveal.types import SPLITS

Format = Literal["folder", "split_folders", "csv", "parquet"]

_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
_EXPECTED = (
    "a folder of class folders; a folder of train/ val/ test/ with class folders in them; "
    "or a CSV or Parquet table with the columns path,label"
)


@dataclass(frozen=True)
class ScanResult:
    """What DATA holds.

    Attributes:
        manifest: its samples; those that cannot be used are quarantined with their reason.
        format: what DATA turned out to be.
        notes: sentences about what was left out or is unusual.
        empty_classes: names of class folders without an image; only where that was asked for.
    """

    manifest: Manifest
    format: Format
    notes: tuple[str, ...] = ()
    empty_classes: tuple[str, ...] = ()


def scan(data: Path | str, config: DataConfig, *, is_audit: bool = False) -> ScanResult:
    """Find the samples of DATA and their labels, without opening an image.

    Args:
        data: a folder, or a CSV or Parquet table; a manifest keeps its splits and quarantine.
        config: says what DATA is, where its images lie and which classes are left out.
        is_audit: whether classes that cannot be trained on are to be told as findings later, and not refused here.

    Raises:
        DataError: DATA is nothing of the kind, or has faults; all that can be found are named at once.
        ArtifactError: a Parquet file is damaged.
    """
    place = Path(data)
    if place.is_dir():
        _refuse_what_foveal_wrote(place)
        found = read_folders(place.absolute(), config, is_audit=is_audit)
        result = ScanResult(found.manifest, found.layout, tuple(found.notes), found.empty_classes)
    else:
        result = _read_file(place, str(data), config)
    if is_audit:
        return result
    return replace(result, notes=(*result.notes, *_check_classes(place, result.manifest)))


def _read_file(file: Path, given: str, config: DataConfig) -> ScanResult:
    _refuse_what_is_no_table(file, given, config)
    if config.format in {"folder", "split_folders"}:
        raise DataError(f"{file} is a file, and data.format={config.format} was stated.", fix="--set data.format=auto")
    with file.open("rb") as stream:
        parquet = stream.read(4) == b"PAR1" or file.suffix.lower() in {".parquet", ".pq"}
    if parquet and config.format != "csv":
        if is_manifest(file):
            return ScanResult(_read_manifest(file, config), "parquet")
        manifest, notes = read_table(file, config, is_parquet=True)
        return ScanResult(manifest, "parquet", tuple(notes))
    if config.format == "parquet":
        raise DataError(f"{file} is no Parquet file, and data.format=parquet was stated.", fix="--set data.format=auto")
    manifest, notes = read_table(file, config, is_parquet=False)
    return ScanResult(manifest, "csv", tuple(notes))


def _refuse_what_foveal_wrote(folder: Path) -> None:
    """Its folders would be taken for classes, and its plots and pictures for images."""
    if is_run_folder(folder) or (folder / "experiment.json").is_file():
        told = [
            f"what it was made with is listed in {name}" for name in [folder / "manifest.parquet"] if name.is_file()
        ]
        raise DataError(
            f"{folder} is what foveal has written, and no folder of images.",
            fix="; ".join(["give the images", *told]) + ".",
        )


def _refuse_what_is_no_table(file: Path, given: str, config: DataConfig) -> None:
    suffix = file.suffix.lower()
    if "://" in given:
        raise DataError(f"{given} is an address, and foveal reads what is on this machine.", fix=f"give {_EXPECTED}.")
    if not file.exists():
        near = get_close_matches(file.name, _neighbours(file), n=1)
        raise DataError(
            f"{given} does not exist." + (f" Did you mean {file.parent / near[0]}?" if near else ""),
            fix=f"give {_EXPECTED}.",
        )
    if not file.is_file():
        raise DataError(f"{given} is neither a file nor a folder.", fix=f"give {_EXPECTED}.")
    if suffix in _ARCHIVES:
        raise DataError(f"{given} is an archive, and foveal opens none.", fix="unpack it first, and give the folder.")
    if suffix in IMAGE_SUFFIXES:
        raise DataError(
            f"{given} is a single image, without a label.",
            fix=f"to classify it: foveal predict RUN {given}; else give {_EXPECTED}.",
        )
    if config.format == "auto" and suffix not in TABLE_SUFFIXES:
        raise DataError(
            f"{given} is a file of no kind that foveal reads.",
            fix=f"give {_EXPECTED}. If it is a CSV table in spite of its name: --set data.format=csv",
        )


def _neighbours(file: Path) -> list[str]:
    return [entry.name for entry in file.parent.iterdir()] if file.parent.is_dir() else []


def _read_manifest(file: Path, config: DataConfig) -> Manifest:
    """A manifest as DATA: its images must still be there, and below its root."""
    manifest = Manifest.read(file)
    names = name_classes(manifest.class_names, config)
    labels = [names.get(label, label) for label in manifest.column("label")]
    kept = np.array([label is not None for label in labels], dtype=np.bool_)
    manifest = Manifest(
        manifest.with_columns(label=[label or "" for label in labels]).take(kept).table,
        Path(config.images_root).absolute() if config.images_root else manifest.images_root,
        tuple(sorted({name for name in names.values() if name is not None}, key=natural_key)),
    )
    rows, numbers = manifest.usable(), np.flatnonzero(kept) + 1
    paths = manifest.column("path")
    root = Root(manifest.images_root, allow_outside=config.allow_outside_root)
    looked_for = [str(path) for path in paths[rows]]
    located = locate(looked_for, root)
    if located.problems:
        raise DataError(
            f"{file} names {len(located.problems)} images of {len(rows)} that cannot be used.",
            problems=[f"row {numbers[rows[place]]}: {fault}" for place, fault in sorted(located.problems.items())],
            fix=path_advice(file.parent, looked_for, located, root) or "put them back, or make the manifest again.",
        )
    paths[rows] = located.paths
    return manifest.with_columns(path=paths)


def _check_classes(data: Path, manifest: Manifest) -> list[str]:
    """Refuse classes without a usable sample, or with none to train on; tell of those that a split lacks."""
    labels, usable = manifest.label_ids(), manifest.is_usable()
    counts = np.bincount(labels[usable], minlength=len(manifest.class_names))
    if not counts.all():
        empty = [manifest.class_names[place] for place in np.flatnonzero(counts == 0)]
        raise DataError(
            f"{data} has classes without a usable sample.",
            problems=[f"class {name!r}: {_why_empty(manifest, name)}" for name in empty],
            fix=f"mend the samples, or leave the classes out: {exclude_option(empty)}",
        )
    splits = manifest.split_codes()
    by_split = np.array(
        [np.bincount(labels[usable & (splits == code)], minlength=len(counts)) for code in range(len(SPLITS))]
    )
    if not by_split[0].any() or (splits[usable] < 0).any():
        return []  # nothing to train on is given, or some samples still await their split
    untrained = np.flatnonzero(by_split[0] == 0)
    if untrained.size:
        raise DataError(
            f"{data} has classes that do not occur in train.",
            problems=[
                f"class {manifest.class_names[place]!r}: "
                + ", ".join(f"{by_split[code, place]} in {name}" for code, name in enumerate(SPLITS))
                for place in untrained
            ],
            fix=f"add samples to train; or: {exclude_option(manifest.class_names[i] for i in untrained)}",
        )
    notes = []
    for name, per_class in zip(SPLITS, by_split, strict=True):
        if per_class.any() and not per_class.all():
            lacking = [manifest.class_names[place] for place in np.flatnonzero(per_class == 0)]
            notes.append(f"{name} has no sample of {shortened(lacking)}.")
    return notes


def _why_empty(manifest: Manifest, name: str) -> str:
    reasons = Counter(manifest.column("reason")[manifest.column("label") == name])
    if not reasons:
        return "0 samples"
    reason, _ = reasons.most_common(1)[0]
    return f"0 samples of {sum(reasons.values())} can be used; {reason}"
