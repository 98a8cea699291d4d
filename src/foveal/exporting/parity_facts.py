"""What parity.json says of an exported model: a closed schema, for the card, the terminal and whoever deploys it."""

from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import Field

from foveal.config import Section

Bounds = tuple[float, float]

MOST_LISTED = 100
"""Disagreements that are listed; all are counted."""


class Agreement(Section):
    """How many images get the same class from both."""

    count: int
    """Images with the same class, ties among them."""
    share: float
    """The same as a share of all, 0 to 1."""
    interval: Bounds
    """Its 95 % interval (Wilson, 1927)."""
    num_ties: int
    """Images with another class whose two probabilities are closer than the tolerance."""


class AccuracyPair(Section):
    """The accuracy of the bundle and of the file on the same images."""

    num_images: int
    """How many."""
    bundle: float
    """The bundle's, 0 to 1."""
    bundle_interval: Bounds | None
    """Its 95 % interval; null where all images belong to one group."""
    file: float
    """The file's."""
    file_interval: Bounds | None
    """Its 95 % interval."""


class SplitParity(AccuracyPair):
    """The same for one split."""

    split: Literal["train", "val", "test"]
    """Which one."""
    seen: str
    """What the model knows of these images."""
    num_learnt: int | None
    """How many have the very bytes of a training image; null where nobody knows."""


class ClassParity(Section):
    """The same for the images of one class."""

    name: str
    """The class."""
    num_images: int
    """How many of it."""
    agreement: float | None
    """Share with the same answer from both; null without an image."""
    bundle: float | None
    """The bundle's accuracy on them, its recall."""
    file: float | None
    """The file's."""


class Answer(Section):
    """What one of the two says of an image."""

    predicted: str
    """The most probable class."""
    probability: float
    """Its probability."""


class Disagreement(Section):
    """An image with two answers."""

    path: str
    """The file."""
    label: str | None
    """Its true class, where that is known."""
    bundle: Answer
    """What the bundle says."""
    file: Answer
    """What the file says."""
    is_tie: bool
    """Whether the two probabilities are closer than the tolerance."""


class ImageInputCheck(Section):
    """The resize within the graph against Pillow's."""

    num_images: int
    """How many, of their own sizes."""
    max_difference: float
    """The largest difference of a probability between the two inputs."""


class Parity(Section):
    """What was found."""

    passed: bool
    """Whether all of it held."""
    problems: tuple[str, ...]
    """What did not, a sentence each."""
    is_real: bool
    """Whether photographs were compared; else generated noise was."""
    num_images: int
    """How many were compared."""
    num_unreadable: int
    """Images that neither could read, which say nothing."""
    agreement: Agreement
    """How many images get the same class."""
    max_difference: float
    """The largest difference of a probability."""
    mean_difference: float
    """The mean of all of them."""
    accuracy: AccuracyPair | None
    """On all images; null where no class is known."""
    splits: tuple[SplitParity, ...] = ()
    """By split."""
    classes: tuple[ClassParity, ...] = ()
    """By class."""
    paired: dict[str, Any] | None = None
    """The paired comparison of bundle and file, in that order."""
    paired_sentence: str = ""
    """The same in words."""
    num_disagreements: int = 0
    """Images with two answers, ties among them."""
    disagreements: tuple[Disagreement, ...] = Field(default=(), max_length=MOST_LISTED)
    """The first of them."""
    image_input: ImageInputCheck | None = None
    """Null where the graph does not resize."""
    notes: tuple[str, ...] = ()
    """What a reader has to know of the images."""

    @property
    def lost_points(self) -> float | None:
        """Percentage points of accuracy that the file has less than the bundle."""
        return None if self.accuracy is None else 100.0 * (self.accuracy.bundle - self.accuracy.file)

    def with_problems(self, problems: Sequence[str]) -> Self:
        """The same with more that did not hold."""
        everything = (*self.problems, *problems)
        return self.model_copy(update={"problems": everything, "passed": not everything})
