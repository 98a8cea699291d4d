"""`foveal clean`: flags and printing; `api/clean.py` does the work."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from foveal.cli.shell import (
    AsJson,
    Debug,
    DryRun,
    app,
    examples,
    finish,
    progress,
    quoted,
    verb,
)


@app.command(
    epilog=examples(
        "foveal clean audits/photos --out clean.parquet",
        "foveal clean audits/photos --out clean.parquet --policy policy.yaml --relabel reviewed.csv",
    )
)
def clean(
    audit: Annotated[Path | None, typer.Argument(metavar="AUDIT_DIR", help="The folder of an audit.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="MANIFEST", help="The manifest to write; its log and policy go beside it.")
    ] = None,
    policy: Annotated[Path | None, typer.Option(metavar="FILE.yaml", help="What to do about each finding.")] = None,
    relabel: Annotated[
        Path | None,
        typer.Option(metavar="REVIEWED.csv", help="Labels that a person states: sample_id or path, corrected_label."),
    ] = None,
    write_policy: Annotated[
        Path | None, typer.Option("--write-policy", metavar="FILE.yaml", help="Write the policy to edit, and stop.")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one key of the policy; repeatable.")
    ] = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
    force: Annotated[bool, typer.Option("--force", help="Write over files that hold something else.")] = False,
    debug: Debug = False,
) -> None:
    """Repair what an audit found, by a written policy: a new manifest and a log. No image is touched."""
    with verb(debug):
        from foveal.api.clean import clean as run
        from foveal.api.clean import plan_clean
        from foveal.api.clean import write_policy as write
        from foveal.errors import ConfigError

        changes = overrides or ()
        folder, target = str(audit or "AUDIT_DIR"), str(out or "clean.parquet")
        if write_policy is not None:
            if out is not None or relabel is not None or dry_run:
                raise ConfigError("--write-policy writes a policy and nothing else.", fix="give it alone.")
            file = write(write_policy, policy=policy, overrides=changes, force=force)
            command = shlex.join(["foveal", "clean", folder, "--out", target, "--policy", str(file)])
            finish({"policy": str(file)}, as_json, [f"Written: {file}"], [command])
            return
        if audit is None:
            raise ConfigError("clean needs the folder of an audit.", fix="foveal clean AUDIT_DIR --out clean.parquet")
        if dry_run:
            planned = plan_clean(audit, target, policy=policy, overrides=changes, relabel=relabel)
            command = _again(folder, target, policy, relabel, changes)
            finish(planned.to_dict(), as_json, [*planned.lines(), f"writes to {planned.manifest}"], [command])
            return
        if out is None:
            raise ConfigError("clean needs a manifest to write.", fix="add --out clean.parquet")
        done = run(audit, out, policy=policy, overrides=changes, relabel=relabel, force=force, progress=progress())
        told = [f"Written: {path}" for path in done.written] or [f"{done.manifest} holds this already."]
        finish(done.to_dict(), as_json, [*done.lines(), *told], [f"foveal train {quoted(out)} --out runs/clean"])


def _again(folder: str, out: str, policy: Path | None, relabel: Path | None, changes: Sequence[str]) -> str:
    """The command of a dry run without the dry run."""
    words = ["foveal", "clean", folder, "--out", out]
    for flag, value in (("--policy", policy), ("--relabel", relabel), *(("--set", change) for change in changes)):
        words += [flag, str(value)] if value is not None else []
    return shlex.join(words)
