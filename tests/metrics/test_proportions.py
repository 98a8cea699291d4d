"""Shares of the same images: each interval that of an accuracy by itself, and means of several from the same draws."""

import numpy as np
import pytest

from foveal.errors import DataError
from foveal.metrics import bootstrap_intervals
from foveal.metrics.proportions import resampled_proportions

NUM = 120


def case(accuracy: float, *, grouped: bool, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Labels of three unequal classes, what is right, and groups of three whose images mostly agree."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, NUM, p=[0.6, 0.3, 0.1])
    groups = np.arange(NUM) // 3 if grouped else None
    draws = np.repeat(rng.random(NUM // 3), 3) if grouped else rng.random(NUM)
    return labels, draws < accuracy, groups


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("accuracy", [0.5, 0.9, 0.97, 1.0])
def test_one_share_has_the_interval_of_an_accuracy(accuracy: float, grouped: bool) -> None:
    labels, right, groups = case(accuracy, grouped=grouped)
    predicted = np.where(right, labels, (labels + 1) % 3)
    probabilities = np.full((NUM, 3), 0.1)
    probabilities[np.arange(NUM), predicted] = 0.8
    wanted = bootstrap_intervals(labels, probabilities, groups=groups, seed=4).bounds["accuracy"]
    found = resampled_proportions(labels, right[None], groups=groups, seed=4)
    assert found.interval(0) == pytest.approx(wanted, abs=1e-9)


def test_a_mean_and_a_ratio_move_with_the_images_and_not_one_by_one() -> None:
    labels, right, _ = case(0.8, grouped=False)
    harder = right & (np.random.default_rng(1).random(NUM) < 0.6)
    found = resampled_proportions(labels, np.stack([right, harder, harder]), seed=2)
    mean = found.mean_interval(np.array([1, 2]))
    assert mean == pytest.approx(found.interval(1))  # the same images twice are no more images
    low, high = found.mean_interval(np.array([1, 2]), over=0) or (0.0, 0.0)
    ratio = harder.mean() / right.mean()
    rng, draws = np.random.default_rng(9), []
    for _ in range(4000):
        taken = np.concatenate([rng.choice(np.flatnonzero(labels == c), (labels == c).sum()) for c in range(3)])
        draws.append(harder[taken].mean() / right[taken].mean())
    assert low < ratio < high
    assert (low, high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=0.02)


def test_one_group_has_no_interval_and_nothing_right_no_ratio() -> None:
    labels, right, _ = case(0.8, grouped=False)
    found = resampled_proportions(labels, right[None], groups=np.zeros(NUM), seed=0)
    assert found.shares[0] == right.mean()
    assert found.interval(0) is None
    assert found.mean_interval(np.array([0])) is None
    none_right = resampled_proportions(labels, np.zeros((2, NUM), bool))
    assert none_right.mean_interval(np.array([1]), over=0) is None
    assert none_right.interval(0) == pytest.approx((0.0, 0.031), abs=0.001)  # Wilson's


def test_one_image_is_enough_and_none_is_not() -> None:
    found = resampled_proportions([0], [[True]])
    assert found.interval(0) == pytest.approx((0.2065, 1.0), abs=1e-3)
    with pytest.raises(DataError, match="Expected labels"):
        resampled_proportions([], np.empty((1, 0)))
    with pytest.raises(DataError, match="Expected labels"):
        resampled_proportions([0, 1], [[True]])
