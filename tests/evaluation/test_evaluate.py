"""Evaluation of a split: classes by name, figures by scikit-learn, and no image unaccounted for."""

from pathlib import Path

import numpy as np
import pytest

from foveal.data.manifest import Manifest
from foveal.errors import DataError
from foveal.evaluation.evaluate import (
    SplitLogits,
    align_labels,
    calibrate,
    majority_class,
    measure,
    predict_split,
    rows_of_split,
    write_evaluation,
)
from foveal.inference import Predictor
from foveal.metrics import SplitMetrics, log_loss, softmax
from small_runs import columns_of

NAMES = ("2", "10", "b")


def manifest_of(labels: list[str], **columns: list[object]) -> Manifest:
    return Manifest.build(Path("/nowhere"), path=[f"{i}.png" for i in range(len(labels))], label=labels, **columns)


class Pixels:
    """Stored forms of squares whose brightness is the row's number."""

    def __init__(self, num_rows: int) -> None:
        self._num_rows = num_rows

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, row: int) -> np.ndarray:
        draw = np.random.default_rng(row)
        return draw.integers(0, 256, (34, 40, 3)).astype(np.uint8)


def test_labels_are_aligned_by_name_whatever_the_order_of_the_data() -> None:
    manifest = manifest_of(["b", "10", "2", "b"])
    assert align_labels(manifest, NAMES).tolist() == [2, 1, 0, 2]
    assert align_labels(manifest, ("b", "x", "2", "10")).tolist() == [0, 3, 2, 0]


def test_unknown_classes_are_refused_by_name_and_quarantined_ones_are_nobodys() -> None:
    manifest = manifest_of(["b", "lynx", "cat's", "b"], status=["ok", "ok", "ok", "ok"])
    with pytest.raises(DataError, match="'2', '10', 'b'") as caught:
        align_labels(manifest, NAMES)
    assert caught.value.problems == ('class "cat\'s"', "class 'lynx'")
    assert "data.exclude_classes=" in caught.value.fix
    aside = manifest.with_columns(status=["ok", "quarantined", "quarantined", "ok"])
    assert align_labels(aside, NAMES).tolist() == [2, -1, -1, 2]


def test_the_majority_is_that_of_training_in_the_order_of_the_bundle() -> None:
    manifest = manifest_of(["b", "b", "10", "2", "2", "2"], split=["train", "train", "train", "test", "test", "test"])
    assert majority_class(manifest, NAMES) == 2
    assert majority_class(manifest, ("b", "2", "10")) == 0
    assert majority_class(manifest.take(np.array([3, 4, 5])), NAMES) is None


def test_a_split_without_images_says_where_there_are_some() -> None:
    manifest = manifest_of(["b", "2", "2"], split=["train", "val", "test"], status=["ok", "ok", "quarantined"])
    assert rows_of_split(manifest, "train").tolist() == [0]
    with pytest.raises(DataError, match="no usable image in the test split: 1 in train, 1 in val, 0 in test"):
        rows_of_split(manifest, "test")


def test_a_split_is_predicted_in_the_order_of_its_rows(tiny_bundle: Path) -> None:
    predictor = Predictor(tiny_bundle, device="cpu")
    names = list(predictor.class_names)
    manifest = manifest_of([names[i % 3] for i in range(150)], split=["test" if i % 2 else "train" for i in range(150)])
    said = predict_split(predictor, manifest, [Pixels(150)], "test", num_workers=2)
    assert said.rows.tolist() == list(range(1, 150, 2))
    assert said.labels.tolist() == [i % 3 for i in range(1, 150, 2)]
    alone = [
        predict_split(predictor, manifest.take(np.array([row])), [[Pixels(150)[row]]], "test", num_workers=1).logits[0]
        for row in (1, 71, 149)
    ]
    assert np.abs(said.logits[[0, 35, 74]] - np.stack(alone)).max() < 1e-4
    assert np.ptp(said.logits, axis=0).min() > 1e-3  # the images do differ


def test_the_temperature_is_the_best_for_validation() -> None:
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 3, 300)
    logits = draw.normal(size=(300, 3))
    logits[np.arange(300), labels] += 1.0
    said = SplitLogits("val", np.arange(300), labels, (4.0 * logits).astype(np.float32))
    found = calibrate(said)
    grid = {t: log_loss(labels, softmax(said.logits.astype(np.float64), t)) for t in np.linspace(0.5, 12.0, 231)}
    assert found == pytest.approx(min(grid, key=grid.__getitem__), abs=0.06)
    assert found > 2.0


def test_what_is_written_is_what_was_measured(tiny_bundle: Path, tmp_path: Path) -> None:
    predictor = Predictor(tiny_bundle, device="cpu")
    names, temperature = predictor.class_names, predictor.bundle.spec.temperature
    draw = np.random.default_rng(1)
    labels = draw.integers(0, 3, 40)
    manifest = manifest_of([names[i] for i in labels], split=["test"] * 40, group=[f"g{i // 4}" for i in range(40)])
    logits = draw.normal(size=(40, 3)).astype(np.float32)
    said = SplitLogits("test", np.arange(40), labels, logits)
    leaks = np.arange(40) % 10 == 0
    metrics = measure(said, manifest, predictor, majority_class=1, siblings_in_train=leaks, seed=0)
    write_evaluation(tmp_path / "test", said, metrics, manifest, temperature)
    table = columns_of(tmp_path / "test" / "predictions.parquet")
    probabilities = softmax(logits.astype(np.float64), temperature)
    assert np.abs(np.stack([table[f"p_{name}"] for name in names], 1) - probabilities).max() < 1e-15
    assert table["label"].tolist() == [names[i] for i in labels]
    assert table["predicted"].tolist() == [names[i] for i in logits.argmax(1)]
    assert table["path"].tolist() == [f"{i}.png" for i in range(40)]
    assert SplitMetrics.read(tmp_path / "test" / "metrics.json") == metrics
    right = logits.argmax(1) == labels
    assert metrics.accuracy == pytest.approx(right.mean(), abs=1e-12)
    assert metrics.majority_baseline_accuracy == pytest.approx((labels == 1).mean(), abs=1e-12)
    assert metrics.leakage is not None
    assert metrics.leakage.num_test_images_with_siblings_in_train == 4
    assert metrics.leakage.accuracy_without_them == pytest.approx(right[~leaks].mean(), abs=1e-12)
    # The images do not exist, so that there is nothing to time but how fast that is found out.
    assert metrics.latency_ms is None or metrics.latency_ms.p50 >= 0
    assert {path.suffix for path in (tmp_path / "test" / "plots").iterdir()} == {".svg"}


def test_the_interval_resamples_declared_groups_whole(tiny_bundle: Path) -> None:
    """Ten images of each of eight patients, all right or all wrong: there are eight observations, not eighty."""
    predictor = Predictor(tiny_bundle, device="cpu")
    names = predictor.class_names
    labels = np.arange(80) % 3
    logits = np.eye(3)[np.where((np.arange(80) // 10) % 2 == 0, labels, (labels + 1) % 3)].astype(np.float32)
    said = SplitLogits("test", np.arange(80), labels, 5 * logits)
    widths = {}
    for kind, groups in (("grouped", [f"patient {i // 10}" for i in range(80)]), ("alone", [None] * 80)):
        manifest = manifest_of([names[i] for i in labels], split=["test"] * 80, group=groups)
        metrics = measure(said, manifest, predictor, majority_class=0, siblings_in_train=None, seed=0)
        low, high = metrics.confidence_intervals["accuracy"]
        widths[kind] = high - low
    assert widths["grouped"] > 2 * widths["alone"]
