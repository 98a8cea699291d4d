"""`foveal clean`: from an audit to a repaired manifest, by a written policy."""

import html
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np

from foveal.auditing.clean import Cleaned
from foveal.auditing.clean import clean as apply
from foveal.auditing.findings import FindingsTable
from foveal.auditing.repair_policy import RepairPolicy, policy_yaml, read_policy
from foveal.auditing.repair_rows import LOG_COLUMNS
from foveal.auditing.reviewed import read_corrections
from foveal.data.manifest import Manifest
from foveal.errors import ArtifactError, ConfigError, FovealError
from foveal.files import to_json, write_csv, write_text
from foveal.progress import Progress, Silence
from foveal.types import SPLITS


@dataclass(frozen=True)
class CleanResult:
    """What a policy did.

    Attributes:
        manifest: the repaired manifest.
        log: a line for each row that changed, with what was, what is, and why.
        policy: what was applied, to be used again.
        actions: rows by action; a row may be there under several.
        num_rows: rows before and after.
        num_usable: those neither in quarantine nor dropped, before and after.
        splits: usable rows before and after, by split; "none" where there is none.
        classes: usable rows before and after, by class.
        num_left: findings by kind that the policy does nothing about.
        notes: what else is worth telling.
        written: the files that were written; none where the same lay there already, or nothing was to be written.
    """

    manifest: Path
    log: Path
    policy: Path
    actions: Mapping[str, int]
    num_rows: tuple[int, int]
    num_usable: tuple[int, int]
    splits: Mapping[str, tuple[int, int]]
    classes: Mapping[str, tuple[int, int]]
    num_left: Mapping[str, int]
    notes: tuple[str, ...]
    written: tuple[Path, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""

        def pairs(values: Mapping[str, tuple[int, int]]) -> dict[str, dict[str, int]]:
            return {name: {"before": before, "after": after} for name, (before, after) in values.items()}

        return {
            "manifest": str(self.manifest),
            "log": str(self.log),
            "policy": str(self.policy),
            "written": [str(path) for path in self.written],
            "actions": dict(self.actions),
            **pairs({"num_rows": self.num_rows, "num_usable": self.num_usable}),
            "splits": pairs(self.splits),
            "classes": pairs(self.classes),
            "num_left": dict(self.num_left),
            "notes": list(self.notes),
        }

    def lines(self) -> list[str]:
        """For a terminal: rows by action, then splits and classes before and after, then what is left."""
        done = ", ".join(f"{name} {count:,}" for name, count in self.actions.items()) or "nothing to do"
        lines = [f"rows      {done}", f"usable    {_change(self.num_usable)} of {_change(self.num_rows)} rows"]
        lines += [f"{name:<9} {_change(counts)}" for name, counts in self.splits.items()]
        changed = {name: counts for name, counts in self.classes.items() if counts[0] != counts[1]}
        shown = sorted(changed.items(), key=lambda item: item[1][1] - item[1][0])[:12]
        lines += [f"class     {name!r}: {_change(counts)}" for name, counts in shown]
        if len(changed) > len(shown):
            lines.append(f"          and {len(changed) - len(shown):,} more classes; --json has them all")
        if self.num_left:
            left = ", ".join(f"{kind} {count:,}" for kind, count in self.num_left.items())
            lines.append(f"left      {left}")
        return [*lines, *self.notes]

    def _repr_html_(self) -> str:
        head = "<tr><th></th><th>before</th><th>after</th></tr>"
        table = {"usable rows": self.num_usable, **self.splits, **{f"class {k}": v for k, v in self.classes.items()}}
        rows = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{before:,}</td><td>{after:,}</td></tr>"
            for name, (before, after) in table.items()
        )
        done = ", ".join(f"{name}: {count:,}" for name, count in self.actions.items()) or "nothing to do"
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        return f"<p><code>{html.escape(str(self.manifest))}</code>; {done}</p><table>{head}{rows}</table>{notes}"


@dataclass(frozen=True)
class _Prepared:
    cleaned: Cleaned
    policy: RepairPolicy
    result: CleanResult


