"""Going on with a training: wherever it stopped, the end is the same to the bit."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from foveal.errors import InterruptedRunError
from foveal.training import checkpoint
from foveal.training import fit as module
from foveal.training.state import Position
from small_runs import epochs

from .small_training import MID_EPOCH, Lines, same_weights, tiny_config, train_tiny


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


@pytest.mark.parametrize(
    "overrides",
    [("optim.name=sgd", "optim.schedule=constant"), ("train.precision=bf16",), ("augment.policy=heavy",)],
    ids=["sgd", "bf16", "heavy augmentation"],
)
def test_other_recipes_go_on_to_the_same_weights_too(
    tmp_path: Path, overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(*overrides)
    whole, _, _ = train_tiny(tmp_path / "whole", config)
    with monkeypatch.context() as patch:
        interrupt_after(7, patch)
        with pytest.raises(InterruptedRunError):
            train_tiny(tmp_path / "run", config)
    resumed, _, _ = train_tiny(tmp_path / "run", config, resume=True)
    assert same_weights(whole.net.state_dict(), resumed.net.state_dict())
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
