"""`foveal split`: groups, subsets, splits and folds, written into a new manifest."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveal.auditing.look import look
from foveal.data.class_names import shortened
from foveal.data.divide import Divided, PartCounts, Shares, count_parts, divide
from foveal.data.grouping import GroupSource
from foveal.data.hashes import with_hashes
from foveal.data.manifest import Manifest, is_manifest
from foveal.data.scan import ScanResult, scan
from foveal.errors import ArtifactError, ConfigError
from foveal.machine import num_threads
from foveal.progress import Progress, Silence
from foveal.training.config import Config, read_config


@dataclass(frozen=True)
class SplitResult:
    """What was shared out, and into which file.

    Attributes:
        manifest: the file that was written, or would be.
        counts: images and independent groups of each class by part.
        sources: what groups were made of.
        notes: sentences about what is unusual, was left out or kept.
        num_images: usable images in the manifest.
        num_quarantined: rows that cannot be used, with their reason in the manifest.
        is_written: false where it was only planned.
    """

    manifest: Path
    counts: PartCounts
    sources: tuple[GroupSource, ...]
    notes: tuple[str, ...]
    num_images: int
    num_quarantined: int
    is_written: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        counts = self.counts

        def by_part(table: NDArray[np.int64]) -> dict[str, dict[str, int]]:
            return {
                part: dict(zip(counts.class_names, row, strict=True))
                for part, row in zip(counts.parts, table.tolist(), strict=True)
            }

        return {
            "manifest": str(self.manifest),
            "is_written": self.is_written,
            "num_images": self.num_images,
            "num_quarantined": self.num_quarantined,
            "images": by_part(counts.num_images),
            "groups": by_part(counts.num_groups),
            "sources": [
                {"name": each.name, "num_images": each.num_samples, "num_groups": each.num_groups}
                for each in self.sources
            ],
            "notes": list(self.notes),
        }

    def rows(self) -> list[tuple[str, ...]]:
        """A table for a person: a row a class, with images and, where they are fewer, groups by part; then the sum."""
        counts = self.counts
        rows = [("class", *counts.parts)]
        for place, name in enumerate(counts.class_names):
            cells = zip(counts.num_images[:, place].tolist(), counts.num_groups[:, place].tolist(), strict=True)
            rows.append((name, *(_cell(images, groups) for images, groups in cells)))
        sums = counts.num_images.sum(axis=1).tolist()
        whole = max(1, sum(sums))
        return [*rows, ("all", *(f"{each:,} ({each / whole:.1%})" for each in sums))]

    def __str__(self) -> str:
        rows = self.rows()
        shown = rows if len(rows) <= 42 else [*rows[:31], ("...", *[""] * len(self.counts.parts)), rows[-1]]
        printable = [[_one_line(cell) for cell in row] for row in shown]
        widths = [max(len(row[place]) for row in printable) for place in range(len(rows[0]))]
        lines = [
            "  ".join(
                cell.ljust(width) if place == 0 else cell.rjust(width) for place, (cell, width) in enumerate(each)
            )
            for each in (list(zip(row, widths, strict=True)) for row in printable)
        ]
        if any((self.counts.num_groups < self.counts.num_images).ravel()):
            lines.append("In brackets: independent groups, which are never cut.")
        lines += [f"Grouped by {each.sentence()}." for each in self.sources]
        return "\n".join([*lines, *self.notes])

    def _repr_html_(self) -> str:
        head, *body = self.rows()
        table = f"<tr>{''.join(f'<th>{html.escape(cell)}</th>' for cell in head)}</tr>"
        table += "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in body)
        said = (*(f"Grouped by {each.sentence()}." for each in self.sources), *self.notes)
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in said)
        return f"<p>Manifest <code>{html.escape(str(self.manifest))}</code></p><table>{table}</table><ul>{notes}</ul>"


def split(
    data: str | PathLike[str],
    out: str | PathLike[str],
    *,
    config: Config | str | PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    like: str | PathLike[str] | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> SplitResult:
    """Share samples out into train, val and test, or into folds and test, and write that as a manifest.

    What belongs together is never cut: given groups, boxes of one photograph, copies of the same bytes, near
    duplicates, what a regular expression finds in the paths, and all unions of these. Where `out` is a manifest
    already, its samples keep their places, and only new ones are drawn for.

    Args:
        data: a folder of class folders, a folder of train/val/test, a table, or a manifest.
        out: the manifest to write, ending in `.parquet`.
        config: a configuration, or a YAML file of one; the defaults if not given.
        overrides: texts such as "split.folds=5", applied on top.
        like: an earlier manifest whose samples keep their split and fold, also where they were moved or renamed.
        force: whether to draw anew where `out` is a manifest already.
        progress: where to show it; nowhere if not given.

    Raises:
        ConfigError: keys or values are wrong, or `out` or `like` cannot be what they should be.
        DataError: the data has faults, or is too small for what is asked; with the counts of each class.
        ArtifactError: `out` is a file that foveal did not write, or `like` is damaged.

    Example:
        >>> import foveal
        >>> foveal.split("photos", "manifest.parquet", overrides=["split.folds=5"])  # doctest: +SKIP
    """
    return _run(data, out, read_config(config, overrides), like, force=force, progress=progress, is_planned=False)


def plan_split(
    data: str | PathLike[str],
    out: str | PathLike[str],
    *,
    config: Config | str | PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    like: str | PathLike[str] | None = None,
    force: bool = False,
) -> SplitResult:
    """What `split` would come to as far as it can be told without reading an image: copies are not yet known.

    Nothing is written.

    Raises:
        ConfigError: as `split`.
        DataError: as `split`.
        ArtifactError: as `split`.
    """
    return _run(data, out, read_config(config, overrides), like, force=force, progress=None, is_planned=True)


def _run(
    data: str | PathLike[str],
    out: str | PathLike[str],
    config: Config,
    like: str | PathLike[str] | None,
    *,
    force: bool,
    progress: Progress | None,
    is_planned: bool,
) -> SplitResult:
    progress = progress or Silence()
    file = Path(out)
    earlier, memory = _earlier(Path(data), file, Path(like) if like is not None else None, force=force)
    scanned = scan(fspath(data), config.data)
    test_fraction = config.split.test_fraction
    shares = Shares(
        config.data.val_fraction, config.data.test_fraction if test_fraction is None else test_fraction, config.seed
    )
    # Once without looking at an image: what cannot be done is refused before any work.
    divided = divide(scanned.manifest, config.split, shares, earlier=earlier)
    if not is_planned:
        manifest, clusters = _look_at_images(scanned, config, progress)
        if clusters is not None or manifest is not scanned.manifest:
            divided = divide(manifest, config.split, shares, clusters=clusters, earlier=earlier)
        divided.manifest.write(file)
    return _result(file, divided, (*scanned.notes, *memory), is_written=not is_planned)


def _look_at_images(
    scanned: ScanResult, config: Config, progress: Progress
) -> tuple[Manifest, NDArray[np.int64] | None]:
    """What only the files can tell: which of them are copies, and which cannot be used.

    Returns:
        The manifest with hashes, and the cluster of near duplicates of each row; None where those are not wanted.
    """
    if not config.split.near_duplicates:
        workers = num_threads(config.data.num_workers)
        return with_hashes(scanned.manifest, num_workers=workers, progress=progress), None
    looked = look(scanned.manifest, config.data, near_duplicates=True, progress=progress)
    return looked.ingested.manifest, looked.clusters


def _earlier(data: Path, out: Path, like: Path | None, *, force: bool) -> tuple[Manifest | None, tuple[str, ...]]:
    """The manifest whose places are kept, and a sentence about it.

    Raises:
        ConfigError: `out` is no place for a manifest, or `like` has no split.
        ArtifactError: `out` is somebody else's file, or would be lost.
    """
    if out.suffix.lower() != ".parquet" or out.is_dir():
        name = out / "manifest.parquet" if out.is_dir() else out.with_name((out.stem or "manifest") + ".parquet")
        raise ConfigError(f"split writes a manifest, and {out} is no name for one.", fix=f"--out {name}")
    if out.exists():
        if data.exists() and out.samefile(data):
            raise ConfigError(f"{out} is DATA itself, and would be lost.", fix="choose another --out.")
        if not _is_manifest(out):
            raise ArtifactError(f"{out} exists, and is no manifest of foveal.", fix="choose another --out.")
    if like is not None:
        old = Manifest.read(like)
        if not _has_split(old):
            raise ConfigError(f"{like} has no split to be kept.", fix="give a manifest that foveal split wrote.")
        if out.exists() and not force and not out.samefile(like):
            raise ArtifactError(
                f"{out} is a manifest already, and --like names another.",
                fix="choose another --out, or write over it by --force.",
            )
        return old, (f"Samples that are in {like} keep their places.",)
    if not out.exists() or force:
        return None, ()
    old = Manifest.read(out)
    if not _has_split(old):
        raise ArtifactError(
            f"{out} is a manifest without a split, which would be lost.",
            fix="choose another --out, or write over it by --force.",
        )
    return old, (f"{out} was there already, and its samples keep their places; --force draws all anew.",)


def _is_manifest(file: Path) -> bool:
    try:
        return file.is_file() and is_manifest(file)
    except ArtifactError:
        return False


def _has_split(manifest: Manifest) -> bool:
    return bool((manifest.split_codes()[manifest.usable()] >= 0).any())


def _result(file: Path, divided: Divided, notes: tuple[str, ...], *, is_written: bool) -> SplitResult:
    manifest = divided.manifest
    num_images = len(manifest.usable())
    num_quarantined = len(manifest) - num_images
    if num_quarantined:
        reasons = manifest.table.filter(~manifest.is_usable())["reason"].unique().to_pylist()
        shown = shortened([str(reason) for reason in reasons], 3)
        notes += (f"{num_quarantined:,} rows are quarantined and in no part: {shown}.",)
    return SplitResult(
        manifest=file,
        counts=count_parts(manifest),
        sources=divided.sources,
        notes=(*notes, *divided.notes),
        num_images=num_images,
        num_quarantined=num_quarantined,
        is_written=is_written,
    )


def _cell(images: int, groups: int) -> str:
    return f"{images:,} ({groups:,})" if groups < images else f"{images:,}"


def _one_line(text: str) -> str:
    return text if text.isprintable() else repr(text)[1:-1]
