"""Training: reads as the algorithm. Lightning's Fabric brings devices and precision; the loop is ours.

Every random draw of a step comes from (seed, epoch, step), so that a resumed run needs no generator state to do exactly
what an uninterrupted one does: the order, the windows, the augmentation and the dropout are all derived again.
"""

import logging
import math
import shlex
import time
from collections import deque
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from foveal.data.augment import Augmentation
from foveal.data.batches import Batch, Batches, TrainingBatches, derive_seed
from foveal.errors import InterruptedRunError, TrainingError
from foveal.files import write_csv
from foveal.inference import predict_logits
from foveal.model.build import Classifier
from foveal.progress import Bar, Progress
from foveal.run_folder import RunFolder
from foveal.training import checkpoint
from foveal.training.config import ResolvedConfig
from foveal.training.epoch_metrics import RunningMetrics
from foveal.training.optim import make_optimizer, make_schedule
from foveal.training.signals import StopRequest

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_FABRIC_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
NOT_FINITE_LAG_STEPS = 2


@dataclass
class Position:
    """Where a run stands; all that a checkpoint keeps beside tensors.

    Attributes:
        epoch: the epoch in progress, counted from 0.
        step: steps of it that are done.
        best: the monitored figure and minus the validation loss at the best epoch, for comparing.
        best_epoch: the best epoch, counted from 1; 0 before there is one.
        finished: whether the last epoch is over.
        seconds: what the steps of the epoch in progress took so far, over all processes that had a share in it.
        waited_seconds: how much of it was waiting for batches.
        lr: the learning rate of the last step.
        history: one row an epoch, as in metrics.csv.
    """

    epoch: int = 0
    step: int = 0
    best: list[float] = field(default_factory=list)
    best_epoch: int = 0
    finished: bool = False
    seconds: float = 0.0
    waited_seconds: float = 0.0
    lr: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class TrainingData:
    """What the loop goes through, and how to name the files of a batch."""

    train: TrainingBatches
    val: Batches
    augmentation: Augmentation
    class_names: tuple[str, ...]
    paths: Sequence[Path]
    train_labels: NDArray[np.int64]


def fit(
    classifier: Classifier,
    data: TrainingData,
    config: ResolvedConfig,
    run: RunFolder,
    progress: Progress,
    *,
    resume: bool = False,
) -> Position:
    """Train to the last epoch, or until patience ends; `checkpoints/best.ckpt` holds the best epoch's weights.

    Args:
        classifier: with its starting weights; trained in place.
        data: what to go through.
        config: with nothing left to find out.
        run: where checkpoints, metrics and events go.
        progress: where to show it.
        resume: whether to go on from `checkpoints/last.ckpt`.

    Raises:
        TrainingError: the loss is not finite, or memory ran out.
        InterruptedRunError: Ctrl-C or SIGTERM; a checkpoint was written.
        ArtifactError: `resume`, and there is no checkpoint that can be read.
    """
    try:
        loop = _Loop(classifier, data, config, run, progress)
        if resume:
            loop.resume()
        with StopRequest() as stop:
            loop.run_epochs(stop)
    except (RuntimeError, MemoryError, ValueError) as error:
        if explained := _explained(error, config):
            raise explained from error
        raise
    return loop.position


