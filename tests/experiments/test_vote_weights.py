"""Greedy weights: near the best that there are, and not fooled by few images."""

import numpy as np
import pytest
from scipy.optimize import minimize

from foveal.experiments.ensemble.weights import SMALLEST_WEIGHT, greedy_weights
from foveal.metrics import fit_temperature, log_loss, softmax


def made(num_images: int, strengths: list[float], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Members that know the truth more or less, each with errors of its own."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, num_images)
    logits = [strength * np.eye(4)[labels] + rng.normal(0, 1, (num_images, 4)) for strength in strengths]
    return np.stack([softmax(each, fit_temperature(each, labels)) for each in logits]), labels


def loss_of(weights: np.ndarray, probabilities: np.ndarray, labels: np.ndarray) -> float:
    return float(log_loss(labels, np.tensordot(weights, probabilities, axes=1)))


def best_there_is(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """By a general optimiser, from several starts."""

    def loss(free: np.ndarray) -> float:
        return loss_of(softmax(free[None])[0], probabilities, labels)

    num = len(probabilities)
    starts = [np.zeros(num), *(3 * np.eye(num))]
    return float(min(minimize(loss, start, method="Nelder-Mead").fun for start in starts))


def test_without_resamples_it_comes_near_the_best_mixture() -> None:
    for seed, strengths in enumerate(([1.0, 2.0, 1.5], [0.5, 2.5, 2.5], [2.0, 2.0])):
        probabilities, labels = made(300, strengths, seed)
        weights = greedy_weights(probabilities, labels, num_bags=0)
        assert weights.sum() == pytest.approx(1.0)
        assert loss_of(weights, probabilities, labels) <= best_there_is(probabilities, labels) + 2e-3
        singles = np.eye(len(strengths))
        assert loss_of(weights, probabilities, labels) <= min(
            loss_of(single, probabilities, labels) for single in singles
        )


def test_members_that_know_nothing_are_left_out() -> None:
    probabilities, labels = made(400, [2.0, 0.0, 2.0])
    weights = greedy_weights(probabilities, labels, seed=3)
    assert weights[1] == 0.0
    assert min(weights[0], weights[2]) > 0.3
    assert ((weights == 0) | (weights >= SMALLEST_WEIGHT)).all()
    assert np.array_equal(weights, greedy_weights(probabilities, labels, seed=3))
    assert not np.array_equal(weights, greedy_weights(probabilities, labels, seed=4))


def test_resamples_keep_few_images_from_deciding() -> None:
    """Ten equally good members, thirty images: over many draws the bagged weights are better on new images."""
    gains = []
    for seed in range(12):
        few, labels = made(30, [1.5] * 10, seed)
        many, truths = made(2000, [1.5] * 10, seed + 1000)
        losses = [
            loss_of(greedy_weights(few, labels, seed=seed, num_bags=num_bags), many, truths) for num_bags in (0, 10)
        ]
        gains.append(losses[0] - losses[1])
    assert np.mean(gains) > 0.0
    assert sum(gain > 0 for gain in gains) >= 10


def test_groups_are_drawn_whole() -> None:
    """Copies of images tell nothing new: with their groups the weights are those of the images once."""
    probabilities, labels = made(60, [1.5, 1.5, 1.0], 5)
    groups = np.repeat(np.arange(60), 5)
    copied = np.repeat(probabilities, 5, axis=1), np.repeat(labels, 5)

    def spread(**options: np.ndarray) -> float:
        drawn = [greedy_weights(*copied, seed=seed, num_bags=1, **options) for seed in range(12)]
        return float(np.std(drawn, axis=0).mean())

    assert spread(groups=groups) > 1.3 * spread()
    assert greedy_weights(*copied, groups=np.zeros(300, dtype=np.int64)).sum() == pytest.approx(1.0)


@pytest.mark.parametrize("num_members", [2, 80])
def test_equal_members_are_all_heard(num_members: int) -> None:
    probabilities, labels = made(50, [1.0])
    weights = greedy_weights(np.repeat(probabilities, num_members, axis=0), labels, num_bags=3)
    assert weights.sum() == pytest.approx(1.0)
    assert np.isfinite(weights).all()


def test_when_every_image_is_right_there_is_still_an_answer() -> None:
    labels = np.array([0, 1, 0, 1])
    sure = softmax(9 * np.eye(2)[labels])
    weights = greedy_weights(np.stack([sure, sure**2 / (sure**2).sum(axis=1, keepdims=True)]), labels)
    assert weights.sum() == pytest.approx(1.0)
