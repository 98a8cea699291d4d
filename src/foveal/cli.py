"""The command line: thin verbs over the functions of the same names.

Results go to stdout, everything else to stderr. Nothing heavy is imported before a verb runs: `--help` is quick.
"""

import json
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from foveal.errors import FovealError
from foveal.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

    from foveal.progress import Progress

app = typer.Typer(
    name="foveal",
    help="Labelled images to a classifier one can trust and ship: the number you read is the number you will get.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Config = Annotated[Path | None, typer.Option("--config", metavar="FILE.yaml", help="Configuration file.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one key of the configuration; repeatable."),
]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="Seed of every random draw.")]
Device = Annotated[Literal["auto", "cpu", "cuda", "mps"] | None, typer.Option("--device", help="Where to compute.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Force = Annotated[bool, typer.Option("--force", help="Start anew in a folder that is not empty.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"foveal {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version


@app.command(epilog="Examples:  foveal demo   |   foveal demo --out /tmp/digits --json")
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where images, run and predictions go.")] = Path("demo"),
    overrides: Overrides = None,
    seed: Seed = None,
    device: Device = None,
    as_json: AsJson = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """The whole job on real handwritten digits, with no network: train, evaluate, report, predict."""
    with _verb(debug):
        from foveal.api.demo import demo as run

        done = run(out, overrides=_settings(overrides, seed, device), force=force, progress=_progress())
        test = done.training.metrics["test"]
        _finish(
            done.to_dict(),
            as_json,
            [
                f"Test: {test.sentence()}.",
                f"Predictions of {done.prediction.num_ok} test images: {done.prediction.table}",
                f"Report: {done.training.report}",
            ],
            [
                f"foveal evaluate {done.training.run} --split val",
                f"foveal predict {done.training.run} {done.images / '7'} --out sevens.csv",
                f"foveal train {done.images} --out {out / 'run2'} --set model.name=mobilenetv3_small_100 "
                "--set model.weights=none --set data.image_size=32",
            ],
        )


@app.command(
    epilog="Examples:  foveal train photos --out runs/first   |   "
    "foveal train table.csv --out runs/b --set data.columns.label=kind --set train.epochs=8"
)
def train(
    data: Annotated[
        str | None, typer.Argument(metavar="DATA", help="Folder of class folders, or of train/val/test, or a table.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="RUN", help="The run folder.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out; needs no DATA.")] = False,
    config: Config = None,
    overrides: Overrides = None,
    seed: Seed = None,
    device: Device = None,
    as_json: AsJson = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved configuration and the plan.")] = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Fit, evaluate, report and bundle a classifier."""
    with _verb(debug):
        from foveal.api.train import plan
        from foveal.api.train import train as run
        from foveal.errors import ConfigError

        settings = _settings(overrides, seed, device)
        if dry_run:
            if data is None:
                raise ConfigError("train --dry-run needs DATA.", fix="foveal train DATA --dry-run")
            planned = plan(data, config=config, overrides=settings)
            print(json.dumps(planned.to_dict(), indent=2) if as_json else planned)
            return
        if out is None:
            raise ConfigError("train needs a run folder.", fix="add --out RUN, as in --out runs/first.")
        done = run(data, out, config=config, overrides=settings, resume=resume, force=force, progress=_progress())
        lines = [f"{name.capitalize()}: {done.metrics[name].sentence()}." for name in ("test", "val", "train")]
        _finish(
            done.to_dict(),
            as_json,
            [*lines, f"Report: {done.report}", f"Bundle: {done.bundle}"],
            [f"foveal predict {out} PHOTOS --out predictions.csv"],
        )


@app.command(
    epilog="Examples:  foveal evaluate runs/first --split val   |   foveal evaluate runs/first/bundle photos2 --out e"
)
def evaluate(
    model: Annotated[Path, typer.Argument(metavar="RUN_OR_BUNDLE", help="A run folder or a bundle.")],
    data: Annotated[str | None, typer.Argument(metavar="DATA", help="Other labelled images to measure on.")] = None,
    split: Annotated[Literal["train", "val", "test"], typer.Option(help="Which split.")] = "test",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to write; the run itself if not given.")
    ] = None,
    overrides: Overrides = None,
    seed: Seed = None,
    device: Device = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Measure with intervals, plots and worst errors; looks at a run's test split are counted."""
    with _verb(debug):
        from foveal.api.evaluate import evaluate as run

        done = run(
            model,
            data,
            split=split,
            out=out,
            overrides=overrides or (),
            device=device or "auto",
            seed=seed or 0,
            progress=_progress(),
        )
        lines = [f"{split.capitalize()}: {done.metrics.sentence()}.", f"Written: {done.folder}"]
        if done.report:
            lines.append(f"Report: {done.report}")
        if split == "test" and done.num_looks > 1:
            lines.append(f"The test split has been looked at {done.num_looks} times; decide on validation instead.")
        _finish(done.to_dict(), as_json, lines, [f"foveal predict {model} PHOTOS --out predictions.csv"])


@app.command(
    epilog="Examples:  foveal predict runs/first photos --out p.csv   |   "
    "ls *.jpg | foveal predict runs/first - --format jsonl"
)
def predict(
    model: Annotated[Path, typer.Argument(metavar="RUN_OR_BUNDLE", help="A run folder or a bundle.")],
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT...", help="Files, folders, globs, or - for a list on stdin.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Table to write: .csv, .jsonl or .parquet; stdout if not given.")
    ] = None,
    table_format: Annotated[
        Literal["csv", "jsonl", "parquet"] | None, typer.Option("--format", help="Where the ending does not say.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Images computed together.")] = 32,
    device: Device = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Classes and probabilities for any number of images, in order; a bad file fails in its own row."""
    with _verb(debug):
        from foveal.api.predict import predict as run
        from foveal.errors import ConfigError

        if as_json and out is None:
            raise ConfigError(
                "--json prints a summary, so the rows need a file.", fix="add --out, or use --format jsonl."
            )
        done = run(
            model,
            inputs,
            out=out,
            format=table_format,
            device=device or "auto",
            batch_size=batch_size,
            progress=_progress(),
        )
        if out is not None:
            lines = [
                f"{done.num_ok:,} images classified" + (f", {done.num_failed:,} failed" if done.num_failed else "")
            ]
            lines += [f"  {name}: {count:,}" for name, count in done.class_counts.items()]
            _finish(done.to_dict(), as_json, [*lines, f"Table: {out}"], [f"foveal evaluate {model}"])
        if done.num_failed and not done.num_ok:
            raise typer.Exit(1)


@app.command(epilog="Examples:  foveal models 'convnext*'   |   foveal models '*in22k*' --json")
def models(
    pattern: Annotated[str, typer.Argument(metavar="GLOB", help="Names to list.")] = "*",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Names of timm's zoo with parameters, licence of the weights, and whether they are on this machine."""
    with _verb(debug):
        from foveal.api.models import models as run

        found = run(pattern, progress=_progress())
        width = max(len(entry.name) for entry in found)
        lines = [f"{'model':<{width}}  {'parameters':>13}  {'px':>4}  {'at hand':<7}  licence of the weights"]
        for entry in found:
            at_hand = "yes" if entry.cached else "no"
            sizes = f"{entry.num_parameters:>13,}  {entry.image_size:>4}"
            lines.append(f"{entry.name:<{width}}  {sizes}  {at_hand:<7}  {entry.licence or '-'}")
        _finish(found.to_dict(), as_json, lines, [f"foveal train DATA --out RUN --set model.name={found[0].name}"])


def main() -> None:
    """Entry point of the `foveal` command."""
    app()


def _settings(overrides: Sequence[str] | None, seed: int | None, device: str | None) -> list[str]:
    """The flags that are short for configuration keys, as overrides after the others."""
    settings = list(overrides or ())
    if seed is not None:
        settings.append(f"seed={seed}")
    if device is not None:
        settings.append(f"train.device={device}")
    return settings


def _progress() -> "Progress":
    from foveal.progress import Terminal

    return Terminal()


def _finish(result: dict[str, Any], as_json: bool, lines: Sequence[str], next_commands: Sequence[str]) -> None:
    """Print what was written and what to type next; with --json the result alone."""
    if as_json:
        print(json.dumps(result, indent=2, ensure_ascii=False))
        return
    for line in lines:
        print(line)
    print("Next:" if len(next_commands) == 1 else "Try next:")
    for command in next_commands:
        print(f"  {command}")


@contextmanager
def _verb(debug: bool) -> "Iterator[None]":
    """Turn errors into one message on stderr and the exit code of their kind; no traceback for ours."""
    if hasattr(signal, "SIGTERM"):
        signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except FovealError as error:
        if debug:
            raise
        print(f"foveal: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        print("foveal: stopped.", file=sys.stderr)
        raise typer.Exit(128 + signal.SIGINT) from None
    except BrokenPipeError:
        # Whoever read our stdout has gone, as `head` does; nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(0) from None


def _terminate(number: int, frame: object) -> None:
    del frame
    raise SystemExit(128 + number)
