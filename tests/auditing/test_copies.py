"""Copies by content, what leaks by them, and how many originals are left."""

from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from made_facts import made_pairs
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import minimum_spanning_tree

from foveal.auditing.config import ClassesConfig
from foveal.auditing.copies import exact_duplicates, label_conflicts, near_duplicates, spanning_pairs
from foveal.auditing.leaks import belonging, leakage, leaks
from foveal.auditing.originals import class_counts, fewer_originals, originals
from foveal.data.manifest import Manifest

SPLIT = {"a": "train", "v": "val", "t": "test", "-": None}


def make(labels: str, splits: str = "", **columns: Any) -> Manifest:
    columns.setdefault("path", [f"{number}.jpg" for number in range(len(labels))])
    if splits:
        columns["split"] = [SPLIT[letter] for letter in splits]
    columns.setdefault("sha256", [f"{number:064d}" for number in range(len(labels))])
    return Manifest.build(Path("/data"), label=list(labels), **columns)


def alone(manifest: Manifest) -> np.ndarray:
    return np.full(len(manifest), -1, dtype=np.int64)


def told(findings: Any) -> list[tuple[int | None, int | None]]:
    return [(each.row, each.related_row) for each in findings]


def test_a_set_of_n_exact_duplicates_is_told_n_minus_one_times() -> None:
    # All pairs of rows 1, 3, 4 and those of 0 and 2 by their hash alone.
    pairs = made_pairs((1, 3, 1), (1, 4, 1), (3, 4, 1))
    found = exact_duplicates(make("aaaaa", sha256=["x", "y", "x", "y", "y"]), pairs).findings
    assert told(found) == [(2, 0), (3, 1), (4, 1)]
    assert {(each.severity, each.repair, each.value) for each in found} == {("warning", "keep_one", 1.0)}


def test_boxes_of_one_photograph_are_no_copies_of_each_other() -> None:
    boxes = {"xmin": [0, 5, 0], "ymin": [0, 0, 0], "xmax": [9, 14, 9], "ymax": [9, 9, 9]}
    manifest = make("aaa", "ata", path=["p.jpg", "p.jpg", "q.jpg"], sha256=["x", "x", "x"], **boxes)
    pairs = made_pairs((0, 1, 0.9))
    assert told(exact_duplicates(manifest, pairs).findings) == [(2, 0)]  # the same box of the same bytes
    assert not near_duplicates(manifest, pairs).findings
    leak = leaks(manifest, belonging(manifest), pairs).findings
    assert [(each.row, each.value, each.detail) for each in leak] == [
        (1, None, "Another box of its photograph is in train.")
    ]


def test_near_duplicates_join_the_cluster_and_count_exact_ones_once() -> None:
    # 0 and 1 are the same bytes; 2 is near both; 3 is near 2.
    pairs = made_pairs((0, 1, 1), (0, 2, 0.9), (1, 2, 0.9), (2, 3, 0.8), (0, 3, 0.7))
    found = near_duplicates(make("aaaa", "aaat", sha256=list("xxyz")), pairs).findings
    assert told(found) == [(0, 2), (2, 3)]
    assert found[1].detail.endswith("They are in two splits.")
    assert not found[0].detail.endswith("splits.")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12), st.floats(0.125, 1, width=16)), max_size=40))
def test_spanning_pairs_are_the_forest_of_greatest_similarity(edges: list[tuple[int, int, float]]) -> None:
    best: dict[tuple[int, int], float] = {}
    for left, right, value in edges:
        if left != right:
            key = min(left, right), max(left, right)
            best[key] = max(best.get(key, 0), value)
    left, right = (np.array([edge[place] for edge in edges], dtype=np.int64) for place in (0, 1))
    similarity = np.array([edge[2] for edge in edges], dtype=np.float32)
    kept = spanning_pairs(left, right, similarity)
    assert (np.diff(similarity[kept]) <= 0).all()
    ends = np.array(list(best), dtype=np.int64).reshape(-1, 2)
    weights = np.array([2.0 - value for value in best.values()])
    forest = minimum_spanning_tree(coo_matrix((weights, (ends[:, 0], ends[:, 1])), shape=(13, 13)))
    assert len(kept) == forest.nnz
    assert np.isclose((2.0 - similarity[kept]).sum(), forest.sum())


def test_one_picture_under_two_labels() -> None:
    pairs = made_pairs((0, 1, 1), (0, 2, 1), (0, 3, 1), (4, 5, 0.9), (6, 7, 0.8), (5, 6, 0.95))
    found = label_conflicts(make("abbbabbb", "aaaatttt", sha256=list("wwwwxyzz")), pairs).findings
    # Most of the first set are b, so a is told; of near ones, only those of two labels.
    assert told(found) == [(0, 1), (4, 5)]
    assert found[0].detail == "The same bytes are filed under 'a' and under 'b'."
    assert {(each.severity, each.repair) for each in found} == {("blocking", "quarantine")}
    tie = label_conflicts(make("ba", sha256=["x", "x"]), made_pairs((0, 1, 1))).findings
    assert told(tie) == [(1, 0)]


