"""A small decision tree, for a few thousand rows of a few numbers.

It is the one of scikit-learn (`DecisionTreeClassifier` with `max_leaf_nodes` and `class_weight="balanced"`), but
for which of two equally good splits is taken. Importing that library takes longer than all other checks of ten thousand
pictures.

Source: L. Breiman et al., "Classification and Regression Trees", 1984; Gini impurity, grown best first.
"""

from dataclasses import dataclass, field
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]

_SAME = np.float32(1e-7)
"""Values that lie no farther apart are not parted."""
_PURE = 1e-12


@dataclass
class Tree:
    """Nodes by number, the root first; leaves have no feature (-1).

    Attributes:
        feature: which number is asked for.
        threshold: up to which value a row goes to the left.
        left, right: numbers of the nodes below.
        label: the most frequent class, all classes weighing alike.
    """

    feature: list[int] = field(default_factory=list)
    threshold: list[float] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    right: list[int] = field(default_factory=list)
    label: list[int] = field(default_factory=list)

    def predict(self, values: NDArray[np.float32]) -> Integers:
        """The class of each row of float32 [n, numbers]: int64 [n]."""
        feature, threshold = np.array(self.feature), np.array(self.threshold)
        left, right = np.array(self.left), np.array(self.right)
        node = np.zeros(len(values), np.int64)
        open_rows = np.flatnonzero(feature[node] >= 0)
        while len(open_rows):
            here = node[open_rows]
            is_left = values[open_rows, feature[here]] <= threshold[here]
            node[open_rows] = np.where(is_left, left[here], right[here])
            open_rows = open_rows[feature[node[open_rows]] >= 0]
        return np.array(self.label)[node]

    def _add(self, label: int) -> int:
        for column in (self.feature, self.left, self.right):
            column.append(-1)
        self.threshold.append(0.0)
        self.label.append(label)
        return len(self.label) - 1


@dataclass(frozen=True)
class _Split:
    """The best split of a node: which number, up to where, how many rows go left in its order, and what is gained."""

    feature: int
    threshold: float
    num_left: int
    gain: float


def grow(values: NDArray[np.float32], labels: Integers, *, max_leaves: int, min_leaf_rows: int) -> Tree:
    """Grow a tree, always splitting where most is gained.

    Args:
        values: float32 [n, numbers], finite.
        labels: int64 [n], classes from 0; those without a row count for nothing.
        max_leaves: where to stop.
        min_leaf_rows: rows that each leaf has at least.
    """
    counts = np.bincount(labels)
    weight = len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    tree = Tree()
    waiting: list[tuple[float, int, _Split, Integers]] = []

    def add(order: Integers) -> int:
        """Take in a node; `order` is int64 [numbers, rows], the rows of the node in the order of each number."""
        of_class = np.bincount(labels[order[0]], minlength=len(counts)) * weight
        number = tree._add(int(of_class.argmax()))
        split = _best_split(values, labels, weight, of_class, order, min_leaf_rows)
        if split:
            heappush(waiting, (-split.gain, number, split, order))
        return number

    add(np.argsort(values.T, axis=1, kind="stable"))
    num_leaves = 1
    is_left = np.zeros(len(labels), np.bool_)
    while waiting and num_leaves < max_leaves:
        _, number, split, order = heappop(waiting)
        rows = order[split.feature]
        is_left[rows] = False
        is_left[rows[: split.num_left]] = True
        goes_left = is_left[order]
        tree.feature[number], tree.threshold[number] = split.feature, split.threshold
        tree.left[number] = add(order[goes_left].reshape(len(order), -1))
        tree.right[number] = add(order[~goes_left].reshape(len(order), -1))
        num_leaves += 1
    return tree


def _best_split(
    values: NDArray[np.float32],
    labels: Integers,
    weight: NDArray[np.float64],
    of_class: NDArray[np.float64],
    order: Integers,
    min_leaf_rows: int,
) -> _Split | None:
    """Where a node is best parted; None where it is pure, small, or all rows are the same."""
    num = order.shape[1]
    total = of_class.sum()
    purity = (of_class**2).sum() / total
    if num < 2 * min_leaf_rows or 1.0 - purity / total <= _PURE:
        return None
    classes = labels[order]
    one = weight[classes]
    # Of the classes on the left, the sum of squares grows by w (2 c + w) with a row of weight w of a class that has c
    # there already; that on the right follows from it.
    before = np.empty(order.shape, np.int64)
    by_class = np.argsort(classes.astype(np.int16), axis=1, kind="stable")
    starts = np.cumsum(np.bincount(classes[0], minlength=len(weight))) - np.bincount(classes[0], minlength=len(weight))
    rank = np.arange(num) - np.repeat(starts, np.bincount(classes[0], minlength=len(weight)))
    np.put_along_axis(before, by_class, np.broadcast_to(rank, order.shape), axis=1)
    on_left = np.cumsum(one, axis=1)
    squares = np.cumsum(one * one * (2 * before + 1), axis=1)
    rest = (of_class**2).sum() - 2.0 * np.cumsum(one * of_class[classes], axis=1) + squares
    places = slice(min_leaf_rows - 1, num - min_leaf_rows)
    gain = squares[:, places] / on_left[:, places] + rest[:, places] / (total - on_left[:, places])
    sorted_values = np.take_along_axis(values.T, order, axis=1)
    steps = sorted_values[:, min_leaf_rows : num - min_leaf_rows + 1] > sorted_values[:, places] + _SAME
    gain = np.where(steps, gain, -np.inf)
    feature, place = np.unravel_index(int(gain.argmax()), gain.shape)
    if not np.isfinite(gain[feature, place]):
        return None
    num_left = int(place) + min_leaf_rows
    low, high = sorted_values[feature, num_left - 1 : num_left + 1].astype(np.float64)
    middle = low / 2.0 + high / 2.0
    return _Split(
        int(feature), float(low if middle == high else middle), num_left, float(gain[feature, place] - purity)
    )
