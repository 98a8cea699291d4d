"""Classes and splits: unequal, too small, empty, missing, or of nearly the same name."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foveal.auditing.classes import (
    class_imbalance,
    class_names_alike,
    class_too_small,
    comparable_name,
    empty_classes,
)
from foveal.auditing.config import ClassesConfig
from foveal.auditing.leaks import belonging
from foveal.auditing.originals import originals
from foveal.auditing.splits import class_missing_in_split, split_proportions
from foveal.data.manifest import Manifest
from foveal.data.split import split
from foveal.errors import DataError

CONFIG = ClassesConfig()


def make(counts: dict[str, int], **columns: Any) -> Manifest:
    label = [name for name, count in counts.items() for _ in range(count)]
    path = [f"{name}/{number}.jpg" for name, count in counts.items() for number in range(count)]
    return Manifest.build(Path("/data"), path=path, label=label, **columns)


def alone(manifest: Manifest) -> np.ndarray:
    return np.full(len(manifest), -1, dtype=np.int64)


def imbalance(manifest: Manifest, clusters: np.ndarray | None = None) -> list[Any]:
    found = originals(manifest, alone(manifest) if clusters is None else clusters, alone(manifest))
    return list(class_imbalance(manifest, found, CONFIG).findings)


def test_imbalance_by_images_and_by_originals() -> None:
    assert imbalance(make({"a": 100, "b": 40})) == []
    (note,) = imbalance(make({"a": 120, "b": 40}))
    assert (note.severity, note.value) == ("note", 3.0)
    (warning,) = imbalance(make({"a": 400, "b": 40}))
    assert (warning.severity, warning.value) == ("warning", 10.0)
    # 100 files each, of which b has 20 originals: balanced on paper.
    clusters = np.array([-1] * 100 + [number // 5 for number in range(100)])
    (hidden,) = imbalance(make({"a": 100, "b": 100}), clusters)
    assert hidden.value == 5.0
    assert "'a' has 100 originals and 'b' has 20" in hidden.detail
    assert class_imbalance(
        make({"a": 9}), originals(make({"a": 9}), alone(make({"a": 9})), alone(make({"a": 9}))), CONFIG
    ).skipped


@pytest.mark.parametrize("case", ["drawn", "val drawn of train", "test given", "all given"])
def test_too_small_is_blocking_where_split_refuses(case: str) -> None:
    """What this check calls blocking is what `split` refuses, class by class."""
    given = {
        "drawn": [None] * 200,
        "val drawn of train": ["train", "train", "train", "test"] * 50,
        "test given": ["test", None, None, None] * 50,
        "all given": ["train", "train", "val", "test"] * 50,
    }[case]
    counts = {"one": 1, "two": 2, "three": 3, "four": 4, "many": 190}
    manifest = make(counts, split=given, group=[f"g{number}" for number in range(200)])
    findings = class_too_small(manifest, belonging(manifest), CONFIG, num_folds=5).findings
    assert [each.label for each in findings] == ["one", "two", "three", "four"]
    blocking = {each.label for each in findings if each.severity == "blocking"}
    try:
        split(manifest, val_fraction=0.15, test_fraction=0.15, seed=0)
        refused = set()
    except DataError as error:
        refused = {name for name in counts if any(repr(name) in problem for problem in error.problems)}
    assert blocking == refused


def test_what_belongs_together_counts_once() -> None:
    manifest = make({"a": 60, "b": 60}, group=[f"p{number % 4}" for number in range(60)] + [None] * 60)
    (finding,) = class_too_small(manifest, belonging(manifest), CONFIG, num_folds=5).findings
    assert (finding.label, finding.value, finding.severity) == ("a", 4.0, "warning")
    assert finding.detail == "60 images, of which 4 independent; 5 folds need at least 5."
    (note,) = class_too_small(make({"a": 60, "b": 8}), np.arange(68), CONFIG, num_folds=5).findings
    assert (note.severity, note.label) == ("note", "b")


def test_names_that_are_one_class_to_a_person() -> None:
    counts = {"Cat": 3, "cat": 5, "c a t": 1, "red_fox": 2, "Red-Fox ": 4, "Straße": 1, "STRASSE": 2}
    counts |= {"ｄｏｇ": 2, "dog": 3, "ow\u200bl": 1, "owl": 2}
    kept_apart = {"a": 1, "A": 1, "-": 1, "_": 1, "1-1": 1, "11": 1, "cats": 1, "7": 1, "07": 1}
    found = class_names_alike(make({**counts, **kept_apart})).findings
    assert {(each.label, each.related_label, each.value) for each in found} == {
        ("Cat", "cat", 3.0),
        ("c a t", "cat", 1.0),
        ("red_fox", "Red-Fox ", 2.0),
        ("Straße", "STRASSE", 1.0),
        ("ｄｏｇ", "dog", 2.0),
        ("ow\u200bl", "owl", 1.0),
    }
    assert {(each.severity, each.repair) for each in found} == {("blocking", "merge_classes")}
    assert comparable_name("e\u0301te\u0301") == comparable_name("été")


def test_empty_classes_by_name_and_by_failure() -> None:
    manifest = Manifest.build(
        Path("/data"), path=["a/1.jpg", "b/1.jpg"], label=["a", "b"], status=["ok", "quarantined"], class_names="abc"
    )
    found = empty_classes(manifest, ["c", "d"]).findings
    assert [(each.label, each.detail) for each in found] == [
        ("b", "None of its 1 files can be used."),
        ("c", "There is no image in it."),
        ("d", "There is no image in its folder."),
    ]


def test_classes_that_a_split_lacks() -> None:
    manifest = make({"a": 3, "b": 2, "c": 2}, split=["train", "val", "test", "train", "train", "test", "test"])
    found = class_missing_in_split(manifest).findings
    assert [(each.label, each.split, each.severity, each.value) for each in found] == [
        ("c", "train", "blocking", 2.0),
        ("b", "val", "warning", 2.0),
        ("c", "val", "warning", 2.0),
        ("b", "test", "warning", 2.0),
    ]
    assert class_missing_in_split(make({"a": 3})).skipped
    assert split_proportions(make({"a": 3}), CONFIG).skipped


def test_sizes_and_class_shares_of_splits() -> None:
    def told(counts: dict[str, tuple[int, int]]) -> list[tuple[str | None, str]]:
        names = [name for name, pair in counts.items() for _ in range(sum(pair))]
        splits = [
            name
            for pair in counts.values()
            for name, num in zip(("train", "test"), pair, strict=True)
            for _ in range(num)
        ]
        manifest = Manifest.build(
            Path("/data"), path=[f"{number}" for number in range(len(names))], label=names, split=splits
        )
        return [(each.split, each.detail) for each in split_proportions(manifest, CONFIG).findings]

    assert told({"a": (400, 100), "b": (400, 100)}) == []
    assert "known to about ±22 points" in told({"a": (400, 10), "b": (400, 10)})[0][1]
    assert "a small one" in told({"a": (4000, 60), "b": (4000, 60)})[0][1]
    assert "leaves 400 to train on" in told({"a": (200, 300), "b": (200, 300)})[0][1]
    assert told({"a": (400, 150), "b": (400, 50)}) == [
        (
            "test",
            "The classes of test have other shares than those of train: 'a' is 75.0 % of test and 50.0 % of train.",
        )
    ]
    # Many classes of a few images each differ by chance, and that is not told.
    rng = np.random.default_rng(0)
    assert told({str(n): (20, int(k)) for n, k in enumerate(rng.poisson(4, 100))}) == []
