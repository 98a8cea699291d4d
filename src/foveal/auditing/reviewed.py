"""Labels that a person has stated: a reviewed CSV, such as findings.csv with corrections in it."""

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foveal.auditing.findings import FindingsTable
from foveal.data.class_names import comparable
from foveal.data.manifest import Manifest
from foveal.data.table_cells import Problems, refuse_odd_text
from foveal.data.table_files import TextTable, read_csv
from foveal.errors import DataError
from foveal.extras import require
from foveal.files import natural_key, plain_cell

CORRECTED = "corrected_label"


@dataclass(frozen=True)
class Corrections:
    """Stated labels, each row of the manifest once.

    Attributes:
        name: of the file.
        noun: what `numbers` count, "line".
        rows: int64 [corrections], rows of the manifest.
        labels: the label that was stated for each.
        numbers: int64 [corrections], where it stands in the file.
    """

    name: str
    noun: str
    rows: NDArray[np.int64]
    labels: tuple[str, ...]
    numbers: NDArray[np.int64]


def read_corrections(
    file: Path, manifest: Manifest, findings: FindingsTable, new_classes: Collection[str] = ()
) -> Corrections:
    """Read a CSV with `sample_id` or `path`, and `corrected_label` or else `label`.

    Where there is a column `corrected_label`, what is written in it counts and an empty cell says nothing. Else `label`
    counts; in a copy of findings.csv, only where it is not the label of the audit any more.

    Args:
        file: the reviewed table.
        manifest: of the audit.
        findings: of the audit.
        new_classes: names that are no class yet and are meant.

    Raises:
        DataError: the table cannot be read, or names samples or classes that do not exist, or two labels for a sample;
            all at once, with line numbers.
    """
    is_corrected = False

    def choose(header: Sequence[str], sample: Sequence[Sequence[str]]) -> dict[str, int]:
        nonlocal is_corrected
        del sample
        is_corrected = CORRECTED in header
        return _places(file, header)

    table = read_csv(file, choose)
    problems = Problems(table)
    for name in ("path", "label"):
        refuse_odd_text(table, name, problems)
    rows = _find(table, manifest, problems)
    known = {*manifest.class_names, *(name for name in findings.columns["label"] if name is not None)}
    known |= {comparable(name) for name in new_classes}
    audited = _AuditedLabels(manifest, findings) if "finding" in table.columns and not is_corrected else None
    stated = _stated(table, rows, known, audited, problems)
    if lines := problems.lines():
        raise DataError(
            f"{file} has {len(lines)} fault{'s' if len(lines) != 1 else ''}.",
            problems=lines,
            fix="mend the lines that are named; a class that is meant to be new is stated in the policy, as by "
            "--set 'new_classes=[NAME]'.",
        )
    chosen = sorted(stated)
    return Corrections(
        file.name,
        table.noun,
        np.array(chosen, dtype=np.int64),
        tuple(stated[row][0] for row in chosen),
        np.array([table.numbers[stated[row][1]] for row in chosen], dtype=np.int64),
    )


def _stated(
    table: TextTable,
    rows: Sequence[int | None],
    known: Collection[str],
    audited: "_AuditedLabels | None",
    problems: Problems,
) -> dict[int, tuple[str, int]]:
    """The label of each row that the table says something of, and where; `audited` is what says nothing new."""
    stated: dict[int, tuple[str, int]] = {}
    resolved: dict[str, str | None] = {}
    for place, (row, text) in enumerate(zip(rows, table.columns["label"], strict=True)):
        if row is None or not text.strip():
            continue
        label = resolved.setdefault(text, _class_of(text, known))
        if label is None:
            problems.add(place, f"no class {text!r}{_nearest(text, known)}")
            continue
        if audited is not None and label == audited(row):
            continue
        before = stated.setdefault(row, (label, place))
        if before[0] != label:
            problems.add(place, f"{label!r} here, and {before[0]!r} in {problems.name(before[1])} for the same sample")
    return stated


