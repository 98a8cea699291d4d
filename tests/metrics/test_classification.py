import numpy as np
import pytest
import sklearn.metrics as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.errors import DataError
from foveal.metrics import class_metrics, confusion_matrix, confusion_metrics, epoch_metrics

from .cases import CASE_IDS, CASES, make_case, sklearn_metrics


@pytest.mark.parametrize("case", CASES, ids=CASE_IDS)
def test_equals_scikit_learn(case):
    for seed in range(5):
        labels, probabilities = make_case(*case, seed=seed)
        predicted = probabilities.argmax(axis=1)
        confusion = confusion_matrix(labels, predicted, probabilities.shape[1])
        np.testing.assert_array_equal(
            confusion, reference.confusion_matrix(labels, predicted, labels=np.arange(probabilities.shape[1]))
        )
        expected = sklearn_metrics(labels, probabilities)
        for name, value in confusion_metrics(confusion).items():
            assert float(value) == pytest.approx(expected[name], abs=1e-9), name


@pytest.mark.parametrize("case", CASES, ids=CASE_IDS)
def test_each_class_equals_scikit_learn_where_it_has_support(case):
    labels, probabilities = make_case(*case)
    predicted, classes = probabilities.argmax(axis=1), np.arange(probabilities.shape[1])
    rows = reference.precision_recall_fscore_support(labels, predicted, labels=classes, zero_division=np.nan)
    ours = class_metrics(confusion_matrix(labels, predicted, len(classes)))
    tested = rows[3] > 0
    for name, expected in zip(("precision", "recall", "f1"), rows[:3], strict=True):
        np.testing.assert_allclose(ours[name][tested], expected[tested], atol=1e-9)
        assert np.isnan(ours[name][~tested]).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 6).flatmap(lambda c: st.lists(st.tuples(*[st.integers(0, c - 1)] * 2), min_size=1, max_size=30)))
def test_any_small_confusion_equals_scikit_learn(pairs):
    labels, predicted = np.array(pairs).T
    confusion = confusion_matrix(labels, predicted, 6)
    ours = confusion_metrics(confusion)
    probabilities = np.eye(6)[predicted]
    only_one_class = len(np.unique(np.concatenate([labels, predicted]))) == 1
    for name, expected in sklearn_metrics_of_confusion(labels, probabilities).items():
        if name == "matthews_correlation" and (len(set(labels)) == 1 or len(set(predicted)) == 1):
            assert np.isnan(ours[name])  # scikit-learn says 0
        elif "kappa" in name and only_one_class:
            assert np.isnan(ours[name])
        else:
            assert float(ours[name]) == pytest.approx(expected, abs=1e-9), name


def sklearn_metrics_of_confusion(labels, probabilities):
    names = confusion_metrics(np.eye(2))
    if len(np.unique(labels)) == 1:  # scikit-learn has no ROC curve for it, and we ask for none here
        others = np.concatenate([labels, [(labels[0] + 1) % 6]])
        assert len(np.unique(others)) == 2
        predicted = probabilities.argmax(axis=1)
        return {
            "accuracy": reference.accuracy_score(labels, predicted),
            "macro_recall": reference.accuracy_score(labels, predicted),
            "cohen_kappa": reference.cohen_kappa_score(labels, predicted) if (labels != predicted).any() else np.nan,
            "matthews_correlation": 0.0,
        }
    return {name: value for name, value in sklearn_metrics(labels, probabilities).items() if name in names}


def test_a_class_without_images_does_not_count_as_failed():
    confusion = np.array([[9, 1, 0], [0, 10, 0], [0, 0, 0]])
    metrics = confusion_metrics(confusion)
    assert float(metrics["macro_recall"]) == pytest.approx(0.95)
    assert float(metrics["macro_f1"]) == pytest.approx((18 / 19 + 20 / 21) / 2)


def test_a_class_never_predicted_counts_as_zero_precision_in_the_mean_and_is_undefined_alone():
    confusion = np.array([[10, 0], [5, 0]])
    assert float(confusion_metrics(confusion)["macro_precision"]) == pytest.approx(10 / 15 / 2)
    assert np.isnan(class_metrics(confusion)["precision"][1])
    assert class_metrics(confusion)["f1"][1] == 0


def test_a_stack_of_weighted_matrices_equals_one_at_a_time():
    generator = np.random.default_rng(3)
    stack = generator.random((4, 3, 5, 5)) * (generator.random((4, 3, 5, 1)) > 0.2)
    together = confusion_metrics(stack)
    classes = class_metrics(stack)
    for place in np.ndindex(4, 3):
        for name, value in confusion_metrics(stack[place]).items():
            np.testing.assert_allclose(together[name][place], value, atol=1e-12)
        for name, values in class_metrics(stack[place]).items():
            np.testing.assert_allclose(classes[name][place], values, atol=1e-12)


def test_epoch_metrics_are_floats_and_refuse_an_empty_epoch():
    labels, probabilities = make_case(*CASES[0])
    predicted = probabilities.argmax(axis=1)
    row = epoch_metrics(confusion_matrix(labels, predicted, 5))
    assert row["macro_f1"] == pytest.approx(reference.f1_score(labels, predicted, average="macro"), abs=1e-12)
    assert set(row) == {"accuracy", "macro_f1", "macro_precision", "macro_recall"}
    assert all(type(value) is float for value in row.values())
    with pytest.raises(DataError, match="empty") as caught:
        epoch_metrics(np.zeros((3, 3)))
    assert caught.value.fix


@pytest.mark.parametrize(
    ("labels", "predicted", "words"),
    [
        ([0, 3, -1], [0, 1, 1], "row 1 is 3, outside 0..2"),
        ([0.0, 1.0], [0, 1], "whole numbers"),
        ([], [], "no image"),
        ([0, 1], [0], "got 1 for 2"),
    ],
)
def test_malformed_labels_are_refused(labels, predicted, words):
    with pytest.raises(DataError, match=words):
        confusion_matrix(np.array(labels), np.array(predicted), 3)
    with pytest.raises(DataError, match="shape"):
        confusion_metrics(np.zeros((2, 3)))
