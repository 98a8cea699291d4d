import numpy as np
import pytest
import sklearn.metrics as reference
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.special import softmax as scipy_softmax

from foveal.errors import DataError
from foveal.metrics import brier, ece, fit_temperature, log_loss, reliability_bins, softmax, top_k_accuracy

from .cases import CASE_IDS, CASES, make_case, sklearn_metrics


@pytest.mark.parametrize("case", CASES, ids=CASE_IDS)
def test_scores_equal_the_references(case):
    for seed in range(3):
        labels, probabilities = make_case(*case, seed=seed)
        expected = sklearn_metrics(labels, probabilities)
        assert log_loss(labels, probabilities) == pytest.approx(expected["log_loss"], abs=1e-9)
        assert brier(labels, probabilities) == pytest.approx(expected["brier"], abs=1e-9)
        assert ece(labels, probabilities) == pytest.approx(expected["ece"], abs=1e-9)
        for k in (3, 5):
            ours = top_k_accuracy(labels, probabilities, k)
            if k < probabilities.shape[1]:
                assert ours == pytest.approx(expected[f"top_{k}_accuracy"], abs=1e-12)
            else:
                assert np.isnan(ours)


def test_top_k_equals_scikit_learn_without_ties_and_agrees_with_argmax_on_ties():
    labels, probabilities = make_case(*CASES[0])
    assert top_k_accuracy(labels, probabilities, 3) == reference.top_k_accuracy_score(labels, probabilities, k=3)
    tied = np.full((4, 4), 0.25)
    assert top_k_accuracy(np.arange(4), tied, 1) == (tied.argmax(axis=1) == np.arange(4)).mean() == 0.25
    assert top_k_accuracy(np.arange(4), tied, 3) == 0.75


def test_certain_and_wrong_costs_what_scikit_learn_says():
    labels, probabilities = np.array([0, 1, 2]), np.eye(3)[[1, 1, 0]]
    expected = reference.log_loss(labels, probabilities)
    assert log_loss(labels, probabilities) == pytest.approx(expected, rel=1e-12)
    assert brier(labels, probabilities) == reference.brier_score_loss(labels, probabilities) == pytest.approx(4 / 3)


def test_an_edge_belongs_to_the_bin_below_it():
    probabilities = np.array([[0.75, 0.25], [0.75 + 1e-9, 0.25 - 1e-9], [1.0, 0.0], [0.5, 0.5], [0.55, 0.45]])
    bins = reliability_bins(np.array([0, 1, 0, 0, 1]), probabilities, num_bins=4)
    assert bins.num_images.tolist() == [0, 1, 2, 2]
    assert bins.accuracy[1:].tolist() == [1.0, 0.5, 0.5]
    assert bins.mean_probability[2] == pytest.approx(0.65)
    assert np.isnan(bins.accuracy[0])
    assert bins.edges.tolist() == [0, 0.25, 0.5, 0.75, 1]


def test_softmax_equals_scipy_and_survives_huge_logits():
    logits = np.random.default_rng(0).normal(size=(20, 7)) * 10
    np.testing.assert_allclose(softmax(logits, 1.7), scipy_softmax(logits / 1.7, axis=1), atol=1e-12)
    np.testing.assert_array_equal(softmax(np.array([[1e300, -1e300], [0.0, 0.0]])), [[1, 0], [0.5, 0.5]])
    with pytest.raises(DataError, match="temperature above 0"):
        softmax(logits, 0.0)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5, 8.0])
def test_a_known_temperature_is_recovered(temperature):
    generator = np.random.default_rng(5)
    true_logits = generator.normal(size=(40_000, 5)) * 2
    labels = (true_logits + generator.gumbel(size=true_logits.shape)).argmax(axis=1)  # a draw from their softmax
    assert fit_temperature(true_logits * temperature, labels) == pytest.approx(temperature, rel=0.03)


def test_temperature_is_the_minimum_that_scipy_finds():
    for seed in range(8):
        generator = np.random.default_rng(seed)
        num_classes = int(generator.integers(2, 12))
        labels = generator.integers(0, num_classes, 60)
        logits = generator.normal(size=(60, num_classes)) * generator.uniform(0.5, 6)
        logits[np.arange(60), labels] += 2

        def loss(u, logits=logits, labels=labels):
            return -log_softmax(logits * np.exp(u), axis=1)[np.arange(60), labels].mean()

        best = minimize_scalar(loss, bounds=(-np.log(20), np.log(20)), method="bounded", options={"xatol": 1e-10})
        ours = fit_temperature(logits, labels)
        assert loss(-np.log(ours)) <= best.fun + 1e-12
        assert ours == pytest.approx(np.exp(-best.x), rel=1e-4)


def test_temperature_of_images_that_cannot_tell():
    labels = np.array([0, 1, 2])
    assert fit_temperature(np.eye(3) * 1e6, labels) == 1.0  # all right, by any margin
    assert fit_temperature(np.eye(3) * 1e-6, labels) == 1.0
    assert fit_temperature(np.zeros((3, 3)), labels) == 1.0
    assert fit_temperature(-np.eye(3) * 1e6, labels) == 20.0  # all wrong, and sure of it
    nearly = np.concatenate([np.eye(3)[np.arange(30) % 3], np.eye(3)[[1]]]) * 1e-3
    assert fit_temperature(nearly, np.append(np.arange(30) % 3, 0)) == 0.05  # right, and far too shy
    mixed = np.array([[1e6, 0.0], [1e6, 0.0]])
    assert fit_temperature(mixed, np.array([0, 1])) == 20.0
    with pytest.raises(DataError, match="NaN or infinity"):
        fit_temperature(np.array([[np.inf, 0.0]]), np.array([0]))


def test_all_faults_of_probabilities_are_told_at_once():
    rows = np.array([[0.5, 0.4], [1.5, -0.5], [0.5, 0.5]])
    with pytest.raises(DataError) as caught:
        ece(np.array([0, 2, 1, 0]), rows)
    text = str(caught.value)
    for words in ("row 1 is 2", "3 rows for 4 labels", "leave 0..1, the first: 1", "do not sum to 1, the first: 0"):
        assert words in text
    assert caught.value.fix
    with pytest.raises(DataError, match=r"\[images, classes\]"):
        ece(np.array([0]), np.array([1.0]))
