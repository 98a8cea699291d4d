"""Vectors that lie near each other, found by way of cells and not by comparing all pairs.

The vectors are shared out among cells around centres (k-means), and each query looks into the few cells whose centres
are nearest. That is the inverted file of J. Sivic, A. Zisserman, "Video Google", ICCV 2003, in exact arithmetic: of
what lies in the cells that are looked into, nothing is missed. A tree would have to look nearly everywhere in 72
dimensions, and a graph (HNSW) costs more to build than all of the queries here, and finds other pairs in every run.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

BRUTE_FORCE_BELOW = 3000
"""So few vectors are one cell."""
NUM_PROBES = 16
MAX_CELLS = 4096
_WANTED_A_CELL = 50
_SAMPLE_A_CELL = 30
_NUM_ROUNDS = 6
_BLOCK = 4096


class Cells:
    """Vectors by cells.

    Args:
        vectors: float32 [n, d], of length 1.
        seed: decides the centres.
    """

    def __init__(self, vectors: NDArray[np.float32], *, seed: int = 0) -> None:
        num_cells = 1 if len(vectors) < BRUTE_FORCE_BELOW else min(len(vectors) // _WANTED_A_CELL, MAX_CELLS)
        self._centres = _centres(vectors, num_cells, np.random.default_rng(seed))
        cell = np.concatenate(
            [
                (vectors[at : at + _BLOCK] @ self._centres.T).argmax(axis=1)
                for at in range(0, max(1, len(vectors)), _BLOCK)
            ]
        )
        self._order = np.argsort(cell, kind="stable")
        self._starts = np.searchsorted(cell[self._order], np.arange(num_cells + 1))
        self._sorted = vectors[self._order]

    def within(
        self, queries: NDArray[np.float32], radius: float, most: int
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]]:
        """All vectors nearer to a query than a squared distance, of the cells that it looks into.

        Args:
            queries: float32 [m, d], of length 1.
            radius: squared Euclidean distance, 0..2.
            most: how many vectors of a cell a query is given at most, the nearest ones.

        Yields:
            A batch of hits: int64 numbers of the queries, int64 numbers of the vectors, float32 squared distances.
        """
        least = 1.0 - radius / 2.0
        likeness = queries @ self._centres.T
        num_probes = min(NUM_PROBES, likeness.shape[1])
        probed = np.argpartition(-likeness, num_probes - 1, axis=1)[:, :num_probes]
        by_cell = np.argsort(probed.ravel(), kind="stable")
        bounds = np.searchsorted(probed.ravel()[by_cell], np.arange(len(self._centres) + 1))
        for cell in range(len(self._centres)):
            asking = by_cell[bounds[cell] : bounds[cell + 1]] // num_probes
            start, end = self._starts[cell], self._starts[cell + 1]
            if not len(asking) or start == end:
                continue
            products = queries[asking] @ self._sorted[start:end].T
            if products.shape[1] > 4 * most:
                # Where a cell is full of what is alike, its nearest are enough, and memory stays flat.
                bar = np.partition(products, -most, axis=1)[:, -most]
                products[products < bar[:, None]] = -1.0
            places = np.flatnonzero(products > least)
            if len(places):
                query, member = np.divmod(places, end - start)
                yield asking[query], self._order[start + member], 2.0 - 2.0 * products.ravel()[places]


def _centres(vectors: NDArray[np.float32], num_cells: int, random: np.random.Generator) -> NDArray[np.float32]:
    """Centres of cells on the sphere, by k-means over a sample, float32 [cells, d]."""
    if num_cells == 1:
        return vectors[:1] if len(vectors) else np.zeros((1, vectors.shape[1]), np.float32)
    size = min(len(vectors), _SAMPLE_A_CELL * num_cells)
    sample = vectors[np.sort(random.choice(len(vectors), size, replace=False))]
    centres = sample[random.choice(size, num_cells, replace=False)]
    for _ in range(_NUM_ROUNDS):
        nearest = (sample @ centres.T).argmax(axis=1)
        order = np.argsort(nearest, kind="stable")
        taken, starts = np.unique(nearest[order], return_index=True)
        means = np.add.reduceat(sample[order], starts, axis=0)
        # A centre that nobody is nearest to stays where it is.
        centres[taken] = means / np.maximum(np.linalg.norm(means, axis=1), 1e-6)[:, None]
    return centres
