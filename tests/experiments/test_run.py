"""One run from data to an evaluated bundle: what is done, in which order, and what is never done twice."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
from PIL import Image
from safetensors.torch import load_file
from sklearn import metrics as reference

from foveal.api.evaluate import evaluate
from foveal.api.train import train
from foveal.config import load
from foveal.data.manifest import Manifest
from foveal.errors import ArtifactError, ConfigError, DataError
from foveal.experiments.preparing import changed_images, draw_split, prepare
from foveal.experiments.run import execute
from foveal.files import sha256_file
from foveal.metrics import SplitMetrics
from foveal.progress import Silence
from foveal.run_folder import RunFolder
from foveal.training import checkpoint
from foveal.training.config import Config, ResolvedConfig
from foveal.training.fit import _Loop
from foveal.types import SPLITS
from small_runs import CLASSES, TINY, columns_of, copy_of, epochs, events

MakeImages = Callable[..., Path]


def tiny(*overrides: str) -> Config:
    return load(Config, None, (*TINY, *overrides))


def test_a_run_leaves_all_that_the_contract_names(trained: Path) -> None:
    names = {str(path.relative_to(trained)) for path in trained.rglob("*") if path.is_file()}
    expected = {
        *("config.yaml", "env.json", "manifest.parquet", "log.jsonl", "metrics.csv", "timings.json", "model.txt"),
        *("checkpoints/best.ckpt", "checkpoints/last.ckpt", "bundle/bundle.json", "bundle/model.safetensors"),
        *(f"evaluation/{split}/{name}" for split in SPLITS for name in ("metrics.json", "predictions.parquet")),
        "report.html",
    }
    assert expected <= names
    assert not [name for name in names if name.endswith(".partial")]
    timings = json.loads((trained / "timings.json").read_text())
    stages = {"scan", "build model", "decode", "find copies", "split", "train", "bundle", "evaluate"}
    assert timings.keys() == stages | {"heatmaps", "report"}
    assert all(0 <= row["wall_seconds"] < 600 and row["cpu_seconds"] >= 0 for row in timings.values())


def test_classes_are_in_natural_order_everywhere(trained: Path) -> None:
    spec = json.loads((trained / "bundle" / "bundle.json").read_text())
    assert tuple(spec["class_names"]) == CLASSES == Manifest.read(trained / "manifest.parquet").class_names
    columns = parquet.read_schema(trained / "evaluation" / "test" / "predictions.parquet").names
    assert columns[-3:] == ["p_2", "p_10", "p_b"]
    assert SplitMetrics.read(trained / "evaluation" / "test" / "metrics.json").class_names == CLASSES


@pytest.mark.parametrize("split", SPLITS)
def test_the_metrics_are_scikit_learns_of_the_predictions(trained: Path, split: str) -> None:
    """The chain as a whole: what a reader computes from the table of predictions is what metrics.json says."""
    table = columns_of(trained / "evaluation" / split / "predictions.parquet")
    found = SplitMetrics.read(trained / "evaluation" / split / "metrics.json")
    probabilities = np.stack([table[f"p_{name}"] for name in CLASSES], axis=1)
    truth, said = table["label"], table["predicted"]
    order = list(CLASSES)
    index = np.array([order.index(name) for name in truth])
    macro = {"labels": order, "average": "macro", "zero_division": 0}
    expected = {
        "num_images": len(truth),
        "accuracy": reference.accuracy_score(truth, said),
        "balanced_accuracy": reference.balanced_accuracy_score(truth, said),
        "macro_precision": reference.precision_score(truth, said, **macro),
        "macro_recall": reference.recall_score(truth, said, **macro),
        "macro_f1": reference.f1_score(truth, said, **macro),
        "weighted_f1": reference.f1_score(truth, said, labels=order, average="weighted", zero_division=0),
        "macro_roc_auc": reference.roc_auc_score(index, probabilities, multi_class="ovr", average="macro"),
        "cohen_kappa": reference.cohen_kappa_score(truth, said),
        "matthews_correlation": reference.matthews_corrcoef(truth, said),
        "log_loss": reference.log_loss(index, probabilities, labels=[0, 1, 2]),
        "brier": float(((probabilities - np.eye(3)[index]) ** 2).sum(axis=1).mean()),
    }
    assert {key: getattr(found, key) for key in expected} == pytest.approx(expected, abs=1e-9)
    assert np.array(found.confusion_matrix).tolist() == reference.confusion_matrix(truth, said, labels=order).tolist()
    assert np.abs(probabilities.sum(axis=1) - 1).max() < 1e-9
    assert (table["probability"] == probabilities.max(axis=1)).all()
    manifest = Manifest.read(trained / "manifest.parquet")
    rows = manifest.of_split(split)  # type: ignore[arg-type]
    assert table["sample_id"].tolist() == manifest.column("sample_id")[rows].tolist()
    assert truth.tolist() == manifest.column("label")[rows].tolist()


def test_the_table_of_epochs_and_the_evaluation_agree_on_the_best_epoch(trained: Path) -> None:
    best = checkpoint.load(trained / "checkpoints" / checkpoint.BEST)["epoch"]
    row = epochs(trained)[best - 1]
    found = SplitMetrics.read(trained / "evaluation" / "val" / "metrics.json")
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "macro_precision", "macro_recall"):
        assert float(row[f"val_{name}"]) == pytest.approx(getattr(found, name), abs=1e-9)
    assert float(row["val_loss"]) == pytest.approx(found.log_loss_before_temperature, rel=1e-5)


def test_the_bundle_holds_the_best_weights_and_says_what_they_are_worth(trained: Path) -> None:
    best = checkpoint.load(trained / "checkpoints" / checkpoint.BEST)["model"]
    held = load_file(trained / "bundle" / "model.safetensors")
    assert held.keys() == best.keys()
    assert all(held[name].equal(best[name]) for name in held)
    spec = json.loads((trained / "bundle" / "bundle.json").read_text())
    assert spec["files"] == {"model.safetensors": sha256_file(trained / "bundle" / "model.safetensors")}
    for split in SPLITS:
        found = SplitMetrics.read(trained / "evaluation" / split / "metrics.json")
        assert spec["metrics"][split]["accuracy"] == [found.accuracy, list(found.confidence_intervals["accuracy"])]
        assert found.temperature == spec["temperature"]
    manifest = Manifest.read(trained / "manifest.parquet")
    assert spec["training_data"]["fingerprint"] == manifest.fingerprint()
    assert spec["training_data"]["num_images"] == {split: len(manifest.of_split(split)) for split in SPLITS}


def test_the_best_epoch_is_bundled_though_it_was_not_the_last(
    tmp_path: Path, make_images: MakeImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _Loop.validate
    # As if the first of three epochs had been the best.
    found = {0: 0.9, 1: 0.2, 2: 0.5}
    monkeypatch.setattr(_Loop, "validate", lambda loop: {**whole(loop), "val_macro_f1": found[loop.position.epoch]})
    data = make_images(tmp_path / "images", CLASSES, num_per_class=8)
    result = train(data, tmp_path / "run", overrides=TINY)
    assert result.best_epoch == 1
    held = load_file(result.bundle / "model.safetensors")
    last = checkpoint.load(result.run / "checkpoints" / checkpoint.LAST)["model"]
    assert not all(held[name].equal(last[name]) for name in held)
    loss = float(epochs(result.run)[0]["val_loss"])
    assert result.metrics["val"].log_loss_before_temperature == pytest.approx(loss, rel=1e-5)


def test_training_counts_one_look_at_each_split(trained: Path) -> None:
    looks = json.loads((trained / "evaluation" / "looks.json").read_text())
    assert [[look["verb"] for look in looks[split]] for split in SPLITS] == [["train"]] * 3


def test_no_auto_is_left_in_the_configuration_of_a_run(trained: Path) -> None:
    text = (trained / "config.yaml").read_text()
    assert "auto" not in text
    assert load(ResolvedConfig, trained / "config.yaml").train.epochs == 3


def test_the_second_run_on_the_same_data_decodes_nothing(tmp_path: Path, make_images: MakeImages) -> None:
    data = make_images(tmp_path / "images", CLASSES, num_per_class=8)
    for name, epoch in (("first", 1), ("second", 2)):
        train(data, tmp_path / name, overrides=[*TINY, f"train.epochs={epoch}"])
    assert [event["num_decoded"] for event in events(tmp_path / "first", "decode")] == [24]
    (decode,) = events(tmp_path / "second", "decode")
    assert (decode["num_decoded"], decode["num_from_store"]) == (0, 24)
    # One image more is one image decoded.
    Image.new("RGB", (32, 32), "red").save(data / "b" / "new.png")
    prepared = prepare(data, tiny())
    run = RunFolder(tmp_path / "third")
    run.prepare()
    execute(run, prepared, Silence())
    assert [event["num_decoded"] for event in events(run.path, "decode")] == [1]


def test_with_or_without_the_store_and_however_many_threads_the_model_is_the_same(
    tmp_path: Path, make_images: MakeImages
) -> None:
    data = make_images(tmp_path / "images", CLASSES, num_per_class=8, side_px=40)
    hashes = set()
    for name, settings in {
        "stored": ["data.store=on", "data.num_workers=1"],
        "on the fly": ["data.store=off", "data.num_workers=3"],
    }.items():
        result = train(data, tmp_path / name, overrides=[*TINY, "train.epochs=2", *settings])
        hashes.add(sha256_file(result.bundle / "model.safetensors"))
    assert len(hashes) == 1


def test_what_can_be_refused_is_refused_before_a_single_image_is_decoded(
    tmp_path: Path, make_images: MakeImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_images(tmp_path / "images", CLASSES, num_per_class=8)

    def decoded(*_: object, **__: object) -> None:
        raise AssertionError("an image was decoded")

    monkeypatch.setattr("foveal.experiments.preparing.ingest", decoded)
    cases: list[tuple[list[str], type[Exception], str]] = [
        (["model.weights=pretrained"], ArtifactError, "not in the local cache"),
        (["model.weights=/nowhere/w.pth"], ArtifactError, "/nowhere/w.pth"),
        (["model.name=test_vit", "data.image_size=40"], ConfigError, "40"),
        (["model.name=edgenext_xx_small", "data.image_size=8"], ConfigError, "8 px"),
        (["model.name=resnet-18"], ConfigError, "resnet18"),
    ]
    for overrides, kind, words in cases:
        run = RunFolder(tmp_path / "run")
        run.prepare()
        with pytest.raises(kind, match=words):
            execute(run, prepare(data, tiny(*overrides)), Silence())
        assert not run.config.exists()


def test_data_that_cannot_be_split_is_refused_by_class_and_count(tmp_path: Path, make_images: MakeImages) -> None:
    data = make_images(tmp_path / "images", ("cat", "dog"), num_per_class=8)
    make_images(tmp_path / "images", ("lynx",), num_per_class=1)
    with pytest.raises(DataError, match="too small") as caught:
        prepare(data, tiny())
    assert "'lynx': 1 samples" in caught.value.problems[0]
    assert len(caught.value.problems) == 1


def test_a_class_whose_images_are_all_broken_is_refused_after_decoding(tmp_path: Path, make_images: MakeImages) -> None:
    data = make_images(tmp_path / "images", CLASSES, num_per_class=8)
    for image in (data / "10").iterdir():
        image.write_bytes(image.read_bytes()[:60])
    run = RunFolder(tmp_path / "run")
    run.prepare()
    with pytest.raises(DataError, match=r"too small|usable") as caught:
        execute(run, prepare(data, tiny()), Silence())
    assert any("'10'" in problem for problem in caught.value.problems)
    assert not run.checkpoints.exists() or not list(run.checkpoints.glob("*.ckpt"))


def test_broken_files_are_set_aside_with_their_reason_and_the_rest_goes_on(
    tmp_path: Path, make_images: MakeImages
) -> None:
    data = make_images(tmp_path / "images", CLASSES, num_per_class=8)
    (data / "2" / "0.png").write_bytes(b"")
    (data / "10" / "0.png").write_text("<html>404</html>")
    result = train(data, tmp_path / "run", overrides=[*TINY, "train.epochs=1"])
    manifest = Manifest.read(result.run / "manifest.parquet")
    aside = ~manifest.is_usable()
    assert sorted(manifest.column("path")[aside]) == ["10/0.png", "2/0.png"]
    assert all(manifest.column("reason")[aside])
    assert all(split is None for split in manifest.column("split")[aside])
    assert sum(metrics.num_images for metrics in result.metrics.values()) == 22
    assert "2/0.png" in result.report.read_text(encoding="utf-8")


def test_folders_of_train_and_test_keep_test_and_draw_val_from_train(tmp_path: Path, make_images: MakeImages) -> None:
    make_images(tmp_path / "data" / "train", CLASSES, num_per_class=14)
    make_images(tmp_path / "data" / "test", CLASSES, num_per_class=4, seed=1)
    result = train(tmp_path / "data", tmp_path / "run", overrides=[*TINY, "train.epochs=1"])
    manifest = Manifest.read(result.run / "manifest.parquet")
    folder = np.array([path.partition("/")[0] for path in manifest.column("path")])
    split = manifest.column("split")
    assert (split[folder == "test"] == "test").all()
    assert set(split[folder == "train"]) == {"train", "val"}
    num_val = int((split == "val").sum())
    assert num_val == pytest.approx(0.15 * 42, abs=1.5)
    assert load(ResolvedConfig, result.run / "config.yaml").data.format == "split_folders"
    assert result.metrics["test"].num_images == 12


def test_copies_in_the_users_own_splits_are_counted_as_leakage(tmp_path: Path, make_images: MakeImages) -> None:
    for split, seed in (("train", 0), ("val", 1), ("test", 2)):
        make_images(tmp_path / "data" / split, CLASSES, num_per_class=8 if split == "train" else 4, seed=seed)
    for number in range(2):
        shutil.copy(tmp_path / f"data/train/2/{2 * number}.png", tmp_path / f"data/test/2/copy{number}.png")
    result = train(tmp_path / "data", tmp_path / "run", overrides=[*TINY, "train.epochs=1"])
    leakage = result.metrics["test"].leakage
    assert leakage is not None
    assert leakage.num_test_images_with_siblings_in_train == 2
    table = columns_of(result.run / "evaluation" / "test" / "predictions.parquet")
    clean = np.array(["copy" not in path for path in table["path"]])
    right = (table["label"] == table["predicted"])[clean]
    assert len(right) == 12
    assert leakage.accuracy_without_them == pytest.approx(right.mean(), abs=1e-12)
    val_leakage = result.metrics["val"].leakage
    assert val_leakage is not None
    assert val_leakage.num_test_images_with_siblings_in_train == 0
    assert "2 test images are copies of training images" in result.report.read_text(encoding="utf-8")


def boxes_table(folder: Path, num_photographs: int = 24) -> Path:
    """Photographs with three boxes each, of two classes."""
    draw = np.random.default_rng(0)
    rows = []
    for number in range(num_photographs):
        pixels = draw.integers(0, 60, (48, 96, 3)).astype(np.uint8)
        for place in range(3):
            kind = "red" if (number + place) % 2 else "blue"
            left = 2 + 32 * place
            pixels[10:38, left : left + 28, 0 if kind == "red" else 2] += 150
            rows.append((f"p{number}.png", kind, left, 10, left + 28, 38))
        (folder / "photos").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / "photos" / f"p{number}.png")
    with (folder / "boxes.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "label", "xmin", "ymin", "xmax", "ymax"])
        writer.writerows(rows)
    return folder / "boxes.csv"


def test_boxes_of_one_photograph_stay_on_one_side(tmp_path: Path) -> None:
    table = boxes_table(tmp_path)
    overrides = [*TINY, "train.epochs=1", f"data.images_root={tmp_path / 'photos'}", "data.box_margin=0.1"]
    result = train(table, tmp_path / "run", overrides=overrides)
    manifest = Manifest.read(result.run / "manifest.parquet")
    sides: dict[str, set[str]] = {}
    for path, split in zip(manifest.column("path"), manifest.column("split"), strict=True):
        sides.setdefault(path, set()).add(split)
    assert len(sides) == 24
    assert all(len(found) == 1 for found in sides.values())
    assert sum(metrics.num_images for metrics in result.metrics.values()) == 72
    assert json.loads((result.bundle / "bundle.json").read_text())["training_data"]["box_margin"] == 0.1
    again = evaluate(result.run).metrics  # boxes, margin and photographs as groups: all as in training
    assert again.model_copy(update={"latency_ms": result.metrics["test"].latency_ms}) == result.metrics["test"]
    leakage = result.metrics["test"].leakage
    assert leakage is not None
    assert leakage.num_test_images_with_siblings_in_train == 0


def test_a_finished_run_is_not_trained_evaluated_or_looked_at_again(trained: Path, tmp_path: Path) -> None:
    run = copy_of(trained, tmp_path / "run")
    written = {name: (run / name).stat().st_mtime_ns for name in ("checkpoints/last.ckpt", "bundle/model.safetensors")}
    before = train(out=run, resume=True)
    assert {name: (run / name).stat().st_mtime_ns for name in written} == written
    assert before.best_epoch == checkpoint.load(run / "checkpoints" / checkpoint.BEST)["epoch"]
    assert before.metrics["test"] == SplitMetrics.read(trained / "evaluation" / "test" / "metrics.json")
    looks = json.loads((run / "evaluation" / "looks.json").read_text())
    assert [len(looks[split]) for split in SPLITS] == [1, 1, 1]


def test_a_run_that_was_killed_while_it_was_evaluated_ends_the_same(trained: Path, tmp_path: Path) -> None:
    run = copy_of(trained, tmp_path / "run")
    (run / "evaluation" / "test" / "metrics.json").unlink()
    (run / "report.html").unlink()
    spec = json.loads((run / "bundle" / "bundle.json").read_text())
    (run / "bundle" / "bundle.json").write_text(json.dumps({**spec, "temperature": 1.0, "metrics": {}}))
    result = train(out=run, resume=True)
    assert json.loads((run / "bundle" / "bundle.json").read_text()) == spec
    expected = SplitMetrics.read(trained / "evaluation" / "test" / "metrics.json")
    assert result.metrics["test"].model_copy(update={"latency_ms": expected.latency_ms}) == expected
    assert sha256_file(run / "bundle" / "model.safetensors") == sha256_file(trained / "bundle" / "model.safetensors")
    looks = json.loads((run / "evaluation" / "looks.json").read_text())
    assert [len(looks[split]) for split in SPLITS] == [1, 1, 1]
    assert result.report.is_file()


def test_a_run_killed_before_its_first_checkpoint_starts_from_its_weights_again(
    trained: Path, tmp_path: Path, make_images: MakeImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Going on without a checkpoint must not mean going on without the weights that were asked for."""
    data = make_images(tmp_path / "images", CLASSES, num_per_class=8)
    overrides = [*TINY, "train.epochs=1", f"model.weights={trained / 'bundle' / 'model.safetensors'}"]
    whole = train(data, tmp_path / "whole", overrides=overrides)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("foveal.experiments.run.fit", killed)
        with pytest.raises(KeyboardInterrupt):
            train(data, tmp_path / "run", overrides=overrides)
    assert not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()
    resumed = train(out=tmp_path / "run", resume=True)
    assert sha256_file(resumed.bundle / "model.safetensors") == sha256_file(whole.bundle / "model.safetensors")


