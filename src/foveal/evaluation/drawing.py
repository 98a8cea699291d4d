"""How every plot of foveal is drawn: colours, type, and SVG text that is the same for the same input.

Figures are made with matplotlib's objects and its SVG canvas, never with pyplot, whose figures are global and are never
freed unless someone remembers to.
"""

import io
import threading
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveal.extras import require
from foveal.types import Split

SPLIT_COLOURS: dict[str, str] = {"train": "#0b5fa5", "val": "#c77700", "test": "#00896b"}
"""One colour a split, everywhere. At least 3.4:1 on white; with simulated protanopia, deuteranopia (Machado et al.,
2009) and tritanopia they stay at least 17 CIELAB units apart, and lines differ in their dashes and markers as well."""

SPLIT_LINES: dict[str, tuple[str, str]] = {"train": ("-", "o"), "val": ("--", "s"), "test": ("-.", "D")}
"""Dash pattern and marker of each split."""

RIGHT_COLOUR = "#475569"
WRONG_COLOUR = "#b8321a"
INK = "#1f2933"
MUTED = "#5b6673"
GRID = "#e3e7eb"

PX = 0.75
"""One CSS pixel in points."""

_PALE = 0.965
_LOCK = threading.Lock()
_STYLE = {
    "svg.fonttype": "none",  # text stays text: small, searchable, and read aloud
    "svg.hashsalt": "foveal",  # without it, the ids differ from run to run
    "text.parse_math": False,  # a class may be named "$\\mathfrak{x}$"
    "text.usetex": False,
    "axes.unicode_minus": True,
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib, and is wide: what fits in it fits in others
    "font.size": 8.5,
    "text.color": INK,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 7,
    "axes.titlecolor": INK,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 8.5,
    "axes.edgecolor": "#9aa5b1",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": "#9aa5b1",
    "ytick.color": "#9aa5b1",
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": True,
    "legend.facecolor": "white",
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "legend.fontsize": 8,
    "legend.handlelength": 2.2,
    "lines.linewidth": 1.6,
    "lines.markersize": 3.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "figure.constrained_layout.h_pad": 0.04,
    "figure.constrained_layout.w_pad": 0.04,
}


def draw_svg(draw: Callable[[Any], None], *, width_px: float, height_px: float) -> str:
    """Run `draw` on an empty matplotlib Figure and give back the SVG document.

    The same input gives the same text: no date, no random ids. Safe to call from several threads.

    Args:
        draw: gets the Figure; draws into it.
        width_px: width in CSS pixels.
        height_px: height in CSS pixels.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    matplotlib = require("matplotlib", extra="train", purpose="draw the plots")
    figures = require("matplotlib.figure", extra="train", purpose="draw the plots")
    stream = io.BytesIO()
    # rcParams and warning filters belong to the whole process, so one figure at a time.
    with _LOCK, matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # The font only measures; the reader's own fonts draw, and they have the glyphs that DejaVu lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure = figures.Figure(figsize=(width_px * PX / 72, height_px * PX / 72), layout="constrained")
        draw(figure)
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return stream.getvalue().decode("utf-8")


def displayed(text: str) -> str:
    """`text` with every character that cannot be seen, or that would reorder its neighbours, written as an escape.

    Control characters and lone surrogates have no place in XML or UTF-8, and marks such as U+202E make a file name
    look like another one.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_escape(sign) if _is_hidden(sign) else sign for sign in text)


def shortened(text: str, max_length: int = 24) -> str:
    """`text`, with its middle left out where it is longer: names that differ often differ at an end."""
    text = displayed(text)
    if len(text) <= max_length:
        return text
    tail = (max_length - 1) // 2
    return text[: max_length - 1 - tail].rstrip() + "…" + text[len(text) - tail :].lstrip()


def split_name(split: Split | str) -> str:
    """The split as a word for people."""
    return {"train": "training", "val": "validation", "test": "test"}.get(split, split)


def tint(colour: str, amount: NDArray[np.float64]) -> NDArray[np.float64]:
    """Colours between a pale and the full shade.

    Args:
        colour: the full shade, `#rrggbb`.
        amount: any shape, 0 (nearly white) to 1 (full); NaN gives a plain grey.

    Returns:
        float64 [..., 3], red, green and blue in 0..1.
    """
    full = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    known = np.nan_to_num(amount)[..., None]
    return np.where(np.isnan(amount)[..., None], 0.87, _PALE + known * (full - _PALE))


def is_dark(colour: Sequence[float]) -> bool:
    """Whether white text has more contrast than black text on a colour: by WCAG 2.1, at least 4.58 either way."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] < 0.179


def _is_hidden(sign: str) -> bool:
    # Cc control, Cs surrogate, Co private use, Cn unassigned (with U+FFFE and U+FFFF), Zl and Zp line separators;
    # of Cf only the marks that reorder text, since others join letters in real scripts.
    category = unicodedata.category(sign)
    return category in {"Cc", "Cs", "Co", "Cn", "Zl", "Zp"} or sign in "\u200e\u200f\u202a\u202b\u202c\u202d\u202e" + (
        "\u2066\u2067\u2068\u2069\ufeff"
    )


def _escape(sign: str) -> str:
    return sign.encode("unicode_escape", errors="backslashreplace").decode("ascii")
