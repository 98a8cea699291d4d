"""Pictures that are copies of each other: the same bytes, or resized, turned, mirrored, recoloured, cropped.

Three steps, each with less to do and looking more closely than the one before:

1. Candidates: of each picture's vectors (`disc`), the nearest of other pictures within a radius (`neighbours`).
2. The turn and the mirror at which the waves of both agree.
3. Both laid over each other, refined at 16, 32 and 64 pixels a side (`registration`), and compared in fine detail: two
   photographs of one hand agree in outline; copies of one photograph agree in every crease.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foveal.auditing.candidates import Candidates, find_candidates, in_blocks, in_threads
from foveal.auditing.disc import reduced
from foveal.auditing.registration import Band, Placement, Registration, smoothed
from foveal.data.components import components
from foveal.data.facts import Facts
from foveal.data.manifest import BOX_COLUMNS, Manifest
from foveal.data.sketch import SKETCH_SIDE_PX, central_square, luma
from foveal.data.store import PixelSource
from foveal.extras import require
from foveal.progress import Progress

SEARCH_VERSION = 2
"""To be raised with any change to what is found: results that are remembered are then searched anew."""

LEAST_AT_FIRST, LEAST_AT_16, LEAST_AT_32, LEAST_AT_64 = 0.50, 0.70, 0.84, 0.92
"""The least correlations of each step, set so that of all true copies of the planted set at most one in two hundred is
lost in one of them (docs/auditing.md)."""

_PAIR_BLOCK = 512
_PIXELS_AT_ONCE = 1 << 16
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

    with in_threads(num_workers) as pool, progress.bar("Comparing", len(candidates.left), "pairs") as bar:
        return Pairs.joined(in_blocks(verified, len(candidates.left), _PAIR_BLOCK, pool, bar))


def _verified(
    candidates: Candidates, part: NDArray[np.int64], sketches: NDArray[np.uint8], source: PixelSource
) -> Pairs:
    left, right, placement = candidates.left[part], candidates.right[part], candidates.placement.take(part)
    similarity, is_mirrored = candidates.agreement[part], candidates.is_mirrored[part]
    for side, num_steps, least in _STAGES:
        if not len(left):
            break
        if side == _FINE_SIDE_PX:
            pictures = _fine(source, left, right)
        else:
            pictures = reduced(sketches[left], side), reduced(sketches[right], side)
        placement, similarity = _laid_over(*pictures, placement, num_steps)
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
    left: NDArray[np.float32], right: NDArray[np.float32], placement: Placement, num_steps: int
) -> tuple[Placement, NDArray[np.float32]]:
    """Refine at one size, and compare in the detail that this size shows."""
    num, side = left.shape[:2]
    similarity = np.empty(num, np.float32)
    parts = [placement.take(np.empty(0, np.int64))]
    # Few at once, so that what is made of them stays in the processor's cache.
    step = max(1, _PIXELS_AT_ONCE // side**2)
    for at in range(0, num, step):
        one, other = left[at : at + step], right[at : at + step]
        part = placement.take(np.arange(at, at + len(one)))
        if num_steps:
            part = Registration(smoothed(one, _BLUR_PX), smoothed(other, _BLUR_PX)).refine(part, num_steps)
        similarity[at : at + step] = Registration(one, other).agreement(part, _BANDS[side])[0]
        parts.append(part)
    return Placement.joined(parts), similarity


_BLUR_PX = 0.8
"""The smoothing before a refinement."""
_BANDS = {16: Band(0.0, 1.5), 32: Band(0.5, 3.0), 64: Band(1.0, 3.0)}
"""The band of detail that is compared, by size."""
_STAGES = (
    (16, 0, LEAST_AT_FIRST),
    (16, 2, LEAST_AT_16),
    (SKETCH_SIDE_PX, 4, LEAST_AT_32),
    (_FINE_SIDE_PX, 4, LEAST_AT_64),
)
"""Size, steps of the refinement, and the least correlation: most candidates are no copies, and most of these are told
by the first look, before anything is refined."""


def _fine(
    source: PixelSource, left: NDArray[np.int64], right: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Both pictures of each pair from their stored form, float32 [n, 64, 64]."""
    rows, places = np.unique(np.concatenate([left, right]), return_inverse=True)
    pictures = np.stack([central_square(luma(source[row]), _FINE_SIDE_PX) for row in rows.tolist()]).astype(np.float32)
    return pictures[places[: len(left)]], pictures[places[len(left) :]]