def test_images_that_have_changed_meanwhile_are_named(
    tmp_path: Path, make_images: MakeImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_images(tmp_path / "images", CLASSES, num_per_class=8)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("foveal.experiments.run.fit", killed)
        with pytest.raises(KeyboardInterrupt):
            train(data, tmp_path / "run", overrides=TINY)
    Image.new("RGB", (32, 32), "red").save(data / "2" / "0.png")
    (data / "b" / "4.png").unlink()
    with pytest.raises(DataError, match="2 of 24 samples have changed") as caught:
        train(out=tmp_path / "run", resume=True)
    problems = sorted(caught.value.problems)
    assert str(data / "2" / "0.png") in problems[0]
    assert "other content" in problems[0]
    assert str(data / "b" / "4.png") in problems[1]
    assert "no such file" in problems[1]


def test_only_rows_that_were_usable_can_have_changed(tmp_path: Path) -> None:
    before = Manifest.build(tmp_path, path=["a", "b", "c"], label=["x", "y", "x"], sha256=["1", "2", None])
    before = before.with_columns(status=["ok", "ok", "quarantined"], reason=[None, None, "broken"])
    assert changed_images(before, before) == []
    after = before.with_columns(sha256=["1", "3", "4"])
    assert changed_images(before, after) == [f"{tmp_path / 'b'}: has other content now"]


def test_the_plan_of_a_split_is_the_split_that_is_made(tmp_path: Path, make_images: MakeImages) -> None:
    data = make_images(tmp_path / "images", CLASSES, num_per_class=10)
    prepared = prepare(data, tiny("seed=3"))
    first, second = (draw_split(prepared.manifest, prepared.config) for _ in range(2))
    assert first.column("split").tolist() == second.column("split").tolist()
    other = draw_split(prepared.manifest, prepare(data, tiny("seed=4")).config)
    assert other.column("split").tolist() != first.column("split").tolist()
