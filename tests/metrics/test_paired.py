from itertools import combinations

import numpy as np
import pytest
from scipy.stats import binomtest, chi2
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, log_loss
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests

from foveal.errors import DataError
from foveal.metrics import compare_every_pair, compare_paired, holm, softmax
from foveal.metrics.paired import PAIRED_METRICS, mcnemar, paired_difference_interval


def simulate(seed, *, num_images=315, num_classes=5, skills=(2.0, 3.0), num_groups=None):
    """Labels, the probabilities of two models that share half of their noise, and groups, whose images are copies."""
    generator = np.random.default_rng(seed)
    num = num_images if num_groups is None else num_groups
    labels = np.arange(num) % num_classes
    shared = generator.normal(size=(num, num_classes))
    models = [
        softmax(0.7 * shared + 0.7 * generator.normal(size=shared.shape) + skill * np.eye(num_classes)[labels])
        for skill in skills
    ]
    groups = np.arange(num_images) % num
    return labels[groups], *(model[groups] for model in models), groups


def exactly(both, only_first, only_second, neither):
    """Two models of two classes that are right on so many images each, or together."""
    first = np.repeat([1, 1, 0, 0], [both, only_first, only_second, neither])
    second = np.repeat([1, 0, 1, 0], [both, only_first, only_second, neither])
    labels = np.arange(len(first)) % 2
    return labels, *(np.eye(2)[np.where(right, labels, 1 - labels)] * 0.8 + 0.1 for right in (first, second))


@pytest.mark.parametrize(
    ("only_first", "only_second"),
    [(0, 0), (0, 1), (1, 0), (3, 9), (12, 12), (0, 24), (10, 15), (5, 20), (23, 47), (300, 220)],
)
def test_mcnemar_is_that_of_statsmodels_and_scipy(only_first, only_second):
    p, test = mcnemar(only_first, only_second)
    num = only_first + only_second
    exact = num < 25
    assert test == ("exact" if exact else "chi-square")
    table = [[100, only_first], [only_second, 7]]
    assert p == pytest.approx(statsmodels_mcnemar(table, exact=exact, correction=True).pvalue, abs=1e-12)
    reference = (
        binomtest(only_first, num).pvalue
        if exact and num
        else chi2.sf((abs(only_first - only_second) - 1) ** 2 / num, 1)
        if num
        else 1.0
    )
    assert p == pytest.approx(reference, abs=1e-12)


def test_mcnemar_of_equals_is_one_also_where_the_continuity_correction_overshoots():
    assert mcnemar(40, 40) == (1.0, "chi-square")
    assert mcnemar(12, 12) == (1.0, "exact")


