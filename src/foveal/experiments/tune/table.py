"""The trials of a study as rows of plain values, and their epochs as their run folders tell them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from foveal.errors import FovealError
from foveal.files import read_json
from foveal.run_folder import ExperimentFolder, RunFolder

_NAME = re.compile(r"trial-[0-9]{4,}")
_STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running", "WAITING": "waiting"}

Row = Mapping[str, Any]


def trial_name(number: int) -> str:
    """The name of a trial's run folder."""
    return f"trial-{number:04d}"


def trials_begun(folder: ExperimentFolder) -> list[Path]:
    """Folders of trials, whatever became of them."""
    runs = folder.path / "runs"
    return [path for path in runs.iterdir() if _NAME.fullmatch(path.name)] if runs.is_dir() else []


def figure_of(row: Mapping[str, Any], name: str) -> float | None:
    """A figure of an epoch; None where it is not defined."""
    value = row.get(name)
    return None if value is None or value == "" else float(value)


def told(trials: Sequence[Any], folder: ExperimentFolder) -> tuple[Row, ...]:
    """A row a trial: what the storage keeps of it, and the validation metrics that its folder holds.

    Args:
        trials: of Optuna, frozen.
        folder: of the study.
    """
    return tuple(_row(trial, folder.run(trial_name(trial.number))) for trial in trials)


def _row(trial: Any, run: RunFolder) -> Row:
    state = _STATES[trial.state.name]
    reported = trial.intermediate_values
    seconds = _seconds(run)
    return {
        "name": trial_name(trial.number),
        "number": trial.number,
        "state": state,
        "figure": trial.value if state in {"complete", "pruned"} else None,
        "values": dict(trial.params),
        "best_epoch": trial.user_attrs.get("best_epoch"),
        "num_epochs": max(reported, default=0),
        "reported": {str(epoch): reported[epoch] for epoch in sorted(reported)},
        "seconds": round(sum(seconds.values()), 3),
        "training_seconds": seconds.get("train", 0.0),
        "began": _moment(trial.datetime_start),
        "ended": _moment(trial.datetime_complete),
        "worker": trial.user_attrs.get("worker"),
        "reason": trial.user_attrs.get("reason"),
        **(_metrics(run) if state == "complete" else {}),
    }


def _moment(moment: Any) -> str | None:
    return None if moment is None else str(moment.isoformat(timespec="milliseconds"))


def _seconds(run: RunFolder) -> dict[str, float]:
    """Wall seconds of a run's stages; none where its folder is on another machine."""
    return dict(_timings(run)) if run.timings.is_file() else {}


def _timings(run: RunFolder) -> Iterator[tuple[str, float]]:
    try:
        timings = read_json(run.timings)
    except FovealError:
        return  # another worker's folder, in the middle of being copied here: times are no reason to end a study
    for stage, row in timings.items():
        yield stage, float(row["wall_seconds"])


def _metrics(run: RunFolder) -> dict[str, Any]:
    file = run.evaluation("val") / "metrics.json"
    return dict(read_json(file)) if file.is_file() else {}
