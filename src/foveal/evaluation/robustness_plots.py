"""What a robustness measurement looks like: a curve for each corruption, and one image under all of them."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from foveal.evaluation.drawing import MUTED, SPLIT_COLOURS, draw_svg, split_name
from foveal.evaluation.robustness import EXAMPLES_FOLDER, Robustness
from foveal.files import atomic_writer
from foveal.metrics import shown
from foveal.pixels.corruptions import CORRUPTIONS, NUM_STRENGTHS, corrupt

PLOT_FILE = "robustness.svg"
CLEAN = "clean"

_SIDE_PX = 128
_QUALITY = 88
_NUM_COLUMNS = 4


def draw_robustness(found: Robustness) -> str:
    """Accuracy by strength, a panel for each corruption, as SVG text."""
    num_columns = min(_NUM_COLUMNS, len(found.curves))
    num_rows = -(-len(found.curves) // num_columns)
    draw = partial(_draw_panels, found=found, shape=(num_rows, num_columns))
    return draw_svg(draw, width_px=max(300, 190 * num_columns), height_px=50 + 170 * num_rows)


def example_path(folder: Path, name: str, strength: int) -> Path:
    """The picture of the example under one corruption at one strength; strength 0 is the image as it is."""
    return folder / EXAMPLES_FOLDER / (f"{name}-{strength}.webp" if strength else f"{CLEAN}.webp")


def write_examples(folder: Path, stored: NDArray[np.uint8], row: int, names: tuple[str, ...]) -> None:
    """Write one image under each corruption at each strength, and as it is.

    Args:
        folder: the evaluation's.
        stored: uint8 [h, w, 3], the image as the classifier's square is cut from it.
        row: its number, which decides the noise.
        names: which corruptions.
    """
    (folder / EXAMPLES_FOLDER).mkdir(parents=True, exist_ok=True)
    for name in CORRUPTIONS:
        for strength in range(1, NUM_STRENGTHS + 1):
            path = example_path(folder, name, strength)
            if name in names:
                _write_picture(path, corrupt(stored, name, strength, row=row))
            else:
                path.unlink(missing_ok=True)  # of an earlier measurement, of another image perhaps
    _write_picture(example_path(folder, CLEAN, 0), stored)


def _write_picture(path: Path, pixels: NDArray[np.uint8]) -> None:
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.thumbnail((_SIDE_PX, _SIDE_PX), Image.Resampling.LANCZOS)
    with atomic_writer(path) as stream:
        picture.save(stream, "WEBP", quality=_QUALITY, lossless=max(picture.size) < 48, method=4)


def _draw_panels(figure: Any, *, found: Robustness, shape: tuple[int, int]) -> None:
    panels = figure.subplots(*shape, sharex=True, sharey=True, squeeze=False)
    colour = SPLIT_COLOURS.get(found.split, MUTED)
    strengths = range(NUM_STRENGTHS + 1)
    for number, axes in enumerate(panels.flat):
        if number >= len(found.curves):
            axes.set_axis_off()
            continue
        curve = found.curves[number]
        points = [found.clean, *curve.by_strength]
        if all(point.interval for point in points):
            low, high = np.array([point.interval for point in points]).T
            axes.fill_between(strengths, low, high, color=colour, alpha=0.18, linewidth=0)
        values = [point.accuracy for point in points]
        axes.plot(strengths, values, color=colour, marker="o", markersize=3.5, clip_on=False)
        axes.axhline(found.guess, color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
        axes.set(ylim=(0, 1), xlim=(0, NUM_STRENGTHS), xticks=strengths)
        axes.grid(visible=True, axis="y")
        axes.set_title(f"{curve.name}: {shown(curve.mean.accuracy)}")
        if number + shape[1] >= len(found.curves):
            axes.set_xlabel("strength")
            axes.tick_params(labelbottom=True)
        if number % shape[1] == 0:
            axes.set_ylabel(f"{split_name(found.split)} accuracy")
