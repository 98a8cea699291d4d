"""The verdict in words: what the numbers of a run say, and what they do not.

Each sentence is derived from the numbers alone. `Finding.level` says how to take it: "good", "note" or "caution".
"""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

import numpy as np

from foveal.auditing.leak_policy import LEFT_OUT
from foveal.evaluation.drawing import split_name
from foveal.metrics import TEMPERATURE_BOUNDS, SplitMetrics
from foveal.report.contents import Evaluated, RunContents, class_counts
from foveal.report.numbers import counted, fine, percent, share, with_interval

Level = Literal["good", "note", "caution"]

# Under these, a difference is too small to change what anyone does.
_SMALL_GAP = 0.02
_IMBALANCE = 1.5
"""Classes count as imbalanced where the largest one is this many times its equal share."""
_FEW_IMAGES = 10
MAX_CONFUSED_PAIRS = 8


@dataclass(frozen=True)
class Finding:
    """One sentence of the verdict, with what it is about and how to take it."""

    level: Level
    topic: str
    text: str


@dataclass(frozen=True)
class ConfusedPair:
    """Images of one class taken for another: how many times, and which share of all images of the class."""

    true: str
    predicted: str
    times: int
    support: int
    rate: str


@dataclass(frozen=True)
class Headline:
    """The number to remember.

    Attributes:
        value, interval: as text; the interval may be empty.
        text: what the value is, and what guessing would give.
        split: the split that it comes from; empty where nothing has been evaluated.
    """

    value: str
    interval: str
    text: str
    split: str


def headline(run: RunContents) -> Headline:
    """The accuracy on the test split, or on the best split there is, against guessing."""
    evaluated = judged(run)
    if evaluated is None:
        return Headline("–", "", "no split of this run has been evaluated yet", "")
    metrics = evaluated.metrics
    value, _, interval = with_interval(metrics.accuracy, metrics.confidence_intervals.get("accuracy")).partition(" ")
    guess = share(metrics.majority_baseline_accuracy)
    images = counted(metrics.num_images, f"{split_name(metrics.split)} image")
    return Headline(value, interval, f"on {images}; guessing the largest class gives {guess}", metrics.split)


def findings(run: RunContents) -> list[Finding]:
    """All sentences of the verdict, in the order in which they should be read."""
    evaluated = judged(run)
    found: list[Finding] = []
    if evaluated is None:
        found.append(
            Finding("caution", "Evaluation", "Nothing has been evaluated yet: run foveal evaluate on this run.")
        )
    else:
        if evaluated.metrics.split != "test":
            found.append(_not_on_test(evaluated.metrics))
        found += [
            _against_guessing(evaluated.metrics),
            _balance(run, evaluated.metrics),
            *_gap(run),
            _calibration(evaluated),
            *_weakest_class(evaluated.metrics),
        ]
    if "test" in run.splits:
        found += [_leakage(run), _looks(run)]
    found.append(_quarantine(run))
    found += _still_learning(run)
    for message, times in run.warnings.items():
        found.append(Finding("caution", "Warning", message + (f" ({times} times)" if times > 1 else "")))
    return found


def confused_pairs(metrics: SplitMetrics) -> list[ConfusedPair]:
    """The most frequent mistakes, most frequent first."""
    matrix = np.array(metrics.confusion_matrix)
    support = matrix.sum(axis=1)
    np.fill_diagonal(matrix, 0)
    rate = matrix / np.maximum(support, 1)[:, None]
    order = np.lexsort((-rate.ravel(), -matrix.ravel()))[:MAX_CONFUSED_PAIRS]
    pairs = [divmod(int(at), len(matrix)) for at in order]
    return [
        ConfusedPair(
            true=metrics.class_names[true],
            predicted=metrics.class_names[predicted],
            times=int(matrix[true, predicted]),
            support=int(support[true]),
            rate=percent(float(rate[true, predicted])),
        )
        for true, predicted in pairs
        if matrix[true, predicted]
    ]


def quarantine_reasons(run: RunContents) -> list[tuple[str, int]]:
    """Why files were set aside, and how many for each reason, most frequent first."""
    status, reasons = run.manifest.column("status"), run.manifest.column("reason")
    counts = Counter(str(reason or "no reason given") for reason in reasons[status == "quarantined"])
    return counts.most_common()


def judged(run: RunContents) -> Evaluated | None:
    """The split by which the model is judged: test, else validation, else training."""
    return next((run.splits[split] for split in ("test", "val", "train") if split in run.splits), None)


def _not_on_test(metrics: SplitMetrics) -> Finding:
    used = "chose the epoch that was kept" if metrics.split == "val" else "were learnt from"
    return Finding(
        "caution",
        "No test split",
        f"There is no evaluation on a test split; these are {split_name(metrics.split)} images, which {used}, "
        "so the number is too good.",
    )


