"""`foveal demo`: flags and printing; `api/demo.py` does the work."""

from pathlib import Path
from typing import Annotated

import typer

from foveal.cli.shell import (
    AsJson,
    Debug,
    Device,
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
    verb,
)


@app.command(epilog=examples("foveal demo", "foveal demo --out /tmp/digits --json"))
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where everything goes.")] = Path("demo"),
    overrides: Overrides = None,
    seed: Seed = None,
    device: Device = None,
    as_json: AsJson = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """The whole job on real handwritten digits, with no network: audit, train, evaluate, report, predict."""
    with verb(debug, out / "run"):
        from foveal.api.demo import demo as run

        done = run(out, overrides=settings_of(overrides, seed, device), force=force, progress=progress())
        test = done.training.metrics["test"]
        finish(
            done.to_dict(),
            as_json,
            [
                headline("test", test),
                f"Predictions of {done.prediction.num_ok} test images: {done.prediction.table}",
                f"Audit: {done.audit.report}",
                f"Report: {done.training.report}",
            ],
            [
                f"foveal evaluate {quoted(done.training.run)} --split val",
                f"foveal predict {quoted(done.training.run)} {quoted(done.images / '7')} --out sevens.csv",
                f"foveal train {quoted(done.images)} --out {quoted(out / 'run2')} "
                "--set model.name=mobilenetv3_small_100 --set model.weights=none --set data.image_size=32",
            ],
        )
