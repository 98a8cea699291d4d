import json

import numpy as np
import pytest

from foveal.errors import DataError
from foveal.metrics import QUALITY_METRICS, SplitMetrics, ece, log_loss, softmax, summarise

from .cases import CASE_IDS, CASES, make_case, sklearn_metrics

DESIGN_KEYS = {
    *("num_images", "accuracy", "balanced_accuracy", "macro_precision", "macro_recall", "macro_f1", "weighted_f1"),
    *("top_3_accuracy", "top_5_accuracy", "macro_roc_auc", "cohen_kappa", "quadratic_weighted_kappa"),
    *("matthews_correlation", "log_loss", "brier", "ece", "majority_baseline_accuracy", "confidence_intervals"),
    *("per_class", "confusion_matrix", "class_names", "leakage", "latency_ms"),
}
OUR_KEYS = {"split", "temperature", "ece_before_temperature", "log_loss_before_temperature", "undefined"}


def names_of(num_classes):
    return [f"class {c}" for c in range(num_classes)]


def summary_of(case, **options):
    labels, probabilities = make_case(*case)
    logits = np.log(probabilities)
    options = {"class_names": names_of(probabilities.shape[1]), "split": "test", "num_resamples": 50} | options
    # Through logits and back, since rounding on the way breaks exact ties.
    return labels, softmax(logits), summarise(labels, logits, **options)


@pytest.mark.parametrize("case", CASES, ids=CASE_IDS)
def test_every_figure_equals_scikit_learn_and_every_null_has_a_reason(case, tmp_path):
    labels, probabilities, metrics = summary_of(case, ordered=True)
    expected = sklearn_metrics(labels, probabilities)
    for name in QUALITY_METRICS:
        value = getattr(metrics, name)
        if name in expected:
            assert value == pytest.approx(expected[name], abs=1e-9), name
            assert name in metrics.confidence_intervals
        else:
            assert value is None
            assert metrics.undefined[name]
    assert all(metrics.undefined[key] for key in metrics.nulls())
    assert set(metrics.undefined) == set(metrics.nulls())
    metrics.write(tmp_path / "metrics.json")
    assert SplitMetrics.read(tmp_path / "metrics.json") == metrics
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert set(written) == DESIGN_KEYS | OUR_KEYS
    assert written["confidence_intervals"]["accuracy"] == list(metrics.confidence_intervals["accuracy"])


def test_a_class_without_images_is_null_with_a_reason():
    _, _, metrics = summary_of(("missing classes", 150, 8, (0, 5), None))
    row = metrics.per_class[5]
    assert (row.support, row.precision, row.recall, row.f1, row.roc_auc) == (0, None, None, None, None)
    assert "no image of this class" in metrics.undefined["per_class.class 5.roc_auc"]
    assert metrics.undefined["quadratic_weighted_kappa"].startswith("the classes have no declared order")


def test_one_class_only_is_summarised_without_zeros_for_want_of_values():
    metrics = summarise(np.zeros(12, int), np.tile([3.0, 0.0], (12, 1)), class_names=["a", "b"], split="val")
    for name in ("macro_roc_auc", "cohen_kappa", "matthews_correlation", "top_3_accuracy"):
        assert getattr(metrics, name) is None
        assert metrics.undefined[name]
    assert metrics.undefined["per_class.a.roc_auc"] == "every image of the val split is of this class"
    assert metrics.confidence_intervals["accuracy"][0] < 1
    assert metrics.undefined["confidence_intervals.log_loss"]


def test_temperature_changes_calibration_only():
    labels, probabilities, hot = summary_of(CASES[0], temperature=2.0)
    _, _, plain = summary_of(CASES[0])
    assert hot.accuracy == plain.accuracy
    assert hot.ece_before_temperature == plain.ece_before_temperature == pytest.approx(plain.ece, abs=1e-12)
    assert hot.log_loss_before_temperature == pytest.approx(log_loss(labels, probabilities), abs=1e-9)
    assert hot.ece == pytest.approx(ece(labels, softmax(np.log(probabilities), 2.0)), abs=1e-9)
    assert hot.temperature == 2.0


def test_baseline_is_the_class_that_is_largest_in_training():
    labels, _, given = summary_of(CASES[1], majority_class=3)
    _, _, own = summary_of(CASES[1])
    assert given.majority_baseline_accuracy == (labels == 3).mean()
    assert own.majority_baseline_accuracy == np.bincount(labels).max() / len(labels)


def test_leakage_is_counted_and_taken_out():
    labels, probabilities = make_case(*CASES[0])
    right = probabilities.argmax(axis=1) == labels
    siblings = np.arange(300) < 100
    _, _, metrics = summary_of(CASES[0], siblings_in_train=siblings)
    assert metrics.leakage.num_test_images_with_siblings_in_train == 100
    assert metrics.leakage.accuracy_without_them == right[100:].mean()
    _, _, all_leaked = summary_of(CASES[0], siblings_in_train=np.ones(300, bool))
    assert all_leaked.leakage.accuracy_without_them is None
    assert "every image" in all_leaked.undefined["leakage.accuracy_without_them"]
    _, _, unknown = summary_of(CASES[0])
    assert unknown.leakage is None
    assert unknown.undefined["leakage"]


def test_groups_reach_the_intervals():
    _, _, plain = summary_of(CASES[0])
    _, _, grouped = summary_of(CASES[0], groups=np.arange(300) // 30)
    assert grouped.accuracy == plain.accuracy
    assert grouped.confidence_intervals != plain.confidence_intervals
    _, _, single = summary_of(CASES[0], groups=np.zeros(300))
    assert not single.confidence_intervals
    assert "one group" in single.undefined["confidence_intervals.accuracy"]


def test_an_empty_split_says_what_to_do():
    with pytest.raises(DataError, match="test split, got none") as caught:
        summarise(np.array([], dtype=int), np.zeros((0, 3)), class_names=names_of(3), split="test")
    assert "data.test_fraction" in caught.value.fix


def test_what_does_not_fit_is_told_at_once():
    with pytest.raises(DataError) as caught:
        summarise(
            np.array([0, 1]),
            np.zeros((2, 3)),
            class_names=["a", "a"],
            split="test",
            majority_class=7,
            groups=[1],
            siblings_in_train=[True],
        )
    assert len(caught.value.problems) == 5
    with pytest.raises(DataError, match="NaN or infinity, the first: 1"):
        summarise(np.array([0, 1]), np.array([[0.0, 1], [np.nan, 0]]), class_names=["a", "b"], split="test")
