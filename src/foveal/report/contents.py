"""Everything that a report needs from a run folder, read once and checked."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from foveal.data.manifest import Manifest
from foveal.errors import ArtifactError
from foveal.evaluation.plots import PLOT_NAMES, draw_plots
from foveal.evaluation.predictions import Predictions, read_predictions
from foveal.files import read_json
from foveal.metrics import SplitMetrics
from foveal.run_folder import RunFolder
from foveal.types import SPLITS


@dataclass(frozen=True)
class Evaluated:
    """One split that has been evaluated: its metrics, its predictions, and the folder that they lie in."""

    metrics: SplitMetrics
    predictions: Predictions
    folder: Path

    @cached_property
    def plots(self) -> dict[str, str]:
        """Name to SVG text: those that the evaluation wrote, or drawn anew where one is missing."""
        files = {name: self.folder / "plots" / f"{name}.svg" for name in PLOT_NAMES}
        if all(path.is_file() for path in files.values()):
            return {name: _text(path) for name, path in files.items()}
        return draw_plots(self.metrics, self.predictions.labels, self.predictions.probabilities)


@dataclass(frozen=True)
class RunContents:
    """A whole run in memory, but for its images.

    Attributes:
        run: where it lies.
        config: the resolved configuration as nested dicts; `config_text` as it is written.
        environment: versions, hardware, seed, command; empty where unknown.
        manifest: exactly the data used.
        epochs: a column of metrics.csv to its values, one an epoch; NaN where a cell is empty.
        timings: stage to wall and CPU seconds.
        warnings: what the run warned of, with how often.
        looks: split to the number of times it was evaluated.
        bundle: bundle.json, or None.
        model_summary: layers as text; may be empty.
        splits: the evaluated splits, in the order train, val, test.
    """

    run: RunFolder
    config: dict[str, Any]
    config_text: str
    environment: dict[str, Any]
    manifest: Manifest
    epochs: dict[str, NDArray[np.float64]]
    timings: dict[str, dict[str, float]]
    warnings: dict[str, int]
    looks: dict[str, int]
    bundle: dict[str, Any] | None
    model_summary: str
    splits: dict[str, Evaluated] = field(default_factory=dict)

    @property
    def class_names(self) -> Sequence[str]:
        """The classes in their order."""
        for evaluated in self.splits.values():
            return evaluated.metrics.class_names
        return self.manifest.class_names

    @property
    def has_boxes(self) -> bool:
        """Whether samples are boxes in images."""
        return not np.isnan(self.manifest.column("xmin")).all()

    def section(self, name: str) -> dict[str, Any]:
        """One section of the configuration; empty where it is missing."""
        section = self.config.get(name)
        return section if isinstance(section, dict) else {}

    @property
    def best_epoch(self) -> int | None:
        """The epoch, counted from 1, whose weights were kept; None if unknown.

        As in training: the best by the monitored column, and of equal ones that with the lowest validation loss.
        """
        stopping = self.section("train").get("early_stopping")
        monitor = str(stopping.get("monitor", "val_loss") if isinstance(stopping, dict) else "val_loss")
        column, loss = self.epochs.get(monitor), self.epochs.get("val_loss")
        if column is None or np.isnan(column).all():
            return None
        cost = column if monitor.endswith("loss") else -column
        order = np.lexsort((loss if loss is not None else cost, cost))  # NaN sorts last
        return int(self.epochs["epoch"][order[0]])


def read_run(run: RunFolder) -> RunContents:
    """Read a run folder; only config.yaml and manifest.parquet must be there.

    Raises:
        ArtifactError: a file is damaged.
        FovealError: a file is not JSON.
    """
    config_text = _text(run.config)
    bundle = run.bundle / "bundle.json"
    return RunContents(
        run=run,
        config=_yaml(run.config, config_text),
        config_text=config_text,
        environment=read_json(run.env) if run.env.is_file() else {},
        manifest=Manifest.read(run.manifest),
        epochs=read_epochs(run),
        timings=read_json(run.timings) if run.timings.is_file() else {},
        warnings=_read_warnings(run.log) if run.log.is_file() else {},
        looks={split: len(rows) for split, rows in read_json(run.looks).items()} if run.looks.is_file() else {},
        bundle=read_json(bundle) if bundle.is_file() else None,
        model_summary=_text(run.model_summary) if run.model_summary.is_file() else "",
        splits={
            split: _read_split(run, split) for split in SPLITS if (run.evaluation(split) / "metrics.json").is_file()
        },
    )


def class_counts(run: RunContents) -> dict[str, NDArray[np.int64]]:
    """Usable samples of each class in each split that has any: split to int64 [C]."""
    usable = run.manifest.take(run.manifest.usable())  # a quarantined row may be of no class
    ids, codes, num_classes = usable.label_ids(), usable.split_codes(), len(usable.class_names)
    counts = {split: np.bincount(ids[codes == place], minlength=num_classes) for place, split in enumerate(SPLITS)}
    return {split: values for split, values in counts.items() if values.any()}


def read_epochs(run: RunFolder) -> dict[str, NDArray[np.float64]]:
    """The columns of metrics.csv, float64 [epochs]; an empty cell is NaN, and `epoch` is there where anything is.

    Raises:
        ArtifactError: a cell is not a number.
    """
    path, rows = run.metrics, run.read_epochs()
    problems: list[str] = []
    columns = {name: [_cell(row.get(name), path, number, name, problems) for number, row in enumerate(rows, 2)]
               for name in (rows[0] if rows else {})}  # fmt: skip
    if problems:
        raise ArtifactError(f"{path} holds cells that are not numbers.", problems=problems)
    epochs = {name: np.array(values, dtype=np.float64) for name, values in columns.items() if name}
    if rows and ("epoch" not in epochs or np.isnan(epochs["epoch"]).any()):
        epochs["epoch"] = np.arange(1.0, len(rows) + 1)
    return epochs


def _cell(text: str | None, path: Path, row: int, name: str, problems: list[str]) -> float:
    if not text:
        return float("nan")
    try:
        return float(text)
    except ValueError:
        problems.append(f"line {row}, {name}: {text!r}")
        return float("nan")


def _yaml(path: Path, text: str) -> dict[str, Any]:
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ArtifactError(f"{path} is not YAML: {error}") from error
    if not isinstance(config, dict):
        raise ArtifactError(f"{path} should hold the sections of a configuration, and holds {type(config).__name__}.")
    return config


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _read_warnings(path: Path) -> dict[str, int]:
    """Messages of the events named "warning", in order, with how often each came.

    A run that was killed may leave half a last line; it is left out.
    """
    found: dict[str, int] = {}
    for line in _text(path).splitlines():
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(event, dict) and event.get("event") == "warning":
            message = str(event.get("message", ""))
            found[message] = found.get(message, 0) + 1
    return found


def _read_split(run: RunFolder, split: str) -> Evaluated:
    folder = run.evaluation(split)
    metrics = SplitMetrics.read(folder / "metrics.json")
    predictions = read_predictions(folder / "predictions.parquet", metrics.class_names)
    return Evaluated(metrics, predictions, folder)
