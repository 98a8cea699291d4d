"""Class names: from the ids of a data set to the names that people read, and the classes that are left out."""

import csv
import difflib
import io
import json
import re
import shlex
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from foveal.data.config import DataConfig
from foveal.data.table_files import numbered
from foveal.errors import DataError
from foveal.files import natural_key, plain_cell

_WHOLE_NUMBER = re.compile(r"(-?[0-9]+)(?:\.0+)?")  # pandas writes ids as 3.0 where a column had a gap
_FORMS = "one name a line; a CSV with the columns id,name; a JSON list of names; or a JSON object of id: name"


@dataclass(frozen=True)
class _NameTable:
    """Names by id. A mere list leaves open whether it counts from 0 or from 1."""

    file: Path
    by_id: Mapping[str, str]
    listed: tuple[str, ...] = ()

    @property
    def names(self) -> set[str]:
        return set(self.listed) | set(self.by_id.values())


def comparable(label: str) -> str:
    """A class name in the one Unicode form (NFC) in which names are compared and stored."""
    return unicodedata.normalize("NFC", label)


def name_classes(labels: Collection[str], config: DataConfig) -> dict[str, str | None]:
    """The class name of each label as it stands in the data; None where the class is left out.

    Args:
        labels: folder names, or what stands in a table's label column; repetitions are welcome.
        config: `class_names` and `exclude_classes` are looked at.

    Raises:
        DataError: the file of names is unusable or leaves labels without a name, or a class to leave out is not there.
    """
    distinct = sorted(set(labels), key=natural_key)
    names = {label: comparable(label) for label in distinct}
    if config.class_names is not None:
        names = _resolve(distinct, _read(Path(config.class_names)))
    excluded = {comparable(name) for name in config.exclude_classes}
    present = set(names.values())
    if excluded - present:
        raise DataError(
            "data.exclude_classes names what is no class of this data.",
            problems=[_no_such_class(name, present) for name in sorted(excluded - present, key=natural_key)],
            fix=f"the classes are {shortened(sorted(present, key=natural_key))}.",
        )
    return {label: None if name in excluded else name for label, name in names.items()}


def shortened(names: Sequence[str], limit: int = 12) -> str:
    """Names for a message: the first few, and how many more there are."""
    text = ", ".join(repr(name) for name in names[:limit])
    return text + (f" and {len(names) - limit} more" if len(names) > limit else "")


def exclude_option(names: Iterable[str]) -> str:
    """The option that leaves classes out, ready to be typed into a shell."""
    value = json.dumps(sorted(names, key=natural_key), ensure_ascii=False)
    return "--set " + shlex.quote(f"data.exclude_classes={value}")


def _no_such_class(name: str, present: Collection[str]) -> str:
    near = difflib.get_close_matches(name, present, n=1)
    return f"{name!r}" + (f"; did you mean {near[0]!r}?" if near else "")


def _read(file: Path) -> _NameTable:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"data.class_names: {file} cannot be read: {error.strerror}.", fix="check the path.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"data.class_names: {file} is not UTF-8 text.", fix="save it as UTF-8.") from error
    suffix = file.suffix.lower()
    if suffix == ".json":
        table = _from_json(file, text)
    elif suffix in {".csv", ".tsv"}:
        table = _from_csv(file, text)
    else:
        table = _from_lines(file, text)
    if not table.names:
        raise DataError(f"data.class_names: {file} holds no names.", fix=f"write {_FORMS}.")
    if "" in table.names:
        raise DataError(f"data.class_names: {file} holds an empty name.", fix="give every id a name.")
    return table


def _from_lines(file: Path, text: str) -> _NameTable:
    # Not splitlines(): that also breaks at form feeds and the like, which may stand in a name.
    lines = [line.strip() for line in re.split(r"\r\n|\r|\n", text.rstrip())]
    return _NameTable(file, {}, tuple(comparable(line) for line in lines) if text.strip() else ())


def _from_json(file: Path, text: str) -> _NameTable:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"data.class_names: {file} is not JSON: {error}.", fix="mend the place that is named."
        ) from error
    if isinstance(content, list) and all(isinstance(name, str) for name in content):
        return _NameTable(file, {}, tuple(comparable(name) for name in content))
    if isinstance(content, dict):
        values = list(content.values())
        if all(isinstance(name, str) for name in values):
            return _NameTable(file, {key: comparable(name) for key, name in content.items()})
        # The other way round, name: id, is how torchvision's class_to_idx is saved.
        if all(isinstance(number, int) and not isinstance(number, bool) for number in values):
            if len(set(values)) != len(values):
                raise DataError(f"data.class_names: {file} gives one id to two names.", fix="give each its own.")
            return _NameTable(file, {str(number): comparable(name) for name, number in content.items()})
    raise DataError(f"data.class_names: {file} is neither a list of names nor names by id.", fix=f"write {_FORMS}.")


