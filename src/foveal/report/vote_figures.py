"""Plots of experiments with several like models: figures with their intervals, and the course of their training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveal.evaluation.drawing import GRID, MUTED, RIGHT_COLOUR, SPLIT_COLOURS, draw_svg, shortened

MAX_ROWS = 40
"""Of more models the rest is left out of a plot; the table has all."""


@dataclass(frozen=True)
class Dot:
    """A figure with its interval.

    Attributes:
        name: what it is of.
        value: the figure.
        bounds: low and high end; None where it has no interval.
        is_vote: whether it stands out, as what several models come to.
    """

    name: str
    value: float
    bounds: tuple[float, float] | None
    is_vote: bool = False


def draw_dots(dots: Sequence[Dot], *, title: str, mean: float | None = None, mean_name: str = "mean") -> str:
    """One row a figure, its interval as a line, as SVG text.

    Args:
        dots: in order, from the top.
        title: of the plot.
        mean: where to draw a dotted line; none, if None.
        mean_name: what the line is called.
    """
    shown = dots[:MAX_ROWS]
    height_px = 84 + 24 * len(shown)
    draw = partial(_draw_dots, dots=shown, title=title, mean=mean, mean_name=mean_name)
    return draw_svg(draw, width_px=540, height_px=height_px)


def draw_courses(courses: Mapping[str, Mapping[str, NDArray[np.float64]]], column: str, *, title: str) -> str:
    """One line a model over its epochs, as SVG text; the same shade for all, for none is special.

    Args:
        courses: name to the columns of its metrics.csv.
        column: which of them.
        title: of the plot.
    """
    return draw_svg(partial(_draw_courses, courses=courses, column=column, title=title), width_px=420, height_px=280)


def _draw_dots(figure: Any, *, dots: Sequence[Dot], title: str, mean: float | None, mean_name: str) -> None:
    axes = figure.add_subplot()
    for row, dot in enumerate(dots):
        colour = SPLIT_COLOURS["test"] if dot.is_vote else RIGHT_COLOUR
        if dot.bounds is not None:
            axes.plot(
                dot.bounds, (row, row), color=colour, linewidth=2.4 if dot.is_vote else 1.4, solid_capstyle="butt"
            )
        axes.plot([dot.value], [row], marker="D" if dot.is_vote else "o", markersize=6, color=colour, linestyle="")
    if mean is not None:
        axes.axvline(mean, color=MUTED, linewidth=0.9, linestyle=(0, (1, 2)), zorder=0.5)
        axes.annotate(
            mean_name, (mean, 1), xycoords=("data", "axes fraction"), xytext=(3, -9), textcoords="offset points",
            color=MUTED, fontsize=7.5,
        )  # fmt: skip
    axes.set_yticks(range(len(dots)), [shortened(dot.name, 30) for dot in dots])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(dots) - 0.5, -0.5 - 0.6 * (mean is not None))
    axes.spines["left"].set_visible(False)
    axes.grid(visible=True, axis="x", color=GRID)
    axes.set_title(title)


def _draw_courses(
    figure: Any, *, courses: Mapping[str, Mapping[str, NDArray[np.float64]]], column: str, title: str
) -> None:
    from matplotlib.ticker import MaxNLocator

    axes = figure.add_subplot()
    for columns in courses.values():
        values = columns.get(column)
        if values is None or np.isnan(values).all():
            continue
        few = len(values) <= 2
        axes.plot(
            columns["epoch"], values, color=SPLIT_COLOURS["val"], alpha=0.75, linewidth=1.3, marker="o" if few else ""
        )
    if column.endswith("accuracy"):
        axes.set_ylim(top=1.005)
    else:
        axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    axes.grid(visible=True, axis="y")
    axes.set_xlabel("epoch")
    axes.set_title(title)
