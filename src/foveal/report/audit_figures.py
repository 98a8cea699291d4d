"""The chart of an audit: how much of each class is original, and how much are copies."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveal.evaluation.drawing import GRID, MUTED, RIGHT_COLOUR, SPLIT_COLOURS, draw_svg, shortened, split_name, tint
from foveal.report.audit_summary import NO_SPLIT
from foveal.report.figures import MAX_NAMED_CLASSES

Counts = Mapping[str, NDArray[np.int64]]

_PALE = 0.3
"""How much of a split's colour its copies have."""


def draw_originals(
    names: Sequence[str], images: Counts, originals: Counts, *, num_originals: Sequence[int] | None = None
) -> str:
    """Originals of each class in full colour and copies of them in a pale one, split by split, as SVG text.

    Args:
        names: the C classes.
        images: split to int64 [C], all samples.
        originals: split to int64 [C], the independent ones; no larger than `images`.
        num_originals: of each class; fewer than those of its splits where one original lies in several.
    """
    if len(names) > MAX_NAMED_CLASSES:
        return draw_svg(partial(_draw_ranked, images=images, originals=originals), width_px=556, height_px=280)
    totals = np.sum([*originals.values()], axis=0) if num_originals is None else np.array(num_originals)
    draw = partial(_draw_bars, names=names, images=images, originals=originals, totals=totals)
    return draw_svg(draw, width_px=460 if len(names) <= 20 else 556, height_px=108 + 24 * len(names))


def _draw_bars(
    figure: Any, *, names: Sequence[str], images: Counts, originals: Counts, totals: NDArray[np.int64]
) -> None:
    """One bar a class: originals and copies of each split end to end, with the number of originals at its end."""
    from matplotlib.patches import Patch

    axes = figure.add_subplot()
    rows = np.arange(len(names))
    start = np.zeros(len(names), dtype=np.int64)
    has_copies = any((images[split] > originals[split]).any() for split in images)
    for split in images:
        colour = SPLIT_COLOURS.get(split, RIGHT_COLOUR)
        pale = tint(colour, np.array(_PALE))
        parts: list[tuple[NDArray[np.int64], Any, str | None]]
        parts = [(originals[split], colour, "all images" if split == NO_SPLIT else split_name(split))]
        parts += [(images[split] - originals[split], pale, None)] if has_copies else []
        for values, shade, label in parts:
            axes.barh(rows, values, left=start, height=0.68, color=shade, edgecolor="white", linewidth=0.6, label=label)
            start = start + values
    for row, (end, kept) in enumerate(zip(start, totals, strict=True)):
        text = f"{end:,}" if kept == end else f"{kept:,} of {end:,}"
        axes.annotate(
            text, (end, row), xytext=(4, 0), textcoords="offset points", va="center", color=MUTED, fontsize=7.5
        )
    axes.set_yticks(rows, [shortened(name) for name in names])
    axes.tick_params(axis="y", length=0)
    room = 1.22 if has_copies else 1.07
    axes.set(ylim=(len(names) - 0.5, -0.5), xlim=(0, max(start.max(initial=0), 1) * room), xlabel="images")
    axes.spines["left"].set_visible(False)
    axes.grid(visible=True, axis="x")
    axes.set_title("Originals of each class, and copies of them" if has_copies else "Images of each class")
    handles = axes.get_legend_handles_labels()[0]
    handles += [Patch(color=tint(RIGHT_COLOUR, np.array(_PALE)), label="pale: copies")] if has_copies else []
    figure.legend(handles=handles, loc="outside lower left", ncols=4, handlelength=1.2, borderaxespad=0.25)


def _draw_ranked(figure: Any, *, images: Counts, originals: Counts) -> None:
    """Where there are too many classes to name: all of them from the largest to the smallest."""
    from matplotlib.ticker import MaxNLocator

    axes = figure.add_subplot()
    whole, kept = np.sum([*images.values()], axis=0), np.sum([*originals.values()], axis=0)
    order = np.argsort(-whole, kind="stable")
    # Steps, not bars: thousands of classes would make thousands of drawing elements.
    edges = np.arange(len(order) + 1) + 0.5
    axes.stairs(whole[order], edges, fill=True, color=tint(RIGHT_COLOUR, np.array(_PALE)), label="copies")
    axes.stairs(kept[order], edges, fill=True, color=RIGHT_COLOUR, label="originals")
    axes.set(xlim=(0, len(order) + 1), ylim=(0, None), xlabel="classes, largest first", ylabel="images")
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.grid(visible=True, axis="y", color=GRID)
    axes.set_title("Originals of each class, and copies of them")
    axes.legend(loc="upper right", ncols=2)
