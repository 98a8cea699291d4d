"""The search by cells, against all distances."""

import numpy as np
import pytest

from foveal.auditing import neighbours
from foveal.auditing.neighbours import Cells

RADIUS = 0.2
MOST = 64


def vectors(number: int, seed: int, *, num_clusters: int = 400) -> np.ndarray:
    """On the sphere, in clusters as families of pictures are."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(num_clusters, 72))
    points = centres[rng.integers(num_clusters, size=number)] + 0.3 * rng.normal(size=(number, 72))
    return (points / np.linalg.norm(points, axis=1)[:, None]).astype(np.float32)


def hits(cells: Cells, queries: np.ndarray, most: int = MOST) -> dict[tuple[int, int], float]:
    found: dict[tuple[int, int], float] = {}
    for query, member, distance in cells.within(queries, RADIUS, most):
        for pair in zip(query.tolist(), member.tolist(), distance.tolist(), strict=True):
            assert pair[:2] not in found
            found[pair[:2]] = pair[2]
    return found


def by_all_pairs(members: np.ndarray, queries: np.ndarray) -> dict[tuple[int, int], float]:
    one, other = queries.astype(np.float64), members.astype(np.float64)
    distance = (one**2).sum(axis=1)[:, None] + (other**2).sum(axis=1) - 2 * one @ other.T
    return {(int(q), int(m)): distance[q, m] for q, m in zip(*np.nonzero(distance < RADIUS), strict=True)}


def differing(found: dict[tuple[int, int], float], truth: dict[tuple[int, int], float]) -> list[tuple[int, int]]:
    """Pairs that only one side has, but for those on the edge, which may fall to either."""
    return [pair for pair in found.keys() ^ truth.keys() if abs((truth | found)[pair] - RADIUS) > 1e-5]


def test_with_one_cell_it_is_exact() -> None:
    members, queries = vectors(900, 0), vectors(900, 0)[:300]
    found, truth = hits(Cells(members), queries, most=900), by_all_pairs(members, queries)
    assert len(truth) > 500
    assert differing(found, truth) == []
    assert all(found[pair] == pytest.approx(truth[pair], abs=1e-5) for pair in truth if pair in found)


def test_with_many_cells_nearly_nothing_is_missed_and_nothing_is_made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "BRUTE_FORCE_BELOW", 1000)
    members = vectors(6000, 1)
    queries = members[::12]
    cells = Cells(members)
    found, truth = hits(cells, queries, most=6000), by_all_pairs(members, queries)
    assert len(truth) > 2000
    assert len(found.keys() & truth.keys()) >= 0.95 * len(truth)
    assert not [pair for pair in found.keys() - truth.keys() if abs(found[pair] - RADIUS) > 1e-5]
    assert hits(Cells(members), queries, most=6000) == found


def test_a_full_cell_gives_the_nearest_ones() -> None:
    members = vectors(400, 2, num_clusters=1)
    queries = members[:20]
    found, truth = hits(Cells(members), queries, most=5), by_all_pairs(members, queries)
    for query in range(20):
        got = {pair[1] for pair in found if pair[0] == query}
        near = sorted((distance, pair[1]) for pair, distance in truth.items() if pair[0] == query)
        assert got == {member for _, member in near[:5]}
        assert query in got


@pytest.mark.parametrize("number", [0, 1, 2])
def test_hardly_any_vectors(number: int) -> None:
    members = vectors(2, 3)[:number]
    assert {(0, 0), (1, 1)} & hits(Cells(members), members).keys() == {(at, at) for at in range(number)}
    assert hits(Cells(members), np.empty((0, 72), np.float32)) == {}
