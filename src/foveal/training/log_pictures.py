"""Pictures for logs that take a picture and no more: images with their captions on one sheet, a confusion matrix."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SHEET_CELL_PX = 128
"""Images are shown at least so large, so that a caption fits below."""
MAX_CLASSES_WITH_TEXT = 30
"""With more classes, names and counts would be too small to read."""
_CAPTION_PX = 16
_GAP_PX = 4


def contact_sheet(images: NDArray[np.uint8], captions: Sequence[str] = ()) -> NDArray[np.uint8]:
    """All images on one sheet, row by row, each with its caption below.

    Args:
        images: uint8 [n, h, w, 3], n at least 1.
        captions: one an image, or none at all.

    Returns:
        uint8 [height, width, 3].
    """
    num, height_px, width_px, _ = images.shape
    # A whole factor, so that a pixel stays a square.
    factor = max(1, math.ceil(SHEET_CELL_PX / max(height_px, width_px)))
    height_px, width_px = factor * height_px, factor * width_px
    num_columns = math.ceil(math.sqrt(num))
    row_px = height_px + _GAP_PX + (_CAPTION_PX if captions else 0)
    column_px = width_px + _GAP_PX
    sheet = Image.new("RGB", (num_columns * column_px, math.ceil(num / num_columns) * row_px), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_CAPTION_PX - 4)
    for number, image in enumerate(images):
        left, top = number % num_columns * column_px, number // num_columns * row_px
        large = Image.fromarray(image).resize((width_px, height_px), Image.Resampling.NEAREST)
        sheet.paste(large, (left, top))
        if captions:
            draw.text((left + 1, top + height_px), _fitting(captions[number], font, width_px - 2), "black", font)
    return np.asarray(sheet)


def _fitting(
    text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont | ImageFont.TransposedFont, width_px: int
) -> str:
    """The beginning of a text that is no wider, on one line."""
    text = " ".join(text.split())
    shown = text
    while shown and font.getbbox(shown)[2] > width_px:
        text = text[:-1]
        shown = text + "..."[: len(text)]
    return shown


def confusion_picture(counts: NDArray[np.int64], class_names: Sequence[str], title: str) -> NDArray[np.uint8]:
    """A confusion matrix whose colours are shares of each true class.

    Args:
        counts: int64 [c, c], true classes in rows, predicted ones in columns.
        class_names: in the order of rows and columns.
        title: what stands above.

    Returns:
        uint8 [height, width, 3].
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    num_classes = len(class_names)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    has_text = num_classes <= MAX_CLASSES_WITH_TEXT
    side_inches = float(np.clip(2.5 + 0.35 * num_classes, 4.0, 10.0))
    figure = Figure(figsize=(side_inches, side_inches), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(title, parse_math=False)
    if has_text:
        # A name may hold a dollar sign, which is no mathematics.
        places = range(num_classes)
        for axis, angle in ((axes.xaxis, 90), (axes.yaxis, 0)):
            axis.set_ticks(places, list(class_names), rotation=angle, parse_math=False)
        for true, predicted in np.argwhere(counts):
            colour = "white" if shares[true, predicted] > 0.5 else "black"
            count = f"{counts[true, predicted]}"
            axes.text(predicted, true, count, ha="center", va="center", color=colour, fontsize=8)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3].copy()
