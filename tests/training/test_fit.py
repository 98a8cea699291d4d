"""The training loop: that it learns, keeps the best, stops when it should, and fails in words."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from foveal.errors import TrainingError
from foveal.inference import predict_logits
from foveal.progress import Silence
from foveal.run_folder import RunFolder
from foveal.training import checkpoint
from foveal.training import fit as module
from foveal.training.logs import Logs
from foveal.training.processes import Processes
from small_runs import epochs

from .small_training import MID_EPOCH, Lines, same_weights, tiny_config, tiny_data, tiny_model, train_tiny


def test_it_learns_and_says_so(tmp_path: Path) -> None:
    lines = Lines()
    config = tiny_config("train.epochs=4", "optim.lr=0.01")
    classifier, position, run = train_tiny(tmp_path, config, progress=lines)
    rows = epochs(tmp_path)
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    assert float(rows[position.best_epoch - 1]["val_accuracy"]) >= 0.9
    sides = {
        f"{side}_{name}"
        for side in ("train", "val")
        for name in ("loss", "accuracy", "macro_f1", "macro_precision", "macro_recall")
    }
    assert sides <= rows[0].keys()
    assert [line.split()[1] for line in lines.said[:4]] == ["1/4", "2/4", "3/4", "4/4"]
    assert re.fullmatch(
        r"Waited for images \d+\.\d% of the time; at its peak it took [\d,]+ MiB of memory.", lines.said[4]
    )
    events = [json.loads(line) for line in run.log.read_text().splitlines()]
    assert [event["epoch"] for event in events if event["event"] == "epoch"] == [1, 2, 3, 4]
    assert not classifier.net.training or position.finished


@pytest.mark.parametrize(
    "overrides", [("optim.lr=1e30",), ("optim.lr=1e30", MID_EPOCH), ("optim.lr=1e38", "optim.name=sgd")]
)
def test_a_loss_that_is_not_finite_stops_within_a_few_steps(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    config = tiny_config("train.epochs=50", *overrides)
    with pytest.raises(TrainingError, match="in epoch 1; training stopped") as caught:
        train_tiny(tmp_path, config)
    assert len(caught.value.problems) == config.train.batch_size
    assert all(problem.startswith("image-") for problem in caught.value.problems)
    assert "optim.lr" in caught.value.fix
    assert caught.value.exit_code == 1
    last = tmp_path / "checkpoints" / checkpoint.LAST
    if last.exists():
        assert str(last) in caught.value.message
        assert all(value.isfinite().all() for value in checkpoint.load(last)["model"].values())
    else:
        assert "no checkpoint had been written yet" in caught.value.message


def test_the_last_good_checkpoint_outlives_a_loss_that_goes_bad_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config("train.epochs=3", MID_EPOCH)
    whole = module._Loop.train_step
    poisoned: list[str] = []

    def step(loop: Any, batch: Any) -> torch.Tensor:
        loss = whole(loop, batch)
        if loop.position.epoch == 1 and loop.position.step == 2:
            # The loss of this step is fine; what the step made of the weights is not.
            next(loop.classifier.parameters()).data[:] = float("nan")
            poisoned.extend(str(loop.data.paths[row]) for row in batch.rows)
        return loss

    monkeypatch.setattr(module._Loop, "train_step", step)
    with pytest.raises(TrainingError, match=r"weights became .* in epoch 2") as caught:
        train_tiny(tmp_path, config)
    assert list(caught.value.problems) == poisoned
    kept = checkpoint.load(tmp_path / "checkpoints" / checkpoint.LAST)
    assert (kept["position"]["epoch"], kept["position"]["step"]) == (1, 2)
    assert all(value.isfinite().all() for value in kept["model"].values())
    assert checkpoint.load(tmp_path / "checkpoints" / checkpoint.BEST)["epoch"] == 1


def test_a_validation_loss_that_is_not_finite_stops_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = module._Loop.validate
    monkeypatch.setattr(module._Loop, "validate", lambda loop: {**whole(loop), "val_loss": math.nan})
    with pytest.raises(TrainingError, match="validation loss became nan in epoch 1"):
        train_tiny(tmp_path, tiny_config())
    assert not (tmp_path / "checkpoints" / checkpoint.BEST).exists()


@pytest.mark.parametrize(
    "error",
    [
        lambda: torch.empty(1 << 60),  # what the CPU's allocator really says
        lambda: np.empty(1 << 50),
        lambda: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")),
    ],
)
def test_running_out_of_memory_says_what_to_lower(
    tmp_path: Path, error: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        value = error()
        next(value)

    monkeypatch.setattr(module._Loop, "train_step", fail)
    with pytest.raises(
        TrainingError, match=r"Memory ran out with train\.batch_size=8 at data\.image_size=32"
    ) as caught:
        train_tiny(tmp_path, tiny_config())
    assert "train.batch_size" in caught.value.fix


def test_an_error_that_is_ours_to_mend_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(module._Loop, "train_step", fail)
    with pytest.raises(RuntimeError, match="mat1"):
        train_tiny(tmp_path, tiny_config())


def test_one_image_at_a_time_is_too_few_for_batch_norm(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="one image at a time") as caught:
        train_tiny(tmp_path, tiny_config("train.batch_size=1"))
    assert "train.batch_size" in caught.value.fix


def scripted(values: list[dict[str, float]]) -> Callable[[Any], dict[str, float]]:
    """A validation that finds these figures, one epoch after the other."""
    return lambda loop: values[loop.position.epoch]


def test_early_stopping_waits_for_its_patience_and_keeps_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    f1 = [0.2, 0.6, 0.5, 0.6, 0.55, 0.9, 0.9]
    found = [{"val_loss": 1.0, "val_accuracy": 0.5, "val_macro_f1": value} for value in f1]
    monkeypatch.setattr(module._Loop, "validate", scripted(found))
    config = tiny_config("train.epochs=7", "train.early_stopping.patience=3")
    _, position, _ = train_tiny(tmp_path, config, num_train=8)
    assert position.best_epoch == 2
    assert len(position.history) == 5
    assert checkpoint.load(tmp_path / "checkpoints" / checkpoint.BEST)["epoch"] == 2


@pytest.mark.parametrize(
    ("monitor", "best_epoch"),
    [("val_loss", 3), ("val_accuracy", 2), ("val_macro_f1", 4), ("val_top_3_accuracy", 3)],
)
def test_the_monitored_figure_decides_and_ties_go_to_the_lower_loss(
    tmp_path: Path, monitor: str, best_epoch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Top 3 of three classes is not measured: then the loss alone decides.
    columns = [(0.9, 0.7, 0.5), (0.8, 0.8, 0.6), (0.6, 0.8 - 1e-9, 0.7), (0.7, 0.8, 0.7 + 1e-9), (1.5, 0.8, 0.7)]
    names = ("val_loss", "val_accuracy", "val_macro_f1")
    found = [dict(zip(names, values, strict=True)) for values in columns]
    if monitor == "val_accuracy":
        found[3]["val_loss"] = 0.85  # a tie with epoch 2, of a higher loss
    monkeypatch.setattr(module._Loop, "validate", scripted(found))
    config = tiny_config("train.epochs=5", f"train.early_stopping.monitor={monitor}")
    _, position, _ = train_tiny(tmp_path, config, num_train=8)
    assert position.best_epoch == best_epoch
    assert len(position.history) == 5


def test_the_best_checkpoint_holds_the_weights_of_the_best_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[dict[str, torch.Tensor]] = []
    whole = module._Loop.validate
    f1 = [0.1, 0.9, 0.3]

    def validate(loop: Any) -> dict[str, Any]:
        states.append({name: value.clone() for name, value in loop.classifier.net.state_dict().items()})
        return {**whole(loop), "val_macro_f1": f1[loop.position.epoch]}

    monkeypatch.setattr(module._Loop, "validate", validate)
    train_tiny(tmp_path, tiny_config("train.epochs=3"))
    best = checkpoint.load(tmp_path / "checkpoints" / checkpoint.BEST)
    assert best["epoch"] == 2
    assert same_weights(best["model"], states[1])
    assert not same_weights(best["model"], states[2])


def loop_of(folder: Path, *overrides: str) -> Any:
    config = tiny_config(*overrides)
    return module._Loop(
        tiny_model(config), tiny_data(config), config, RunFolder(folder), Silence(), Processes(), Logs()
    )


def test_label_smoothing_is_in_the_loss_of_training_alone(tmp_path: Path) -> None:
    loop = loop_of(tmp_path, "train.label_smoothing=0.25")
    logits, labels = torch.randn(8, 3), torch.arange(8) % 3
    target = 0.75 * functional.one_hot(labels, 3) + 0.25 / 3
    expected = -(target * logits.log_softmax(1)).sum(1).mean()
    assert float(loop.stepper.criterion(logits, labels).mean()) == pytest.approx(float(expected), rel=1e-6)
    parts = [(batch, found) for batch, found in predict_logits(loop.classifier, loop.data.val, loop.device)]
    found = torch.cat([each for _, each in parts])
    truth = torch.cat([batch.labels for batch, _ in parts])
    assert loop.validate()["val_loss"] == pytest.approx(float(functional.cross_entropy(found, truth)), rel=1e-5)


def test_the_learning_rate_column_is_what_the_schedule_says(tmp_path: Path) -> None:
    config = tiny_config("train.epochs=4", "optim.lr=0.01")
    _, position, _ = train_tiny(tmp_path, config)
    total, lr = 20, 0.01
    peak, low = 0.25 * total - 1, lr / 25 / 1e4

    def of_step(step: int) -> float:  # the last step of the first epoch is the peak
        return low + (lr - low) / 2 * (1 + math.cos(math.pi * (step - peak) / (total - 1 - peak)))

    found = [row["lr"] for row in position.history]
    assert found == pytest.approx([of_step(4), of_step(9), of_step(14), of_step(19)], rel=1e-9)
    assert found[0] == pytest.approx(lr)
    assert found[3] < 1e-6


def test_the_last_row_is_what_the_weights_are_worth(tmp_path: Path) -> None:
    config = tiny_config("train.epochs=2", "optim.lr=0.01")
    classifier, position, _ = train_tiny(tmp_path, config)
    hits = total = 0
    loss = 0.0
    for batch, logits in predict_logits(classifier, tiny_data(config).val, torch.device("cpu")):
        loss += float(functional.cross_entropy(logits, batch.labels, reduction="sum"))
        hits += int((logits.argmax(1) == batch.labels).sum())
        total += len(batch)
    row = position.history[-1]
    assert row["val_loss"] == pytest.approx(loss / total, rel=1e-6)
    assert row["val_accuracy"] == pytest.approx(hits / total, abs=1e-12)


def test_fewer_images_than_a_batch_are_one_step(tmp_path: Path) -> None:
    _, position, _ = train_tiny(tmp_path, tiny_config("train.batch_size=64"), num_train=9, num_val=4)
    assert [row["epoch"] for row in position.history] == [1, 2]
    assert position.finished
