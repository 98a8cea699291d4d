"""Connected components of a graph over rows, as arrays."""

import numpy as np
from numpy.typing import NDArray


def components(num_rows: int, left: NDArray[np.int64], right: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows that are joined by pairs, directly or by way of others.

    Source: hooking and pointer jumping, as in Y. Shiloach, U. Vishkin, "An O(log n) Parallel Connectivity Algorithm",
    Journal of Algorithms 3, 1982; here over whole arrays.

    Args:
        num_rows: how many rows there are.
        left: int64 [pairs], one end of each pair.
        right: int64 [pairs], the other.

    Returns:
        int64 [rows], the number of each row's component, by first appearance.
    """
    root = np.arange(num_rows)
    while True:
        low, high = np.minimum(root[left], root[right]), np.maximum(root[left], root[right])
        open_ends = low != high
        if not open_ends.any():
            break
        left, right = left[open_ends], right[open_ends]
        np.minimum.at(root, high[open_ends], low[open_ends])
        while not np.array_equal(jumped := root[root], root):
            root = jumped
    _, component = np.unique(root, return_inverse=True)
    return component.astype(np.int64)
