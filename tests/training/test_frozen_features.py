"""Training on features: the same training as on images, with each image computed once."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from foveal.data.augment import Augmentation
from foveal.data.batches import Batch, Batches, TrainingBatches
from foveal.data.manifest import Manifest
from foveal.data.reading import Recipe
from foveal.inference import to_unit
from foveal.model.build import Classifier
from foveal.pixels.policy import Geometry
from foveal.progress import Silence
from foveal.run_folder import RunFolder
from foveal.training.config import ResolvedConfig
from foveal.training.fit import fit
from foveal.training.frozen_features import HeadOnly, features_can_be_cached, with_features
from foveal.training.resolve import geometry_of
from foveal.training.state import Position, TrainingData

from .small_training import Squares, tiny_config, tiny_data, tiny_model

NUM_TRAIN, NUM_VAL = 40, 15
FROZEN = ("model.freeze=all", "augment.policy=none")


def frozen_config(*overrides: str) -> ResolvedConfig:
    return tiny_config(*FROZEN, *overrides)


def on_features(data: TrainingData, classifier: Classifier, config: ResolvedConfig) -> TrainingData:
    """The training of `tiny_data` on features."""
    names = ("a", "b", "c")
    labels = [names[number] for number in ([0, 1, 0, 2] * (NUM_TRAIN + NUM_VAL))[: NUM_TRAIN + NUM_VAL]]
    manifest = Manifest.build(
        Path("/images"),
        path=[str(row) for row in range(len(labels))],
        label=labels,
        sha256=[str(row) for row in range(len(labels))],
        split=["train"] * NUM_TRAIN + ["val"] * NUM_VAL,
    )
    geometry = geometry_of(config)
    source = Squares(np.array([names.index(label) for label in labels]), geometry.store_px)
    return with_features(data, classifier, config, manifest, source, Recipe(geometry), Silence())


def trained(folder: Path, config: ResolvedConfig, *, cached: bool) -> tuple[Classifier, Position, int]:
    """A whole training, and how many images went through the backbone in it."""
    classifier, data, num_seen = tiny_model(config), tiny_data(config, num_train=NUM_TRAIN, num_val=NUM_VAL), [0]
    first = next(module for module in classifier.modules() if isinstance(module, nn.Conv2d))
    first.register_forward_pre_hook(lambda _, inputs: num_seen.__setitem__(0, num_seen[0] + len(inputs[0])))
    if cached:
        data = on_features(data, classifier, config)
        num_seen[0] = 0
    run = RunFolder(folder)
    run.prepare()
    position = fit(classifier, data, config, run, Silence())
    return classifier, position, num_seen[0]


@pytest.mark.parametrize(
    "overrides",
    [
        ("train.sampling=balanced", "train.accumulate=2", "train.batch_size=4"),
        ("model.head.kind=dense", "model.head.layers=[16]", "model.head.batch_norm=true"),
        ("train.precision=bf16", "train.ema=0.9"),
    ],
)
def test_the_weights_are_those_of_the_training_on_images(tmp_path: Path, overrides: Sequence[str]) -> None:
    config = frozen_config("optim.lr=0.01", "train.epochs=2", *overrides)
    slow, on_images, num_seen = trained(tmp_path / "images", config, cached=False)
    quick, once, num_seen_again = trained(tmp_path / "features", config, cached=True)
    assert num_seen >= config.train.epochs * (NUM_TRAIN + NUM_VAL)
    assert num_seen_again <= config.train.epochs, "no more than a blank image, which tells what is frozen"
    limit = 1e-5 if config.train.precision == "fp32" else 5e-3
    start = tiny_model(config).net.state_dict()
    moved = {name for name, value in slow.net.state_dict().items() if not torch.equal(value, start[name])}
    assert 2 <= len(moved) < len(start) / 2
    for name, value in quick.net.state_dict().items():
        torch.testing.assert_close(value, slow.net.state_dict()[name], rtol=limit, atol=limit, msg=name)
        assert name in moved or torch.equal(value, start[name]), name
    for key in ("train_accuracy", "val_accuracy", "train_loss", "val_loss", "lr"):
        found = [row[key] for row in once.history]
        assert found == pytest.approx([row[key] for row in on_images.history], abs=limit), key
    assert once.history[0]["train_loss"] > once.history[-1]["train_loss"]


def test_a_resumed_training_on_features_ends_as_one_that_was_not_stopped(tmp_path: Path) -> None:
    config = frozen_config("train.epochs=3")
    whole, _, _ = trained(tmp_path / "whole", config, cached=True)
    run = RunFolder(tmp_path / "stopped")
    run.prepare()

    class StoppedError(Exception):
        pass

    class Stopping(Silence):
        def say(self, text: str) -> None:
            if text.startswith("epoch   2"):
                raise StoppedError

    first = tiny_model(config)
    with pytest.raises(StoppedError):
        fit(first, on_features(tiny_data(config), first, config), config, run, Stopping())
    second = tiny_model(config)
    fit(second, on_features(tiny_data(config), second, config), config, run, Silence(), resume=True)
    for name, value in whole.net.state_dict().items():
        assert torch.equal(second.net.state_dict()[name], value), name


@pytest.mark.parametrize("options", [{}, {"sampling": "balanced"}, {"repeats": 3}])
def test_features_come_in_the_order_of_the_images(options: dict[str, Any]) -> None:
    config = frozen_config()
    classifier, plain = tiny_model(config), tiny_data(config)
    labels = np.array([0, 1, 0, 2] * 14)[: NUM_TRAIN + NUM_VAL]
    geometry, rows = geometry_of(config), np.arange(NUM_TRAIN)
    source = Squares(labels, geometry.store_px)
    batches = TrainingBatches(
        source, rows, labels[rows], side_px=geometry.store_px, batch_size=8, seed=5, random_window=False, **options
    )
    data = on_features(replace(plain, train=batches), classifier, config)
    assert (len(data.train), data.train.batch_size) == (len(batches), 8)
    for epoch in range(2):
        pairs = zip(batches.epoch(epoch, first_step=1), data.train.epoch(epoch, first_step=1), strict=True)
        num_pairs = 0
        for seen, known in pairs:
            np.testing.assert_array_equal(seen.rows, known.rows)
            assert torch.equal(seen.labels, known.labels)
            assert_features(classifier, config, seen, known)
            num_pairs += 1
        assert num_pairs == len(batches) - 1
    assert (len(data.val), data.val.num_images) == (len(plain.val), NUM_VAL)
    for seen, known in zip(plain.val, data.val, strict=True):
        np.testing.assert_array_equal(seen.rows, known.rows)
        assert torch.equal(seen.labels, known.labels)


def assert_features(classifier: Classifier, config: ResolvedConfig, seen: Batch, known: Batch) -> None:
    """Whether features are those of what the loop would have shown to the network."""
    geometry = geometry_of(config)
    augmentation = Augmentation(config.augment, side_px=geometry.store_px, size_px=geometry.size_px)
    classifier.eval()
    with torch.inference_mode():
        logits = classifier(augmentation(seen.images))
        assert known.images.dtype == torch.float32
        torch.testing.assert_close(HeadOnly(classifier)(known.images), logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("height", "width", "side_px", "size_px"), [(35, 38, 35, 32), (41, 34, 34, 31), (33, 40, 33, 33), (36, 53, 36, 29)]
)
def test_training_without_augmentation_sees_the_square_of_evaluation(
    height: int, width: int, side_px: int, size_px: int
) -> None:
    """Else an image would have one row of features where it trains and another where it validates."""
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    source, rows = [image], np.zeros(1, dtype=np.int64)
    geometry = Geometry(size_px, side_px)
    training = TrainingBatches(
        source, rows, rows, side_px=side_px, batch_size=1, seed=0, random_window=False, size_px=size_px
    )
    (seen,), (square,) = training.epoch(0), Batches(source, rows, rows, geometry, batch_size=1)
    augmentation = Augmentation(frozen_config().augment, side_px=side_px, size_px=size_px)
    assert torch.equal(augmentation(seen.images), to_unit(square.images, torch.device("cpu")))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ((), ""),
        (("model.freeze=none",), "model.freeze=none"),
        (("model.freeze=last:2",), "model.freeze=last:2"),
        (("model.unfreeze={2: none}",), "model.unfreeze"),
        (("augment.policy=light",), "augmentation"),
        (("augment.vertical_flip=0.5",), "augmentation"),
        (("augment.repeats=2",), ""),
        (("train.mixup=0.2",), "train.mixup"),
        (("train.cutmix=1",), "train.cutmix"),
        (("train.devices=2",), "several processes"),
        (("data.store_cap_gib=0.0001",), "data.store_cap_gib is 0.0001"),
        (("data.store=off",), ""),
        (("model.head.spatial_dropout=0.2",), "before the features are pooled"),
        (("model.head.attention=se",), "before the features are pooled"),
    ],
)
def test_what_keeps_features_from_being_computed_once_is_said(overrides: Sequence[str], words: str) -> None:
    config = frozen_config("data.store=off", *overrides)
    reason = features_can_be_cached(config, tiny_model(config), 10_000)
    assert bool(reason) == bool(words)
    assert words in reason
