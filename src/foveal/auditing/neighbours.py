"""Vectors that lie near each other, found by way of cells and not by comparing all pairs.

The vectors are shared out among cells around centres (k-means), and each query looks into the few cells whose centres
are nearest. That is the inverted file of J. Sivic, A. Zisserman, "Video Google", ICCV 2003, in exact arithmetic: of
what lies in the cells that are looked into, nothing is missed. A tree would have to look nearly everywhere in 72
dimensions, and a graph (HNSW) costs more to build than all of the queries here, and finds other pairs in every run.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

BRUTE_FORCE_BELOW = 3000
"""So few vectors are one cell."""
NUM_PROBES = 12
_CELLS_OF_ROOT = 2.5
_SAMPLE_A_CELL = 30
_NUM_ROUNDS = 6
_BLOCK = 4096
_NUM_DIRECTIONS = 39
_DIRECTIONS_FROM = 4096
_PRODUCTS, _LIKENESSES = 1 << 17, 1 << 18

Hits = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]


class Vectors(Protocol):
    """Vectors that are made when they are asked for."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, part: slice) -> NDArray[np.float32]:
        """Some of them, float32 [m, d], of length 1."""


class Cells:
    """Vectors by cells.

    Args:
        vectors: float32 [n, d], of length 1; an array, or what gives parts of one, for a million take their room.
        seed: decides the centres.
    """

    def __init__(self, vectors: "NDArray[np.float32] | Vectors", *, seed: int = 0) -> None:
        sample = vectors[:: max(1, len(vectors) // _DIRECTIONS_FROM)]
        _, _, directions = np.linalg.svd(sample, full_matrices=False)
        self._directions = np.ascontiguousarray(directions[:_NUM_DIRECTIONS].T)
        num_cells = _num_cells(len(vectors))
        sample = self._reduced(vectors[:: max(1, len(vectors) // (_SAMPLE_A_CELL * num_cells))])
        self._centres = _centres(sample, num_cells, np.random.default_rng(seed))
        steps = [slice(at, at + _BLOCK) for at in range(0, len(vectors), _BLOCK)]
        cell = np.empty(len(vectors), np.int16)
        for step in steps:
            cell[step] = _nearest_of(self._reduced(vectors[step]), self._centres)
        self._order = np.argsort(cell, kind="stable")
        self._starts = np.searchsorted(cell[self._order], np.arange(num_cells + 1))
        # Reduced a second time, which costs less than to have them twice in memory.
        place = np.empty(len(vectors), np.int64)
        place[self._order] = np.arange(len(vectors))
        self._sorted = np.empty((len(vectors), self._centres.shape[1]), np.float32)
        for step in steps:
            self._sorted[place[step]] = self._reduced(vectors[step])

    def within(self, queries: NDArray[np.float32], radius: float, most: int) -> Hits:
        """All vectors nearer than a squared distance to a query in any of its views, of the cells that it looks into.

        Args:
            queries: float32 [m, views, d], each of length 1; at most 2,048 queries of at most 32 views.
            radius: squared Euclidean distance, 0..2.
            most: how many vectors of a cell a query is given at most, the nearest ones.

        Returns:
            By hit: int64 number of the query, int64 number of the vector, int64 view in which it is nearest, and
            float32 squared distance there.
        """
        least = 1.0 - radius / 2.0
        num_views = queries.shape[1]
        flat = self._reduced(queries.reshape(-1, queries.shape[2]))
        asking, bounds = self._asking(flat)
        found = [np.empty(0, np.uint64)]
        for cell in range(len(self._centres)):
            start, end = int(self._starts[cell]), int(self._starts[cell + 1])
            # In steps, so that the products stay in the processor's cache.
            step = max(1, _PRODUCTS // max(1, end - start))
            for at in range(bounds[cell], bounds[cell + 1] if end > start else bounds[cell], step):
                rows = asking[at : min(at + step, bounds[cell + 1])]
                products = flat[rows] @ self._sorted[start:end].T
                places = np.flatnonzero(products > least)
                crowded = np.flatnonzero(np.bincount(places // (end - start), minlength=1) > most)
                if len(crowded):
                    # Where a cell is full of what is alike, its nearest are enough, and memory stays flat.
                    bar = np.partition(products[crowded], -most, axis=1)[:, -most]
                    products[crowded] = np.where(products[crowded] >= bar[:, None], products[crowded], -1.0)
                    places = np.flatnonzero(products > least)
                if len(places):
                    row, member = np.divmod(places, end - start)
                    far = (2.0 - 2.0 * products.ravel()[places]) / radius
                    found.append(_packed(rows[row], self._order[start + member], far, num_views))
        return _nearest_views(np.concatenate(found), radius)

    def usual_distance(self, queries: NDArray[np.float32], rank: int) -> float:
        """The squared distance within which nine of ten queries have so many neighbours, whatever the cells.

        Args:
            queries: float32 [m, views, d], each of length 1; a small sample, for they are compared with all vectors.
            rank: of the neighbour.
        """
        if not len(queries) or len(self._sorted) <= rank:
            return 4.0
        num, views = queries.shape[:2]
        flat = self._reduced(queries.reshape(-1, queries.shape[2]))
        nearest = np.full((num, rank), -2.0, np.float32)
        for at in range(0, len(self._sorted), _BLOCK):
            products = (flat @ self._sorted[at : at + _BLOCK].T).reshape(num, views, -1).max(axis=1)
            nearest = -np.partition(-np.concatenate([nearest, products], axis=1), rank - 1, axis=1)[:, :rank]
        return float(np.quantile(2.0 - 2.0 * nearest.min(axis=1), 0.9))

    def _asking(self, flat: NDArray[np.float32]) -> tuple[NDArray[np.int64], list[int]]:
        """The rows that look into each cell: int64 [rows * probes] by cell, and where each cell's begin."""
        num_probes = min(NUM_PROBES, len(self._centres))
        probed = np.empty((num_probes, len(flat)), np.int16)
        step = max(1, _LIKENESSES // len(self._centres))
        for at in range(0, len(flat), step):
            likeness = flat[at : at + step] @ self._centres.T
            rows = np.arange(len(likeness))
            for number in range(num_probes):
                # The largest again and again: cheaper than to put thousands of cells in order for the few that count.
                probed[number, at : at + step] = nearest = likeness.argmax(axis=1)
                likeness[rows, nearest] = -2.0
        by_cell = np.argsort(probed.ravel(), kind="stable")
        bounds = np.searchsorted(probed.ravel()[by_cell], np.arange(len(self._centres) + 1))
        return by_cell % len(flat), bounds.tolist()

    def _reduced(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Vectors along the main directions of the data, with the length of the rest as one more.

        The product of two such is at least that of the whole vectors: nothing near is ever lost.
        """
        along = vectors @ self._directions
        rest = np.sqrt(np.maximum(1.0 - (along * along).sum(axis=1), 0.0))
        return np.concatenate([along, rest[:, None]], axis=1)


def _num_cells(num_vectors: int) -> int:
    """Cells in proportion to the root of the number: as much work to choose cells as to look into them."""
    return 1 if num_vectors < BRUTE_FORCE_BELOW else round(_CELLS_OF_ROOT * num_vectors**0.5)


_FAR = 0xFFFF
"""Distances within the radius, as whole numbers from 0 to this."""


def _packed(
    rows: NDArray[np.int64], members: NDArray[np.int64], far: NDArray[np.float32], num_views: int
) -> NDArray[np.uint64]:
    """Hits as numbers that sort by query, vector, distance and view: 11, 32, 16 and 5 bits.

    There are a thousand hits a query where pictures are alike; plain numbers sort many times faster than several keys.
    """
    query, view = np.divmod(rows, num_views)
    steps = np.clip(far * _FAR, 0, _FAR).astype(np.int64)
    return ((((query << 32) + members << 16) + steps << 5) + view).astype(np.uint64)


def _nearest_views(hits: NDArray[np.uint64], radius: float) -> Hits:
    """Each query's vectors by the view in which they are nearest."""
    hits = np.sort(hits)
    pair = hits >> np.uint64(21)
    is_new = np.ones(len(hits), np.bool_)
    is_new[1:] = pair[1:] != pair[:-1]
    kept = hits[is_new].astype(np.int64)
    distance = ((kept >> 5 & _FAR) * (radius / _FAR)).astype(np.float32)
    return kept >> 53, kept >> 21 & 0xFFFFFFFF, kept & 31, distance


def _nearest_of(vectors: NDArray[np.float32], centres: NDArray[np.float32]) -> NDArray[np.int64]:
    """The centre nearest to each vector, int64 [n]."""
    step = max(1, _LIKENESSES // len(centres))
    nearest = np.empty(len(vectors), np.int64)
    for at in range(0, len(vectors), step):
        nearest[at : at + step] = (vectors[at : at + step] @ centres.T).argmax(axis=1)
    return nearest


def _centres(vectors: NDArray[np.float32], num_cells: int, random: np.random.Generator) -> NDArray[np.float32]:
    """Centres of cells on the sphere, by k-means, float32 [cells, d]."""
    if num_cells == 1:
        return vectors[:1] if len(vectors) else np.zeros((1, vectors.shape[1]), np.float32)
    centres = vectors[random.choice(len(vectors), num_cells, replace=False)]
    for _ in range(_NUM_ROUNDS):
        nearest = _nearest_of(vectors, centres)
        order = np.argsort(nearest, kind="stable")
        taken, starts = np.unique(nearest[order], return_index=True)
        means = np.add.reduceat(vectors[order], starts, axis=0)
        # A centre that nobody is nearest to stays where it is.
        centres[taken] = means / np.maximum(np.linalg.norm(means, axis=1), 1e-6)[:, None]
    return centres
