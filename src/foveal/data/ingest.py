"""The one decode pass: every file read, hashed and decoded once, its pixels kept in the store."""

import os
import stat
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foveal.data.cache import cache_folder
from foveal.data.manifest import Manifest
from foveal.data.store import RECENT_SECONDS, ImageFacts, PixelSource, Place, Store, form_name, policy_name
from foveal.errors import DataError
from foveal.files import sha256_bytes, sha256_file
from foveal.pixels.policy import Geometry, ImageRejectedError, PixelPolicy, crop_box, decode, to_store
from foveal.progress import Progress, Silence
from foveal.types import Box

READ_AT_ONCE_BYTES = 64 << 20


@dataclass(frozen=True)
class Ingested:
    """What the decode pass made of a manifest.

    Attributes:
        manifest: the same rows with hash, size and mode, and with the unusable ones quarantined.
        source: the stored form of each usable row.
        num_decoded: files that had to be decoded now.
        num_from_store: files that were known already: of which nothing was read, or of which no more was needed than
            the hash, since they were moved, copied or touched.
    """

    manifest: Manifest
    source: PixelSource
    num_decoded: int
    num_from_store: int


@dataclass(frozen=True)
class Recipe:
    """How a file becomes its stored form."""

    geometry: Geometry
    policy: PixelPolicy = field(default_factory=PixelPolicy)
    margin: float = 0.0

    def load(self, path: Path, box: Box | None) -> NDArray[np.uint8]:
        """Read, decode, crop and scale one sample.

        Returns:
            uint8 [height, width, 3], sRGB, 0..255.

        Raises:
            ImageRejectedError: the file or the box is unusable.
            OSError: the file cannot be read.
        """
        pixels = decode(path, self.policy).pixels
        return to_store(pixels if box is None else crop_box(pixels, box, self.margin), self.geometry)


@dataclass
class _File:
    """One file with the rows that it serves, and the box of each."""

    path: Path
    rows: list[int] = field(default_factory=list)
    boxes: list[Box | None] = field(default_factory=list)
    num_bytes: int = 0
    modified_ns: int = 0


@dataclass(frozen=True)
class _Known:
    """What the store knows of a content, with a place for each of the samples that are wanted of it."""

    facts: ImageFacts
    places: Sequence[Place | None]


@dataclass(frozen=True)
class _Decoded:
    """What a worker found out of a content, with box, pixels and fault of each sample; none where it is unusable."""

    facts: ImageFacts
    samples: tuple[tuple[Box | None, NDArray[np.uint8] | None, str | None], ...] = ()


class DecodedPixels:
    """Stored forms made on the fly, for data that is larger than the store may be."""

    def __init__(self, paths: Sequence[Path], boxes: Sequence[Box | None], recipe: Recipe) -> None:
        self._paths, self._boxes, self._recipe = paths, boxes, recipe

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, row: int) -> NDArray[np.uint8]:
        try:
            return self._recipe.load(self._paths[row], self._boxes[row])
        except (OSError, ImageRejectedError) as error:
            raise DataError(
                f"{self._paths[row]} could be read before and cannot now: {error}.",
                fix="the data must not change while it is being used; start again.",
            ) from error


def ingest(
    manifest: Manifest,
    recipe: Recipe,
    *,
    keep_pixels: bool,
    cap_bytes: int,
    num_workers: int,
    progress: Progress | None = None,
) -> Ingested:
    """Decode what is not yet known, in parallel, and say what every file is.

    A file that cannot be used is quarantined with its reason; nothing takes its place. The pass can be killed at any
    moment and taken up again: what was committed is not decoded twice.

    Args:
        manifest: rows to fill; quarantined ones are passed over.
        recipe: how pixels become the stored form.
        keep_pixels: whether the pixels go to the store, or are decoded again whenever they are needed; what was learnt
            of a file is remembered in any case.
        cap_bytes: largest size of the whole store; the sets that were not used for longest make room.
        num_workers: threads that decode.
        progress: where to show how far it is.
    """
    with Store(cache_folder()) as store:
        return _ingest(manifest, recipe, store, keep_pixels, cap_bytes, num_workers, progress or Silence())


