"""Processes timed from outside, and figures with their spread and their target."""

import json
import re
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
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
        unit: "x" for ratios, "s" for seconds, "GiB", "share" of 1, "" for counts.
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
        return f"{value:.3g}" + (f" {self.unit}" if self.unit in ("s", "GiB") else "")


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


@dataclass(frozen=True)
class Watched:
    """A process that was watched while it ran.

    Attributes:
        seconds: wall time from start to end.
        peak_bytes: the largest resident memory of it and its children together, and of each alone.
        stdout: what it printed.
    """

    seconds: float
    peak_bytes: int
    stdout: str


def watched(command: Sequence[str], environment: Mapping[str, str], allowed: Sequence[int] = (0,)) -> Watched:
    """Run a command and watch its memory, fifty times a second, by way of Linux' /proc.

    Pages that processes share count in each of them, and so do the pages of mapped files.

    Raises:
        NotMeasuredError: it ended with another exit code than the allowed ones, or there is no /proc.
    """
    if not Path("/proc/self/task").is_dir():
        raise NotMeasuredError("the memory of a process is read from /proc, which this system lacks")
    peak = 0
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        started = time.perf_counter()
        with subprocess.Popen(command, stdout=stdout, stderr=stderr, env=environment) as process:
            while process.poll() is None:
                peak = max(peak, _resident_bytes(process.pid))
                time.sleep(0.02)
        seconds = time.perf_counter() - started
        for stream in (stdout, stderr):
            stream.seek(0)
        said, complaints = stdout.read(), stderr.read()
    if process.returncode not in allowed:
        raise NotMeasuredError(_failure(command, process.returncode, complaints))
    return Watched(seconds, peak, said)


def _resident_bytes(pid: int) -> int:
    """Of a process and all below it: the sum of what they hold now, or the most that one of them ever held."""
    waiting, now, most = [pid], 0, 0
    while waiting:
        folder = Path("/proc") / str(waiting.pop())
        try:
            status = (folder / "status").read_text()
            waiting += [int(child) for task in (folder / "task").iterdir() for child in
                        (task / "children").read_text().split()]  # fmt: skip
        except OSError:
            continue  # it ended meanwhile
        sizes = {name: int(value) << 10 for name, value in re.findall(r"^(VmRSS|VmHWM):\s+(\d+) kB$", status, re.M)}
        now, most = now + sizes.get("VmRSS", 0), max(most, sizes.get("VmHWM", 0))
    return max(now, most)


def import_seconds(command: Sequence[str], environment: Mapping[str, str]) -> dict[str, float]:
    """The packages that a Python command imports, by `-X importtime`, with the seconds that their own modules take.

    A package's modules count for it whoever asks for them; the largest come first.
    """
    stderr = _run([command[0], "-X", "importtime", *command[1:]], environment).stderr
    seconds: dict[str, float] = defaultdict(float)
    for own, name in re.findall(r"^import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)$", stderr, re.MULTILINE):
        seconds[name.partition(".")[0]] += int(own) / 1e6
    return dict(sorted(seconds.items(), key=lambda each: -each[1]))


def _run(command: Sequence[str], environment: Mapping[str, str]) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise NotMeasuredError(_failure(command, done.returncode, done.stderr))
    return done


def _failure(command: Sequence[str], returncode: int, stderr: str) -> str:
    last = (stderr.strip() or "no words").splitlines()[-1]
    return f"FAILED with exit code {returncode}: {' '.join(command)}: {last}"
