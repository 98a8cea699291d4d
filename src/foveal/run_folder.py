"""Run and experiment folders: all that passes between stages, and who may write to them.

```
RUN/
  config.yaml  env.json  manifest.parquet  log.jsonl  metrics.csv  timings.json  model.txt  report.html
  checkpoints/{best,last}.ckpt   bundle/{bundle.json,model.safetensors}
  evaluation/looks.json          evaluation/SPLIT/{metrics.json,predictions.parquet,heatmaps.json,plots/*.svg}
```
"""

import csv
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from foveal.errors import ArtifactError, ConfigError
from foveal.file_lock import locked
from foveal.files import read_json, to_json, write_json

_PACKAGES = (
    "foveal", "torch", "torchvision", "timm", "lightning", "kornia", "numpy", "pillow", "scikit-learn", "pyarrow",
)  # fmt: skip
_EXPERIMENT_FOLDERS = ("runs", "bundle", "evaluation", "plots")
_EXPERIMENT_FILES = (
    "experiment.json", "manifest.parquet", "log.jsonl", "timings.json", "summary.json", "report.html",
    "out_of_fold.parquet", "models.csv", "study.db", "best.yaml",
)  # fmt: skip

_EXPERIMENT_RESULTS = ("manifest.parquet", "summary.json", "study.db", "models.csv", "evaluation", "bundle")


@dataclass(frozen=True)
class WorkFolder:
    """A folder that one process at a time works in, with its events and the time of its stages.

    Creating the object touches nothing; `prepare` makes the folder.
    """

    path: Path

    @property
    def manifest(self) -> Path:
        """Exactly the data used."""
        return self.path / "manifest.parquet"

    @property
    def log(self) -> Path:
        """Events, one JSON object a line."""
        return self.path / "log.jsonl"

    @property
    def timings(self) -> Path:
        """Wall and CPU seconds a stage."""
        return self.path / "timings.json"

    @property
    def bundle(self) -> Path:
        """The deployable folder."""
        return self.path / "bundle"

    @property
    def report(self) -> Path:
        """The self-contained page."""
        return self.path / "report.html"

    def prepare(self) -> None:
        """Make the folder and prove that it can be written to, before any work.

        Raises:
            ArtifactError: it cannot be made or written to.
        """
        probe = self.path / f".write-test-{os.getpid()}"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe.write_bytes(b"x")
            probe.unlink()
        except OSError as error:
            raise ArtifactError(
                f"The folder {self.path} cannot be written to: {error.strerror or error}.",
                fix="choose another --out, or mend the folder's permissions.",
            ) from error

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for this process alone; the lock falls with the process, however it ends.

        Raises:
            ArtifactError: another process holds it, or its disk has no locks.
        """
        fix = "wait for it to end, or choose another --out."
        with locked(self.path / ".lock", f"working in {self.path}", fix=fix):
            yield

    def log_event(self, event: str, **fields: Any) -> None:
        """Append one event to log.jsonl; a number that is not finite is null there, as JSON has no word for it."""
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in fields.items()
        }
        with self.log.open("a", encoding="utf-8") as stream:
            stream.write(to_json({"time": now(), "event": event, **finite}) + "\n")

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage of the run and write it to timings.json, also when it fails."""
        wall, cpu = time.perf_counter(), cpu_seconds()
        try:
            yield
        finally:
            self.add_time(name, time.perf_counter() - wall, cpu_seconds() - cpu)

    def add_time(self, stage: str, wall_seconds: float, cpu_seconds: float) -> None:
        """Add what a stage took to timings.json."""
        timings = read_json(self.timings) if self.timings.exists() else {}
        row = timings.setdefault(stage, {"wall_seconds": 0.0, "cpu_seconds": 0.0})
        row["wall_seconds"] = round(row["wall_seconds"] + wall_seconds, 3)
        row["cpu_seconds"] = round(row["cpu_seconds"] + cpu_seconds, 3)
        write_json(self.timings, timings)


@dataclass(frozen=True)
class RunFolder(WorkFolder):
    """Where everything of one run lies."""

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def env(self) -> Path:
        """Versions, git, hardware, seed."""
        return self.path / "env.json"

    @property
    def metrics(self) -> Path:
        """One row an epoch."""
        return self.path / "metrics.csv"

    def read_epochs(self) -> list[dict[str, str]]:
        """The rows of `metrics` as text; none where there is no such file yet."""
        if not self.metrics.is_file():
            return []
        with self.metrics.open(newline="", encoding="utf-8") as stream:
            return list(csv.DictReader(stream))

    @property
    def model_summary(self) -> Path:
        """Layer summary, parameters, multiply-accumulates."""
        return self.path / "model.txt"

    def pipeline(self, original: str | os.PathLike[str]) -> Path:
        """The run's own copy of a pipeline that came as a file, so that going on needs no other folder."""
        return self.path / f"augmentation{Path(original).suffix.lower()}"

    @property
    def weights_origin(self) -> Path:
        """Where the starting weights came from, and their licence."""
        return self.path / "checkpoints" / "origin.json"

    def read_weights_origin(self) -> dict[str, str]:
        """What `weights_origin` holds: source, tag, licence."""
        origin: dict[str, str] = read_json(self.weights_origin)
        return origin

    @property
    def checkpoints(self) -> Path:
        """Folder of `best.ckpt` and `last.ckpt`."""
        return self.path / "checkpoints"

    @property
    def looks(self) -> Path:
        """How often each split was evaluated, and when."""
        return self.path / "evaluation" / "looks.json"

    def evaluation(self, split: str) -> Path:
        """Folder of one split's metrics.json, predictions.parquet and plots."""
        return self.path / "evaluation" / split

    def heatmaps(self, split: str) -> Path:
        """Where the network looked in the worst errors of one split, for the report."""
        return self.evaluation(split) / "heatmaps.json"

    def count_look(self, split: str, verb: str) -> int:
        """Note that `split` was evaluated by `verb`; returns how often it now has been.

        A test split that is looked at again and again, with decisions taken in between, is no test any more.
        """
        looks: dict[str, list[dict[str, str]]] = read_json(self.looks) if self.looks.exists() else {}
        looks.setdefault(split, []).append({"time": now(), "verb": verb})
        write_json(self.looks, looks)
        return len(looks[split])


