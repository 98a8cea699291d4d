"""`foveal audit`: flags and printing; `api/audit.py` does the work."""

from pathlib import Path
from typing import Annotated

import typer

from foveal.cli.lean import keep_pandas_out
from foveal.cli.shell import (
    AsJson,
    Config,
    Debug,
    Device,
    DryRun,
    Force,
    Overrides,
    Seed,
    app,
    examples,
    finish,
    progress,
    settings_of,
    typed,
    verb,
)


@app.command(
    epilog=examples("foveal audit photos --out audits/photos", "foveal audit boxes.csv --out audits/boxes --deep")
)
def audit(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Folder, table or manifest of labelled images.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where findings, manifest and page go.")] = Path("audit"),
    deep: Annotated[
        bool, typer.Option("--deep", help="Train a quick model to find wrong labels and foreign pictures, too.")
    ] = False,
    config: Config = None,
    overrides: Overrides = None,
    seed: Seed = None,
    device: Device = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """What is in the data and what is wrong with it; exit code 3 where something must be mended first."""
    with verb(debug):
        from foveal.api.audit import audit as run
        from foveal.api.audit import plan_audit

        keep_pandas_out()
        settings = [*settings_of(overrides, seed, device), *(["audit.deep=true"] if deep else [])]
        if dry_run:
            planned = plan_audit(data, out, config=config, overrides=settings, force=force)
            command = typed("audit", [data], {"--out": out, "--config": config, "--set": settings})
            finish(planned.to_dict(), as_json, [str(planned)], [command])
            return
        done = run(data, out, config=config, overrides=settings, force=force, progress=progress())
        from foveal.report.audit_summary import Summary
        from foveal.report.audit_words import next_steps, terminal_lines

        steps = next_steps(Summary.of(done.to_dict()), out)
        lines = [*terminal_lines(done.summary), f"Report: {done.report}", f"Findings: {out / 'findings.csv'}"]
        finish(done.to_dict(), as_json, lines, [step.command for step in steps])
        if done.is_blocking:
            raise typer.Exit(3)
