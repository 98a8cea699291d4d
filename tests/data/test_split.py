from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold

from foveal.data.manifest import Manifest
from foveal.data.split import check_splittable, connected, siblings, split, straddling
from foveal.data.stratify import stratify
from foveal.errors import ConfigError, DataError
from foveal.types import SPLITS

SHARES = {"val_fraction": 0.15, "test_fraction": 0.15}


def make(labels: Sequence[str], **columns: Sequence[object]) -> Manifest:
    columns.setdefault("path", [f"{number}.jpg" for number in range(len(labels))])
    return Manifest.build(Path("/data"), label=list(labels), **columns)  # type: ignore[arg-type]


def by_id(manifest: Manifest) -> dict[str, str | None]:
    return dict(zip(manifest.column("sample_id"), manifest.column("split"), strict=True))


def counts(manifest: Manifest) -> np.ndarray:
    """int64 [splits, classes]."""
    labels = manifest.label_ids()
    return np.array(
        [np.bincount(labels[manifest.of_split(name)], minlength=len(manifest.class_names)) for name in SPLITS]
    )


@st.composite
def grouped(draw: st.DrawFn) -> Manifest:
    """Rows of a few classes with groups, photographs and hashes that overlap at random."""
    num_rows, num_classes = draw(st.integers(20, 120)), draw(st.integers(2, 4))
    draw_numbers = np.random.default_rng(draw(st.integers(0, 2**32)))
    some = draw_numbers.random((3, num_rows))
    names = draw_numbers.integers(0, num_rows, (3, num_rows))
    columns: dict[str, list[str | None]] = {
        "group": [f"g{n}" if p < 0.3 else None for n, p in zip(names[0], some[0], strict=True)],
        "sha256": [f"s{n}" if p < 0.3 else None for n, p in zip(names[1], some[1], strict=True)],
    }
    photographs = [n if p < 0.3 else num_rows + i for i, (n, p) in enumerate(zip(names[2], some[2], strict=True))]
    boxes = np.stack([np.zeros(num_rows), np.arange(num_rows), np.full(num_rows, 9), np.arange(num_rows) + 9.0])
    corners = dict(zip(("xmin", "ymin", "xmax", "ymax"), boxes, strict=True))
    labels = [f"c{n}" for n in draw_numbers.integers(0, num_classes, num_rows)]
    status = ["quarantined" if p < 0.05 else "ok" for p in draw_numbers.random(num_rows)]
    return make(labels, path=[f"{n}.jpg" for n in photographs], status=status, **columns, **corners)  # type: ignore[arg-type]


def can_be_split(manifest: Manifest) -> bool:
    try:
        check_splittable(manifest, **SHARES)
    except DataError:
        return False
    return True


@settings(max_examples=60, deadline=None, derandomize=True)
@given(grouped().filter(can_be_split), st.integers(0, 2**40), st.randoms(use_true_random=False))
def test_nothing_straddles_whatever_the_order_of_the_rows(manifest: Manifest, seed: int, random: object) -> None:
    divided = split(manifest, **SHARES, seed=seed)
    assert not straddling(divided).any()
    component, where, usable = siblings(manifest), divided.split_codes(), manifest.is_usable()
    for number in np.unique(component[usable]):
        assert len(set(where[usable & (component == number)])) == 1
    assert (where[usable] >= 0).all()
    assert (where[~usable] < 0).all()
    order = list(range(len(manifest)))
    random.shuffle(order)  # type: ignore[attr-defined]
    shuffled = split(manifest.take(np.array(order)), **SHARES, seed=seed)
    assert by_id(shuffled) == by_id(divided)
    assert counts(divided).min() > 0


@settings(max_examples=60, deadline=None, derandomize=True)
@given(grouped())
def test_siblings_are_the_components_that_scipy_finds(manifest: Manifest) -> None:
    usable = manifest.is_usable()
    codes = [np.where(usable, manifest.codes(name), -1) for name in ("group", "path", "sha256")]
    num_rows, left, right = len(manifest), [], []
    offset = num_rows
    for code in codes:
        rows = np.flatnonzero(code >= 0)
        left.append(rows)
        right.append(code[rows] + offset)
        offset += int(code.max()) + 1
    ends = np.concatenate(left), np.concatenate(right)
    graph = coo_matrix((np.ones(len(ends[0])), ends), shape=(offset, offset))
    expected = connected_components(graph, directed=False)[1][:num_rows]
    mine = siblings(manifest)
    assert len(np.unique(np.stack([mine, expected]), axis=1).T) == len(np.unique(mine)) == len(np.unique(expected))


