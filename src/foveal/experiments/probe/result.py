"""What a probe comes to, and what was asked of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveal.errors import ArtifactError
from foveal.files import read_json
from foveal.run_folder import ExperimentFolder

Row = Mapping[str, Any]


@dataclass(frozen=True)
class ProbeTask:
    """What is to be tried.

    Attributes:
        backbones: names of the zoo; empty for that of the configuration.
        sizes: sides of the square in pixels; empty for that of the configuration.
        heads: names of `HEADS`.
        skipped: what is left out, each with why.
    """

    backbones: tuple[str, ...]
    sizes: tuple[int, ...]
    heads: tuple[str, ...]
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class ProbeOutcome:
    """What a probe came to.

    Attributes:
        rows: a head and size each: the keys of metrics.json on test, and facts of the fit.
        winner: the name of the row that validation chose.
        sentences: the verdict first.
        seconds: of features and fits, in all.
    """

    rows: Sequence[Row]
    winner: str
    sentences: Sequence[str]
    seconds: float

    @property
    def best(self) -> Row:
        """The winner's row."""
        return next(row for row in self.rows if row["name"] == self.winner)


def read_outcome(folder: ExperimentFolder) -> ProbeOutcome | None:
    """What a probe came to that has done all its work; None where it has not.

    Raises:
        ArtifactError: the summary is not what a probe writes.
    """
    if not folder.summary.is_file() or not (folder.bundle / "bundle.json").is_file():
        return None
    content = read_json(folder.summary)
    try:
        return ProbeOutcome(content["rows"], content["winner"], content["sentences"], content["seconds"])
    except (KeyError, TypeError) as error:
        raise ArtifactError(
            f"{folder.summary} does not hold what a probe writes.", fix="start anew with --force."
        ) from error


def run_name(backbone: str, size_px: int, head: str) -> str:
    """The name of a row, and of its folder."""
    return f"{backbone.replace(' ', '')}-{size_px}px-{head}"


def winner_folder(folder: ExperimentFolder, outcome: ProbeOutcome) -> Path:
    """The winner's run."""
    return folder.run(outcome.winner).path
