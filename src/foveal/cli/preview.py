"""`foveal preview`: flags and printing; `api/preview.py` does the work."""

from pathlib import Path
from typing import Annotated

import typer

from foveal.cli.shell import (
    AsJson,
    Config,
    Debug,
    DryRun,
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
        "foveal preview photos --out grid.png --set augment.policy=medium",
        "foveal preview photos --out policies.png --policies --samples 6 --draws 3",
    )
)
def preview(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="Folder of class folders, or of train/val/test, or a table.")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The picture: .png, .jpg or .webp.")],
    samples: Annotated[int, typer.Option(metavar="N", help="Rows, drawn evenly from the classes.")] = 8,
    draws: Annotated[int, typer.Option(metavar="N", help="How often the policy is drawn for each sample.")] = 4,
    policies: Annotated[bool, typer.Option("--policies", help="Draw every policy, and no operation alone.")] = False,
    config: Config = None,
    overrides: Overrides = None,
    seed: Seed = None,
    as_json: AsJson = False,
    dry_run: DryRun = False,
    force: Annotated[bool, typer.Option("--force", help="Write over a picture that is there already.")] = False,
    debug: Debug = False,
) -> None:
    """What the augmentation does to real samples: the policy's own draws, and each of its operations alone."""
    with verb(debug):
        from foveal.api.preview import plan_preview
        from foveal.api.preview import preview as run

        settings = settings_of(overrides, seed, None)
        if dry_run:
            planned = plan_preview(
                data, out, config=config, overrides=settings, num_samples=samples, num_draws=draws, force=force
            )
            flags = {"--out": out, "--samples": samples, "--draws": draws, "--policies": policies}
            command = typed("preview", [data], {**flags, "--config": config, "--set": settings})
            finish(planned.to_dict(), as_json, [str(planned)], [command])
            return
        done = run(
            data,
            out,
            config=config,
            overrides=settings,
            num_samples=samples,
            num_draws=draws,
            all_policies=policies,
            force=force,
            progress=progress(),
        )
        instead = {"operations": "A list of operations", "albumentations": "A pipeline of albumentations"}
        what = instead.get(done.policy, f"Policy {done.policy}")
        lines = [f"{what}, {len(done.samples)} samples, {done.size_px} x {done.size_px} px:"]
        lines += [f"  {operation.name}: {operation}" for operation in done.operations] or ["  nothing is changed"]
        if done.num_unusable:
            lines.append(f"{done.num_unusable:,} of the samples looked at cannot be used; others took their place.")
        lines.append(f"Picture: {done.picture}")
        stated = {"augment.policy", "augment.operations", "augment.albumentations"}
        if not config and not any(setting.partition("=")[0].strip() in stated for setting in settings):
            settings = [f"augment.policy={done.policy}", *settings]
        finish(
            done.to_dict(),
            as_json,
            lines,
            [typed("train", [data], {"--out": "runs/first", "--config": config, "--set": settings})],
        )
