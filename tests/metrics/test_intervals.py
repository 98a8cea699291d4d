import time

import numpy as np
import pytest
from scipy.stats import binomtest

from foveal.errors import DataError
from foveal.metrics import bootstrap_intervals, ece, softmax, wilson_interval
from foveal.metrics import intervals as module
from foveal.metrics.intervals import ImageTable, resample_counts

from .cases import CASE_IDS, CASES, make_case, sklearn_metrics


def simulate(generator, num_images, num_classes=4, skill=2.0, num_groups=None):
    """Images whose logits are known noise around the truth; with groups, all images of one share their noise."""
    if num_groups is None:
        labels = np.arange(num_images) % num_classes
        noise = generator.normal(size=(num_images, num_classes))
        groups = None
    else:
        groups = np.arange(num_images) % num_groups
        labels = groups % num_classes
        noise = generator.normal(size=(num_groups, num_classes))[groups]
    return labels, softmax(noise + skill * np.eye(num_classes)[labels]), groups


def every_metric(labels, probabilities):
    return {
        k: float(v[0])
        for k, v in ImageTable.from_probabilities(labels, probabilities).metrics(np.ones((len(labels), 1))).items()
    }


@pytest.mark.parametrize("case", CASES, ids=CASE_IDS)
def test_each_resample_equals_scikit_learn_on_the_repeated_images(case):
    labels, probabilities = make_case(*case)
    table = ImageTable.from_probabilities(labels, probabilities)
    (counts,) = resample_counts(labels, None, 40, seed=7)
    values = table.metrics(counts)
    for column in (0, 17, 39):
        rows = np.repeat(np.arange(len(labels)), counts[:, column].astype(int))
        assert len(rows) == len(labels)
        for name, expected in sklearn_metrics(labels[rows], probabilities[rows]).items():
            assert values[name][column] == pytest.approx(expected, abs=1e-9), name


def test_resamples_keep_the_classes_and_do_not_depend_on_chunks(monkeypatch):
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 3, 4], [50, 12, 30, 3, 1]))
    (whole,) = resample_counts(labels, None, 300, seed=3)
    for c in (0, 1, 2):
        assert (whole[labels == c].sum(axis=0) == (labels == c).sum()).all()
    assert (whole[labels >= 3].sum(axis=0) == 4).all()  # too small to be drawn from alone: drawn together
    assert whole[labels == 4].var() > 0
    assert whole.mean(axis=1).min() > 0.75
    assert whole.mean(axis=1).max() < 1.25
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", 96 * 7)
    monkeypatch.setattr(module, "_DRAW_ELEMENTS", 96 * 3)
    np.testing.assert_array_equal(np.concatenate(list(resample_counts(labels, None, 300, seed=3)), axis=1), whole)
    assert (np.concatenate(list(resample_counts(labels, None, 300, seed=4)), axis=1) != whole).any()


def test_groups_are_drawn_as_wholes():
    groups = np.random.default_rng(0).integers(0, 6, 40)
    (counts,) = resample_counts(np.zeros(40, dtype=np.int64), groups, 100, seed=0)
    for g in range(6):
        assert (counts[groups == g] == counts[groups == g][0]).all()
    first_of_group = [np.flatnonzero(groups == g)[0] for g in range(6)]
    assert (counts[first_of_group].sum(axis=0) == 6).all()


def test_intervals_hold_the_truth_about_95_times_in_100():
    generator = np.random.default_rng(11)
    labels, probabilities, _ = simulate(generator, 400_000)
    truth = every_metric(labels, probabilities)
    names = ("accuracy", "macro_f1", "macro_roc_auc", "cohen_kappa", "log_loss", "brier")
    held = dict.fromkeys(names, 0)
    num_trials = 300
    for trial in range(num_trials):
        labels, probabilities, _ = simulate(generator, 200)
        bounds = bootstrap_intervals(labels, probabilities, seed=trial, num_resamples=400).bounds
        for name in names:
            held[name] += bounds[name][0] <= truth[name] <= bounds[name][1]
    for name in names:
        assert 0.90 <= held[name] / num_trials <= 0.99, (name, held)


def test_intervals_hold_the_truth_of_a_nearly_perfect_model_too():
    generator = np.random.default_rng(21)
    labels, probabilities, _ = simulate(generator, 400_000, skill=3.8)
    truth = every_metric(labels, probabilities)
    assert 0.985 < truth["accuracy"] < 0.995
    names = ("accuracy", "macro_f1", "cohen_kappa", "matthews_correlation")
    held, width = dict.fromkeys(names, 0), 0.0
    for trial in range(250):  # about two wrong of 200 each time, where plain percentiles hold the truth 4 times in 5
        labels, probabilities, _ = simulate(generator, 200, skill=3.8)
        bounds = bootstrap_intervals(labels, probabilities, seed=trial, num_resamples=300).bounds
        for name in names:
            held[name] += bounds[name][0] <= truth[name] <= bounds[name][1]
        width += (bounds["accuracy"][1] - bounds["accuracy"][0]) / 250
    assert min(held.values()) / 250 >= 0.92, held
    assert width <= 1.2 * np.diff(wilson_interval(200 * truth["accuracy"], 200))[0]


