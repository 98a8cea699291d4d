"""Copies that were found before: the search is made once for a set of pictures, and every run knows."""

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from foveal.auditing.duplicates import SEARCH_VERSION, Pairs
from foveal.data.cache import cache_folder
from foveal.data.facts import FACTS_VERSION, Facts
from foveal.data.manifest import BOX_COLUMNS, Manifest
from foveal.files import atomic_writer

_MOST_FILES = 200
_ROWS_AT_ONCE = 4096


def remembered(manifest: Manifest, facts: Facts, search: Callable[[], Pairs]) -> Pairs:
    """The pairs of these very rows in this order, from the cache, or else searched and kept.

    Args:
        manifest: after the decode pass.
        facts: of its rows.
        search: finds them.
    """
    file = cache_folder() / "copies" / f"{_key(manifest, facts)}.npz"
    pairs = _read(file)
    if pairs is None:
        pairs = search()
        with atomic_writer(file) as stream:
            np.savez(stream, **{name: getattr(pairs, name) for name in Pairs.__dataclass_fields__})
        _forget_old(file.parent)
    return pairs


def _read(file: Path) -> Pairs | None:
    """What is remembered; None where nothing is, or it is damaged, for it is only a cache."""
    try:
        with np.load(file, allow_pickle=False) as found:
            pairs = Pairs(**{name: found[name] for name in Pairs.__dataclass_fields__})
        file.touch()  # so that the least recently used go first
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None
    return pairs


def _key(manifest: Manifest, facts: Facts) -> str:
    """What the result depends on: contents and sketches in their order, which rows share a photograph, the rules."""
    digest = hashlib.sha256(f"{SEARCH_VERSION} {FACTS_VERSION} {len(manifest)}".encode())
    digest.update(np.where(manifest.is_usable(), manifest.codes("path"), -1).tobytes())
    digest.update("\0".join(text or "" for text in manifest.table["sha256"].to_pylist()).encode())
    for name in BOX_COLUMNS:
        digest.update(manifest.column(name).tobytes())
    for at in range(0, len(manifest), _ROWS_AT_ONCE):
        digest.update(facts.sketch[at : at + _ROWS_AT_ONCE].tobytes())
    return digest.hexdigest()[:32]


def _forget_old(folder: Path) -> None:
    files = sorted(folder.glob("*.npz"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in files[_MOST_FILES:]:
        file.unlink(missing_ok=True)
