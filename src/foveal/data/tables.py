"""From a CSV or Parquet table to a manifest; whatever is wrong with its rows is reported at once."""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foveal.data.class_names import name_classes
from foveal.data.config import DataConfig
from foveal.data.locate import ALLOW_OUTSIDE, IMAGE_SUFFIXES, Located, Root, locate
from foveal.data.manifest import BOX_COLUMNS, COLUMNS, Manifest, sample_ids
from foveal.data.table_cells import (
    Problems,
    cells_of,
    parse_boxes,
    parse_counts,
    parse_splits,
    parse_statuses,
    refuse_odd_text,
)
from foveal.data.table_files import TextTable, match_columns, read_csv, read_parquet
from foveal.errors import DataError


def read_table(file: Path, config: DataConfig, *, is_parquet: bool) -> tuple[Manifest, list[str]]:
    """Read a table of `path,label` and more; each row with a box is a sample of its own.

    A box without area becomes a quarantined row; all other faults are the table's own, and are reported together.

    Returns:
        The manifest and what is worth telling.

    Raises:
        DataError: columns are missing, or rows have faults: a label, file, number or split that is missing or wrong, a
            row that is there twice, one image with two labels, a path that leads out of the root.
    """

    def choose(header: Sequence[str], sample: Sequence[Sequence[str]]) -> dict[str, int]:
        # A manifest that was written as CSV brings more columns than other tables have.
        extra = set(COLUMNS) - set(type(config.columns).model_fields) if set(COLUMNS).issubset(header) else ()
        return match_columns(file, header, sample, config.columns, extra)

    table = (read_parquet if is_parquet else read_csv)(file, choose)
    if not len(table):
        raise DataError(f"{file} has a header and no rows.", fix="it needs a line for each image.")
    table = _named(table, config)
    if not len(table):
        raise DataError(f"{file} has no rows left: data.exclude_classes leaves all of its classes out.")
    problems = Problems(table)
    root = Root(Path(config.images_root or file.parent), allow_outside=config.allow_outside_root)
    columns: dict[str, Any] = {"label": table.columns["label"], "status": parse_statuses(table, problems)}
    columns["path"], advice = _find_images(file, table, columns["status"], root, problems)
    for name in ("label", "group"):
        refuse_odd_text(table, name, problems)
    for name in ("path", "label"):
        for row, text in enumerate(table.columns[name]):
            if not text.strip():
                problems.add(row, f"the {name} is missing")
    columns["split"] = parse_splits(table, problems)
    columns["fold"] = parse_counts(table, "fold", problems)
    columns |= _kept(table, problems)
    boxes, faults = parse_boxes(table, problems)
    columns["sample_id"] = sample_ids(columns["path"], boxes)
    _refuse_repetitions(columns, problems)
    if lines := problems.lines():
        raise DataError(
            f"{file} has {len(lines)} fault{'s' if len(lines) != 1 else ''}.",
            problems=lines,
            fix=advice or "mend the lines that are named, or take them out.",
        )
    corners = zip(*(box or (None,) * 4 for box in boxes), strict=True)
    columns |= dict(zip(BOX_COLUMNS, corners, strict=True))
    for row, fault in faults.items():
        if columns["status"][row] == "ok":
            columns["status"][row], columns["reason"][row] = "quarantined", fault
    notes = [f"{len(faults)} boxes hold no pixel; their rows were quarantined."] if faults else []
    return Manifest.build(Path(root.folder), **columns), notes


def _named(table: TextTable, config: DataConfig) -> TextTable:
    """The rows of the classes that stay, with their class names; a label that is missing is left for its report."""
    given = table.columns["label"]
    names = name_classes({label for label in given if label.strip()}, config)
    columns = dict(table.columns)
    numbers = table.numbers
    if None in names.values():
        kept = [row for row, label in enumerate(given) if names.get(label, label) is not None]
        columns = {name: [cells[row] for row in kept] for name, cells in columns.items()}
        numbers = [numbers[row] for row in kept]
    columns["label"] = [names.get(label) or "" for label in columns["label"]]
    return TextTable(columns, numbers, table.noun)


def _find_images(
    file: Path, table: TextTable, statuses: Sequence[str], root: Root, problems: Problems
) -> tuple[list[str], str]:
    """Each row's path as it is on disk, below the root; and what to do where many are not where the table says."""
    paths = list(table.columns["path"])
    odd = refuse_odd_text(table, "path", problems)
    rows = [row for row, path in enumerate(paths) if path.strip() and statuses[row] == "ok" and row not in odd]
    looked_for = [paths[row] for row in rows]
    located = locate(looked_for, root)
    for place, row in enumerate(rows):
        paths[row] = located.paths[place]
    if len(located.absent) == len(rows) > 3:
        problems.add(rows[0], f"{located.problems[0]}, and so with all {len(rows)} rows")
    else:
        for place, fault in located.problems.items():
            problems.add(rows[place], fault)
    return paths, path_advice(file.parent, looked_for, located, root)


def path_advice(folder: Path, paths: Sequence[str], located: Located, root: Root) -> str:
    """The setting that mends paths which are wrong all in the same way; empty where there is no such setting.

    Args:
        folder: where the table lies, and near it perhaps the images.
        paths: as they stand in the table.
        located: what became of them.
        root: where they were looked for.
    """
    if not located.problems:
        return ""
    bad = sorted({paths[place] for place in located.problems})
    if all(Path(path).is_absolute() for path in bad) and len(located.problems) == len(paths):
        return f"if the images are meant to be there: {_images_root(os.path.commonpath([Path(p).parent for p in bad]))}"
    if len(located.absent) < len(located.problems):
        return f"mend or take out the lines that are named; if such paths are meant: {ALLOW_OUTSIDE}"
    if len(located.absent) < len(paths):
        return ""
    for near in (Path.cwd(), folder, *sorted(entry for entry in folder.iterdir() if entry.is_dir())):
        if (near / paths[0]).is_file():
            return f"the images lie in another folder: {_images_root(near)}"
    for suffix in sorted(IMAGE_SUFFIXES):
        if Path(root.folder, paths[0] + suffix).is_file():
            return f"write whole file names: there is no {paths[0]!r}, but there is {paths[0] + suffix!r}."
    return f"the images are looked for in {root.folder}; if they are elsewhere: {_images_root('FOLDER')}"


def _images_root(folder: Path | str) -> str:
    return "--set " + shlex.quote(f"data.images_root={folder}")


def _refuse_repetitions(columns: dict[str, Any], problems: Problems) -> None:
    first: dict[str, int] = {}
    for row, identifier in enumerate(columns["sample_id"]):
        before = first.setdefault(identifier, row)
        if before == row or not columns["label"][row] or not columns["path"][row].strip():
            continue
        where, path = problems.name(before), columns["path"][row]
        labels = columns["label"][row], columns["label"][before]
        if labels[0] == labels[1]:
            problems.add(row, f"says the same as {where}: {path!r} is {labels[0]!r}")
        else:
            problems.add(row, f"{path!r} is {labels[0]!r} here and {labels[1]!r} in {where}")


def _kept(table: TextTable, problems: Problems) -> dict[str, Any]:
    """What a manifest that was written as CSV knows beyond other tables; unknown in those."""
    kept: dict[str, Any] = {name: parse_counts(table, name, problems) for name in ("width", "height")}
    for name in ("group", "mode", "sha256", "phash", "reason"):
        kept[name] = [text or None for text in cells_of(table, name)]
    return kept
