"""`foveal train`: flags and printing; `api/train.py` does the work."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    typed,
    verb,
)
from foveal.cli.sweep import run_sweep

if TYPE_CHECKING:
    from foveal.api.results import TrainResult


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
    check: Annotated[
        bool, typer.Option("--check", help="Ask of the set-up what a minute can tell; does not train.")
    ] = False,
    sweep: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=A,B,C", help="Train with each value of a key, or of train_images; repeatable."),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="N,N,N", help="Seeds to repeat each training of a sweep with.")
    ] = None,
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
    with verb(debug, None if sweep else out, goes_on=bool(sweep)):
        from foveal.api.train import plan
        from foveal.api.train import train as run
        from foveal.errors import ConfigError, InterruptedRunError
        from foveal.training.processes import place_told

        settings = settings_of(overrides, seed, device)
        if sweep or seeds:
            if check or resume:
                raise ConfigError("--sweep goes on by itself, and is not checked: leave out --resume and --check.")
            run_sweep(data, out, sweep or [], seeds, config, settings, as_json=as_json, dry_run=dry_run, force=force)
            return
        if check:
            _check(data, out, config, settings, resume=resume, dry_run=dry_run, as_json=as_json)
            return
        if dry_run:
            if data is None or resume:
                raise ConfigError("train --dry-run needs DATA, and no --resume.", fix="foveal train DATA --dry-run")
            planned = plan(data, config=config, overrides=settings)
            finish(planned.to_dict(), as_json, [str(planned)], [_command(data, out, config, settings)])
            return
        if out is None:
            raise ConfigError("train needs a run folder.", fix="add --out RUN, as in --out runs/first.")
        place = place_told()
        is_led = place is not None and not place.is_leader
        try:
            done = run(
                data,
                out,
                config=config,
                overrides=settings,
                resume=resume,
                force=force,
                progress=None if is_led else progress(),
            )
        except InterruptedRunError as stopped:
            if is_led:
                raise typer.Exit(stopped.exit_code) from None  # one of the processes speaks
            raise
        if is_led:
            return
        _finish(done, data, out, config, settings, as_json=as_json)


def _finish(
    done: "TrainResult", data: str | None, out: Path, config: Path | None, settings: list[str], *, as_json: bool
) -> None:
    lines = [headline(name, done.metrics[name]) for name in ("test", "val", "train")]
    lines += leak_lines(done.metrics["test"])
    following = [f"foveal predict {quoted(out)} PHOTOS --out predictions.csv", *_baseline(data, config, settings)]
    finish(done.to_dict(), as_json, [*lines, f"Report: {done.report}", f"Bundle: {done.bundle}"], following)


def _check(
    data: str | None,
    out: Path | None,
    config: Path | None,
    settings: list[str],
    *,
    resume: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """`train --check`: exit code 1 where something is broken."""
    from foveal.api.train import check
    from foveal.errors import ConfigError

    if data is None or resume or dry_run:
        raise ConfigError("train --check needs DATA, and no --resume or --dry-run.", fix="foveal train DATA --check")
    found = check(data, out, config=config, overrides=settings, progress=progress())
    written = [f"Written: {', '.join(map(str, found.files))}"] if found.files else []
    finish(found.to_dict(), as_json, [str(found), *written], [_command(data, None, config, settings)])
    if not found.ok:
        raise typer.Exit(1)


def _baseline(data: str | None, config: Path | None, settings: list[str]) -> list[str]:
    """The probe of the same backbone, which costs little, and which every fine-tuning has to beat."""
    if data is None:
        return []
    command = typed("probe", [data], {"--out": "probe", "--config": config, "--set": settings})
    return [f"{command}  # the cheap baseline that fine-tuning has to beat"]


def _command(data: str, out: Path | None, config: Path | None, settings: list[str]) -> str:
    """The training that was asked about, to be typed."""
    return typed("train", [data], {"--out": out or "RUN", "--config": config, "--set": settings})
