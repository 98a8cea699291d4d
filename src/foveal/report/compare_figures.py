"""The plots of a comparison: quality against latency, and the confusion matrices side by side."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from foveal.evaluation.drawing import GRID, INK, PX, RIGHT_COLOUR, SPLIT_COLOURS, draw_svg, shortened
from foveal.evaluation.plots import draw_confusion
from foveal.experiments.compare.result import Comparison

_AXES_PX = (480.0, 270.0)
"""What the figure's margins leave to the points."""


def draw_front(rows: Sequence[Mapping[str, Any]], front: Sequence[str]) -> str:
    """Accuracy with its interval against milliseconds for one image, the Pareto front as a line, as SVG text.

    Args:
        rows: the models that were timed: `name`, `accuracy`, `confidence_intervals`, `latency_cpu_p50_ms`.
        front: names of those on the front.
    """
    return draw_svg(partial(_draw_front, rows=rows, front=front), width_px=556, height_px=360)


def draw_confusions(comparison: Comparison) -> list[tuple[str, str]]:
    """The name of each model and its confusion matrix as SVG text; all name the same classes."""
    matrices = {}
    number = len(comparison.aligned.class_names)
    for name, probabilities in comparison.aligned.probabilities.items():
        cells = comparison.aligned.labels * number + probabilities.argmax(axis=1)
        matrices[name] = np.bincount(cells, minlength=number**2).reshape(number, number).astype(np.float64)
    together = np.sum([*matrices.values()], axis=0)
    names = comparison.aligned.class_names
    return [(name, draw_confusion(matrix, names, title=name, by=together)) for name, matrix in matrices.items()]


def _draw_front(figure: Any, *, rows: Sequence[Mapping[str, Any]], front: Sequence[str]) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    axes = figure.add_subplot()
    colour = SPLIT_COLOURS["train"]
    at = {row["name"]: (row["latency_cpu_p50_ms"], row["accuracy"]) for row in rows}
    best = sorted(at[name] for name in front)
    axes.step(*zip(*best, strict=True), where="post", color=colour, linewidth=1.2, alpha=0.55, label="Pareto front")
    for row in rows:
        milliseconds, accuracy = at[row["name"]]
        low, high = row["confidence_intervals"].get("accuracy", (accuracy, accuracy))
        is_best = row["name"] in front
        shade = colour if is_best else RIGHT_COLOUR
        axes.errorbar(
            [milliseconds],
            [accuracy],
            yerr=[[max(accuracy - low, 0.0)], [max(high - accuracy, 0.0)]],
            fmt="o" if is_best else "D",
            color=shade,
            ecolor=shade,
            elinewidth=1.0,
            markersize=6 if is_best else 5,
            markeredgecolor="white",
            markeredgewidth=0.7,
        )
    times = [milliseconds for milliseconds, _ in at.values()]
    if max(times) > 8 * min(times):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlim(min(times) / 1.4, max(times) * 2.2)
    else:
        axes.set_xlim(left=0, right=1.18 * max(times))
    axes.grid(visible=True, color=GRID)
    axes.set(xlabel="milliseconds for one image, decoding included (CPU, median)", ylabel="accuracy")
    axes.margins(y=0.12)
    axes.autoscale_view(scalex=False)
    _name_points(axes, at)
    axes.set_title("Quality against latency")
    axes.legend(loc="lower right")


def _name_points(axes: Any, at: Mapping[str, tuple[float, float]]) -> None:
    """Each point's name beside it, at the first of a few places where it covers neither a point nor another name."""
    # Pixels of the axes, about: the layout is settled only when the figure is written.
    left, right = map(axes.transScale.transform, ((axes.get_xlim()[0], 1.0), (axes.get_xlim()[1], 1.0)))
    low, high = axes.get_ylim()
    points = {}
    for name, (milliseconds, accuracy) in at.items():
        along = axes.transScale.transform((milliseconds, accuracy))[0]
        points[name] = (
            _AXES_PX[0] * (along - left[0]) / (right[0] - left[0]),
            _AXES_PX[1] * (accuracy - low) / (high - low),
        )
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in points.values()]
    for name, (x, y) in points.items():
        width, height = 5.6 * len(shortened(name, 28)), 11.0
        places = [(side, 4.0 + step * height) for step in (0, -1, 1, -2, 2, -3, 3) for side in (7.0, -7.0 - width)]
        fitting = (
            (dx, dy)
            for dx, dy in places
            if x + dx >= 0
            and x + dx + width <= _AXES_PX[0] + 20
            and not any(_overlap((x + dx, y + dy, x + dx + width, y + dy + height), other) for other in taken)
        )
        dx, dy = next(fitting, places[0])
        taken.append((x + dx, y + dy, x + dx + width, y + dy + height))
        axes.annotate(
            shortened(name, 28),
            at[name],
            xytext=(dx * PX, dy * PX),
            textcoords="offset points",
            fontsize=8,
            color=INK,
        )


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
