"""The store: every image decoded once, kept as 8-bit RGB in memory-mapped shards, shared by all runs.

An image is kept in the form that `pixels.to_store` gives it, under a key made of its content's SHA-256, its box, the
geometry and the version of the pixel policy. Batches are slices of the maps. An index (SQLite, safe for many
processes) says what lies where, and remembers each file's hash by path, size and modification time, so that a second
run reads nothing but the index.

Crash safety: shards only grow, and pixels are on disk before the index speaks of them. What a killed process left
behind its last commit is never referred to.
"""

import os
import sqlite3
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from foveal.data.pixels import Geometry, PixelPolicy
from foveal.errors import ArtifactError
from foveal.files import sha256_bytes
from foveal.types import Box

LAYOUT_VERSION = 1
SHARD_BYTES = 1 << 30
RECENT_SECONDS = 3600.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    path BLOB PRIMARY KEY, num_bytes INTEGER, modified_ns INTEGER, sha256 TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS images (
    sha256 TEXT, policy TEXT, width INTEGER, height INTEGER, mode TEXT, format TEXT, notes TEXT, reason TEXT,
    PRIMARY KEY (sha256, policy)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pixels (
    form TEXT, sha256 TEXT, box TEXT, shard TEXT, start INTEGER, height INTEGER, width INTEGER, reason TEXT,
    PRIMARY KEY (form, sha256, box)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS forms (form TEXT PRIMARY KEY, last_used REAL) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What one decode taught about a file's content; `reason` is None where the image is usable."""

    sha256: str
    width: int | None = None
    height: int | None = None
    mode: str | None = None
    format: str | None = None
    notes: str = ""
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where one stored image lies: bytes `start` onwards of a shard; `reason` is set where the box was unusable."""

    shard: str
    start: int
    height: int
    width: int
    reason: str | None = None


class PixelSource(Protocol):
    """Stored forms of images by row number, wherever they come from."""

    def __len__(self) -> int:
        """Number of rows."""

    def __getitem__(self, row: int) -> NDArray[np.uint8]:
        """The stored form of a row: uint8 [height, width, 3], sRGB, 0..255."""


class Store:
    """The index and the shards of one cache folder.

    Args:
        folder: the cache folder; made where it is missing.

    Raises:
        ArtifactError: the folder cannot be written, or its index is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / f"store-v{LAYOUT_VERSION}"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._index = sqlite3.connect(self._folder / "index.sqlite", timeout=60.0, isolation_level=None)
            self._index.execute("PRAGMA journal_mode=WAL")
            self._index.execute("PRAGMA synchronous=NORMAL")
            self._index.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise ArtifactError(
                f"The image store in {self._folder} cannot be opened: {error}.",
                fix="delete that folder (it is only a cache), or set FOVEAL_CACHE_DIR to another place.",
            ) from error

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the index; maps that were given out stay valid."""
        self._index.close()

    def known_hash(self, path: bytes, num_bytes: int, modified_ns: int) -> str | None:
        """The SHA-256 that a file had when it last was read, if it has not changed since."""
        found = self._index.execute(
            "SELECT num_bytes, modified_ns, sha256 FROM files WHERE path = ?", (path,)
        ).fetchone()
        return str(found[2]) if found and (found[0], found[1]) == (num_bytes, modified_ns) else None

    def facts(self, sha256: str, policy: str) -> ImageFacts | None:
        """What is known about a content under a policy."""
        found = self._index.execute(
            "SELECT sha256, width, height, mode, format, notes, reason FROM images WHERE sha256 = ? AND policy = ?",
            (sha256, policy),
        ).fetchone()
        return ImageFacts(*found) if found else None

    def place(self, form: str, sha256: str, box: Box | None) -> Place | None:
        """Where an image lies in one form, if it is there."""
        found = self._index.execute(
            "SELECT shard, start, height, width, reason FROM pixels WHERE form = ? AND sha256 = ? AND box = ?",
            (form, sha256, box_key(box)),
        ).fetchone()
        return Place(*found) if found else None

    def touch(self, form: str) -> None:
        """Note that a form is in use now, so that it is not evicted."""
        self._index.execute("INSERT OR REPLACE INTO forms VALUES (?, ?)", (form, time.time()))

    @contextmanager
    def writer(self, form: str) -> Iterator["Writer"]:
        """Add images in one form; what was committed stays, whatever happens later."""
        writer = Writer(self._index, self._folder / form, form)
        try:
            yield writer
            writer.commit()
        finally:
            writer.close()

    def read(self, form: str, places: Sequence[Place | None]) -> "StoredPixels":
        """Map the shards that hold `places` and give them out by row number."""
        return StoredPixels(self._folder / form, places)

    def num_bytes(self) -> int:
        """Bytes of all shards of all forms."""
        return sum(file.stat().st_size for file in self._folder.glob("*/*.rgb"))

    def make_room(self, num_bytes: int, cap_bytes: int, keep: str) -> list[str]:
        """Delete the least recently used forms until `num_bytes` more fit under the cap.

        A form that was used within the hour stays, since a run may be about to map it. Maps that are open already
        stay valid on POSIX after their file is gone.

        Returns:
            The forms that were deleted.
        """
        deleted: list[str] = []
        oldest = self._index.execute(
            "SELECT form FROM forms WHERE form != ? AND last_used < ? ORDER BY last_used",
            (keep, time.time() - RECENT_SECONDS),
        ).fetchall()
        for (form,) in oldest:
            if self.num_bytes() + num_bytes <= cap_bytes:
                break
            self._index.execute("DELETE FROM pixels WHERE form = ?", (form,))
            self._index.execute("DELETE FROM forms WHERE form = ?", (form,))
            for file in (self._folder / form).glob("*.rgb"):
                file.unlink(missing_ok=True)
            deleted.append(form)
        return deleted


class Writer:
    """Appends images to a shard of its own, so that processes never write into one file."""

    def __init__(self, index: sqlite3.Connection, folder: Path, form: str) -> None:
        self._index, self._folder, self._form = index, folder, form
        self._rows: list[tuple[str, tuple[object, ...]]] = []
        self._since_commit = 0
        self._open_shard()

    def _open_shard(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._shard = f"{uuid.uuid4().hex}.rgb"
        self._stream = (self._folder / self._shard).open("xb")
        self._end = 0

    def add_file(self, path: bytes, num_bytes: int, modified_ns: int, facts: ImageFacts, policy: str) -> None:
        """Remember a file's hash and what its content is."""
        self._rows.append(
            ("INSERT OR REPLACE INTO files VALUES (?,?,?,?)", (path, num_bytes, modified_ns, facts.sha256))
        )
        values = (facts.sha256, policy, facts.width, facts.height, facts.mode, facts.format, facts.notes, facts.reason)
        self._rows.append(("INSERT OR REPLACE INTO images VALUES (?,?,?,?,?,?,?,?)", values))

    def add_pixels(self, sha256: str, box: Box | None, pixels: NDArray[np.uint8] | None, reason: str | None) -> Place:
        """Append one stored image, or the reason why its box has none."""
        if pixels is None:
            place = Place("", 0, 0, 0, reason)
        else:
            if self._end and self._end + pixels.nbytes > SHARD_BYTES:
                self.commit()
                self._stream.close()
                self._open_shard()
            place = Place(self._shard, self._end, pixels.shape[0], pixels.shape[1])
            self._stream.write(np.ascontiguousarray(pixels).data)
            self._end += pixels.nbytes
            self._since_commit += pixels.nbytes
        values = (self._form, sha256, box_key(box), place.shard, place.start, place.height, place.width, place.reason)
        self._rows.append(("INSERT OR REPLACE INTO pixels VALUES (?,?,?,?,?,?,?,?)", values))
        if self._since_commit > 64 << 20 or len(self._rows) > 20_000:
            self.commit()
        return place

    def commit(self) -> None:
        """Put the pixels on disk, then let the index speak of them."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._index.execute("BEGIN IMMEDIATE")
        for statement, values in self._rows:
            self._index.execute(statement, values)
        self._index.execute("COMMIT")
        self._rows.clear()
        self._since_commit = 0

    def close(self) -> None:
        """Close the shard; an empty one is deleted."""
        self._stream.close()
        if self._end == 0:
            (self._folder / self._shard).unlink(missing_ok=True)


class StoredPixels:
    """Stored images by row number, as slices of memory maps."""

    def __init__(self, folder: Path, places: Sequence[Place | None]) -> None:
        names = sorted({place.shard for place in places if place and place.shard})
        maps = [np.memmap(folder / name, dtype=np.uint8, mode="r") for name in names]
        number = {name: i for i, name in enumerate(names)}
        self._maps = maps
        self._places = [
            (number[place.shard], place.start, place.height, place.width) if place and place.shard else None
            for place in places
        ]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, row: int) -> NDArray[np.uint8]:
        place = self._places[row]
        if place is None:
            raise IndexError(f"row {row} is not in the store")
        shard, start, height, width = place
        return self._maps[shard][start : start + height * width * 3].reshape(height, width, 3)


def form_name(geometry: Geometry, policy: PixelPolicy, margin: float) -> str:
    """The folder name of all images that were made with the same choices."""
    choices = {**asdict(geometry), **asdict(policy), "margin": margin, "layout": LAYOUT_VERSION}
    # The size that the model sees is cut from the stored form later, so it does not matter here.
    del choices["size_px"]
    digest = sha256_bytes(repr(sorted(choices.items())).encode())[:12]
    return f"{geometry.fit}-{geometry.store_px}px-{digest}"


def policy_name(policy: PixelPolicy) -> str:
    """The key under which facts of contents are kept: all that can change whether and how an image decodes."""
    return sha256_bytes(repr(sorted(asdict(policy).items())).encode())[:12]


def box_key(box: Box | None) -> str:
    """A box as text; empty for the whole image."""
    return "" if box is None else ",".join(str(edge) for edge in box)