def test_the_same_box_under_two_labels_is_a_conflict() -> None:
    boxes = {"xmin": [3, 3], "ymin": [3, 3], "xmax": [9, 9], "ymax": [9, 9]}
    found = label_conflicts(make("ab", path=["p", "p"], sha256=["x", "x"], **boxes), made_pairs()).findings
    assert told(found) == [(1, 0)]


def test_leaks_name_the_closest_tie() -> None:
    manifest = make(
        "aaaaaaaaa",
        "aattvttvt",
        sha256=[*"stuvwx", "s", "y", "z"],
        group=[None, "g", None, None, None, "g", None, None, None],
    )
    pairs = made_pairs((0, 2, 0.7), (1, 2, 0.9), (2, 3, 0.8), (7, 8, 0.75))
    names = np.array([0, -1, -1, -1, 0, -1, -1, -1, -1])
    clusters = np.array([0, 0, 0, 0, -1, -1, -1, 1, 1])
    components = belonging(manifest, clusters, names)
    found = leaks(manifest, components, pairs, names).findings
    assert [(each.row, each.related_row, each.severity, each.repair) for each in found] == [
        (2, 1, "blocking", "move"),
        (3, 0, "blocking", "move"),
        (4, 0, "blocking", "move"),
        (5, 1, "blocking", "move"),
        (6, 0, "blocking", "move"),
        (8, 7, "warning", "move"),
    ]
    assert [each.value is None for each in found] == [False, True, True, True, True, False]
    details = [each.detail for each in found]
    assert details[0] == "A copy of this test image is in train: the same view; re-encoded, resized or recoloured."
    assert "copy of a copy" in details[1]
    assert "name" in details[2]
    assert "group 'g'" in details[3]
    assert details[4] == "This test image is also in train: the same bytes."
    summary = leakage(manifest, components)
    assert summary == {
        "val": {"num_images": 2, "num_with_siblings_in_train": 1, "share": 0.5, "by_class": {"a": [2, 1]}},
        "test": {"num_images": 5, "num_with_siblings_in_train": 4, "share": 0.8, "by_class": {"a": [5, 4]}},
    }


def test_without_splits_nothing_leaks_and_quarantined_rows_belong_to_nobody() -> None:
    manifest = make("ab")
    assert leaks(manifest, belonging(manifest), made_pairs()).skipped
    assert leakage(manifest, belonging(manifest)) == {}
    broken = make("aaa", "att", sha256=list("xxx"), status=["quarantined", "quarantined", "ok"])
    assert not exact_duplicates(broken, made_pairs()).findings
    assert not leaks(broken, belonging(broken, np.zeros(3, dtype=np.int64)), made_pairs()).findings


def test_originals_count_copies_once_and_patients_not() -> None:
    """Balanced on paper: ten files each, of which one class has three originals."""
    labels = "a" * 10 + "b" * 10
    clusters = np.array([0, 0, 0, 0, 1, 1, 1, -1, -1, -1] + [-1] * 10)
    names = np.array([-1] * 6 + [2, 2, 2, 2] + [-1] * 10)
    manifest = make(labels, "aaaatttttt" + "a" * 8 + "tt", group=["patient"] * 20)
    found = originals(manifest, clusters, names)
    assert found.num_originals_in_all.tolist() == [2, 10]
    assert found.total == 12
    assert found.num_originals.tolist() == [[1, 0, 1, 0], [8, 0, 2, 0]]
    (told_of,) = fewer_originals(manifest, found, ClassesConfig()).findings
    assert (told_of.label, told_of.value) == ("a", 2.0)
    assert told_of.detail == "10 images, 2 originals: 1 of 4 in train, 1 of 6 in test."
    assert class_counts(manifest, found)[0] == {
        "name": "a",
        "num_images": 10,
        "num_originals": 2,
        "num_quarantined": 0,
        "by_split": {"train": 4, "test": 6},
        "originals_by_split": {"train": 1, "test": 1},
    }


def test_names_of_photographs_say_nothing_of_their_boxes() -> None:
    boxes = {"xmin": [0, 5], "ymin": [0, 0], "xmax": [9, 14], "ymax": [9, 9]}
    manifest = make("aa", path=["p.jpg", "p_flip.jpg"], **boxes)
    assert originals(manifest, alone(manifest), np.array([0, 0])).total == 2


def test_a_photograph_turned_a_hundred_ways_is_one_cluster_of_99_pairs() -> None:
    left, right = np.triu_indices(100, 1)
    rng = np.random.default_rng(0)
    pairs = made_pairs(*zip(left.tolist(), right.tolist(), rng.uniform(0.7, 0.99, len(left)).tolist(), strict=True))
    found = near_duplicates(make("a" * 100), pairs).findings
    assert len(found) == 99
    assert {row for each in told(found) for row in each} == set(range(100))
