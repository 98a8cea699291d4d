import numpy as np
import pytest
import sklearn.metrics as reference
from scipy.stats import mannwhitneyu

from foveal.errors import DataError
from foveal.metrics import macro_roc_auc, roc_auc_by_class, roc_curve
from foveal.metrics.curves import weighted_roc_auc

from .cases import CASE_IDS, CASES, make_case, sklearn_macro_auc


@pytest.mark.parametrize("case", CASES, ids=CASE_IDS)
def test_area_equals_scikit_learn(case):
    for seed in range(3):
        labels, probabilities = make_case(*case, seed=seed)
        assert macro_roc_auc(labels, probabilities) == pytest.approx(sklearn_macro_auc(labels, probabilities), abs=1e-9)


def test_area_equals_the_rank_sum_statistic_with_ties():
    labels, probabilities = make_case("ties", 250, 4, (), 1)
    for c, area in enumerate(roc_auc_by_class(labels, probabilities)):
        inside, outside = probabilities[labels == c, c], probabilities[labels != c, c]
        expected = mannwhitneyu(inside, outside).statistic / (len(inside) * len(outside))
        assert area == pytest.approx(expected, abs=1e-12)


def test_a_class_that_is_absent_or_alone_has_no_area():
    labels, probabilities = make_case("missing classes", 150, 8, (0, 5), None)
    assert np.flatnonzero(np.isnan(roc_auc_by_class(labels, probabilities))).tolist() == [0, 5]
    alone = np.zeros(10, dtype=int)
    assert np.isnan(roc_auc_by_class(alone, probabilities[:10])).all()
    assert np.isnan(macro_roc_auc(alone, probabilities[:10]))


def test_two_classes_use_the_second_column_even_where_the_first_is_rounded_away():
    labels = np.array([0, 1, 0, 1])
    probabilities = np.array([[0.5, 0.5], [1e-20, 1.0], [2e-20, 1.0], [1e-20, 1.0]])
    expected = reference.roc_auc_score(labels, probabilities[:, 1])
    assert roc_auc_by_class(labels, probabilities).tolist() == [expected, expected]


@pytest.mark.parametrize("num_classes", [2, 3, 12])
def test_weights_act_as_scikit_learns_sample_weight(num_classes):
    labels, probabilities = make_case("weights", 200, num_classes, (), 1)
    weights = np.random.default_rng(1).random((200, 70))
    ours = weighted_roc_auc(labels, probabilities, weights)
    for column in (0, 31, 32, 69):
        for c in range(num_classes):
            used = max(c, 1) if num_classes == 2 else c
            expected = reference.roc_auc_score(labels == used, probabilities[:, used], sample_weight=weights[:, column])
            assert ours[c, column] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("decimals", [None, 1])
def test_curve_equals_scikit_learn(decimals):
    labels, probabilities = make_case("curve", 200, 3, (), decimals)
    for c in range(3):
        expected = reference.roc_curve(labels == c, probabilities[:, c])
        for ours, theirs in zip(roc_curve(labels, probabilities, c), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_curve_of_an_absent_class_is_none_and_of_no_class_an_error():
    labels, probabilities = make_case("missing", 50, 4, (2,), None)
    assert roc_curve(labels, probabilities, 2) is None
    with pytest.raises(DataError, match=r"0\.\.3"):
        roc_curve(labels, probabilities, 4)
