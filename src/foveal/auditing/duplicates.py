"""Pictures that are copies of each other: the same bytes, or resized, turned, mirrored, recoloured, cropped.

Three steps, each with less to do and looking more closely than the one before:

1. Candidates: of each picture's vectors (`disc`), the nearest of other pictures within a radius (`neighbours`).
2. The turn and the mirror at which the waves of both agree.
3. Both laid over each other, refined at 16, 32 and 64 pixels a side (`registration`), and compared in fine detail: two
   photographs of one hand agree in outline; copies of one photograph agree in every crease.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from foveal.auditing.disc import VIEWS, best_turn, reduced, strengths, waves
from foveal.auditing.neighbours import Cells
from foveal.auditing.registration import Band, Placement, Registration, smoothed
from foveal.data.components import components
from foveal.data.facts import Facts
from foveal.data.manifest import BOX_COLUMNS, Manifest
from foveal.data.sketch import SKETCH_SIDE_PX, central_square, luma
from foveal.data.store import PixelSource
from foveal.extras import require
from foveal.progress import Bar, Progress

T = TypeVar("T")

SEARCH_VERSION = 1
"""To be raised with any change to what is found: results that are remembered are then searched anew."""

CANDIDATE_RADIUS = 0.12
MAX_NEIGHBOURS, MAX_CANDIDATES = 16, 6
"""Of each picture, the neighbours whose waves are compared, and of these the ones that are laid over it."""
LEAST_OF_WAVES, LEAST_AT_16, LEAST_AT_32, LEAST_AT_64 = 0.85, 0.70, 0.84, 0.92
"""The least correlations of each step, set so that of all true copies of the planted set at most one in two hundred is
lost in one of them (docs/auditing.md)."""

_BLOCK = 512
_MOST_A_CELL = 32
_NUM_ASKED = 64
_TURNS_AT_ONCE = 2048  # so that they stay in the processor's cache
_PAIR_BLOCK = 512
_FINE_SIDE_PX = 64
_TELLING_SIDE_PX = 24.0
_SMALLEST_CHAIN, _LONGEST_SET = 60, 300


@dataclass(frozen=True)
class Pairs:
    """Pairs of copies.

    Attributes:
        left: int64 [pairs], rows; always the smaller number.
        right: int64 [pairs], rows.
        similarity: float32 [pairs], the correlation of fine detail, 0..1; 1 where the bytes are the same.
        is_exact: bool [pairs], whether the bytes are the same.
        zoom: float32 [pairs], how much larger the right one shows what both show.
        turn_degrees: float32 [pairs], by how much one is turned against the other, -180..180.
        is_mirrored: bool [pairs].
    """

    left: NDArray[np.int64]
    right: NDArray[np.int64]
    similarity: NDArray[np.float32]
    is_exact: NDArray[np.bool_]
    zoom: NDArray[np.float32]
    turn_degrees: NDArray[np.float32]
    is_mirrored: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.left)

    @classmethod
    def none(cls) -> "Pairs":
        """No pairs."""
        return cls.exact(np.empty(0, np.int64), np.empty(0, np.int64))

    @classmethod
    def exact(cls, left: NDArray[np.int64], right: NDArray[np.int64]) -> "Pairs":
        """Pairs of the same bytes."""
        num = len(left)
        ones, zeros, no = np.ones(num, np.float32), np.zeros(num, np.float32), np.zeros(num, np.bool_)
        return cls(np.minimum(left, right), np.maximum(left, right), ones, ~no, ones, zeros, no)

    @classmethod
    def joined(cls, parts: Sequence["Pairs"]) -> "Pairs":
        """Several one after the other."""
        if not parts:
            return cls.none()
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))

    def take(self, places: NDArray[np.int64] | NDArray[np.bool_]) -> "Pairs":
        """Some of them."""
        return Pairs(*(getattr(self, name)[places] for name in self.__dataclass_fields__))

    def describe(self, place: int) -> str:
        """What was done to one to make the other, as far as it can be told, in words."""
        if self.is_exact[place]:
            return "the same bytes"
        words = ["mirrored"] if self.is_mirrored[place] else []
        turn = abs(float(self.turn_degrees[place]))
        if self.is_mirrored[place]:
            turn = 180.0 - turn  # people think of left and right, and the search of top and bottom
        if turn > 1.5:
            right_angle = round(turn / 90) * 90
            words.append(f"turned by {right_angle if abs(turn - right_angle) < 1.5 else round(turn)}°")
        zoom = float(self.zoom[place])
        if abs(zoom - 1.0) > 0.02:
            words.append(f"cropped to {100 * min(zoom, 1 / zoom):.0f} % of its sides")
        return ", ".join(words) or "the same view; re-encoded, resized or recoloured"


def find_duplicates(
    manifest: Manifest, facts: Facts, source: PixelSource, *, num_workers: int, progress: Progress
) -> Pairs:
    """All pairs of copies among the usable rows, but for those within one photograph.

    Of a set of rows with the same bytes, each is paired with the first alone, and only that one is compared further.

    Args:
        manifest: after the decode pass.
        facts: of its rows.
        source: the stored form of each row, for the last look.
        num_workers: threads that compare.
        progress: where to show how far it is.
    """
    exact = exact_pairs(manifest)
    is_first = facts.is_known.copy()
    is_first[exact.right] = False
    rows = np.flatnonzero(is_first)
    photographs = manifest.codes("path")
    # A million paths were in memory for that; Arrow would keep their room for later.
    require("pyarrow", extra="train", purpose="read manifests").default_memory_pool().release_unused()
    candidates = find_candidates(facts.sketch, rows, photographs, num_workers=num_workers, progress=progress)
    near = verify(candidates, facts.sketch, source, num_workers=num_workers, progress=progress)
    side = np.fmin(facts.width_px, facts.height_px)
    near = near.take(near.similarity >= least_similarity(side[near.left], side[near.right]))
    return Pairs.joined([exact, without_chains(near, len(rows))])


def without_chains(pairs: Pairs, num_pictures: int) -> Pairs:
    """Pairs without those that chain pictures together which are alike by nature, such as plain shapes.

    Copies of one original are a small set, be there dozens of them. Where a set takes in a tenth of the data (and more
    than sixty pictures), or more than three hundred, its pictures are so plain that turned, zoomed and shifted they all
    agree: such sets are asked for more and more agreement until they fall apart.

    Args:
        pairs: pairs of different bytes.
        num_pictures: how many pictures were compared.
    """
    most = min(max(_SMALLEST_CHAIN, num_pictures // 10), _LONGEST_SET)
    for least in (0.94, 0.96, 0.98, 0.99, 0.995):
        if not len(pairs):
            break
        ends, places = np.unique(np.concatenate([pairs.left, pairs.right]), return_inverse=True)
        component = components(len(ends), places[: len(pairs)], places[len(pairs) :])
        size = np.bincount(component)[component[places[: len(pairs)]]]
        if not (size > most).any():
            break
        pairs = pairs.take((size <= most) | (pairs.similarity >= least))
    return pairs


def least_similarity(left_px: NDArray[np.float64], right_px: NDArray[np.float64]) -> NDArray[np.float64]:
    """From which similarity on two pictures are copies: the fewer pixels there are, the more alike these must be.

    Two handwritten digits of 8 x 8 pixels agree by chance as well as copies of photographs do after all that befalls
    them.

    Args:
        left_px: float64 [n], shorter sides.
        right_px: the same of the others.
    """
    share = np.minimum(np.minimum(left_px, right_px) / _TELLING_SIDE_PX, 1.0)
    result: NDArray[np.float64] = 1.0 - (1.0 - LEAST_AT_64) * share**2
    return result


def same_content(manifest: Manifest) -> NDArray[np.int64]:
    """Which usable rows have the same bytes and the same box, int64 [rows]; -1 where the bytes are not known."""
    code = np.where(manifest.is_usable(), manifest.codes("sha256"), -1)
    for name in BOX_COLUMNS:
        edge = manifest.column(name)
        if np.isnan(edge).all():
            continue
        _, places = np.unique(edge, return_inverse=True)
        _, combined = np.unique(code * (int(places.max()) + 1) + places, return_inverse=True)
        code = np.where(code < 0, -1, combined)
    return code.astype(np.int64)


def exact_pairs(manifest: Manifest) -> Pairs:
    """Rows whose file has the same bytes, and whose box is the same; each with the first of its set."""
    content = same_content(manifest)
    _, first, of_row = np.unique(content, return_index=True, return_inverse=True)
    first_of_row = first[of_row]
    rows = np.flatnonzero((content >= 0) & (first_of_row != np.arange(len(content))))
    return Pairs.exact(first_of_row[rows], rows)


def group_copies(num_rows: int, pairs: Pairs) -> NDArray[np.int64]:
    """Which rows are copies of each other, directly or by way of others.

    Returns:
        int64 [rows], a number for each set of copies; -1 where a row stands alone.
    """
    is_paired = np.zeros(num_rows, np.bool_)
    is_paired[pairs.left] = is_paired[pairs.right] = True
    return np.where(is_paired, components(num_rows, pairs.left, pairs.right), -1)


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
    rows = _telling(sketches, rows)
    cells = Cells(_Strengths(sketches, rows))
    photographs = photographs[rows]
    lots = _lots(sketches, rows)
    asked = rows[np.argsort(lots, kind="stable")[:_NUM_ASKED]]
    # The more pictures there are, the nearer are those that will be kept: what lies farther need not be looked at.
    radius = min(CANDIDATE_RADIUS, cells.usual_distance(strengths(waves(sketches[asked])[0]), MAX_NEIGHBOURS + 1))

    def nearest(block: NDArray[np.int64]) -> _Hits:
        return _nearest(cells, radius, block, rows, sketches, photographs)

    with progress.bar("Near duplicates", len(rows), "images") as bar:
        hits = _Hits.joined(_in_blocks(nearest, len(rows), _BLOCK, num_workers, bar))
    # A pair that is found from both sides is kept as it agrees best.
    first, second = np.minimum(hits.left, hits.right), np.maximum(hits.left, hits.right)
    # Seen from either side, a pair agrees to the last digits; what the pictures are decides then, not their order.
    order = np.lexsort((lots[hits.left], -hits.agreement.round(4), second, first))
    is_new = np.ones(len(order), np.bool_)
    is_new[1:] = (first[order[1:]] != first[order[:-1]]) | (second[order[1:]] != second[order[:-1]])
    hits = hits.take(order[is_new])
    placement = Placement.of(VIEWS[hits.view], hits.angle, hits.is_mirrored)
    return Candidates(rows[hits.left], rows[hits.right], placement, hits.agreement, hits.is_mirrored)


def _telling(sketches: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows that are not flat."""
    blocks = (rows[at : at + _BLOCK] for at in range(0, len(rows), _BLOCK))
    return np.concatenate([np.empty(0, np.int64), *(block[waves(sketches[block], 1)[1]] for block in blocks)])


