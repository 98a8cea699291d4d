"""What a file is: known from the store, or else read, hashed, decoded, checked, cut, measured and scaled."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foveal.data.facts import FACTS_VERSION, RECORD, Look, glance, measured, record
from foveal.data.store import ImageFacts, Place, SampleFacts, Store, box_key, form_name, policy_name
from foveal.files import sha256_bytes, sha256_file
from foveal.pixels.plain_jpeg import decode_plain
from foveal.pixels.policy import Decoded, Geometry, ImageRejectedError, PixelPolicy, crop_box, decode, to_store
from foveal.pixels.rejection import reason_of, refuse_no_file
from foveal.pixels.strict_jpeg import CORRUPT_JPEG, JPEG_CHECK_VERSION, is_available, jpeg_fault
from foveal.types import Box

READ_AT_ONCE_BYTES = 64 << 20
CHECKED_BYTES = 1 << 30
"""A larger JPEG is not checked: no picture that is not refused for its size fills so much, whatever is behind it."""


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


class Wanted(NamedTuple):
    """A file, with the box of each sample that is wanted of it."""

    path: str
    boxes: tuple[Box | None, ...]


class Sample(NamedTuple):
    """What one sample is.

    Attributes:
        place: where its pixels lie already.
        facts: what was measured of it; None where it is unusable.
        pixels: uint8 [height, width, 3], to be kept; None where they are, or shall not be, or there are none.
        fault: why the box is unusable.
    """

    place: Place | None
    facts: SampleFacts | None
    pixels: NDArray[np.uint8] | None = None
    fault: str | None = None


class Found(NamedTuple):
    """What one file is.

    Attributes:
        image: of its content; None where it cannot be read, or where the store does not know all that is wanted.
        samples: one for each that is wanted; none where the content is unusable.
        is_new: whether it had to be decoded.
        unreadable: why it cannot be read.
        jpeg_check: the version of the check that refused it, where one did; else 0.
    """

    image: ImageFacts | None
    samples: tuple[Sample, ...] = ()
    is_new: bool = False
    unreadable: str = ""
    jpeg_check: int = 0


class Reader:
    """Finds out what files are; may be used by many threads at once.

    Args:
        store: what is known already.
        recipe: how pixels become the stored form.
        keep_pixels: whether the stored form is wanted too.
    """

    def __init__(self, store: Store, recipe: Recipe, *, keep_pixels: bool) -> None:
        self.recipe, self.keep_pixels = recipe, keep_pixels
        self._store = store
        self.form = form_name(recipe.geometry, recipe.policy, recipe.margin)
        self.policy = policy_name(recipe.policy)

    def facts_key(self, box: Box | None) -> str:
        """Under which key the facts of a sample are kept."""
        return box_key(box, self.recipe.margin)

    def known(self, wanted: Sequence[tuple[str, Sequence[Box | None]]]) -> list[Found]:
        """What the store knows of contents, by hash and boxes; no image where anything is missing.

        What is there of the samples is told in any case, so that no pixels are stored twice.
        """
        contents = self._store.contents(list({sha256 for sha256, _ in wanted}), self.policy)
        if not contents:
            return [Found(None)] * len(wanted)
        places = self._store.places(self.form, list(contents))
        facts = self._store.sample_facts(list(contents), self.policy)
        return [self._gathered(contents.get(sha256), boxes, places, facts) for sha256, boxes in wanted]

    def _gathered(
        self,
        image: ImageFacts | None,
        boxes: Sequence[Box | None],
        places: dict[tuple[str, str], Place],
        facts: dict[tuple[str, str], SampleFacts],
    ) -> Found:
        if image is None:
            return Found(None)
        if image.reason:
            refused = facts.get((image.sha256, ""))
            is_due = image.reason.startswith(CORRUPT_JPEG) and not _is_checked("JPEG", refused)
            return Found(None if is_due else image)
        samples, is_whole = [], True
        for box in boxes:
            place = places.get((image.sha256, box_key(box)))
            measured = facts.get((image.sha256, self.facts_key(box)))
            if not _is_current(image.format, measured):
                measured = None
            samples.append(Sample(place, measured))
            if not (place and place.reason):
                is_whole &= measured is not None and (not self.keep_pixels or bool(place and place.shard))
        return Found(image if is_whole else None, tuple(samples))

    def read(self, wanted: Sequence[Wanted]) -> list[Found]:
        """What files are; a content that is known by another name is not decoded again."""
        loaded = [_load(file.path) for file in wanted]
        hashed = [(one[1], file.boxes) for one, file in zip(loaded, wanted, strict=True) if not isinstance(one, str)]
        known = iter(self.known(hashed))
        found: list[Found] = []
        looks: list[tuple[Look | NDArray[np.uint8], int, int]] = []
        for one, file in zip(loaded, wanted, strict=True):
            if isinstance(one, str):
                found.append(Found(None, unreadable=one))
                continue
            there = next(known)
            found.append(there if there.image else self._decoded(*one, file.boxes, there.samples, looks))
        return _with_facts(found, looks)

    def _decoded(
        self,
        content: bytes | Path,
        sha256: str,
        boxes: Sequence[Box | None],
        there: Sequence[Sample],
        looks: list[tuple[Look | NDArray[np.uint8], int, int]],
    ) -> Found:
        jpeg_check = 0
        if not there:
            there = [Sample(None, None)] * len(boxes)
        try:
            plain = None
            # Pixels that are kept come from the one decoder that prediction has too; to measure, its equal will do.
            if isinstance(content, bytes) and is_available() and not self.keep_pixels:
                plain = decode_plain(content, self.recipe.policy)
            decoded = plain or decode(content, self.recipe.policy)
            # Facts that are known hold only for what has passed the check.
            if plain:
                jpeg_check = JPEG_CHECK_VERSION
            elif decoded.format == "JPEG" and is_available() and not all(sample.facts for sample in there):
                jpeg_check = JPEG_CHECK_VERSION
                _check_jpeg(content)
        except ImageRejectedError as error:
            return Found(ImageFacts(sha256, reason=reason_of(error)), is_new=True, jpeg_check=jpeg_check)
        except OSError as error:
            return Found(None, unreadable=reason_of(error))
        height, width = decoded.pixels.shape[:2]
        image = ImageFacts(sha256, width, height, decoded.mode, decoded.format, "; ".join(decoded.notes))
        unmeasured = SampleFacts(b"", FACTS_VERSION, jpeg_check)
        samples = [
            self._sample(decoded, box, known, unmeasured, looks) for box, known in zip(boxes, there, strict=True)
        ]
        return Found(image, tuple(samples), is_new=True)

    def _sample(
        self,
        decoded: Decoded,
        box: Box | None,
        known: Sample,
        facts: SampleFacts,
        looks: list[tuple[Look | NDArray[np.uint8], int, int]],
    ) -> Sample:
        """Cut, look at and scale one sample; where its facts are not known, a look is added to `looks`."""
        try:
            pixels = decoded.pixels if box is None else crop_box(decoded.pixels, box, self.recipe.margin)
        except ImageRejectedError as error:
            return Sample(None, None, fault=reason_of(error))
        if known.facts:
            facts = known.facts
        else:
            looks.append((glance(pixels), pixels.shape[1], pixels.shape[0]))
        if known.place and known.place.shard:
            return Sample(known.place, facts)
        return Sample(None, facts, to_store(pixels, self.recipe.geometry) if self.keep_pixels else None)


def _with_facts(found: list[Found], looks: Sequence[tuple[Look | NDArray[np.uint8], int, int]]) -> list[Found]:
    """Put the records of the samples that were looked at in their places."""
    if not looks:
        return found
    measurements = measured([one for one, _, _ in looks])
    records = iter([record(m, width, height) for m, (_, width, height) in zip(measurements, looks, strict=True)])
    for number, one in enumerate(found):
        if one.is_new:
            samples = tuple(
                sample._replace(facts=sample.facts._replace(record=next(records)))
                if sample.facts and not sample.facts.record
                else sample
                for sample in one.samples
            )
            found[number] = one._replace(samples=samples)
    return found


def _is_current(format_name: str | None, facts: SampleFacts | None) -> bool:
    """Whether facts are those that would be made now."""
    if facts is None or facts.version != FACTS_VERSION or len(facts.record) != RECORD.itemsize:
        return False
    return _is_checked(format_name, facts)


def _is_checked(format_name: str | None, facts: SampleFacts | None) -> bool:
    """Whether the file was checked as it would be now; what was found stays true where it cannot be asked again."""
    if format_name != "JPEG" or not is_available():
        return True
    return facts is not None and facts.jpeg_check == JPEG_CHECK_VERSION


def _load(path: str) -> tuple[bytes | Path, str] | str:
    """A file's content, or the path where it is large, and its hash; or why it cannot be read."""
    try:
        status = os.stat(path)  # noqa: PTH116 - once a file
        refuse_no_file(status)
        if status.st_size > READ_AT_ONCE_BYTES:
            return Path(path), sha256_file(Path(path))
        with open(path, "rb", buffering=0) as stream:  # noqa: PTH123 - once a file
            content = stream.readall()
        return content, sha256_bytes(content)
    except OSError as error:
        return reason_of(error)


def _check_jpeg(content: bytes | Path) -> None:
    if isinstance(content, Path):
        if content.stat().st_size > CHECKED_BYTES:
            return
        content = content.read_bytes()
    fault = jpeg_fault(content)
    if fault:
        raise ImageRejectedError(f"{CORRUPT_JPEG}: {fault}", "damaged")
