"""One real small training that many tests look at, and what it takes to ask for another."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest

CLASSES = ("2", "10", "b")
"""In natural order, which is not that of the letters: 10, 2, b."""
TINY = (
    "model.name=test_resnet",
    "model.weights=none",
    "model.head.dropout=0.1",
    "data.image_size=32",
    "optim.lr=0.01",
    "train.epochs=3",
    "train.batch_size=16",
    "train.precision=fp32",
    "train.device=cpu",
)
SEED = 7
"""Of the small run: one that is nobody's default."""
TIMES = {"seconds", "images_per_second", "data_wait_share"}

_made: dict[str, Path] = {}


def flags(*overrides: str) -> list[str]:
    """The same for the command line, with changes."""
    return [word for override in (*TINY, *overrides) for word in ("--set", override)]


def small_run(make_images: Callable[..., Path], factory: pytest.TempPathFactory) -> Path:
    """A trained run on 90 images of three classes; made once, so look but do not touch. Its data lies beside it."""
    if "run" not in _made:
        from foveal.api.train import train

        folder = factory.mktemp("small-run")
        images = make_images(folder / "images", CLASSES, num_per_class=30)
        train(images, folder / "run", overrides=[*TINY, f"seed={SEED}"])
        _made["run"] = folder / "run"
    return _made["run"]


def copy_of(run: Path, target: Path) -> Path:
    """A copy to change at will; its manifest names the same images."""
    return Path(shutil.copytree(run, target))


def events(run: Path, name: str) -> list[dict[str, Any]]:
    """The events of that name in a run's log."""
    lines = (run / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [event for line in lines if (event := json.loads(line))["event"] == name]


def epochs(run: Path) -> list[dict[str, str]]:
    """The table of epochs, but for what depends on the clock."""
    with (run / "metrics.csv").open(newline="") as stream:
        return [{key: value for key, value in row.items() if key not in TIMES} for row in csv.DictReader(stream)]


def columns_of(table: Path) -> dict[str, np.ndarray]:
    """A Parquet table as arrays by name."""
    read = parquet.read_table(table)
    return {name: np.array(read[name].to_pylist()) for name in read.column_names}


def quicken_plots(patch: pytest.MonkeyPatch) -> None:
    """Leave the drawing out, which is four fifths of a small run and has tests of its own; all files are written."""
    empty = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"></svg>'
    for module in ("foveal.evaluation.plots", "foveal.report.figures"):
        patch.setattr(f"{module}.draw_svg", lambda *_, **__: empty)
