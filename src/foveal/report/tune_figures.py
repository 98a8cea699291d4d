"""The plots of a study: how it went, what mattered, which values did well, and who worked when."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

import numpy as np

from foveal.evaluation.drawing import GRID, INK, MUTED, SPLIT_COLOURS, WRONG_COLOUR, draw_svg, shortened, tint

MAX_AXES = 8
"""Most parameters in the parallel coordinates; those that matter most."""
MAX_LANES = 60
"""Most trials that get a lane of their own in the timeline."""

_DONE, _PRUNED, _FAILED = SPLIT_COLOURS["val"], "#9aa5b1", WRONG_COLOUR
_ABSENT, _BELOW = object(), -0.14
_COLOURS = {"complete": _DONE, "pruned": _PRUNED, "failed": _FAILED}
_WORDS = {"complete": "came to its end", "pruned": "stopped early", "failed": "failed"}

Row = Mapping[str, Any]


def draw_history(rows: Sequence[Row], *, monitor: str, maximise: bool) -> str:
    """The figure of each trial, and the best so far, as SVG text."""
    return draw_svg(partial(_draw_history, rows=rows, monitor=monitor, maximise=maximise), width_px=556, height_px=300)


def draw_importance(importance: Mapping[str, float]) -> str:
    """How much each parameter explains, as SVG text; the largest on top."""
    height_px = 78 + 24 * len(importance)
    return draw_svg(partial(_draw_importance, importance=importance), width_px=420, height_px=height_px)


def draw_parallel(rows: Sequence[Row], dimensions: Sequence[Row], *, monitor: str, maximise: bool) -> str:
    """A line a complete trial through all its values to its figure, as SVG text.

    Args:
        rows: of the trials.
        dimensions: `name, kind, low, high, log, choices` of what was chosen from; at most `MAX_AXES`.
        monitor: the figure.
        maximise: whether it is better where it is higher.
    """
    complete = [row for row in rows if row["state"] == "complete"]
    draw = partial(_draw_parallel, rows=complete, dimensions=dimensions, monitor=monitor, maximise=maximise)
    return draw_svg(draw, width_px=max(420, 120 * (len(dimensions) + 1)), height_px=330)


def draw_timeline(rows: Sequence[Row]) -> str | None:
    """A bar a trial from its beginning to its end, as SVG text; None where no trial has both.

    A trial that was taken up again shows the last time only.
    """
    timed = [row for row in rows if row["began"] and row["ended"]]
    if not timed:
        return None
    lanes = timed[-MAX_LANES:]
    return draw_svg(partial(_draw_timeline, rows=lanes), width_px=556, height_px=96 + 9 * len(lanes))


def _draw_history(figure: Any, *, rows: Sequence[Row], monitor: str, maximise: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    axes = figure.add_subplot()
    best: list[tuple[int, float]] = []
    for row in rows:
        if row["state"] == "complete":
            pick = max if maximise else min
            best.append((row["number"], pick(row["figure"], best[-1][1] if best else row["figure"])))
    if best:
        best.append((max(row["number"] for row in rows), best[-1][1]))
        axes.step(*zip(*best, strict=True), where="post", color=INK, linewidth=1.2, label="best so far")
    shapes = {"complete": "o", "pruned": "v"}
    for state, marker in shapes.items():
        at = [(row["number"], row["figure"]) for row in rows if row["state"] == state and row["figure"] is not None]
        if at:
            numbers, figures = zip(*at, strict=True)
            axes.plot(
                numbers,
                figures,
                marker,
                color=_COLOURS[state],
                markersize=5,
                markeredgecolor="white",
                markeredgewidth=0.6,
                label=_WORDS[state],
            )
    for number, row in enumerate(each for each in rows if each["state"] == "failed"):
        axes.plot(
            [row["number"]],
            [0.02],
            "x",
            transform=axes.get_xaxis_transform(),
            color=_FAILED,
            markersize=5,
            label=None if number else "failed",
        )
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1))
    axes.grid(visible=True, axis="y", color=GRID)
    axes.set(xlabel="trial", ylabel=monitor)
    axes.set_title("Every trial, and the best so far")
    axes.legend(loc="best")


def _draw_importance(figure: Any, *, importance: Mapping[str, float]) -> None:
    axes = figure.add_subplot()
    places = np.arange(len(importance))
    shares = np.array(list(importance.values()))
    axes.barh(places, shares, height=0.68, color=_DONE)
    for place, value in zip(places, shares, strict=True):
        axes.annotate(
            f"{value:.0%}",
            (value, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            color=MUTED,
            fontsize=7.5,
        )
    axes.set_yticks(places, [shortened(name, 32) for name in importance])
    axes.tick_params(axis="y", length=0)
    axes.set(ylim=(len(places) - 0.5, -0.5), xlim=(0, max(float(shares.max()), 0.01) * 1.15))
    axes.set_xticks([])
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_title("Importance")


def _draw_parallel(
    figure: Any, *, rows: Sequence[Row], dimensions: Sequence[Row], monitor: str, maximise: bool
) -> None:
    axes = figure.add_subplot()
    figures = np.array([row["figure"] for row in rows], dtype=np.float64)
    low, high = float(figures.min()), float(figures.max())
    goodness = (figures - low) / (high - low) if high > low else np.ones_like(figures)
    columns = [[_height(row["values"].get(dim["name"], _ABSENT), dim) for row in rows] for dim in dimensions]
    columns.append(goodness.tolist())
    good = goodness if maximise else 1.0 - goodness
    heights = np.array(columns)
    xs = np.arange(len(columns))
    # The best last, so that it lies on top.
    for number in np.argsort(good, kind="stable"):
        axes.plot(
            xs,
            heights[:, number],
            color=tint(_DONE, np.array(0.15 + 0.85 * good[number])).tolist(),
            linewidth=1.0 + 1.2 * good[number],
            marker="o",
            markersize=3,
        )
    for x, dim in enumerate(dimensions):
        for height, text in _ticks(dim):
            _label(axes, x, height, text)
        if (heights[x] == _BELOW).any():
            _label(axes, x, _BELOW, "not there")
    _label(axes, len(dimensions), 0.0, f"{low:.3g}")
    _label(axes, len(dimensions), 1.0, f"{high:.3g}")
    for at in xs:
        axes.plot([at, at], [0, 1], color="#9aa5b1", linewidth=0.8, zorder=0.5)
    names = [*(_broken(shortened(dim["name"], 34)) for dim in dimensions), monitor]
    axes.set_xticks(xs, names)
    axes.tick_params(axis="x", length=0, labelsize=7)
    axes.set(ylim=(-0.2, 1.06), xlim=(-0.3, len(columns) - 0.55))
    axes.set_yticks([])
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_title("Every complete trial as a line; the best are dark")


def _height(value: Any, dim: Row) -> float:
    """Where a value lies on its axis, 0 to 1; below it where the parameter does not exist."""
    if value is _ABSENT:
        return _BELOW
    if dim["kind"] == "categorical":
        number = next(place for place, choice in enumerate(dim["choices"]) if choice == value)
        return number / max(1, len(dim["choices"]) - 1)
    low, high = float(dim["low"]), float(dim["high"])
    if high == low:
        return 0.5
    if dim["log"]:
        return float(np.log(value / low) / np.log(high / low))
    return float((value - low) / (high - low))


def _ticks(dim: Row) -> list[tuple[float, str]]:
    if dim["kind"] != "categorical":
        return [(0.0, f"{dim['low']:g}"), (1.0, f"{dim['high']:g}")]
    last = max(1, len(dim["choices"]) - 1)
    return [(place / last, shortened(_word(choice), 14)) for place, choice in enumerate(dim["choices"])]


def _word(choice: Any) -> str:
    """A choice as YAML writes it."""
    if choice is None:
        return "null"
    return str(choice).lower() if isinstance(choice, bool) else str(choice)


def _label(axes: Any, x: float, height: float, text: str) -> None:
    axes.annotate(
        text,
        (x, height),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        color=INK,
        fontsize=7,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8},
    )


def _broken(name: str) -> str:
    """A dotted key over several lines."""
    section, dot, rest = name.rpartition(".")
    return f"{section}.\n{rest}" if dot else name


def _draw_timeline(figure: Any, *, rows: Sequence[Row]) -> None:
    axes = figure.add_subplot()
    begins = [datetime.fromisoformat(row["began"]) for row in rows]
    first = min(begins)
    spans = [
        (datetime.fromisoformat(row["ended"]) - began).total_seconds() for row, began in zip(rows, begins, strict=True)
    ]
    longest = max((began - first).total_seconds() + span for began, span in zip(begins, spans, strict=True))
    divisor, unit = next(((d, u) for d, u in ((3600, "hours"), (60, "minutes")) if longest > 2 * d), (1, "seconds"))
    shown: set[str] = set()
    for lane, (row, began, span) in enumerate(zip(rows, begins, spans, strict=True)):
        state = row["state"]
        axes.barh(
            lane,
            span / divisor,
            left=(began - first).total_seconds() / divisor,
            height=0.72,
            color=_COLOURS.get(state, MUTED),
            label=None if state in shown else _WORDS.get(state, state),
        )
        shown.add(state)
    every = max(1, len(rows) // 12)
    axes.set_yticks(range(0, len(rows), every), [str(row["number"]) for row in rows[::every]])
    axes.tick_params(axis="y", length=0)
    axes.set(ylim=(len(rows) - 0.5, -0.5), xlabel=f"{unit} since the first of them", ylabel="trial")
    axes.set_xlim(left=0)
    axes.grid(visible=True, axis="x", color=GRID)
    axes.set_title("When each trial was at work")
    axes.legend(loc="lower left")
