"""Connected components against scipy's."""

import time

import numpy as np
import pytest
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from foveal.data.components import components


def by_scipy(num_rows: int, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    graph = coo_matrix((np.ones(len(left)), (left, right)), shape=(num_rows, num_rows))
    labels = connected_components(graph, directed=False)[1]
    # Numbered anew by first appearance.
    _, first, of_row = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[of_row]


@pytest.mark.parametrize("seed", range(20))
def test_random_graphs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_rows = int(rng.integers(1, 300))
    left, right = rng.integers(0, num_rows, (2, int(rng.integers(0, 400))))
    assert np.array_equal(components(num_rows, left, right), by_scipy(num_rows, left, right))


def test_nothing_a_loop_and_pairs_twice() -> None:
    none = np.empty(0, np.int64)
    assert components(0, none, none).tolist() == []
    assert components(3, none, none).tolist() == [0, 1, 2]
    assert components(4, np.array([1, 3, 3, 1]), np.array([1, 1, 1, 3])).tolist() == [0, 1, 2, 1]


@pytest.mark.parametrize("order", ["forwards", "backwards", "shuffled"])
def test_a_chain_of_a_million_rows_is_short_work(order: str) -> None:
    num_rows = 1_000_000
    line = np.arange(num_rows)
    if order == "backwards":
        line = line[::-1]
    elif order == "shuffled":
        line = np.random.default_rng(0).permutation(num_rows)
    start = time.thread_time()
    assert not components(num_rows, line[:-1], line[1:]).any()
    assert time.thread_time() - start < 5
