"""Everything that an audit's page needs from its folder, read once and checked."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foveal.auditing.findings import FindingsTable
from foveal.data.manifest import Manifest
from foveal.extras import require
from foveal.report.audit_summary import Summary, Told, kind_of

COMPARED = ("wrong_label",)
"""Kinds about one sample that is to be compared with samples of its own and of another class."""


@dataclass(frozen=True)
class AuditContents:
    """An audit in memory, but for its images.

    Attributes:
        folder: where it lies.
        summary: what was counted, and what matters first.
        findings: one row a finding.
        manifest: all samples.
    """

    folder: Path
    summary: Summary
    findings: FindingsTable
    manifest: Manifest

    @classmethod
    def read(cls, folder: Path) -> "AuditContents":
        """Read what an audit wrote.

        Raises:
            ArtifactError: a file is missing, damaged or of a newer version.
            FovealError: summary.json is missing or not JSON.
        """
        return cls(
            folder=folder,
            summary=Summary.read(folder / "summary.json"),
            findings=FindingsTable.read(folder),
            manifest=Manifest.read(folder / "manifest.parquet"),
        )

    @cached_property
    def places(self) -> dict[str, list[int]]:
        """Kind to the rows of the findings table."""
        found: dict[str, list[int]] = {}
        for at, kind in enumerate(self.findings.columns["finding"]):
            found.setdefault(kind, []).append(at)
        return found

    @cached_property
    def told(self) -> list[Told]:
        """Every kind that was found, what matters first; also those that the summary leaves out."""
        told = [each for at, each in enumerate(self.summary.findings) if each.finding not in self._names_before(at)]
        names = {each.finding for each in told}
        columns = self.findings.columns
        return told + [
            Told(finding=kind, severity=columns["severity"][at[0]], num=len(at), repair=columns["repair"][at[0]])
            for kind, at in self.places.items()
            if kind not in names
        ]

    def _names_before(self, place: int) -> set[str]:
        return {each.finding for each in self.summary.findings[:place]}

    def about(self, kind: str) -> str:
        """What findings of a kind are about, by what is known of the kind, else by what its rows name."""
        known = kind_of(kind).about
        rows = self.places.get(kind, [])
        if kind in COMPARED or not rows or known in {"class", "split", "data"}:
            return known
        columns = self.findings.columns
        if columns["sample_id"][rows[0]] is None and columns["path"][rows[0]] is None:
            return "class"
        return "pair" if columns["related_path"][rows[0]] is not None else "sample"

    @cached_property
    def with_pictures(self) -> dict[str, Told]:
        """The kinds that are about samples or pairs of them, what matters first."""
        return {told.finding: told for told in self.told if self.about(told.finding) in {"pair", "sample"}}

    def rows_of(self, sample_ids: Sequence[str | None], paths: Sequence[str | None]) -> NDArray[np.int64]:
        """Rows of the manifest by sample id, else by path; int64, -1 where neither is in it."""
        pa, compute = (
            require(name, extra="train", purpose="write the page") for name in ("pyarrow", "pyarrow.compute")
        )
        rows = np.full(len(sample_ids), -1, dtype=np.int64)
        for name, values in (("path", paths), ("sample_id", sample_ids)):
            wanted = pa.array(values, pa.string())
            table = self.manifest.table[name].combine_chunks()
            found = compute.index_in(wanted, value_set=table, skip_nulls=True).fill_null(-1).to_numpy()
            rows = np.where(found >= 0, found, rows)
        return rows

    def is_named(self, kinds: Iterable[str]) -> NDArray[np.bool_]:
        """Whether each row of the manifest is the sample of a finding of these kinds, bool [n]."""
        pa, compute = (
            require(name, extra="train", purpose="write the page") for name in ("pyarrow", "pyarrow.compute")
        )
        ids = self.findings.columns["sample_id"]
        named = pa.array({ids[at] for kind in kinds for at in self.places.get(kind, []) if ids[at]}, pa.string())
        is_in = compute.is_in(self.manifest.table["sample_id"], value_set=named)
        return np.asarray(is_in.to_numpy(), dtype=np.bool_)
