"""The one decode pass: every file read, hashed, decoded and measured once, its pixels kept in the store."""

import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foveal.data.cache import cache_folder
from foveal.data.facts import Facts
from foveal.data.manifest import Manifest
from foveal.data.reading import Found, Reader, Recipe, Sample, Wanted
from foveal.data.reading_processes import Read, reading_processes
from foveal.data.store import RECENT_SECONDS, ImageFacts, PixelSource, Place, SampleFacts, Store, Writer
from foveal.errors import DataError
from foveal.pixels.policy import ImageRejectedError
from foveal.progress import Progress, Silence
from foveal.types import Box

__all__ = ["DecodedPixels", "Ingested", "Recipe", "ingest"]

PROCESSES_FROM_FILES = 2000
"""Where fewer are left to read, threads are done before processes have started."""

_LOOKED_UP_AT_ONCE = 4096
_FILES_AT_ONCE = 64
_BYTES_AT_ONCE = 2 << 20
_PIXEL_BYTES_AT_ONCE = 4 << 20
"""A worker is given so many files at once, fewer of large ones, so that memory stays flat and a bar moves."""


@dataclass(frozen=True)
class Ingested:
    """What the decode pass made of a manifest.

    Attributes:
        manifest: the same rows with hash, perceptual hash, size and mode, and with the unusable ones quarantined.
        source: the stored form of each usable row.
        facts: what was measured of each usable row.
        num_decoded: files that had to be decoded now.
        num_from_store: files that were known already: of which nothing was read, or of which no more was needed than
            the hash, since they were moved, copied or touched.
    """

    manifest: Manifest
    source: PixelSource
    facts: Facts
    num_decoded: int
    num_from_store: int


@dataclass(slots=True)
class _File:
    """One file with the rows that it serves, and the box of each."""

    path: str
    key: bytes
    rows: list[int] = field(default_factory=list)
    boxes: list[Box | None] = field(default_factory=list)
    num_bytes: int = 0
    modified_ns: int = 0


