"""The plots of an evaluation, as SVG files: who was taken for whom, and how far the probabilities can be trusted.

They stay readable for two classes and for two hundred: labels are shortened, and where there are more classes than a
page can name, those with the most errors are named and the rest stand together.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foveal.evaluation.drawing import (
    GRID,
    MUTED,
    RIGHT_COLOUR,
    SPLIT_COLOURS,
    WRONG_COLOUR,
    draw_svg,
    is_dark,
    shortened,
    split_name,
    tint,
)
from foveal.files import write_text
from foveal.metrics import SplitMetrics, reliability_bins, roc_curve, wilson_interval

PLOT_NAMES = ("confusion_counts", "confusion_rates", "reliability", "roc", "confidence_right_wrong")
MAX_MATRIX_CLASSES = 30
"""Up to so many classes a confusion matrix names each of them."""
NUM_WORST_CLASSES = 24
"""Where there are more, so many are named: those with the most errors."""
MAX_ROC_LINES = 30
NUM_HISTOGRAM_BINS = 20

Floats = NDArray[np.float64]


def write_plots(folder: Path, metrics: SplitMetrics, labels: ArrayLike, probabilities: ArrayLike) -> list[Path]:
    """Draw all plots of one evaluated split and write them to `folder` as SVG files.

    Args:
        folder: where the files go; made if it is missing.
        metrics: the split's metrics.
        labels: int [n], the true classes, in 0..C-1.
        probabilities: float [n, C], rows sum to 1, after temperature.

    Returns:
        The files written.

    Raises:
        FovealError: the folder cannot be written to.
        MissingExtraError: matplotlib is not installed.
    """
    paths = []
    for name, svg in draw_plots(metrics, labels, probabilities).items():
        path = folder / f"{name}.svg"
        write_text(path, svg)
        paths.append(path)
    return paths


def draw_plots(metrics: SplitMetrics, labels: ArrayLike, probabilities: ArrayLike) -> dict[str, str]:
    """All plots of one evaluated split: name to SVG text; see `write_plots`."""
    true, rows = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    matrix, names = condensed(np.asarray(metrics.confusion_matrix, dtype=np.float64), metrics.class_names)
    where = split_name(metrics.split)
    draw_matrix = partial(
        _draw_matrix, matrix=matrix, names=names, where=where, has_others=len(names) < len(metrics.class_names)
    )
    width_px, height_px = _matrix_size_px(names)
    return {
        "confusion_counts": draw_svg(partial(draw_matrix, as_rates=False), width_px=width_px, height_px=height_px),
        "confusion_rates": draw_svg(partial(draw_matrix, as_rates=True), width_px=width_px, height_px=height_px),
        "reliability": draw_svg(
            partial(_draw_reliability, metrics=metrics, true=true, rows=rows), width_px=330, height_px=352
        ),
        "roc": draw_svg(partial(_draw_roc, metrics=metrics, true=true, rows=rows), width_px=330, height_px=352),
        "confidence_right_wrong": draw_svg(
            partial(_draw_right_wrong, where=where, true=true, rows=rows), width_px=330, height_px=352
        ),
    }


def draw_confusion(matrix: Floats, names: Sequence[str], *, title: str, by: Floats | None = None) -> str:
    """One confusion matrix in per cent of each true class, as SVG text.

    Args:
        matrix: counts, float [C, C], rows are the true classes.
        names: the C class names.
        title: stands above it.
        by: the matrix whose mistakes say which classes are named where there are many; this one, if not given.
    """
    small, shown = condensed(matrix, names, by=by)
    width_px, height_px = _matrix_size_px(shown)
    draw = partial(
        _draw_matrix, matrix=small, names=shown, where=title, has_others=len(shown) < len(names), as_rates=True
    )
    return draw_svg(partial(draw, title=shortened(title, 36)), width_px=width_px, height_px=height_px)


def condensed(matrix: Floats, names: Sequence[str], *, by: Floats | None = None) -> tuple[Floats, list[str]]:
    """A confusion matrix small enough to read: the classes with the most errors, and all others as one last row.

    No image is lost: the sum stays. The last cell of the last row then holds right answers and mix-ups alike.

    Args:
        matrix: float [C, C], rows are the true classes.
        names: the C class names.
        by: the matrix whose errors say which classes are named, so that several matrices name the same; this one, if
            not given.

    Returns:
        The matrix and its names; the same where there are at most `MAX_MATRIX_CLASSES`.
    """
    if len(names) <= MAX_MATRIX_CLASSES:
        return matrix, list(names)
    told = matrix if by is None else by
    errors = told.sum(axis=0) + told.sum(axis=1) - 2 * np.diag(told)
    shown = np.sort(np.argsort(-errors, kind="stable")[:NUM_WORST_CLASSES])
    bin_of_class = np.full(len(names), NUM_WORST_CLASSES)
    bin_of_class[shown] = np.arange(NUM_WORST_CLASSES)
    small = np.zeros((NUM_WORST_CLASSES + 1, NUM_WORST_CLASSES + 1))
    np.add.at(small, (bin_of_class[:, None], bin_of_class[None, :]), matrix)
    return small, [*(names[index] for index in shown), f"the {len(names) - len(shown)} others"]


def _matrix_size_px(names: Sequence[str]) -> tuple[float, float]:
    label_px = 6.2 * max(len(shortened(name)) for name in names)
    cell_px = 26 if len(names) > 12 else max(30, 300 / len(names))
    side = cell_px * len(names) + 60
    # Names that do not fit side by side stand upright, so they need height as well as width.
    return side + label_px, side + (label_px if label_px > cell_px else 14) + 24


def _draw_matrix(
    figure: Any, *, matrix: Floats, names: Sequence[str], where: str, has_others: bool, as_rates: bool, title: str = ""
) -> None:
    """Draw a confusion matrix: right answers in slate, mistakes in red, each cell with its number."""
    num = len(names)
    support = matrix.sum(axis=1, keepdims=True)
    rates = np.divide(matrix, support, out=np.full(matrix.shape, np.nan), where=support > 0)
    named = matrix[:-1, :-1] if has_others else matrix  # else the last cell outshines all
    strength = rates if as_rates else np.minimum(matrix / max(named.max(), 1), 1)
    right = np.eye(num, dtype=bool)
    # A few mistakes among many right answers must be seen, so their shade grows with the root.
    colours = np.where(right[..., None], tint(RIGHT_COLOUR, strength), tint(WRONG_COLOUR, np.sqrt(strength)))
    if has_others:
        colours[-1, -1] = 0.87  # neither right nor wrong: see `condensed`
    axes = figure.add_subplot()
    axes.imshow(colours, interpolation="none", aspect="equal")
    text = np.vectorize(_percent if as_rates else _count)(rates if as_rates else matrix)
    size = 8.5 if num <= 12 else 7
    for row, column in np.ndindex(num, num):
        if text[row, column]:
            ink = "white" if is_dark(colours[row, column].tolist()) else "black"
            axes.text(column, row, text[row, column], ha="center", va="center", color=ink, fontsize=size)
    labels = [shortened(name) for name in names]
    upright = max(map(len, labels)) * 6.2 > (26 if num > 12 else max(30, 300 / num))
    axes.set_yticks(range(num), labels)
    axes.set_xticks(range(num), labels)
    if upright:
        for label in axes.get_xticklabels():
            label.set(rotation=90, rotation_mode="anchor", ha="right", va="center")
    for edge in np.arange(num + 1) - 0.5:
        axes.axhline(edge, color="white", linewidth=0.8)
        axes.axvline(edge, color="white", linewidth=0.8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(title or f"{where.capitalize()}: " + ("% of each true class" if as_rates else "number of images"))


def _count(value: float) -> str:
    return f"{value:.0f}" if value else ""


def _percent(rate: float) -> str:
    """A share as whole per cent that says 0 and 100 only where it is exactly so."""
    if np.isnan(rate) or rate == 0:
        return ""
    if rate == 1:
        return "100"
    if rate < 0.005:
        return "<1"
    return ">99" if rate > 0.995 else f"{100 * rate:.0f}"


def _draw_reliability(figure: Any, *, metrics: SplitMetrics, true: NDArray[Any], rows: Floats) -> None:
    """Draw claimed against observed accuracy, with Wilson intervals, over a histogram of the claims."""
    edges, num_images, claimed, observed = reliability_bins(true, rows)
    used = num_images > 0
    count, claimed, observed = num_images[used], claimed[used], observed[used]
    low, high = np.array([wilson_interval(a * n, n) for a, n in zip(observed, count, strict=True)]).T
    colour = SPLIT_COLOURS.get(metrics.split, MUTED)
    axes, below = figure.subplots(2, 1, height_ratios=[4, 1], sharex=True)
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (2, 2)), label="right as often as claimed")
    axes.errorbar(
        claimed,
        observed,
        yerr=np.clip([observed - low, high - observed], 0, None),
        fmt="o",
        color=colour,
        ecolor=colour,
        elinewidth=1.1,
        markersize=5,
        markeredgecolor="white",
        markeredgewidth=0.6,
    )
    axes.set(ylim=(-0.02, 1.02), xlim=(0, 1), ylabel="share that is right")
    axes.legend(loc="best")
    axes.grid(visible=True)
    axes.set_title(f"{split_name(metrics.split).capitalize()}: calibration error {_number(metrics.ece)}")
    below.bar(edges[:-1], num_images, width=np.diff(edges), align="edge", color=colour, edgecolor="white")
    below.set(xlabel="probability of the predicted class", ylabel="images")
    _whole_ticks(below, 3)


def _draw_roc(figure: Any, *, metrics: SplitMetrics, true: NDArray[Any], rows: Floats) -> None:
    """Draw one-against-the-rest ROC curves: the mean, the three weakest classes by name, the others in grey."""
    colour = SPLIT_COLOURS.get(metrics.split, MUTED)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (2, 2)), label="guessing")
    which = [1] if len(metrics.class_names) == 2 else range(len(metrics.class_names))
    curves = {index: curve for index in which if (curve := roc_curve(true, rows, index)) is not None}
    area = {index: metrics.per_class[index].roc_auc for index in curves}
    if len(metrics.class_names) == 2 and curves:
        curve = curves[1]
        name = shortened(metrics.class_names[1])
        axes.plot(curve[0], curve[1], color=colour, linewidth=2.2, label=f"{name}: {_number(area[1])}")
    elif curves:
        grid = np.linspace(0, 1, 401)
        heights = np.array([_heights(curve[0], curve[1], grid) for curve in curves.values()])
        if len(curves) <= MAX_ROC_LINES:
            for curve in curves.values():
                axes.plot(curve[0], curve[1], color="#c3cad2", linewidth=0.8)
        else:
            low, high = np.quantile(heights, [0.05, 0.95], axis=0)
            axes.fill_between(grid, low, high, color=GRID, linewidth=0, label="nine classes in ten")
        weakest = sorted((value, index) for index, value in area.items() if value is not None)[:3]
        for shade, dash, (value, index) in zip(
            ("#8c2d19", "#7a5195", "#52525b"), (":", "--", "-."), weakest, strict=False
        ):
            curve = curves[index]
            label = f"{shortened(metrics.class_names[index], 20)}: {_number(value)}"
            axes.plot(curve[0], curve[1], color=shade, linewidth=1.3, linestyle=dash, label=label)
        mean = np.concatenate([[0.0], heights.mean(axis=0)])
        label = f"mean of {len(curves)} classes: {_number(metrics.macro_roc_auc)}"
        axes.plot(np.concatenate([[0.0], grid]), mean, color=colour, linewidth=2.2, label=label)
    else:
        axes.text(0.5, 0.6, "not defined: only one class occurs", ha="center", color=MUTED)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel="false positive rate", ylabel="true positive rate")
    axes.set_aspect("equal")
    axes.grid(visible=True)
    axes.legend(loc="lower right", title="area under the curve", alignment="left", title_fontsize=8)
    axes.set_title(f"{split_name(metrics.split).capitalize()}: each class against the rest")


def _heights(across: Floats, up: Floats, grid: Floats) -> Floats:
    """A ROC curve's height at each grid point; at a vertical piece, its upper end."""
    last = np.append(np.diff(across) > 0, True)
    return np.asarray(np.interp(grid, across[last], up[last]))


