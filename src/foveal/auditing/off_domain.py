"""Pictures that do not belong: far from all others in what describes them, by a threshold that the data sets itself."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DESCRIBED_PX = 64
"""Side of the squares that `describe` takes."""
NUM_NEIGHBOURS = 10
MIN_PICTURES = 40
"""Fewer say nothing about what is usual."""

_MAX_REFERENCES = 20_000
_MAX_DIRECTIONS = 64
_EXPECTED_FALSE = 0.5
_LOW, _HIGH = 0.75, 0.95
_CHUNK = 1024
_LEVELS, _ANGLES = 4, 4
_GRIDS = (4, 4, 2, 2)
_QUANTILES = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
_TO_YCC = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], np.float32)

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Far:
    """A picture that is far from all others.

    Attributes:
        place: its place in the arrays that were given.
        medians: its distance to its neighbours, in medians of all pictures' distances.
        view: in which description it is the farthest.
    """

    place: int
    medians: float
    view: str


def describe(parts: Iterable[NDArray[np.uint8]]) -> Floats:
    """Describe small pictures by their colours, where these lie, and the strength of edges by direction and scale.

    Source: the edges by direction, scale and place follow A. Oliva, A. Torralba, "Modeling the Shape of the Scene",
    IJCV 42, 2001 (GIST), with differences of a pyramid in place of Gabor filters.

    Args:
        parts: the pictures in portions, so that they need not be in memory at once: uint8 [n, 64, 64, 3], sRGB, 0..255.

    Returns:
        float32 [pictures, values], standardised, and scaled so that colours, places, edges and steps count alike.
    """
    portions = [_blocks(part) for part in parts]
    if not portions:
        return np.empty((0, 0), dtype=np.float32)
    blocks = [np.concatenate(of_block) for of_block in zip(*portions, strict=True)]
    return np.concatenate([standardised(block) / np.float32(np.sqrt(block.shape[1])) for block in blocks], axis=1)


def standardised(features: Floats) -> Floats:
    """Each column less its median, in units of its robust deviation (1.4826 median absolute deviations).

    Args:
        features: float32 [n, values].
    """
    middle = np.median(features, axis=0)
    deviation = 1.4826 * np.median(np.abs(features - middle), axis=0)
    spread = features.std(axis=0)
    # A column that hardly ever moves would make a giant of any value: the plain deviation then is the measure.
    unit = np.where(deviation > 0.05 * spread, deviation, spread)
    result: Floats = ((features - middle) / np.maximum(unit, 1e-6)).astype(np.float32)
    return result


def whitened(features: Floats) -> Floats:
    """Features of a network in their main directions, each with variance 1.

    Far along a direction in which the data hardly varies is far indeed; in the plain features the strongest directions,
    those that tell the classes apart, hide it.

    Args:
        features: float32 [n, values].

    Returns:
        float32 [n, directions], at most 64 and at most a quarter of n.
    """
    centred = features.astype(np.float64) - features.mean(axis=0)
    variances, directions = np.linalg.eigh(centred.T @ centred / max(1, len(centred)))
    num = max(1, min(_MAX_DIRECTIONS, len(features) // 4, features.shape[1]))
    variances, directions = variances[::-1][:num], directions[:, ::-1][:, :num]
    kept = variances > 1e-7 * max(float(variances[0]), 1e-12)
    result: Floats = (centred @ (directions[:, kept] / np.sqrt(variances[kept]))).astype(np.float32)
    return result


def neighbour_distances(features: Floats, copies: NDArray[np.int64], *, seed: int = 0) -> NDArray[np.float64]:
    """How far each picture is from its tenth nearest neighbour, copies of itself left out, in medians of all.

    A copy of a picture that belongs belongs too, however it was recoloured: all copies have the least distance among
    them, and count once in the median.

    Of more than 20,000 pictures that many are drawn as possible neighbours.

    Source: S. Ramaswamy, R. Rastogi, K. Shim, "Efficient Algorithms for Mining Outliers from Large Data Sets",
    SIGMOD 2000.

    Args:
        features: float32 [n, values].
        copies: int64 [n], equal for copies of one original; -1 for a picture that has none.
        seed: decides which neighbours are drawn.

    Returns:
        float64 [n], 1 in the middle; all 1 where there are too few pictures or all are alike.
    """
    own, firsts = _originals(copies)
    references = np.arange(len(features))
    if len(references) > _MAX_REFERENCES:
        references = np.sort(np.random.default_rng(seed).choice(references, _MAX_REFERENCES, replace=False))
    num_neighbours = min(NUM_NEIGHBOURS, len(references) - 1)
    if num_neighbours < 1:
        return np.ones(len(features))
    there = features[references]
    squares_there = np.einsum("ij,ij->i", there, there)
    distances = np.empty(len(features))
    for start in range(0, len(features), _CHUNK):
        here = features[start : start + _CHUNK]
        squared = np.einsum("ij,ij->i", here, here)[:, None] + squares_there - 2.0 * (here @ there.T)
        squared[own[start : start + _CHUNK, None] == own[references]] = np.inf
        nearest = np.partition(squared, num_neighbours - 1, axis=1)[:, :num_neighbours]
        # A picture with many copies can have fewer others than are asked for: then the farthest of those.
        farthest = np.where(np.isfinite(nearest), nearest, -np.inf).max(axis=1)
        distances[start : start + len(here)] = np.sqrt(np.maximum(farthest, 0.0))
    least = np.full(len(firsts), np.inf)
    np.minimum.at(least, own, distances)
    distances, middle = least[own], float(np.median(least))
    return distances / middle if middle > 0 else np.ones(len(features))


def far_threshold(medians: NDArray[np.float64], *, expected_false: float = _EXPECTED_FALSE) -> float:
    """The distance beyond which a picture does not belong, by how far apart the data itself is.

    The logarithm of the distances has an exponential tail beyond their third quartile, whose scale is read off between
    the quantiles 0.75 and 0.95, which a few foreign pictures do not move. So a diverse data set sets a high threshold,
    and the number of false alarms does not grow with the data.

    Source: B. Hill, "A Simple General Approach to Inference about the Tail of a Distribution", Annals of Statistics
    3, 1975; the tail by two quantiles as J. Pickands, same volume.

    Args:
        medians: float64 [n], distances in medians.
        expected_false: how many pictures of a data set in which all belong are expected beyond it.
    """
    logarithms = np.log(np.maximum(medians, 1e-6))
    low, high = np.quantile(logarithms, [_LOW, _HIGH])
    scale = (high - low) / np.log((1.0 - _LOW) / (1.0 - _HIGH))
    return float(np.exp(low + scale * np.log(len(medians) * (1.0 - _LOW) / expected_false)))


def off_domain(distances: Mapping[str, NDArray[np.float64]], copies: NDArray[np.int64]) -> list[Far]:
    """The pictures that are beyond the threshold in any view of them, farthest first.

    Args:
        distances: by the name of a view, float64 [n], distances in medians; NaN where the view does not know it.
        copies: int64 [n], as for `neighbour_distances`; copies of one original count once in the threshold.
    """
    _, firsts = _originals(copies)
    excess: list[NDArray[np.float64]] = []
    for medians in distances.values():
        known = np.isfinite(medians)
        beyond = np.full(len(medians), -np.inf)
        counted = medians[firsts][known[firsts]]
        if len(counted) >= MIN_PICTURES:
            threshold = far_threshold(counted, expected_false=_EXPECTED_FALSE / len(distances))
            # A tenth more at least: pictures that are all alike would set a threshold next to 1.
            beyond[known] = medians[known] / max(threshold, 1.1)
        excess.append(beyond)
    if not excess:
        return []
    table = np.stack(excess)
    places = np.flatnonzero(table.max(axis=0) > 1.0)
    names: Sequence[str] = list(distances)
    found = []
    for place in places[np.argsort(-table[:, places].max(axis=0), kind="stable")].tolist():
        view = names[int(table[:, place].argmax())]
        found.append(Far(place, float(distances[view][place]), view))
    return found


def _originals(copies: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each picture's original by number, int64 [n], and where each original first occurs, int64 [originals]."""
    own = np.where(copies >= 0, copies, copies.max(initial=0) + 1 + np.arange(len(copies)))
    _, firsts, numbers = np.unique(own, return_index=True, return_inverse=True)
    return numbers.astype(np.int64), firsts.astype(np.int64)