def test_groups_that_agree_widen_the_interval_to_an_honest_one():
    generator = np.random.default_rng(12)
    labels, probabilities, _ = simulate(generator, 400_000)
    truth = every_metric(labels, probabilities)["accuracy"]
    held_by_images = held_by_groups = wider = 0
    for trial in range(150):
        labels, probabilities, groups = simulate(generator, 400, num_groups=80)
        plain = bootstrap_intervals(labels, probabilities, seed=trial, num_resamples=300).bounds["accuracy"]
        grouped = bootstrap_intervals(labels, probabilities, groups=groups, seed=trial, num_resamples=300).bounds[
            "accuracy"
        ]
        wider += grouped[1] - grouped[0] > plain[1] - plain[0]
        held_by_images += plain[0] <= truth <= plain[1]
        held_by_groups += grouped[0] <= truth <= grouped[1]
    assert wider == 150
    assert held_by_groups / 150 >= 0.88
    assert held_by_images / 150 <= 0.75  # what drawing images one by one would have promised


def test_groups_of_one_image_each_change_nothing():
    labels, probabilities = make_case(*CASES[0])
    names = np.array([f"patient {i}" for i in range(len(labels))])
    assert bootstrap_intervals(labels, probabilities, groups=names) == bootstrap_intervals(labels, probabilities)


def test_one_group_gives_reasons_instead_of_intervals():
    labels, probabilities = make_case(*CASES[0])
    result = bootstrap_intervals(labels, probabilities, groups=np.zeros(len(labels)))
    assert not result.bounds
    assert "one group" in result.reasons["accuracy"]


def test_same_seed_same_interval():
    labels, probabilities = make_case(*CASES[1])
    first = bootstrap_intervals(labels, probabilities, seed=5)
    assert first == bootstrap_intervals(labels, probabilities, seed=5)
    assert first != bootstrap_intervals(labels, probabilities, seed=6)


@pytest.mark.parametrize("case", CASES, ids=CASE_IDS)
def test_every_defined_metric_has_an_interval_that_holds_it(case):
    labels, probabilities = make_case(*case)
    estimates = every_metric(labels, probabilities)
    result = bootstrap_intervals(labels, probabilities, ordered=True)
    assert set(result.bounds) == {name for name, value in estimates.items() if not np.isnan(value)}
    for name, (low, high) in result.bounds.items():
        assert low <= estimates[name] <= high, name
        assert low < high
    assert "quadratic_weighted_kappa" not in bootstrap_intervals(labels, probabilities).bounds


def test_the_bias_that_resampling_adds_to_the_calibration_error_is_taken_off():
    generator = np.random.default_rng(0)
    for _ in range(20):
        probabilities = softmax(generator.normal(size=(300, 6)) * 2)
        labels = (probabilities.cumsum(axis=1) > generator.random((300, 1))).argmax(axis=1)  # perfectly calibrated
        low, high = bootstrap_intervals(labels, probabilities, num_resamples=200).bounds["ece"]
        assert low < ece(labels, probabilities) < high


def test_all_right_is_not_claimed_to_be_certain():
    labels = np.arange(30) % 3
    probabilities = softmax(3.0 * np.eye(3)[labels] + np.random.default_rng(0).normal(size=(30, 3)) * 0.1)
    bounds = bootstrap_intervals(labels, probabilities, ordered=True).bounds
    assert bounds["accuracy"] == pytest.approx((binomtest(30, 30).proportion_ci(method="wilson").low, 1.0))
    for name in ("balanced_accuracy", "macro_precision", "macro_f1", "weighted_f1"):
        assert bounds[name] == pytest.approx(bounds["accuracy"], abs=1e-6), name
    assert bounds["cohen_kappa"] == pytest.approx((1.5 * bounds["accuracy"][0] - 0.5, 1.0))  # chance is 1/3 here
    assert bounds["quadratic_weighted_kappa"][0] < 1 == bounds["quadratic_weighted_kappa"][1]
    result = bootstrap_intervals(labels, probabilities)
    assert "macro_roc_auc" not in result.bounds
    assert "same value" in result.reasons["macro_roc_auc"]


