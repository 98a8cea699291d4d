"""`foveal explain`: flags and printing; `api/explain.py` does the work."""

from pathlib import Path
from typing import Annotated

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
    reasons,
    typed,
    verb,
)

MOST_INPUTS_NAMED = MOST_FAILURES_NAMED = 3


@app.command(
    epilog=examples(
        "foveal explain runs/first photos --out heatmaps",
        "foveal explain runs/first photo.jpg --out why7 --class 7 --method gradcam",
    )
)
def explain(
    model: Annotated[Path, typer.Argument(metavar="RUN_OR_BUNDLE", help="A run folder or a bundle.")],
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT...", help="Files, folders, globs, or - for a list on stdin.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for maps, overlays, table and page.")],
    method: Annotated[
        str,
        typer.Option(metavar="NAME", help="gradcam, gradcam++, hirescam, eigencam, rollout, or auto."),
    ] = "auto",
    class_name: Annotated[
        str | None, typer.Option("--class", metavar="NAME", help="Class to explain; the predicted one if not given.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="The most images to explain.")] = 200,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Compare some maps with those of random weights.")
    ] = True,
    device: Device = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Where in each picture the classifier looked: heatmaps, as arrays and laid over the pictures."""
    with verb(debug):
        from foveal.api.explain import explain as run
        from foveal.api.explain import plan_explanation

        if dry_run:
            planned = plan_explanation(
                model, inputs, out=out, method=method, class_name=class_name, limit=limit, device=device or "auto"
            )
            flags = {
                "--out": out, "--method": None if method == "auto" else method, "--class": class_name,
                "--limit": None if limit == 200 else limit, "--no-check": not check, "--device": device,
                "--force": force,
            }  # fmt: skip
            finish(planned.to_dict(), as_json, [str(planned)], [typed("explain", [str(model), *inputs], flags)])
            return
        done = run(
            model,
            inputs,
            out=out,
            method=method,
            class_name=class_name,
            limit=limit,
            check=check,
            device=device or "auto",
            force=force,
            progress=progress(),
        )
        failures = [(image.path, image.reason) for image in done.images if not image.is_ok]
        lines = [*done.sentences, *reasons(failures[:MOST_FAILURES_NAMED], done.num_failed)]
        lines += [f"Table: {done.table}", f"Page: {done.page}"]
        lines += [f"Contact sheet: {done.sheet}"] if done.sheet else []
        # A pattern that the shell has written out is not worth a page of names.
        named = inputs if len(inputs) <= MOST_INPUTS_NAMED else ["PHOTOS"]
        other = "gradcam" if done.method == "hirescam" else "auto"
        beside = {
            "--out": out.with_name(f"{out.name}-{other}"), "--method": other, "--class": class_name,
            "--limit": None if limit == 200 else limit, "--no-check": not check, "--device": device,
        }  # fmt: skip
        follow = [typed("explain", [str(model), *named], beside)] if done.num_ok else []
        finish(done.to_dict(), as_json, lines, follow)
        if done.num_failed and not done.num_ok:
            raise typer.Exit(1)
