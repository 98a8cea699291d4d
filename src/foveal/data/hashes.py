"""Hashes of files that nobody has decoded: enough to tell copies of the same bytes."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from foveal.data.manifest import Manifest
from foveal.files import sha256_file
from foveal.pixels.rejection import reason_of, refuse_no_file
from foveal.progress import Progress, Silence

_AT_ONCE = 4096


def with_hashes(manifest: Manifest, *, num_workers: int, progress: Progress | None = None) -> Manifest:
    """Read every file whose hash is not known; what cannot be read, or is empty, is quarantined.

    Args:
        manifest: hashes that it has are believed.
        num_workers: threads that read.
        progress: where to show how far it is.
    """
    columns = {name: manifest.column(name).astype(object) for name in ("sha256", "status", "reason")}
    places = manifest.table["path"]
    rows_of: dict[str, list[int]] = {}
    for row in np.flatnonzero(manifest.is_usable() & (columns["sha256"] == None)).tolist():  # noqa: E711  by element
        rows_of.setdefault(places[row].as_py(), []).append(row)
    if not rows_of:
        return manifest
    with (progress or Silence()).bar("Hashing", len(rows_of), "files") as bar:
        for path, sha256, fault in _read_all(list(rows_of), manifest.images_root, num_workers):
            bar.advance()
            for row in rows_of[path]:
                columns["sha256"][row] = sha256
                if fault:
                    columns["status"][row], columns["reason"][row] = "quarantined", fault
    return manifest.with_columns(**columns)


def _read_all(paths: list[str], root: Path, num_workers: int) -> Iterator[tuple[str, str | None, str | None]]:
    with ThreadPoolExecutor(num_workers, thread_name_prefix="hash") as pool:
        for start in range(0, len(paths), _AT_ONCE):
            some = paths[start : start + _AT_ONCE]
            for path, (sha256, fault) in zip(some, pool.map(lambda each: _read(root / each), some), strict=True):
                yield path, sha256, fault


def _read(path: Path) -> tuple[str | None, str | None]:
    """The hash of a file, or why it cannot be used."""
    try:
        status = path.stat()
        refuse_no_file(status)
        if not status.st_size:
            return None, "the file is empty (0 bytes)"
        return sha256_file(path), None
    except OSError as error:
        return None, reason_of(error)
