"""Groups by column, expression, content and cluster, and their union under one name."""

from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from foveal.data.grouping import group_sources, names_by_pattern, regroup
from foveal.data.manifest import Manifest
from foveal.data.split import identities, siblings
from foveal.errors import ConfigError


def make(num_rows: int, **columns: object) -> Manifest:
    columns.setdefault("path", [f"{row}.jpg" for row in range(num_rows)])
    return Manifest.build(Path("/data"), label=["a", "b"] * (num_rows // 2) + ["a"] * (num_rows % 2), **columns)  # type: ignore[arg-type]


def groups(manifest: Manifest) -> list[str | None]:
    return list(manifest.column("group"))


def test_a_union_is_called_by_what_is_given() -> None:
    manifest = make(
        10,
        sample_id=[f"{15 - row:016x}" for row in range(10)],
        group=["p10", "p10", "p2", None, None, None, "q", "p10", None, "q"],
        sha256=[None, "x", "x", "y", "y", None, None, None, "y", "y"],
        status=["ok"] * 7 + ["quarantined"] * 3,
    )
    clusters = np.array([-1, -1, -1, -1, -1, 0, 0, 0, 0, 0])
    joined = regroup(manifest, [clusters])
    # p10 and p2 by the bytes; two copies that nobody named, by their least sample_id; a copy that joins the group q.
    # Quarantined rows join nothing, and follow the group that they were given.
    union, copies = "p2+p10", "copies-00000000"
    assert groups(joined) == [union, union, union, copies, copies, "q", "q", union, None, "q"]
    assert groups(regroup(joined, [clusters])) == groups(joined)
    assert groups(regroup(joined)) == groups(joined)
    assert groups(make(4)) == groups(regroup(make(4))) == [None] * 4


def test_names_never_run_together() -> None:
    many = [f"a patient with a long name {row}" for row in range(30)]
    manifest = make(36, group=[*many, "a+b", "a", "b", "1", None, None], sha256=[*["s"] * 30, *[None] * 6])
    names = np.array([None] * 34 + ["1", "1"], dtype=object)
    joined = groups(regroup(manifest, [np.array([-1] * 31 + [0, 0, -1, -1, -1])], names=names))
    assert len(set(joined[:30])) == 1
    assert len(joined[0] or "") < 90
    assert joined[30] == "a+b"
    assert joined[31] == joined[32] != "a+b"
    assert joined[33] == "1"  # given by the column; what the expression found is another 1
    assert joined[34] == joined[35] != "1"


def test_colliding_digits_do_not_make_strangers_siblings() -> None:
    ids = ["aaaaaaaa00000000", "bbbbbbbbbbbbbbbb", "aaaaaaaa11111111", "cccccccccccccccc"]
    joined = groups(regroup(make(4, sample_id=ids, sha256=["x", "x", "y", "y"])))
    assert joined == ["copies-aaaaaaaa00000000"] * 2 + ["copies-aaaaaaaa11111111"] * 2


def test_unions_are_the_components_that_scipy_finds_and_a_second_time_changes_nothing() -> None:
    for seed in range(25):
        draw = np.random.default_rng(seed)
        num_rows = int(draw.integers(1, 90))
        numbers = draw.integers(0, num_rows, (4, num_rows))
        is_there = draw.random((4, num_rows)) < 0.3
        group = [f"g{n}" if p else None for n, p in zip(numbers[0], is_there[0], strict=True)]
        names = np.array([f"g{n}" if p else None for n, p in zip(numbers[1], is_there[1], strict=True)], dtype=object)
        sha256 = [f"s{n}" if p else None for n, p in zip(numbers[2], is_there[2], strict=True)]
        clusters = np.where(is_there[3], numbers[3], -1)
        manifest = make(num_rows, group=group, sha256=sha256)
        joined = regroup(manifest, [clusters], names=names)
        codes = np.where(is_there, numbers, -1) + np.arange(4)[:, None] * num_rows
        which, row = np.nonzero(is_there)
        ends = (row, num_rows + codes[which, row])
        graph = coo_matrix((np.ones(len(row)), ends), shape=(5 * num_rows, 5 * num_rows))
        expected = connected_components(graph, directed=False)[1][:num_rows]
        mine = siblings(joined)
        assert len(np.unique(np.stack([mine, expected]), axis=1).T) == len(set(mine)) == len(set(expected))
        sizes = np.bincount(mine)
        alone = [row for row in range(num_rows) if sizes[mine[row]] == 1 and group[row] is None and names[row] is None]
        assert all(joined.column("group")[row] is None for row in alone)
        assert groups(regroup(joined, [clusters], names=names)) == groups(joined)
        order = draw.permutation(num_rows)
        shuffled = regroup(manifest.take(order), [clusters[order]], names=names[order])
        assert groups(shuffled) == [groups(joined)[place] for place in order]


def test_finding_copies_does_not_change_what_a_row_is() -> None:
    manifest = make(4, group=["p", None, None, None], sha256=[None, "x", "x", None])
    assert np.array_equal(identities(regroup(manifest)), identities(manifest))


def test_boxes_of_one_photograph_are_not_told_as_copies() -> None:
    boxes = {name: [0, 1, 0, 0] for name in ("xmin", "ymin")} | {name: [5, 6, 5, 5] for name in ("xmax", "ymax")}
    manifest = make(4, path=["a.jpg", "a.jpg", "b.jpg", "c.jpg"], sha256=["x", "x", "y", "y"], **boxes)
    assert [(each.name, each.num_samples) for each in group_sources(manifest)] == [
        ("boxes of one photograph", 2),
        ("same bytes", 2),
    ]


def test_the_group_in_a_path() -> None:
    paths = ["a/10017_left.jpg", "b/10017_right.jpg", "b/23_left.png", "b/new\nline 9.png", "ü/broken_left.jpg"]
    manifest = make(5, path=paths, status=["ok"] * 5)
    first = names_by_pattern(manifest, r"(\d+)_(left|right)")
    assert first.tolist() == ["10017", "10017", "23", None, None]
    named = names_by_pattern(manifest, r"(\w+)/(?P<group>\w+)_")
    assert named.tolist() == ["10017", "10017", "23", None, "broken"]
    assert names_by_pattern(manifest, r"\d+")[3] == "9"
    with pytest.raises(ConfigError, match="none of 5 paths") as caught:
        names_by_pattern(manifest, r"(\d+)_(middle)")
    assert "10017_left.jpg" in caught.value.problems[0]
    assert [each.sentence() for each in group_sources(manifest, np.array([0, -1, 0, -1, -1]), first)] == [
        "regular expression on the path: 2 images in 1 groups of two or more",
        "near duplicates: 2 images in 1 groups of two or more",
    ]
