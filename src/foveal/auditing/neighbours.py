"""Vectors that lie near each other, found by way of cells and not by comparing all pairs.

The vectors are shared out among cells around centres (k-means), and each query looks into the few cells whose centres
are nearest. That is the inverted file of J. Sivic, A. Zisserman, "Video Google", ICCV 2003, in exact arithmetic: of
what lies in the cells that are looked into, nothing is missed. A tree would have to look nearly everywhere in 72
dimensions, and a graph (HNSW) costs more to build than all of the queries here, and finds other pairs in every run.
"""

import numpy as np
from numpy.typing import NDArray

BRUTE_FORCE_BELOW = 3000
"""So few vectors are one cell."""
NUM_PROBES = 4
MAX_CELLS = 4096
_WANTED_A_CELL = 100
_SAMPLE_A_CELL = 30
_NUM_ROUNDS = 6
_BLOCK = 4096
_NUM_DIRECTIONS = 39
_DIRECTIONS_FROM = 4096
_PRODUCTS = 1 << 14
_NONE = np.empty(0, dtype=np.int64)


class Cells:
    """Vectors by cells.

    Args:
        vectors: float32 [n, d], of length 1.
        seed: decides the centres.
    """

    def __init__(self, vectors: NDArray[np.float32], *, seed: int = 0) -> None:
        sample = vectors[:: max(1, len(vectors) // _DIRECTIONS_FROM)]
        _, _, directions = np.linalg.svd(sample, full_matrices=False)
        self._directions = np.ascontiguousarray(directions[:_NUM_DIRECTIONS].T)
        num_cells = 1 if len(vectors) < BRUTE_FORCE_BELOW else min(len(vectors) // _WANTED_A_CELL, MAX_CELLS)
        vectors = np.concatenate(
            [self._reduced(vectors[at : at + _BLOCK]) for at in range(0, max(1, len(vectors)), _BLOCK)]
        )
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
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """All vectors nearer than a squared distance to a query in any of its views, of the cells that it looks into.

        Args:
            queries: float32 [m, views, d], each of length 1.
            radius: squared Euclidean distance, 0..2.
            most: how many vectors of a cell a query is given at most, the nearest ones.

        Returns:
            By hit: int64 number of the query, int64 number of the vector, int64 view in which it is nearest, and
            float32 squared distance there.
        """
        least = 1.0 - radius / 2.0
        queries = self._reduced(queries.reshape(-1, queries.shape[2])).reshape(*queries.shape[:2], -1)
        asked = self._asked(queries)
        by_cell, images = np.nonzero(asked.T)
        bounds = np.searchsorted(by_cell, np.arange(len(self._centres) + 1))
        found = [(_NONE, _NONE, _NONE, _NONE.astype(np.float32))]
        for cell in range(len(self._centres)):
            asking = images[bounds[cell] : bounds[cell + 1]]
            members = self._sorted[self._starts[cell] : self._starts[cell + 1]]
            # In small steps, so that the products stay in the processor's cache.
            for at in range(0, len(asking) if len(members) else 0, step := max(1, _PRODUCTS // max(1, len(members)))):
                some = asking[at : at + step]
                products = queries[some].reshape(-1, queries.shape[2]) @ members.T
                products = products.reshape(len(some), -1, len(members))
                best = products.max(axis=1)
                if len(members) > 4 * most:
                    # Where a cell is full of what is alike, its nearest are enough, and memory stays flat.
                    bar = np.partition(best, -most, axis=1)[:, -most]
                    best[best < bar[:, None]] = -1.0
                query, member = np.nonzero(best > least)
                if len(query):
                    view = products[query, :, member].argmax(axis=1)
                    number = self._order[self._starts[cell] + member]
                    found.append((some[query], number, view, 2.0 - 2.0 * best[query, member]))
        query, member, view, distance = (np.concatenate(part) for part in zip(*found, strict=True))
        return query, member, view, distance

    def _asked(self, queries: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Into which cells a query looks, bool [m, cells]: those that are nearest to any of its views."""
        num, views, size = queries.shape
        likeness = queries.reshape(-1, size) @ self._centres.T
        asked = np.zeros((num, len(self._centres)), np.bool_)
        owner, rows = np.repeat(np.arange(num), views), np.arange(num * views)
        for _ in range(min(NUM_PROBES, len(self._centres))):
            nearest = likeness.argmax(axis=1)
            asked[owner, nearest] = True
            likeness[rows, nearest] = -2.0
        return asked

    def _reduced(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Vectors along the main directions of the data, with the length of the rest as one more.

        The product of two such is at least that of the whole vectors: nothing near is ever lost.
        """
        along = vectors @ self._directions
        rest = np.sqrt(np.maximum(1.0 - (along * along).sum(axis=1), 0.0))
        return np.concatenate([along, rest[:, None]], axis=1)


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