def _lots(sketches: NDArray[np.uint8], rows: NDArray[np.int64]) -> NDArray[np.uint64]:
    """A number for each row, as good as drawn by lot, by what the picture is and not by its place: uint64 [n]."""
    blocks = (rows[at : at + _BLOCK] for at in range(0, len(rows), _BLOCK))
    sums = [sketches[block].sum(axis=1, dtype=np.uint64) for block in blocks]
    return np.concatenate([np.empty(0, np.uint64), *sums]) * np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class _Strengths:
    """The strengths of whole discs, made from the sketches whenever they are asked for: a million take their room."""

    sketches: NDArray[np.uint8]
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> NDArray[np.float32]:
        return strengths(waves(self.sketches[self.rows[part]], 1)[0])[:, 0]


@dataclass(frozen=True)
class _Hits:
    """Neighbours of pictures, by place among the compared rows."""

    left: NDArray[np.int64]
    right: NDArray[np.int64]
    view: NDArray[np.int64]
    angle: NDArray[np.float64]
    is_mirrored: NDArray[np.bool_]
    agreement: NDArray[np.float32]

    def take(self, places: NDArray[np.int64] | NDArray[np.bool_]) -> "_Hits":
        return _Hits(*(getattr(self, name)[places] for name in self.__dataclass_fields__))

    @classmethod
    def joined(cls, parts: Sequence["_Hits"]) -> "_Hits":
        whole, no = np.empty(0, np.int64), np.empty(0, np.float32)
        parts = [cls(whole, whole, whole, no.astype(np.float64), no.astype(np.bool_), no), *parts]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))


