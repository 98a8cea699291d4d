"""Vectors that lie near each other, found by way of cells and not by comparing all pairs.

The vectors are shared out among cells around centres (k-means), and each query looks into the few cells whose centres
are nearest. That is the inverted file of J. Sivic, A. Zisserman, "Video Google", ICCV 2003, in exact arithmetic: of
what lies in the cells that are looked into, nothing is missed. A tree would have to look nearly everywhere in 72
dimensions, and a graph (HNSW) costs more to build than all of the queries here, and finds other pairs in every run.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

BRUTE_FORCE_BELOW = 3000
"""So few vectors are one cell."""
NUM_PROBES = 12
_CELLS_OF_ROOT = 2.5
_SAMPLE_A_CELL = 30
_NUM_ROUNDS = 6
_BLOCK = 2048
_ASKED_FOR_MARGIN = 512
_NUM_DIRECTIONS = 39
_DIRECTIONS_FROM = 4096
_PRODUCTS, _LIKENESSES = 1 << 17, 1 << 17

Integers = NDArray[np.int64]
Hits = tuple[Integers, Integers, Integers, NDArray[np.float32]]


class Vectors(Protocol):
    """Vectors that are made when they are asked for."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, part: slice) -> NDArray[np.float32]:
        """Some of them, float32 [m, d], of length 1."""


@dataclass(frozen=True)
class _Look:
    """What a block of queries looks for: the rows are the queries' views, one query after the other."""

    flat: NDArray[np.float32]
    num_views: int
    radius: float
    most: int


@dataclass(frozen=True)
class _Asking:
    """The rows that look into each cell: int64 [n], by cell, and where each cell's begin."""

    rows: Integers
    bounds: list[int]

    @classmethod
    def of(cls, rows: Integers, cells: NDArray[np.int16], num_cells: int) -> "_Asking":
        """Rows put in order by the cells that they look into."""
        order = np.argsort(cells, kind="stable")
        return cls(rows[order], np.searchsorted(cells[order], np.arange(num_cells + 1)).tolist())


