"""What new classes cost the old ones: the old model and the extended one on the same images, class by class."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveal.errors import ArtifactError
from foveal.evaluation.predictions import read_predictions
from foveal.metrics import shown
from foveal.metrics.paired import PairedComparison, compare_paired, holm, paired_difference_interval
from foveal.metrics.proportions import resampled_proportions

Bounds = tuple[float, float]
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

MAX_ONE_SIDED_PLACES = 5
_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model says of some images.

    Attributes:
        sample_ids: one an image.
        labels: the true classes by name.
        class_names: the model's classes in order.
        probabilities: float64 [n, classes].
    """

    sample_ids: Sequence[str]
    labels: Sequence[str]
    class_names: tuple[str, ...]
    probabilities: Floats


@dataclass(frozen=True)
class ClassChange:
    """What became of one class.

    Attributes:
        name: of the class.
        is_new: whether the old model did not know it.
        num_images: test images of it; of an old class those that both models were measured on.
        before: recall of the old model; None for a new class, and where there is no image.
        before_interval: its 95 % interval.
        after: recall of the extended model; None where there is no image.
        after_interval: its 95 % interval.
        num_taken_for_new: of these images, how many the extended model takes for a new class.
        difference: after minus before; None where one of them is.
        difference_interval: its 95 % interval, from the same images.
        p: how likely so large a difference is by chance, corrected for the number of classes (Holm 1979).
    """

    name: str
    is_new: bool
    num_images: int
    before: float | None
    before_interval: Bounds | None
    after: float | None
    after_interval: Bounds | None
    num_taken_for_new: int
    difference: float | None
    difference_interval: Bounds | None
    p: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dict(vars(self))


@dataclass(frozen=True)
class Cost:
    """What an extension cost.

    Attributes:
        comparison: the old model and the extended one on the old classes' test images.
        classes: one entry a class, in the order of the extended model.
        accuracy_among_old: of the extended model on these images, where it may choose among the old classes only.
        num_taken_for_new: of these images, how many it takes for a new class.
        num_new_images: test images of new classes.
        new_accuracy: of the extended model on them; None where there is none.
        new_interval: its 95 % interval.
        lost: images that were right before and are wrong now: sample_id, and the class that is said now.
    """

    comparison: PairedComparison
    classes: tuple[ClassChange, ...]
    accuracy_among_old: float
    num_taken_for_new: int
    num_new_images: int
    new_accuracy: float | None
    new_interval: Bounds | None
    lost: tuple[tuple[str, str], ...] = ()

    @property
    def names_of_new(self) -> tuple[str, ...]:
        """The classes that the old model did not know."""
        return tuple(each.name for each in self.classes if each.is_new)

    def sentence(self) -> str:
        """What the new classes cost the old ones."""
        found = self.comparison
        num_new = len(self.names_of_new)
        new, old = _in_words(num_new), _in_words(len(self.classes) - num_new)
        these = f"the {old} old ones" if len(self.classes) - num_new > 1 else "the old one"
        who = f"The {new} new classes" if num_new > 1 else "The new class"
        bounds = found.intervals.get("accuracy")
        images = "test image" if found.num_images == 1 else "test images"
        if found.verdict == "better":
            gain, held = _figures(found.differences["accuracy"], bounds)
            return f"{who} cost {these} nothing: their accuracy rose by {gain}{held} on {found.num_images:,} {images}."
        if found.verdict == "undecided" and found.differences["accuracy"] > 0:
            gain, held = _figures(found.differences["accuracy"], bounds)
            told = f"With {who[0].lower()}{who[1:]} the accuracy of {these} rose by {gain}{held}"
            return f"{told} on {found.num_images:,} {images}; this cannot be told apart from nothing."
        cost, held = _figures(-found.differences["accuracy"], None if bounds is None else (-bounds[1], -bounds[0]))
        told = f"{who} cost {these} {cost}{held} of accuracy on {found.num_images:,} {images}"
        return f"{told}." if found.verdict == "worse" else f"{told}; this cannot be told apart from nothing."

    def further_sentences(self) -> list[str]:
        """Where the cost comes from, and what the new classes are worth."""
        lines = []
        found, num = self.comparison, self.comparison.num_images
        if self.num_taken_for_new:
            are = "is" if self.num_taken_for_new == 1 else "are"
            lines.append(
                f"{self.num_taken_for_new:,} of the {num:,} old test images {are} taken for a new class now; choosing "
                f"among the old classes alone, the model has {shown(self.accuracy_among_old)} of them right, and "
                f"{shown(found.first['accuracy'])} before."
            )
        worse = [each.name for each in self.classes if _is_changed(each, sign=-1)]
        if worse:
            lines.append(f"Worse by more than chance: {', '.join(worse)}.")
        better = [each.name for each in self.classes if _is_changed(each, sign=1)]
        if better:
            lines.append(f"Better by more than chance: {', '.join(better)}.")
        if self.new_accuracy is not None:
            held = (
                "" if self.new_interval is None else f" [{shown(self.new_interval[0])}, {shown(self.new_interval[1])}]"
            )
            whose = "new classes are" if len(self.names_of_new) > 1 else "new class is"
            lines.append(
                f"Of the {self.num_new_images:,} test images of the {whose} right: {shown(self.new_accuracy)}{held}."
            )
        if unseen := [each.name for each in self.classes if each.is_new and not each.num_images]:
            lines.append(f"No test image is of {', '.join(unseen)}, so nothing is known of how often that is right.")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "comparison": self.comparison.to_dict(),
            "classes": [each.to_dict() for each in self.classes],
            "accuracy_among_old": self.accuracy_among_old,
            "num_taken_for_new": self.num_taken_for_new,
            "num_new_images": self.num_new_images,
            "new_accuracy": self.new_accuracy,
            "new_interval": self.new_interval,
            "lost": [list(each) for each in self.lost],
        }


