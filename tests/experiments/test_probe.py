"""What a probe chooses by, what it keeps, and what it goes on with."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from foveal.errors import ConfigError, DataError
from foveal.experiments.probe.heads import HEADS, HeadData, fit_head, head_logits, head_module, quality
from foveal.experiments.probe.network import backbone_of
from foveal.experiments.probe.probing import fixed_config, probe
from foveal.experiments.probe.result import ProbeOutcome, ProbeTask
from foveal.metrics import SplitMetrics
from foveal.progress import Silence
from foveal.run_folder import ExperimentFolder
from foveal.training.config import Config, read_config

SETTINGS = ("model.name=test_resnet", "model.weights=none", "train.device=cpu", "data.image_size=32")


def blobs(num: int, seed: int, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(num) % 3
    centres = np.random.default_rng(5).normal(size=(3, 8)) * 1.5
    return (centres[labels] + spread * rng.normal(size=(num, 8))).astype(np.float32), labels


def head_data(class_weights: np.ndarray | None = None, *, spread: float = 1.0) -> HeadData:
    train, val = blobs(120, 0, spread), blobs(60, 1, spread)
    return HeadData(*train, *val, num_classes=3, class_weights=class_weights, seed=0, num_threads=1)


@pytest.mark.parametrize("name", list(HEADS))
def test_the_best_point_of_a_grid_is_the_one_that_validation_says(name: str) -> None:
    if HEADS[name].needs:
        pytest.importorskip(HEADS[name].needs[0])
    data = head_data(spread=2.5)
    fitted = fit_head(name, data)
    assert len(fitted.tried) >= 2
    best = max(fitted.tried, key=lambda point: (point.val_macro_f1, -point.val_log_loss))
    assert dict(fitted.best.chosen) == dict(best.chosen)
    module = head_module(fitted.best, 8, 3)
    assert quality(data.val_labels, head_logits(module, data.val)) == (best.val_macro_f1, best.val_log_loss)
    rows, labels = blobs(300, 2, 2.5)
    assert (head_logits(module, rows).argmax(axis=1) == labels).mean() > 0.6  # a third by guessing
    again = fit_head(name, data)
    assert all(np.array_equal(again.best.tensors[key], fitted.best.tensors[key]) for key in fitted.best.tensors)


@pytest.mark.parametrize("name", ["logistic", "svm", "forest", "xgboost"])
def test_class_weights_count(name: str) -> None:
    if HEADS[name].needs:
        pytest.importorskip(HEADS[name].needs[0])
    rows, _ = blobs(300, 3, 4.0)
    taken = []
    for weights in (None, np.array([30.0, 0.1, 0.1])):
        fitted = fit_head(name, head_data(weights, spread=4.0))
        taken.append((head_logits(head_module(fitted.best, 8, 3), rows).argmax(axis=1) == 0).mean())
    assert taken[1] > taken[0] + 0.2


def table(images: Path, file: Path, *, seed: int) -> Path:
    """A manifest with splits; the labels of its test rows are shuffled by `seed`, all else is the same."""
    rows = sorted(images.glob("*/*"), key=lambda path: (path.stem, path.parent.name))
    splits = ["test" if at % 4 == 0 else "val" if at % 4 == 1 else "train" for at in range(len(rows))]
    labels = [path.parent.name for path in rows]
    places = [at for at, split in enumerate(splits) if split == "test"]
    moved = np.random.default_rng(seed).permutation([labels[at] for at in places]) if seed else None
    if moved is not None:
        for at, label in zip(places, moved, strict=True):
            labels[at] = str(label)
    lines = [f"{path},{label},{split}" for path, label, split in zip(rows, labels, splits, strict=True)]
    file.write_text("\n".join(["path,label,split", *lines]) + "\n", encoding="utf-8")
    return file


def probed(data: Path, out: Path, *overrides: str, heads: tuple[str, ...] = ("logistic", "knn"),
           sizes: tuple[int, ...] = ()) -> ProbeOutcome:  # fmt: skip
    folder = ExperimentFolder(out)
    folder.prepare()
    with folder.lock():
        folder.begin("probe", {"heads": heads})
        config = fixed_config(read_config(Config(), [*SETTINGS, *overrides]))
        return probe(data, config, ProbeTask((), sizes, heads), folder, Silence())


def test_the_test_images_choose_nothing(make_images: Callable[..., Path], tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", num_per_class=16)
    first, second = (
        probed(table(images, tmp_path / f"{seed}.csv", seed=seed), tmp_path / f"out-{seed}") for seed in (0, 1)
    )
    assert [row["test_accuracy"] for row in first.rows] != [row["test_accuracy"] for row in second.rows]
    assert first.winner == second.winner
    for one, other in zip(first.rows, second.rows, strict=True):
        for key in ("name", "place", "chosen", "train_accuracy", "val_accuracy", "val_log_loss", "temperature"):
            assert one[key] == other[key], key


def test_each_size_is_tried_and_what_lies_in_the_folders_is_what_is_said(
    make_images: Callable[..., Path], tmp_path: Path
) -> None:
    images = make_images(tmp_path / "images with spaces", num_per_class=14)
    outcome = probed(images, tmp_path / "out", sizes=(32, 48))
    assert [row["name"] for row in outcome.rows] == [
        f"test_resnet-{size}px-{head}" for size in (32, 48) for head in ("logistic", "knn")
    ]
    assert sorted(row["place"] for row in outcome.rows) == [1, 2, 3, 4]
    assert outcome.best["place"] == 1
    assert outcome.best["val_macro_f1"] == max(row["val_macro_f1"] for row in outcome.rows)
    for row in outcome.rows:
        for split in ("train", "val", "test"):
            file = tmp_path / "out" / "runs" / row["name"] / "evaluation" / split / "metrics.json"
            metrics = SplitMetrics.read(file)
            assert metrics.accuracy == row[f"{split}_accuracy"]
            if split == "test":
                assert json.loads(file.read_text()).items() <= row.items()
    bundles = [path.parent.parent.name for path in (tmp_path / "out" / "runs").glob("*/bundle/bundle.json")]
    assert bundles == [outcome.winner]
    looks = json.loads((tmp_path / "out" / "runs" / outcome.winner / "evaluation" / "looks.json").read_text())
    assert {split: len(all_of_it) for split, all_of_it in looks.items()} == {"train": 1, "val": 1, "test": 1}
    assert "random weights" in outcome.sentences[-1]


def test_what_was_fitted_is_not_fitted_again(make_images: Callable[..., Path], tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", num_per_class=14)
    first = probed(images, tmp_path / "out")
    kept = tmp_path / "out" / "runs" / "test_resnet-32px-logistic" / "head.json"
    content = json.loads(kept.read_text())
    kept.write_text(json.dumps({**content, "seconds": 1234.5}))
    (tmp_path / "out" / "runs" / "test_resnet-32px-knn" / "head.json").unlink()  # it was killed before this one
    second = probed(images, tmp_path / "out")
    assert [row["fit_seconds"] == 1234.5 for row in second.rows] == [True, False]
    times = {"feature_seconds", "fit_seconds", "grid", "latency_ms"}
    for one, other in zip(first.rows, second.rows, strict=True):
        assert {key: one[key] for key in one if key not in times} == {
            key: other[key] for key in other if key not in times
        }


def test_training_images_of_one_class_are_refused(make_images: Callable[..., Path], tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", ("a", "b"), num_per_class=8)
    rows = [f"{path},{path.parent.name},{'train' if path.parent.name == 'a' else 'val'}" for path in images.glob("*/*")]
    some = [row.replace(",val", ",test") if at % 2 else row for at, row in enumerate(rows)]
    file = tmp_path / "one.csv"
    file.write_text("\n".join(["path,label,split", *some]), encoding="utf-8")
    with pytest.raises(DataError, match="class"):
        probed(file, tmp_path / "out")


def test_a_backbone_with_two_last_layers_is_refused() -> None:
    from foveal.training.resolve import Facts, resolve

    config = fixed_config(read_config(Config(), ["model.name=levit_128s", "model.weights=none", "train.device=cpu"]))
    with pytest.raises(ConfigError, match="levit_128s cannot be probed"):
        backbone_of(resolve(config, Facts("folder", 100, 100, 224, 1.0)), ("a", "b"))
