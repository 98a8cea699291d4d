"""The cells of a table as splits, numbers and boxes, with every fault noted under its line."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from foveal.data.folders import SPLIT_NAMES
from foveal.data.manifest import BOX_COLUMNS, STATUSES
from foveal.data.table_files import TextTable
from foveal.types import Box, Split

_LARGEST = 2**31 - 1
_UNKNOWN = frozenset({"", "nan", "na", "none", "null"})  # how tables of numbers spell a gap


class Problems:
    """What is wrong with a table, in its own numbering of lines or rows."""

    def __init__(self, table: TextTable) -> None:
        self._table = table
        self._found: list[tuple[int, str]] = []

    def add(self, row: int, text: str) -> None:
        """Note a fault of one row."""
        self._found.append((row, text))

    def name(self, row: int) -> str:
        """What a person calls the row, such as "line 7"."""
        return f"{self._table.noun} {self._table.numbers[row]}"

    def lines(self) -> list[str]:
        """One line a fault, in the order of the rows."""
        return [f"{self.name(row)}: {text}" for row, text in sorted(self._found, key=lambda found: found[0])]


def parse_statuses(table: TextTable, problems: Problems) -> list[str]:
    """Each row's status; ok where the table has none."""
    statuses = [text or "ok" for text in cells_of(table, "status")]
    for row, text in enumerate(statuses):
        if text not in STATUSES:
            problems.add(row, f"status {text!r} is neither {' nor '.join(STATUSES)}")
    return statuses


def parse_splits(table: TextTable, problems: Problems) -> list[Split | None]:
    """Each row's split, however it is spelled; None where the cell is empty."""
    known: dict[str, Split | None] = {"": None}
    result: list[Split | None] = []
    for row, text in enumerate(cells_of(table, "split")):
        if text not in known:
            split = SPLIT_NAMES.get(text.lower())
            if split is None:
                problems.add(row, f"split {text!r} is none of train, val, test")
                result.append(None)
                continue
            known[text] = split
        result.append(known[text])
    return result


def parse_counts(table: TextTable, name: str, problems: Problems) -> NDArray[np.float64]:
    """A column of whole numbers from 0 on, float64 [n]; NaN where unknown."""
    cells = cells_of(table, name)
    numbers = parse_numbers(cells, name, problems)
    for row in np.flatnonzero((numbers < 0) | (numbers != np.rint(numbers)) & ~np.isnan(numbers)).tolist():
        problems.add(row, f"{name}: {cells[row]!r} is no whole number from 0 on")
    return numbers


def parse_boxes(table: TextTable, problems: Problems) -> tuple[list[Box | None], dict[int, str]]:
    """Each row's box, rounded to whole pixels; and by row why a box holds no pixel.

    One bad box among thousands is a fact of the data, not a fault of the table: its row is to be quarantined.
    """
    if BOX_COLUMNS[0] not in table.columns:
        return [None] * len(table), {}
    numbers = np.empty((len(table), 4))
    given: NDArray[np.bool_] = np.empty((len(table), 4), dtype=np.bool_)
    for place, name in enumerate(BOX_COLUMNS):
        cells = table.columns[name]
        numbers[:, place] = parse_numbers(cells, name, problems)
        given[:, place] = [cell.lower() not in _UNKNOWN for cell in cells]
    num_given = np.count_nonzero(given, axis=1)
    for row in np.flatnonzero((num_given > 0) & (num_given < 4)).tolist():
        lacking = [name for place, name in enumerate(BOX_COLUMNS) if not given[row, place]]
        problems.add(row, f"the box lacks {', '.join(lacking)}")
    whole: NDArray[np.bool_] = np.count_nonzero(np.isnan(numbers), axis=1) == 0
    exact = numbers[whole]
    if exact.size and exact.max() <= 1.0 and (exact != np.rint(exact)).any():
        problems.add(
            int(np.flatnonzero(whole)[0]), "boxes lie between 0 and 1, as shares of the image; pixels are expected"
        )
    rounded = np.rint(np.where(whole[:, None], numbers, 0.0)).astype(np.int64)
    boxes: list[Box | None] = [
        (left, top, right, bottom) if there else None
        for (left, top, right, bottom), there in zip(rounded.tolist(), whole.tolist(), strict=True)
    ]
    flat = (rounded[:, 2] <= rounded[:, 0]) | (rounded[:, 3] <= rounded[:, 1])
    outside = (rounded[:, 2] <= 0) | (rounded[:, 3] <= 0)
    faults = {
        int(row): f"the box {boxes[row]} {'has no area' if flat[row] else 'lies outside of the image'}"
        for row in np.flatnonzero(whole & (flat | outside))
    }
    return boxes, faults


def parse_numbers(cells: Sequence[str], name: str, problems: Problems) -> NDArray[np.float64]:
    """Cells as numbers, float64 [n]; NaN where one is empty or, after its report, no number."""
    try:
        numbers = np.array([float(cell) if cell else np.nan for cell in cells], dtype=np.float64)
    except ValueError:
        numbers = np.array([_number(cell) for cell in cells], dtype=np.float64)
    bad = np.isnan(numbers) | (np.abs(numbers) > _LARGEST)
    for row in np.flatnonzero(bad).tolist():
        if cells[row].lower() not in _UNKNOWN:
            problems.add(row, f"{name}: {cells[row]!r} is {'no number' if np.isnan(numbers[row]) else 'too large'}")
    numbers[bad] = np.nan
    return numbers


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return float("nan")


def refuse_odd_text(table: TextTable, name: str, problems: Problems) -> set[int]:
    """Note, and return, the rows whose text cannot be kept: bytes that are not UTF-8, or NUL."""
    odd: set[int] = set()
    for row, cell in enumerate(table.columns.get(name, ())):
        if not cell.isascii() and not _is_utf8(cell):
            problems.add(row, f"the {name} is not UTF-8: {cell!r}; save the table as UTF-8")
            odd.add(row)
        elif "\0" in cell:
            problems.add(row, f"the {name} holds a NUL character: {cell!r}")
            odd.add(row)
    return odd


def _is_utf8(cell: str) -> bool:
    try:
        cell.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def cells_of(table: TextTable, name: str) -> Sequence[str]:
    """A column, or as many empty cells where the table has no such column."""
    return table.columns.get(name) or [""] * len(table)
