"""CSV and Parquet tables as text cells under standard column names, each row with the number that a person sees."""

import codecs
import csv
import difflib
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from foveal.data.config import ColumnsConfig
from foveal.data.locate import IMAGE_SUFFIXES
from foveal.errors import DataError
from foveal.extras import require
from foveal.files import plain_cell

_DELIMITERS = (",", ";", "\t")
_SYNONYMS = {
    "path": (
        "filename",
        "file",
        "file_name",
        "filepath",
        "file_path",
        "image",
        "image_path",
        "img",
        "image_name",
        "name",
    ),
    "label": (
        "class",
        "class_name",
        "category",
        "target",
        "label_name",
        "cell_type",
        "species",
        "diagnosis",
        "class_id",
    ),
}
_NUM_SAMPLE_ROWS = 50
# Where a cell is text that somebody else chose, it may have been neutralised for spreadsheets.
_NEUTRALISED = frozenset({"path", "label", "group", "reason"})

ColumnChoice = Callable[[Sequence[str], Sequence[Sequence[str]]], dict[str, int]]


@dataclass(frozen=True)
class TextTable:
    """The columns that are wanted of a table.

    Attributes:
        columns: cells as text, empty where unknown, by standard name.
        numbers: the line (CSV) or row (Parquet) of each row, counted from 1 as editors do.
        noun: "line" or "row".
    """

    columns: Mapping[str, list[str]]
    numbers: Sequence[int]
    noun: str

    def __len__(self) -> int:
        return len(self.numbers)


def numbered(reader: Any) -> Iterator[tuple[int, list[str]]]:
    """Rows of a `csv.reader` that are not blank, each with the line that it starts in."""
    line = 1
    try:
        for row in reader:
            if row:
                yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise csv.Error(f"line {line}: {error}") from error


def read_csv(file: Path, choose: ColumnChoice) -> TextTable:
    """Read a CSV in UTF-8 or UTF-16, whatever separates its cells: comma, semicolon or tab.

    Args:
        file: the table; its first line is the header.
        choose: from the header and some rows to the place of each wanted column.

    Raises:
        DataError: the file is no CSV, or rows have too few or too many cells.
    """
    try:
        with _opened(file) as stream:
            style = _sniff(stream)
            rows = numbered(csv.reader(stream, **style))
            head = [[cell.strip() for cell in row] for (_, row), _ in zip(rows, range(_NUM_SAMPLE_ROWS), strict=False)]
            if not head:
                raise DataError(
                    f"{file} is empty.", fix="it needs a header line with path,label, and a line for each image."
                )
            places = choose([plain_cell(cell) for cell in head[0]], head[1:])
            stream.seek(0)
            return _read_rows(file, stream, style, places, width=len(head[0]))
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{file} is no CSV table: {error}.", fix="save it as CSV in UTF-8.") from error
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}.", fix="check the path.") from error


def _read_rows(file: Path, stream: TextIO, style: dict[str, Any], places: Mapping[str, int], width: int) -> TextTable:
    wanted = list(places.items())
    columns: dict[str, list[str]] = {name: [] for name in places}
    numbers: list[int] = []
    problems: list[str] = []
    rows = numbered(csv.reader(stream, **style))
    next(rows)
    for line, row in rows:
        if len(row) != width and (len(row) < width or any(row[width:])):
            problems.append(f"line {line}: {len(row)} cells, and the header has {width}")
            continue
        numbers.append(line)
        for name, place in wanted:
            columns[name].append(row[place])
    if problems:
        raise DataError(
            f"{file} has lines that do not fit its header.",
            problems=problems,
            fix=f"put cells that hold the separator {style['delimiter']!r} in double quotes.",
        )
    for name in columns:
        cells = columns[name]
        columns[name] = list(map(plain_cell, cells)) if name in _NEUTRALISED else [cell.strip() for cell in cells]
    return TextTable(columns, numbers, "line")


@contextmanager
def _opened(file: Path) -> Iterator[TextIO]:
    with file.open("rb") as stream:
        start = stream.read(3)
    encoding = "utf-16" if start[:2] in {codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE} else "utf-8-sig"
    # Bytes that are not UTF-8 are carried this far, so that their lines can be named.
    with file.open(
        encoding=encoding, errors="surrogateescape" if encoding == "utf-8-sig" else "strict", newline=""
    ) as text:
        yield text


def _sniff(stream: TextIO) -> dict[str, Any]:
    """How the table separates its cells, told by the header alone: what cuts it into most cells does."""
    headers: dict[str, list[str]] = {}
    for delimiter in _DELIMITERS:
        stream.seek(0)
        headers[delimiter] = next(csv.reader(stream, delimiter=delimiter), [])
    stream.seek(0)
    delimiter = max(_DELIMITERS, key=lambda each: len(headers[each]))
    # "path, label": whoever writes a blank after the comma in the header does so below, and means nothing by it.
    blank_after = any(cell.startswith(" ") for cell in headers[delimiter][1:])
    return {"delimiter": delimiter, "skipinitialspace": blank_after, "strict": True}


