"""The store: every image decoded once, kept as 8-bit RGB in memory-mapped shards, shared by all runs.

An image is kept in the form that `pixels.to_store` gives it, under a key made of its content's SHA-256, its box, the
geometry and the version of the pixel policy. Batches are slices of the maps. An index (SQLite, safe for many
processes) says what lies where, and remembers each file's hash by path, size and modification time and what was
measured of each sample, so that a second run reads nothing but the index. The features that a frozen network sees of
an image are kept beside it, under a form of their own.

Crash safety: shards only grow, and their bytes are on disk before the index speaks of them. What a killed process left
behind its last commit is never referred to, and a shard that is shorter than the index says, or gone, counts as not
there: what it held is made again.
"""

import os
import time
import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from foveal.data.store_index import Index
from foveal.data.store_maps import FEATURE_SUFFIX, PIXEL_SUFFIX, Place, StoredFeatures, StoredPixels, file_size
from foveal.errors import ArtifactError
from foveal.files import sha256_bytes
from foveal.pixels.policy import Geometry, PixelPolicy
from foveal.progress import Progress
from foveal.types import Box

__all__ = ["ImageFacts", "PixelSource", "Place", "SampleFacts", "Store", "StoredFeatures", "StoredPixels", "Writer"]
__all__ += ["box_key", "form_name", "policy_name"]

LAYOUT_VERSION = 1
SHARD_BYTES = 1 << 30
RECENT_SECONDS = 3600.0
COMMIT_BYTES = 64 << 20
COMMIT_ROWS = 20_000
COMMIT_SECONDS = 10.0
_BUFFER_BYTES = 1 << 20

# What belongs together is in one transaction; in which order does not matter.
_INSERTS = {
    "files": "INSERT OR REPLACE INTO files VALUES (?,?,?,?)",
    "images": "INSERT OR REPLACE INTO images VALUES (?,?,?,?,?,?,?,?)",
    "pixels": "INSERT OR REPLACE INTO pixels VALUES (?,?,?,?,?,?,?,?)",
    "facts": "INSERT OR REPLACE INTO facts VALUES (?,?,?,?,?,?)",
    "shards": "INSERT OR REPLACE INTO shards VALUES (?,?,?)",
}


class ImageFacts(NamedTuple):
    """What one decode taught about a file's content; `reason` is None where the image is usable."""

    sha256: str
    width: int | None = None
    height: int | None = None
    mode: str | None = None
    format: str | None = None
    notes: str = ""
    reason: str | None = None