def measure_cost(before: Answers, after: Answers, groups: Integers | None, *, seed: int) -> Cost:
    """Compare a model with what became of it.

    Args:
        before: what the old model says of the old classes' test images.
        after: what the extended model says of its test split, these images among them.
        groups: int64 [n], the group of each image of `after`; None where each stands for itself.
        seed: of the resampling.

    Raises:
        ArtifactError: an image of `before` is not in `after`, or its class has changed.
    """
    rows = _rows_of(before, after)
    place = {name: number for number, name in enumerate(after.class_names)}
    is_new = np.array([name not in before.class_names for name in after.class_names])
    labels = np.array([place[name] for name in after.labels], dtype=np.int64)
    # The old model gives new classes no probability, so both can be measured on the same ones.
    was = np.zeros((len(rows), len(after.class_names)))
    was[:, [place[name] for name in before.class_names]] = before.probabilities
    now, truth = after.probabilities[rows], labels[rows]
    own = None if groups is None else groups[rows]
    comparison = compare_paired(truth, was, now, groups=own, seed=seed)
    predicted = after.probabilities.argmax(axis=1)
    among_old = np.where(is_new, -1.0, now).argmax(axis=1)
    of_new = np.flatnonzero(is_new[labels])
    new_accuracy, new_interval = _share_right(labels[of_new], predicted[of_new], groups, of_new, seed)
    changes = []
    for number, name in enumerate(after.class_names):
        if is_new[number]:
            changes.append(_new_class(name, np.flatnonzero(labels == number), labels, predicted, is_new, groups, seed))
        else:
            theirs = np.flatnonzero(truth == number)
            changes.append(_old_class(name, theirs, truth, was, now, is_new, own, seed))
    return Cost(
        comparison=comparison,
        classes=tuple(_corrected(changes)),
        accuracy_among_old=float((among_old == truth).mean()),
        num_taken_for_new=int(is_new[predicted[rows]].sum()),
        num_new_images=len(of_new),
        new_accuracy=new_accuracy,
        new_interval=new_interval,
        lost=tuple(
            (before.sample_ids[image], after.class_names[predicted[rows[image]]])
            for image in np.flatnonzero((was.argmax(axis=1) == truth) & (now.argmax(axis=1) != truth)).tolist()
        ),
    )


def read_answers(path: Path, class_names: tuple[str, ...]) -> Answers:
    """What an evaluation has written.

    Args:
        path: a predictions.parquet.
        class_names: the model's classes in order.

    Raises:
        ArtifactError: the file is missing or damaged.
    """
    said = read_predictions(path, class_names)
    return Answers(said.sample_ids, [class_names[label] for label in said.labels], class_names, said.probabilities)


