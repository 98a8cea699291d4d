"""What `foveal split` does without looking at an image: nothing is cut, old samples stay, wishes are met or refused."""

from pathlib import Path

import numpy as np
import pytest

from foveal.data.divide import Divided, Shares, count_parts, divide
from foveal.data.earlier import recall
from foveal.data.folds import draw_folds
from foveal.data.manifest import Manifest
from foveal.data.split import siblings, split, straddling
from foveal.data.split_config import SplitConfig
from foveal.errors import DataError

SHARES = Shares(0.15, 0.15, seed=3)
FOLDS = SplitConfig(folds=5)


def make(num_rows: int, *, seed: int = 0, num_groups: int | None = None, start: int = 0) -> Manifest:
    """Rows of three classes, a third of them in groups that hold several classes."""
    draw = np.random.default_rng(seed)
    numbers, is_grouped = draw.integers(0, num_groups or num_rows // 4, num_rows), draw.random(num_rows) < 0.4
    return Manifest.build(
        Path("/data"),
        path=[f"{start + row}.jpg" for row in range(num_rows)],
        label=[f"c{n}" for n in draw.choice(3, num_rows, p=[0.6, 0.3, 0.1])],
        group=[f"g{n}" if p else None for n, p in zip(numbers, is_grouped, strict=True)],
        sha256=[f"{start + row:064x}" for row in range(num_rows)],
        status=["ok" if p > 0.02 else "quarantined" for p in draw.random(num_rows)],
    )


def joined(first: Manifest, second: Manifest) -> Manifest:
    columns = {
        name: [*first.table[name].to_pylist(), *second.table[name].to_pylist()] for name in first.table.column_names
    }
    return Manifest.build(first.images_root, **columns)


def places(manifest: Manifest) -> dict[str, tuple[str | None, float | None]]:
    folds = [None if np.isnan(fold) else fold for fold in manifest.column("fold")]
    return dict(zip(manifest.column("sample_id"), zip(manifest.column("split"), folds, strict=True), strict=True))


def cut(manifest: Manifest) -> int:
    """How many groups lie in several parts."""
    usable, part = manifest.is_usable(), np.nan_to_num(manifest.column("fold"), nan=-1) * 9 + manifest.split_codes()
    pairs = np.unique(np.stack([siblings(manifest)[usable], part[usable]]), axis=1)[0].astype(int)
    return int((np.bincount(pairs) > 1).sum())


def moved(before: Manifest, after: Manifest) -> list[str]:
    new = places(after)
    return [sample for sample, place in places(before).items() if new[sample] != place]


@pytest.mark.parametrize("config", [SplitConfig(), FOLDS, SplitConfig(method="hashed"), SplitConfig(total=200)])
def test_no_group_is_cut_and_the_order_of_rows_does_not_matter(config: SplitConfig) -> None:
    for seed in range(6):
        draw = np.random.default_rng(seed)
        manifest = make(400, seed=seed)
        clusters = np.where(draw.random(400) < 0.2, draw.integers(0, 30, 400), -1)
        divided = divide(manifest, config, SHARES, clusters=clusters).manifest
        assert cut(divided) == 0
        assert not straddling(divided).any()
        assert (divided.split_codes()[divided.is_usable()] >= 0).all()
        assert divided.table["split"].null_count == len(divided) - len(divided.usable())
        order = draw.permutation(400)
        shuffled = divide(manifest.take(order), config, SHARES, clusters=clusters[order]).manifest
        assert places(shuffled) == places(divided)
        other = divide(manifest, config, Shares(0.15, 0.15, seed=4), clusters=clusters).manifest
        assert places(other) != places(divided)


def test_folds_are_equal_to_a_group_and_leave_test_alone() -> None:
    for seed in range(6):
        manifest = make(500, seed=seed)
        divided = divide(manifest, FOLDS, SHARES).manifest
        counts = count_parts(divided)
        assert counts.parts == ("fold 0", "fold 1", "fold 2", "fold 3", "fold 4", "test")
        largest = np.bincount(siblings(divided)).max()
        assert np.ptp(counts.num_images[:5], axis=0).max() <= largest
        wished = len(manifest.usable()) * np.array([0.17] * 5 + [0.15])
        assert np.abs(counts.num_images.sum(axis=1) - wished).max() <= largest
        tested = divided.column("split") == "test"
        assert np.isnan(divided.column("fold")[tested]).all()
        # The test is the same, however many folds are drawn of the rest.
        again = divide(manifest, SplitConfig(folds=7), SHARES).manifest
        assert np.array_equal(again.column("split") == "test", tested)
        without = divide(manifest, SplitConfig(folds=4), Shares(0.15, 0.0, 3)).manifest
        assert set(without.column("split")[without.is_usable()]) == {"train"}
        assert cut(without) == 0


def test_a_given_test_is_held_out_and_a_given_val_is_in_folds() -> None:
    manifest = make(300)
    given = split(manifest, val_fraction=0.2, test_fraction=0.2, seed=9)
    divided = divide(given, FOLDS, SHARES).manifest
    assert np.array_equal(divided.column("split") == "test", given.column("split") == "test")
    assert count_parts(divided).num_images[:5].min() > 0
    kept = divide(given, SplitConfig(), SHARES)
    assert kept.manifest.table["split"].equals(given.table["split"])
    assert "All images have a split already" in kept.notes[-1]
    redrawn = divide(given, SplitConfig(given="redraw"), SHARES).manifest
    assert places(redrawn) == places(divide(manifest, SplitConfig(), SHARES).manifest)


@pytest.mark.parametrize("config", [SplitConfig(), FOLDS, SplitConfig(method="hashed")])
def test_old_samples_keep_their_places_and_new_ones_make_up_the_shares(config: SplitConfig) -> None:
    for seed in range(4):
        few = make(400, seed=seed)
        many = joined(few, make(200, seed=seed + 50, num_groups=100, start=1000))
        before = divide(few, config, SHARES).manifest
        after = divide(many, config, SHARES, earlier=before)
        assert moved(before, after.manifest) == []
        assert cut(after.manifest) == 0
        counts = count_parts(after.manifest)
        if config.method == "stratified":
            share = counts.num_images / counts.num_images.sum(axis=0)
            assert share[counts.parts.index("test")] == pytest.approx([0.15] * 3, abs=0.04)
        assert f"{len(before.usable())} images were in the earlier manifest" in " ".join(after.notes)
        assert moved(after.manifest, divide(many, config, SHARES, earlier=after.manifest).manifest) == []


def test_shares_are_made_up_even_where_the_old_ones_were_bad() -> None:
    labels = ["a", "b"] * 200
    manifest = Manifest.build(Path("/d"), path=[f"{n}.jpg" for n in range(400)], label=labels)
    old = manifest.take(np.arange(200)).with_columns(split=["train"] * 196 + ["val", "val", "test", "test"])
    after = divide(manifest, SplitConfig(), SHARES, earlier=old).manifest
    assert moved(old, after) == []
    assert count_parts(after).num_images.tolist() == [[140, 140], [30, 30], [30, 30]]


def test_moved_and_renamed_files_are_found_by_their_content() -> None:
    few = make(300, num_groups=60)
    before = divide(few, SplitConfig(), SHARES).manifest
    paths = [f"new place/{row}.png" for row in range(300)]
    renamed = Manifest.build(
        Path("/d"), path=paths, label=list(few.column("label")), sha256=list(few.column("sha256")),
        status=list(few.column("status")),
    )  # fmt: skip
    after = divide(renamed, SplitConfig(), SHARES, earlier=before)
    assert after.manifest.column("split").tolist() == before.column("split").tolist()
    found = recall(renamed, before)
    assert (found.num_moved, found.num_gone, found.num_changed) == (len(few.usable()), 0, 0)
    # The same name with another content, one file gone, one new; a copy of an old file is not a moved one.
    sha256 = ["f" * 64, *before.column("sha256")[1:299], before.column("sha256")[5]]
    changed = before.with_columns(path=[*before.column("path")[:299], "n.jpg"], sha256=sha256).with_columns(
        sample_id=[*before.column("sample_id")[:299], "0" * 16], status=["ok"] * 300
    )
    found = recall(changed, before.with_columns(status=["ok"] * 300))
    assert (found.num_moved, found.num_gone, found.num_changed) == (0, 1, 1)
    assert found.split[299] == before.split_codes()[5]


def test_an_old_group_in_several_parts_is_told_and_new_members_join_train() -> None:
    manifest = make(300, num_groups=60)
    before = divide(manifest, SplitConfig(), SHARES).manifest
    tested, trained = before.of_split("test")[0], before.of_split("train")[0]
    new = Manifest.build(Path("/data"), path=["new.jpg"], label=["c0"])
    clusters = np.full(301, -1)
    clusters[[tested, trained, 300]] = 7
    after = divide(joined(manifest, new), SplitConfig(), SHARES, clusters=clusters, earlier=before)
    assert moved(before, after.manifest) == []
    assert after.manifest.column("split")[300] == "train"
    assert any("have a sibling in train" in note for note in after.notes)


def test_from_folds_to_a_val_and_back_the_test_stays() -> None:
    manifest = make(400)
    folds = divide(manifest, FOLDS, SHARES).manifest
    single = divide(manifest, SplitConfig(), SHARES, earlier=folds)
    assert np.array_equal(single.manifest.column("split") == "test", folds.column("split") == "test")
    assert any("val was drawn from them" in note for note in single.notes)
    assert count_parts(single.manifest).num_images.sum(axis=1)[1] == pytest.approx(60, abs=6)
    back = divide(manifest, SplitConfig(folds=3), SHARES, earlier=single.manifest).manifest
    assert np.array_equal(back.column("split") == "test", folds.column("split") == "test")


def test_hashed_never_moves_what_is_old_and_a_changed_share_moves_as_few_as_can_be() -> None:
    few = make(1500, num_groups=300)
    many = joined(few, make(300, seed=8, num_groups=300, start=9000))
    config = SplitConfig(method="hashed")
    before, after = (divide(each, config, SHARES).manifest for each in (few, many))
    assert moved(before, after) == []
    assert count_parts(before).num_images.sum(axis=1) / 1470 == pytest.approx([0.7, 0.15, 0.15], abs=0.04)
    wider = divide(few, config, Shares(0.25, 0.15, 3)).manifest
    changed = [(places(before)[sample][0], places(wider)[sample][0]) for sample in moved(before, wider)]
    assert set(changed) == {("train", "val")}
    assert len(changed) == pytest.approx(150, rel=0.3)
    of_folds = [divide(each, SplitConfig(method="hashed", folds=5), SHARES).manifest for each in (few, many)]
    assert moved(*of_folds) == []


@pytest.mark.parametrize(("num_groups", "most"), [(10**6, 0.03), (600, 0.12)])
def test_stratified_moves_few_old_samples_when_some_are_added(num_groups: int, most: float) -> None:
    few, more = make(3000, num_groups=num_groups), make(300, seed=1, num_groups=num_groups, start=5000)
    for config in (SplitConfig(), FOLDS):
        before, after = (divide(each, config, SHARES).manifest for each in (few, joined(few, more)))
        assert len(moved(before, after)) < most * 3000


def test_subsets_are_nested_in_their_splits_too_and_keep_old_members() -> None:
    manifest = make(900, num_groups=10**6)
    small = divide(manifest, SplitConfig(per_class=20), SHARES)
    assert np.bincount(small.manifest.label_ids()).tolist() == [20, 20, 20]
    assert small.notes[0].startswith(f"The subset holds 60 of {len(manifest.usable()):,} images")
    large = divide(manifest, SplitConfig(per_class=40), Shares(0.15, 0.15, 77), earlier=small.manifest).manifest
    assert set(small.manifest.column("sample_id")) < set(large.column("sample_id"))
    assert moved(small.manifest, large) == []
    assert count_parts(large).num_images.tolist() == [[28] * 3, [6] * 3, [6] * 3]
    half = divide(manifest, SplitConfig(per_class=10), SHARES, earlier=large).manifest
    assert set(half.column("sample_id")) < set(large.column("sample_id"))
    assert count_parts(half).num_images.sum(axis=1) == pytest.approx([21, 4.5, 4.5], abs=2)


def test_row_33_folds_that_cannot_be_are_refused_with_class_and_counts() -> None:
    labels, groups = ["big"] * 60 + ["rare"] * 30, [*[None] * 60, *[f"p{n % 4}" for n in range(30)]]
    manifest = Manifest.build(Path("/d"), path=[f"{n}.jpg" for n in range(90)], label=labels, group=groups)
    with pytest.raises(DataError, match="1 of 2 classes") as caught:
        divide(manifest, FOLDS, SHARES)
    assert caught.value.problems == ("class 'rare': 30 samples in 4 independent groups, not 6",)
    with pytest.raises(DataError, match="too small for 5 folds") as caught:
        draw_folds(manifest.with_columns(split=["train"] * 90), 5, seed=0)
    assert caught.value.problems == ("class 'rare': 30 samples in 4 independent groups outside of test, not 5",)
    assert count_parts(divide(manifest, SplitConfig(folds=3), SHARES).manifest).num_images.min() > 0
    tiny = Manifest.build(Path("/d"), path=[f"{n}.jpg" for n in range(40)], label=["a"] * 37 + ["b"] * 3)
    outcomes: set[bool | None] = set()
    for seed in range(200):
        try:
            told: Divided = divide(tiny, SplitConfig(method="hashed"), Shares(0.15, 0.15, seed))
            outcomes.add(any("no image of 'b'" in note for note in told.notes))
        except DataError as error:
            outcomes.add(None if "class 'b': 0 in train" in error.problems[0] else False)
    assert outcomes == {True, False, None}


def test_what_is_odd_is_told() -> None:
    manifest = make(300, num_groups=10**6)
    clusters = np.where(np.arange(300) < 120, 0, -1)
    told = " ".join(divide(manifest, SplitConfig(group_by=r"^(\d)5\.jpg"), SHARES, clusters=clusters).notes)
    assert "paths are not matched by split.group_by, such as" in told
    assert "The largest group holds 39.2% of the images" in told