class _Loop:
    """The state of one training."""

    def __init__(
        self, classifier: Classifier, data: TrainingData, config: ResolvedConfig, run: RunFolder, progress: Progress
    ) -> None:
        from lightning.fabric import Fabric

        # It would tell on stderr which precision it uses; the run's configuration says so already.
        for name in ("lightning.fabric", "lightning.pytorch"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self.classifier, self.data, self.config, self.run, self.progress = classifier, data, config, run, progress
        self.position = Position()
        self.request = StopRequest()
        self.fabric = Fabric(
            accelerator=config.train.device, devices=1, precision=_FABRIC_PRECISION[config.train.precision]
        )
        classifier.to(memory_format=torch.channels_last)
        self.optimizer = make_optimizer(classifier, config.optim)
        self.schedule = make_schedule(self.optimizer, config.optim, config.train.epochs * len(data.train))
        self.model, self.fabric_optimizer = self.fabric.setup(classifier, self.optimizer)
        self.device = self.fabric.device
        self.augmentation = data.augmentation.to(self.device)
        self.criterion = nn.CrossEntropyLoss(
            weight=self._class_weights(), label_smoothing=config.train.label_smoothing
        ).to(self.device)
        self.running = RunningMetrics(len(data.class_names), self.device)
        self.saved_at = time.monotonic()

    def _class_weights(self) -> torch.Tensor | None:
        """Inverse frequency, with mean 1 over the images: scikit-learn's "balanced"."""
        if self.config.train.class_weights == "none":
            return None
        counts = np.bincount(self.data.train_labels, minlength=len(self.data.class_names))
        return torch.tensor(counts.sum() / (len(counts) * np.maximum(counts, 1)), dtype=torch.float32)

    def resume(self) -> None:
        content, warning = checkpoint.load_last(self.run.checkpoints)
        if warning:
            self.progress.say(warning)
            self.run.log_event("warning", message=warning)
        self.classifier.net.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.schedule.load_state_dict(content["schedule"])
        self.fabric.strategy.precision.load_state_dict(content["precision"])
        self.position = Position(**content["position"])
        if content["running"]:
            self.running.restore(content["running"])
        # The process may have been killed between the checkpoint and this table.
        self.write_metrics()
        where = "the last epoch is over" if self.position.finished else self.where()
        self.progress.say(f"Going on with the run: {where}.")
        self.run.log_event("resume", epoch=self.position.epoch + 1, step=self.position.step)

    def run_epochs(self, request: StopRequest) -> None:
        self.request = request
        total = self.config.train.epochs * len(self.data.train)
        with self.progress.bar("Training", total, "steps") as bar:
            bar.advance(self.position.epoch * len(self.data.train) + self.position.step)
            while not self.position.finished:
                self.run_epoch(bar)

    def run_epoch(self, bar: Bar) -> None:
        position = self.position
        self.model.train()
        watch = _LossWatch(lag_steps=0 if self.device.type == "cpu" else NOT_FINITE_LAG_STEPS)
        rows = np.empty(0, dtype=np.int64)
        with closing(self.data.train.epoch(position.epoch, first_step=position.step)) as batches:
            mark = time.perf_counter()
            for batch in batches:
                position.waited_seconds += time.perf_counter() - mark
                rows = batch.rows
                self.refuse_bad(watch.add(self.train_step(batch), rows))
                position.step += 1
                position.seconds += time.perf_counter() - mark
                rate = position.step * len(batch) / position.seconds
                bar.advance(1, note=f"epoch {position.epoch + 1}/{self.config.train.epochs}, {rate:,.0f} images/s")
                due = time.monotonic() - self.saved_at > 60.0 * self.config.train.checkpoint_minutes
                if due or self.request.signal_number is not None:
                    self.refuse_bad(watch.rest() or self.bad_weights(rows))
                    self.save_last()
                    self.stop_if_asked()
                mark = time.perf_counter()
        self.refuse_bad(watch.rest() or self.bad_weights(rows))
        self.end_epoch()
        self.stop_if_asked()

    def train_step(self, batch: Batch) -> torch.Tensor:
        torch.manual_seed(derive_seed(self.config.seed, 2, self.position.epoch, self.position.step))
        pixels = self.augmentation(batch.images.to(self.device, non_blocking=True))
        labels = batch.labels.to(self.device, non_blocking=True)
        logits = self.model(pixels)
        loss: torch.Tensor = self.criterion(logits.float(), labels)
        self.fabric_optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(loss)
        self.fabric_optimizer.step()
        # Before the schedule moves on: after the last step there is no next one, and it would say anything.
        self.position.lr = float(self.optimizer.param_groups[0]["lr"])
        self.schedule.step()
        self.running.update(logits.detach(), labels, loss)
        return loss.detach()

    def validate(self) -> dict[str, Any]:
        running = RunningMetrics(len(self.data.class_names), self.device)
        autocast = AUTOCAST[self.config.train.precision]
        for batch, logits in predict_logits(self.classifier, self.data.val, self.device, autocast):
            running.update(logits, batch.labels.to(self.device))
            if self.request.signal_number is not None:
                # All steps of the epoch are done and none is lost: what goes on begins by validating again.
                self.save_last()
                self.stop_if_asked()
        return running.row("val_")

    def end_epoch(self) -> None:
        position, seconds = self.position, max(self.position.seconds, 1e-9)
        row = {
            "epoch": position.epoch + 1,
            **self.running.row("train_"),
            **self.validate(),
            "lr": position.lr,
            "seconds": round(seconds, 3),
            "images_per_second": round(position.step * self.data.train.batch_size / seconds, 1),
            "data_wait_share": round(position.waited_seconds / seconds, 4),
        }
        if not math.isfinite(row["val_loss"]):
            raise self.not_finite(f"validation loss became {row['val_loss']}")
        position.history.append(row)
        monitor = self.config.train.early_stopping.monitor
        sign = -1.0 if monitor.endswith("loss") else 1.0
        # A figure that is not defined, such as top 3 of three classes, must not stop the training: the loss decides.
        figure = [sign * float(row.get(monitor) or 0.0), -float(row["val_loss"])]
        if not position.best or figure > position.best:
            position.best, position.best_epoch = figure, position.epoch + 1
            checkpoint.save(
                self.run.checkpoints / checkpoint.BEST,
                {"model": self.classifier.net.state_dict(), "epoch": position.best_epoch, "row": row},
            )
        position.epoch, position.step, position.seconds, position.waited_seconds = position.epoch + 1, 0, 0.0, 0.0
        patience = self.config.train.early_stopping.patience
        out_of_patience = patience is not None and position.epoch - position.best_epoch >= patience
        position.finished = position.epoch >= self.config.train.epochs or out_of_patience
        self.running = RunningMetrics(len(self.data.class_names), self.device)
        self.save_last()
        self.write_metrics()
        self.run.log_event("epoch", **row)
        self.progress.say(_epoch_sentence(row, self.config.train.epochs, position.best_epoch == position.epoch))

    def write_metrics(self) -> None:
        history = self.position.history
        columns = list(dict.fromkeys(key for past in history for key in past))
        if history:
            write_csv(self.run.metrics, columns, [[past.get(key, "") for key in columns] for past in history])

    def save_last(self) -> None:
        content = {
            "model": self.classifier.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
            "position": vars(self.position),
            "running": self.running.state() if self.position.step else {},
        }
        checkpoint.save_last(self.run.checkpoints, content)
        self.saved_at = time.monotonic()

    def where(self) -> str:
        return f"epoch {self.position.epoch + 1}, step {self.position.step} of {len(self.data.train)}"

    def stop_if_asked(self) -> None:
        """End where a signal asked for it; a checkpoint was written just before."""
        signal_number = self.request.signal_number
        if signal_number is None:
            return
        where = "after the last epoch, before the evaluation" if self.position.finished else f"at {self.where()}"
        self.run.log_event("interrupted", signal=signal_number, epoch=self.position.epoch + 1, step=self.position.step)
        raise InterruptedRunError(
            f"Stopped {where}; everything is saved.",
            signal_number=signal_number,
            fix=f"go on with: foveal train --out {shlex.quote(str(self.run.path))} --resume",
        )

    def bad_weights(self, rows: NDArray[np.int64]) -> "_Bad | None":
        """Whether a step has spoilt the weights, which a finite loss does not tell: it was computed before the step."""
        parameters = [parameter.detach() for parameter in self.classifier.parameters()]
        is_good = bool(torch.stack([parameter.isfinite().all() for parameter in parameters]).all())
        return None if is_good else _Bad("weights became infinite or NaN", rows)

    def refuse_bad(self, bad: "_Bad | None") -> None:
        if bad is not None:
            raise self.not_finite(bad.what, [str(self.data.paths[row]) for row in bad.rows])

    def not_finite(self, what: str, files: Sequence[str] = ()) -> TrainingError:
        last = self.run.checkpoints / checkpoint.LAST
        kept = f"the last good checkpoint, {last}, is kept" if last.exists() else "no checkpoint had been written yet"
        batch = f" The batch held these {len(files)} files:" if files else ""
        return TrainingError(
            f"The {what} in epoch {self.position.epoch + 1}; training stopped, and {kept}.{batch}",
            problems=files,
            fix=f"train anew with a lower optim.lr (it was {self.config.optim.lr:g}; a tenth is a good try) or with "
            f"train.precision=fp32{', and look at the files above' if files else ''}.",
        )


@dataclass(frozen=True)
class _Bad:
    """What is not finite any more, and the batch that it came with: int64 [n], row numbers in the manifest."""

    what: str
    rows: NDArray[np.int64]


class _LossWatch:
    """Finds a loss that is not finite within a few steps, without making a GPU wait at every step."""

    def __init__(self, *, lag_steps: int) -> None:
        self._lag_steps = lag_steps
        self._unchecked: deque[tuple[torch.Tensor, NDArray[np.int64]]] = deque()

    def add(self, loss: torch.Tensor, rows: NDArray[np.int64]) -> _Bad | None:
        self._unchecked.append((loss, rows))
        return self._check(down_to=self._lag_steps)

    def rest(self) -> _Bad | None:
        return self._check(down_to=0)

    def _check(self, down_to: int) -> _Bad | None:
        while len(self._unchecked) > down_to:
            loss, rows = self._unchecked.popleft()
            if not math.isfinite(float(loss)):
                return _Bad(f"loss became {float(loss)}", rows)
        return None


def _explained(error: Exception, config: ResolvedConfig) -> TrainingError | None:
    """What a user can do about an error of torch; None where that is unknown."""
    text = str(error)
    out_of_memory = ("not enough memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in text for words in out_of_memory):
        return _out_of_memory(config)
    if "Expected more than 1 value per channel" in text:
        return TrainingError(
            f"{config.model.name} normalises over the batch, and cannot learn from one image at a time at "
            f"data.image_size={config.data.image_size}.",
            fix=f"raise train.batch_size (it is {config.train.batch_size}), or choose another model.name.",
        )
    return None


def _out_of_memory(config: ResolvedConfig) -> TrainingError:
    return TrainingError(
        f"Memory ran out with train.batch_size={config.train.batch_size} at data.image_size={config.data.image_size}.",
        fix="halve train.batch_size, lower data.image_size, or choose a smaller model.name.",
    )


def _epoch_sentence(row: dict[str, Any], num_epochs: int, is_best: bool) -> str:
    figures = "  ".join(
        f"{side} loss {row[f'{side}_loss']:.3f} accuracy {row[f'{side}_accuracy']:.3f} F1 {row[f'{side}_macro_f1']:.3f}"
        for side in ("train", "val")
    )
    rate = f"{row['images_per_second']:,.0f} images/s, {row['seconds']:.0f} s"
    return f"epoch {row['epoch']:>3}/{num_epochs}  {figures}  {rate}{'  best' if is_best else ''}"
