"""`foveal audit`: what is in the data, and what is wrong with it."""

import html
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from foveal.api.opening import refuse_inside
from foveal.auditing.checks import Known, run_checks
from foveal.auditing.findings import Finding, FindingsTable
from foveal.auditing.look import look
from foveal.auditing.summary import summarise
from foveal.config import dump_yaml
from foveal.data.scan import ScanResult, scan
from foveal.errors import ArtifactError
from foveal.files import write_json, write_text
from foveal.progress import Progress, Silence
from foveal.training.config import Config, read_config

FILES = ("findings.parquet", "findings.csv", "summary.json", "manifest.parquet", "config.yaml", "report.html")
"""What an audit writes; summary.json last but for the page, so that a folder that has it is whole."""


@dataclass(frozen=True)
class AuditResult:
    """What an audit found.

    Attributes:
        folder: where findings.parquet and .csv, summary.json, manifest.parquet and report.html lie.
        summary: the content of summary.json.
        findings: one row a finding.
        report: the page to open.
    """

    folder: Path
    summary: Mapping[str, Any]
    findings: FindingsTable
    report: Path

    @property
    def is_blocking(self) -> bool:
        """Whether something was found that makes test numbers lie, or that training cannot start with."""
        return bool(self.summary["is_blocking"])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"folder": str(self.folder), "report": str(self.report), **self.summary}

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(each['severity'])}</td><td>{each['num']:,}</td>"
            f"<td>{html.escape(each['sentence'])}</td></tr>"
            for each in self.summary["findings"]
        )
        head = "<tr><th>severity</th><th>number</th><th>finding</th></tr>"
        return f"<p>Report <code>{html.escape(str(self.report))}</code></p><table>{head}{rows}</table>"


@dataclass(frozen=True)
class AuditPlan:
    """What `audit --dry-run` shows.

    Attributes:
        data: DATA as it was given.
        num_samples: rows, of which quarantined already.
        num_quarantined: those that reading the folders alone has ruled out.
        class_counts: rows of each class.
        folder: where the audit would go.
    """

    data: str
    num_samples: int
    num_quarantined: int
    class_counts: Mapping[str, int]
    folder: Path

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "data": self.data,
            "num_samples": self.num_samples,
            "num_quarantined": self.num_quarantined,
            "class_counts": dict(self.class_counts),
            "folder": str(self.folder),
        }

    def __str__(self) -> str:
        counts = ", ".join(f"{name}: {count:,}" for name, count in self.class_counts.items())
        lines = [
            f"data        {self.data}",
            f"samples     {self.num_samples:,}, of which {self.num_quarantined:,} cannot be used",
            f"classes     {counts}",
            f"writes to   {self.folder}",
        ]
        return "\n".join(lines)


