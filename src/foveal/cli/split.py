"""`foveal split`: flags and printing; `api/split.py` does the work."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from foveal.cli.shell import (
    AsJson,
    Config,
    Debug,
    DryRun,
    Force,
    Overrides,
    Seed,
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
        "foveal split photos --out manifest.parquet",
        "foveal split eyes --out folds.parquet --folds 5 --group-by '(\\d+)_(left|right)' --per-class 200",
    )
)
def split(
    data: Annotated[
        str,
        typer.Argument(metavar="DATA", help="Folder of class folders, or of train/val/test, a table, or a manifest."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="MANIFEST", help="The manifest to write; samples of one that is there keep their places."),
    ] = None,
    folds: Annotated[int | None, typer.Option(metavar="K", help="Share all but test out into K folds.")] = None,
    group_by: Annotated[
        str | None,
        typer.Option(metavar="REGEX", help="Paths in which it captures the same text stay together."),
    ] = None,
    near_duplicates: Annotated[
        bool | None,
        typer.Option(
            "--near-duplicates/--no-near-duplicates", help="Whether near copies stay together; on unless told."
        ),
    ] = None,
    per_class: Annotated[
        int | None, typer.Option(metavar="N", help="A balanced subset: N images of each class.")
    ] = None,
    total: Annotated[int | None, typer.Option(metavar="N", help="A subset of N images in all.")] = None,
    like: Annotated[
        Path | None, typer.Option(metavar="MANIFEST", help="An earlier manifest whose samples keep their places.")
    ] = None,
    config: Config = None,
    overrides: Overrides = None,
    seed: Seed = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Share samples out: stratified, grouped, into splits or folds, all or a subset."""
    with verb(debug):
        from foveal.api.split import plan_split
        from foveal.api.split import split as run
        from foveal.errors import ConfigError

        if out is None:
            raise ConfigError("split needs a file to write.", fix="add --out manifest.parquet")
        settings = settings_of(overrides, seed, None)
        settings += _short_for(
            folds=folds, group_by=group_by, near_duplicates=near_duplicates, per_class=per_class, total=total
        )
        if dry_run:
            planned = plan_split(data, out, config=config, overrides=settings, like=like, force=force)
            again = _again(data, out, config, settings, like, force=force)
            unread = "No image was read: copies are not yet known, and numbers may change a little."
            finish(planned.to_dict(), as_json, [str(planned), unread], [again])
            return
        done = run(data, out, config=config, overrides=settings, like=like, force=force, progress=progress())
        finish(
            done.to_dict(),
            as_json,
            [str(done), f"Manifest: {done.manifest}"],
            [f"foveal train {quoted(out)} --out runs/first"],
        )


def _short_for(**flags: object) -> list[str]:
    """Flags as keys of the section; text in quotes, so that no letter of it means anything in YAML."""
    return [f"split.{name}={json.dumps(value)}" for name, value in flags.items() if value is not None]


def _again(
    data: str, out: Path, config: Path | None, settings: Sequence[str], like: Path | None, *, force: bool
) -> str:
    return typed(
        "split", [data], {"--out": out, "--config": config, "--set": settings, "--like": like, "--force": force}
    )
