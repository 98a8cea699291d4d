"""Two backbones under one head, from a folder of images to predictions, and over a pulled plug."""

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import foveal
from foveal.api.train import plan
from foveal.config import load
from foveal.errors import ConfigError
from foveal.inference import Predictor
from foveal.model.bundle import read_bundle
from foveal.progress import Silence
from foveal.run_folder import RunFolder
from foveal.training.config import ResolvedConfig
from foveal.training.fit import fit
from small_runs import TINY, epochs, quicken_plots

from .small_training import Lines, same_weights, tiny_config, tiny_data, tiny_model, train_tiny

JOINT = ("model.name=[small_cnn,test_resnet]", "model.weights=none")


class PulledPlugError(Exception):
    """Stands for the end of the process at this very moment."""


def test_from_images_to_predictions(
    make_images: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quicken_plots(monkeypatch)
    images, recipe, lines = make_images(tmp_path / "images", num_per_class=14), tmp_path / "recipe.yaml", Lines()
    recipe.write_text("model:\n  name:\n    - small_cnn\n    - test_resnet\n  head: {batch_norm: true, dropout: 0.2}\n")
    overrides = [override for override in TINY if not override.startswith(("model.name", "model.head"))]
    overrides += ["train.epochs=2", "optim.layer_decay=0.8", "train.ema=0.9", 'model.unfreeze={2: "none"}']
    overrides += ["model.freeze=stages:1"]
    planned = plan(images, config=recipe, overrides=overrides)
    assert "model       small_cnn + test_resnet, 614,995 parameters" in str(planned)
    assert 0 < planned.num_trainable <= planned.num_parameters
    result = foveal.train(images, tmp_path / "run", config=recipe, overrides=overrides, progress=lines)
    run = result.run
    assert load(ResolvedConfig, run / "config.yaml").model.name == ("small_cnn", "test_resnet")
    assert any(
        line.startswith("model.freeze=stages:1: trains:") and "branches.1.backbone.layer4" in line
        for line in lines.said
    )
    assert (run / "model.txt").read_text().startswith("small_cnn + test_resnet: 3 classes, 32 x 32 px\n")
    assert "small_cnn + test_resnet, 32 px" in (run / "report.html").read_text()
    spec = json.loads((run / "bundle" / "bundle.json").read_text())["architecture"]
    assert (spec["library"], spec["name"]) == (["foveal", "timm"], ["small_cnn", "test_resnet"])
    foveal.predict(run, [images / "discs"], out=tmp_path / "said.csv")
    with (tmp_path / "said.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 14
    found = Predictor(run / "bundle")([row["path"] for row in rows])
    expected = [[float(row[f"p_{name}"]) for name in ("discs", "squares", "stripes")] for row in rows]
    np.testing.assert_allclose([each.probabilities for each in found], expected, atol=1e-5)
    assert np.ptp(expected, axis=0).max() > 1e-4, "not the same of every image"
    evaluated = foveal.evaluate(run)
    assert evaluated.metrics.accuracy == result.metrics["test"].accuracy
    with pytest.raises(ConfigError, match="begun with another configuration") as caught:
        foveal.train(None, run, overrides=["model.name=[small_cnn,resnet18]"], resume=True)
    assert "['small_cnn', 'test_resnet'], and ['small_cnn', 'resnet18']" in caught.value.problems[0]
    # What has learnt is a start for the next.
    second = foveal.train(
        images, tmp_path / "second", config=recipe, overrides=[*overrides, f"model.weights={run}", "train.epochs=1"]
    )
    assert read_bundle(second.run).spec.weights.source == str(run)


def test_frozen_features_of_both_give_the_training_on_them(
    make_images: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quicken_plots(monkeypatch)
    images, lines = make_images(tmp_path / "images", num_per_class=12), Lines()
    wishes = [*TINY, *JOINT, "model.freeze=all", "augment.policy=none", "train.epochs=2"]
    foveal.train(images, tmp_path / "run", overrides=wishes, progress=lines)
    assert not any("computed anew in every epoch" in line for line in lines.said)
    (folder,) = (tmp_path / "cache-of-foveal").glob("store-v*/features-*")
    assert folder.name.startswith("features-joint-")
    assert len(folder.name) < 40
    first = json.loads((tmp_path / "run" / "evaluation" / "val" / "metrics.json").read_text())
    again = foveal.evaluate(tmp_path / "run", split="val").metrics
    assert again.log_loss == pytest.approx(first["log_loss"], abs=1e-9), "the bundle is both backbones and the head"


def test_a_pulled_plug_changes_no_bit(tmp_path: Path) -> None:
    config = tiny_config(*JOINT, "train.epochs=2", "model.freeze=partial", "optim.layer_decay=0.8")
    whole, _, _ = train_tiny(tmp_path / "whole", config)

    def pull(row: Mapping[str, Any]) -> None:
        raise PulledPlugError

    run = RunFolder(tmp_path / "cut")
    run.prepare()
    with pytest.raises(PulledPlugError):
        fit(tiny_model(config), tiny_data(config), config, run, Silence(), after_epoch=pull)
    assert len(epochs(run.path)) == 1
    torch.manual_seed(99)  # nothing of the start may matter
    classifier, _, _ = train_tiny(run.path, config, resume=True)
    assert same_weights(classifier.net.state_dict(), whole.net.state_dict())
    assert epochs(run.path) == epochs(tmp_path / "whole")
