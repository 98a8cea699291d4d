"""What each key of a recipe changes in a training: its figures, its rates, its weights."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from foveal.progress import Silence
from foveal.run_folder import RunFolder
from foveal.training import checkpoint
from foveal.training import fit as module
from foveal.training.config import ResolvedConfig
from foveal.training.fit import fit
from foveal.training.processes import Processes
from foveal.training.state import Position
from foveal.training.step import Stepper
from small_runs import epochs

from .small_training import Lines, same_weights, tiny_config, tiny_data, tiny_model, train_tiny

STILL = ("optim.lr=1e-30", "optim.name=sgd", "optim.schedule=constant", "optim.weight_decay=0")
"""Steps that move no weight."""
PLAIN = ("augment.policy=none", "model.head.dropout=0")


def stepper_of(config: ResolvedConfig) -> Stepper:
    stepper = Stepper(tiny_model(config), tiny_data(config), config, Processes(), lambda _: None)
    stepper.begin_epoch(0)
    return stepper


def copied(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in state.items()}


@pytest.mark.parametrize(
    ("overrides", "weights", "smoothing", "gamma"),
    [
        ((), (1.0, 1.0, 1.0), 0.0, 0.0),
        (('train.class_weights={"2": 1, "10": 5, b: 0.5}',), (1.0, 5.0, 0.5), 0.0, 0.0),
        # Twice as many images of the first class as of the others.
        (("train.class_weights=balanced",), (0.5, 1.0, 1.0), 0.0, 0.0),
        (("train.label_smoothing=0.3",), (1.0, 1.0, 1.0), 0.3, 0.0),
        (("train.loss=focal", "train.focal_gamma=3"), (1.0, 1.0, 1.0), 0.0, 3.0),
        (("train.accumulate=3", 'train.class_weights={"2": 1, "10": 5, b: 0.5}'), (1.0, 5.0, 0.5), 0.0, 0.0),
    ],
    ids=["plain", "given weights", "balanced", "smoothed", "focal", "in parts"],
)
def test_the_loss_column_is_the_loss_that_is_asked_for(
    tmp_path: Path, overrides: tuple[str, ...], weights: tuple[float, ...], smoothing: float, gamma: float
) -> None:
    # Images of a batch do not see each other in a transformer, so that the parts cannot matter.
    config = tiny_config(*STILL, *PLAIN, "model.name=test_vit", "train.epochs=1", *overrides)
    classifier, position, _ = train_tiny(tmp_path, config)
    total = counted = 0.0
    with torch.no_grad():
        data = tiny_data(config)
        for batch in data.train.epoch(0):
            shares = classifier(data.augmentation(batch.images)).softmax(1).double()
            target = (1 - smoothing) * functional.one_hot(batch.labels, 3) + smoothing / 3
            losses = -(target * (1 - shares) ** gamma * shares.log()).sum(1)
            counts = torch.tensor(weights, dtype=torch.float64)[batch.labels]
            total, counted = total + float((losses * counts).sum()), counted + float(counts.sum())
    assert position.history[0]["train_loss"] == pytest.approx(total / counted, rel=1e-5)


@pytest.mark.parametrize("key", ["train.mixup=1", "train.cutmix=1"])
def test_mixed_images_have_mixed_labels_and_the_loss_of_both(key: str) -> None:
    config = tiny_config(*PLAIN, key)
    stepper, data, position = stepper_of(config), tiny_data(config), Position()
    found = []
    for batch in list(data.train.epoch(0)):
        stepped = stepper.step(batch, position)
        position.step += 1
        own = torch.stack([stepped.targets.sum(1), (stepped.targets > 0).sum(1).float()])
        assert torch.allclose(own[0], torch.ones(len(batch)))
        assert own[1].max() <= 2
        # An image keeps a share of its own class, and every class is somebody's, or the one before it.
        before = batch.labels.roll(1)
        expected = -(stepped.targets * stepped.logits.log_softmax(1)).sum(1).mean()
        assert float(stepped.loss) == pytest.approx(float(expected), rel=1e-5)
        outside = functional.one_hot(batch.labels, 3) + functional.one_hot(before, 3) == 0
        assert not stepped.targets[outside].any()
        found.append(float(stepped.targets.max(1).values.min()))
    assert min(found) < 0.999


def test_mixing_share_leaves_the_other_batches_alone() -> None:
    config = tiny_config(*PLAIN, *STILL, "train.mixup=1", "train.mixing_share=0.5", "train.batch_size=4")
    stepper, position = stepper_of(config), Position()
    hard = []
    for epoch in range(3):
        for batch in tiny_data(config).train.epoch(epoch):
            position.epoch = epoch
            targets = stepper.step(batch, position).targets
            hard.append(torch.equal(targets, functional.one_hot(batch.labels, 3).float()))
            position.step += 1
        position.step = 0
    assert 5 <= sum(hard) <= 25  # of 30 by a coin


def rates_of(config: ResolvedConfig, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The learning rate of every step."""
    rates: list[float] = []
    step = module._Loop.train_step

    def noted(loop: Any, batch: Any) -> Any:
        result = step(loop, batch)
        rates.append(loop.position.lr)
        return result

    monkeypatch.setattr(module._Loop, "train_step", noted)
    train_tiny(folder, config)
    return rates