def _nearest(
    cells: Cells,
    radius: float,
    block: NDArray[np.int64],
    rows: NDArray[np.int64],
    sketches: NDArray[np.uint8],
    photographs: NDArray[np.int64],
) -> _Hits:
    """Of each picture of a block the few neighbours whose waves agree best."""
    of_waves, _ = waves(sketches[rows[block]])
    place, member, view, distance = cells.within(strengths(of_waves), radius, _MOST_A_CELL)
    apart = photographs[block[place]] != photographs[member]
    order = np.flatnonzero(apart)[np.lexsort((distance[apart], place[apart]))]
    place, member, view = place[order], member[order], view[order]
    near = np.arange(len(place)) - np.searchsorted(place, place) < MAX_NEIGHBOURS
    place, member, view = place[near], member[near], view[near]
    turns = [
        best_turn(of_waves[place[part], view[part]], waves(sketches[rows[member[part]]], 1)[0][:, 0])
        for part in (slice(at, at + _TURNS_AT_ONCE) for at in range(0, max(1, len(place)), _TURNS_AT_ONCE))
    ]
    agreement, angle, is_mirrored = (np.concatenate(each) for each in zip(*turns, strict=True))
    hits = _Hits(block[place], member, view, angle, is_mirrored, agreement).take(agreement >= LEAST_OF_WAVES)
    order = np.lexsort((-hits.agreement, hits.left))
    hits = hits.take(order)
    rank = np.arange(len(order)) - np.searchsorted(hits.left, hits.left)
    return hits.take(rank < MAX_CANDIDATES)


