"""Progress that a person can watch, on stderr, or nothing at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Bar(Protocol):
    """One running count."""

    def advance(self, amount: int = 1, **fields: str) -> None:
        """Count on; `fields` replace the words shown beside the bar."""


class Progress(Protocol):
    """What a stage tells while it works."""

    @contextmanager
    def bar(self, description: str, total: int, unit: str) -> Iterator[Bar]:
        """Show a bar over `total` units for the length of the block; 0 where nobody knows how many will come."""
        ...

    def say(self, text: str) -> None:
        """Show one line that stays."""


class _SilentBar:
    def advance(self, amount: int = 1, **fields: str) -> None:
        del amount, fields


class Silence:
    """Shows nothing: the default of the Python functions."""

    @contextmanager
    def bar(self, description: str, total: int, unit: str) -> Iterator[Bar]:
        """Count for nobody."""
        del description, total, unit
        yield _SilentBar()

    def say(self, text: str) -> None:
        """Drop the line."""
        del text


class _RichBar:
    def __init__(self, progress: "object", task: int) -> None:
        self._progress, self._task = progress, task

    def advance(self, amount: int = 1, **fields: str) -> None:
        self._progress.update(self._task, advance=amount, **fields)  # type: ignore[attr-defined]


class Terminal:
    """Bars and lines by rich, on stderr, so that stdout stays free for results."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)

    @contextmanager
    def bar(self, description: str, total: int, unit: str) -> Iterator[Bar]:
        """A bar with the count, the rate and the time that is left."""
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn(unit),
            TextColumn("{task.fields[note]}", style="dim", markup=False),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        )
        # A log file wants lines, not a bar that is drawn over and over.
        is_shown = self._console.is_terminal
        with RichProgress(*columns, console=self._console, transient=True, disable=not is_shown) as progress:
            yield _RichBar(progress, progress.add_task(description, total=total or None, note=""))

    def say(self, text: str) -> None:
        """Print one line on stderr, markup off."""
        self._console.print(text, markup=False, soft_wrap=True)