class DecodedPixels:
    """Stored forms made on the fly, for data that is larger than the store may be."""

    def __init__(self, root: Path, paths: Sequence[str], boxes: Sequence[Box | None], recipe: Recipe) -> None:
        self._root, self._paths, self._boxes, self._recipe = root, paths, boxes, recipe

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, row: int) -> NDArray[np.uint8]:
        path = self._root / self._paths[row]
        try:
            return self._recipe.load(path, self._boxes[row])
        except (OSError, ImageRejectedError) as error:
            raise DataError(
                f"{path} could be read before and cannot now: {error}.",
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
    boxes = manifest.boxes()
    reader = Reader(store, recipe, keep_pixels=keep_pixels)
    filled = _Filled(manifest)
    files = _files(manifest, boxes)
    todo = _look_up(files, store, reader, filled)
    store.touch(filled.shards())
    num_decoded = num_unreadable = 0
    if todo:
        if keep_pixels:
            num_bytes = 3 * recipe.geometry.store_px**2 * sum(len(file.rows) for file in todo)
            store.make_room(num_bytes, cap_bytes, progress)
        touched = time.monotonic()
        with (
            store.writer(reader.form) as writer,
            _workers(reader, len(todo), num_workers) as read,
            progress.bar("Decoding", len(todo), "files") as bar,
        ):
            pixel_bytes = 3 * recipe.geometry.store_px**2 if keep_pixels else 0
            for some, found in _read_all(_portions(todo, pixel_bytes), read, num_workers):
                for file, one in zip(some, found, strict=True):
                    num_decoded += one.is_new
                    num_unreadable += one.image is None
                    _take(file, one, reader, writer, filled)
                bar.advance(len(some))
                if time.monotonic() - touched > RECENT_SECONDS / 4:
                    store.touch(filled.shards())
                    touched = time.monotonic()
        if keep_pixels:
            store.make_room(0, cap_bytes, progress)  # oblong images take more than was reckoned
    source: PixelSource
    if keep_pixels:
        source = store.read(reader.form, filled.places)
    else:
        source = DecodedPixels(manifest.images_root, manifest.column("path").tolist(), boxes, recipe)
    num_from_store = len(files) - num_decoded - num_unreadable
    facts = filled.facts()
    return Ingested(filled.manifest(), source, facts, num_decoded=num_decoded, num_from_store=num_from_store)


@contextmanager
def _workers(reader: Reader, num_files: int, num_workers: int) -> Iterator[Read]:
    """What reads a portion of files: in processes where that is worth their start, else in the thread that asks."""
    if num_workers < 2 or num_files < PROCESSES_FROM_FILES:
        yield reader.read
        return
    with reading_processes(
        cache_folder(), reader.recipe, keep_pixels=reader.keep_pixels, num_processes=num_workers
    ) as read:
        yield read or reader.read


def _files(manifest: Manifest, boxes: Sequence[Box | None]) -> list[_File]:
    # As text: a million `Path`s take seconds.
    root, texts = os.fspath(manifest.images_root), manifest.column("path").tolist()
    files: dict[str, _File] = {}
    for row in manifest.usable().tolist():
        text = texts[row]
        file = files.get(text)
        if file is None:
            path = os.path.join(root, text)  # noqa: PTH118
            file = files[text] = _File(path, os.fsencode(path))
        file.rows.append(row)
        file.boxes.append(boxes[row])
    return list(files.values())


def _look_up(files: Sequence[_File], store: Store, reader: Reader, filled: "_Filled") -> list[_File]:
    """Fill in what is known of files that have not changed since they were read; the others are left to do."""
    todo = []
    for start in range(0, len(files), _LOOKED_UP_AT_ONCE):
        some = files[start : start + _LOOKED_UP_AT_ONCE]
        for file in some:
            try:
                status = os.stat(file.path)  # noqa: PTH116
            except OSError:
                continue  # the worker will say why
            file.num_bytes, file.modified_ns = status.st_size, status.st_mtime_ns
        hashes = store.known_hashes([(file.key, file.num_bytes, file.modified_ns) for file in some])
        hashed = [(file, sha256) for file, sha256 in zip(some, hashes, strict=True) if sha256]
        found = iter(reader.known([(sha256, file.boxes) for file, sha256 in hashed]))
        for file, sha256 in zip(some, hashes, strict=True):
            one = next(found) if sha256 else None
            if one is None or one.image is None:
                todo.append(file)
            else:
                filled.add(file, one.image, one.samples)
    return todo


def _portions(files: Sequence[_File], pixel_bytes: int) -> Iterator[list[_File]]:
    """Files in the portions that workers are given.

    Args:
        files: all that are to be read.
        pixel_bytes: what a worker hands back for one sample, about.
    """
    portion: list[_File] = []
    num_bytes = num_pixel_bytes = 0
    for file in files:
        portion.append(file)
        num_bytes += file.num_bytes
        num_pixel_bytes += pixel_bytes * len(file.rows)
        if len(portion) >= _FILES_AT_ONCE or num_bytes > _BYTES_AT_ONCE or num_pixel_bytes > _PIXEL_BYTES_AT_ONCE:
            yield portion
            portion, num_bytes, num_pixel_bytes = [], 0, 0
    if portion:
        yield portion


def _read_all(
    portions: Iterator[list[_File]], read: Read, num_workers: int
) -> Iterator[tuple[list[_File], list[Found]]]:
    """Read files in parallel, in order, with a bounded number under way, so that memory stays flat."""
    under_way: deque[tuple[list[_File], Future[list[Found]]]] = deque()
    with ThreadPoolExecutor(num_workers, thread_name_prefix="decode") as pool:
        try:
            for portion in portions:
                wanted = [Wanted(file.path, tuple(file.boxes)) for file in portion]
                under_way.append((portion, pool.submit(read, wanted)))
                if len(under_way) >= 3 * num_workers:
                    head, future = under_way.popleft()
                    yield head, future.result()
            while under_way:
                head, future = under_way.popleft()
                yield head, future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _take(file: _File, found: Found, reader: Reader, writer: Writer, filled: "_Filled") -> None:
    """Keep what was found out about a file, in the store and in the manifest."""
    image = found.image
    if image is None:
        filled.quarantine(file.rows, found.unreadable)
        return
    writer.add_file(file.key, file.num_bytes, file.modified_ns, image, reader.policy)
    samples = found.samples
    if found.is_new:
        samples = tuple(
            _keep_sample(image.sha256, box, sample, reader, writer)
            for box, sample in zip(file.boxes, samples, strict=False)
        )
        if found.jpeg_check:
            writer.add_facts(image.sha256, reader.policy, "", SampleFacts(b"", 0, found.jpeg_check))
    filled.add(file, image, samples)


def _keep_sample(sha256: str, box: Box | None, sample: Sample, reader: Reader, writer: Writer) -> Sample:
    if sample.facts:
        writer.add_facts(sha256, reader.policy, reader.facts_key(box), sample.facts)
    if sample.pixels is None and not sample.fault:
        return sample
    return Sample(writer.add_pixels(sha256, box, sample.pixels, sample.fault), sample.facts)


class _Filled:
    """What the decode pass fills: columns of the manifest, facts, and each row's place in the store."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._texts = {name: manifest.column(name).copy() for name in ("mode", "sha256", "status", "reason")}
        self._sizes = {name: manifest.column(name).copy() for name in ("width", "height")}
        self._facts = Facts.unknown(len(manifest))
        self._measured: list[tuple[int, _File, ImageFacts, bytes]] = []
        self._same: dict[str | None, str | None] = {}
        self.places: list[Place | None] = [None] * len(manifest)

    def add(self, file: _File, image: ImageFacts, samples: Sequence[Sample]) -> None:
        if image.reason:
            self._texts["sha256"][file.rows] = image.sha256
            self._facts.num_bytes[file.rows] = file.num_bytes
            self.quarantine(file.rows, image.reason)
            return
        for row, sample in zip(file.rows, samples, strict=True):
            self.places[row] = sample.place
            if sample.facts:
                self._measured.append((row, file, image, sample.facts.record))
            elif sample.place and sample.place.reason:
                self._fill_image([row], [file], [image])
                self.quarantine([row], sample.place.reason)
        if len(self._measured) >= _LOOKED_UP_AT_ONCE:
            self._fill()

    def _fill(self) -> None:
        """Fill in by column what has come together; one by one takes ten times as long."""
        if not self._measured:
            return
        rows, files, images, records = zip(*self._measured, strict=True)
        self._measured.clear()
        self._fill_image(rows, files, images)
        self._facts.fill(rows, records)
        self._facts.format[[*rows]] = self._shared(image.format for image in images)
        self._facts.notes[[*rows]] = self._shared(image.notes for image in images)

    def _fill_image(self, rows: Sequence[int], files: Sequence[_File], images: Sequence[ImageFacts]) -> None:
        some = [*rows]
        self._texts["sha256"][some] = [image.sha256 for image in images]
        self._texts["mode"][some] = self._shared(image.mode for image in images)
        self._sizes["width"][some] = [image.width for image in images]
        self._sizes["height"][some] = [image.height for image in images]
        self._facts.num_bytes[some] = [file.num_bytes for file in files]

    def _shared(self, texts: Iterable[str | None]) -> list[str | None]:
        """The same texts, those that are equal being one in memory."""
        return [self._same.setdefault(text, text) for text in texts]

    def quarantine(self, rows: Sequence[int], reason: str) -> None:
        for row in rows:
            self._texts["status"][row] = "quarantined"
            self._texts["reason"][row] = reason

    def shards(self) -> set[str]:
        """Where the samples lie."""
        return {place.shard for place in self.places if place and place.shard}

    def facts(self) -> Facts:
        self._fill()
        return self._facts

    def manifest(self) -> Manifest:
        return self._manifest.with_columns(**self._texts, **self._sizes, phash=self.facts().phash_texts())
