"""A grid of pictures with words around it, drawn with Pillow: for people to look at.

The same pictures and words give the same pixels. The type is DejaVu Sans, which comes with matplotlib; a sign that it
does not have, as of Chinese, is written as an escape, for an empty box would say nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from foveal.errors import ConfigError
from foveal.evaluation.drawing import GRID, INK, MUTED, displayed
from foveal.extras import require
from foveal.files import atomic_writer

MAX_WIDTH_PX = 2400
MAX_CELL_PX = 160
MAX_NAME_PX = 190
_MARGIN, _GAP, _BAND_GAP, _MIN_WIDTH = 28, 6, 30, 720
_FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {"compress_level": 6}),
    ".jpg": ("JPEG", {"quality": 92, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 92, "subsampling": 0}),
    ".webp": ("WEBP", {"quality": 92, "method": 4}),
}


@dataclass(frozen=True)
class Column:
    """What stands above the pictures of one column; the note is wrapped."""

    title: str
    note: str = ""


@dataclass(frozen=True)
class Band:
    """Columns under one heading, apart from those of others."""

    title: str
    columns: tuple[Column, ...]


@dataclass(frozen=True)
class Row:
    """A row of pictures, one for each column of all bands: uint8 [height, width, 3] each, all of one size."""

    name: str
    note: str
    pictures: Sequence[NDArray[np.uint8]]


@dataclass(frozen=True)
class _Layout:
    """Where everything is, in pixels.

    Attributes:
        side: of a drawn picture.
        starts: left edge of each column.
        names: width of the words beside the rows.
        width: of the sheet.
    """

    side: int
    starts: tuple[int, ...]
    names: int
    width: int


@dataclass(frozen=True)
class _Heads:
    """The words above the columns, as they are drawn.

    Attributes:
        bands: left and right edge of each band, and its heading in lines.
        columns: title of each column, and its note in lines.
        line: where the line below the bands' headings is.
        bottom: where the words end.
    """

    bands: list[tuple[int, int, list[str]]]
    columns: list[tuple[str, list[str]]]
    line: int
    bottom: int


def draw_contact_sheet(title: str, note: str, bands: Sequence[Band], rows: Sequence[Row]) -> Image.Image:
    """Draw the rows under the headings of the bands.

    Pictures are at most `MAX_CELL_PX` wide and the sheet, with some forty columns or fewer, at most `MAX_WIDTH_PX`.
    Small pictures are enlarged by whole numbers with hard edges, so that their pixels can be seen as they are.

    Args:
        title: what the sheet shows.
        note: a sentence or two below it.
        bands: the columns, from left to right.
        rows: at least one.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    layout = _lay_out(bands, rows)
    inner = layout.width - 2 * _MARGIN
    notes = _wrapped(note, 13, inner)
    heads = _heads(bands, layout, _MARGIN + 34 + 19 * len(notes) + 16)
    top_of_rows = heads.bottom + 8
    height = top_of_rows + len(rows) * (layout.side + _GAP) - _GAP + _MARGIN
    sheet = Image.new("RGB", (layout.width, height), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN), _fitted(title, 20, inner, bold=True), INK, _font(20, bold=True))
    for place, line in enumerate(notes):
        draw.text((_MARGIN, _MARGIN + 34 + 19 * place), line, MUTED, _font(13))
    _draw_heads(draw, heads, layout)
    for number, row in enumerate(rows):
        _draw_row(sheet, draw, row, layout, top_of_rows + number * (layout.side + _GAP))
    return sheet


def check_ending(path: Path) -> None:
    """Refuse a name whose ending is no kind of picture that can be written.

    Raises:
        ConfigError: so it is.
    """
    if path.suffix.lower() not in _FORMATS:
        raise ConfigError(
            f"{path} ends in {path.suffix!r}, and a picture in {', '.join(_FORMATS)} was expected."
            if path.suffix
            else f"{path} has no ending; a picture in {', '.join(_FORMATS)} was expected.",
            fix=f"for example: --out {path.with_suffix('.png').name or 'grid.png'}",
        )