class Cells:
    """Vectors by cells.

    Args:
        vectors: float32 [n, d], of length 1; an array, or what gives parts of one, for a million take their room.
        seed: decides the centres.
        mapped: what works through parts, such as the `map` of threads.
    """

    def __init__(
        self, vectors: "NDArray[np.float32] | Vectors", *, seed: int = 0, mapped: Callable[..., Iterable[Any]] = map
    ) -> None:
        self._mapped = mapped
        sample = vectors[:: max(1, len(vectors) // _DIRECTIONS_FROM)]
        _, _, directions = np.linalg.svd(sample, full_matrices=False)
        self._directions = np.ascontiguousarray(directions[:_NUM_DIRECTIONS].T)
        num_cells = _num_cells(len(vectors))
        sample = self._reduced(vectors[:: max(1, len(vectors) // (_SAMPLE_A_CELL * num_cells))])
        self._centres = _centres(sample, num_cells, np.random.default_rng(seed))
        self._margin = self._usual_margin(sample[:: max(1, len(sample) // _ASKED_FOR_MARGIN)])
        steps = [slice(at, at + _BLOCK) for at in range(0, len(vectors), _BLOCK)]
        cells = mapped(lambda step: _nearest_of(self._reduced(vectors[step]), self._centres), steps)
        cell = np.concatenate([np.empty(0, np.int16), *cells])
        self._order = np.argsort(cell, kind="stable")
        self._starts = np.searchsorted(cell[self._order], np.arange(num_cells + 1))
        # Reduced a second time, which costs less than to have them twice in memory.
        place = np.empty(len(vectors), np.int64)
        place[self._order] = np.arange(len(vectors))
        self._sorted = np.empty((len(vectors), self._centres.shape[1]), np.float32)
        for step, part in zip(steps, mapped(lambda step: self._reduced(vectors[step]), steps), strict=True):
            self._sorted[place[step]] = part

    def within(
        self,
        queries: NDArray[np.float32],
        radius: float,
        most: int,
        *,
        enough: int = 0,
        counts: Callable[[Integers, Integers], NDArray[np.bool_]] | None = None,
    ) -> Hits:
        """All vectors nearer than a squared distance to a query in any of its views, of the cells that it looks into.

        Args:
            queries: float32 [m, views, d], each of length 1; at most 1,024 queries of at most 32 views.
            radius: squared Euclidean distance, 0..2.
            most: how many vectors of a cell a query is given at most, the nearest ones.
            enough: of how many vectors a query wants to know at least: what is farther than so many may be left out,
                which saves most of the work where pictures are alike. 0 for all.
            counts: which hits are among these, asked with the numbers of queries and of vectors; all if not given.

        Returns:
            By hit: int64 number of the query, int64 number of the vector, int64 view in which it is nearest, and
            float32 squared distance there.
        """
        num, num_views = queries.shape[:2]
        flat = self._reduced(queries.reshape(-1, queries.shape[2]))
        nearest, others = self._asking(flat)
        look = _Look(flat, num_views, radius, most)
        bounds = np.full(num, radius, np.float32)
        hits = self._seen(look, nearest, bounds)
        if enough and others is not None:
            # What the nearest cells hold says how far the others need to be looked into.
            query, member, _, distance = _nearest_views(hits, radius)
            if counts is not None:
                chosen = counts(query, member)
                query, distance = query[chosen], distance[chosen]
            order = by_distance(query, distance)
            last = order[np.arange(len(query)) - np.searchsorted(query, query) == enough - 1]
            bounds[query[last]] = distance[last] + np.float32(2.0 * radius / _FAR)
            hits = hits[((hits >> 5 & _FAR) * (radius / _FAR)).astype(np.float32) <= bounds[hits >> 53]]
        if others is not None:
            hits = np.concatenate([hits, self._seen(look, others, bounds)])
        return _nearest_views(hits, radius)

    def _seen(self, look: "_Look", asking: "_Asking", bounds: NDArray[np.float32]) -> Integers:
        """What is within each query's bound of the cells that it looks into, packed."""
        least = np.repeat(np.float32(1.0) - bounds / 2, look.num_views)[:, None]
        packed_rows = _packed_rows(len(bounds), look.num_views)
        found = [np.empty(0, np.int64)]
        for cell in range(len(self._centres)):
            start, end = int(self._starts[cell]), int(self._starts[cell + 1])
            if start == end:
                continue
            members = self._sorted[start:end].T
            # In steps, so that the products stay in the processor's cache.
            step, last = max(1, _PRODUCTS // (end - start)), asking.bounds[cell + 1]
            for at in range(asking.bounds[cell], last, step):
                rows = asking.rows[at : min(at + step, last)]
                products = look.flat.take(rows, axis=0) @ members
                places = (products > least.take(rows, axis=0)).ravel().nonzero()[0]
                if not len(places):
                    continue
                near = products.ravel().take(places)
                row, member = np.divmod(places.astype(np.int32), np.int32(end - start))
                if len(row) > look.most and np.bincount(row).max() > look.most:
                    kept = _nearest_of_each(row, near, look.most)
                    row, member, near = row[kept], member[kept], near[kept]
                far = (2.0 - 2.0 * near) * np.float32(_FAR / look.radius)
                hits = np.maximum(far, 0.0).astype(np.int64) << 5
                hits += packed_rows[rows[row]]
                hits += self._order[start + member] << 21
                found.append(hits)
        return np.concatenate(found)

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

        def products(at: int) -> NDArray[np.float32]:
            found: NDArray[np.float32] = (flat @ self._sorted[at : at + _BLOCK].T).reshape(num, views, -1).max(axis=1)
            return found

        nearest = np.full((num, rank), -2.0, np.float32)
        for found in self._mapped(products, range(0, len(self._sorted), _BLOCK)):
            nearest = -np.partition(-np.concatenate([nearest, found], axis=1), rank - 1, axis=1)[:, :rank]
        return float(np.quantile(2.0 - 2.0 * nearest.min(axis=1), 0.9))

    def _asking(self, flat: NDArray[np.float32]) -> tuple["_Asking", "_Asking | None"]:
        """Which rows look into which cells: each into the nearest one, and into all that are hardly farther."""
        num_cells = len(self._centres)
        if num_cells == 1:
            return _Asking.of(np.arange(len(flat)), np.zeros(len(flat), np.int16), 1), None
        nearest = np.empty(len(flat), np.int16)
        rows, cells = [np.empty(0, np.int64)], [np.empty(0, np.int16)]
        step = max(1, _LIKENESSES // num_cells)
        for at in range(0, len(flat), step):
            likeness = flat[at : at + step] @ self._centres.T
            nearest[at : at + step] = first = likeness.argmax(axis=1)
            of_first, values = np.arange(0, likeness.size, num_cells) + first, likeness.ravel()
            bar = values.take(of_first) - self._margin
            values[of_first] = -2.0
            # Found by one number and taken apart, which is a third of the time of finding two.
            places = (likeness > bar[:, None]).ravel().nonzero()[0]
            row = places // num_cells
            cells.append((places - row * num_cells).astype(np.int16))
            rows.append(row + at)
        return (
            _Asking.of(np.arange(len(flat)), nearest, num_cells),
            _Asking.of(np.concatenate(rows), np.concatenate(cells), num_cells),
        )

    def _usual_margin(self, sample: NDArray[np.float32]) -> np.float32:
        """How much less like a vector than the nearest centre those are that it looks at: `NUM_PROBES` on average."""
        if len(self._centres) <= NUM_PROBES:
            return np.float32(4.0)
        likeness = sample @ self._centres.T
        gaps = (likeness.max(axis=1, keepdims=True) - likeness).ravel()
        rank = NUM_PROBES * len(sample)
        return np.float32(np.partition(gaps, rank)[rank])

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


def _packed_rows(num_queries: int, num_views: int) -> Integers:
    """What each row adds to its hits: int64 [queries * views].

    Hits are numbers that sort by query, vector, distance and view: 10, 32, 16 and 5 bits. There are hundreds of hits a
    query where pictures are alike; plain numbers sort many times faster than several keys.
    """
    packed: Integers = ((np.arange(num_queries) << 53)[:, None] + np.arange(num_views)).ravel()
    return packed


def _nearest_views(hits: Integers, radius: float) -> Hits:
    """Each query's vectors by the view in which they are nearest."""
    hits = np.sort(hits)
    is_new = np.ones(len(hits), np.bool_)
    is_new[1:] = np.diff(hits >> 21) > 0
    kept = hits[is_new]
    distance = ((kept >> 5 & _FAR) * (radius / _FAR)).astype(np.float32)
    return kept >> 53, kept >> 21 & 0xFFFFFFFF, kept & 31, distance


def by_distance(query: NDArray[Any], distance: NDArray[np.float32]) -> Integers:
    """The order of hits by query and then by distance, many times faster than by two keys."""
    # What is not negative sorts by its bits as it does by its value.
    bits = np.maximum(distance, np.float32(0.0)).view(np.int32)
    return np.argsort((query.astype(np.int64) << 32) + bits)


def _nearest_of_each(row: NDArray[np.int32], product: NDArray[np.float32], most: int) -> Integers:
    """Places of so many hits of each row, those with the largest products, so that memory stays flat."""
    order = by_distance(row, 2.0 - product)
    return np.sort(order[np.arange(len(row)) - np.searchsorted(row, row) < most])


def _nearest_of(vectors: NDArray[np.float32], centres: NDArray[np.float32]) -> NDArray[np.int16]:
    """The centre nearest to each vector, int16 [n]."""
    step = max(1, _LIKENESSES // len(centres))
    nearest = np.empty(len(vectors), np.int16)
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
