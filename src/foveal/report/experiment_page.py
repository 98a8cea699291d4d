"""The page of an experiment, from building blocks that every verb fills in: text, tables, plots and pictures.

One self-contained file like the other pages: no network, no scripts, every value escaped, readable on a phone and with
a keyboard alone.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveal.files import write_text
from foveal.pixels.policy import PixelPolicy
from foveal.report.rendering import render
from foveal.report.svg import Drawing, inline
from foveal.report.tables import Cell
from foveal.report.thumbnails import Thumbnail, thumbnails_of
from foveal.types import Box

WIDE_PX = 580
"""A plot wider than this does not shrink with the page, but scrolls by itself."""
TALL_ROWS = 30
"""A table of more rows than this scrolls by itself, its headings staying in sight."""


@dataclass(frozen=True)
class PageTable:
    """A table: the first cell of each row is the row's heading.

    Attributes:
        head: headings of the columns.
        rows: a text or a `Cell` (with an interval, a footnote's number, a bar) for each column.
        caption: what the table shows.
        notes: footnotes, numbered from 1 as in `Cell.note`.
        text_columns: numbers of columns, from 0, that hold words rather than figures, and may wrap.
        marked_rows: numbers of rows that stand out: the chosen one, the mean.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    caption: str = ""
    notes: Sequence[str] = ()
    text_columns: Sequence[int] = ()
    marked_rows: Sequence[int] = ()


@dataclass(frozen=True)
class PagePlot:
    """A plot as SVG text, and in words what it shows, for those who do not see it."""

    svg: str
    label: str


@dataclass(frozen=True)
class Picture:
    """An image of the data, made small; words take its place where the file is gone or has changed.

    Attributes:
        path: the image file.
        box: the part of it to show; all of it, if None.
        sha256: of the file as it was; not checked, if None.
        caption: the line under it.
        lines: smaller lines under the caption, such as what each model says.
        is_wrong: whether it gets a red frame.
    """

    path: Path
    box: Box | None = None
    sha256: str | None = None
    caption: str = ""
    lines: Sequence[str] = ()
    is_wrong: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the page: its text, then plots, tables and pictures, each of them if any, then what unfolds.

    Attributes:
        title: its heading, and its name in the table of contents.
        paragraphs: what there is to know first.
        tables: see `PageTable`.
        plots: see `PagePlot`; side by side where there is room.
        pictures: see `Picture`.
        folded: sections that stand under their titles alone until they are opened; those may not fold again.
    """

    title: str
    paragraphs: Sequence[str] = ()
    tables: Sequence[PageTable] = ()
    plots: Sequence[PagePlot] = ()
    pictures: Sequence[Picture] = ()
    folded: Sequence["Section"] = ()


@dataclass(frozen=True)
class _Plot:
    markup: str
    is_wide: bool


@dataclass(frozen=True)
class _Figure:
    thumbnail: Thumbnail
    alt: str
    picture: Picture


def write_experiment_page(
    path: Path,
    *,
    name: str,
    title: str,
    verdict: Sequence[str],
    sections: Sequence[Section],
    made_from: str,
    next_commands: Sequence[str] = (),
    tiles: Sequence[tuple[str, str, str]] = (),
    facts: Sequence[tuple[str, str]] = (),
    policy: PixelPolicy | None = None,
    box_margin: float = 0.0,
) -> Path:
    """Write an experiment's page.

    Args:
        path: the file to write.
        name: of the experiment, such as its folder's name.
        title: what kind of experiment it is, such as "cross-validation".
        verdict: what came of it, in sentences; the first is the headline.
        sections: in order.
        made_from: the folder that everything comes from.
        next_commands: what to type next, a command a line.
        tiles: the figures that matter most: label, value, and what stands beside it, such as an interval.
        facts: a few pairs of a heading and words: which data, which models.
        policy: how image files become pixels.
        box_margin: margin around each picture's box, as a share of its width and height.

    Returns:
        The file.

    Raises:
        ArtifactError: a plot is not an SVG document.
        FovealError: the page cannot be written.
        MissingExtraError: jinja2 is not installed.
    """
    thumbnails = _thumbnails(sections, policy or PixelPolicy(), box_margin)
    taken: set[str] = {"verdict", "next"}
    laid_out = [_laid_out(section, _identifier(section.title, taken), thumbnails) for section in sections]
    page = render(
        "experiment.html.j2",
        styles=("report.css", "experiment.css"),
        name=name,
        title=title,
        made_from=made_from,
        headline=verdict[0] if verdict else title,
        remarks=list(verdict[1:]),
        sections=laid_out,
        next_commands="\n".join(next_commands),
        tiles=list(tiles),
        facts=list(facts),
        tall_rows=TALL_ROWS,
    )
    write_text(path, page)
    return path


def _thumbnails(sections: Sequence[Section], policy: PixelPolicy, box_margin: float) -> dict[int, Thumbnail]:
    """The thumbnail of each picture of the page, by the picture's `id`."""
    parts = [part for section in sections for part in (section, *section.folded)]
    pictures = [picture for part in parts for picture in part.pictures]
    sources = [(picture.path, picture.box, picture.sha256) for picture in pictures]
    made = thumbnails_of(sources, policy=policy, box_margin=box_margin)
    return {id(picture): thumbnail for picture, thumbnail in zip(pictures, made, strict=True)}


def _laid_out(section: Section, identifier: str, thumbnails: dict[int, Thumbnail]) -> dict[str, Any]:
    """A section as the template wants it: drawings cleaned, cells all of one kind, ids given."""
    return {
        "id": identifier,
        "title": section.title,
        "paragraphs": list(section.paragraphs),
        "plots": [_drawn(plot, f"{identifier}-p{at}") for at, plot in enumerate(section.plots)],
        "tables": [_table(table, f"{identifier}-t{at}") for at, table in enumerate(section.tables)],
        "figures": [
            _Figure(thumbnails[id(picture)], picture.caption or picture.path.name, picture)
            for picture in section.pictures
        ],
        "folded": [_laid_out(part, f"{identifier}-f{at}", thumbnails) for at, part in enumerate(section.folded)],
    }


def _drawn(plot: PagePlot, prefix: str) -> _Plot:
    drawing: Drawing = inline(plot.svg, prefix=prefix, label=plot.label)
    return _Plot(drawing.markup, drawing.width_px > WIDE_PX)


def _table(table: PageTable, identifier: str) -> dict[str, Any]:
    rows = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in table.rows]
    return {
        "id": identifier,
        "caption": table.caption,
        "head": list(table.head),
        "rows": rows,
        "notes": list(table.notes),
        "text_columns": set(table.text_columns),
        "marked_rows": set(table.marked_rows),
    }


def _identifier(title: str, taken: set[str]) -> str:
    """A section's id: its title in plain letters, made unique."""
    plain = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
    number, identifier = 1, plain
    while identifier in taken:
        number += 1
        identifier = f"{plain}-{number}"
    taken.add(identifier)
    return identifier
