"""`foveal export`: flags and printing; `api/export.py` does the work."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from foveal.cli.shell import (
    AsJson,
    Config,
    Debug,
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
    typed,
    verb,
)

if TYPE_CHECKING:
    from foveal.api.export_result import ExportResult


@app.command(
    epilog=examples(
        "foveal export runs/first --int8 --out exports/first-int8",
        "foveal export runs/first/bundle --data photos --to torchscript --out exports/first-ts",
    )
)
def export(
    model: Annotated[
        Path, typer.Argument(metavar="RUN_OR_BUNDLE", help="A run, a bundle, or an experiment with a bundle.")
    ],
    to: Annotated[Literal["onnx", "torchscript", "hub-folder"], typer.Option(help="Which kind of file.")] = "onnx",
    int8: Annotated[bool, typer.Option("--int8", help="Quantise, calibrated on training images; ONNX alone.")] = False,
    data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Labelled images to prove it on; the model's own if not given."),
    ] = None,
    split: Annotated[Literal["train", "val", "test"], typer.Option(help="Which split to prove it on first.")] = "test",
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the export, new or empty.")] = Path("export"),
    config: Config = None,
    overrides: Overrides = None,
    seed: Seed = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """One file that others can run, proven to say what the bundle says; exit 4 and no file where it does not."""
    with verb(debug):
        from foveal.api.export import export as run
        from foveal.api.export import plan_export

        changes = overrides or ()
        if dry_run:
            planned = plan_export(
                model, out, to=to, int8=int8, data=data, split=split, config=config, overrides=changes, seed=seed,
                force=force,
            )  # fmt: skip
            flags = {
                "--to": to, "--int8": int8, "--data": data, "--split": split, "--out": out, "--config": config,
                "--set": overrides, "--seed": seed, "--force": force,
            }  # fmt: skip
            finish(planned.to_dict(), as_json, [str(planned)], [typed("export", [str(model)], flags)])
            return
        done = run(
            model,
            out,
            to=to,
            int8=int8,
            data=data,
            split=split,
            config=config,
            overrides=changes,
            seed=seed,
            force=force,
            progress=progress(),
        )
        finish(done.to_dict(), as_json, _lines(done), _next(done))


def _lines(done: "ExportResult") -> list[str]:
    lines = [*aligned(done.parity_table()), "", *done.sentences()]
    if speed := done.speed_table():
        lines += ["", *aligned(speed), "", *done.verdict()]
    size = done.file.stat().st_size / 2**20
    return [
        *lines,
        "",
        f"Model: {done.file} ({size:.1f} MiB)",
        f"Proof: {done.folder / 'parity.json'}",
        f"Model card: {done.folder / 'README.md'}",
    ]


def _next(done: "ExportResult") -> list[str]:
    folder = quoted(done.folder)
    if done.to != "onnx":
        return [f"less {quoted(done.folder / 'README.md')}"]
    return [
        f"foveal serve {folder}",
        f"foveal predict {folder} PHOTOS --out predictions.csv",
        f"foveal bench {folder}",
    ]
