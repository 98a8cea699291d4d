"""`foveal models`: flags and printing; `api/models.py` does the work."""

from typing import Annotated

import typer

from foveal.cli.shell import AsJson, Debug, app, examples, finish, progress, verb


@app.command(epilog=examples("foveal models 'convnext*'", "foveal models '*in22k*' --json"))
def models(
    pattern: Annotated[str, typer.Argument(metavar="GLOB", help="Names to list.")] = "*",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Names of timm's zoo with parameters, licence of the weights, and whether they are on this machine."""
    with verb(debug):
        from foveal.api.models import models as run
        from foveal.api.models import shown_count

        found = run(pattern, progress=progress())
        width = max(len(entry.name) for entry in found)
        lines = [f"{'model':<{width}}  {'parameters':>13}  {'px':>4}  {'at hand':<7}  licence of the weights"]
        for entry in found:
            at_hand = ("yes" if entry.cached else "no") if entry.licence else "-"
            sizes = f"{shown_count(entry.num_parameters):>13}  {entry.image_size:>4}"
            lines.append(f"{entry.name:<{width}}  {sizes}  {at_hand:<7}  {entry.licence or '-'}")
        finish(found.to_dict(), as_json, lines, [f"foveal train DATA --out RUN --set model.name={found[0].name}"])
