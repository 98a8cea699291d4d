"""Going on with a training: wherever it stopped, the end is the same to the bit."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from foveal.data.batches import Batches, TrainingBatches
from foveal.errors import InterruptedRunError
from foveal.model.build import Classifier, build
from foveal.progress import Silence
from foveal.run_folder import RunFolder
from foveal.training import checkpoint
from foveal.training import fit as module
from foveal.training.config import ResolvedConfig
from foveal.training.fit import fit
from foveal.training.frozen_features import FeatureBatches, FeatureTrainingBatches, HeadOnly
from foveal.training.resolve import architecture_of, geometry_of
from foveal.training.state import Position, TrainingData
from small_runs import epochs

from .small_training import MID_EPOCH, Lines, same_weights, tiny_config, tiny_data, train_tiny


class PulledPlugError(Exception):
    """Stands for the end of the process at this very moment: nothing after it is written."""


def after_calls(number: int, function: Callable[..., Any], act: Callable[[], None]) -> Callable[..., Any]:
    """The function, with an act after its n-th call."""
    calls = iter(range(1, 1_000_000))

    def called(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        if next(calls) == number:
            act()
        return result

    return called


def pull_the_plug() -> None:
    raise PulledPlugError


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, torch.Tensor], list[dict[str, str]]]:
    """Weights and metrics of three epochs of five steps that nothing disturbed."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    classifier, _, _ = train_tiny(folder, tiny_config("train.epochs=3"))
    return {name: value.clone() for name, value in classifier.net.state_dict().items()}, epochs(folder)


def test_another_seed_is_another_training_and_the_same_seed_the_same(tmp_path: Path, uninterrupted: Any) -> None:
    again, _, _ = train_tiny(tmp_path / "again", tiny_config("train.epochs=3"))
    other, _, _ = train_tiny(tmp_path / "other", tiny_config("train.epochs=3", "seed=1"))
    assert same_weights(again.net.state_dict(), uninterrupted[0])
    assert not same_weights(other.net.state_dict(), uninterrupted[0])


def interrupt_after(num_steps: int, patch: pytest.MonkeyPatch, number: signal.Signals = signal.SIGINT) -> None:
    """Send ourselves a signal at the end of the n-th step."""
    step = after_calls(num_steps, module._Loop.train_step, lambda: os.kill(os.getpid(), number))
    patch.setattr(module._Loop, "train_step", step)