def _ingest(
    manifest: Manifest,
    recipe: Recipe,
    store: Store,
    keep_pixels: bool,
    cap_bytes: int,
    num_workers: int,
    progress: Progress,
) -> Ingested:
    paths, boxes = manifest.absolute_paths(), manifest.boxes()
    form, policy = form_name(recipe.geometry, recipe.policy, recipe.margin), policy_name(recipe.policy)

    def look_up(sha256: str, samples: Sequence[Box | None]) -> _Known | None:
        return _look_up(store, sha256, samples, form, policy, need_pixels=keep_pixels)

    filled = _Filled(manifest)
    files, todo = _files(manifest, paths, boxes), []
    for file in files:
        sha256 = _known_hash(store, file)
        known = look_up(sha256, file.boxes) if sha256 else None
        if known is None:
            todo.append(file)
        else:
            filled.add(file.rows, known.facts, known.places)
    store.touch(filled.shards())
    num_decoded = num_unreadable = 0
    if todo:
        if keep_pixels:
            _make_room(
                store, 3 * recipe.geometry.store_px**2 * sum(len(file.rows) for file in todo), cap_bytes, progress
            )
        touched = time.monotonic()
        with store.writer(form) as writer, progress.bar("Decoding", len(todo), "files") as bar:
            for file, read in _read_all(todo, recipe, look_up, keep_pixels, num_workers):
                bar.advance()
                if isinstance(read, str):
                    filled.quarantine(file.rows, read)
                    num_unreadable += 1
                    continue
                writer.add_file(os.fsencode(file.path), file.num_bytes, file.modified_ns, read.facts, policy)
                if isinstance(read, _Known):
                    filled.add(file.rows, read.facts, read.places)
                else:
                    num_decoded += 1
                    filled.add(file.rows, read.facts, [writer.add_pixels(read.facts.sha256, *s) for s in read.samples])
                if time.monotonic() - touched > RECENT_SECONDS / 4:
                    store.touch(filled.shards())
                    touched = time.monotonic()
        if keep_pixels:
            _make_room(store, 0, cap_bytes, progress)  # oblong images take more than was reckoned
    source: PixelSource = store.read(form, filled.places) if keep_pixels else DecodedPixels(paths, boxes, recipe)
    num_from_store = len(files) - num_decoded - num_unreadable
    return Ingested(filled.manifest(), source, num_decoded=num_decoded, num_from_store=num_from_store)


def _make_room(store: Store, num_bytes: int, cap_bytes: int, progress: Progress) -> None:
    if freed := store.make_room(num_bytes, cap_bytes):
        progress.say(f"The image store is full: {freed / (1 << 20):,.0f} MiB were deleted that lay unused for longest.")


def _files(manifest: Manifest, paths: Sequence[Path], boxes: Sequence[Box | None]) -> list[_File]:
    files: dict[Path, _File] = {}
    for row in manifest.usable().tolist():
        file = files.setdefault(paths[row], _File(paths[row]))
        file.rows.append(row)
        file.boxes.append(boxes[row])
    return list(files.values())


def _known_hash(store: Store, file: _File) -> str | None:
    """The file's hash, if it has not changed since it was read."""
    try:
        status = file.path.stat()
    except OSError:
        return None  # the worker will say why
    file.num_bytes, file.modified_ns = status.st_size, status.st_mtime_ns
    return store.known_hash(os.fsencode(file.path), file.num_bytes, file.modified_ns)