class SampleFacts(NamedTuple):
    """What was measured of one sample.

    Attributes:
        record: one of `facts.RECORD`, as that version has it.
        version: the `FACTS_VERSION` that made it.
        jpeg_check: the `JPEG_CHECK_VERSION` that the file passed, or failed; 0 where it was not asked.
    """

    record: bytes
    version: int
    jpeg_check: int


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
        ArtifactError: the folder cannot be written, or its index is damaged; so do all methods.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / f"store-v{LAYOUT_VERSION}"
        self._index = Index(self._folder / "index.sqlite")
        self._shard_sizes: dict[str, int] = {}

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the index; maps that were given out stay valid."""
        self._index.close()

    def known_hashes(self, files: Sequence[tuple[bytes, int, int]]) -> list[str | None]:
        """The SHA-256 that each file had when it last was read, if it has not changed since.

        Args:
            files: path, number of bytes, and time of modification in nanoseconds.
        """
        statement = "SELECT path, num_bytes, modified_ns, sha256 FROM files WHERE path IN"
        found = {row[:3]: row[3] for row in self._index.rows_of(statement, [file[0] for file in files])}
        return [found.get(file) for file in files]

    def contents(self, sha256s: Sequence[str], policy: str) -> dict[str, ImageFacts]:
        """What is known about contents under a policy, by hash."""
        columns = "sha256, width, height, mode, format, notes, reason"
        statement = f"SELECT {columns} FROM images WHERE policy = ? AND sha256 IN"
        return {row[0]: ImageFacts(*row) for row in self._index.rows_of(statement, sha256s, (policy,))}

    def places(self, form: str, sha256s: Sequence[str]) -> dict[tuple[str, str], Place]:
        """Where the samples of contents lie in one form, if they are there and whole, by hash and `box_key`."""
        columns = "sha256, box, shard, start, height, width, reason"
        statement = f"SELECT {columns} FROM pixels WHERE form = ? AND sha256 IN"
        places = {(row[0], row[1]): Place(*row[2:]) for row in self._index.rows_of(statement, sha256s, (form,))}
        return {key: place for key, place in places.items() if not place.shard or self._is_whole(form, place)}

    def sample_facts(self, sha256s: Sequence[str], policy: str) -> dict[tuple[str, str], SampleFacts]:
        """What was measured of the samples of contents, by hash and `box_key` with the margin."""
        statement = "SELECT sha256, box, record, version, jpeg_check FROM facts WHERE policy = ? AND sha256 IN"
        return {(row[0], row[1]): SampleFacts(*row[2:]) for row in self._index.rows_of(statement, sha256s, (policy,))}

    def _is_whole(self, form: str, place: Place) -> bool:
        """Whether the shard is there and reaches so far; bytes that are mapped but missing would kill the process."""
        if place.end > self._shard_sizes.get(place.shard, -1):
            self._shard_sizes[place.shard] = file_size(self._folder / form / place.shard)
        return place.end <= self._shard_sizes[place.shard]

    def touch(self, shards: Collection[str]) -> None:
        """Note that shards are in use now, so that they are not deleted."""
        now = time.time()
        if shards:
            self._index.apply(("UPDATE shards SET last_used = ? WHERE shard = ?", (now, shard)) for shard in shards)

    @contextmanager
    def writer(self, form: str, suffix: str = PIXEL_SUFFIX) -> Iterator["Writer"]:
        """Add images in one form, or features; what was committed stays, whatever happens later."""
        writer = Writer(self._index, self._folder / form, form, suffix)
        try:
            yield writer
            writer.commit()
        finally:
            writer.close()

    def read(self, form: str, places: Sequence[Place | None]) -> "StoredPixels":
        """Map the shards that hold `places` and give them out by row number."""
        return StoredPixels(self._folder / form, places)

    def read_features(self, form: str, places: Sequence[Place | None]) -> StoredFeatures:
        """The same for rows of features."""
        return StoredFeatures(self._folder / form, places)

    def num_bytes(self) -> int:
        """Bytes of all shards of all forms."""
        return sum(max(0, file_size(file)) for file in self._shards())

    def _shards(self) -> Iterator[Path]:
        for suffix in (PIXEL_SUFFIX, FEATURE_SUFFIX):
            yield from self._folder.glob(f"*/*{suffix}")

    def make_room(self, num_bytes: int, cap_bytes: int, progress: Progress | None = None) -> int:
        """Delete the least recently used shards until `num_bytes` more fit under the cap.

        A shard that was used within the hour stays, since a run may be about to map it. Maps that are open already
        stay valid on POSIX after their file is gone.

        Args:
            num_bytes: what is about to be added.
            cap_bytes: the cap.
            progress: where to say what was deleted.

        Returns:
            The number of bytes that were deleted.
        """
        self._sweep()
        to_free, freed = self.num_bytes() + num_bytes - cap_bytes, 0
        oldest = self._index.rows(
            "SELECT shard, form FROM shards WHERE last_used < ? ORDER BY last_used", (time.time() - RECENT_SECONDS,)
        )
        for shard, form in oldest:
            if freed >= to_free:
                break
            self._index.apply(
                [
                    ("DELETE FROM pixels WHERE form = ? AND shard = ?", (form, shard)),
                    ("DELETE FROM shards WHERE shard = ?", (shard,)),
                ]
            )
            file = self._folder / form / shard
            freed += max(0, file_size(file))
            file.unlink(missing_ok=True)
        if freed and progress:
            progress.say(
                f"The image store is full: {freed / (1 << 20):,.0f} MiB were deleted that lay unused for longest."
            )
        return freed

    def _sweep(self) -> None:
        """Delete shards that the index does not know: their process was killed before its first commit."""
        known = {shard for (shard,) in self._index.rows("SELECT shard FROM shards")}
        for file in self._shards():
            with suppress(FileNotFoundError):  # another process sweeps too
                if file.name not in known and time.time() - file.stat().st_mtime > RECENT_SECONDS:
                    file.unlink()


class Writer:
    """Appends images or features to a shard of its own, so that processes never write into one file."""

    def __init__(self, index: Index, folder: Path, form: str, suffix: str) -> None:
        self._index, self._folder, self._form, self._suffix = index, folder, form, suffix
        self._changes: dict[str, list[tuple[object, ...]]] = {table: [] for table in _INSERTS}
        self._num_changes = 0
        self._open_shard()

    def _open_shard(self) -> None:
        self._shard = f"{uuid.uuid4().hex}{self._suffix}"
        with self._explained():
            self._folder.mkdir(parents=True, exist_ok=True)
            self._stream = (self._folder / self._shard).open("xb", buffering=_BUFFER_BYTES)
        self._end = self._committed_end = 0
        self._committed_at = time.monotonic()

    def add_file(self, path: bytes, num_bytes: int, modified_ns: int, facts: ImageFacts, policy: str) -> None:
        """Remember a file's hash and what its content is."""
        self._add("files", (path, num_bytes, modified_ns, facts.sha256))
        self._add("images", (facts.sha256, policy, *facts[1:]))

    def add_facts(self, sha256: str, policy: str, box: str, facts: SampleFacts) -> None:
        """Remember what was measured of a sample; `box` is its `box_key` with the margin."""
        self._add("facts", (sha256, policy, box, facts.version, facts.jpeg_check, facts.record))

    def add_pixels(self, sha256: str, box: Box | None, pixels: NDArray[np.uint8] | None, reason: str | None) -> Place:
        """Append one stored image; without pixels, note the reason for which the box is unusable."""
        place = Place("", 0, 0, 0, reason) if pixels is None else self._append(pixels, *pixels.shape[:2])
        self._add("pixels", (self._form, sha256, box_key(box), *place))
        return place

    def add_features(self, sha256: str, box: str, features: NDArray[np.float32]) -> Place:
        """Append one row of features, float32 [features]; `box` is its `box_key`."""
        place = self._append(features, 1, len(features))
        self._add("pixels", (self._form, sha256, box, *place))
        return place

    def _append(self, content: NDArray[np.generic], height: int, width: int) -> Place:
        if self._end and self._end + content.nbytes > SHARD_BYTES:
            self.commit()
            self._stream.close()
            self._open_shard()
        place = Place(self._shard, self._end, height, width)
        with self._explained():
            self._stream.write(np.ascontiguousarray(content).data)
        self._end += content.nbytes
        return place

    def _add(self, table: str, values: tuple[object, ...]) -> None:
        self._changes[table].append(values)
        self._num_changes += 1
        is_late = time.monotonic() - self._committed_at > COMMIT_SECONDS
        if is_late or self._end - self._committed_end > COMMIT_BYTES or self._num_changes > COMMIT_ROWS:
            self.commit()

    def commit(self) -> None:
        """Put the pixels on disk, then let the index speak of them."""
        with self._explained():
            self._stream.flush()
            os.fsync(self._stream.fileno())
        if self._end:
            self._changes["shards"].append((self._shard, self._form, time.time()))
        self._index.apply((_INSERTS[table], values) for table, rows in self._changes.items() for values in rows)
        for rows in self._changes.values():
            rows.clear()
        self._num_changes = 0
        self._committed_end, self._committed_at = self._end, time.monotonic()

    def close(self) -> None:
        """Close the shard and cut off what was not committed; an empty one is deleted."""
        with suppress(OSError):  # of a full disk, which was told already; what is buffered still is cut off anyway
            self._stream.close()
        file = self._folder / self._shard
        if self._committed_end == 0:
            file.unlink(missing_ok=True)
        elif self._committed_end < file_size(file):
            os.truncate(file, self._committed_end)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            is_pixels = self._suffix == PIXEL_SUFFIX
            raise ArtifactError(
                f"{'Decoded images' if is_pixels else 'Features of images'} could not be written to {self._folder}: "
                f"{error.strerror or error}.",
                fix="free some space, lower data.store_cap_gib, or set FOVEAL_CACHE_DIR to another place"
                f"{'; --set data.store=off decodes on the fly' if is_pixels else ''}.",
            ) from error


def form_name(geometry: Geometry, policy: PixelPolicy, margin: float) -> str:
    """The folder name of all images that were made with the same choices."""
    shape = asdict(geometry)
    # The size that the model sees is cut from the stored form later, so it does not matter here.
    del shape["size_px"]
    choices = (sorted(shape.items()), sorted(asdict(policy).items()), float(margin), LAYOUT_VERSION)
    return f"{geometry.fit}-{geometry.store_px}px-{sha256_bytes(repr(choices).encode())[:12]}"


def policy_name(policy: PixelPolicy) -> str:
    """The key under which facts of contents are kept: all that can change whether and how an image decodes."""
    return sha256_bytes(repr(sorted(asdict(policy).items())).encode())[:12]


def box_key(box: Box | None, margin: float = 0.0) -> str:
    """A box as text, empty for the whole image; with its margin where nothing else tells of that."""
    if box is None:
        return ""
    return ",".join(str(edge) for edge in box) + (f"+{margin!r}" if margin else "")
