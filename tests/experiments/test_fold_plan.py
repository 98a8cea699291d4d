"""Who trains on what: held out once, chosen by others, and test never in it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foveal.data.manifest import Manifest
from foveal.data.split import split
from foveal.errors import ConfigError, DataError
from foveal.experiments.crossval.plan import folds_of, keep_test_aside
from foveal.training.config import Config, read_config


def manifest_of(num_per_class: int = 30, classes: str = "abc", **columns: Any) -> Manifest:
    labels = [name for name in classes for _ in range(num_per_class)]
    paths = [f"{name}/{at}.png" for at, name in enumerate(labels)]
    return Manifest.build(Path("images"), path=paths, label=labels, **columns)


def config_of(*overrides: str) -> Config:
    return read_config(None, overrides)


def drawn(manifest: Manifest, config: Config, num_folds: int | None = 5, repeats: int = 1) -> Manifest:
    return keep_test_aside(manifest, config, num_folds=num_folds, repeats=repeats)


def test_every_image_outside_of_test_is_held_out_once() -> None:
    config = config_of("seed=3")
    manifest = drawn(manifest_of(), config)
    test, rest = manifest.of_split("test"), manifest.of_split("train")
    assert len(test) + len(rest) == 90
    assert 12 <= len(test) <= 15
    folds = folds_of(manifest, config)
    assert [fold.name for fold in folds] == ["fold-1", "fold-2", "fold-3", "fold-4", "fold-5"]
    held = np.concatenate([fold.manifest.of_split("test") for fold in folds])
    assert sorted(held.tolist()) == rest.tolist()
    labels = manifest.label_ids()
    for fold in folds:
        assert fold.rows.tolist() == rest.tolist()
        parts = [fold.manifest.of_split(name) for name in ("train", "val", "test")]
        assert sorted(np.concatenate(parts).tolist()) == rest.tolist()
        assert set(manifest.column("fold")[parts[2]]) == {fold.number - 1}
        assert len(parts[1]) == pytest.approx(0.15 * (len(parts[0]) + len(parts[1])), abs=2)
        for part in parts:
            counts = np.bincount(labels[part], minlength=3)
            assert counts.min() >= 1
            assert np.ptp(counts) <= 1
        assert fold.seed == 3
    inner = [set(fold.manifest.of_split("val").tolist()) for fold in folds]
    assert len(set.union(*inner)) > 2 * len(inner[0]), "each fold draws a validation of its own"


def test_the_test_is_that_of_a_training_with_the_same_seed() -> None:
    config = config_of("seed=11", "data.test_fraction=0.2")
    alone = split(manifest_of(), val_fraction=0.15, test_fraction=0.2, seed=11)
    assert drawn(manifest_of(), config).of_split("test").tolist() == alone.of_split("test").tolist()


def test_the_same_is_drawn_again_and_whatever_the_order() -> None:
    config, manifest = config_of(), manifest_of()
    backwards = manifest.take(np.arange(len(manifest))[::-1].copy())
    first, second = drawn(manifest, config), drawn(backwards, config)
    assert second.column("fold")[::-1].tolist() == pytest.approx(first.column("fold").tolist(), nan_ok=True)
    for one, other in zip(folds_of(first, config), folds_of(second, config), strict=True):
        assert other.manifest.split_codes()[::-1].tolist() == one.manifest.split_codes().tolist()


def test_groups_are_never_cut() -> None:
    groups = [f"g{at // 3}" for at in range(90)]
    config = config_of()
    manifest = drawn(manifest_of(group=groups), config, 4)
    for fold in folds_of(manifest, config):
        where: dict[str, set[int]] = {}
        for group, code in zip(groups, fold.manifest.split_codes().tolist(), strict=True):
            where.setdefault(group, set()).add(code)
        assert all(len(places) == 1 for places in where.values())


def test_a_pattern_groups_by_path() -> None:
    labels = list("ab" * 40)
    paths = [f"{label}/patient{at // 8}-{at}.png" for at, label in enumerate(labels)]
    manifest = Manifest.build(Path("images"), path=paths, label=labels)
    found = drawn(manifest, config_of(r"split.group_by=patient(\d+)-", "split.test_fraction=0"), 3)
    places = {(at // 8, fold) for at, fold in enumerate(found.column("fold").tolist())}
    assert len(places) == 10


def test_given_folds_are_respected_whatever_their_numbers() -> None:
    given = np.array([3.0, 5.0, 9.0] * 30)
    config = config_of()
    manifest = drawn(manifest_of(fold=given), config, None)
    assert len(manifest.of_split("test")) == 0, "all images have a fold, and none is for test"
    assert manifest.column("fold").tolist() == [0.0, 1.0, 2.0] * 30
    with_test = np.where(np.arange(90) % 10 == 0, np.nan, given)
    splits = np.where(np.isnan(with_test), "test", "train").astype(object)
    found = drawn(manifest_of(fold=with_test, split=splits), config, 3)
    assert found.of_split("test").tolist() == list(range(0, 90, 10))
    known = ~np.isnan(with_test)
    assert (found.column("fold")[known] == np.array([0.0, 1.0, 2.0] * 30)[known]).all()


def test_other_wishes_than_the_given_folds_are_refused() -> None:
    manifest = manifest_of(fold=np.array([0.0, 1.0, 2.0] * 30))
    with pytest.raises(ConfigError, match="brings folds of its own") as caught:
        drawn(manifest, config_of(), 5, repeats=2)
    assert len(caught.value.problems) == 2
    assert "split.given=redraw" in caught.value.fix
    redrawn = drawn(manifest, config_of("split.given=redraw"), 5)
    assert int(np.nanmax(redrawn.column("fold"))) == 4
    assert len(redrawn.of_split("test"))
    with pytest.raises(ConfigError, match="brings folds of its own"):
        drawn(manifest_of(fold=np.zeros(90)), config_of(), None)


def test_splits_that_the_data_bring_are_kept() -> None:
    splits = np.array((["train"] * 20 + ["val"] * 5 + ["test"] * 5) * 3, dtype=object)
    manifest = drawn(manifest_of(split=splits), config_of())
    assert manifest.of_split("test").tolist() == np.flatnonzero(splits == "test").tolist()
    assert manifest.of_split("train").tolist() == np.flatnonzero(splits != "test").tolist()
    assert len(manifest.of_split("val")) == 0


def test_no_test_where_none_is_wanted() -> None:
    manifest = drawn(manifest_of(), config_of("split.test_fraction=0"))
    assert len(manifest.of_split("train")) == 90


def test_quarantined_rows_take_no_part() -> None:
    status = ["quarantined" if at % 9 == 0 else "ok" for at in range(90)]
    manifest = drawn(manifest_of(status=status), config_of())
    assert np.isnan(manifest.column("fold")[::9]).all()
    for fold in folds_of(manifest, config_of()):
        assert not set(fold.rows.tolist()) & set(range(0, 90, 9))


def test_repeats_are_other_draws_with_other_seeds() -> None:
    config = config_of()
    manifest = drawn(manifest_of(), config, 3, repeats=2)
    folds = folds_of(manifest, config, 2)
    assert [fold.name for fold in folds][2:4] == ["repeat-1-fold-3", "repeat-2-fold-1"]
    assert len({fold.seed for fold in folds}) == 2
    first, second = ([set(f.manifest.of_split("test").tolist()) for f in folds if f.repeat == r] for r in (1, 2))
    assert set.union(*first) == set.union(*second)
    assert first != second


def test_classes_that_are_too_small_are_named_with_their_counts() -> None:
    labels = ["a"] * 30 + ["b"] * 30 + ["rare"] * 4
    manifest = Manifest.build(Path("i"), path=[f"{at}.png" for at in range(64)], label=labels)
    with pytest.raises(DataError, match="too small for 5 folds") as caught:
        drawn(manifest, config_of("split.test_fraction=0"), 5)
    assert caught.value.problems == ("class 'rare': 4 samples in 4 independent groups outside of test, not 5",)
    few = Manifest.build(Path("i"), path=[f"{at}.png" for at in range(63)], label=labels[:-1])
    with pytest.raises(DataError, match="outside of each fold a class needs") as caught:
        drawn(few, config_of("split.test_fraction=0"), 2)
    assert caught.value.problems[0].startswith("class 'rare': 3 independent groups in all, and 1 of them outside")


def test_what_belongs_together_across_given_folds_is_told_left_out_or_refused() -> None:
    folds = np.array([0.0, 1.0, 2.0] * 30)
    groups = [f"g{at // 2}" if at < 20 else None for at in range(90)]
    data = {"fold": folds, "group": groups}
    manifest = drawn(manifest_of(**data), config_of(), None)
    told = folds_of(manifest, config_of())
    assert "belong together" in told[0].leaks
    assert len(told[0].manifest.usable()) == 90
    dropped = folds_of(manifest, config_of("data.leaks=drop"))
    assert len(dropped[0].manifest.usable()) < 90
    assert len(dropped[0].manifest.of_split("test")) == 30
    with pytest.raises(DataError, match="would say nothing about new images"):
        folds_of(manifest, config_of("data.leaks=error"))
