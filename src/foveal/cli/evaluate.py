"""`foveal evaluate`: flags and printing; `api/evaluate.py` does the work."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

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
    typed,
    verb,
)

if TYPE_CHECKING:
    from foveal.api.results import EvaluateResult


@app.command(
    epilog=examples(
        "foveal evaluate runs/first --split val --tta flip --corrupt all",
        "foveal evaluate runs/first/bundle photos2 --out evaluations/photos2",
    )
)
def evaluate(
    model: Annotated[Path, typer.Argument(metavar="RUN_OR_BUNDLE", help="A run folder or a bundle.")],
    data: Annotated[str | None, typer.Argument(metavar="DATA", help="Other labelled images to measure on.")] = None,
    split: Annotated[Literal["train", "val", "test"], typer.Option(help="Which split.")] = "test",
    tta: Annotated[
        str,
        typer.Option(
            metavar="WAY", help="Also with test-time augmentation, and its gain: flip, dihedral, crops5 or N views."
        ),
    ] = "none",
    corrupt: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Also on corrupted images: all, or noise,blur,jpeg,... with commas."),
    ] = None,
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
            planned = plan_evaluation(
                model, data, split=split, tta=tta, corrupt=corrupt, out=out, config=config, overrides=changes
            )
            flags = {
                "--split": split, "--tta": None if tta == "none" else tta, "--corrupt": corrupt, "--out": out,
                "--config": config, "--set": overrides, "--seed": seed, "--device": device,
            }  # fmt: skip
            words = [str(model), *([data] if data else [])]
            finish(planned.to_dict(), as_json, [str(planned)], [typed("evaluate", words, flags)])
            return
        done = run(
            model,
            data,
            split=split,
            tta=tta,
            corrupt=corrupt,
            out=out,
            config=config,
            overrides=changes,
            device=device or "auto",
            seed=seed,
            progress=progress(),
        )
        lines = [headline(split, done.metrics), *leak_lines(done.metrics), *_lines_beyond(done)]
        folders = dict.fromkeys(each for each in (done.folder, done.tta_folder, done.robustness_folder) if each)
        lines += [f"Written: {folder}" for folder in folders]
        if done.report:
            lines.append(f"Report: {done.report}")
        if split == "test" and done.num_looks > 1:
            lines.append(f"The test split has been looked at {done.num_looks} times; decide on validation instead.")
        helps = done.tta is not None and done.tta.verdict == "better"
        views = f" --tta {done.tta.tta}" if helps and done.tta else ""
        finish(done.to_dict(), as_json, lines, [f"foveal predict {quoted(model)} PHOTOS{views} --out predictions.csv"])


def _lines_beyond(done: "EvaluateResult") -> list[str]:
    """The gain of test-time augmentation, and a table of accuracies by corruption and strength."""
    from foveal.metrics import shown
    from foveal.pixels.corruptions import NUM_STRENGTHS

    lines = [done.tta.sentence] if done.tta else []
    if done.robustness is None:
        return lines
    found, strengths = done.robustness, range(1, NUM_STRENGTHS + 1)
    lines.append("".join([f"{'strength':<12}{'0':>7}", *(f"{each:>7}" for each in strengths), f"{'mean':>8}"]))
    for curve in found.curves:
        values = [found.clean, *curve.by_strength]
        figures = "".join(f"{shown(value.accuracy):>7}" for value in values)
        lines.append(f"{curve.name:<12}{figures}{shown(curve.mean.accuracy):>8}")
    lines.append(
        f"Always saying the largest class would give {shown(found.guess)}; balanced accuracy (mean recall) is "
        f"{shown(found.clean.balanced_accuracy)} on the images as they are, {shown(found.mean.balanced_accuracy)} "
        "over all."
    )
    return [*lines, found.sentence]