def _blocks(pixels: NDArray[np.uint8]) -> tuple[Floats, Floats, Floats, Floats]:
    """Colours over the grid; colours in all; edges by direction, scale and place; what changes from pixel to pixel."""
    ycc: Floats = ((pixels.astype(np.float32) / np.float32(255.0)) @ _TO_YCC.T).astype(np.float32)
    flat = ycc.reshape(len(ycc), -1, 3)
    quantiles = np.quantile(flat, _QUANTILES, axis=1).transpose(1, 0, 2).reshape(len(ycc), -1)
    colours = np.concatenate([flat.mean(axis=1), flat.std(axis=1), quantiles], axis=1)
    steps = [np.abs(np.diff(ycc, axis=axis)).mean(axis=(1, 2)) for axis in (1, 2)]
    return _by_cell(ycc, 4), colours.astype(np.float32), _edges(ycc[..., 0]), np.sqrt(np.concatenate(steps, axis=1))


def _edges(luma: Floats) -> Floats:
    parts = []
    for level in range(_LEVELS):
        across, down = np.zeros_like(luma), np.zeros_like(luma)
        across[:, :, 1:-1] = luma[:, :, 2:] - luma[:, :, :-2]
        down[:, 1:-1] = luma[:, 2:] - luma[:, :-2]
        strength = np.hypot(across, down)
        direction = (np.arctan2(down, across) % np.pi / (np.pi / _ANGLES)).astype(np.int64) % _ANGLES
        parts += [_by_cell(np.where(direction == angle, strength, 0.0), _GRIDS[level]) for angle in range(_ANGLES)]
        luma = _halved(luma)
    edges: Floats = np.sqrt(np.concatenate(parts, axis=1)).astype(np.float32)
    return edges


def _by_cell(values: Floats, num_cells: int) -> Floats:
    """Means over a grid of `num_cells` by `num_cells` cells, float32 [n, cells x channels]."""
    num, side = values.shape[:2]
    cell = side // num_cells
    split = values.reshape(num, num_cells, cell, num_cells, cell, -1)
    means: Floats = split.mean(axis=(2, 4)).reshape(num, -1).astype(np.float32)
    return means


def _halved(luma: Floats) -> Floats:
    num, side = luma.shape[:2]
    half: Floats = luma.reshape(num, side // 2, 2, side // 2, 2).mean(axis=(2, 4))
    return half
