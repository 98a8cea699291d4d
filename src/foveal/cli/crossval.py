"""`foveal crossval`: flags and printing; `api/crossval.py` does the work."""

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
    aligned,
    app,
    examples,
    finish,
    progress,
    quoted,
    settings_of,
    typed,
    verb,
)


@app.command(
    epilog=examples(
        "foveal crossval photos --out crossval",
        "foveal crossval table.csv --folds 3 --repeats 2 --out cv --set train.epochs=8",
    )
)
def crossval(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="Folder of class folders, or of train/val/test, or a table.")
    ],
    folds: Annotated[
        int | None, typer.Option(metavar="K", help="Number of folds; DATA's own, or 5, if not given.")
    ] = None,
    repeats: Annotated[int, typer.Option(metavar="R", help="How often folds are drawn anew and trained.")] = 1,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder; the same command goes on there.")] = Path(
        "crossval"
    ),
    config: Config = None,
    overrides: Overrides = None,
    seed: Seed = None,
    device: Device = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Train a model a fold: mean ± std on held-out images, and the folds' vote on the kept-aside test."""
    with verb(debug, goes_on=True):
        from foveal.api.crossval import crossval as run
        from foveal.api.crossval import plan_crossval

        settings = settings_of(overrides, seed, device)
        if dry_run:
            planned = plan_crossval(data, folds=folds, repeats=repeats, config=config, overrides=settings)
            flags = {"--folds": folds, "--repeats": repeats if repeats > 1 else None, "--out": out}
            command = typed("crossval", [data], {**flags, "--config": config, "--set": settings})
            finish(planned.to_dict(), as_json, [str(planned)], [command])
            return
        done = run(
            data,
            out,
            folds=folds,
            repeats=repeats,
            config=config,
            overrides=settings,
            force=force,
            progress=progress(),
        )
        lines = [
            *aligned(done.table()),
            "",
            *done.outcome.sentences,
            f"Report: {done.report}",
            f"Bundle: {done.outcome.folder.bundle}",
        ]
        finish(
            done.to_dict(),
            as_json,
            lines,
            [f"foveal predict {quoted(out)} PHOTOS --out predictions.csv", f"foveal compare {quoted(out)} OTHER_RUN"],
        )
