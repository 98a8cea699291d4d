"""`foveal evaluate`: flags and printing; `api/evaluate.py` does the work."""

import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from foveal.cli.shell import (
    AsJson,
    Config,
    Debug,
    Device,
    DryRun,
    Overrides,
    Seed,
    app,
    examples,
    finish,
    headline,
    leak_lines,
    progress,
    quoted,
    verb,
)


@app.command(
    epilog=examples(
        "foveal evaluate runs/first --split val", "foveal evaluate runs/first/bundle photos2 --out evaluations/photos2"
    )
)
def evaluate(
    model: Annotated[Path, typer.Argument(metavar="RUN_OR_BUNDLE", help="A run folder or a bundle.")],
    data: Annotated[str | None, typer.Argument(metavar="DATA", help="Other labelled images to measure on.")] = None,
    split: Annotated[Literal["train", "val", "test"], typer.Option(help="Which split.")] = "test",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to write; the run itself if not given.")
    ] = None,
    config: Config = None,
    overrides: Overrides = None,
    seed: Seed = None,
    device: Device = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
    debug: Debug = False,
) -> None:
    """Measure with intervals, plots and worst errors; looks at a run's test split are counted."""
    with verb(debug):
        from foveal.api.evaluate import evaluate as run
        from foveal.api.evaluate import plan_evaluation

        changes = overrides or ()
        if dry_run:
            planned = plan_evaluation(model, data, split=split, out=out, config=config, overrides=changes)
            again = shlex.join(["foveal", "evaluate", str(model), *([data] if data else []), "--split", split])
            finish(planned.to_dict(), as_json, [str(planned)], [again])
            return
        done = run(
            model,
            data,
            split=split,
            out=out,
            config=config,
            overrides=changes,
            device=device or "auto",
            seed=seed,
            progress=progress(),
        )
        lines = [headline(split, done.metrics), *leak_lines(done.metrics), f"Written: {done.folder}"]
        if done.report:
            lines.append(f"Report: {done.report}")
        if split == "test" and done.num_looks > 1:
            lines.append(f"The test split has been looked at {done.num_looks} times; decide on validation instead.")
        finish(done.to_dict(), as_json, lines, [f"foveal predict {quoted(model)} PHOTOS --out predictions.csv"])
