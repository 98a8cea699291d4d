"""`foveal probe`: flags and printing; `api/probe.py` does the work."""

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
    progress,
    settings_of,
    typed,
    verb,
)


@app.command(
    epilog=examples(
        "foveal probe photos --backbone resnet18 --out probe",
        "foveal probe photos --backbone resnet18,efficientnet_b0 --sizes 96,128 --heads logistic,knn --out probe2",
    )
)
def probe(
    data: Annotated[str, typer.Argument(metavar="DATA", help="Folder of class folders, or of splits, or a table.")],
    backbone: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="Frozen networks of the zoo; else model.name.")
    ] = None,
    sizes: Annotated[str | None, typer.Option(metavar="PX,...", help="Image sizes to try; else one.")] = None,
    heads: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="Of logistic, knn, svm, forest, xgboost; else all.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where table, page and bundle go.")] = Path("probe"),
    config: Config = None,
    overrides: Overrides = None,
    seed: Seed = None,
    device: Device = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Classical heads on a frozen backbone: the cheap baseline that fine-tuning has to beat."""
    with verb(debug, goes_on=True):
        from foveal.api.probe import plan_probe
        from foveal.api.probe import probe as run
        from foveal.errors import ConfigError

        backbones = [name.strip() for name in (backbone or "").split(",") if name.strip()]
        names = [name.strip() for name in (heads or "").split(",") if name.strip()]
        try:
            sides = [int(side) for side in (sizes or "").split(",") if side.strip()]
        except ValueError:
            raise ConfigError(f"--sizes {sizes}: expected whole numbers of pixels, as in --sizes 96,128.") from None
        settings = settings_of(overrides, seed, device)
        if dry_run:
            planned = plan_probe(
                data, out, backbone=backbones, sizes=sides, heads=names, config=config, overrides=settings
            )
            flags = {
                "--backbone": backbone, "--sizes": sizes, "--heads": heads, "--out": out, "--config": config,
                "--set": settings, "--force": force,
            }  # fmt: skip
            finish(planned.to_dict(), as_json, [str(planned)], [typed("probe", [data], flags)])
            return
        done = run(
            data,
            out,
            backbone=backbones,
            sizes=sides,
            heads=names,
            config=config,
            overrides=settings,
            force=force,
            progress=progress(),
        )
        lines = [*done.table(), *done.sentences, f"Report: {done.report}", f"Bundle: {done.bundle}"]
        finish(
            done.to_dict(),
            as_json,
            lines,
            done.next_commands[:2],
        )