@pytest.mark.parametrize("num_steps", [1, 5, 6, 15])
def test_stopped_by_ctrl_c_after_any_step_it_goes_on_to_the_same_weights(
    tmp_path: Path, uninterrupted: Any, num_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config("train.epochs=3")
    with monkeypatch.context() as patch:
        interrupt_after(num_steps, patch)
        with pytest.raises(InterruptedRunError) as caught:
            train_tiny(tmp_path / "a run", config)
    assert caught.value.exit_code == 130
    stopped_after = len(epochs(tmp_path / "a run")) if num_steps > 5 else 0
    assert f"foveal train --out '{tmp_path / 'a run'}' --resume" in caught.value.fix
    lines = Lines()
    classifier, position, _ = train_tiny(tmp_path / "a run", config, resume=True, progress=lines)
    assert position.finished
    assert same_weights(classifier.net.state_dict(), uninterrupted[0])
    assert epochs(tmp_path / "a run") == uninterrupted[1]
    assert lines.said[0].startswith("Going on")
    # Nothing is measured once a stop is asked for: an epoch whose last step was done is validated by who goes on.
    assert stopped_after == (num_steps - 1) // 5


RECIPES: dict[str, tuple[str, ...]] = {
    "sgd": ("optim.name=sgd", "optim.schedule=constant"),
    "bf16, heavy augmentation": ("train.precision=bf16", "augment.policy=heavy"),
    "average, cosine with warm-up": ("train.ema=0.9", "optim.schedule=cosine", "optim.warmup_epochs=0.7"),
    "mixup and cutmix": (
        "train.mixup=0.4",
        "train.cutmix=1",
        "train.mixing_share=0.7",
        "train.label_smoothing=0.1",
        "augment.policy=none",
        "model.name=small_cnn",
    ),
    "plateau, rmsprop": (
        "optim.schedule=plateau",
        "optim.patience=1",
        "optim.warmup_epochs=0.3",
        "optim.name=rmsprop",
        "optim.momentum=0.5",
        "optim.lr=0.03",
        "train.clip_norm=0.5",
    ),
    "lion, steps, accumulated": (
        "optim.name=lion",
        "optim.schedule=step",
        "optim.step_epochs=0.6",
        "train.batch_size=4",
        "train.accumulate=2",
        "train.class_weights=balanced",
    ),
    "adagrad, focal, layer decay": ("optim.name=adagrad", "train.loss=focal", "optim.layer_decay=0.7"),
    "unfreezing, average, balanced": (
        "model.freeze=all",
        "model.unfreeze={2: none}",
        "train.ema=0.8",
        "train.sampling=balanced",
        "optim.name=adam",
    ),
    "last layers, augmix, repeats": ("model.freeze=last:5", "augment.policy=augmix", "augment.repeats=2"),
    "dense head, randaugment": (
        "model.head.kind=dense",
        "model.head.layers=[24, 12]",
        "model.head.dropout=[0.4, 0.2]",
        "model.head.batch_norm=true",
        "augment.policy=randaugment",
    ),
    "attention, trivialaugment": (
        "model.head.attention=cbam",
        "model.head.spatial_dropout=0.2",
        "augment.policy=trivialaugment",
    ),
    "a list, dropout within": (
        "model.name=test_vit_relpos",
        "augment.operations=[{name: rotate, degrees: 20}, {name: elastic}, {name: gaussian_noise}, {name: erasing}]",
    ),
    "cached features": ("model.freeze=all", "augment.policy=none", "model.head.batch_norm=true", "train.ema=0.9"),
}


def go_on(folder: Path, config: ResolvedConfig, *, start_seed: int = 0) -> dict[str, torch.Tensor]:
    """Train, or go on with it, in all ways that a recipe can ask of the data; the weights, and their average."""
    resume = (folder / "checkpoints" / checkpoint.LAST).exists()
    run = RunFolder(folder)
    run.prepare()
    torch.manual_seed(start_seed)
    classifier = build(architecture_of(config, 3))
    data = tiny_data(config, num_train=32, num_val=8)
    data = replace(
        data,
        train=TrainingBatches(
            data.train._source,
            data.train._rows,
            data.train_labels,
            side_px=geometry_of(config).store_px,
            batch_size=config.train.batch_size * config.train.accumulate,
            seed=config.seed,
            random_window=config.augment.random_window,
            sampling=config.train.sampling,
            repeats=config.augment.repeats,
        ),
    )
    if config.model.freeze == "all" and config.augment.is_off:
        if resume:
            classifier.net.load_state_dict(checkpoint.load_last(run.checkpoints)[0]["model"])
        data = on_features(data, classifier)
    fit(classifier, data, config, run, Silence(), resume=resume)
    content = checkpoint.load(folder / "checkpoints" / checkpoint.LAST)
    best = checkpoint.load(folder / "checkpoints" / checkpoint.BEST)["model"]
    assert same_weights(content["model"], classifier.net.state_dict())
    return {f"{part}.{name}": value for part in ("model", "average") for name, value in content[part].items()} | best


def on_features(data: TrainingData, classifier: Classifier) -> TrainingData:
    """The same training on what the backbone makes of the images."""
    num_images = len(data.paths)
    images = Batches(
        data.val._source, np.arange(num_images), np.zeros(num_images, int), data.val._geometry, batch_size=8
    )
    classifier.eval()
    with torch.no_grad():
        rows = torch.cat([classifier.pooled(batch.images.float() / 255.0) for batch in images]).numpy()
    features: Any = SimpleNamespace(take=rows.__getitem__)
    train, val = FeatureTrainingBatches(data.train, features), FeatureBatches(data.val, features)
    return replace(data, train=train, val=val, head=HeadOnly(classifier))


@pytest.mark.parametrize("overrides", RECIPES.values(), ids=RECIPES.keys())
def test_every_recipe_that_is_cut_off_three_times_comes_to_the_same_weights(
    tmp_path: Path, overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(*overrides, MID_EPOCH)
    whole = go_on(tmp_path / "whole", config)
    cuts = [(0, 2), (1, 0), (1, 1)]  # epoch and step: within an epoch, at its end, and within the last one
    save = module._Loop.save_last

    def saved(loop: Any) -> None:
        save(loop)
        if cuts and (loop.position.epoch, loop.position.step) == cuts[0]:
            cuts.pop(0)
            pull_the_plug()

    monkeypatch.setattr(module._Loop, "save_last", saved)
    for number in range(3):
        with pytest.raises(PulledPlugError):
            # Whatever a run that goes on starts from, all comes from the checkpoint.
            go_on(tmp_path / "run", config, start_seed=number)
    resumed = go_on(tmp_path / "run", config, start_seed=3)
    assert not cuts
    assert same_weights(whole, resumed)
    assert epochs(tmp_path / "run") == epochs(tmp_path / "whole")


@pytest.mark.parametrize("num_saves", [1, 6, 7, 18])
def test_cut_off_right_after_any_checkpoint_it_goes_on_to_the_same_weights(
    tmp_path: Path, uninterrupted: Any, num_saves: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Six checkpoints an epoch: one after each of the five steps, and one at its end.
    config = tiny_config("train.epochs=3", MID_EPOCH)
    with monkeypatch.context() as patch:
        patch.setattr(module._Loop, "save_last", after_calls(num_saves, module._Loop.save_last, pull_the_plug))
        with pytest.raises(PulledPlugError):
            train_tiny(tmp_path, config)
    classifier, _, _ = train_tiny(tmp_path, config, resume=True)
    assert same_weights(classifier.net.state_dict(), uninterrupted[0])
    assert epochs(tmp_path) == uninterrupted[1]


def test_a_damaged_checkpoint_costs_a_few_steps_and_no_exactness(
    tmp_path: Path, uninterrupted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config("train.epochs=3", MID_EPOCH)
    with monkeypatch.context() as patch:
        patch.setattr(module._Loop, "save_last", after_calls(9, module._Loop.save_last, pull_the_plug))
        with pytest.raises(PulledPlugError):
            train_tiny(tmp_path, config)
    last = tmp_path / "checkpoints" / checkpoint.LAST
    last.write_bytes(last.read_bytes()[:-5000])
    lines = Lines()
    classifier, _, run = train_tiny(tmp_path, config, resume=True, progress=lines)
    assert "last.ckpt" in lines.said[0]
    assert "the one before" in lines.said[0]
    assert "epoch 2, step 2 of 5" in lines.said[1]
    assert any(json.loads(line)["event"] == "warning" for line in run.log.read_text().splitlines())
    assert same_weights(classifier.net.state_dict(), uninterrupted[0])


def test_a_training_that_is_over_is_not_begun_again(tmp_path: Path, uninterrupted: Any) -> None:
    config = tiny_config("train.epochs=3")
    train_tiny(tmp_path, config)
    before = (tmp_path / "checkpoints" / checkpoint.LAST).read_bytes()
    (tmp_path / "metrics.csv").unlink()  # as if killed between the last checkpoint and the table
    classifier, position, _ = train_tiny(tmp_path, config, resume=True)
    assert position.finished
    assert same_weights(classifier.net.state_dict(), uninterrupted[0])
    assert (tmp_path / "checkpoints" / checkpoint.LAST).read_bytes() == before
    assert epochs(tmp_path) == uninterrupted[1]


def test_the_time_of_an_epoch_counts_all_that_it_took(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config("train.epochs=1")
    with monkeypatch.context() as patch:
        interrupt_after(4, patch, signal.SIGTERM)
        with pytest.raises(InterruptedRunError) as caught:
            train_tiny(tmp_path, config)
    assert caught.value.exit_code == 143
    before = checkpoint.load_last(tmp_path / "checkpoints")[0]["position"]["seconds"]
    _, position, _ = train_tiny(tmp_path, config, resume=True)
    row = position.history[0]
    assert 0 < before < row["seconds"] + 1e-3
    assert row["images_per_second"] == pytest.approx(40 / row["seconds"], rel=0.1)


def test_the_second_signal_stops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(module._Loop, "train_step", twice)
    with pytest.raises(KeyboardInterrupt):
        train_tiny(tmp_path, tiny_config())
    assert not (tmp_path / "checkpoints" / checkpoint.LAST).exists()


def interrupted_after(number: int, whole: Callable[..., Any]) -> Callable[..., Any]:
    """Passes over validation, with Ctrl-C before the n-th batch of all; two make an epoch."""
    calls = iter(range(1, 1000))

    def batches(*args: Any) -> Any:
        for found in whole(*args):
            if next(calls) == number:
                os.kill(os.getpid(), signal.SIGINT)
            yield found

    return batches


def test_a_signal_while_validating_stops_there_and_is_made_up_for(
    tmp_path: Path, uninterrupted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config("train.epochs=3")
    with monkeypatch.context() as patch:
        patch.setattr(module, "predict_logits", interrupted_after(3, module.predict_logits))
        with pytest.raises(InterruptedRunError, match="epoch 2, step 5 of 5"):
            train_tiny(tmp_path, config)
    assert len(epochs(tmp_path)) == 1
    classifier, _, _ = train_tiny(tmp_path, config, resume=True)
    assert same_weights(classifier.net.state_dict(), uninterrupted[0])
    assert epochs(tmp_path) == uninterrupted[1]


def test_a_signal_while_validating_the_last_epoch_is_not_lost(
    tmp_path: Path, uninterrupted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config("train.epochs=3")
    with monkeypatch.context() as patch:
        send = after_calls(3, module._Loop.validate, lambda: os.kill(os.getpid(), signal.SIGTERM))
        patch.setattr(module._Loop, "validate", send)
        with pytest.raises(InterruptedRunError, match="after the last epoch") as caught:
            train_tiny(tmp_path, config)
    assert caught.value.exit_code == 143
    classifier, _, _ = train_tiny(tmp_path, config, resume=True)
    assert same_weights(classifier.net.state_dict(), uninterrupted[0])


def test_a_checkpoint_holds_what_a_position_is_made_of(tmp_path: Path) -> None:
    train_tiny(tmp_path, tiny_config())
    content = checkpoint.load_last(tmp_path / "checkpoints")[0]
    position = Position(**content["position"])
    assert position.finished
    assert len(position.history) == 2
    assert position.best_epoch == checkpoint.load(tmp_path / "checkpoints" / checkpoint.BEST)["epoch"]
