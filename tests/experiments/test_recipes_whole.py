"""Recipes as whole runs: what the bundle holds, and that it says what the run said."""

import csv
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from foveal.api.predict import predict
from foveal.api.train import plan, train
from foveal.errors import ArtifactError, ConfigError, TrainingError
from small_runs import CLASSES, TINY, columns_of, events

FIVE = (*CLASSES, "c", "d")


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "bundle" / "model.safetensors")


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, make_images: Callable[..., Path]) -> Path:
    return make_images(tmp_path_factory.mktemp("recipes") / "images", FIVE, num_per_class=16)


def test_the_bundle_of_a_composed_and_averaged_recipe_is_what_was_measured(images: Path, tmp_path: Path) -> None:
    recipe = (
        "model.head.kind=dense",
        "model.head.layers=[16, 12]",
        "model.head.dropout=[0.3, 0.2]",
        "model.head.batch_norm=true",
        "model.head.attention=se",
        "model.head.pool=avgmax",
        "train.ema=0.7",
        "train.mixup=0.2",
        "train.early_stopping.monitor=val_top_3_accuracy",
        "train.early_stopping.patience=2",
        "train.epochs=4",
    )
    run = tmp_path / "run"
    done = train(images, run, overrides=[*TINY, *recipe])
    rows = rows_of(run)
    figures = [(float(row["val_top_3_accuracy"]), -float(row["val_loss"])) for row in rows]
    assert done.best_epoch == 1 + figures.index(max(figures))
    assert len(rows) == min(4, done.best_epoch + 2)
    bundled, best = weights_of(run), torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert bundled.keys() == best["model"].keys()
    assert all(torch.equal(bundled[name], value) for name, value in best["model"].items())
    if done.best_epoch == len(rows):
        last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
        assert all(torch.equal(bundled[name], last["average"][f"module.{name}"]) for name in bundled)
        assert not all(torch.equal(bundled[name], last["model"][name]) for name in bundled)
    measured = json.loads((run / "evaluation" / "val" / "metrics.json").read_text())
    assert measured["top_3_accuracy"] == pytest.approx(figures[done.best_epoch - 1][0])
    assert measured["accuracy"] == pytest.approx(float(rows[done.best_epoch - 1]["val_accuracy"]))
    # A photograph that is handed in says what the run said of it.
    said = columns_of(run / "evaluation" / "test" / "predictions.parquet")
    files = [str(images / path) if not Path(path).is_absolute() else path for path in said["path"]]
    predict(run / "bundle", files, out=tmp_path / "predictions.parquet")
    found = columns_of(tmp_path / "predictions.parquet")
    for name in FIVE:
        np.testing.assert_allclose(found[f"p_{name}"], said[f"p_{name}"], atol=1e-5)


@pytest.mark.parametrize("policy", ["none", "light"])
def test_a_frozen_backbone_is_bundled_bit_for_bit(trained: Path, tmp_path: Path, policy: str) -> None:
    start = ("model.freeze=all", f"model.weights={trained}", f"augment.policy={policy}", "optim.lr=0.05")
    train(trained.parent / "images", tmp_path / "run", overrides=[*TINY, *start, "train.ema=0.9", "train.epochs=2"])
    before, after = weights_of(trained), weights_of(tmp_path / "run")
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"fc.weight", "fc.bias"}
    assert any(name.endswith("running_mean") for name in before)
    assert re.search(r"trainable +291\n", (tmp_path / "run" / "model.txt").read_text())  # 96 features, 3 classes


def test_what_is_not_there_is_said_before_anything_is_decoded(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("foveal.experiments.preparing.ingest", refuse)
    wrong: list[tuple[str, type[Exception], str]] = [
        ("train.class_weights={lion: 2, b: 1}", ConfigError, "class_weights"),
        ("train.devices=64", ConfigError, "devices"),
        ("model.freeze=last:999", ConfigError, "16 layers with weights"),
        ("model.weights=nowhere.safetensors", ArtifactError, "nowhere"),
        ("augment.albumentations=nowhere.yaml", Exception, "nowhere|albumentations"),
    ]
    for override, kind, words in wrong:
        with pytest.raises(kind, match=words):
            train(images, tmp_path / "run", overrides=[*TINY, override])
        assert not (tmp_path / "run" / "config.yaml").exists()
        with pytest.raises(kind, match=words):
            plan(images, overrides=[*TINY, override])


def test_a_process_that_dies_before_it_can_begin_ends_the_training(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    children: list[subprocess.Popen[bytes]] = []

    def start(*_: Any) -> "subprocess.Popen[bytes]":
        children.append(subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"]))
        return children[-1]

    monkeypatch.setattr("foveal.experiments.together._start", start)
    began = time.monotonic()
    with pytest.raises(TrainingError, match="Process 1 of this training ended before it could begin"):
        train(images, tmp_path / "run", overrides=[*TINY, "train.devices=2"])
    assert time.monotonic() - began < 60
    assert [child.poll() for child in children] == [3]


def test_the_plan_knows_what_trains(images: Path) -> None:
    frozen, thawing = (
        plan(images, overrides=[*TINY, "model.freeze=all"]),
        plan(images, overrides=[*TINY, "model.freeze=all", "model.unfreeze={2: none}"]),
    )
    assert frozen.num_trainable == 96 * 5 + 5
    assert thawing.num_trainable == thawing.num_parameters == frozen.num_parameters


def test_the_precision_is_not_told_on_stderr(images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train(images, tmp_path / "run", overrides=[*TINY, "train.precision=bf16", "train.epochs=1"])
    assert "Precision" not in capfd.readouterr().err
    assert len(events(tmp_path / "run", "epoch")) == 1
