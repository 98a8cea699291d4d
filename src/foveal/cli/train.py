"""`foveal train`: flags and printing; `api/train.py` does the work."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

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
    headline,
    leak_lines,
    progress,
    quoted,
    settings_of,
    verb,
)


@app.command(
    epilog=examples(
        "foveal train photos --out runs/first",
        "foveal train table.csv --out runs/b --set data.columns.label=kind --set train.epochs=8",
    )
)
def train(
    data: Annotated[
        str | None, typer.Argument(metavar="DATA", help="Folder of class folders, or of train/val/test, or a table.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="RUN", help="The run folder.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out; needs no DATA.")] = False,
    config: Config = None,
    overrides: Overrides = None,
    seed: Seed = None,
    device: Device = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Fit, evaluate, report and bundle a classifier."""
    with verb(debug, out):
        from foveal.api.train import plan
        from foveal.api.train import train as run
        from foveal.errors import ConfigError

        settings = settings_of(overrides, seed, device)
        if dry_run:
            if data is None or resume:
                raise ConfigError("train --dry-run needs DATA, and no --resume.", fix="foveal train DATA --dry-run")
            planned = plan(data, config=config, overrides=settings)
            again = ["--config", str(config)] if config else []
            again += [word for setting in settings for word in ("--set", setting)]
            command = shlex.join(["foveal", "train", data, "--out", str(out or "RUN"), *again])
            finish(planned.to_dict(), as_json, [str(planned)], [command])
            return
        if out is None:
            raise ConfigError("train needs a run folder.", fix="add --out RUN, as in --out runs/first.")
        done = run(data, out, config=config, overrides=settings, resume=resume, force=force, progress=progress())
        lines = [headline(name, done.metrics[name]) for name in ("test", "val", "train")]
        lines += leak_lines(done.metrics["test"])
        finish(
            done.to_dict(),
            as_json,
            [*lines, f"Report: {done.report}", f"Bundle: {done.bundle}"],
            [f"foveal predict {quoted(out)} PHOTOS --out predictions.csv"],
        )