def write_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture durably, in the format of its ending; the same pixels give the same bytes.

    Raises:
        ConfigError: the ending is unknown.
        FovealError: the disk is full or the folder cannot be written.
    """
    check_ending(path)
    name, options = _FORMATS[path.suffix.lower()]
    with atomic_writer(path) as stream:
        picture.save(stream, name, **options)


def _lay_out(bands: Sequence[Band], rows: Sequence[Row]) -> _Layout:
    counts = [len(band.columns) for band in bands]
    names = max(_width(_fitted(row.name, 13, MAX_NAME_PX, bold=True), 13, bold=True) for row in rows)
    names = max(names, *(_width(_fitted(row.note, 11, MAX_NAME_PX), 11) for row in rows))
    gaps = _GAP * (sum(counts) - len(counts)) + _BAND_GAP * (len(counts) - 1)
    left = _MARGIN + names + 16
    free = MAX_WIDTH_PX - left - _MARGIN - gaps
    cell = max(24, min(MAX_CELL_PX, free // sum(counts)))
    own = rows[0].pictures[0].shape[0]
    side = own * (cell // own) if own <= cell else cell
    starts: list[int] = []
    for count in counts:
        starts += [left + place * (side + _GAP) for place in range(count)]
        left += count * (side + _GAP) - _GAP + _BAND_GAP
    return _Layout(side, tuple(starts), names, max(_MIN_WIDTH, left - _BAND_GAP + _MARGIN))


def _heads(bands: Sequence[Band], layout: _Layout, top: int) -> _Heads:
    titles: list[tuple[int, int, list[str]]] = []
    columns: list[tuple[str, list[str]]] = []
    for band in bands:
        left = layout.starts[len(columns)]
        columns += [
            (_fitted(each.title, 13, layout.side), _wrapped(each.note, 11, layout.side)) for each in band.columns
        ]
        right = layout.starts[len(columns) - 1] + layout.side
        titles.append((left, right, _wrapped(band.title, 13, right - left, bold=True)))
    line = top + 17 * max(len(lines) for *_, lines in titles) + 4
    return _Heads(titles, columns, line, line + 27 + 14 * max(len(lines) for _, lines in columns))


def _draw_heads(draw: ImageDraw.ImageDraw, heads: _Heads, layout: _Layout) -> None:
    for left, right, lines in heads.bands:
        for place, words in enumerate(reversed(lines)):
            draw.text((left, heads.line - 21 - 17 * place), words, INK, _font(13, bold=True))
        draw.line((left, heads.line, right - 1, heads.line), GRID, 2)
    for start, (title, lines) in zip(layout.starts, heads.columns, strict=True):
        draw.text((start, heads.line + 9), title, INK, _font(13))
        for place, words in enumerate(lines):
            draw.text((start, heads.line + 27 + 14 * place), words, MUTED, _font(11))


def _draw_row(sheet: Image.Image, draw: ImageDraw.ImageDraw, row: Row, layout: _Layout, top: int) -> None:
    middle = top + layout.side // 2
    two_lines = bool(row.note) and layout.side >= 32
    draw.text(
        (_MARGIN, middle - (9 if two_lines else 0)),
        _fitted(row.name, 13, layout.names, bold=True),
        INK,
        _font(13, bold=True),
        anchor="lm",
    )
    if two_lines:
        draw.text((_MARGIN, middle + 9), _fitted(row.note, 11, layout.names), MUTED, _font(11), anchor="lm")
    for start, pixels in zip(layout.starts, row.pictures, strict=True):
        picture = Image.fromarray(pixels)
        if layout.side != picture.width:
            grows = layout.side > picture.width
            picture = picture.resize(
                (layout.side, layout.side), Image.Resampling.NEAREST if grows else Image.Resampling.LANCZOS
            )
        sheet.paste(picture, (start, top))
        # So that a white picture has an edge on white paper.
        draw.rectangle((start - 1, top - 1, start + layout.side, top + layout.side), outline=GRID)


@cache
def _font_file(bold: bool) -> Path:
    matplotlib = require("matplotlib", extra="train", purpose="write words into pictures")
    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")


@cache
def _font(size_px: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(_font_file(bold)), size_px)


@cache
def _signs(bold: bool) -> frozenset[int]:
    """The code points that the type has."""
    fonts = require("matplotlib.ft2font", extra="train", purpose="write words into pictures")
    return frozenset(fonts.FT2Font(str(_font_file(bold))).get_charmap())


def _legible(text: str, *, bold: bool) -> str:
    """`text` with what cannot be seen, or has no sign in the type, as escapes."""
    known = _signs(bold)
    return "".join(sign if ord(sign) in known else _escape(sign) for sign in displayed(text))


def _escape(sign: str) -> str:
    return sign.encode("unicode_escape").decode("ascii")


def _width(text: str, size_px: int, *, bold: bool = False) -> int:
    """Of a text that is legible already, in pixels."""
    return -int(-_font(size_px, bold=bold).getlength(text) // 1)


def _fitted(text: str, size_px: int, width_px: int, *, bold: bool = False) -> str:
    """The text as it is drawn within a width: legible, with its middle left out where it is wider."""
    text = _legible(text, bold=bold)
    if _width(text, size_px, bold=bold) <= width_px:
        return text

    def cut(length: int) -> str:
        tail = length // 2
        return text[: length - tail] + "…" + text[len(text) - tail :]

    return cut(_largest(lambda length: _width(cut(length), size_px, bold=bold) <= width_px, len(text)))


def _largest(is_right: Callable[[int], bool], bound: int) -> int:
    """The largest number below `bound` that is right, where all smaller ones are; 0 where none is."""
    low, high = 0, bound
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if is_right(middle) else (low, middle)
    return low


def _wrapped(text: str, size_px: int, width_px: int, *, bold: bool = False) -> list[str]:
    """The text in lines of at most a width, broken between words."""
    lines: list[str] = []
    for word in _legible(text, bold=bold).split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and _width(longer, size_px, bold=bold) <= width_px:
            lines[-1] = longer
        else:
            lines.append(_fitted(word, size_px, width_px, bold=bold))
    return lines
