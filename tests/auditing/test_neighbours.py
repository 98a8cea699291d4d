"""The search by cells, against all distances."""

import numpy as np
import pytest

from foveal.auditing import neighbours
from foveal.auditing.neighbours import Cells

RADIUS = 0.2
EDGE = 1e-5
"""What lies so near the radius may fall to either side."""
Found = dict[tuple[int, int], float]


def vectors(number: int, seed: int, *, num_clusters: int = 400, size: int = 72) -> np.ndarray:
    """On the sphere, in clusters as families of pictures are."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(num_clusters, size))
    points = centres[rng.integers(num_clusters, size=number)] + 0.3 * rng.normal(size=(number, size))
    return (points / np.linalg.norm(points, axis=1)[:, None]).astype(np.float32)


def search(cells: Cells, queries: np.ndarray, most: int) -> tuple[Found, dict[tuple[int, int], int]]:
    """Distances and views of all hits; queries are [m, views, d]."""
    query, member, view, distance = cells.within(queries, RADIUS, most)
    pairs = list(zip(query.tolist(), member.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)
    return dict(zip(pairs, distance.tolist(), strict=True)), dict(zip(pairs, view.tolist(), strict=True))


def all_distances(members: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """float64 [m, n, views]."""
    one, other = queries.astype(np.float64), members.astype(np.float64)
    products = np.einsum("mvd,nd->mnv", one, other, optimize=True)
    return (one**2).sum(axis=2)[:, None] + (other**2).sum(axis=1)[None, :, None] - 2 * products


def views_of(members: np.ndarray, num_views: int = 3) -> np.ndarray:
    """Each vector with others beside it, in turning order, so that the nearest view is not always the first."""
    rng = np.random.default_rng(9)
    others = members[:, None] + 0.05 * rng.normal(size=(len(members), num_views, members.shape[1]))
    return (others / np.linalg.norm(others, axis=2)[..., None]).astype(np.float32)


def test_with_one_cell_and_few_dimensions_it_is_exact() -> None:
    members = vectors(900, 0, size=24)
    queries = views_of(members[:300])
    found, view = search(Cells(members), queries, most=900)
    distance = all_distances(members, queries)
    nearest = distance.min(axis=2)
    truth = {(int(a), int(b)) for a, b in zip(*np.nonzero(nearest < RADIUS), strict=True)}
    assert len(truth) > 500
    assert [pair for pair in truth ^ found.keys() if abs(nearest[pair] - RADIUS) > EDGE] == []
    for pair, given in found.items():
        assert given == pytest.approx(nearest[pair], abs=EDGE)
        assert distance[pair][view[pair]] == pytest.approx(nearest[pair], abs=EDGE)
    assert len({view[pair] for pair in found}) == 3


def test_of_many_dimensions_nothing_near_is_lost_and_no_distance_is_told_too_large() -> None:
    members = vectors(1500, 4)
    queries = members[:400, None]
    found, _ = search(Cells(members), queries, most=1500)
    nearest = all_distances(members, queries)[..., 0]
    truth = {(int(a), int(b)) for a, b in zip(*np.nonzero(nearest < RADIUS - EDGE), strict=True)}
    assert len(truth) > 500
    assert truth <= found.keys()
    assert all(given <= nearest[pair] + EDGE for pair, given in found.items())


def test_with_many_cells_nearly_nothing_is_missed_and_every_run_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    members = vectors(6000, 1, size=24)
    queries = views_of(members[::12])
    monkeypatch.setattr(neighbours, "BRUTE_FORCE_BELOW", 1000)
    found, _ = search(Cells(members), queries, most=6000)
    nearest = all_distances(members, queries).min(axis=2)
    truth = {(int(a), int(b)) for a, b in zip(*np.nonzero(nearest < RADIUS), strict=True)}
    assert len(truth) > 2000
    assert len(found.keys() & truth) >= 0.95 * len(truth)
    assert search(Cells(members), queries, most=6000)[0] == found


def test_a_full_cell_gives_the_nearest_ones() -> None:
    members = vectors(400, 2, num_clusters=1, size=24)
    queries = members[:20, None]
    found, _ = search(Cells(members), queries, most=5)
    nearest = all_distances(members, queries)[..., 0]
    for query in range(20):
        got = {pair[1] for pair in found if pair[0] == query}
        assert got == {int(at) for at in np.argsort(nearest[query])[:5] if nearest[query, at] < RADIUS}
        assert query in got


@pytest.mark.parametrize("number", [0, 1, 2])
def test_hardly_any_vectors(number: int) -> None:
    members = vectors(2, 3)
    found, _ = search(Cells(members[:number]), members[:, None], most=5)
    assert found.keys() == {(at, at) for at in range(number)}


@pytest.mark.parametrize("num_cells_from", [1000, 100_000])
def test_where_a_few_are_enough_the_nearest_that_count_are_the_same(
    num_cells_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "BRUTE_FORCE_BELOW", num_cells_from)
    members = vectors(6000, 7, num_clusters=60, size=24)
    queries = views_of(members[::20])
    own = np.arange(0, 6000, 20)
    cells = Cells(members)

    def nearest(*arrays: np.ndarray) -> dict[int, list[tuple[float, int]]]:
        query, member, _, distance = arrays
        result: dict[int, list[tuple[float, int]]] = {number: [] for number in range(len(queries))}
        for one, other, far in zip(query.tolist(), member.tolist(), distance.tolist(), strict=True):
            if own[one] != other:
                result[one].append((far, other))
        return {one: sorted(found)[:7] for one, found in result.items()}

    every = cells.within(queries, RADIUS, 6000)
    few = cells.within(queries, RADIUS, 6000, enough=7, counts=lambda query, member: own[query] != member)
    assert nearest(*few) == nearest(*every)
    assert np.mean([len(found) == 7 for found in nearest(*few).values()]) > 0.5
    if num_cells_from < 6000:
        assert len(few[0]) < 0.8 * len(every[0])
