"""Pairs of pictures that may be copies: the first and the second step of the search (`duplicates`)."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from foveal.auditing.disc import NUM_PARTS, VIEWS, best_turn, strengths, waves
from foveal.auditing.neighbours import Cells, by_distance
from foveal.auditing.registration import Placement
from foveal.extras import require
from foveal.progress import Bar, Progress

T = TypeVar("T")

CANDIDATE_RADIUS = 0.12
MAX_NEIGHBOURS, MAX_CANDIDATES = 16, 6
"""Of each picture, the neighbours whose waves are compared, and of these the ones that are laid over it."""
LEAST_OF_WAVES = 0.85
"""The least correlation of the waves; set as those in `duplicates`."""

_BLOCK = 512
_MOST_HELD = 1 << 17  # pictures, whose waves take 70 MiB
_MOST_A_CELL = 32
_NUM_ASKED = 64
_TURNS_AT_ONCE = 2048  # so that they stay in the processor's cache


@dataclass(frozen=True)
class Candidates:
    """Pairs that may be copies: a view of the left picture looks like the whole of the right one.

    Attributes:
        left: int64 [pairs], rows.
        right: int64 [pairs], rows.
        placement: how they lie over each other, as far as the waves tell.
        agreement: float32 [pairs], the correlation of their waves.
        is_mirrored: bool [pairs].
    """

    left: NDArray[np.int64]
    right: NDArray[np.int64]
    placement: Placement
    agreement: NDArray[np.float32]
    is_mirrored: NDArray[np.bool_]


def find_candidates(
    sketches: NDArray[np.uint8],
    rows: NDArray[np.int64],
    photographs: NDArray[np.int64],
    *,
    num_workers: int,
    progress: Progress,
) -> Candidates:
    """Each picture's nearest others by what neither turning, mirroring nor a crop changes much.

    Args:
        sketches: uint8 [all rows, SKETCH_BYTES].
        rows: int64 [n], the rows to compare.
        photographs: int64 [all rows]; boxes of one photograph are not compared.
        num_workers: threads.
        progress: where to show how far it is.
    """
    with in_threads(num_workers) as pool:
        discs = _Discs.telling(sketches, rows, pool)
        rows = discs.rows
        cells = Cells(discs, mapped=pool.map)
        photographs = photographs[rows]
        lots = _lots(sketches, rows)
        asked = rows[np.argsort(lots, kind="stable")[:_NUM_ASKED]]
        # The more pictures there are, the nearer are those that will be kept: what lies farther is not looked at.
        radius = min(CANDIDATE_RADIUS, cells.usual_distance(strengths(waves(sketches[asked])[0]), MAX_NEIGHBOURS + 1))

        def nearest(block: NDArray[np.int64]) -> _Hits:
            return _nearest(cells, radius, block, discs, photographs)

        with progress.bar("Near duplicates", len(rows), "images") as bar:
            hits = _Hits.joined(in_blocks(nearest, len(rows), _BLOCK, pool, bar))
    # A pair that is found from both sides is kept as it agrees best.
    first, second = np.minimum(hits.left, hits.right), np.maximum(hits.left, hits.right)
    # Seen from either side, a pair agrees to the last digits; what the pictures are decides then, not their order.
    order = np.lexsort((lots[hits.left], -hits.agreement.round(4), second, first))
    is_new = np.ones(len(order), np.bool_)
    is_new[1:] = (first[order[1:]] != first[order[:-1]]) | (second[order[1:]] != second[order[:-1]])
    hits = hits.take(order[is_new])
    placement = Placement.of(VIEWS[hits.view], hits.angle, hits.is_mirrored)
    return Candidates(rows[hits.left], rows[hits.right], placement, hits.agreement, hits.is_mirrored)


def _lots(sketches: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A number for each row, as good as drawn by lot, by what the picture is and not by its place: uint64 [n]."""
    blocks = (rows[at : at + _BLOCK] for at in range(0, len(rows), _BLOCK))
    sums = [sketches[block].sum(axis=1, dtype=np.uint64) for block in blocks]
    return np.concatenate([np.empty(0, np.uint64), *sums]) * np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class _Discs:
    """The whole discs of the pictures that are not flat.

    Their waves are held where they are few, and else made from the sketches whenever they are asked for: those of a
    million would take their room.

    Attributes:
        sketches: uint8 [all rows, SKETCH_BYTES].
        rows: int64 [n], those with anything to be told by.
        held: float32 [n, NUM_PARTS], or None.
    """

    sketches: NDArray[np.uint8]
    rows: NDArray[np.int64]
    held: NDArray[np.float32] | None

    @classmethod
    def telling(cls, sketches: NDArray[np.uint8], rows: NDArray[np.int64], pool: Executor) -> "_Discs":
        """Those of some rows that are not flat."""
        is_held = len(rows) <= _MOST_HELD
        is_telling, parts = np.empty(len(rows), np.bool_), [np.empty((0, NUM_PARTS), np.float32)]

        def look(at: int) -> NDArray[np.float32]:
            block = slice(at, at + _BLOCK)
            found, is_telling[block] = waves(sketches[rows[block]], 1)
            return found[is_telling[block], 0] if is_held else parts[0]

        parts += pool.map(look, range(0, len(rows), _BLOCK))
        return cls(sketches, rows[is_telling], np.concatenate(parts) if is_held else None)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> NDArray[np.float32]:
        """Their strengths."""
        return strengths(self.waves(part)[:, None])[:, 0]

    def waves(self, part: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """Their waves, float32 [m, NUM_PARTS]."""
        if self.held is not None:
            return self.held[part]
        return waves(self.sketches[self.rows[part]], 1)[0][:, 0]


@dataclass(frozen=True)
class _Hits:
    """Neighbours of pictures, by place among the compared rows; narrow, for a million pictures have millions."""

    left: NDArray[np.int32]
    right: NDArray[np.int32]
    view: NDArray[np.int8]
    angle: NDArray[np.float64]
    is_mirrored: NDArray[np.bool_]
    agreement: NDArray[np.float32]

    def take(self, places: NDArray[np.int64] | NDArray[np.bool_]) -> "_Hits":
        return _Hits(*(getattr(self, name)[places] for name in self.__dataclass_fields__))

    @classmethod
    def joined(cls, parts: Sequence["_Hits"]) -> "_Hits":
        place, no = np.empty(0, np.int32), np.empty(0, np.float32)
        parts = [cls(place, place, np.empty(0, np.int8), no.astype(np.float64), no.astype(np.bool_), no), *parts]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))