@dataclass
class _Clock:
    """Wall seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - began


def audit(
    data: str | PathLike[str],
    out: str | PathLike[str] = "audit",
    *,
    config: Config | str | PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    force: bool = False,
    progress: Progress | None = None,
) -> AuditResult:
    """Decode every image once, look for all that makes test numbers lie, and write findings, figures and a page.

    No image is touched. What was learnt of each image is kept in the cache, so that a second audit and a training pay
    nothing for it again.

    Args:
        data: a folder of class folders, a folder of train/val/test, a table or a manifest.
        out: folder for the findings and the page.
        config: a configuration, or a YAML file of one; the defaults if not given.
        overrides: texts such as "audit.deep=true", applied on top.
        force: whether to write over an earlier audit.
        progress: where to show it; nowhere if not given.

    Raises:
        ConfigError: keys or values are wrong, or `out` lies in DATA.
        DataError: DATA is nothing of the kind, or a table with faults; all that can be found are named at once.
        ArtifactError: `out` holds other files, or an audit and `force` is not given, or cannot be written.
        MissingExtraError: a library of the extra `train`, or with `audit.deep` of `labels`, is not installed.

    Example:
        >>> import foveal
        >>> foveal.audit("photos", "audits/photos")  # doctest: +SKIP
    """
    progress, clock, folder = progress or Silence(), _Clock(), Path(out)
    chosen = read_config(config, overrides)
    _check_folder(folder, data, force=force)
    with clock.stage("scan"):
        scanned = scan(fspath(data), chosen.data, is_audit=True)
    set_aside = ~scanned.manifest.is_usable() if _is_manifest(scanned) else None
    with clock.stage("decode and compare"):
        looked = look(scanned.manifest, chosen.data, near_duplicates=chosen.audit.near_duplicates, progress=progress)
        looked = looked.without_sketches()
    manifest = looked.ingested.manifest
    known = Known(manifest, looked.ingested.facts, looked.clusters, looked.pairs, scanned.empty_classes, set_aside)
    with clock.stage("check"):
        outcome = run_checks(known, chosen.audit, seed=chosen.seed)
    with clock.stage("deep checks"):
        deep_findings, deep_checks = _deep(scanned, known, chosen, progress)
    findings = [*outcome.findings, *deep_findings]
    table = FindingsTable.of(findings, manifest)
    summary = summarise(
        known,
        outcome,
        findings,
        [*(each.summary() for each in outcome.checked), *deep_checks],
        data=fspath(data),
        data_format=scanned.format,
        notes=scanned.notes,
        seconds=clock.seconds,
        command=_command(fspath(data), folder, config, overrides),
    )
    return _write(folder, table, summary, known, chosen)


def plan_audit(
    data: str | PathLike[str],
    out: str | PathLike[str] = "audit",
    *,
    config: Config | str | PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    force: bool = False,
) -> AuditPlan:
    """What `audit` would look at; no image is opened and nothing is written.

    Raises:
        ConfigError: as `audit`.
        DataError: as `audit`.
        ArtifactError: as `audit`.
    """
    chosen, folder = read_config(config, overrides), Path(out)
    _check_folder(folder, data, force=force)
    manifest = scan(fspath(data), chosen.data, is_audit=True).manifest
    labels = manifest.label_ids()
    counts = {name: int((labels == place).sum()) for place, name in enumerate(manifest.class_names)}
    return AuditPlan(fspath(data), len(manifest), len(manifest) - len(manifest.usable()), counts, folder)


def _deep(
    scanned: ScanResult, known: Known, config: Config, progress: Progress
) -> tuple[Sequence[Finding], Sequence[Mapping[str, str]]]:
    """What a network finds, or why it was not asked."""
    if not config.audit.deep:
        why = "needs a network: add --deep."
        return (), [{"check": name, "status": "skipped", "detail": why} for name in ("off_domain", "wrong_label")]
    from foveal.experiments.deep_audit import audit_deeply

    result = audit_deeply(scanned, known.manifest, known.clusters, config, progress)
    return result.findings, result.checks


def _write(folder: Path, table: FindingsTable, summary: Mapping[str, Any], known: Known, config: Config) -> AuditResult:
    from foveal.report.audit_page import build_audit_page

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(f"{folder} cannot be made: {error.strerror}.", fix="choose another --out.") from error
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    table.write(folder)
    known.manifest.write(folder / "manifest.parquet")
    write_text(folder / "config.yaml", dump_yaml(config))
    write_json(folder / "summary.json", summary)
    return AuditResult(folder, summary, table, build_audit_page(folder))


def _check_folder(folder: Path, data: str | PathLike[str], *, force: bool) -> None:
    """Refuse to write among the images, over files that are not ours, or over an audit unless told to."""
    refuse_inside(folder, data)
    if folder.exists() and not folder.is_dir():
        raise ArtifactError(f"{folder} is a file.", fix="choose another --out.")
    held = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    if not held:
        return
    if "summary.json" not in held and held & set(FILES):
        raise ArtifactError(
            f"{folder} is no audit of foveal, and holds files that one would overwrite: "
            f"{', '.join(sorted(held & set(FILES)))}.",
            fix="choose another --out.",
        )
    if not force:
        what = "an audit already" if "summary.json" in held else f"other files: {', '.join(sorted(held)[:5])}"
        raise ArtifactError(f"{folder} holds {what}.", fix="choose another --out, or write over it by --force.")


def _is_manifest(scanned: ScanResult) -> bool:
    """Whether DATA knew its quarantine already: only a manifest brings hashes or rows set aside."""
    return scanned.format == "parquet" and bool(scanned.manifest.table["sha256"].null_count < len(scanned.manifest))


def _command(data: str, folder: Path, config: Any, overrides: Sequence[str]) -> str:
    words = ["foveal", "audit", data, "--out", str(folder)]
    words += ["--config", fspath(config)] if isinstance(config, str | PathLike) else []
    return shlex.join([*words, *(word for each in overrides for word in ("--set", each))])
