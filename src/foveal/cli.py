"""The command line: thin verbs over the functions of the same names.

Results go to stdout, everything else to stderr. Nothing heavy is imported before a verb runs: `--help` is quick.
"""

import io
import json
import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from foveal.errors import FovealError
from foveal.extras import missing_extra
from foveal.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TextIO

    from foveal.metrics import SplitMetrics
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
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and write nothing.")]
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


def _examples(*commands: str) -> str:
    """The end of a verb's help; the mark keeps each command on a line of its own, ready to be copied."""
    return "Examples:\n\n\b\n" + "\n".join(f"  {command}" for command in commands)


@app.command(epilog=_examples("foveal demo", "foveal demo --out /tmp/digits --json"))
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
    with _verb(debug, out / "run"):
        from foveal.api.demo import demo as run

        done = run(out, overrides=_settings(overrides, seed, device), force=force, progress=_progress())
        test = done.training.metrics["test"]
        _finish(
            done.to_dict(),
            as_json,
            [
                _headline("test", test),
                f"Predictions of {done.prediction.num_ok} test images: {done.prediction.table}",
                f"Report: {done.training.report}",
            ],
            [
                f"foveal evaluate {_quoted(done.training.run)} --split val",
                f"foveal predict {_quoted(done.training.run)} {_quoted(done.images / '7')} --out sevens.csv",
                f"foveal train {_quoted(done.images)} --out {_quoted(out / 'run2')} "
                "--set model.name=mobilenetv3_small_100 --set model.weights=none --set data.image_size=32",
            ],
        )


@app.command(
    epilog=_examples(
        "foveal train photos --out runs/first",
        "foveal train table.csv --out runs/b --set data.columns.label=kind --set train.epochs=8",
    )
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
    dry_run: DryRun = False,
    force: Force = False,
    debug: Debug = False,
) -> None:
    """Fit, evaluate, report and bundle a classifier."""
    with _verb(debug, out):
        from foveal.api.train import plan
        from foveal.api.train import train as run
        from foveal.errors import ConfigError

        settings = _settings(overrides, seed, device)
        if dry_run:
            if data is None or resume:
                raise ConfigError("train --dry-run needs DATA, and no --resume.", fix="foveal train DATA --dry-run")
            planned = plan(data, config=config, overrides=settings)
            again = ["--config", str(config)] if config else []
            again += [word for setting in settings for word in ("--set", setting)]
            command = shlex.join(["foveal", "train", data, "--out", str(out or "RUN"), *again])
            _finish(planned.to_dict(), as_json, [str(planned)], [command])
            return
        if out is None:
            raise ConfigError("train needs a run folder.", fix="add --out RUN, as in --out runs/first.")
        done = run(data, out, config=config, overrides=settings, resume=resume, force=force, progress=_progress())
        lines = [_headline(name, done.metrics[name]) for name in ("test", "val", "train")]
        _finish(
            done.to_dict(),
            as_json,
            [*lines, f"Report: {done.report}", f"Bundle: {done.bundle}"],
            [f"foveal predict {_quoted(out)} PHOTOS --out predictions.csv"],
        )


@app.command(
    epilog=_examples(
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
    with _verb(debug):
        from foveal.api.evaluate import evaluate as run
        from foveal.api.evaluate import plan_evaluation

        changes = overrides or ()
        if dry_run:
            planned = plan_evaluation(model, data, split=split, out=out, config=config, overrides=changes)
            again = shlex.join(["foveal", "evaluate", str(model), *([data] if data else []), "--split", split])
            _finish(planned.to_dict(), as_json, [str(planned)], [again])
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
            progress=_progress(),
        )
        lines = [_headline(split, done.metrics), f"Written: {done.folder}"]
        if done.report:
            lines.append(f"Report: {done.report}")
        if split == "test" and done.num_looks > 1:
            lines.append(f"The test split has been looked at {done.num_looks} times; decide on validation instead.")
        _finish(done.to_dict(), as_json, lines, [f"foveal predict {_quoted(model)} PHOTOS --out predictions.csv"])


@app.command(
    epilog=_examples(
        "foveal predict runs/first photos --out p.csv", "ls *.jpg | foveal predict runs/first - --format jsonl"
    )
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
    dry_run: DryRun = False,
    debug: Debug = False,
) -> None:
    """Classes and probabilities for any number of images, in order; a bad file fails in its own row."""
    with _verb(debug):
        from foveal.api.predict import plan_prediction
        from foveal.api.predict import predict as run
        from foveal.errors import ConfigError
        from foveal.run_folder import is_run_folder

        if dry_run:
            planned = plan_prediction(model, inputs, out=out, format=table_format)
            again = shlex.join(["foveal", "predict", str(model), *inputs, *(["--out", str(out)] if out else [])])
            _finish(planned.to_dict(), as_json, [str(planned)], [again])
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
            device=device or "auto",
            batch_size=batch_size,
            progress=_progress(),
        )
        failed = f", {done.num_failed:,} failed" if done.num_failed else ""
        lines = [f"{done.num_ok:,} image{'s' if done.num_ok != 1 else ''} classified{failed}"]
        lines += [f"  {name}: {count:,}" for name, count in done.class_counts.items()]
        lines += [f"Table: {out}"] if out else []
        # Rows on stdout may be on their way into another program.
        stream = sys.stdout if out else sys.stderr
        other_data = "" if is_run_folder(model) else " DATA"
        _finish(done.to_dict(), as_json, lines, [f"foveal evaluate {_quoted(model)}{other_data}"], stream)
        if done.num_failed and not done.num_ok:
            raise typer.Exit(1)