def test_all_right_counts_groups_and_the_rare_class():
    labels = np.repeat([0, 1], [95, 5])
    probabilities = np.where(np.eye(2)[labels] == 1, 0.9, 0.1)
    bounds = bootstrap_intervals(labels, probabilities).bounds
    assert bounds["accuracy"][0] == pytest.approx(wilson_interval(100, 100)[0])
    assert bounds["balanced_accuracy"][0] == pytest.approx(wilson_interval(19, 19)[0], abs=1e-6)  # 2 / mean(1/95, 1/5)
    grouped = bootstrap_intervals(labels, probabilities, groups=np.arange(100) // 10).bounds
    assert grouped["accuracy"][0] == pytest.approx(wilson_interval(10, 10)[0])
    assert grouped["balanced_accuracy"][0] == pytest.approx(wilson_interval(1.9, 1.9)[0], abs=1e-6)


@pytest.mark.parametrize("accuracy", [0.0, 0.3, 0.6, 0.9])
def test_moving_a_confusion_to_an_accuracy_keeps_its_support(accuracy):
    for confusion in (
        np.diag([5.0, 3, 0]),
        np.array([[0.0, 4], [6, 0]]),
        np.array([[3.0, 2, 0], [1, 2, 2], [0, 0, 9]]),
    ):
        moved = module._with_accuracy(confusion, accuracy)
        np.testing.assert_allclose(moved.sum(axis=1), confusion.sum(axis=1), atol=1e-12)
        assert moved.min() >= 0
        reached = moved.trace() / moved.sum()
        assert reached == pytest.approx(accuracy)


def test_groups_with_few_errors_are_counted_by_what_grouping_cost():
    labels = np.arange(400) % 4
    groups = np.arange(400) // 5
    scattered = np.isin(np.arange(400), [7, 150, 390])
    together = groups == 3
    widths = []
    for wrong in (scattered, together):
        probabilities = np.full((400, 4), 0.1) + 0.6 * np.eye(4)[np.where(wrong, (labels + 1) % 4, labels)]
        low, high = bootstrap_intervals(labels, probabilities, groups=groups).bounds["accuracy"]
        widths.append(high - low)
        independent = 400 if wrong is scattered else 80
        right = 1 - wrong.mean()
        assert low <= 0.002 + wilson_interval(right * independent, independent)[0]
    assert widths[1] > 1.8 * widths[0]


def test_all_wrong_and_a_single_image_have_an_interval_too():
    labels = np.arange(20) % 4
    probabilities = np.full((20, 4), 0.1) + 0.6 * np.eye(4)[(labels + 1) % 4]
    bounds = bootstrap_intervals(labels, probabilities).bounds
    high = binomtest(0, 20).proportion_ci(method="wilson").high
    for name in ("accuracy", "macro_recall", "weighted_f1"):
        assert bounds[name] == pytest.approx((0.0, high), abs=0.02), name
    single = bootstrap_intervals(np.array([1]), np.array([[0.2, 0.8]]))
    assert single.bounds["accuracy"] == pytest.approx(wilson_interval(1, 1))
    # With one class in the split, whatever is taken for it is rightly so: its precision cannot vary either.
    assert set(single.reasons) == {"log_loss", "brier", "ece", "macro_precision"}


@pytest.mark.parametrize(("right", "total"), [(0, 10), (10, 10), (3, 10), (299, 315), (1, 1)])
def test_wilson_equals_scipy(right, total):
    expected = binomtest(right, total).proportion_ci(method="wilson")
    assert wilson_interval(right, total) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_metrics_undefined_in_most_resamples_get_a_reason(monkeypatch):
    # Two groups, one for each class: half of the resamples hold one class only, where kappa and the area have no value.
    labels = np.array([0] * 20 + [1] * 20)
    probabilities = softmax(np.random.default_rng(0).normal(size=(40, 2)) + np.eye(2)[labels])
    monkeypatch.setattr(module, "_MIN_DEFINED_SHARE", 0.6)
    result = bootstrap_intervals(labels, probabilities, groups=labels, num_resamples=1000)
    assert "undefined in most resamples" in result.reasons["macro_roc_auc"]
    assert "accuracy" in result.bounds
    monkeypatch.setattr(module, "_MIN_DEFINED_SHARE", 0.4)
    result = bootstrap_intervals(labels, probabilities, groups=labels, num_resamples=1000)
    assert not result.reasons.keys() & {"cohen_kappa", "accuracy"}
    assert np.isfinite(list(result.bounds.values())).all()


def test_wrong_requests_are_refused():
    labels, probabilities = make_case(*CASES[0])
    with pytest.raises(DataError, match="at least 2 resamples"):
        bootstrap_intervals(labels, probabilities, num_resamples=1)
    with pytest.raises(DataError, match="one group for each of 300"):
        bootstrap_intervals(labels, probabilities, groups=[1, 2])


def test_work_is_bounded_for_large_splits(monkeypatch):
    labels, probabilities = make_case(*CASES[0])
    seen = []
    real = module.weighted_roc_auc
    monkeypatch.setattr(module, "weighted_roc_auc", lambda *a: seen.append(a[2].shape[1]) or real(*a))
    monkeypatch.setattr(module, "_MAX_AUC_WORK", 300 * 5 * 250)
    monkeypatch.setattr(module, "_MAX_DRAWS", 300 * 400)
    monkeypatch.setattr(module, "_CHUNK_ELEMENTS", 300 * 90)
    values = module._resampled_metrics(ImageTable.from_probabilities(labels, probabilities), None, 0, 1000)
    assert sum(seen) == len(values["macro_roc_auc"]) == 250
    assert len(values["accuracy"]) == 400


def test_speed():
    labels, probabilities, _ = simulate(np.random.default_rng(0), 4000, num_classes=10)
    start = time.process_time()
    bootstrap_intervals(labels, probabilities)
    assert time.process_time() - start < 8  # 0.4 s when alone; a loop over resamples takes minutes