def test_long_chains_are_one_component() -> None:
    size = 100_000
    order = np.random.default_rng(0).permutation(size)
    assert connected(size, [order // 2, (order + 1) // 2]).max() == 0
    assert connected(3, []).tolist() == [0, 1, 2]


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(3, 200), min_size=2, max_size=6),
    st.floats(0.01, 0.4),
    st.floats(0.01, 0.4),
    st.integers(0, 10**9),
)
def test_samples_that_stand_alone_are_rounded_by_largest_remainder(
    sizes: list[int], val_fraction: float, test_fraction: float, seed: int
) -> None:
    manifest = make([f"c{number}" for number, size in enumerate(sizes) for _ in range(size)])
    divided = split(manifest, val_fraction=val_fraction, test_fraction=test_fraction, seed=seed)
    found = counts(divided)
    for number, size in enumerate(sizes):
        quota = np.array([1 - val_fraction - test_fraction, val_fraction, test_fraction]) * size
        assert found[:, number].sum() == size
        assert found[:, number].min() >= 1
        if quota.min() >= 1:
            assert np.abs(found[:, number] - quota).max() < 1 + 1e-6
            # No other whole numbers are nearer.
            best = np.floor(quota + 1e-9)
            best[np.argsort(-(quota - best), kind="stable")[: int(size - best.sum())]] += 1
            distance = np.abs(found[:, number] - quota).sum()
            assert distance == pytest.approx(np.abs(best - quota).sum(), abs=1e-6)


def test_equal_remainders_take_turns() -> None:
    manifest = make([f"c{number}" for number in range(100) for _ in range(10)])  # 7, 1.5 and 1.5 of each
    assert counts(split(manifest, **SHARES, seed=0)).sum(axis=1).tolist() == [700, 150, 150]


def _imbalance(parts: np.ndarray, labels: np.ndarray, num_parts: int) -> float:
    """Chi-square distance of the parts' class counts from equal shares, a class."""
    total = np.bincount(labels)
    found = np.array([np.bincount(labels[parts == part], minlength=len(total)) for part in range(num_parts)])
    return float((((found - total / num_parts) ** 2) / (total / num_parts)).sum() / len(total))


@pytest.mark.parametrize(("num_groups", "spread"), [(40, 1.0), (364, 0.3), (2000, 3.0)])
def test_groups_of_many_classes_are_stratified_no_worse_than_by_scikit_learn(num_groups: int, spread: float) -> None:
    draw = np.random.default_rng(num_groups)
    groups = np.repeat(np.arange(num_groups), np.ceil(draw.lognormal(1.5, spread / 2, num_groups)).astype(int))
    taste = draw.dirichlet([0.6] * 5, num_groups)
    labels = np.array([draw.choice(5, p=taste[group]) for group in groups])
    identities = draw.integers(0, 2**63, num_groups).astype(np.uint64)[groups]
    mine, peers = [], []
    for seed in range(3):
        mine.append(_imbalance(stratify(groups, labels, identities, [0.2] * 5, seed=seed), labels, 5))
        folds = np.empty(len(labels), dtype=int)
        splitter = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
        for fold, (_, rows) in enumerate(splitter.split(labels, labels, groups)):
            folds[rows] = fold
        peers.append(_imbalance(folds, labels, 5))
    assert np.mean(mine) <= np.mean(peers)


def test_patients_of_very_different_size_keep_the_shares() -> None:
    draw = np.random.default_rng(0)
    sizes = np.ceil(draw.lognormal(2, 1.2, 60)).astype(int)
    patients = np.repeat(np.arange(60), sizes)
    labels = [f"c{(patient % 5) // 3}" for patient in patients]
    divided = split(make(labels, group=[f"p{n}" for n in patients]), **SHARES, seed=0)
    found = counts(divided)
    shares = found / found.sum(axis=0)
    np.testing.assert_allclose(shares, [[0.7] * 2, [0.15] * 2, [0.15] * 2], atol=0.02)


def test_a_class_with_three_groups_is_in_every_split() -> None:
    # Three photographs with one rare cell each: by its counts alone, two of them would go to train and none to test.
    labels = (["rare"] + ["common"] * 20) * 3 + ["common"] * 300
    photographs = [f"{number // 21}.jpg" for number in range(63)] + [f"c{number}.jpg" for number in range(300)]
    manifest = make(labels, path=photographs, sample_id=[f"{number:016x}" for number in range(363)])
    for seed in range(10):
        found = counts(split(manifest, **SHARES, seed=seed))
        assert found[:, 1].tolist() == [1, 1, 1]
        np.testing.assert_allclose(found[:, 0] / 360, [0.7, 0.15, 0.15], atol=0.01)


def test_the_seed_decides_and_neighbouring_seeds_differ() -> None:
    manifest = make(["a", "b"] * 500)
    draws = [by_id(split(manifest, **SHARES, seed=seed)) for seed in (0, 0, 1, 2)]
    assert draws[0] == draws[1]
    tested = [{sample for sample, name in draw.items() if name == "test"} for draw in draws]
    # 150 of 1000 each; two independent draws share 22.5 on average.
    assert len(tested[0] & tested[2]) < 50
    assert len(tested[2] & tested[3]) < 50


def test_added_images_hardly_move_the_old_ones() -> None:
    few, many = make(["a", "b"] * 1000), make(["a", "b"] * 1100)
    before, after = by_id(split(few, **SHARES, seed=0)), by_id(split(many, **SHARES, seed=0))
    moved = [(before[sample], after[sample]) for sample in before if before[sample] != after[sample]]
    assert len(moved) < 0.05 * len(before)
    assert not any("train" not in pair for pair in moved)