def _against_guessing(metrics: SplitMetrics) -> Finding:
    bounds = metrics.confidence_intervals.get("accuracy")
    guess, accuracy = metrics.majority_baseline_accuracy, metrics.accuracy
    if accuracy is None or guess is None or bounds is None:
        return Finding(
            "caution", "Against guessing", "There is no interval, so the accuracy cannot be set against guessing."
        )
    low, high = bounds
    if low > guess:
        return Finding(
            "good",
            "Against guessing",
            f"The whole 95\N{NO-BREAK SPACE}% interval lies above {share(guess)}, what naming the largest class gives.",
        )
    if high < guess:
        return Finding(
            "caution",
            "Against guessing",
            f"The model is worse than naming the largest class, which gives {share(guess)}.",
        )
    text = (
        "The accuracy cannot be told apart from guessing: naming the largest class gives "
        f"{share(guess)}, which lies inside the 95\N{NO-BREAK SPACE}% interval."
    )
    balanced = metrics.confidence_intervals.get("balanced_accuracy")
    by_chance = 1 / sum(1 for item in metrics.per_class if item.support)
    if balanced is not None and balanced[0] > by_chance:
        text += (
            f" By the mean over the classes it can: balanced accuracy is {_with_bounds(metrics, 'balanced_accuracy')}, "
            f"where guessing gives {share(by_chance)}."
        )
    return Finding("caution", "Against guessing", text)


def _balance(run: RunContents, metrics: SplitMetrics) -> Finding:
    """Whether accuracy is a fair summary, and what to read beside it; judged by the classes of training."""
    counts, names = class_counts(run).get("train"), run.manifest.class_names
    if counts is None:
        counts, names = np.array([item.support for item in metrics.per_class]), metrics.class_names
    beside = (
        f"balanced accuracy is {_with_bounds(metrics, 'balanced_accuracy')}, "
        f"macro F1 is {_with_bounds(metrics, 'macro_f1')}"
    )
    if counts.max() * len(counts) < _IMBALANCE * counts.sum():
        return Finding("note", "Balance", f"The classes are of similar size, so accuracy is a fair summary; {beside}.")
    largest, smallest = (
        f"“{names[at]}” has {percent(float(counts[at] / counts.sum()))}" for at in (counts.argmax(), counts.argmin())
    )
    return Finding(
        "caution",
        "Balance",
        f"The classes are imbalanced: in training {largest} of the images and {smallest}. "
        f"Read the means over classes before accuracy: {beside}.",
    )


def _gap(run: RunContents) -> list[Finding]:
    """Whether the model does worse on images it has not learnt from, and whether validation promised too much."""
    test, train, val = (
        run.splits[split].metrics if split in run.splits else None for split in ("test", "train", "val")
    )
    found = []
    held_out = test or val
    if train is not None and held_out is not None and train.accuracy is not None and held_out.accuracy is not None:
        fall = train.accuracy - held_out.accuracy
        where = split_name(held_out.split)
        numbers = f"{share(train.accuracy)} on training images, {share(held_out.accuracy)} on {where} images"
        bounds = held_out.confidence_intervals.get("accuracy")
        if fall > _SMALL_GAP and (bounds is None or train.accuracy > bounds[1]):
            remedy = "More images, stronger augmentation or more weight decay help."
            text = f"The model overfits: accuracy is {numbers}. {remedy}"
            found.append(Finding("caution" if fall > 0.1 else "note", "Training against test", text))
        else:
            found.append(Finding("good", "Training against test", f"No sign of overfitting: accuracy is {numbers}."))
    if val is not None and test is not None and val.accuracy is not None:
        bounds = test.confidence_intervals.get("accuracy")
        if bounds is not None and val.accuracy > bounds[1]:
            text = (
                f"Validation promised more ({share(val.accuracy)}) than test shows; having chosen the epoch, "
                "it is too good."
            )
            found.append(Finding("note", "Validation against test", text))
    return found


def _calibration(evaluated: Evaluated) -> Finding:
    """What a probability of this model is worth: the mean claim against the share that is right."""
    metrics = evaluated.metrics
    claimed = float(evaluated.predictions.probability.mean())
    bounds = metrics.confidence_intervals.get("accuracy")
    right = share(metrics.accuracy)
    text = f"Its answers have a probability of {share(claimed)} on average, and {right} of them are right"
    level: Level = "note"
    if bounds is None:
        text += "."
    elif claimed > bounds[1]:
        level, text = "caution", f"The model is too sure of itself. {text}."
    elif claimed < bounds[0]:
        text = f"The model is too careful: more of its answers are right than it says. {text}."
    else:
        level, text = "good", f"{text}; the two agree within the 95\N{NO-BREAK SPACE}% interval."
    if metrics.ece is not None:
        text += f" The expected calibration error is {fine(metrics.ece)}"
        before = metrics.ece_before_temperature
        if before is not None and metrics.temperature != 1:
            text += f" (before the temperature of {metrics.temperature:.2f}, fitted on validation: {fine(before)})"
        text += "."
    if metrics.temperature in TEMPERATURE_BOUNDS:
        level = "caution"
        text += (
            f" {metrics.temperature:g} is as far as a temperature goes: validation has too few images to fit one, "
            "or the network knows little of them."
        )
    return Finding(level, "Probabilities", text)


