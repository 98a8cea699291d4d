"""Every error that foveal raises on purpose, in one tree.

```
FovealError            anything a user can mend; exit code 1
├── ConfigError        a key, value or flag is wrong; exit code 2
├── DataError          the images, labels or tables are not what the verb needs
├── ArtifactError      a run folder, bundle or checkpoint is missing, damaged or not ours
├── TrainingError      the training itself cannot go on (the loss is not finite, no memory is left)
├── InterruptedRunError  Ctrl-C or SIGTERM, after everything was saved; exit code 130 or 143
├── MissingExtraError  a part of foveal that is not installed is asked for
└── ExportError        an exported model could not be made or proven equal; exit code 4
```

A message says what was expected, what came, where (file, row, key) and what to do. All problems that one look can
find are reported at once, as `problems`.
"""

from collections.abc import Sequence

MAX_PROBLEMS_SHOWN = 25


class FovealError(Exception):
    """The root of the tree: catch this to catch everything that foveal raises on purpose.

    Args:
        message: what was expected and what came, one sentence.
        problems: one line each, where several were found at once ("row 7: ...", "optim.lr: ...").
        fix: what to do now, in words or as a command.
    """

    exit_code = 1

    def __init__(self, message: str, *, problems: Sequence[str] = (), fix: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.problems = tuple(problems)
        self.fix = fix

    def __str__(self) -> str:
        lines = [self.message]
        lines += [f"  - {problem}" for problem in self.problems[:MAX_PROBLEMS_SHOWN]]
        if len(self.problems) > MAX_PROBLEMS_SHOWN:
            lines.append(f"  ... and {len(self.problems) - MAX_PROBLEMS_SHOWN} more")
        if self.fix:
            lines.append(f"What to do: {self.fix}")
        return "\n".join(lines)


class ConfigError(FovealError):
    """A configuration key, a value or a command-line flag is wrong."""

    exit_code = 2


class DataError(FovealError):
    """The images, labels or tables are not what the verb needs."""


class ArtifactError(FovealError):
    """A run folder, bundle or checkpoint is missing, damaged, or was not made by foveal."""


class TrainingError(FovealError):
    """Training cannot go on: the loss is not finite, or no memory is left."""


class InterruptedRunError(FovealError):
    """A signal asked to stop, and everything was saved first.

    Args:
        message: where it stopped.
        signal_number: SIGINT or SIGTERM.
        fix: the command that goes on.
    """

    def __init__(self, message: str, *, signal_number: int, fix: str) -> None:
        super().__init__(message, fix=fix)
        self.exit_code = 128 + signal_number

    def reworded(self, *, fix: str, message: str | None = None) -> "InterruptedRunError":
        """The same stop as a verb tells it in which the run was one part."""
        return InterruptedRunError(
            self.message if message is None else message, signal_number=self.exit_code - 128, fix=fix
        )


class MissingExtraError(FovealError):
    """A part of foveal is asked for whose libraries are not installed."""


class ExportError(FovealError):
    """An exported model could not be made, or not be proven equal to the original."""

    exit_code = 4
