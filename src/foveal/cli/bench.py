"""`foveal bench`: flags and printing; `api/bench.py` does the work."""

from pathlib import Path
from typing import Annotated

import typer

from foveal.cli.shell import (
    AsJson,
    Debug,
    Device,
    DryRun,
    aligned,
    app,
    examples,
    finish,
    progress,
    quoted,
    typed,
    verb,
)


@app.command(
    epilog=examples(
        "foveal bench runs/first --threads 1,2 --batch-sizes 1,8,32",
        "foveal bench runs/first photos --export exports/first-int8 --out bench.json",
    )
)
def bench(
    model: Annotated[Path, typer.Argument(metavar="RUN_OR_BUNDLE", help="A run, a bundle or an exported model.")],
    inputs: Annotated[
        list[str] | None, typer.Argument(metavar="[INPUT]...", help="Images to time; the run's own if not given.")
    ] = None,
    engines: Annotated[
        list[str] | None,
        typer.Option("--engine", metavar="NAME", help="torch, torch_channels_last, onnx, ...; repeatable."),
    ] = None,
    exports: Annotated[
        list[Path] | None, typer.Option("--export", metavar="DIR", help="A further export, such as int8; repeatable.")
    ] = None,
    batch_sizes: Annotated[str, typer.Option(metavar="N,N", help="Images in a batch.")] = "1,8,32",
    threads: Annotated[
        str | None, typer.Option(metavar="N,N", help="Threads that compute; one and all if not given.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, metavar="N", help="Images timed one by one.")] = 300,
    seconds: Annotated[float, typer.Option(metavar="S", help="Time for that an engine; the same for batches.")] = 20.0,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="JSON file for the result.")] = None,
    device: Device = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
    debug: Debug = False,
) -> None:
    """Latency, throughput and memory on this machine, for every engine that is there."""
    with verb(debug):
        from foveal.api.bench import bench as run
        from foveal.api.bench import plan_bench
        from foveal.errors import ConfigError

        def numbers(text: str, flag: str) -> list[int]:
            parts = [part.strip() for part in text.split(",")]
            if not all(part.isascii() and part.isdigit() for part in parts):
                raise ConfigError(f"{flag} {text}: whole numbers with commas between them were expected.")
            return [int(part) for part in parts]

        settings = {
            "engines": engines or (),
            "exports": exports or (),
            "batch_sizes": numbers(batch_sizes, "--batch-sizes"),
            "threads": numbers(threads, "--threads") if threads else (),
            "samples": samples,
            "seconds": seconds,
            "device": device or "auto",
        }
        if dry_run:
            planned = plan_bench(model, inputs or (), **settings)  # type: ignore[arg-type]
            flags = {
                "--engine": engines, "--export": exports, "--batch-sizes": batch_sizes, "--threads": threads,
                "--samples": samples, "--seconds": seconds, "--out": out, "--device": device,
            }  # fmt: skip
            finish(planned.to_dict(), as_json, [str(planned)], [typed("bench", [str(model), *(inputs or ())], flags)])
            return
        done = run(model, inputs or (), out=out, progress=progress(), **settings)  # type: ignore[arg-type]
        lines = [*aligned(done.table()), "", *done.sentences(), *([f"Result: {out}"] if out else [])]
        finish(done.to_dict(), as_json, lines, [f"foveal serve {quoted(model)}"])
