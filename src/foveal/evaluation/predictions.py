"""`predictions.parquet`, read back: what a model said of each image of a split."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveal.errors import ArtifactError
from foveal.extras import require


@dataclass(frozen=True)
class Predictions:
    """What the model said about each image of a split.

    Attributes:
        sample_ids: one an image.
        paths: as in the manifest.
        labels: int64 [n], the true classes.
        predicted: int64 [n], the classes that the model chose.
        probabilities: float64 [n, C], after temperature, in 0..1.
    """

    sample_ids: list[str]
    paths: list[str]
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    probabilities: NDArray[np.float64]

    @property
    def probability(self) -> NDArray[np.float64]:
        """float64 [n]: the probability of the predicted class."""
        return self.probabilities[np.arange(len(self.predicted)), self.predicted]

    @property
    def right(self) -> NDArray[np.bool_]:
        """Bool [n]: where the prediction is right."""
        return np.equal(self.labels, self.predicted)


def read_predictions(path: Path, class_names: Sequence[str]) -> Predictions:
    """What an evaluation has written, its classes aligned by name.

    Args:
        path: a predictions.parquet.
        class_names: those of its metrics.json, in order.

    Raises:
        ArtifactError: the file is missing or damaged, lacks a column, or names a class that the metrics do not know.
    """
    parquet = require("pyarrow.parquet", extra="train", purpose="read predictions.parquet")
    arrow = require("pyarrow", extra="train", purpose="read predictions.parquet")
    names = list(class_names)
    columns = ["sample_id", "path", "label", "predicted", *(f"p_{name}" for name in names)]
    try:
        table = parquet.read_table(path)
    except (OSError, arrow.ArrowException) as error:
        raise ArtifactError(f"{path} cannot be read: {error}.", fix="run foveal evaluate again.") from error
    problems = [f"no column {name!r}" for name in columns if name not in table.column_names]
    problems += [] if problems else _unknown_classes(table, set(names))
    if problems:
        raise ArtifactError(
            f"{path} does not fit its metrics.json.", problems=problems, fix="run foveal evaluate again."
        )
    index = {name: position for position, name in enumerate(names)}
    return Predictions(
        sample_ids=[str(value) for value in table["sample_id"].to_pylist()],
        paths=[str(value) for value in table["path"].to_pylist()],
        labels=np.array([index[name] for name in table["label"].to_pylist()], dtype=np.int64),
        predicted=np.array([index[name] for name in table["predicted"].to_pylist()], dtype=np.int64),
        probabilities=np.stack([table[f"p_{name}"].to_numpy().astype(np.float64) for name in names], axis=1),
    )


def _unknown_classes(table: Any, names: set[str]) -> list[str]:
    return [
        f"{column}: {value!r} is none of the classes"
        for column in ("label", "predicted")
        for value in table[column].unique().to_pylist()
        if value not in names
    ]