def read_parquet(file: Path, choose: ColumnChoice) -> TextTable:
    """Read a Parquet table that somebody else wrote; see `read_csv`.

    Raises:
        DataError: the file is damaged, or a column holds what is neither text nor numbers.
    """
    pa = require("pyarrow", extra="train", purpose="read Parquet")
    parquet = require("pyarrow.parquet", extra="train", purpose="read Parquet")
    try:
        with file.open("rb") as stream:
            reader = parquet.ParquetFile(stream)
            header = list(reader.schema_arrow.names)
            batch = next(reader.iter_batches(_NUM_SAMPLE_ROWS), None)
            sample = [[str(cell) for cell in row.values()] for row in batch.to_pylist()] if batch is not None else []
            places = choose(header, sample)
            table = reader.read(columns=[header[place] for place in places.values()])
        columns = {name: _as_text(file, header[place], table[header[place]]) for name, place in places.items()}
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"{file} is damaged or no Parquet file: {error}.", fix="get or make it again.") from error
    return TextTable(columns, range(1, table.num_rows + 1), "row")


def _as_text(file: Path, name: str, column: Any) -> list[str]:
    pa = require("pyarrow", extra="train", purpose="read Parquet")
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    simple = (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_null(kind)
    )
    if pa.types.is_floating(kind):
        # pandas turns whole numbers into floats where a column has a gap: 3.0 stands for 3.
        return ["" if value is None or value != value else f"{value:.17g}" for value in column.to_pylist()]
    if not simple:
        raise DataError(
            f"{file}: column {name!r} holds {kind}, which is neither text nor numbers.", fix="write it as text."
        )
    cells: list[str] = column.cast(kind).cast(pa.string()).fill_null("").to_pylist()
    return cells


def match_columns(
    file: Path,
    header: Sequence[str],
    sample: Sequence[Sequence[str]],
    columns: ColumnsConfig,
    extra: Iterable[str] = (),
) -> dict[str, int]:
    """The place of each column in use, by its standard name.

    Args:
        file: for the message.
        header: the names of the table's columns.
        sample: some rows, to guess which column is which.
        columns: what the columns are called.
        extra: standard names beyond those of `columns`, taken where they are there.

    Raises:
        DataError: the path or label column is missing, or one that was named; with the options that would mend it.
    """
    wanted = dict(columns)
    stated = {name for name in wanted if wanted[name] != getattr(ColumnsConfig(), name)}
    required = stated | {"path", "label"}
    if any(wanted[name] in header for name in ("xmin", "ymin", "xmax", "ymax")):
        required |= {"xmin", "ymin", "xmax", "ymax"}
    missing = [name for name in wanted if name in required and wanted[name] not in header]
    twice = [name for name in wanted if header.count(wanted[name]) > 1]
    if not missing and not twice:
        places = {name: header.index(column) for name, column in wanted.items() if column in header}
        return places | {name: header.index(name) for name in extra if name in header}
    problems = [f"no column {wanted[name]!r} (data.columns.{name})" for name in missing]
    problems += [f"column {wanted[name]!r} is there {header.count(wanted[name])} times" for name in twice]
    found = ", ".join(repr(column) for column in header)
    if any(_looks_like_image(cell) for cell in header):
        fix = "the first line looks like data: put a header line such as path,label above it."
    else:
        options = [
            "--set " + shlex.quote(f"data.columns.{name}={near}")
            for name in missing
            if (near := _nearest(name, wanted, header, sample))
        ]
        fix = (
            f"if that is what they mean: {' '.join(options)}"
            if options
            else "name them: --set data.columns.label=COLUMN"
        )
    raise DataError(f"{file} lacks columns that are needed; it has {found}.", problems=problems, fix=fix)


def _nearest(
    name: str, wanted: Mapping[str, str], header: Sequence[str], sample: Sequence[Sequence[str]]
) -> str | None:
    free = {column.lower(): column for column in header if column and column not in wanted.values()}
    for word in (wanted[name], name, *_SYNONYMS.get(name, ())):
        if word.lower() in free:
            return free[word.lower()]
    if name == "path":
        for place, column in enumerate(header):
            if column in free.values() and any(_looks_like_image(row[place]) for row in sample if place < len(row)):
                return column
    close = difflib.get_close_matches(wanted[name].lower(), free, n=1, cutoff=0.6)
    close = close or [column for column in free if name in column or (name == "label" and "class" in column)]
    return free[close[0]] if close else None


def _looks_like_image(cell: str) -> bool:
    return any(cell.lower().endswith(suffix) for suffix in IMAGE_SUFFIXES)