@app.command(epilog=_examples("foveal models 'convnext*'", "foveal models '*in22k*' --json"))
def models(
    pattern: Annotated[str, typer.Argument(metavar="GLOB", help="Names to list.")] = "*",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Names of timm's zoo with parameters, licence of the weights, and whether they are on this machine."""
    with _verb(debug):
        from foveal.api.models import models as run
        from foveal.api.models import shown_count

        found = run(pattern, progress=_progress())
        width = max(len(entry.name) for entry in found)
        lines = [f"{'model':<{width}}  {'parameters':>13}  {'px':>4}  {'at hand':<7}  licence of the weights"]
        for entry in found:
            at_hand = "yes" if entry.cached else "no"
            sizes = f"{shown_count(entry.num_parameters):>13}  {entry.image_size:>4}"
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


def _quoted(path: Path) -> str:
    """A path as it can be typed into a shell."""
    return shlex.quote(str(path))


def _headline(split: str, metrics: "SplitMetrics") -> str:
    """One split in a line: accuracy with its interval and the baseline, and the figure that rare classes count in."""
    from foveal.metrics import shown

    bounds = metrics.confidence_intervals.get("macro_f1")
    interval = f" [{shown(bounds[0])}, {shown(bounds[1])}]" if bounds else ""
    f1 = "" if metrics.macro_f1 is None else f"; macro F1 {shown(metrics.macro_f1)}{interval}"
    return f"{split.capitalize()}: {metrics.sentence()}{f1}."


def _finish(
    result: dict[str, Any],
    as_json: bool,
    lines: Sequence[str],
    next_commands: Sequence[str],
    stream: "TextIO | None" = None,
) -> None:
    """Print what was written and what to type next; with --json the result alone."""
    if as_json:
        print(json.dumps(result, indent=2, allow_nan=False))
        return
    for line in (*lines, "Next:" if len(next_commands) == 1 else "Try next:", *(f"  {each}" for each in next_commands)):
        print(line, file=stream or sys.stdout)


class _Terminated(KeyboardInterrupt):
    """SIGTERM, on the same way out as Ctrl-C."""


@contextmanager
def _verb(debug: bool, run: Path | None = None) -> "Iterator[None]":
    """Turn errors into one message on stderr and the exit code of their kind; no traceback for ours.

    Args:
        debug: whether to show the traceback all the same.
        run: the run folder of a training, which can be gone on with.
    """
    for standard in (sys.stdin, sys.stdout):
        if isinstance(standard, io.TextIOWrapper):
            standard.reconfigure(errors="surrogateescape")  # names of files need not be UTF-8
    with _terminable():
        try:
            yield
            sys.stdout.flush()
        except FovealError as error:
            _fail(f"foveal: {error}", error.exit_code, debug)
        except ModuleNotFoundError as error:
            if (missing := missing_extra(error)) is None:
                raise
            _fail(f"foveal: {missing}", missing.exit_code, debug)
        except KeyboardInterrupt as interrupt:
            number = signal.SIGTERM if isinstance(interrupt, _Terminated) else signal.SIGINT
            _fail(f"foveal: stopped.{_how_to_go_on(run)}", 128 + number, debug)
        except BrokenPipeError:
            # Whoever read our stdout has gone, as `head` does; nothing more can be said to it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            _fail(f"foveal: {place}{error.strerror or error}. --debug shows where it happened.", 1, debug)


def _fail(message: str, exit_code: int, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    print(message, file=sys.stderr)
    raise typer.Exit(exit_code) from None


def _how_to_go_on(run: Path | None) -> str:
    if run is None:
        return ""
    if (run / "config.yaml").is_file():
        return f"\nWhat to do: go on with: foveal train --out {_quoted(run)} --resume"
    return "\nWhat to do: the same command begins again; what was decoded so far is kept."


@contextmanager
def _terminable() -> "Iterator[None]":
    """SIGTERM raises, so that files in the making are cleaned up."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals come to the main thread alone
        return
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(number: int, frame: object) -> None:
    del number, frame
    raise _Terminated