def _weakest_class(metrics: SplitMetrics) -> list[Finding]:
    """The class whose images are recognised least often, and the classes of which nothing is known."""
    found = [row[at] for at, row in enumerate(metrics.confusion_matrix)]
    tested = [at for at, item in enumerate(metrics.per_class) if item.support]
    if len(tested) < 2:
        return []
    worst = min(tested, key=lambda at: found[at] / metrics.per_class[at].support)
    name, support = metrics.per_class[worst].name, metrics.per_class[worst].support
    where = split_name(metrics.split)
    if found[worst] == support:
        text = f"Every {where} image of every class is recognised."
    else:
        text = (
            f"“{name}” is found least often: {found[worst]:,} of {counted(support, f'{where} image')} "
            f"({percent(found[worst] / support)})."
        )
    if support < _FEW_IMAGES:
        text += " So few images give a hint, no more."
    untested = len(metrics.per_class) - len(tested)
    if untested:
        text += f" {counted(untested, 'class has', 'classes have')} no {where} image at all."
    is_weak = support >= _FEW_IMAGES and found[worst] < support / 2
    return [Finding("caution" if is_weak or untested else "note", "Weakest class", text)]


def _leakage(run: RunContents) -> Finding:
    """What is known of test images that the model may have seen, worded as what was checked and no more."""
    leakage = run.splits["test"].metrics.leakage
    number = leakage.num_test_images_with_siblings_in_train if leakage is not None else None
    searched = run.section("audit").get("near_duplicates") is True
    how = (
        "Copies that were resized, turned, mirrored, recoloured, cropped or saved again were searched for, too."
        if searched
        else "Near duplicates (resized, cropped or saved again) were not searched for."
    )
    if number is None:
        return Finding("caution", "Leakage", f"It is not known whether test images are in training too. {how}")
    if number:
        return Finding("caution", "Leakage", f"{_leak_effect(run, number)} {how}")
    dropped = sum(str(reason or "").startswith(LEFT_OUT) for reason in run.manifest.column("reason"))
    if dropped:
        left_out = counted(dropped, "image was", "images were")
        text = (
            f"No test image has a copy in training: {left_out} left out of training or validation, as data.leaks=drop "
            f"asks, since they are copies of images to test or to validate on. {how}"
        )
        return Finding("good", "Leakage", text)
    text = "No copies of training images were found in test, and no declared group lies in both."
    return Finding("good", "Leakage", f"{text} {how}")


def _leak_effect(run: RunContents, number: int) -> str:
    """What the leaking images do to the accuracy."""
    metrics = run.splits["test"].metrics
    without = metrics.leakage.accuracy_without_them if metrics.leakage is not None else None
    has = "test image is a copy of a training image or of its group"
    have = "test images are copies of training images or of their groups"
    told = counted(number, has, have)
    if without is None or metrics.accuracy is None:
        return f"{told}; no test image is left without them, so the result says nothing about new images."
    if abs(metrics.accuracy - without) < 5e-4:
        return f"{told}; the accuracy is {share(metrics.accuracy)} with them and without them."
    rest = metrics.num_images - number
    return (
        f"{told}. On all {metrics.num_images:,} test images the accuracy is {share(metrics.accuracy)}; on the {rest:,} "
        f"without a copy in training it is {share(without)}, and that is the number to expect on new images."
    )


def _looks(run: RunContents) -> Finding:
    times = run.looks.get("test", 0)
    if times <= 1:
        text = "The test split has been looked at one time." if times else "Looks at the test split were not counted."
        return Finding("good" if times else "note", "Looks at test", text)
    return Finding(
        "caution",
        "Looks at test",
        f"The test split has been looked at {times} times. With each look that is used to decide something, "
        "the number becomes too good; new images are the remedy.",
    )


def _quarantine(run: RunContents) -> Finding:
    reasons = quarantine_reasons(run)
    total = len(run.manifest.column("status"))
    set_aside = sum(number for _, number in reasons)
    if not set_aside:
        return Finding("good", "Files", f"All {counted(total, 'sample')} could be used.")
    shown = "; ".join(f"{reason}: {number:,}" for reason, number in reasons[:3])
    more = f"; and {counted(len(reasons) - 3, 'other reason')}" if len(reasons) > 3 else ""
    text = f"{set_aside:,} of {counted(total, 'sample')} could not be used and took no part: {shown}{more}."
    return Finding("caution", "Files", text)


def _still_learning(run: RunContents) -> list[Finding]:
    epochs = run.epochs.get("epoch")
    if epochs is None or len(epochs) < 3 or run.best_epoch != int(epochs[-1]):
        return []
    text = "The last epoch was the best one; whether more of them help is worth a try."
    return [Finding("note", "Length of training", text)]


def _with_bounds(metrics: SplitMetrics, key: str) -> str:
    return with_interval(getattr(metrics, key), metrics.confidence_intervals.get(key))
