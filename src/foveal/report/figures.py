"""The plots of a whole run: what was in the data, and how the training went."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveal.evaluation.drawing import GRID, MUTED, SPLIT_COLOURS, SPLIT_LINES, draw_svg, shortened, split_name
from foveal.types import SPLITS

MAX_NAMED_CLASSES = 40
"""Up to so many classes each has a bar with its name."""

Epochs = Mapping[str, NDArray[np.float64]]

_CURVES = {"loss": "Loss", "accuracy": "Accuracy", "macro_f1": "Macro F1"}


def draw_curves(epochs: Epochs, best_epoch: int | None) -> dict[str, str]:
    """Loss, accuracy, macro F1 and learning rate over the epochs: name to SVG text; only what was recorded.

    Args:
        epochs: the columns of metrics.csv, float64 [epochs]; NaN where a cell is empty.
        best_epoch: the epoch that was kept, counted from 1.
    """
    plots = {}
    for key, title in _CURVES.items():
        lines = {split: epochs[f"{split}_{key}"] for split in ("train", "val") if _is_known(epochs, f"{split}_{key}")}
        if lines:
            draw = partial(_draw_curve, at=epochs["epoch"], lines=lines, title=title, best_epoch=best_epoch)
            plots[f"curves_{key}"] = draw_svg(draw, width_px=420, height_px=290)
    if _is_known(epochs, "lr"):
        draw = partial(
            _draw_curve, at=epochs["epoch"], lines={"": epochs["lr"]}, title="Learning rate", best_epoch=best_epoch
        )
        plots["curves_lr"] = draw_svg(draw, width_px=420, height_px=290)
    return plots


def draw_class_distribution(names: Sequence[str], counts: Mapping[str, NDArray[np.int64]]) -> str:
    """How many images of each class are in each split, as SVG text.

    Args:
        names: the C classes.
        counts: split to int64 [C].
    """
    if len(names) > MAX_NAMED_CLASSES:
        return draw_svg(partial(_draw_ranked, counts=counts), width_px=556, height_px=280)
    height_px = 92 + 24 * len(names)
    return draw_svg(
        partial(_draw_bars, names=names, counts=counts), width_px=460 if len(names) <= 20 else 556, height_px=height_px
    )


def _is_known(epochs: Epochs, column: str) -> bool:
    return column in epochs and not np.isnan(epochs[column]).all()


def _draw_curve(figure: Any, *, at: NDArray[Any], lines: Epochs, title: str, best_epoch: int | None) -> None:
    from matplotlib.ticker import MaxNLocator

    axes = figure.add_subplot()
    few = len(at) <= 30
    for split, values in lines.items():
        dash, marker = SPLIT_LINES.get(split, ("-", ""))
        colour = SPLIT_COLOURS.get(split, MUTED)
        axes.plot(
            at,
            values,
            linestyle=dash,
            marker=marker if few else "",
            color=colour,
            label=split_name(split),
            clip_on=False,
        )
    if best_epoch is not None:
        axes.axvline(best_epoch, color=MUTED, linewidth=0.9, linestyle=(0, (1, 2)), zorder=0.5)
        if title != "Learning rate":
            _name_kept(axes, best_epoch, is_right=best_epoch > (at[0] + at[-1]) / 2, is_top=title == "Loss")
    if title in {"Accuracy", "Macro F1"}:
        lowest = min(np.nanmin(values) for values in lines.values())
        axes.set_ylim(max(0.0, np.floor(10 * lowest) / 10 - 0.02), 1.005)
    else:
        axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    axes.grid(visible=True, axis="y")
    axes.set_xlabel("epoch")
    axes.set_title(title)
    if any(lines):
        _legend_beside_title(axes)


def _name_kept(axes: Any, epoch: int, *, is_right: bool, is_top: bool) -> None:
    """Write "kept" beside the line of the kept epoch, in the corner where the curves are not."""
    axes.annotate(
        "kept",
        (epoch, 1 if is_top else 0),
        xycoords=("data", "axes fraction"),
        xytext=(-4 if is_right else 4, -2 if is_top else 3),
        textcoords="offset points",
        ha="right" if is_right else "left",
        va="top" if is_top else "bottom",
        color=MUTED,
        fontsize=7.5,
    )


def _legend_beside_title(axes: Any) -> None:
    axes.legend(
        loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderaxespad=0.25, columnspacing=1.2, handlelength=1.8
    )


def _draw_bars(figure: Any, *, names: Sequence[str], counts: Mapping[str, NDArray[np.int64]]) -> None:
    """One bar a class, the splits end to end, with the total at its end."""
    axes = figure.add_subplot()
    rows = np.arange(len(names))
    start = np.zeros(len(names), dtype=np.int64)
    for split in SPLITS:
        if split in counts:
            axes.barh(
                rows,
                counts[split],
                left=start,
                height=0.68,
                color=SPLIT_COLOURS[split],
                edgecolor="white",
                linewidth=0.8,
                label=split_name(split),
            )
            start = start + counts[split]
    for row, total in zip(rows, start, strict=True):
        axes.annotate(
            f"{total:,}",
            (total, row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=MUTED,
            fontsize=7.5,
        )
    axes.set_yticks(rows, [shortened(name) for name in names])
    axes.tick_params(axis="y", length=0)
    axes.set(ylim=(len(names) - 0.5, -0.5), xlim=(0, max(start.max(), 1) * 1.07), xlabel="images")
    axes.spines["left"].set_visible(False)
    axes.grid(visible=True, axis="x")
    axes.set_title("Images of each class")
    _legend_beside_title(axes)


def _draw_ranked(figure: Any, *, counts: Mapping[str, NDArray[np.int64]]) -> None:
    """Where there are too many classes to name: all of them from the largest to the smallest."""
    from matplotlib.ticker import MaxNLocator

    axes = figure.add_subplot()
    order = np.argsort(-np.sum([*counts.values()], axis=0), kind="stable")
    rank = np.arange(1, len(order) + 1)
    start = np.zeros(len(order), dtype=np.int64)
    for split in SPLITS:
        if split in counts:
            values = counts[split][order]
            axes.bar(rank, values, bottom=start, width=0.9, color=SPLIT_COLOURS[split], label=split_name(split))
            start = start + values
    axes.set(xlim=(0, len(order) + 1), xlabel="classes, largest first", ylabel="images")
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.grid(visible=True, axis="y", color=GRID)
    axes.set_title("Images of each class")
    _legend_beside_title(axes)