def test_a_warm_up_rises_evenly_to_the_highest_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config("optim.lr=0.03", "optim.schedule=cosine", "optim.warmup_epochs=1", "optim.min_lr=0.001")
    rates = rates_of(config, tmp_path, monkeypatch)
    assert rates[:6] == pytest.approx([0.03 * step / 6 for step in range(1, 7)])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert 0.001 < rates[-1] < 0.006


def test_plateau_lowers_the_rate_when_the_monitored_figure_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, figures = module._Loop.validate, iter([0.5, 0.6, 0.6, 0.6, 0.7])
    monkeypatch.setattr(module._Loop, "validate", lambda loop: {**whole(loop), "val_accuracy": next(figures)})
    plateau = ("optim.schedule=plateau", "optim.patience=2", "optim.factor=0.5", "optim.lr=0.01", "train.epochs=5")
    config = tiny_config(*plateau, "train.early_stopping.monitor=val_accuracy")
    rates = rates_of(config, tmp_path, monkeypatch)
    assert rates[::5] == pytest.approx([0.01, 0.01, 0.01, 0.01, 0.005])


def test_layer_decay_moves_layers_by_rates_of_their_own() -> None:
    # Lion moves every weight by its rate: the first step shows which that is.
    recipe = ("optim.name=lion", "optim.weight_decay=0", "optim.schedule=constant", "optim.lr=0.01")
    config = tiny_config(*recipe, *PLAIN, "optim.layer_decay=0.5")
    stepper = stepper_of(config)
    before = copied(stepper.classifier.net.state_dict())
    stepper.step(next(tiny_data(config).train.epoch(0)), Position())
    moved = {
        name: float((value.detach() - before[name]).abs().max())
        for name, value in stepper.classifier.net.named_parameters()
        if not torch.equal(value, before[name])
    }
    assert moved["fc.weight"] == pytest.approx(0.01, rel=1e-3)
    powers = {name: round(math.log2(found / 0.01), 1) for name, found in moved.items()}
    assert sorted(set(powers.values()), reverse=True) == [-power for power in range(len(set(powers.values())))]
    assert powers["conv1.0.weight"] == min(powers.values()) <= -4


