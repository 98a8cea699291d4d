"""`foveal extend`: flags and printing; `api/extend.py` does the work."""

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
    progress,
    quoted,
    settings_of,
    typed,
    verb,
)

if TYPE_CHECKING:
    from foveal.api.extend import Replay


@app.command(
    epilog=examples(
        "foveal extend runs/eight --data photos/two-more --out runs/ten",
        "foveal extend runs/eight --data more.csv --out runs/ten --replay 50 --distill 1",
    )
)
def extend(
    model: Annotated[Path, typer.Argument(metavar="RUN_OR_BUNDLE", help="The model that is to learn more classes.")],
    data: Annotated[
        str | None, typer.Option(metavar="DIR", help="Images of the new classes: class folders, or a table.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="RUN2", help="The new run folder.")] = None,
    replay: Annotated[
        str, typer.Option(metavar="all|N|none", help="Old training images of each class to train on again.")
    ] = "all",
    distill: Annotated[float, typer.Option(metavar="W", help="Weight of the old model's answers; 0 is off.")] = 0.0,
    old: Annotated[
        str | None, typer.Option(metavar="DATA", help="What the model was trained on, where it is a bundle.")
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
    """Add classes to a trained model, and say what they cost the old ones; the same command again goes on."""
    with verb(debug, goes_on=True):
        from foveal.api.extend import extend as run
        from foveal.api.extend import plan_extension
        from foveal.errors import ConfigError

        if data is None or (out is None and not dry_run):
            raise ConfigError(
                "extend needs the new images and a run folder.", fix="foveal extend RUN --data DIR --out RUN2"
            )
        amount, settings = _replay(replay), settings_of(overrides, seed, device)
        if dry_run or out is None:
            planned = plan_extension(
                model, data, out, old=old, replay=amount, distill=distill, config=config, overrides=settings
            )
            flags = {
                "--data": data, "--out": out or "RUN2", "--replay": None if amount == "all" else replay,
                "--distill": distill or None, "--old": old, "--config": config, "--set": settings, "--force": force,
            }  # fmt: skip
            finish(planned.to_dict(), as_json, [str(planned)], [typed("extend", [str(model)], flags)])
            return
        done = run(
            model,
            data,
            out,
            old=old,
            replay=amount,
            distill=distill,
            config=config,
            overrides=settings,
            force=force,
            progress=progress(),
        )
        lines = [*done.sentences, headline("test", done.metrics["test"])]
        written = [f"Page: {done.page}", f"Report: {done.report}", f"Bundle: {done.bundle}"]
        finish(
            done.to_dict(),
            as_json,
            [*lines, *written],
            [f"foveal predict {quoted(out)} PHOTOS --out predictions.csv"],
        )


def _replay(text: str) -> "Replay":
    from foveal.errors import ConfigError

    if text in {"all", "none"}:
        return text  # type: ignore[return-value]
    if text.isascii() and text.isdigit() and int(text) > 0:
        return int(text)
    raise ConfigError(f"--replay {text}: expected all, none, or a number of images of each class.")
