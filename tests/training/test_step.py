"""One step: parts, clipping, averaging, memory that runs out."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foveal.errors import TrainingError
from foveal.training import step as module
from foveal.training.batch_size import largest_batch_size
from foveal.training.config import ResolvedConfig
from foveal.training.processes import Processes
from foveal.training.state import Position
from foveal.training.step import Stepper

from .small_training import same_weights, tiny_config, tiny_data, tiny_model, train_tiny

WITHOUT_BATCH_NORM = ("model.name=test_vit", "model.head.dropout=0", "optim.name=sgd", "optim.lr=0.05")
"""A network whose images do not see each other, so that parts of a batch can add up to the whole."""


def stepper_of(config: ResolvedConfig, told: list[str] | None = None) -> Stepper:
    """Ready for the first step."""
    tell = (told if told is not None else []).append
    stepper = Stepper(tiny_model(config), tiny_data(config, num_train=48), config, Processes(), tell)
    stepper.begin_epoch(0)
    return stepper


def states_after(config: ResolvedConfig, num_parts: int, num_steps: int = 3) -> dict[str, torch.Tensor]:
    stepper = stepper_of(config)
    data = tiny_data(config, num_train=48)
    position = Position(num_parts=num_parts)
    for batch in list(data.train.epoch(0))[:num_steps]:
        stepper.step(batch, position)
        position.step += 1
    return {name: value.clone() for name, value in stepper.classifier.net.state_dict().items()}


def far_apart(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("augment.policy=heavy",),
        ("train.class_weights=balanced", "train.label_smoothing=0.1"),
        ("train.mixup=0.4", "train.cutmix=1.0", "train.class_weights=balanced"),
        ("train.loss=focal",),
    ],
    ids=["plain", "augmented", "class weights", "mixed", "focal"],
)
def test_a_step_in_parts_is_the_step_of_the_whole_batch(overrides: tuple[str, ...]) -> None:
    config = tiny_config(*WITHOUT_BATCH_NORM, "train.batch_size=16", *overrides)
    whole = states_after(config, num_parts=1)
    # Seven parts of sixteen images are unequal, and must not count alike.
    for num_parts in (2, 7, 16):
        assert far_apart(whole, states_after(config, num_parts)) < 2e-6
    assert far_apart(whole, states_after(config, num_parts=1, num_steps=2)) > 1e-3


def test_accumulate_makes_the_steps_of_the_larger_batch(tmp_path: Path) -> None:
    recipe = (*WITHOUT_BATCH_NORM, "augment.policy=none")
    large, _, _ = train_tiny(tmp_path / "large", tiny_config(*recipe, "train.batch_size=16"), batch_size=16)
    parts = tiny_config(*recipe, "train.batch_size=4", "train.accumulate=4")
    accumulated, position, _ = train_tiny(tmp_path / "accumulated", parts, batch_size=16)
    assert position.num_parts == 4
    assert far_apart(large.net.state_dict(), accumulated.net.state_dict()) < 1e-5


def test_no_gradient_is_longer_than_clip_norm() -> None:
    recipe = ("optim.name=sgd", "optim.momentum=0", "optim.nesterov=false", "optim.weight_decay=0", "optim.lr=1")
    config = tiny_config(*recipe, "optim.schedule=constant", "train.clip_norm=0.001")

    def moved(config: ResolvedConfig) -> float:
        stepper = stepper_of(config)
        before = [parameter.detach().clone() for parameter in stepper.classifier.parameters()]
        stepper.step(next(iter(tiny_data(config, num_train=48).train.epoch(0))), Position())
        after = stepper.classifier.parameters()
        return float(sum(((a.detach() - b) ** 2).sum() for a, b in zip(after, before, strict=True)) ** 0.5)

    assert moved(config) == pytest.approx(0.001, rel=1e-3)
    assert moved(tiny_config(*recipe, "optim.schedule=constant")) > 0.01


def test_with_ema_the_average_is_validated_kept_and_bundled(tmp_path: Path) -> None:
    plain, _, run = train_tiny(tmp_path / "plain", tiny_config("train.epochs=3"))
    config = tiny_config("train.epochs=3", "train.ema=0.9")
    averaged, _, other = train_tiny(tmp_path / "ema", config)
    # Training itself does not know of the average.
    assert same_weights(plain.net.state_dict(), averaged.net.state_dict())
    best = module.torch.load(other.checkpoints / "best.ckpt", weights_only=True)["model"]
    last = module.torch.load(other.checkpoints / "last.ckpt", weights_only=True)
    assert not same_weights(best, module.torch.load(run.checkpoints / "best.ckpt", weights_only=True)["model"])
    assert last["average"]
    trained = [line.split(",")[1] for line in (tmp_path / "plain" / "metrics.csv").read_text().splitlines()]
    again = [line.split(",")[1] for line in (tmp_path / "ema" / "metrics.csv").read_text().splitlines()]
    assert trained == again  # the training loss
    assert (tmp_path / "plain" / "metrics.csv").read_text() != (tmp_path / "ema" / "metrics.csv").read_text()


class MemoryForFive:
    """A network that runs out of memory with more than five images at once."""

    def __init__(self, whole: Any) -> None:
        self.whole, self.seen = whole, []

    def __call__(self, stepper: Stepper, images: torch.Tensor) -> Any:
        self.seen.append(len(images))
        if len(images) > 5:
            raise torch.OutOfMemoryError("not enough memory: you tried to allocate 1 EiB")
        return self.whole(stepper, images)


def test_memory_that_runs_out_halves_the_batch_and_changes_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = (*WITHOUT_BATCH_NORM, "train.batch_size=16", "augment.policy=heavy")
    whole = states_after(tiny_config(*recipe), num_parts=1, num_steps=1)
    config, told = tiny_config(*recipe, "train.halve_batch=true"), []
    scarce = MemoryForFive(Stepper._logits)
    monkeypatch.setattr(Stepper, "_logits", lambda stepper, images: scarce(stepper, images))
    stepper, position = stepper_of(config, told), Position()
    stepper.step(next(iter(tiny_data(config, num_train=48).train.epoch(0))), position)
    assert scarce.seen == [16, 8, 4, 4, 4, 4]
    assert position.num_parts == 4
    assert far_apart(whole, stepper.classifier.net.state_dict()) < 2e-6
    assert "4 parts of 4 images" in told[-1]


def test_without_halve_batch_memory_that_runs_out_ends_the_training_and_says_what_to_lower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scarce = MemoryForFive(Stepper._logits)
    monkeypatch.setattr(Stepper, "_logits", lambda stepper, images: scarce(stepper, images))
    with pytest.raises(TrainingError, match="Memory ran out") as caught:
        train_tiny(tmp_path, tiny_config())
    assert "train.halve_batch=true" in caught.value.fix
    assert scarce.seen == [8]


def test_compiled_training_is_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = []

    def counting(graph: Any, inputs: Any) -> Any:
        # Captured as for any compiler, and run as it was captured: turning it into machine code takes minutes.
        graphs.append(len(list(graph.graph.nodes)))
        return graph.forward

    recipe = ("model.name=small_cnn", "train.epochs=1", "model.head.dropout=0", "optim.name=sgd", "optim.lr=0.01")
    plain, _, _ = train_tiny(tmp_path / "plain", tiny_config(*recipe))
    assert graphs == []
    whole = torch.compile
    monkeypatch.setattr(torch, "compile", lambda network, **given: whole(network, **({"backend": counting} | given)))
    compiled, _, _ = train_tiny(tmp_path / "compiled", tiny_config(*recipe, "train.compile=true"))
    assert sum(graphs) > 10
    assert far_apart(plain.net.state_dict(), compiled.net.state_dict()) < 1e-4


def test_the_largest_batch_is_a_power_of_two_within_memory_and_data(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config()
    assert largest_batch_size(tiny_model(config), config, num_train=5000) == 1024
    assert largest_batch_size(tiny_model(config), config, num_train=300) == 256
    monkeypatch.setattr("foveal.training.batch_size.available_memory_bytes", lambda: 40 << 20)
    small = largest_batch_size(tiny_model(config), config, num_train=5000)
    assert small < 1024
    assert np.log2(small) % 1 == 0