def _nearest(
    cells: Cells,
    radius: float,
    block: NDArray[np.int64],
    discs: _Discs,
    photographs: NDArray[np.int64],
) -> _Hits:
    """Of each picture of a block the few neighbours whose waves agree best."""
    of_waves, _ = waves(discs.sketches[discs.rows[block]])

    def counts(place: NDArray[np.int64], member: NDArray[np.int64]) -> NDArray[np.bool_]:
        apart: NDArray[np.bool_] = photographs[block[place]] != photographs[member]
        return apart

    place, member, view, distance = cells.within(
        strengths(of_waves), radius, _MOST_A_CELL, enough=MAX_NEIGHBOURS, counts=counts
    )
    apart = np.flatnonzero(counts(place, member))
    order = apart[by_distance(place[apart], distance[apart])]
    place, member, view = place[order], member[order], view[order]
    near = np.arange(len(place)) - np.searchsorted(place, place) < MAX_NEIGHBOURS
    place, member, view = place[near], member[near], view[near]
    known, of_hit = np.unique(member, return_inverse=True)
    whole = discs.waves(known)
    turns = [
        best_turn(of_waves[place[part], view[part]], whole[of_hit[part]])
        for part in (slice(at, at + _TURNS_AT_ONCE) for at in range(0, max(1, len(place)), _TURNS_AT_ONCE))
    ]
    agreement, angle, is_mirrored = (np.concatenate(each) for each in zip(*turns, strict=True))
    left, right = block[place].astype(np.int32), member.astype(np.int32)
    hits = _Hits(left, right, view.astype(np.int8), angle, is_mirrored, agreement).take(agreement >= LEAST_OF_WAVES)
    order = np.lexsort((-hits.agreement, hits.left))
    hits = hits.take(order)
    rank = np.arange(len(order)) - np.searchsorted(hits.left, hits.left)
    return hits.take(rank < MAX_CANDIDATES)


@contextmanager
def in_threads(num_workers: int) -> Iterator[Executor]:
    """Threads to share work out to; numpy lets go of the interpreter's lock in all that takes long."""
    threadpoolctl = require("threadpoolctl", extra="train", purpose="share the processors out")
    # Threads of the matrix products within these threads would only stand in each other's way.
    with threadpoolctl.threadpool_limits(1, "blas"), ThreadPoolExecutor(num_workers, "compare") as pool:
        yield pool


def in_blocks(work: Callable[[NDArray[np.int64]], T], number: int, size: int, pool: Executor, bar: Bar) -> list[T]:
    """Work on blocks of places, in order."""
    blocks = [np.arange(at, min(at + size, number)) for at in range(0, number, size)]
    done = []
    for block, result in zip(blocks, pool.map(work, blocks), strict=True):
        done.append(result)
        bar.advance(len(block))
    return done
