"""The intervals of classes: against Wilson's formula, a plain bootstrap, and what groups must do to them."""

import numpy as np
import pytest
from scipy import stats

from foveal.metrics.by_class import MOST_CLASSES, class_intervals


def drawn(num_images: int, share: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, num_images)
    return labels, np.where(rng.random(num_images) < share, labels, rng.integers(0, 3, num_images))


def test_recall_of_a_large_class_is_that_of_a_plain_bootstrap() -> None:
    labels, said = drawn(3000, 0.6)
    found = class_intervals(labels, said, 3)
    rng = np.random.default_rng(1)
    for at in range(3):
        own = said[labels == at] == at
        means = [rng.choice(own, len(own)).mean() for _ in range(2000)]
        assert found[at].recall == pytest.approx(np.quantile(means, (0.025, 0.975)), abs=0.01)
        assert found[at].f1 is not None
        assert found[at].f1[0] < found[at].f1[1]


def test_a_class_without_an_error_has_the_interval_of_wilson() -> None:
    labels = np.repeat([0, 1], 20)
    found = class_intervals(labels, labels, 2)[0]
    bounds = stats.binomtest(20, 20).proportion_ci(method="wilson")
    assert found.recall == pytest.approx((bounds.low, bounds.high))
    assert found.precision == pytest.approx((bounds.low, bounds.high))
    assert found.f1 == pytest.approx((bounds.low, bounds.high))


def test_whole_groups_say_less_than_as_many_images() -> None:
    labels, said = drawn(60, 0.7)
    alone = class_intervals(np.tile(labels, 10), np.tile(said, 10), 3)[0].recall
    grouped = class_intervals(np.tile(labels, 10), np.tile(said, 10), 3, groups=np.tile(np.arange(60), 10))[0].recall
    assert alone is not None
    assert grouped is not None
    assert grouped[1] - grouped[0] > 2 * (alone[1] - alone[0])


def test_what_is_undefined_has_no_interval_and_many_classes_have_that_of_wilson() -> None:
    found = class_intervals([0] * 20, [0] * 15 + [1] * 5, 3)
    assert found[1].recall is None
    assert found[1].f1 is None
    assert found[1].precision is not None
    assert found[2].precision is None
    number = MOST_CLASSES + 1
    many = class_intervals(np.arange(number), np.arange(number), number)
    bounds = stats.binomtest(1, 1).proportion_ci(method="wilson")
    assert many[7].recall == pytest.approx((bounds.low, bounds.high))
    assert many[7].f1 is None
