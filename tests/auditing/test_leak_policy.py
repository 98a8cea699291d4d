"""What training does about copies across splits: told, left out, or refused; and copies share a group."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from foveal.auditing.config import AuditConfig
from foveal.auditing.leak_policy import LEFT_OUT, apply_leak_policy, with_copies_grouped
from foveal.data.manifest import Manifest
from foveal.data.split import straddling
from foveal.errors import DataError


def manifest(rows: Sequence[str], **columns: Sequence[object]) -> Manifest:
    """From words such as `train a g1`: split, label and, where there is one, group; an `x` in front is quarantined."""
    parts = [row.lstrip("x").split() for row in rows]
    columns.setdefault("path", [f"{part[1]}/{at}.jpg" for at, part in enumerate(parts)])
    return Manifest.build(
        Path("/p"),
        label=[part[1] for part in parts],
        split=[part[0] for part in parts],
        group=[part[2] if len(part) > 2 else None for part in parts],
        status=["quarantined" if row.startswith("x") else "ok" for row in rows],
        sha256=[f"{at:064}" for at in range(len(rows))],
        **columns,  # type: ignore[arg-type]
    )


MIXED = (
    *("train a one", "train a two", "train b two", "train b", "train a", "train b three"),
    *("val a one", "val b", "val a four", "val b"),
    *("test b two", "test a four", "test a", "test b"),
)
LEAKED = "Images that belong together with one in train, as copies or by their group: 1 of 4 in val, 1 of 4 in test."


def test_to_report_changes_nothing_and_says_how_many() -> None:
    before = manifest(MIXED)
    after, told = apply_leak_policy(before, "report")
    assert after.table.equals(before.table)
    assert told.startswith(LEAKED)
    assert "the accuracy without them" in told


def test_to_drop_leaves_test_whole_and_nothing_across() -> None:
    before = manifest(MIXED)
    after, told = apply_leak_policy(before, "drop")
    reasons = {at: reason for at, reason in enumerate(after.column("reason")) if reason}
    # The group of one goes from train for val's sake, two from train and four from val for the sake of test.
    assert reasons == {0: f"{LEFT_OUT} val", 1: f"{LEFT_OUT} test", 2: f"{LEFT_OUT} test", 8: f"{LEFT_OUT} test"}
    assert np.flatnonzero(~after.is_usable()).tolist() == [0, 1, 2, 8]
    assert np.array_equal(after.of_split("test"), before.of_split("test"))
    assert not straddling(after).any()
    assert told.startswith(LEAKED)
    assert "3 images of train, 1 of val" in told
    assert apply_leak_policy(after, "drop") == (after, "")
    assert apply_leak_policy(after, "error")[1] == ""


def test_to_refuse_names_the_images_and_the_ways_out() -> None:
    with pytest.raises(DataError) as caught:
        apply_leak_policy(manifest(MIXED), "error")
    assert caught.value.message.startswith(LEAKED)
    assert caught.value.problems == ("a/6.jpg (val)", "b/10.jpg (test)")
    assert "foveal clean" in caught.value.fix
    assert "data.leaks=drop" in caught.value.fix


def test_many_leaks_are_counted_and_some_are_named() -> None:
    rows = [f"{split} a g{at}" for at in range(50) for split in ("train", "test")]
    with pytest.raises(DataError) as caught:
        apply_leak_policy(manifest([*rows, "train b", "val a", "val b", "test b"]), "error")
    assert "0 of 2 in val, 50 of 51 in test" in caught.value.message
    assert len(caught.value.problems) == 21
    assert caught.value.problems[-1] == "and 30 more"


def test_what_val_and_test_share_alone_is_told_as_that() -> None:
    rows = ("train a", "train b", "val a g", "val b", "test a g", "test b", "val a")
    _, told = apply_leak_policy(manifest(rows), "report")
    assert "belong together with one in test" in told
    assert "1 of 3 in val" in told
    assert "train" not in told
    with pytest.raises(DataError) as caught:
        apply_leak_policy(manifest(rows), "error")
    assert caught.value.problems == ("a/2.jpg (val)",)
    assert "train" not in caught.value.message
    after, told = apply_leak_policy(manifest(rows), "drop")
    assert np.flatnonzero(~after.is_usable()).tolist() == [2]
    assert "0 images of train, 1 of val" in told


@pytest.mark.parametrize("policy", ["report", "drop", "error"])
def test_where_nothing_leaks_nothing_is_said_or_done(policy: str) -> None:
    for rows in (
        ("train a one", "train a one", "val a", "test a two", "test a two"),
        ("train a one", "xtest a one", "test a"),  # what is not used cannot leak
        ("train a", "train b"),
        (),
    ):
        before = manifest(rows)
        assert apply_leak_policy(before, policy) == (before, "")  # type: ignore[arg-type]


def test_rows_without_a_split_are_left_alone() -> None:
    before = manifest(["train a g", "train a", "test a g", "train b", "test b"])
    before = before.with_columns(split=["train", "train", "test", None, None], group=["g", None, "g", "g", None])
    after, _ = apply_leak_policy(before, "drop")
    assert np.flatnonzero(~after.is_usable()).tolist() == [0]


def test_same_bytes_and_boxes_of_one_photograph_leak_too() -> None:
    rows = ["train a", "train a", "val a", "test a", "test a", "train a"]
    boxed = manifest(
        rows,
        path=["p", "q", "r", "p", "s", "t"],
        xmin=[0, 0, 0, 9, 0, 0],
        ymin=[0] * 6,
        xmax=[8, 8, 8, 17, 8, 8],
        ymax=[8] * 6,
    )
    boxed = boxed.with_columns(sha256=["p", "q", "r", "p", "q", "t"])
    after, told = apply_leak_policy(boxed, "drop")
    assert "0 of 1 in val, 2 of 2 in test" in told
    assert np.flatnonzero(~after.is_usable()).tolist() == [0, 1]


def test_a_drop_that_would_empty_a_class_is_refused_with_the_counts() -> None:
    rows = ["train a one", "train a two", "train b", "val a", "val b three", "test a one", "test a two", "test b three"]
    with pytest.raises(DataError, match="leaves nothing of some classes") as caught:
        apply_leak_policy(manifest(rows), "drop")
    assert caught.value.problems == ("class 'a' in train: 0 of 2", "class 'b' in val: 0 of 1")
    assert "foveal split" in caught.value.fix


def test_copies_by_content_and_by_name_share_a_group_with_those_that_were_given() -> None:
    before = manifest(
        ["train a patient", "train a", "val a", "test a", "test b"],
        path=["a/one.jpg", "a/12_aug_1.jpg", "a/12_aug_2.jpg", "a/two.jpg", "b/three.jpg"],
    )
    clusters = np.array([4, 4, -1, -1, -1])
    by_both = with_copies_grouped(before, clusters, AuditConfig()).column("group")
    assert by_both[0] == by_both[1] == by_both[2]
    assert by_both[0] is not None
    assert by_both[3] is None
    assert by_both[4] is None
    by_content = with_copies_grouped(before, clusters, AuditConfig(copies_by_name=False)).column("group")
    assert by_content[0] == by_content[1]
    assert by_content[2] is None
    untouched = with_copies_grouped(before, np.full(5, -1), AuditConfig(copies_by_name=False))
    assert untouched.column("group").tolist() == ["patient", None, None, None, None]
