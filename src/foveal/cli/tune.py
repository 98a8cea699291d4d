"""`foveal tune`: flags and printing; `api/tune.py` does the work."""

import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

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
        "foveal tune photos --space space.yaml --trials 40 --out studies/first",
        "foveal tune photos --space space.yaml --sampler grid --out studies/grid --set train.epochs=8",
    )
)
def tune(
    data: Annotated[
        str | None, typer.Argument(metavar="DATA", help="Folder of class folders, or of train/val/test, or a table.")
    ] = None,
    space: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What varies: YAML with a line a configuration key.")
    ] = None,
    trials: Annotated[int | None, typer.Option(metavar="N", help="How many the study is to have in all.")] = None,
    out: Annotated[Path, typer.Option(metavar="STUDY", help="The folder; the same command goes on there.")] = Path(
        "study"
    ),
    hours: Annotated[
        float | None, typer.Option(metavar="H", help="For how long to work on trials; instead of --trials, or with it.")
    ] = None,
    sampler: Annotated[
        Literal["tpe", "random", "grid"] | None, typer.Option(help="How values are chosen; tpe if not given.")
    ] = None,
    pruner: Annotated[
        Literal["median", "asha", "none"] | None,
        typer.Option(help="How trials without hope are found and ended; median if not given."),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(metavar="URL", help="PostgreSQL database for workers on several machines, instead of SQLite."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the study in --out; needs no DATA and no --space.")
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
    """Search for better values, and compare the best with the default on the test split."""
    with verb(debug, goes_on=True):
        from foveal.api.tune import tune as run
        from foveal.api.tune import verdict_line

        settings = settings_of(overrides, seed, device)
        asked: dict[str, Any] = {"trials": trials, "hours": hours, "sampler": sampler, "pruner": pruner}
        if dry_run:
            _plan(None if resume else data, space, out, config, settings, asked, as_json=as_json)
            return
        done = run(
            data,
            out,
            space=space,
            storage=storage,
            resume=resume,
            config=config,
            overrides=settings,
            force=force,
            progress=progress(),
            **asked,
        )
        lines = [*aligned(done.table(), figures=False), "", *done.notes]
        following = [f"foveal tune --out {quoted(out)} --resume"]
        if done.end is not None:
            lines += [*done.end.sentences, verdict_line(done)]
            lines += [f"Report: {done.report}", f"Configuration: {done.end.config}", f"Bundle: {done.end.bundle}"]
            following = [
                f"foveal train {shlex.quote(str(data or 'DATA'))} --config {quoted(done.end.config)} --out RUN",
                f"foveal predict {quoted(done.end.bundle)} PHOTOS --out predictions.csv",
            ]
        finish(done.to_dict(), as_json, lines, following)


def _plan(
    data: str | None,
    space: Path | None,
    out: Path,
    config: Path | None,
    settings: list[str],
    asked: dict[str, Any],
    *,
    as_json: bool,
) -> None:
    """`tune --dry-run`."""
    from foveal.api.tune import plan_tune
    from foveal.errors import ConfigError

    if data is None or space is None:
        raise ConfigError(
            "tune --dry-run needs DATA and --space, and no --resume.", fix="foveal tune DATA --space FILE --dry-run"
        )
    planned = plan_tune(space, config=config, overrides=settings, **asked)
    flags = {"--space": space, "--out": out, **{f"--{name}": value for name, value in asked.items()}}
    command = typed("tune", [data], {**flags, "--config": config, "--set": settings})
    finish(planned.to_dict(), as_json, [str(planned)], [command])
