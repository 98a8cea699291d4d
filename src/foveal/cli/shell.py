"""What the verbs of the command line share: the app, common options, printing, errors as messages and exit codes."""

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

from foveal.errors import FovealError, InterruptedRunError
from foveal.extras import missing_extra
from foveal.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
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
        typer.echo(f"foveal {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version


def examples(*commands: str) -> str:
    """The end of a verb's help; the mark keeps each command on a line of its own, ready to be copied."""
    return "Examples:\n\n\b\n" + "\n".join(f"  {command}" for command in commands)


def settings_of(overrides: Sequence[str] | None, seed: int | None, device: str | None) -> list[str]:
    """The flags that are short for configuration keys, as overrides after the others."""
    settings = list(overrides or ())
    if seed is not None:
        settings.append(f"seed={seed}")
    if device is not None:
        settings.append(f"train.device={device}")
    return settings


def progress() -> "Progress":
    """What a person at a terminal watches."""
    from foveal.progress import Terminal

    return Terminal()


def quoted(path: Path) -> str:
    """A path as it can be typed into a shell."""
    return shlex.quote(str(path))


def typed(verb: str, words: Sequence[str], flags: "Mapping[str, object]") -> str:
    """A command as it can be typed into a shell.

    Args:
        verb: of foveal.
        words: its arguments in order.
        flags: by name: a value, a list of values for a flag that is repeated, or True for one that has none; what is
            None, False or empty is left out.
    """
    line = ["foveal", verb, *words]
    for flag, value in flags.items():
        for each in value if isinstance(value, list | tuple) else [value]:
            if each is not None and each is not False and each != "":
                line += [flag] if each is True else [flag, str(each)]
    return shlex.join(line)


def aligned(table: Sequence[Sequence[str]], *, figures: bool = True) -> list[str]:
    """A table for the terminal, a line a row.

    Args:
        table: rows of as many cells each, the head first.
        figures: whether all columns but the first hold figures, and are flush right.
    """
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    sides = ["<", *[">" if figures else "<"] * (len(widths) - 1)]
    return [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)).rstrip()
        for row in table
    ]


def reasons(first: "Sequence[tuple[str, str]]", num_failed: int) -> list[str]:
    """Why files failed, a line a file; where there are more than `first`, the table names the others."""
    rest = num_failed - len(first)
    more = [f"  failed: {rest:,} more; the column `reason` of the table says why"] if rest else []
    return [*(f"  failed: {path}: {why}" for path, why in first), *more]


def headline(split: str, metrics: "SplitMetrics") -> str:
    """One split in a line: accuracy with its interval and the baseline, and the figure that rare classes count in."""
    from foveal.metrics import shown

    bounds = metrics.confidence_intervals.get("macro_f1")
    interval = f" [{shown(bounds[0])}, {shown(bounds[1])}]" if bounds else ""
    f1 = "" if metrics.macro_f1 is None else f"; macro F1 {shown(metrics.macro_f1)}{interval}"
    return f"{split.capitalize()}: {metrics.sentence()}{f1}."


def leak_lines(metrics: "SplitMetrics") -> list[str]:
    """The accuracy without images that have a copy in training; nothing where there are none."""
    from foveal.metrics import shown

    leakage = metrics.leakage
    if leakage is None or not leakage.num_test_images_with_siblings_in_train:
        return []
    number = leakage.num_test_images_with_siblings_in_train
    rest = "none is left" if leakage.accuracy_without_them is None else shown(leakage.accuracy_without_them)
    return [f"Without the {number:,} {metrics.split} images that have a copy in training, the accuracy is: {rest}."]


def finish(
    result: dict[str, Any],
    as_json: bool,
    lines: Sequence[str],
    next_commands: Sequence[str],
    stream: "TextIO | None" = None,
) -> None:
    """Print what was written and what to type next; with --json the result alone."""
    if as_json:
        typer.echo(json.dumps(result, indent=2, allow_nan=False))
        return
    head = ["Next:" if len(next_commands) == 1 else "Try next:"] if next_commands else []
    for line in (*lines, *head, *(f"  {each}" for each in next_commands)):
        typer.echo(line, file=stream)


class _Terminated(KeyboardInterrupt):
    """SIGTERM, on the same way out as Ctrl-C."""


@contextmanager
def verb(debug: bool, run: Path | None = None, *, goes_on: bool = False) -> "Iterator[None]":
    """Turn errors into one message on stderr and the exit code of their kind; no traceback for ours.

    Args:
        debug: whether to show the traceback all the same.
        run: the run folder of a training, which can be gone on with.
        goes_on: whether the same command goes on where it was stopped.
    """
    for standard in (sys.stdin, sys.stdout):
        if isinstance(standard, io.TextIOWrapper):
            standard.reconfigure(errors="surrogateescape")  # names of files need not be UTF-8
    with _terminable():
        try:
            yield
            sys.stdout.flush()
        except FovealError as error:
            if _is_of_an_interrupt(error):
                _fail(f"foveal: stopped.{_how_to_go_on(run, goes_on)}", 128 + signal.SIGINT, debug)
            _fail(f"foveal: {error}", error.exit_code, debug)
        except ModuleNotFoundError as error:
            if (missing := missing_extra(error)) is None:
                raise
            _fail(f"foveal: {missing}", missing.exit_code, debug)
        except KeyboardInterrupt as interrupt:
            number = signal.SIGTERM if isinstance(interrupt, _Terminated) else signal.SIGINT
            _fail(f"foveal: stopped.{_how_to_go_on(run, goes_on)}", 128 + number, debug)
        except BrokenPipeError:
            # Whoever read our stdout has gone, as `head` does; nothing more can be said to it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(0) from None
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            _fail(f"foveal: {place}{error.strerror or error}. --debug shows where it happened.", 1, debug)


def _is_of_an_interrupt(error: FovealError) -> bool:
    """Whether it is what Ctrl-C looks like to code that was importing a library in that moment."""
    if isinstance(error, InterruptedRunError):
        return False  # that says more of its own
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, KeyboardInterrupt):
        cause = cause.__cause__ or cause.__context__
    return cause is not None


def _fail(message: str, exit_code: int, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    typer.echo(message, err=True)
    raise typer.Exit(exit_code) from None


def _how_to_go_on(run: Path | None, goes_on: bool) -> str:
    if goes_on:
        return "\nWhat to do: the same command goes on where it stopped."
    if run is None:
        return ""
    if (run / "config.yaml").is_file():
        return f"\nWhat to do: go on with: foveal train --out {quoted(run)} --resume"
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
