"""Processes timed from outside, and figures with their spread and their target."""

import json
import re
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any


class NotMeasuredError(Exception):
    """A part cannot be measured here; the message says why."""


@dataclass(frozen=True)
class Figure:
    """One figure over all rounds.

    Attributes:
        key: the part that it belongs to.
        name: what it is.
        values: one a round.
        at_least: the target, where it is a floor.
        at_most: the target, where it is a ceiling.
        unit: "x" for ratios, "s" for seconds, "" for counts.
        detail: what it was made of.
    """

    key: str
    name: str
    values: Sequence[float]
    at_least: float | None = None
    at_most: float | None = None
    unit: str = "x"
    detail: Mapping[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """met, MISSED, or nothing where there is no target; the median decides."""
        value = median(self.values)
        if self.at_least is None and self.at_most is None:
            return ""
        good = (self.at_least is None or value >= self.at_least) and (self.at_most is None or value <= self.at_most)
        return "met" if good else "MISSED"

    def row(self) -> str:
        """One row of the table."""
        low, high = min(self.values), max(self.values)
        spread = f"{self._shown(low)} to {self._shown(high)}" if len(self.values) > 1 else ""
        floor, ceiling = (f"at {word} {bound:g}" if bound is not None else ""
                          for word, bound in (("least", self.at_least), ("most", self.at_most)))  # fmt: skip
        cells = (self.key, self.name, self._shown(median(self.values)), spread, len(self.values), floor or ceiling)
        return f"| {' | '.join(str(cell) for cell in cells)} | {self.verdict} |"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        summary = {"median": median(self.values), "low": min(self.values), "high": max(self.values)}
        return {**asdict(self), **summary, "verdict": self.verdict}

    def _shown(self, value: float) -> str:
        if not self.unit:
            return f"{value:.0f}"
        return f"{value:.3g}" + (" s" if self.unit == "s" else "")


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Round by round, so that what slowed the machine down in a round slowed both sides."""
    return [one / other for one, other in zip(ours, theirs, strict=True)]


def run_json(command: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any]:
    """Run a command whose stdout ends with one JSON object.

    Raises:
        NotMeasuredError: it failed.
    """
    stdout = _run(command, environment).stdout
    found: dict[str, Any] = json.loads(stdout[stdout.index("{") :])
    return found


def seconds_of(command: Sequence[str], environment: Mapping[str, str]) -> float:
    """Wall seconds from start to end of a process."""
    started = time.perf_counter()
    _run(command, environment)
    return time.perf_counter() - started


def import_seconds(command: Sequence[str], environment: Mapping[str, str]) -> dict[str, float]:
    """The packages that a Python command imports, by `-X importtime`, with the seconds that their own modules take.

    A package's modules count for it whoever asks for them; the largest come first.
    """
    stderr = _run([command[0], "-X", "importtime", *command[1:]], environment).stderr
    seconds: Counter[str] = Counter()
    for own, name in re.findall(r"^import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)$", stderr, re.MULTILINE):
        seconds[name.partition(".")[0]] += int(own) / 1e6
    return dict(seconds.most_common())


def _run(command: Sequence[str], environment: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        last = (done.stderr.strip() or "no words").splitlines()[-1]
        raise NotMeasuredError(f"FAILED with exit code {done.returncode}: {' '.join(command)}: {last}")
    return done
