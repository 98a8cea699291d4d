"""The real images that an export is proven on, and those that int8 is calibrated on: never the same ones."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foveal.data.manifest import Manifest
from foveal.errors import DataError
from foveal.evaluation.evaluate import align_labels, groups_of
from foveal.exporting.config import LEAST_IMAGES
from foveal.files import sha256_file
from foveal.pixels.policy import PixelPolicy, crop_box
from foveal.prediction import ImageInput, pixels_of
from foveal.types import SPLITS, Box, Split

ORDER: tuple[Split, ...] = ("test", "val", "train")
"""Which images prove most: those that nothing was learnt from first."""

_NUM_NOISE = 32
_MOST_NAMED = 5


@dataclass(frozen=True)
class Sample:
    """An image on disk, or the part of it within a box.

    Attributes:
        path: the file.
        box: the part that is meant, or None for all of it.
        margin: around the box, as a share of its width and height.
    """

    path: Path
    box: Box | None = None
    margin: float = 0.0

    def load(self) -> ImageInput:
        """What a predictor takes: the path itself, or the pixels within the box.

        Raises:
            ImageRejectedError: the content cannot be used.
            OSError: the file cannot be read.
        """
        if self.box is None:
            return self.path
        return crop_box(pixels_of(self.path, PixelPolicy()), self.box, self.margin)


@dataclass(frozen=True, eq=False)
class GateImages:
    """What an export is proven on.

    Attributes:
        samples: the images; empty where noise is all there is.
        labels: int64 [n], true classes by the bundle's order.
        splits: of each image.
        groups: int64 [n], equal for images that belong together; None where each stands for itself.
        learnt: bool [n], whether the model was trained on exactly these bytes; None where nobody knows.
        calibration: other images, for int8.
        calibration_split: where they are from.
        notes: what a reader has to know of the choice, a sentence each.
    """

    samples: Sequence[Sample]
    labels: NDArray[np.int64]
    splits: Sequence[str]
    groups: NDArray[np.int64] | None
    learnt: NDArray[np.bool_] | None
    calibration: Sequence[Sample] = ()
    calibration_split: str = ""
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.samples)


@dataclass
class _Found:
    """What became of the images that were looked at."""

    gone: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    hashes: dict[int, str] = field(default_factory=dict)


def choose_images(
    manifest: Manifest,
    class_names: tuple[str, ...],
    *,
    margin: float,
    num_images: int,
    num_calibration: int,
    seed: int,
    order: Sequence[Split] = ORDER,
    train: Manifest | None = None,
) -> GateImages:
    """Choose the images of the gate and, where wanted, others for calibration; each file is looked at, and hashed.

    A file that is gone, or is not what the manifest says it was, is left out and told; another takes its place.

    Args:
        manifest: what there is.
        class_names: of the bundle, in its order.
        margin: around boxes, as a share of their width and height.
        num_images: most images to compare. One split alone, where it has `LEAST_IMAGES`; others fill up to that number.
        num_calibration: images for calibration; 0 for none.
        seed: of the draw.
        order: which splits are taken first.
        train: what the model has learnt from, to find its images in `manifest`; None where nobody knows.

    Raises:
        DataError: none of the images is there, or one has a class that the bundle does not know.
    """
    labels, found = align_labels(manifest, class_names), _Found()
    calibration, calibration_split = _calibration(manifest, labels, num_calibration, order, seed, found)
    taken = set(calibration)
    chosen: list[int] = []
    for split in order:
        if len(chosen) >= LEAST_IMAGES:
            break
        wanted = LEAST_IMAGES if chosen else num_images
        upcoming = [row for row in _evenly(manifest.of_split(split), labels, seed) if row not in taken]
        chosen += list(_there(manifest, upcoming, wanted - len(chosen), found))
    if not chosen:
        raise DataError(
            _nothing(manifest, found),
            problems=[*found.gone[:_MOST_NAMED], *found.changed[:_MOST_NAMED]],
            fix="bring the images back, or prove the export on others: --data DATA, labelled images of the same "
            "classes.",
        )
    rows = np.array(chosen, dtype=np.int64)
    codes = manifest.split_codes()[rows]
    return GateImages(
        samples=_samples(manifest, rows, margin),
        labels=labels[rows],
        splits=[SPLITS[code] for code in codes.tolist()],
        groups=groups_of(manifest, rows),
        learnt=_learnt([found.hashes[row] for row in chosen], train),
        calibration=_samples(manifest, np.array(calibration, dtype=np.int64), margin),
        calibration_split=calibration_split,
        notes=tuple(_notes(found, len(chosen), num_images, calibration, calibration_split, num_calibration)),
    )


def noise_images(size_px: int, seed: int = 0) -> list[NDArray[np.uint8]]:
    """Generated images, where there is no photograph: noise at several scales and sizes, uint8 [height, width, 3]."""
    rng, made = np.random.default_rng(seed), []
    for number in range(_NUM_NOISE):
        height, width = (int(side) for side in rng.integers(max(8, size_px // 2), 2 * size_px, 2))
        cell = 2 ** (number % 5)
        coarse = rng.integers(0, 256, (height // cell + 1, width // cell + 1, 3), dtype=np.uint8)
        made.append(np.ascontiguousarray(np.kron(coarse, np.ones((cell, cell, 1), np.uint8))[:height, :width]))
    return made


def _calibration(
    manifest: Manifest, labels: NDArray[np.int64], wanted: int, order: Sequence[Split], seed: int, found: _Found
) -> tuple[list[int], str]:
    """Rows for calibration: training images; without any, half of the split that the gate asks for last."""
    if not wanted:
        return [], ""
    for split in ("train", *reversed(order)):
        rows = manifest.of_split(split)
        if len(rows):
            most = wanted if split != order[0] else min(wanted, len(rows) // 2)
            chosen = list(_there(manifest, _balanced(rows, labels, seed), most, found))
            if chosen:
                return chosen, split
    raise DataError(
        "int8 takes its ranges from images, and there is none for that beside those of the proof.",
        fix="give more images: --data DATA, with a train split; or export without --int8.",
    )


def _there(manifest: Manifest, rows: Sequence[int], wanted: int, found: _Found) -> Iterator[int]:
    """The first rows whose files are what the manifest says; the others are noted."""
    paths, hashes = manifest.table["path"], manifest.table["sha256"]
    for row in rows:
        if wanted <= 0:
            return
        path = manifest.images_root / paths[row].as_py()
        try:
            now = sha256_file(path)
        except OSError as error:
            found.gone.append(f"{path}: {error.strerror or error}")
            continue
        was = hashes[row].as_py()
        if was is not None and was != now:
            found.changed.append(f"{path}: has other content now")
            continue
        found.hashes[row] = now
        wanted -= 1
        yield row


def _samples(manifest: Manifest, rows: NDArray[np.int64], margin: float) -> list[Sample]:
    part = manifest.take(rows)
    return [Sample(path, box, margin) for path, box in zip(part.absolute_paths(), part.boxes(), strict=True)]


def _evenly(rows: NDArray[np.int64], labels: NDArray[np.int64], seed: int) -> list[int]:
    """Rows in an order of which every beginning has the classes in the shares that they have in all."""
    return _ordered(rows, labels, seed, even=True)


def _balanced(rows: NDArray[np.int64], labels: NDArray[np.int64], seed: int) -> list[int]:
    """Rows in an order of which every beginning has as many of each class, as long as there are any."""
    return _ordered(rows, labels, seed, even=False)


def _ordered(rows: NDArray[np.int64], labels: NDArray[np.int64], seed: int, *, even: bool) -> list[int]:
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(rows)
    places = np.empty(len(rows), dtype=np.float64)
    for label in np.unique(labels[shuffled]):
        own = np.flatnonzero(labels[shuffled] == label)
        # A draw within the step decides between classes, or the last of them would come late in each round.
        steps = np.arange(len(own)) + rng.random(len(own))
        places[own] = steps / len(own) if even else steps
    return [int(row) for row in shuffled[np.argsort(places, kind="stable")]]


def _learnt(hashes: Sequence[str], train: Manifest | None) -> NDArray[np.bool_] | None:
    if train is None:
        return None
    known = set(train.column("sha256")[train.of_split("train")].tolist())
    return np.array([each in known for each in hashes], dtype=np.bool_)


def _nothing(manifest: Manifest, found: _Found) -> str:
    if found.gone or found.changed:
        return (
            f"None of the {len(manifest.usable()):,} images below {manifest.images_root} is what it was: "
            f"{len(found.gone):,} cannot be read, {len(found.changed):,} have changed."
        )
    return "There is no usable image with a split to prove the export on."


def _notes(
    found: _Found, num_chosen: int, asked: int, calibration: Sequence[int], calibration_split: str, wanted: int
) -> Iterator[str]:
    for what, paths in (("could not be read", found.gone), ("changed since the manifest was written", found.changed)):
        if paths:
            one = len(paths) == 1
            yield (
                f"{len(paths):,} image{'' if one else 's'} {what}, and {'was' if one else 'were'} left out"
                f"{': ' if one else ', such as '}{paths[0]}."
            )
    if num_chosen < min(asked, LEAST_IMAGES):
        yield (
            f"Only {num_chosen:,} image{'s were' if num_chosen != 1 else ' was'} there to compare; {LEAST_IMAGES} or "
            "more tell more."
        )
    if calibration and calibration_split != "train":
        yield f"There is no training image: int8 was calibrated on {len(calibration):,} {calibration_split} images."
    elif calibration and len(calibration) < wanted:
        yield f"int8 was calibrated on the {len(calibration):,} training images that there are."
