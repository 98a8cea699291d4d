"""What a sweep comes to, in sentences."""

from collections.abc import Sequence

from foveal.experiments.sweep.axes import TRAIN_IMAGES, Axis
from foveal.experiments.sweep.result import Swept, Value, key_of
from foveal.metrics import PairedComparison


def sentences_of(swept: Swept) -> list[str]:
    """Which value is best by validation, what it is worth on test, and whether that is told apart from the first."""
    if swept.best is None:
        return ["Every run of the sweep failed."]
    best, first = swept.values[swept.best], swept.values[0]
    figure = swept.monitor.removeprefix("val_").replace("_", " ").replace("f1", "F1")
    lines = []
    if swept.is_learning_curve:
        lines.append(_learning_sentence(swept))
    lines.append(
        f"Best by validation: {best.point.name}, {figure} {_mean_std(best, key_of(swept.monitor))}; on the test split "
        f"accuracy {_mean_std(best, 'accuracy')}, macro F1 {_mean_std(best, 'macro_f1')}."
    )
    if swept.against_first is not None:
        lines.append(_told_apart(swept.against_first, first.point.name, best.point.name, swept.seeds))
    elif len(swept.values) > 1:
        lines.append("That is the first value, which the others were to be compared with.")
    lines += _at_the_edge(swept.axes, best)
    if failed := [value.point.name for value in swept.values if not value.is_whole]:
        lines.append(f"Without a result, because a training failed: {'; '.join(failed)}.")
    looks = sum(run.outcome is not None for value in swept.values for run in value.runs)
    lines.append(
        f"Validation chose; each of the {looks} runs was measured on the test split, which is counted as a look and "
        "decided nothing."
        + ("" if len(swept.seeds) > 1 else " With one seed nobody knows how much another one would change.")
    )
    return lines


def _told_apart(found: PairedComparison, first: str, second: str, seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return found.sentence(first, second) + "."
    images = found.num_images // len(seeds)
    bounds = found.intervals.get("accuracy")
    held = f" [{bounds[0]:+.3f}, {bounds[1]:+.3f}]" if bounds else ""
    figures = (
        f"{found.second['accuracy']:.3f} against {found.first['accuracy']:.3f}, "
        f"{found.differences['accuracy']:+.3f}{held}, mean of {len(seeds)} seeds on the same {images:,} test images"
    )
    if found.verdict == "undecided":
        is_split = bounds is not None and not bounds[0] <= 0 <= bounds[1]
        return f"{second} and {first} cannot be told apart: {figures}{'; the seeds do not agree' if is_split else ''}."
    return f"{second} is {found.verdict} than {first}: {figures}."


def _learning_sentence(swept: Swept) -> str:
    whole = sorted((value for value in swept.values if value.is_whole), key=lambda value: value.runs[0].num_train)
    if len(whole) < 2 or swept.against_fewer is None:
        return "There are too few sizes for a learning curve."
    fewer, more = whole[-2], whole[-1]
    sizes = f"{fewer.runs[0].num_train:,} to {more.runs[0].num_train:,} training images"
    gain = more.mean["val_accuracy"] - fewer.mean["val_accuracy"]
    told = {
        "better": "more images still help, and further ones probably would",
        "undecided": "these test images cannot tell whether that is a gain, nor whether further images would be",
        "worse": "on test it is worse, which is not what images usually do: look at the added ones",
    }[swept.against_fewer.verdict]
    return f"From {sizes} validation accuracy changes by {gain:+.3f}; {told}."


def _at_the_edge(axes: Sequence[Axis], best: Value) -> list[str]:
    """A word for each number whose best value is the least or the largest one: a better one may lie outside."""
    lines = []
    for axis in axes:
        is_numbers = all(isinstance(each, int | float) and not isinstance(each, bool) for each in axis.values)
        if axis.key == TRAIN_IMAGES or len(axis.values) < 2 or not is_numbers:
            continue
        chosen = best.point.values[axis.key]
        for end, word in ((min(axis.values), "smallest"), (max(axis.values), "largest")):
            if chosen == end:
                lines.append(f"It is the {word} {axis.key} of the sweep; a better one may lie beyond.")
    return lines


def _mean_std(value: Value, key: str) -> str:
    mean, std = value.mean.get(key), value.std.get(key)
    if mean is None:
        return "undefined"
    return f"{mean:.3f}" if std is None else f"{mean:.3f} ± {std:.3f}"
