"""`foveal predict`: flags and printing; `api/predict.py` does the work."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from foveal.cli.shell import (
    AsJson,
    Debug,
    Device,
    DryRun,
    Force,
    app,
    examples,
    finish,
    progress,
    quoted,
    reasons,
    typed,
    verb,
)


@app.command(
    epilog=examples(
        "foveal predict runs/first photos --out p.csv", "ls *.jpg | foveal predict runs/first - --format jsonl"
    )
)
def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A run, a bundle or an exported model.")],
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT...", help="Files, folders, globs, or - for a list on stdin.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Table to write: .csv, .jsonl or .parquet; stdout if not given.")
    ] = None,
    table_format: Annotated[
        Literal["csv", "jsonl", "parquet"] | None, typer.Option("--format", help="Where the ending does not say.")
    ] = None,
    tta: Annotated[
        str,
        typer.Option(metavar="WAY", help="Test-time augmentation: flip, dihedral, crops5 or N views of each image."),
    ] = "none",
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Images computed together.")] = 32,
    engine: Annotated[
        Literal["auto", "torch", "onnx"],
        typer.Option(help="What computes; auto: onnx for exported models, else torch."),
    ] = "auto",
    device: Device = None,
    force: Force = False,
    as_json: AsJson = False,
    dry_run: DryRun = False,
    debug: Debug = False,
) -> None:
    """Classes and probabilities for any number of images, in order; a bad file fails in its own row."""
    with verb(debug, goes_on=out is not None):
        from foveal.api.predict import plan_prediction
        from foveal.api.predict import predict as run
        from foveal.errors import ConfigError
        from foveal.exported.opening import is_export
        from foveal.run_folder import is_run_folder

        if dry_run:
            planned = plan_prediction(model, inputs, out=out, format=table_format, tta=tta)
            flags = {
                "--out": out, "--format": table_format, "--tta": None if tta == "none" else tta,
                "--engine": None if engine == "auto" else engine,
                "--batch-size": None if batch_size == 32 else batch_size, "--device": device,
            }  # fmt: skip
            finish(planned.to_dict(), as_json, [str(planned)], [typed("predict", [str(model), *inputs], flags)])
            return
        if as_json and out is None:
            raise ConfigError(
                "--json prints a summary, so the rows need a file.", fix="add --out, or use --format jsonl."
            )
        done = run(
            model,
            inputs,
            out=out,
            format=table_format,
            tta=tta,
            engine=engine,
            device=device or "auto",
            batch_size=batch_size,
            force=force,
            progress=progress(),
        )
        failed = f", {done.num_failed:,} failed" if done.num_failed else ""
        lines = [f"{done.num_ok:,} image{'s' if done.num_ok != 1 else ''} classified{failed}"]
        lines += [f"  {name}: {count:,}" for name, count in done.class_counts.items()]
        # On stdout each row has told its reason.
        lines += [*reasons(done.first_failures, done.num_failed), f"Table: {out}"] if out else []
        # Rows on stdout may be on their way into another program.
        stream = sys.stdout if out else sys.stderr
        other_data = "" if is_run_folder(model) else " DATA"
        follow = f"foveal serve {quoted(model)}" if is_export(model) else f"foveal evaluate {quoted(model)}{other_data}"
        finish(done.to_dict(), as_json, lines, [follow] if done.num_ok else [], stream)
        if done.num_failed and not done.num_ok:
            raise typer.Exit(1)