def _look_up(
    store: Store, sha256: str, boxes: Sequence[Box | None], form: str, policy: str, *, need_pixels: bool
) -> _Known | None:
    """What the store knows of a content; None where anything is missing and it must be decoded."""
    facts = store.facts(sha256, policy)
    if facts is None:
        return None
    if facts.reason:
        return _Known(facts, [None] * len(boxes))
    places = [store.place(form, sha256, box) for box in boxes]
    for place, box in zip(places, boxes, strict=True):
        if place is None:
            # Whether a box is usable has to be seen once; a whole image is, as the facts say.
            enough = box is None and not need_pixels
        else:
            enough = bool(place.shard or place.reason) or not need_pixels
        if not enough:
            return None
    return _Known(facts, places)


def _read_all(
    files: Sequence[_File],
    recipe: Recipe,
    look_up: Callable[[str, Sequence[Box | None]], _Known | None],
    keep_pixels: bool,
    num_workers: int,
) -> Iterator[tuple[_File, _Known | _Decoded | str]]:
    """Read files in parallel, in order, with a bounded number under way, so that memory stays flat."""
    under_way: deque[tuple[_File, Future[_Known | _Decoded | str]]] = deque()
    with ThreadPoolExecutor(num_workers, thread_name_prefix="decode") as pool:
        try:
            for file in files:
                under_way.append((file, pool.submit(_read, file.path, file.boxes, recipe, look_up, keep_pixels)))
                if len(under_way) >= 8 * num_workers:
                    head, future = under_way.popleft()
                    yield head, future.result()
            while under_way:
                head, future = under_way.popleft()
                yield head, future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _read(
    path: Path,
    boxes: Sequence[Box | None],
    recipe: Recipe,
    look_up: Callable[[str, Sequence[Box | None]], _Known | None],
    keep_pixels: bool,
) -> _Known | _Decoded | str:
    """What one file is, or why it cannot be read; a content that is known by another name is not decoded again."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return "cannot be read: not a regular file"  # opening a named pipe would wait for ever
        content = path.read_bytes() if status.st_size <= READ_AT_ONCE_BYTES else path
        sha256 = sha256_bytes(content) if isinstance(content, bytes) else sha256_file(path)
        known = look_up(sha256, boxes)
        if known is not None:
            return known
        decoded = decode(content, recipe.policy)
    except ImageRejectedError as error:
        return _Decoded(ImageFacts(sha256, reason=str(error)))
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    height, width = decoded.pixels.shape[:2]
    facts = ImageFacts(sha256, width, height, decoded.mode, decoded.format, "; ".join(decoded.notes))
    samples: list[tuple[Box | None, NDArray[np.uint8] | None, str | None]] = []
    for box in boxes:
        try:
            pixels = decoded.pixels if box is None else crop_box(decoded.pixels, box, recipe.margin)
            samples.append((box, to_store(pixels, recipe.geometry) if keep_pixels else None, None))
        except ImageRejectedError as error:
            samples.append((box, None, str(error)))
    return _Decoded(facts, tuple(samples))


class _Filled:
    """What the decode pass fills: columns of the manifest, and each row's place in the store."""

    _NAMES = ("width", "height", "mode", "sha256", "status", "reason")

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._columns = {name: manifest.column(name).astype(object) for name in self._NAMES}
        self.places: list[Place | None] = [None] * len(manifest)

    def add(self, rows: Sequence[int], facts: ImageFacts, places: Sequence[Place | None]) -> None:
        for row in rows:
            self._columns["sha256"][row] = facts.sha256
            self._columns["width"][row] = facts.width
            self._columns["height"][row] = facts.height
            self._columns["mode"][row] = facts.mode
        if facts.reason:
            self.quarantine(rows, facts.reason)
            return
        for row, place in zip(rows, places, strict=True):
            self.places[row] = place
            if place and place.reason:
                self.quarantine([row], place.reason)

    def quarantine(self, rows: Sequence[int], reason: str) -> None:
        for row in rows:
            self._columns["status"][row] = "quarantined"
            self._columns["reason"][row] = reason

    def shards(self) -> set[str]:
        """Where the samples lie."""
        return {place.shard for place in self.places if place and place.shard}

    def manifest(self) -> Manifest:
        return self._manifest.with_columns(**self._columns)
