"""`foveal ensemble`: flags and printing; `api/ensemble.py` does the work."""

from pathlib import Path
from typing import Annotated, Literal

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
        "foveal ensemble runs/a runs/b runs/c --vote weighted --out ensemble",
        "foveal ensemble a/bundle b/bundle --data manifest.parquet --out ensemble",
    )
)
def ensemble(
    models: Annotated[list[Path], typer.Argument(metavar="RUN_OR_BUNDLE...", help="Runs, or bundles of one network.")],
    vote: Annotated[
        Literal["soft", "majority", "weighted"], typer.Option(help="How they come to one answer.")
    ] = "soft",
    data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Labelled images with val and test; those of the runs if not given."),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder; its bundle votes.")] = Path("ensemble"),
    config: Config = None,
    overrides: Overrides = None,
    seed: Seed = None,
    device: Device = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Many models, one bundle: fitted on validation, measured on test beside each of its members."""
    with verb(debug, goes_on=True):
        from foveal.api.ensemble import ensemble as run
        from foveal.api.ensemble import plan_ensemble

        settings = settings_of(overrides, seed, None)
        if dry_run:
            planned = plan_ensemble(models, vote=vote, data=data, config=config, overrides=settings)
            flags = {"--vote": vote, "--data": data, "--config": config, "--out": out, "--set": settings}
            finish(planned.to_dict(), as_json, [str(planned)], [typed("ensemble", [*map(str, models)], flags)])
            return
        done = run(
            models,
            out,
            vote=vote,
            data=data,
            config=config,
            overrides=settings,
            device=device or "auto",
            force=force,
            progress=progress(),
        )
        lines = [
            *aligned(done.table()),
            "",
            *done.outcome.sentences,
            f"Report: {done.report}",
            f"Bundle: {done.bundle}",
        ]
        finish(done.to_dict(), as_json, lines, [f"foveal predict {quoted(out)} PHOTOS --out predictions.csv"])