def test_differences_are_those_of_scikit_learn():
    labels, first, second, _ = simulate(1)
    found = compare_paired(labels, first, second)
    for place, rows in ((found.first, first), (found.second, second)):
        guess = rows.argmax(axis=1)
        assert place["accuracy"] == pytest.approx(accuracy_score(labels, guess))
        assert place["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, guess))
        assert place["macro_f1"] == pytest.approx(f1_score(labels, guess, average="macro"))
        assert place["log_loss"] == pytest.approx(log_loss(labels, rows))
    for name in PAIRED_METRICS:
        assert found.differences[name] == pytest.approx(found.second[name] - found.first[name], abs=1e-12)
        low, high = found.intervals[name]
        assert low <= found.differences[name] <= high
    rights = [rows.argmax(axis=1) == labels for rows in (first, second)]
    assert found.both == (rights[0] & rights[1]).sum()
    assert found.only_first == (rights[0] & ~rights[1]).sum()
    assert found.only_second == (~rights[0] & rights[1]).sum()
    assert found.both + found.only_first + found.only_second + found.neither == found.num_images == 315


def test_the_interval_is_the_plain_paired_bootstrap():
    """Against one written down image by image, on unstratified draws: close, not equal, for the draws differ."""
    labels, first, second, _ = simulate(2, num_images=600)
    gain = (second.argmax(axis=1) == labels).astype(float) - (first.argmax(axis=1) == labels)
    generator = np.random.default_rng(9)
    expected = np.quantile([gain[generator.integers(0, 600, 600)].mean() for _ in range(2000)], (0.025, 0.975))
    np.testing.assert_allclose(compare_paired(labels, first, second).intervals["accuracy"], expected, atol=0.008)
    both = compare_paired(labels, first, second, seed=5)
    assert both.intervals == compare_paired(labels, first, second, seed=5).intervals
    assert both.intervals != compare_paired(labels, first, second, seed=6).intervals


def test_a_pair_among_several_is_what_it_is_by_itself():
    labels, first, second, _ = simulate(3)
    third = simulate(4)[1]
    models = [first, second, third]
    for found, (a, b) in zip(compare_every_pair(labels, models), combinations(models, 2), strict=True):
        assert found == compare_paired(labels, a, b)


def test_swapping_turns_everything_round():
    labels, first, second, _ = simulate(5)
    found, back = compare_paired(labels, first, second), compare_paired(labels, second, first)
    assert found.verdict == "better"
    assert back.verdict == "worse"
    turned = found.swapped()
    assert (turned.only_first, turned.only_second, turned.verdict) == (back.only_first, back.only_second, "worse")
    for name in PAIRED_METRICS:
        assert turned.differences[name] == pytest.approx(back.differences[name])
        np.testing.assert_allclose(turned.intervals[name], back.intervals[name], atol=1e-3)


def test_sentences():
    better = compare_paired(*exactly(280, 4, 24, 7))
    assert better.sentence("A", "B").startswith("B is better than A: 0.97 against 0.90, +0.06 [0.0")
    assert better.sentence("A", "B").endswith("on the same 315 images")
    worse = compare_paired(*exactly(280, 24, 4, 7))
    assert worse.sentence("A", "B").startswith("B is worse than A: 0.90 against 0.97, -0.06 [-0.")
    unclear = compare_paired(*exactly(280, 14, 14, 7))
    assert unclear.sentence("A", "B").startswith(
        "A and B cannot be told apart with these 315 images: both 0.93, difference within [-0.0"
    )
    close = compare_paired(*exactly(9000, 40, 41, 900))
    assert "0.9057 against 0.9058, +0.0001" in close.sentence("A", "B")
    same = compare_paired(*exactly(300, 0, 0, 15))
    assert "no image that only one of them has right" in same.sentence("A", "B")
    assert "with this 1 image:" in compare_paired([0], [[0.9, 0.1]], [[0.2, 0.8]]).sentence("A", "B")


@pytest.mark.parametrize("counts", [(300, 0, 0, 15), (315, 0, 0, 0), (300, 0, 1, 14), (0, 5, 0, 0), (309, 0, 6, 0)])
def test_few_differences_never_collapse_to_certainty(counts):
    found = compare_paired(*exactly(*counts))
    low, high = found.intervals["accuracy"]
    held = paired_difference_interval(counts[1], counts[2], sum(counts))
    assert low <= held[0] < held[1] <= high
    assert low < high
    assert (found.verdict == "undecided") == (found.mcnemar_p >= 0.05 or low <= 0 <= high)


def test_whole_classes_that_only_one_knows_are_a_difference_though_no_resample_varies():
    labels = np.repeat([0, 1, 2], 12)
    probabilities = [np.eye(3)[guess] * 0.7 + 0.1 for guess in (np.where(labels == 2, 1, labels), labels)]
    found = compare_paired(labels, *probabilities)
    assert found.verdict == "better"
    low, high = found.intervals["accuracy"]
    assert 0.1 < low < 1 / 3 < high
    assert "every resample" in found.undefined["balanced_accuracy"]


def test_the_adjusted_interval_is_that_of_the_paper_and_covers():
    # Bonett and Price (2012): differences of paired proportions with one added to both discordant cells.
    low, high = paired_difference_interval(2, 9, 50)
    lost, won = 3 / 52, 10 / 52
    half = 1.959964 * np.sqrt((lost + won - (won - lost) ** 2) / 52)
    assert (low, high) == pytest.approx((won - lost - half, won - lost + half), abs=1e-6)
    draws = np.random.default_rng(0).multinomial(80, [0.05, 0.02, 0.93], size=1000)
    inside = [low <= -0.03 <= high for low, high in (paired_difference_interval(a, b, 80) for a, b, _ in draws)]
    assert np.mean(inside) >= 0.94


def test_equals_are_seldom_called_different():
    wrong = sum(
        compare_paired(*simulate(seed, num_images=150, skills=(2.5, 2.5))[:3], num_resamples=200).verdict != "undecided"
        for seed in range(200)
    )
    assert wrong <= 14  # 5 % of 200 are 10; the two tests have to agree, so it is fewer


def test_groups_are_drawn_whole():
    """Thirty photographs, each ten times: McNemar's test takes copies for proof, the interval does not."""
    labels, first, second, groups = simulate(13, num_images=300, num_groups=30, skills=(2.0, 2.6))
    alone, grouped = compare_paired(labels, first, second), compare_paired(labels, first, second, groups=groups)
    width = {name: np.ptp(found.intervals["accuracy"]) for name, found in (("alone", alone), ("grouped", grouped))}
    assert width["grouped"] > 2 * width["alone"]
    assert grouped.mcnemar_p == alone.mcnemar_p < 0.05
    assert grouped.verdict == "undecided"
    one = compare_paired(labels, first, second, groups=np.zeros(300, dtype=int))
    assert one.intervals == {}
    assert one.verdict == "undecided"
    assert "one group" in one.undefined["accuracy"]


def test_holm_is_that_of_statsmodels_and_changes_verdicts():
    p = [0.03, 0.001, 0.2, 0.04, 0.9, 0.011, 0.011]
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1])
    assert holm([]) == []
    found = compare_paired(*exactly(280, 5, 16, 14))
    assert found.verdict == "better"
    adjusted = found.adjusted(min(1.0, 10 * found.mcnemar_p))
    assert adjusted.verdict == "undecided"
    assert adjusted.p == adjusted.adjusted_p > 0.05 > found.p
    assert adjusted.to_dict()["mcnemar_p"] == found.mcnemar_p


def test_what_cannot_be_compared_is_refused():
    labels, first, second, _ = simulate(1)
    with pytest.raises(DataError, match="same images and classes"):
        compare_paired(labels, first, second[:-1])
    with pytest.raises(DataError, match="2 resamples"):
        compare_paired(labels, first, second, num_resamples=1)
    with pytest.raises(DataError, match="one true label"):
        compare_paired(labels[:-1], first, second)
    assert compare_every_pair(labels, [first]) == []
