"""The decision tree, against scikit-learn's."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score
from sklearn.tree import DecisionTreeClassifier

from foveal.auditing.tree import grow

LEAVES, ROWS = 16, 3


def made(num: int, num_classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of which the first tells something of the class, and the last has few values; classes of unequal size."""
    rng = np.random.default_rng(seed)
    labels = np.minimum(rng.geometric(0.4, num) - 1, num_classes - 1)
    values = rng.normal(size=(num, 3))
    values[:, 0] += labels
    values[:, 2] = np.round(values[:, 2])
    return values.astype(np.float32), labels.astype(np.int64)


@pytest.mark.parametrize("seed", range(12))
def test_it_is_as_good_as_scikit_learns_and_mostly_the_same(seed: int) -> None:
    values, labels = made(900, 2 + seed % 5, seed)
    other = DecisionTreeClassifier(
        max_leaf_nodes=LEAVES, min_samples_leaf=ROWS, class_weight="balanced", random_state=0
    ).fit(values[:600], labels[:600])
    tree = grow(values[:600], labels[:600], max_leaves=LEAVES, min_leaf_rows=ROWS)
    for part in (slice(0, 600), slice(600, 900)):
        said, expected = tree.predict(values[part]), other.predict(values[part])
        assert (said == expected).mean() > 0.97  # of equal splits either may be taken
        ours, theirs = (balanced_accuracy_score(labels[part], each) for each in (said, expected))
        assert ours == pytest.approx(theirs, abs=0.02)
    assert tree.feature.count(-1) == other.get_n_leaves()
    assert (tree.feature[0], tree.threshold[0]) == (other.tree_.feature[0], pytest.approx(other.tree_.threshold[0]))


def test_rare_classes_weigh_as_much_as_frequent_ones() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    values = np.array([0.0] * 80 + [1.0] * 20, np.float32)[:, None]
    tree = grow(values, labels, max_leaves=2, min_leaf_rows=3)
    assert tree.predict(np.array([[0.0], [1.0]], np.float32)).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (np.zeros((20, 2), np.float32), np.arange(20) % 2),
        (np.arange(20, dtype=np.float32)[:, None], np.zeros(20, np.int64)),
        (np.arange(5, dtype=np.float32)[:, None], np.arange(5) % 2),
    ],
    ids=["nothing to tell by", "one class", "too few rows"],
)
def test_what_cannot_be_parted_is_one_leaf(values: np.ndarray, labels: np.ndarray) -> None:
    tree = grow(values, labels, max_leaves=LEAVES, min_leaf_rows=ROWS)
    assert tree.feature == [-1]
    assert len(set(tree.predict(values).tolist())) == 1


def test_no_leaf_is_smaller_than_asked_and_there_are_no_more_than_asked() -> None:
    values, labels = made(400, 4, 99)
    tree = grow(values, labels, max_leaves=9, min_leaf_rows=11)
    leaf = np.zeros(len(values), np.int64)
    for _ in range(20):
        inner = np.array(tree.feature)[leaf] >= 0
        here = leaf[inner]
        left = values[inner, np.array(tree.feature)[here]] <= np.array(tree.threshold)[here]
        leaf[inner] = np.where(left, np.array(tree.left)[here], np.array(tree.right)[here])
    numbers, counts = np.unique(leaf, return_counts=True)
    assert len(numbers) == tree.feature.count(-1) <= 9
    assert counts.min() >= 11
