"""Subsets: balanced or in proportion, nested, stable, and not filled with copies."""

from pathlib import Path

import numpy as np
import pytest

from foveal.data.manifest import Manifest
from foveal.data.subset import draw_subset
from foveal.errors import DataError


def make(sizes: dict[str, int], **columns: object) -> Manifest:
    labels = [name for name, size in sizes.items() for _ in range(size)]
    columns.setdefault("path", [f"{name}/{number}.jpg" for name, size in sizes.items() for number in range(size)])
    return Manifest.build(Path("/data"), label=labels, **columns)  # type: ignore[arg-type]


def ids(manifest: Manifest, chosen: np.ndarray) -> set[str]:
    return set(manifest.column("sample_id")[chosen])


def per_label(manifest: Manifest, chosen: np.ndarray) -> list[int]:
    return np.bincount(manifest.label_ids()[chosen], minlength=len(manifest.class_names)).tolist()


def test_subsets_are_nested_and_do_not_depend_on_the_order_of_rows() -> None:
    draw = np.random.default_rng(0)
    manifest = make(
        {"a": 300, "b": 120, "c": 40},
        group=[f"g{n}" if n < 80 else None for n in draw.integers(0, 200, 460)],
        status=["quarantined" if p < 0.05 else "ok" for p in draw.random(460)],
    )
    order = draw.permutation(460)
    before: set[str] = set()
    for number in range(3, 36):
        chosen = draw_subset(manifest, per_class=number, seed=4)
        assert per_label(manifest, chosen) == [number] * 3
        assert before < ids(manifest, chosen)
        before = ids(manifest, chosen)
        shuffled = manifest.take(order)
        assert ids(shuffled, draw_subset(shuffled, per_class=number, seed=4)) == before
    before = set()
    usable = np.array(per_label(manifest, manifest.is_usable()))
    for number in range(9, 430, 7):
        chosen = draw_subset(manifest, total=number, seed=4)
        assert chosen.sum() == number
        assert before < ids(manifest, chosen)
        before = ids(manifest, chosen)
        if number > 60:  # so that no class lives on its least number
            assert np.abs(per_label(manifest, chosen) - number * usable / usable.sum()).max() < 1.5
    other = draw_subset(manifest, per_class=20, seed=5)
    assert len(ids(manifest, other) & ids(manifest, draw_subset(manifest, per_class=20, seed=4))) < 35


def test_one_of_each_group_comes_before_a_second_of_any() -> None:
    # 40 pictures, of which one was copied 60 times.
    groups = ["copied"] * 61 + [None] * 39
    manifest = make({"a": 100, "b": 100}, group=groups * 2)
    for number in (10, 40, 60):
        chosen = draw_subset(manifest, per_class=number, seed=1)
        for label in (0, 1):
            copies = chosen & (manifest.label_ids() == label) & (manifest.column("group") == "copied")
            assert copies.sum() == (number - 39 if number > 39 else copies.sum())
            assert copies.sum() <= max(1, number - 39)


def test_added_images_push_few_out() -> None:
    few, many = make({"a": 1000, "b": 1000}), make({"a": 1100, "b": 1000})
    before, after = (ids(each, draw_subset(each, per_class=200, seed=0)) for each in (few, many))
    assert len(before - after) < 40  # 200 * 100 / 1100 = 18 on average
    # Rows of an earlier manifest come first, whatever the seed.
    kept = np.isin(many.column("sample_id"), list(before))
    assert before == ids(many, draw_subset(many, per_class=200, seed=9, preferred=kept))
    assert before < ids(many, draw_subset(many, per_class=250, seed=9, preferred=kept))


def test_given_splits_keep_their_proportions() -> None:
    manifest = make({"a": 600, "b": 600}, split=(["train"] * 500 + ["test"] * 100) * 2)
    chosen = draw_subset(manifest, per_class=60, seed=0)
    tested = chosen & (manifest.column("split") == "test")
    assert per_label(manifest, tested) == [10, 10]
    assert per_label(manifest, draw_subset(manifest, per_class=4, seed=0)) == [4, 4]
    least = draw_subset(manifest, per_class=4, seed=0) & (manifest.column("split") == "test")
    assert per_label(manifest, least) == [1, 1]


def test_row_33_wishes_that_cannot_be_met_name_every_class_and_its_count() -> None:
    manifest = make({"a": 30, "b": 8, "c": 5}, status=["ok"] * 37 + ["quarantined"] * 2 + ["ok"] * 4)
    with pytest.raises(DataError) as caught:
        draw_subset(manifest, per_class=10, seed=0)
    assert caught.value.problems == ("class 'b': 7 usable images, not 10", "class 'c': 4 usable images, not 10")
    assert "at most 4" in caught.value.fix
    with pytest.raises(DataError, match="at least 3 of each"):
        draw_subset(manifest, per_class=2, seed=0)
    for total in (42, 8):
        with pytest.raises(DataError, match=r"41 are usable.* at least 9"):
            draw_subset(manifest, total=total, seed=0)
    assert per_label(manifest, draw_subset(manifest, total=9, seed=0)) == [3, 3, 3]
    assert draw_subset(manifest, total=41, seed=0).sum() == 41
