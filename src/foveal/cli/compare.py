"""`foveal compare`: flags and printing; `api/compare.py` does the work."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

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
    typed,
    verb,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from foveal.experiments.compare.result import Comparison


@app.command(
    epilog=examples(
        "foveal compare runs/small runs/large --out comparison",
        "foveal compare runs/small ensemble crossval --data photos2 --out on-photos2",
    )
)
def compare(
    models: Annotated[
        list[Path], typer.Argument(metavar="RUN_OR_BUNDLE...", help="Runs, bundles, folders of other verbs.")
    ],
    data: Annotated[
        str | None, typer.Option(metavar="DATA", help="Labelled images to evaluate all on; else those of the runs.")
    ] = None,
    split: Annotated[Literal["train", "val", "test"], typer.Option(help="Which split.")] = "test",
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where tables and page go.")] = Path("comparison"),
    timing: Annotated[bool, typer.Option("--timing/--no-timing", help="Measure latency and throughput.")] = True,
    config: Config = None,
    overrides: Overrides = None,
    seed: Seed = None,
    device: Device = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Quality, size, latency, training time, and whether the images can tell the models apart."""
    with verb(debug, goes_on=True):
        from foveal.api.compare import compare as run
        from foveal.api.compare import plan_comparison

        changes = overrides or ()
        if dry_run:
            planned = plan_comparison(models, data=data, split=split, out=out, config=config, overrides=changes)
            flags = {
                "--data": data, "--split": split, "--out": out, "--no-timing": not timing, "--config": config,
                "--set": overrides, "--seed": seed, "--device": device, "--force": force,
            }  # fmt: skip
            finish(planned.to_dict(), as_json, [str(planned)], [typed("compare", [*map(str, models)], flags)])
            return
        done = run(
            models,
            data=data,
            split=split,
            out=out,
            config=config,
            overrides=changes,
            device=device or "auto",
            seed=seed or 0,
            timing=timing,
            force=force,
            progress=progress(),
        )
        from foveal.report.compare_page import next_commands, sentences

        found = done.comparison
        lines = [
            found.headline,
            "",
            *_table(found),
            "",
            *(told for told in sentences(found) if told != found.headline),
            *found.notes,
        ]
        lines += [f"Report: {done.report}", f"Table: {done.folder / 'models.csv'}"]
        finish(done.to_dict(), as_json, lines, next_commands(found, done.folder))


def _table(comparison: "Comparison") -> list[str]:
    """The main columns, for a terminal."""
    from foveal.metrics import shown

    rows = [
        ["model", "accuracy", "95 % interval", "F1", "loss", "wrong", "parameters", "MiB", "ms", "images/s", "trained"],
        *(_cells(row) for row in comparison.rows),
    ]
    for each in comparison.repeated:
        accuracy, f1 = (f"{shown(each.mean[key])} ± {each.std[key]:.3f}" for key in ("accuracy", "macro_f1"))
        rows.append([each.name, accuracy, "", f1, *[""] * 7])
    return aligned(rows)


def _cells(row: "Mapping[str, Any]") -> list[str]:
    from foveal.metrics import shown
    from foveal.report.compare_page import amount, milliseconds

    bounds = row["confidence_intervals"].get("accuracy")
    rate, seconds = row["images_per_second_cpu"], row["train_wall_seconds"]
    return [
        row["name"],
        shown(row["accuracy"]),
        "" if bounds is None else f"[{shown(bounds[0])}, {shown(bounds[1])}]",
        shown(row["macro_f1"]),
        f"{row['log_loss']:.3f}",
        f"{row['num_wrong']:,}",
        amount(row["num_parameters"]),
        f"{row['bundle_mib']:.2f}",
        milliseconds(row["latency_cpu_p50_ms"]),
        "–" if rate is None else f"{rate:,.0f}",
        "–" if seconds is None else f"{seconds:,.0f} s",
    ]