@dataclass(frozen=True)
class ExperimentFolder(WorkFolder):
    """Where everything of an experiment lies: its data and settings, its runs, and what they come to.

    ```
    DIR/
      experiment.json  manifest.parquet  log.jsonl  timings.json  summary.json  report.html
      runs/NAME/       run folders             bundle/         what the experiment chose or made
    ```
    """

    @property
    def settings(self) -> Path:
        """What was asked for, so that the same command goes on and another is refused."""
        return self.path / "experiment.json"

    @property
    def summary(self) -> Path:
        """A row a fold, trial, member or model."""
        return self.path / "summary.json"

    def run(self, name: str) -> RunFolder:
        """One of its runs, which may not have begun."""
        return RunFolder(self.path / "runs" / name)

    def begin(self, verb: str, settings: Mapping[str, Any], *, force: bool = False) -> bool:
        """Take the folder for an experiment, new or begun; call it with the lock held.

        Args:
            verb: what works here.
            settings: plain values that decide what comes out; the number of trials or folds still to do is none.
            force: whether to remove what an earlier experiment left, and to start anew.

        Returns:
            Whether the experiment had begun before, with these same settings.

        Raises:
            ConfigError: the folder holds an experiment that was begun with other settings.
            ArtifactError: the folder holds something else.
        """
        asked = json.loads(to_json({"verb": verb, **settings}))
        held = self._held_settings()
        # A start that was refused, as for too few images, left nothing that a corrected command could spoil.
        if held is not None and not force and not (held.get("verb") == verb and self._is_bare()):
            if held == asked:
                return True
            raise ConfigError(
                f"{self.path} holds an experiment that was begun with other settings.",
                problems=differences(held, asked),
                fix="give the same settings to go on with it, choose another --out, or start anew by --force.",
            )
        if held is None and (foreign := self._foreign()):
            raise ArtifactError(
                f"{self.path} is not empty, and holds no experiment of foveal: {', '.join(foreign[:5])}.",
                fix="choose another --out.",
            )
        self._clear()
        write_json(self.settings, asked)
        return False

    def _held_settings(self) -> dict[str, Any] | None:
        if not self.settings.is_file():
            return None
        held = read_json(self.settings)
        return held if isinstance(held, dict) else {}

    def _is_bare(self) -> bool:
        """Whether no work was done here yet."""
        runs = self.path / "runs"
        return not any((self.path / name).exists() for name in _EXPERIMENT_RESULTS) and not (
            runs.is_dir() and any(runs.iterdir())
        )

    def _foreign(self) -> list[str]:
        return sorted(path.name for path in self.path.iterdir() if path.name not in {".lock", "log.jsonl"})

    def _clear(self) -> None:
        """Remove what an experiment has written, by name: nothing else is touched."""
        for name in _EXPERIMENT_FOLDERS:
            if (self.path / name).is_dir():
                shutil.rmtree(self.path / name)
        for name in _EXPERIMENT_FILES:
            (self.path / name).unlink(missing_ok=True)


def differences(held: Mapping[str, Any], asked: Mapping[str, Any], above: str = "") -> list[str]:
    """A sentence for each setting in which two differ, its key dotted; settings within settings are gone through.

    Args:
        held: as they were.
        asked: as they are asked for.
        above: what the keys stand under, with a dot after it.
    """
    found = []
    for key in dict.fromkeys([*held, *asked]):
        was, now_is = held.get(key), asked.get(key)
        if isinstance(was, Mapping) and isinstance(now_is, Mapping):
            found += differences(was, now_is, f"{above}{key}.")
        elif was != now_is:
            told = [f"{value!r}" if key in one else "nothing" for one, value in ((held, was), (asked, now_is))]
            found.append(f"{above}{key}: it has {told[0]}, and {told[1]} is asked for")
    return found


def now() -> str:
    """The present moment, UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def cpu_seconds() -> float:
    """CPU seconds that this process and its ended children have used, user and system."""
    return sum(os.times()[:4])


def describe_environment(*, seed: int, device: str) -> dict[str, Any]:
    """Versions, git commit of the working folder, hardware and seed, as written to env.json."""
    return {
        "time": now(),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "git": _git_commit(),
        "cpu": _cpu_name(),
        "num_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "device": device,
        "seed": seed,
        # A database's URL may hold a password, and a run is given to others.
        "command": [re.sub(r"(://[^:/@\s]*):[^@\s]*@", r"\1:***@", word) for word in sys.argv],
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of the folder one stands in; None outside of git or without the command."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True, encoding="utf-8"
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def is_run_folder(path: Path) -> bool:
    """Whether `path` is a run that finished at least its first stage."""
    return (path / "config.yaml").is_file() and (path / "manifest.parquet").is_file()


def open_run(path: Path) -> RunFolder:
    """An existing run.

    Raises:
        ArtifactError: `path` is no run folder.
    """
    if not is_run_folder(path):
        raise ArtifactError(
            f"{path} is not a run folder: it has no config.yaml and manifest.parquet.",
            fix="give the folder that `foveal train --out` wrote.",
        )
    return RunFolder(path)