def _draw_right_wrong(figure: Any, *, where: str, true: NDArray[Any], rows: Floats) -> None:
    """Draw how probable the model found its answers, where it was right and where it was wrong."""
    probability = rows.max(axis=1)
    right = rows.argmax(axis=1) == true
    edges = np.linspace(0, 1, NUM_HISTOGRAM_BINS + 1)
    panels = figure.subplots(2, 1, sharex=True)
    for axes, chosen, word, colour in zip(
        panels, (right, ~right), ("right", "wrong"), (RIGHT_COLOUR, WRONG_COLOUR), strict=True
    ):
        axes.hist(probability[chosen], bins=edges, color=colour, edgecolor="white", linewidth=0.6)
        axes.set(xlim=(0, 1), ylabel="images")
        axes.grid(visible=True, axis="y")
        axes.set_title(f"{where.capitalize()}: {int(chosen.sum()):,} of {len(true):,} {word}", color=colour)
        _whole_ticks(axes, 4)
        if not chosen.any():
            axes.set_yticks([])
    panels[-1].set_xlabel("probability of the predicted class")


def _whole_ticks(axes: Any, num_steps: int) -> None:
    """Ticks at whole numbers only: there are no half images."""
    from matplotlib.ticker import MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(num_steps, integer=True))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