def _rows_of(before: Answers, after: Answers) -> Integers:
    at = {sample_id: row for row, sample_id in enumerate(after.sample_ids)}
    rows = [at.get(sample_id, -1) for sample_id in before.sample_ids]
    if missing := [
        sample_id
        for sample_id, label, row in zip(before.sample_ids, before.labels, rows, strict=True)
        if row < 0 or after.labels[row] != label
    ]:
        raise ArtifactError(
            f"{len(missing)} images that the old model was measured on are not those of the extended one's test split.",
            problems=[f"sample {sample_id}" for sample_id in missing],
            fix="begin anew with --force.",
        )
    return np.array(rows, dtype=np.int64)


def _share_right(
    labels: Integers, predicted: Integers, groups: Integers | None, rows: Integers, seed: int
) -> tuple[float | None, Bounds | None]:
    """The share of some images that are right, with its interval."""
    if not len(rows):
        return None, None
    own = None if groups is None else groups[rows]
    found = resampled_proportions(labels, (predicted == labels)[None], groups=own, seed=seed)
    return float(found.shares[0]), found.interval(0)


def _new_class(
    name: str,
    rows: Integers,
    labels: Integers,
    predicted: Integers,
    is_new: NDArray[np.bool_],
    groups: Integers | None,
    seed: int,
) -> ClassChange:
    after, bounds = _share_right(labels[rows], predicted[rows], groups, rows, seed)
    taken = int(is_new[predicted[rows]].sum())
    return ClassChange(name, True, len(rows), None, None, after, bounds, taken, None, None, None)


def _old_class(
    name: str,
    rows: Integers,
    truth: Integers,
    was: Floats,
    now: Floats,
    is_new: NDArray[np.bool_],
    groups: Integers | None,
    seed: int,
) -> ClassChange:
    if not len(rows):
        return ClassChange(name, False, 0, None, None, None, None, 0, None, None, None)
    own = None if groups is None else groups[rows]
    predicted = now[rows].argmax(axis=1)
    rights = np.stack([was[rows].argmax(axis=1) == truth[rows], predicted == truth[rows]])
    shares = resampled_proportions(truth[rows], rights, groups=own, seed=seed)
    pair = compare_paired(truth[rows], was[rows], now[rows], groups=own, seed=seed)
    return ClassChange(
        name=name,
        is_new=False,
        num_images=len(rows),
        before=float(shares.shares[0]),
        before_interval=shares.interval(0),
        after=float(shares.shares[1]),
        after_interval=shares.interval(1),
        num_taken_for_new=int(is_new[predicted].sum()),
        difference=pair.differences["accuracy"],
        difference_interval=_difference_interval(pair, own),
        p=pair.mcnemar_p,
    )


def _difference_interval(pair: PairedComparison, groups: Integers | None) -> Bounds | None:
    """The interval of a difference of recalls; also where all images of a class have changed alike."""
    num = pair.num_images if groups is None else len(np.unique(groups))
    if "accuracy" in pair.intervals or num == 1:
        return pair.intervals.get("accuracy")
    share = num / pair.num_images
    return paired_difference_interval(pair.only_first * share, pair.only_second * share, num)


def _corrected(changes: Sequence[ClassChange]) -> list[ClassChange]:
    """The same with p-values corrected for being several."""
    known = [number for number, each in enumerate(changes) if each.p is not None]
    corrected = dict(zip(known, holm([changes[number].p or 0.0 for number in known]), strict=True))
    return [ClassChange(**{**vars(each), "p": corrected.get(number)}) for number, each in enumerate(changes)]


def _is_changed(each: ClassChange, *, sign: int) -> bool:
    bounds = each.difference_interval
    if each.p is None or each.p >= 0.05 or each.difference is None or bounds is None or bounds[0] <= 0 <= bounds[1]:
        return False
    return sign * each.difference > 0


def _in_words(number: int) -> str:
    return _WORDS[number] if number < len(_WORDS) else f"{number:,}"


def _figures(value: float, bounds: Bounds | None) -> tuple[str, str]:
    """A difference and its interval with as few decimals as do not make 0 of what is not 0."""
    told = [value, *(bounds or ())]
    places = next(
        (n for n in (2, 3, 4) if all(round(each, n) != 0 or abs(each) < 1e-12 for each in told)), MAX_ONE_SIDED_PLACES
    )
    texts = [f"{each + 0.0:.{places}f}" if round(each, places) else f"{0:.{places}f}" for each in told]
    return texts[0], f" [{texts[1]}, {texts[2]}]" if bounds else ""