def test_what_thaws_later_keeps_its_weights_and_statistics_until_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config("model.freeze=all", "model.unfreeze={2: none}", "train.epochs=3", "train.ema=0.5")
    start, seen = copied(tiny_model(config).net.state_dict()), []
    whole = module._Loop.validate

    def validate(loop: Any) -> dict[str, Any]:
        seen.append(copied(loop.classifier.net.state_dict()))
        return whole(loop)

    monkeypatch.setattr(module._Loop, "validate", validate)
    lines = Lines()
    train_tiny(tmp_path, config, progress=lines)
    backbone = {name for name in start if not name.startswith("fc.")}
    assert all(torch.equal(seen[0][name], start[name]) for name in backbone)
    assert not torch.equal(seen[0]["fc.weight"], start["fc.weight"])
    assert all(not torch.equal(seen[1][name], start[name]) for name in backbone)
    told = [line for line in lines.said if line.startswith("model.freeze=")]
    assert [line.partition(":")[0] for line in told] == ["model.freeze=all", "model.freeze=none"]


def test_memory_that_ran_out_is_in_the_log_and_a_run_that_goes_on_remembers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config("train.halve_batch=true", "train.epochs=2")
    logits, sizes = Stepper._logits, []

    def tight(stepper: Stepper, images: torch.Tensor) -> Any:
        sizes.append(len(images))
        if len(images) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return logits(stepper, images)

    monkeypatch.setattr(Stepper, "_logits", tight)
    _, position, run = train_tiny(tmp_path, config)
    assert position.num_parts == 4
    assert sizes[:3] == [8, 4, 2]
    assert max(sizes[2:]) == 2
    messages = [json.loads(line).get("message", "") for line in run.log.read_text().splitlines()]
    assert sum(message.startswith("Memory ran out") for message in messages) == 2
    assert checkpoint.load(run.checkpoints / checkpoint.LAST)["position"]["num_parts"] == 4


def test_training_stops_by_a_figure_of_its_own_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, figures = module._Loop.validate, iter([0.5, 0.8, 0.8, 0.7, 0.9])
    losses = iter([1.0, 0.9, 0.95, 0.5, 0.1])

    def validate(loop: Any) -> dict[str, Any]:
        return {**whole(loop), "val_top_3_accuracy": next(figures), "val_loss": next(losses)}

    monkeypatch.setattr(module._Loop, "validate", validate)
    stopping = ("train.early_stopping.monitor=val_top_3_accuracy", "train.early_stopping.patience=2")
    _, position, run = train_tiny(tmp_path, tiny_config("train.epochs=9", *stopping))
    assert (position.best_epoch, len(position.history), position.finished) == (2, 4, True)
    assert checkpoint.load(run.checkpoints / checkpoint.BEST)["epoch"] == 2
    assert [row["val_top_3_accuracy"] for row in epochs(tmp_path)] == ["0.5", "0.8", "0.8", "0.7"]


def test_a_class_of_weight_zero_is_never_learnt(tmp_path: Path) -> None:
    config = tiny_config("optim.lr=0.01", 'train.class_weights={"2": 1, "10": 1, b: 0}', *PLAIN)
    classifier = tiny_model(config)
    run = RunFolder(tmp_path)
    run.prepare()
    data = tiny_data(config)
    fit(classifier, data, config, run, Silence())
    classifier.eval()
    with torch.no_grad():
        said = torch.cat([classifier(batch.images.float() / 255.0) for batch in data.val]).argmax(1)
    assert set(said.tolist()) <= {0, 1}


def test_one_image_and_one_step_are_a_training(tmp_path: Path) -> None:
    config = tiny_config("model.name=test_vit", "train.batch_size=1", "train.epochs=1", "train.ema=0.9")
    classifier, position, _ = train_tiny(tmp_path, config, num_train=1, num_val=1)
    assert position.finished
    assert not same_weights(classifier.net.state_dict(), tiny_model(config).net.state_dict())


def test_parts_of_a_step_have_batch_size_images_where_the_data_is_less_than_a_step(tmp_path: Path) -> None:
    # Five images in four parts would be one alone, over which nothing can be normalised.
    config = tiny_config("train.batch_size=4", "train.accumulate=4", "train.epochs=1")
    _, position, _ = train_tiny(tmp_path, config, num_train=6, num_val=3, batch_size=16)
    assert position.num_parts == 2