def verify(
    candidates: Candidates,
    sketches: NDArray[np.uint8],
    source: PixelSource,
    *,
    num_workers: int,
    progress: Progress,
) -> Pairs:
    """Those of the candidates that are copies.

    Args:
        candidates: from `find_candidates`.
        sketches: uint8 [all rows, SKETCH_BYTES].
        source: the stored form of each row.
        num_workers: threads.
        progress: where to show how far it is.
    """

    def verified(part: NDArray[np.int64]) -> Pairs:
        return _verified(candidates, part, sketches, source)

    with progress.bar("Comparing", len(candidates.left), "pairs") as bar:
        return Pairs.joined(_in_blocks(verified, len(candidates.left), _PAIR_BLOCK, num_workers, bar))


def _in_blocks(work: Callable[[NDArray[np.int64]], T], number: int, size: int, num_workers: int, bar: Bar) -> list[T]:
    """Work on blocks of places in threads, in order; numpy lets go of the interpreter's lock in all that takes long."""
    threadpoolctl = require("threadpoolctl", extra="train", purpose="share the processors out")
    blocks = [np.arange(at, min(at + size, number)) for at in range(0, number, size)]
    done = []
    # Threads of the matrix products within these threads would only stand in each other's way.
    with threadpoolctl.threadpool_limits(1, "blas"), ThreadPoolExecutor(num_workers, "compare") as pool:
        for block, result in zip(blocks, pool.map(work, blocks), strict=True):
            done.append(result)
            bar.advance(len(block))
    return done


def _verified(
    candidates: Candidates, part: NDArray[np.int64], sketches: NDArray[np.uint8], source: PixelSource
) -> Pairs:
    left, right, placement = candidates.left[part], candidates.right[part], candidates.placement.take(part)
    similarity, is_mirrored = candidates.agreement[part], candidates.is_mirrored[part]
    for side, least in ((16, LEAST_AT_16), (SKETCH_SIDE_PX, LEAST_AT_32), (_FINE_SIDE_PX, LEAST_AT_64)):
        if not len(left):
            break
        if side == _FINE_SIDE_PX:
            pictures = _fine(source, left, right)
        else:
            pictures = reduced(sketches[left], side), reduced(sketches[right], side)
        placement, similarity = _laid_over(*pictures, placement, side)
        kept = similarity >= least
        left, right, similarity, is_mirrored = left[kept], right[kept], similarity[kept], is_mirrored[kept]
        placement = placement.take(kept)
    matrix = placement.matrix
    zoom = 1.0 / np.sqrt(np.maximum(np.abs(np.linalg.det(matrix)), 1e-6))
    turn = np.degrees(np.arctan2(matrix[:, 1, 0], matrix[:, 0, 0]))
    is_swapped = left > right
    return Pairs(
        np.minimum(left, right),
        np.maximum(left, right),
        np.clip(similarity, 0.0, 1.0).astype(np.float32),
        np.zeros(len(left), np.bool_),
        np.where(is_swapped, 1.0 / zoom, zoom).astype(np.float32),
        turn.astype(np.float32),
        is_mirrored,
    )


def _laid_over(
    left: NDArray[np.float32], right: NDArray[np.float32], placement: Placement, side: int
) -> tuple[Placement, NDArray[np.float32]]:
    """Refine at one size, and compare in the detail that this size shows."""
    blur, num_steps, band = _LEVELS[side]
    moved = Registration(smoothed(left, blur), smoothed(right, blur)).refine(placement, num_steps)
    return moved, Registration(left, right).agreement(moved, band)[0]


_LEVELS = {16: (0.8, 4, Band(0.0, 1.5)), 32: (0.8, 4, Band(0.5, 3.0)), 64: (0.8, 4, Band(1.0, 3.0))}
"""Of each size: the smoothing and the number of steps of the refinement, and the band of detail that is compared."""


def _fine(
    source: PixelSource, left: NDArray[np.int64], right: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Both pictures of each pair from their stored form, float32 [n, 64, 64]."""
    rows, places = np.unique(np.concatenate([left, right]), return_inverse=True)
    pictures = np.stack([central_square(luma(source[row]), _FINE_SIDE_PX) for row in rows.tolist()]).astype(np.float32)
    return pictures[places[: len(left)]], pictures[places[len(left) :]]
