"""The verdict of a probe in sentences."""

from foveal.experiments.probe.result import ProbeOutcome, Row
from foveal.metrics import shown


def sentences(outcome: ProbeOutcome, *, has_random_weights: bool) -> tuple[str, ...]:
    """What a probe says, the most important first.

    Args:
        outcome: rows and winner; its own sentences do not matter.
        has_random_weights: whether the backbone has learnt nothing.
    """
    best = outcome.best
    told = [
        f"{_named(best)} is the best on validation. On test: {_with_interval(best)} on {best['num_images']:,} images; "
        f"guessing the largest class gives {shown(best['majority_baseline_accuracy'])}."
    ]
    second = next((row for row in outcome.rows if row["place"] == 2), None)
    if second is not None:
        verdict = second["against_winner"]["verdict"]
        close = {
            "undecided": "cannot be told apart from it with these test images",
            "worse": "is worse on the test images",
            "better": "is better on the test images, which may not choose",
        }[verdict]
        told.append(f"The next on validation, {_named(second)}, {close}: {_with_interval(second)}.")
    told += _sizes(outcome)
    seconds = f"{outcome.seconds:,.0f}" if outcome.seconds >= 10 else f"{outcome.seconds:.1f}"
    told.append(
        f"Features and all fits took {seconds} seconds: every fine-tuning has to beat this, on the same test images."
    )
    if has_random_weights:
        told.append(
            "The backbone has random weights (model.weights=none), and has not learnt to see: the probe says little "
            "about what a pretrained one could do."
        )
    return tuple(told)


def _sizes(outcome: ProbeOutcome) -> list[str]:
    """The best of each backbone and size, where there are several."""
    best: dict[tuple[str, int], Row] = {}
    for row in sorted(outcome.rows, key=lambda row: -row["place"]):
        best[row["backbone"], row["size_px"]] = row
    if len(best) < 2:
        return []
    parts = [
        f"{shown(row['val_accuracy'])} at {size_px} px ({backbone}, {row['title']})"
        for (backbone, size_px), row in sorted(best.items(), key=lambda item: (item[0][0], item[0][1]))
    ]
    return [f"Accuracy on validation, the best head of each: {'; '.join(parts)}."]


def _named(row: Row) -> str:
    return f"{row['title']} on {row['backbone']} at {row['size_px']} px"


def _with_interval(row: Row) -> str:
    bounds = row["confidence_intervals"].get("accuracy")
    interval = f" [{shown(bounds[0])}, {shown(bounds[1])}]" if bounds else ""
    return f"{shown(row['accuracy'])}{interval}"