def _places(file: Path, header: Sequence[str]) -> dict[str, int]:
    wanted = [name for name in ("sample_id", "path", "finding") if name in header]
    label = CORRECTED if CORRECTED in header else "label"
    problems = [] if {"sample_id", "path"} & set(wanted) else ["no column 'sample_id' or 'path'"]
    problems += [] if label in header else [f"no column {CORRECTED!r} or 'label'"]
    problems += [f"column {name!r} is there {header.count(name)} times" for name in header if header.count(name) > 1]
    if problems:
        raise DataError(
            f"{file} is no table of reviewed labels; it has {', '.join(map(repr, header))}.",
            problems=list(dict.fromkeys(problems)),
            fix=f"write the right labels into a column {CORRECTED} of the audit's findings.csv.",
        )
    return {**{name: header.index(name) for name in wanted}, "label": header.index(label)}


def _find(table: TextTable, manifest: Manifest, problems: Problems) -> list[int | None]:
    """The row of the manifest that each line names; None where it names none, as findings about classes do."""
    ids, paths = table.columns.get("sample_id"), table.columns.get("path")
    by_id = _rows_by(manifest, "sample_id", [plain_cell(text) for text in ids or ()])
    by_path = _rows_by(manifest, "path", paths or ())
    result: list[int | None] = []
    for place in range(len(table)):
        identifier = plain_cell(ids[place]) if ids else ""
        path = paths[place] if paths else ""
        row = by_id.get(identifier, [None])[0]
        # A spreadsheet makes a number of an id such as 12345e6789012345; the path says what was meant.
        at_path = by_path.get(path, []) or by_path.get(comparable(path), [])
        if row is None and len(at_path) == 1:
            row = at_path[0]
        elif row is None and at_path:
            problems.add(
                place, f"{path!r} has {len(at_path)} samples, and the sample_id {identifier!r} is none of them"
            )
        elif row is None and (identifier or path.strip()):
            problems.add(place, f"no sample {identifier or path!r}")
        elif at_path and row not in at_path:
            problems.add(place, f"the sample_id {identifier!r} is not that of {path!r}")
        result.append(row)
    return result


def _rows_by(manifest: Manifest, name: str, wanted: Sequence[str]) -> Mapping[str, list[int]]:
    """The rows that have each of these values in a column."""
    pa = require("pyarrow", extra="train", purpose="read manifests")
    compute = require("pyarrow.compute", extra="train", purpose="read manifests")
    texts = {text for each in wanted for text in (each, comparable(each)) if text.isprintable() or _is_utf8(text)}
    column = manifest.table[name]
    places = np.flatnonzero(compute.is_in(column, value_set=pa.array(sorted(texts), pa.string())).to_numpy())
    found: dict[str, list[int]] = {}
    for row, text in zip(places.tolist(), column.take(places).to_pylist(), strict=True):
        found.setdefault(text, []).append(row)
    return found


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


class _AuditedLabels:
    """The label that each sample had in the audit: what its findings say, else the manifest."""

    def __init__(self, manifest: Manifest, findings: FindingsTable) -> None:
        columns = (findings.columns[name] for name in ("sample_id", "label"))
        self._of_id = {identifier: label for identifier, label in zip(*columns, strict=True) if identifier is not None}
        self._ids, self._labels = manifest.column("sample_id"), manifest.column("label")

    def __call__(self, row: int) -> str:
        return str(self._of_id.get(self._ids[row], self._labels[row]))


def _class_of(text: str, known: Collection[str]) -> str | None:
    forms = (text, comparable(text), comparable(text.strip()), comparable(plain_cell(text.strip())))
    return next((form for form in forms if form in known), None)


def _nearest(text: str, known: Collection[str]) -> str:
    by_lower = {name.lower(): name for name in sorted(known, key=natural_key)}
    near = difflib.get_close_matches(text.strip().lower(), by_lower, n=1, cutoff=0.6)
    return f"; did you mean {by_lower[near[0]]!r}?" if near else ""
