"""The one decode pass: every file read, hashed and decoded once, its pixels kept in the store."""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foveal.data.cache import cache_folder
from foveal.data.manifest import Manifest
from foveal.data.pixels import Geometry, ImageRejectedError, PixelPolicy, crop_box, decode, to_store
from foveal.data.store import ImageFacts, PixelSource, Place, Store, form_name, policy_name
from foveal.errors import DataError
from foveal.files import sha256_bytes, sha256_file
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
        num_from_store: files that were known already, so that nothing of them was read.
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
    """One file with the rows that it serves."""

    path: Path
    rows: list[int] = field(default_factory=list)
    num_bytes: int = 0
    modified_ns: int = 0


@dataclass(frozen=True)
class _Read:
    """What a worker brings back from one file."""

    facts: ImageFacts | None
    failure: str | None
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
    store.touch(form)
    filled = _Columns(manifest)
    places: list[Place | None] = [None] * len(manifest)
    todo: list[_File] = []
    files = _files(manifest, paths)
    for file in files:
        known = _look_up(store, file, boxes, form, policy, need_pixels=keep_pixels)
        if known is None:
            todo.append(file)
            continue
        facts, file_places = known
        filled.set_facts(file.rows, facts)
        for row, place in zip(file.rows, file_places, strict=True):
            _settle(filled, places, row, place)
    if todo:
        if keep_pixels:
            num_bytes = 3 * recipe.geometry.store_px**2 * sum(len(file.rows) for file in todo)
            for name in store.make_room(num_bytes, cap_bytes, keep=form):
                progress.say(f"The image store is full: the decoded images {name} were deleted, being unused longest.")
        with store.writer(form) as writer, progress.bar("Decoding", len(todo), "files") as bar:
            for file, read in _read_all(todo, boxes, recipe, keep_pixels, num_workers):
                bar.advance()
                if read.facts is None:
                    filled.quarantine(file.rows, read.failure or "cannot be read")
                    continue
                writer.add_file(os.fsencode(file.path), file.num_bytes, file.modified_ns, read.facts, policy)
                filled.set_facts(file.rows, read.facts)
                for row, (box, pixels, reason) in zip(file.rows, read.samples, strict=False):
                    if keep_pixels or reason:
                        _settle(filled, places, row, writer.add_pixels(read.facts.sha256, box, pixels, reason))
    source: PixelSource = store.read(form, places) if keep_pixels else DecodedPixels(paths, boxes, recipe)
    return Ingested(filled.manifest(), source, num_decoded=len(todo), num_from_store=len(files) - len(todo))


def _files(manifest: Manifest, paths: Sequence[Path]) -> list[_File]:
    files: dict[Path, _File] = {}
    for row in np.flatnonzero(manifest.column("status") == "ok").tolist():
        files.setdefault(paths[row], _File(paths[row])).rows.append(row)
    return list(files.values())


def _look_up(
    store: Store, file: _File, boxes: Sequence[Box | None], form: str, policy: str, *, need_pixels: bool
) -> tuple[ImageFacts, list[Place | None]] | None:
    """What the store knows of a file; None where anything is missing and the file must be decoded."""
    try:
        status = file.path.stat()
    except OSError:
        return None  # the worker will say why
    file.num_bytes, file.modified_ns = status.st_size, status.st_mtime_ns
    sha256 = store.known_hash(os.fsencode(file.path), file.num_bytes, file.modified_ns)
    facts = store.facts(sha256, policy) if sha256 else None
    if facts is None:
        return None
    if facts.reason:
        return facts, [None] * len(file.rows)
    places = [store.place(form, facts.sha256, boxes[row]) for row in file.rows]
    return None if need_pixels and any(place is None for place in places) else (facts, places)


def _settle(filled: "_Columns", places: list[Place | None], row: int, place: Place | None) -> None:
    if place is None:
        return
    places[row] = place
    if place.reason:
        filled.quarantine([row], place.reason)


def _read_all(
    files: Sequence[_File], boxes: Sequence[Box | None], recipe: Recipe, keep_pixels: bool, num_workers: int
) -> Iterator[tuple[_File, _Read]]:
    """Read files in parallel, in order, with a bounded number under way, so that memory stays flat."""
    under_way: deque[tuple[_File, Future[_Read]]] = deque()
    with ThreadPoolExecutor(num_workers, thread_name_prefix="decode") as pool:
        try:
            for file in files:
                sample_boxes = [boxes[row] for row in file.rows]
                under_way.append((file, pool.submit(_read, file.path, sample_boxes, recipe, keep_pixels)))
                if len(under_way) >= 8 * num_workers:
                    head, future = under_way.popleft()
                    yield head, future.result()
            while under_way:
                head, future = under_way.popleft()
                yield head, future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _read(path: Path, boxes: Sequence[Box | None], recipe: Recipe, keep_pixels: bool) -> _Read:
    try:
        small = path.stat().st_size <= READ_AT_ONCE_BYTES
        content = path.read_bytes() if small else path
        sha256 = sha256_bytes(content) if isinstance(content, bytes) else sha256_file(path)
        decoded = decode(content, recipe.policy)
    except ImageRejectedError as error:
        return _Read(ImageFacts(sha256, reason=str(error)), None)
    except OSError as error:
        return _Read(None, f"cannot be read: {error.strerror or error}")
    height, width = decoded.pixels.shape[:2]
    facts = ImageFacts(sha256, width, height, decoded.mode, decoded.format, "; ".join(decoded.notes))
    samples: list[tuple[Box | None, NDArray[np.uint8] | None, str | None]] = []
    for box in boxes:
        try:
            pixels = decoded.pixels if box is None else crop_box(decoded.pixels, box, recipe.margin)
            samples.append((box, to_store(pixels, recipe.geometry) if keep_pixels else None, None))
        except ImageRejectedError as error:
            samples.append((box, None, str(error)))
    return _Read(facts, None, tuple(samples))


class _Columns:
    """The columns of a manifest that the decode pass fills."""

    _NAMES = ("width", "height", "mode", "sha256", "status", "reason")

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._columns = {name: manifest.column(name).astype(object) for name in self._NAMES}

    def set_facts(self, rows: Sequence[int], facts: ImageFacts) -> None:
        for row in rows:
            self._columns["sha256"][row] = facts.sha256
            self._columns["width"][row] = facts.width
            self._columns["height"][row] = facts.height
            self._columns["mode"][row] = facts.mode
        if facts.reason:
            self.quarantine(rows, facts.reason)

    def quarantine(self, rows: Sequence[int], reason: str) -> None:
        for row in rows:
            self._columns["status"][row] = "quarantined"
            self._columns["reason"][row] = reason

    def manifest(self) -> Manifest:
        return self._manifest.with_columns(**self._columns)
