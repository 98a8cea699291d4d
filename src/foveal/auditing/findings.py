"""Findings: what an audit tells, one row each, with severity, evidence and the repair that `clean` would make."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from foveal.data.manifest import Manifest
from foveal.errors import ArtifactError
from foveal.extras import require
from foveal.files import atomic_writer, write_csv

Severity = Literal["blocking", "warning", "note"]
"""`blocking`: the test numbers would lie, or training cannot start; `warning`: look at it; `note`: good to know."""
SEVERITIES: tuple[Severity, ...] = get_args(Severity)

Repair = Literal["quarantine", "keep_one", "regroup", "move", "relabel", "merge_classes", "none"]
"""What `clean` would do by default; `none` where only a person can decide."""
REPAIRS: tuple[Repair, ...] = get_args(Repair)

COLUMNS: tuple[str, ...] = (
    *("finding", "severity", "sample_id", "path", "split", "label"),
    *("related_path", "related_split", "related_label", "value", "detail", "repair", "related_sample_id"),
)
"""The columns of findings.parquet and findings.csv; all text but `value`, a float."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found, about one sample, a pair of samples, a class or the data as a whole.

    Attributes:
        finding: its kind, one of `kinds.KINDS`.
        severity: how much it matters.
        repair: what `clean` would do by default.
        row: the sample's row in the manifest; None for findings about a class or the whole data.
        related_row: the other sample of a pair.
        label: the class, for findings about a class; that of `row` if not given.
        related_label: the other class (a suggested label, a class of nearly the same name); that of `related_row` if
            not given.
        split: for findings about a split; that of `row` if not given.
        value: the figure behind it; what it is stands in `kinds.KINDS`.
        detail: one plain sentence of evidence.
    """

    finding: str
    severity: Severity
    repair: Repair = "none"
    row: int | None = None
    related_row: int | None = None
    label: str | None = None
    related_label: str | None = None
    split: str | None = None
    value: float | None = None
    detail: str = ""


class FindingsTable:
    """Findings as they are written: plain values by column.

    Attributes:
        columns: name to values, in the order of `COLUMNS`, all of one length.
    """

    def __init__(self, columns: dict[str, list[Any]]) -> None:
        self.columns = {name: columns[name] for name in COLUMNS}

    @classmethod
    def of(cls, findings: Iterable[Finding], manifest: Manifest) -> "FindingsTable":
        """Fill in what the manifest knows of each sample; the most severe kinds first, else in the given order."""
        found = sorted(findings, key=lambda each: SEVERITIES.index(each.severity))
        samples = {name: manifest.column(name) for name in ("sample_id", "path", "split", "label")}

        def of_sample(name: str, row: int | None) -> Any:
            return None if row is None else samples[name][row]

        columns: dict[str, list[Any]] = {
            "finding": [each.finding for each in found],
            "severity": [each.severity for each in found],
            "sample_id": [of_sample("sample_id", each.row) for each in found],
            "path": [of_sample("path", each.row) for each in found],
            "split": [each.split or of_sample("split", each.row) for each in found],
            "label": [each.label if each.label is not None else of_sample("label", each.row) for each in found],
            "related_path": [of_sample("path", each.related_row) for each in found],
            "related_split": [of_sample("split", each.related_row) for each in found],
            "related_label": [
                each.related_label if each.related_label is not None else of_sample("label", each.related_row)
                for each in found
            ],
            "value": [each.value for each in found],
            "detail": [each.detail for each in found],
            "repair": [each.repair for each in found],
            "related_sample_id": [of_sample("sample_id", each.related_row) for each in found],
        }
        return cls(columns)

    def __len__(self) -> int:
        return len(self.columns["finding"])

    def rows(self, finding: str | None = None) -> list[dict[str, Any]]:
        """The findings of one kind, or all, as dictionaries."""
        places = [at for at, name in enumerate(self.columns["finding"]) if finding is None or name == finding]
        return [{name: values[at] for name, values in self.columns.items()} for at in places]

    def write(self, folder: Path) -> None:
        """Write findings.parquet and findings.csv.

        Raises:
            FovealError: the disk is full or the folder cannot be written.
        """
        pa = require("pyarrow", extra="train", purpose="write findings")
        parquet = require("pyarrow.parquet", extra="train", purpose="write findings")
        schema = pa.schema([(name, pa.float64() if name == "value" else pa.string()) for name in COLUMNS])
        with atomic_writer(folder / "findings.parquet") as stream:
            parquet.write_table(pa.table(self.columns, schema=schema), stream, compression="zstd")
        write_csv(folder / "findings.csv", COLUMNS, zip(*self.columns.values(), strict=True))

    @classmethod
    def read(cls, folder: Path) -> "FindingsTable":
        """Read what `write` wrote.

        Raises:
            ArtifactError: findings.parquet is missing, damaged or lacks a column.
        """
        pa = require("pyarrow", extra="train", purpose="read findings")
        parquet = require("pyarrow.parquet", extra="train", purpose="read findings")
        file = folder / "findings.parquet"
        again = "make it again: foveal audit DATA --out DIR"
        try:
            table = parquet.read_table(file)
        except FileNotFoundError as error:
            raise ArtifactError(f"{file} does not exist.", fix=f"give the folder of an audit, or {again}") from error
        except (OSError, pa.ArrowException) as error:
            raise ArtifactError(f"{file} is damaged or no Parquet file: {error}.", fix=again) from error
        missing = [name for name in COLUMNS if name not in table.column_names]
        if missing:
            raise ArtifactError(
                f"{file} is no table of findings.", problems=[f"no column {name!r}" for name in missing], fix=again
            )
        return cls({name: table[name].to_pylist() for name in COLUMNS})


def of_kind(findings: Sequence[Finding], name: str) -> list[Finding]:
    """The findings of one kind."""
    return [each for each in findings if each.finding == name]