def clean(
    audit: str | PathLike[str],
    out: str | PathLike[str],
    *,
    policy: RepairPolicy | Mapping[str, Any] | str | PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    relabel: str | PathLike[str] | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> CleanResult:
    """Apply a repair policy to what an audit found: a new manifest, and a log of every row that changed.

    No image is touched. The policy that was applied is written beside the manifest; used again, it changes nothing.

    Args:
        audit: the folder of an audit.
        out: the manifest to write, a `.parquet`; its log and its policy are written beside it.
        policy: a policy, its keys, or a YAML file of one; the defaults if not given.
        overrides: texts such as "near_duplicate=keep_one", on top of it.
        relabel: a reviewed CSV with `sample_id` or `path`, and `corrected_label` or `label`.
        force: whether to write over files that say something else.
        progress: where to show it.

    Raises:
        ConfigError: the policy names what does not exist, or `out` is an input or no `.parquet`.
        ArtifactError: the audit is missing or damaged, or `out` holds something else.
        DataError: the reviewed table has faults, or a class or split would be left without images.

    Example:
        >>> import foveal
        >>> foveal.clean("audits/photos", "clean.parquet")  # doctest: +SKIP
    """
    prepared = _prepare(audit, out, policy, overrides, relabel, progress or Silence())
    result, manifest, log = prepared.result, prepared.cleaned.manifest, prepared.cleaned.log
    _refuse_inputs(Path(audit), relabel, result)
    is_same, is_same_policy = _holds(result.manifest, manifest), _holds_policy(result.policy, prepared.policy)
    if not force and not is_same:
        _refuse_held([result.manifest, result.log, *([] if is_same_policy else [result.policy])])
    # A cleaned manifest that is cleaned again needs no repair, and an empty log must not take the place of the first.
    keeps = is_same and not force
    written: list[Path] = []
    if not is_same_policy and not (keeps and result.policy.exists()):
        origin = ["", f"Applied to the audit {to_json(fspath(audit))}"]
        origin += [f"with the labels of {to_json(fspath(relabel))}"] if relabel is not None else []
        write_text(result.policy, policy_yaml(prepared.policy, *origin))
        written.append(result.policy)
    if not (keeps and result.log.exists()):
        write_csv(result.log, LOG_COLUMNS, log)
        written.append(result.log)
    if not is_same:
        manifest.write(result.manifest)
        written.append(result.manifest)
    return replace(result, written=tuple(reversed(written)))


def plan_clean(
    audit: str | PathLike[str],
    out: str | PathLike[str] = "manifest.parquet",
    *,
    policy: RepairPolicy | Mapping[str, Any] | str | PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    relabel: str | PathLike[str] | None = None,
) -> CleanResult:
    """What `clean` would do; nothing is written.

    Raises:
        ConfigError: as `clean`.
        ArtifactError: as `clean`, but for what lies at `out`.
        DataError: as `clean`.
    """
    return _prepare(audit, out, policy, overrides, relabel, Silence()).result


def write_policy(
    file: str | PathLike[str],
    *,
    policy: RepairPolicy | Mapping[str, Any] | str | PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    force: bool = False,
) -> Path:
    """Write a policy with every key and its meaning, to be edited: the defaults if none is given.

    Raises:
        ConfigError: the policy names what does not exist.
        ArtifactError: the file exists.
    """
    path = Path(file)
    text = policy_yaml(read_policy(policy, overrides))
    if path.exists() and not force:
        raise ArtifactError(f"{path} exists.", fix="choose another name, or write over it by --force.")
    write_text(path, text)
    return path


def _prepare(
    audit: str | PathLike[str],
    out: str | PathLike[str],
    policy: RepairPolicy | Mapping[str, Any] | str | PathLike[str] | None,
    overrides: Sequence[str],
    relabel: str | PathLike[str] | None,
    progress: Progress,
) -> _Prepared:
    target, folder = Path(out), Path(audit)
    if target.suffix.lower() != ".parquet":
        raise ConfigError(f"clean writes a manifest, and {target} does not end in .parquet.", fix="--out clean.parquet")
    chosen = read_policy(policy, overrides)
    findings = FindingsTable.read(folder)
    manifest = Manifest.read(folder / "manifest.parquet")
    corrections = None
    if relabel is not None:
        corrections = read_corrections(Path(relabel), manifest, findings, chosen.new_classes)
        progress.say(f"{len(corrections.rows):,} labels are stated in {relabel}.")
    cleaned = apply(manifest, findings, chosen, corrections)
    actions = Counter(action for line in cleaned.log for action in line[LOG_COLUMNS.index("action")].split("; "))
    beside = target.parent
    result = CleanResult(
        manifest=target,
        log=beside / f"{target.stem}.log.csv",
        policy=beside / f"{target.stem}.policy.yaml",
        actions=dict(actions.most_common()),
        num_rows=(len(manifest), len(cleaned.manifest)),
        num_usable=(len(manifest.usable()), len(cleaned.manifest.usable())),
        splits=_paired(_split_counts(manifest), _split_counts(cleaned.manifest)),
        classes=_paired(_class_counts(manifest), _class_counts(cleaned.manifest)),
        num_left=cleaned.num_left,
        notes=cleaned.notes,
    )
    return _Prepared(cleaned, chosen, result)


def _split_counts(manifest: Manifest) -> dict[str, int]:
    codes = manifest.split_codes()[manifest.usable()]
    counts: dict[str, int] = {name: int((codes == code).sum()) for code, name in enumerate(SPLITS)}
    without = {"no split": int((codes < 0).sum())}
    return {name: count for name, count in {**counts, **without}.items() if count}


def _class_counts(manifest: Manifest) -> dict[str, int]:
    counts = np.bincount(manifest.label_ids()[manifest.usable()], minlength=len(manifest.class_names))
    return dict(zip(manifest.class_names, counts.tolist(), strict=True))


def _paired(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    return {name: (before.get(name, 0), after.get(name, 0)) for name in dict.fromkeys((*before, *after))}


def _change(counts: tuple[int, int]) -> str:
    before, after = counts
    return f"{after:,}" if before == after else f"{before:,} -> {after:,}"


def _holds(path: Path, manifest: Manifest) -> bool:
    """Whether a file holds this very manifest."""
    try:
        held = Manifest.read(path)
    except ArtifactError:
        return False
    is_same: bool = held.table.equals(manifest.table)
    return is_same and held.images_root == manifest.images_root and held.class_names == manifest.class_names


def _holds_policy(path: Path, policy: RepairPolicy) -> bool:
    try:
        return read_policy(path) == policy
    except FovealError:
        return False


def _refuse_inputs(audit: Path, relabel: str | PathLike[str] | None, result: CleanResult) -> None:
    """Nothing that was read is written over, whatever is forced."""
    read = [audit / name for name in ("manifest.parquet", "findings.parquet", "findings.csv")]
    read += [Path(relabel)] if relabel is not None else []
    known = {path.resolve() for path in read}
    for path in (result.manifest, result.log):
        if path.resolve() in known:
            raise ConfigError(f"{path} is read here, and would be written over.", fix="choose another --out.")


def _refuse_held(paths: Sequence[Path]) -> None:
    held = [path for path in paths if path.exists()]
    if held:
        raise ArtifactError(
            "There is already something where the result would go, and it is not the same.",
            problems=[f"{path} exists" for path in held],
            fix="choose another --out, or write over it by --force.",
        )