def _from_csv(file: Path, text: str) -> _NameTable:
    first_line = text.partition("\n")[0]
    delimiter = max(",;\t", key=first_line.count)
    try:
        rows = [(row, line) for line, row in numbered(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))]
    except csv.Error as error:
        raise DataError(f"data.class_names: {file} is no CSV: {error}.", fix=f"write {_FORMS}.") from error
    header = [cell.strip().lower() for cell in rows[0][0]] if rows else []
    name_places = [place for place, cell in enumerate(header) if "name" in cell]
    id_places = [place for place, cell in enumerate(header) if "id" in cell and place not in name_places]
    id_places = id_places or [place for place in range(len(header)) if len(header) == 2 and place not in name_places]
    if len(name_places) != 1 or len(id_places) != 1:
        raise DataError(
            f"data.class_names: {file} needs a header with the columns id and name; it has {shortened(header)}.",
            fix="rename the columns, or add the header line id,name.",
        )
    by_id: dict[str, str] = {}
    problems: list[str] = []
    for row, line in rows[1:]:
        if len(row) != len(header):
            problems.append(f"line {line}: {len(row)} cells, and the header has {len(header)}")
            continue
        identifier, name = plain_cell(row[id_places[0]]).strip(), comparable(plain_cell(row[name_places[0]]))
        if by_id.setdefault(identifier, name) != name:
            problems.append(f"line {line}: id {identifier} is {name!r} here and {by_id[identifier]!r} before")
    if problems:
        raise DataError(f"data.class_names: {file} has lines that cannot be read.", problems=problems)
    return _NameTable(file, by_id)


def _resolve(labels: Sequence[str], table: _NameTable) -> dict[str, str]:
    by_id = table.by_id or _count_from(labels, table)
    if by_id is not None:
        by_number = {_number(key): name for key, name in by_id.items() if _number(key) is not None}
        resolved = {label: by_id.get(label) or by_number.get(_number(label)) for label in labels}
        missing = [label for label, name in resolved.items() if name is None]
        if not missing:
            complete = {label: name for label, name in resolved.items() if name is not None}
            _refuse_shared_names(complete, table.file)
            return complete
    else:
        missing = [label for label in labels if _number(label) is None]
    if table.names.issuperset(comparable(label) for label in labels):
        return {label: comparable(label) for label in labels}  # the labels are names already
    raise DataError(
        f"data.class_names: {table.file} names {len(table.names)} classes, and not every label is among them.",
        problems=[f"label {label!r} has no name" for label in missing],
        fix="add the names that are missing; a CSV with id,name leaves nothing open.",
    )


def _count_from(labels: Sequence[str], table: _NameTable) -> dict[str, str] | None:
    """Ids for a mere list of names: it counts from 0 or from 1, whichever the ids in use allow.

    Returns:
        The names by id, or None where the labels are no ids at all.
    """
    used = {number for label in labels if (number := _number(label)) is not None}
    if not used or any(_number(label) is None for label in labels):
        return None
    size = len(table.listed)
    starts = [start for start in (0, 1) if all(start <= number < start + size for number in used)]
    if len(starts) == 1:
        return {str(number): name for number, name in enumerate(table.listed, starts[0])}
    if not starts and set(table.listed).issuperset(labels):
        return None
    ids = f"ids from {min(used)} to {max(used)}"
    if starts:
        raise DataError(
            f"data.class_names: {table.file} lists {size} names and the data uses {ids}: "
            "whether the list counts from 0 or from 1 cannot be told.",
            fix="write a CSV with the columns id,name instead.",
        )
    outside = sorted(number for number in used if not 0 <= number < size)
    raise DataError(
        f"data.class_names: {table.file} lists {size} names, and the data uses {ids}.",
        problems=[f"id {number} has no name when counted from 0" for number in outside],
        fix="add the names that are missing, or write a CSV with the columns id,name.",
    )


def _refuse_shared_names(resolved: Mapping[str, str], file: Path) -> None:
    by_name: dict[str, list[str]] = {}
    for label, name in resolved.items():
        numbers = by_name.setdefault(name, [])
        if not any(_number(label) is not None and _number(label) == _number(other) for other in numbers):
            numbers.append(label)
    shared = {name: labels for name, labels in by_name.items() if len(labels) > 1}
    if shared:
        raise DataError(
            f"data.class_names: {file} gives one name to several ids, and their classes would become one.",
            problems=[f"{name!r} is the name of {', '.join(labels)}" for name, labels in shared.items()],
            fix="give each id a name of its own, such as 'crane (bird)' and 'crane (machine)'.",
        )


def _number(text: str | None) -> int | None:
    match = _WHOLE_NUMBER.fullmatch(text.strip()) if text is not None and len(text) < 20 else None
    return int(match[1]) if match else None
