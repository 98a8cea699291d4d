"""The parity gate: the written file against the bundle, on real images, each run from the image file to the answer.

What has to hold:

- **fp32**: the same class for every image, and no probability further apart than the tolerance. Two classes whose
  probabilities are closer than the tolerance are a tie, which either side may break in its own way.
- **int8**: at most so many percentage points of accuracy less than the bundle, on the same images.
- where the graph resizes images itself: from raw pixels it says what it says of finished squares.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from foveal.exporting.gate_images import GateImages, Sample
from foveal.exporting.parity_facts import (
    MOST_LISTED,
    AccuracyPair,
    Agreement,
    Answer,
    ClassParity,
    Disagreement,
    ImageInputCheck,
    Parity,
    SplitParity,
)
from foveal.metrics import compare_paired, wilson_interval
from foveal.metrics.proportions import resampled_proportions
from foveal.pixels.policy import ImageRejectedError
from foveal.pixels.rejection import reason_of
from foveal.prediction import ImageInput, ImagePredictor
from foveal.types import SPLITS

Probabilities = NDArray[np.float64]

IMAGE_INPUT_TOLERANCE = 1e-6
"""How far apart a graph may be that is given raw pixels, and one that is given the finished square."""

_KNOWLEDGE = {
    "train": "trained on",
    "val": "not trained on, but the bundle was chosen and calibrated by them",
    "test": "not trained on",
}


@dataclass(frozen=True)
class Limits:
    """What has to hold.

    Attributes:
        precision: of the file.
        tolerance: largest difference of a probability in fp32; and what counts as a tie.
        int8_points: most accuracy that int8 may lose, in percentage points.
    """

    precision: Literal["fp32", "int8"]
    tolerance: float
    int8_points: float


@dataclass(frozen=True, eq=False)
class Answers:
    """What bundle and file say of the images that both could read.

    Attributes:
        rows: int64 [n], which of the images.
        bundle: float64 [n, classes].
        file: float64 [n, classes].
        num_unreadable: images that neither could read.
        problems: images that only one of them could read, a sentence each.
    """

    rows: NDArray[np.int64]
    bundle: Probabilities
    file: Probabilities
    num_unreadable: int
    problems: tuple[str, ...]


def answers_of(
    bundle: ImagePredictor,
    file: ImagePredictor,
    images: Sequence[Sample | ImageInput],
    advance: Callable[[], None] = lambda: None,
) -> Answers:
    """Ask both, each from the image file on.

    Args:
        bundle: the original.
        file: what was written, read from disk.
        images: what to ask about.
        advance: called for each image.
    """
    said: list[list[Probabilities | str]] = []
    for predictor in (bundle, file):
        said.append([])
        for part in _parts(images, predictor.batch_size):
            said[-1] += _predicted(predictor, part)
            for _ in part:
                advance()
    rows, first, second, problems, num_unreadable = [], [], [], [], 0
    for row, (original, written) in enumerate(zip(*said, strict=True)):
        if isinstance(original, str) and isinstance(written, str):
            num_unreadable += 1
        elif isinstance(original, str) or isinstance(written, str):
            which, reason = ("bundle", original) if isinstance(original, str) else ("file", written)
            problems.append(f"{_name(images[row])}: the {which} alone cannot read it: {reason}")
        else:
            rows.append(row)
            first.append(original)
            second.append(written)
    shape = (len(rows), len(bundle.class_names))
    return Answers(
        np.array(rows, dtype=np.int64),
        np.reshape(np.array(first), shape),
        np.reshape(np.array(second), shape),
        num_unreadable,
        tuple(problems),
    )


def judge(
    answers: Answers,
    class_names: Sequence[str],
    limits: Limits,
    *,
    names: Sequence[str],
    images: GateImages | None,
    image_input: ImageInputCheck | None,
    seed: int = 0,
) -> Parity:
    """Say whether the file may go out.

    Args:
        answers: what both say.
        class_names: in the order of the probabilities.
        limits: what has to hold.
        names: of all images, as they were given.
        images: with their true classes; None for noise.
        image_input: what the resize within the graph does, where it has one.
        seed: of the resampling.
    """
    if not len(answers.rows):
        problems = answers.problems or (f"none of the {len(names):,} images could be read",)
        return _nothing_to_compare(problems, answers, images)
    bundle, file = answers.bundle, answers.file
    differences = np.abs(bundle - file)
    # NaN is no small difference.
    largest = float(np.max(np.where(np.isfinite(differences), differences, np.inf)))
    top, other = bundle.argmax(axis=1), file.argmax(axis=1)
    each = np.arange(len(top))
    is_other = top != other
    gaps = np.maximum(bundle[each, top] - bundle[each, other], file[each, other] - file[each, top])
    is_tie = is_other & (gaps <= limits.tolerance)
    measured = _measured(answers, images, class_names, seed) if images is not None and len(images) else {}
    count = int((~is_other | is_tie).sum()) if limits.precision == "fp32" else int((~is_other).sum())
    low, high = wilson_interval(count, len(top))
    parity = Parity(
        passed=True,
        problems=(),
        is_real=images is not None,
        num_images=len(top),
        num_unreadable=answers.num_unreadable,
        agreement=Agreement(count=count, share=count / len(top), interval=(low, high), num_ties=int(is_tie.sum())),
        max_difference=largest if np.isfinite(largest) else 1.0,
        mean_difference=float(np.nan_to_num(differences, nan=1.0, posinf=1.0).mean()),
        num_disagreements=int(is_other.sum()),
        disagreements=tuple(
            _disagreement(row, answers, class_names, names, images, bool(is_tie[row]))
            for row in np.flatnonzero(is_other)[:MOST_LISTED].tolist()
        ),
        image_input=image_input,
        notes=() if images is None else images.notes,
        **{"accuracy": None, **measured},
    )
    return parity.with_problems([*answers.problems, *_faults(parity, limits, is_finite=bool(np.isfinite(file).all()))])


def check_image_input(
    run: Callable[[dict[str, NDArray[np.uint8]]], Probabilities],
    square_feeds: Callable[[NDArray[np.uint8]], dict[str, NDArray[np.uint8]]],
    pixels: Iterable[NDArray[np.uint8]],
) -> ImageInputCheck:
    """Give the graph raw pixels, and the squares that Pillow makes of them: it has to say the same.

    Args:
        run: probabilities [1, classes] of the graph, given its inputs.
        square_feeds: the inputs that hold the finished squares of an image.
        pixels: uint8 [height, width, 3] each.
    """
    largest, count = 0.0, 0
    for image in pixels:
        inside = run({"image": image[None]})
        difference = np.abs(inside - run(square_feeds(image)))
        largest = max(largest, float(np.max(np.where(np.isfinite(difference), difference, 1.0))))
        count += 1
    return ImageInputCheck(num_images=count, max_difference=largest)


def _faults(parity: Parity, limits: Limits, *, is_finite: bool) -> list[str]:
    """What does not hold, in words."""
    problems = []
    if not is_finite:
        problems.append("the file gives probabilities that are no numbers")
    check = parity.image_input
    if check is not None and check.max_difference > IMAGE_INPUT_TOLERANCE:
        problems.append(
            f"the resize within the graph is not that of Pillow: probabilities differ by up to "
            f"{check.max_difference:.2g} on {check.num_images:,} images, and {IMAGE_INPUT_TOLERANCE:g} is allowed"
        )
    if limits.precision == "int8":
        lost = parity.lost_points
        if lost is None:
            problems.append("without labelled images nobody can say what accuracy int8 loses")
        elif lost > limits.int8_points + 1e-9:
            problems.append(
                f"int8 loses {lost:.2f} percentage points of accuracy on {parity.num_images:,} images, and "
                f"{limits.int8_points:g} are allowed"
            )
        return problems
    others = parity.num_images - parity.agreement.count
    if others:
        images = "image gets" if others == 1 else "images get"
        problems.append(f"{others:,} of {parity.num_images:,} {images} another class than by the bundle")
    if parity.max_difference > limits.tolerance:
        problems.append(
            f"probabilities differ by up to {parity.max_difference:.2g}, and {limits.tolerance:g} is allowed"
        )
    return problems


def _measured(answers: Answers, images: GateImages, class_names: Sequence[str], seed: int) -> dict[str, Any]:
    """Accuracies of both, by split and by class, and the paired comparison."""
    labels = images.labels[answers.rows]
    groups = None if images.groups is None else images.groups[answers.rows]
    splits = np.array(images.splits, dtype=object)[answers.rows]
    learnt = None if images.learnt is None else images.learnt[answers.rows]
    tops = answers.bundle.argmax(axis=1), answers.file.argmax(axis=1)
    right = np.stack([top == labels for top in tops])
    by_split = []
    for split in SPLITS[::-1]:
        inside = splits == split
        if inside.any():
            known = None if learnt is None else int(learnt[inside].sum())
            pair = _accuracies(labels[inside], right[:, inside], None if groups is None else groups[inside], seed)
            by_split.append(
                SplitParity(split=split, seen=_seen(split, known, int(inside.sum())), num_learnt=known, **pair)
            )
    found: dict[str, Any] = {
        "accuracy": AccuracyPair(**_accuracies(labels, right, groups, seed)),
        "splits": tuple(by_split),
        "classes": tuple(_of_class(place, name, labels, right, tops) for place, name in enumerate(class_names)),
    }
    if np.isfinite(answers.file).all():
        paired = compare_paired(labels, answers.bundle, answers.file, groups=groups, seed=seed)
        found |= {"paired": paired.to_dict(), "paired_sentence": paired.sentence("the bundle", "the file")}
    return found


def _seen(split: str, num_learnt: int | None, num_images: int) -> str:
    """What the model knows of the images of a split, in words; of images of elsewhere, whether it learnt from them."""
    if num_learnt is None:
        return "whether the bundle was trained on them is not known"
    if num_learnt and split != "train":
        return f"{num_learnt:,} of {num_images:,} have the very bytes of a training image"
    if split == "train" and num_learnt < num_images:
        return f"{num_learnt:,} of {num_images:,} were trained on"
    return _KNOWLEDGE[split]


def _accuracies(
    labels: NDArray[np.int64], right: NDArray[np.bool_], groups: NDArray[np.int64] | None, seed: int
) -> dict[str, Any]:
    shares = resampled_proportions(labels, right, groups=groups, seed=seed)
    return {
        "num_images": len(labels),
        "bundle": float(shares.shares[0]),
        "bundle_interval": shares.interval(0),
        "file": float(shares.shares[1]),
        "file_interval": shares.interval(1),
    }


def _of_class(
    place: int,
    name: str,
    labels: NDArray[np.int64],
    right: NDArray[np.bool_],
    tops: tuple[NDArray[np.int64], NDArray[np.int64]],
) -> ClassParity:
    inside = labels == place
    if not inside.any():
        return ClassParity(name=name, num_images=0, agreement=None, bundle=None, file=None)
    return ClassParity(
        name=name,
        num_images=int(inside.sum()),
        agreement=float((tops[0][inside] == tops[1][inside]).mean()),
        bundle=float(right[0][inside].mean()),
        file=float(right[1][inside].mean()),
    )


def _disagreement(
    row: int,
    answers: Answers,
    class_names: Sequence[str],
    names: Sequence[str],
    images: GateImages | None,
    is_tie: bool,
) -> Disagreement:
    place = int(answers.rows[row])

    def answer(probabilities: Probabilities) -> Answer:
        top = int(probabilities[row].argmax())
        probability = float(probabilities[row][top])
        return Answer(predicted=class_names[top], probability=probability if np.isfinite(probability) else 0.0)

    return Disagreement(
        path=names[place],
        label=None if images is None else class_names[int(images.labels[place])],
        bundle=answer(answers.bundle),
        file=answer(answers.file),
        is_tie=is_tie,
    )


def _nothing_to_compare(problems: Sequence[str], answers: Answers, images: GateImages | None) -> Parity:
    return Parity(
        passed=False,
        problems=tuple(problems),
        is_real=images is not None,
        num_images=0,
        num_unreadable=answers.num_unreadable,
        agreement=Agreement(count=0, share=0.0, interval=(0.0, 1.0), num_ties=0),
        max_difference=1.0,
        mean_difference=1.0,
        accuracy=None,
        notes=() if images is None else images.notes,
    )


def _parts(images: Sequence[Sample | ImageInput], size: int) -> Iterable[list[Sample | ImageInput]]:
    upcoming = iter(images)
    while part := list(islice(upcoming, size)):
        yield part


def _predicted(predictor: ImagePredictor, part: Sequence[Sample | ImageInput]) -> list[Probabilities | str]:
    """Of each image the probabilities, or why there are none."""
    loaded: list[ImageInput] = []
    reasons: dict[int, str] = {}
    for place, image in enumerate(part):
        try:
            loaded.append(image.load() if isinstance(image, Sample) else image)
        except (ImageRejectedError, OSError) as error:
            reasons[place] = reason_of(error)
    found = iter(predictor.stream(loaded))
    said: list[Probabilities | str] = []
    for place in range(len(part)):
        if place in reasons:
            said.append(reasons[place])
            continue
        prediction = next(found)
        said.append(prediction.probabilities if prediction.status == "ok" else prediction.reason)
    return said


def _name(image: Sample | ImageInput) -> str:
    return str(image.path) if isinstance(image, Sample) else "an image from memory"