def test_given_splits_are_kept_and_missing_ones_drawn() -> None:
    labels = ["a", "b"] * 100
    # train/ and test/ only: val comes out of train, test stays.
    given_split = ["test" if number < 40 else "train" for number in range(200)]
    divided = split(make(labels, split=given_split), **SHARES, seed=0)
    assert divided.column("split")[:40].tolist() == ["test"] * 40
    assert counts(divided).tolist() == [[68, 68], [12, 12], [20, 20]]
    # A test is held out, the rest awaits: no more is drawn for test.
    divided = split(make(labels, split=["test"] * 40 + [None] * 160), **SHARES, seed=0)
    assert counts(divided).tolist() == [[68, 68], [12, 12], [20, 20]]
    # All there: what is left over trains.
    three = [*["train", "val", "test"] * 20, *[None] * 140]
    assert split(make(labels, split=three), **SHARES, seed=0).column("split").tolist() == [
        *three[:60], *["train"] * 140,
    ]  # fmt: skip
    full = make(labels, split=(["train", "train", "val", "test"] * 50))
    assert split(full, **SHARES, seed=0).table.equals(full.table)
    without_test = split(make(labels), val_fraction=0.2, test_fraction=0, seed=0)
    assert counts(without_test).tolist() == [[80, 80], [20, 20], [0, 0]]


def test_siblings_of_given_rows_join_them() -> None:
    labels = ["a", "b"] * 60
    groups: list[str | None] = [None] * 120
    groups[0:4] = ["p", "p", "p", "p"]
    groups[4:8] = ["q", "q", "q", "q"]
    given_split: list[str | None] = [None] * 120
    given_split[0], given_split[4], given_split[5] = "test", "test", "train"
    divided = split(make(labels, group=groups, split=given_split), **SHARES, seed=0)
    assert divided.column("split")[:8].tolist() == ["test"] * 4 + ["test", "train", "train", "train"]
    assert straddling(divided).tolist() == [False] * 4 + [True] + [False] * 115
    # A row of train whose copy is in test stays in train when val is drawn from train.
    given_split = ["test", "train", *["train"] * 118]
    for seed in range(5):
        divided = split(make(labels, split=given_split, sha256=["x", "x", *[None] * 118]), **SHARES, seed=seed)
        assert divided.column("split")[:2].tolist() == ["test", "train"]


def test_row_33_every_class_that_is_too_small_is_named_with_its_counts() -> None:
    labels = ["big"] * 30 + ["one"] + ["two"] * 2 + ["same photograph"] * 5 + ["three"] * 3
    paths = [f"{number}.jpg" for number in range(33)] + ["p.jpg"] * 5 + [f"t{number}.jpg" for number in range(3)]
    manifest = make(labels, path=paths, sample_id=[f"{number:016x}" for number in range(41)])
    with pytest.raises(DataError) as caught:
        check_splittable(manifest)
    assert caught.value.problems == (
        "class 'one': 1 samples in 1 independent groups, not 3",
        "class 'same photograph': 5 samples in 1 independent groups, not 3",
        "class 'two': 2 samples in 2 independent groups, not 3",
    )
    assert '["one", "same photograph", "two"]' in caught.value.fix
    with pytest.raises(DataError, match="3 of 5 classes"):
        split(manifest, **SHARES, seed=0)
    enough = manifest.take(np.isin(manifest.column("label"), ["big", "three"]))
    enough = Manifest(enough.table, enough.images_root, ("big", "three"))
    for seed in range(20):
        assert counts(split(enough, **SHARES, seed=seed))[:, 1].tolist() == [1, 1, 1]


def test_what_cannot_be_split_at_all() -> None:
    with pytest.raises(DataError, match="at least two classes"):
        check_splittable(make(["a"] * 9))
    with pytest.raises(DataError, match="no usable sample to train on: 0 in train, 0 in val, 2 in test"):
        check_splittable(make(["a", "b"], split=["test", "test"]))
    with pytest.raises(ConfigError, match="nothing to train on"):
        split(make(["a", "b"] * 9), val_fraction=0.5, test_fraction=0.5, seed=0)
    with pytest.raises(DataError, match="'b': 0 samples"):
        check_splittable(make(["a"] * 9 + ["b"] * 9 + ["c"] * 9, status=["ok"] * 9 + ["quarantined"] * 9 + ["ok"] * 9))


def test_empty_files_do_not_make_strangers_siblings() -> None:
    manifest = make(
        ["a", "b"] * 4,
        group=list("ppqqrrss"),
        sha256=["0"] * 8,
        status=["quarantined", "ok"] + ["ok", "quarantined"] * 3,
    )
    assert siblings(manifest.with_columns(sha256=["0", *"1234567"])).tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    only_broken = manifest.with_columns(sha256=["0", "1", "2", "0", "4", "0", "6", "0"])
    assert len(set(siblings(only_broken))) == 8
