"""How a classifier fares when something goes wrong with the pictures: its accuracy by corruption and strength.

A test split comes from the same camera, light and hands as training, and may be easier than the world. The curves show
how far the figure holds, after Hendrycks and Dietterich (2019); see `pixels.corruptions` for what is done.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from foveal.data.store import PixelSource
from foveal.evaluation.figures_file import FiguresFile
from foveal.evaluation.tta import tta_words
from foveal.metrics import shown
from foveal.metrics.proportions import Proportions, resampled_proportions
from foveal.metrics.split_metrics import Frozen, Share
from foveal.pixels.corruptions import NUM_STRENGTHS, corrupt
from foveal.progress import Progress

ROBUSTNESS_FILE = "robustness.json"
EXAMPLES_FOLDER = "corrupted"

Wrap = Callable[[PixelSource], PixelSource]
Classify = Callable[[Wrap], NDArray[np.floating[Any]]]
"""From what is done to each source of pixels to logits or probabilities, float [n, classes]."""

_NAMED_STRENGTH = 3


class Corrupted:
    """A source of stored forms with which something has gone wrong; a `PixelSource` itself.

    Args:
        source: stored forms by row number.
        name: one of `pixels.corruptions.CORRUPTIONS`.
        strength: 0 to 5.
    """

    def __init__(self, source: PixelSource, name: str, strength: int) -> None:
        self._source, self._name, self._strength = source, name, strength

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, row: int) -> NDArray[np.uint8]:
        return corrupt(self._source[row], self._name, self._strength, row=int(row))


class Accuracy(Frozen):
    """What is right of some images.

    Attributes:
        accuracy: the share of images that are right.
        interval: its 95 % interval; null where all images belong to one group, or a mean is the same in every resample.
        balanced_accuracy: the mean recall over the classes that occur; it falls with rare classes too.
    """

    accuracy: Share
    interval: tuple[float, float] | None
    balanced_accuracy: Share


class AtStrength(Accuracy):
    """The accuracy at one strength of a corruption."""

    strength: Annotated[int, Field(ge=1, le=NUM_STRENGTHS)]


class Curve(Frozen):
    """One corruption.

    Attributes:
        name: which.
        by_strength: the accuracy at each strength, weakest first.
        mean: over the strengths.
    """

    name: str
    by_strength: tuple[AtStrength, ...]
    mean: Accuracy


class Kept(Frozen):
    """The mean accuracy under corruption as a share of the clean one; null where that is 0."""

    share: float | None
    interval: tuple[float, float] | None


class Robustness(FiguresFile):
    """`robustness.json`: what is left of the accuracy on one split when its pictures are corrupted.

    Attributes:
        split: which images.
        num_images: how many, all of them at every strength.
        tta: the test-time augmentation that was used; "none" for none.
        clean: the accuracy on the images as they are.
        curves: one for each corruption.
        mean: the accuracy, meant over all corruptions and strengths.
        kept: that, as a share of the clean accuracy.
        guess: the share of the largest class, which a guesser would have right whatever is done to the pictures.
        weakest: the corruption with the lowest mean.
        sentence: all of it in one line.
        example: the image, by its path in the manifest, that the pictures in the folder `corrupted` are of.
    """

    made_by: ClassVar[str] = "--corrupt"

    split: str
    num_images: Annotated[int, Field(ge=1)]
    tta: str
    clean: Accuracy
    curves: tuple[Curve, ...]
    mean: Accuracy
    kept: Kept
    guess: Share
    weakest: str
    sentence: str
    example: str


def measure_robustness(
    classify: Classify,
    clean: NDArray[np.floating[Any]],
    labels: NDArray[np.int64],
    names: tuple[str, ...],
    *,
    split: str,
    paths: NDArray[Any],
    groups: NDArray[Any] | None,
    tta: str = "none",
    seed: int = 0,
    progress: Progress,
) -> tuple[Robustness, int]:
    """Classify the same images again under each corruption at each strength.

    Args:
        classify: the classifier over all the images, given what is to be done to their pixels.
        clean: what it says of them as they are, float [n, classes].
        labels: int64 [n], the true classes.
        names: which of `CORRUPTIONS`.
        split: which images they are.
        paths: str [n], of the images.
        groups: the group of each image, [n]; resampled as wholes where several images share one.
        tta: how the classifier augments.
        seed: of the intervals.
        progress: counts the passes over the images.

    Returns:
        The figures, and the place of the image that is an example.
    """
    todo = [(name, strength) for name in names for strength in range(1, NUM_STRENGTHS + 1)]
    rights = [clean.argmax(axis=1) == labels]
    with progress.bar("Corrupting", len(todo), "passes") as bar:
        for name, strength in todo:
            said = classify(partial(Corrupted, name=name, strength=strength))
            rights.append(said.argmax(axis=1) == labels)
            bar.advance(1, note=f"{name} {strength}")
    right = np.stack(rights)
    found = resampled_proportions(labels, right, groups=groups, seed=seed)
    counts = np.bincount(labels)
    recalls = [right[:, labels == number].mean(axis=1) for number in np.flatnonzero(counts)]
    example, guess = _example(right), float(counts.max() / len(labels))
    return (
        _summed_up(
            found, np.mean(recalls, axis=0), names, split=split, tta=tta, guess=guess, example=str(paths[example])
        ),
        example,
    )


def _summed_up(
    found: Proportions,
    balanced: NDArray[np.float64],
    names: tuple[str, ...],
    *,
    split: str,
    tta: str,
    guess: float,
    example: str,
) -> Robustness:
    """The first share is the clean one; those of each corruption follow, weakest strength first."""

    def mean_of(places: NDArray[np.int64]) -> Accuracy:
        return Accuracy(
            accuracy=float(found.shares[places].mean()),
            interval=found.mean_interval(places),
            balanced_accuracy=float(balanced[places].mean()),
        )

    def at(place: int) -> dict[str, Any]:
        accuracy, interval = float(found.shares[place]), found.interval(place)
        return {"accuracy": accuracy, "interval": interval, "balanced_accuracy": float(balanced[place])}

    curves = []
    for number, name in enumerate(names):
        places = 1 + NUM_STRENGTHS * number + np.arange(NUM_STRENGTHS)
        by_strength = tuple(
            AtStrength(strength=strength, **at(place)) for strength, place in enumerate(places.tolist(), 1)
        )
        curves.append(Curve(name=name, by_strength=by_strength, mean=mean_of(places)))
    every = 1 + np.arange(NUM_STRENGTHS * len(names))
    clean, mean = Accuracy(**at(0)), mean_of(every)
    share = mean.accuracy / clean.accuracy if clean.accuracy else None
    weakest = min(curves, key=lambda curve: curve.mean.accuracy)
    return Robustness(
        split=split,
        num_images=found.num_images,
        tta=tta,
        clean=clean,
        curves=tuple(curves),
        mean=mean,
        kept=Kept(share=share, interval=found.mean_interval(every, over=0)),
        guess=guess,
        weakest=weakest.name,
        sentence=_sentence(clean, mean, share, weakest, len(curves), tta),
        example=example,
    )


def _sentence(clean: Accuracy, mean: Accuracy, share: float | None, weakest: Curve, num_curves: int, tta: str) -> str:
    named = next(each for each in weakest.by_strength if each.strength == _NAMED_STRENGTH)
    subject = "Accuracy" if tta == "none" else f"With {tta_words(tta)}, accuracy"
    kinds = weakest.name if num_curves == 1 else f"{num_curves} corruptions"
    kept = "" if share is None else f", {100 * share:.0f} % of it"
    start = f"{subject} {shown(clean.accuracy)} on the images as they are, {shown(mean.accuracy)} over {kinds}"
    figure = f"{shown(clean.accuracy)} -> {shown(named.accuracy)} at strength {named.strength}"
    ending = figure if num_curves == 1 else f"the weakest is {weakest.name}: {figure}"
    return f"{start} at {NUM_STRENGTHS} strengths{kept}; {ending}."


def _example(right: NDArray[np.bool_]) -> int:
    """The image that the most others are like: of those that are right when clean, the one that fails as often as most.

    Args:
        right: bool [1 + corruptions x strengths, n], the clean ones first.
    """
    places = np.flatnonzero(right[0]) if right[0].any() else np.arange(right.shape[1])
    num_right = right[1:, places].sum(axis=0)
    return int(places[np.argsort(num_right, kind="stable")[len(places) // 2]])
