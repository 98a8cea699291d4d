"""Evaluation of one split: what the deployed bundle says of images that it has not learnt from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveal.data.class_names import exclude_option, shortened
from foveal.data.manifest import Manifest
from foveal.data.split import siblings
from foveal.data.store import PixelSource
from foveal.errors import DataError
from foveal.evaluation.plots import write_plots
from foveal.extras import require
from foveal.files import atomic_writer
from foveal.inference import Predictor
from foveal.metrics import SplitMetrics, fit_temperature, softmax, summarise
from foveal.types import SPLITS, Split

NUM_LATENCY_IMAGES = 30
BATCH_SIZE = 64


@dataclass(frozen=True)
class SplitLogits:
    """What a classifier says of one split.

    Attributes:
        split: which one.
        rows: int64 [n], row numbers in the manifest.
        labels: int64 [n], true classes by the bundle's order.
        logits: float32 [n, classes], before the temperature.
    """

    split: Split
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    logits: NDArray[np.float32]


def align_labels(manifest: Manifest, class_names: tuple[str, ...]) -> NDArray[np.int64]:
    """Each row's label by its place among a bundle's classes; by name, whatever the data's own order.

    Returns:
        int64 [n], -1 in quarantined rows of unknown classes.

    Raises:
        DataError: a usable row has a class that the bundle does not know.
    """
    place = {name: number for number, name in enumerate(class_names)}
    names = manifest.column("label")
    labels = np.array([place.get(name, -1) for name in names], dtype=np.int64)
    unknown = sorted({str(name) for name in names[(labels < 0) & manifest.is_usable()]})
    if unknown:
        raise DataError(
            f"The classifier knows {shortened(class_names)}, and the data has other classes too.",
            problems=[f"class {name!r}" for name in unknown],
            fix=f"rename them as in training, or leave them out: {exclude_option(unknown)}",
        )
    return labels


def rows_of_split(manifest: Manifest, split: Split) -> NDArray[np.int64]:
    """Numbers of the usable rows of one split, int64 [n].

    Raises:
        DataError: there is none.
    """
    rows = manifest.of_split(split)
    if not len(rows):
        counts = ", ".join(f"{len(manifest.of_split(name)):,} in {name}" for name in SPLITS)
        raise DataError(
            f"There is no usable image in the {split} split: {counts}.",
            fix="choose another --split, or give data that has one.",
        )
    return rows


def majority_class(manifest: Manifest, class_names: tuple[str, ...]) -> int | None:
    """The class with the most training images, by its place in `class_names`: what a guesser would always say."""
    labels = align_labels(manifest, class_names)[manifest.of_split("train")]
    return int(np.bincount(labels, minlength=len(class_names)).argmax()) if len(labels) else None


def predict_split(
    predictor: Predictor, manifest: Manifest, sources: Sequence[PixelSource], split: Split, *, num_workers: int
) -> SplitLogits:
    """Run the classifier over one split.

    Args:
        predictor: one network or several.
        manifest: the rows.
        sources: stored forms by row number, one for each of the predictor's members.
        split: which rows.
        num_workers: threads that prepare batches ahead.

    Raises:
        DataError: the split has no usable image, or a class that the classifier does not know.
    """
    rows = rows_of_split(manifest, split)
    labels = align_labels(manifest, predictor.class_names)[rows]
    logits = predictor.logits(sources, rows, batch_size=BATCH_SIZE, num_workers=num_workers)
    return SplitLogits(split, rows, labels, logits)


def calibrate(validation: SplitLogits) -> float:
    """The temperature that makes validation's probabilities honest (Guo et al. 2017)."""
    return float(fit_temperature(validation.logits.astype(np.float64), validation.labels))


def measure(
    said: SplitLogits,
    manifest: Manifest,
    predictor: Predictor,
    *,
    majority_class: int | None,
    siblings_in_train: NDArray[np.bool_] | None,
    seed: int,
    timed: bool = True,
) -> SplitMetrics:
    """Every figure of metrics.json for one split.

    Args:
        said: what the classifier says.
        manifest: the data that the rows are of.
        predictor: names the classes and the temperature, and is timed.
        majority_class: the largest class of training, the baseline's guess.
        siblings_in_train: bool [n], whether an image has a copy or a group member in training; None where unknown.
        seed: of the bootstrap.
        timed: whether to measure the latency.
    """
    spec = predictor.bundle.spec
    metrics = summarise(
        said.labels,
        said.logits.astype(np.float64),
        class_names=spec.class_names,
        split=said.split,
        temperature=spec.temperature,
        majority_class=majority_class,
        groups=groups_of(manifest, said.rows),
        ordered=spec.ordered,
        siblings_in_train=siblings_in_train,
        seed=seed,
    )
    if not timed:
        return metrics
    paths = manifest.absolute_paths()
    rows = said.rows[np.linspace(0, len(said.rows) - 1, min(NUM_LATENCY_IMAGES, len(said.rows))).astype(int)]
    latency = predictor.measure_latency([paths[row] for row in rows])
    return metrics.with_latency(latency["p50"], latency["p95"]) if latency else metrics


def write_evaluation(
    folder: Path,
    said: SplitLogits,
    metrics: SplitMetrics,
    manifest: Manifest,
    temperature: float,
    *,
    with_plots: bool = True,
) -> None:
    """Write metrics.json, predictions.parquet and, if wanted, the plots of one split."""
    pa = require("pyarrow", extra="train", purpose="write predictions")
    parquet = require("pyarrow.parquet", extra="train", purpose="write predictions")
    probabilities = softmax(said.logits.astype(np.float64), temperature)
    predicted = probabilities.argmax(axis=1)
    names = np.array(metrics.class_names, dtype=object)
    columns: dict[str, Any] = {
        "sample_id": manifest.column("sample_id")[said.rows],
        "path": manifest.column("path")[said.rows],
        "label": names[said.labels],
        "predicted": names[predicted],
        "probability": probabilities.max(axis=1),
        **{f"p_{name}": probabilities[:, number] for number, name in enumerate(metrics.class_names)},
    }
    folder.mkdir(parents=True, exist_ok=True)
    metrics.write(folder / "metrics.json")
    with atomic_writer(folder / "predictions.parquet") as stream:
        parquet.write_table(pa.table(columns), stream, compression="zstd")
    if with_plots:
        write_plots(folder / "plots", metrics, said.labels, probabilities)


def groups_of(manifest: Manifest, rows: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """The group of each of some rows, int64 [n], or None where each image stands for itself.

    Images come in groups that must be resampled whole where groups are declared, or boxes are of one photograph.
    """
    usable = manifest.usable()
    is_grouped = (manifest.codes("group")[usable] >= 0).any() or (manifest.codes("xmin")[usable] >= 0).any()
    return siblings(manifest)[rows] if is_grouped else None
