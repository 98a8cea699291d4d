"""Training: reads as the algorithm. Lightning's Fabric brings devices and precision; the loop is ours.

Every random draw of a step comes from (seed, epoch, step), so that a resumed run needs no generator state to do exactly
what an uninterrupted one does: the order, the windows, the augmentation and the dropout are all derived again.
"""

import math
import time
from collections import deque
from collections.abc import Sequence
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
        history: one row an epoch, as in metrics.csv.
    """

    epoch: int = 0
    step: int = 0
    best: list[float] = field(default_factory=list)
    best_epoch: int = 0
    finished: bool = False
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
    loop = _Loop(classifier, data, config, run, progress)
    if resume:
        loop.resume()
    try:
        with StopRequest() as stop:
            loop.run_epochs(stop)
    except torch.OutOfMemoryError as error:
        raise _out_of_memory(config) from error
    except RuntimeError as error:
        if "not enough memory" in str(error) or "can't allocate memory" in str(error):
            raise _out_of_memory(config) from error
        raise
    return loop.position


class _Loop:
    """The state of one training."""

    def __init__(
        self, classifier: Classifier, data: TrainingData, config: ResolvedConfig, run: RunFolder, progress: Progress
    ) -> None:
        from lightning.fabric import Fabric

        self.classifier, self.data, self.config, self.run, self.progress = classifier, data, config, run, progress
        self.position = Position()
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
        self.position = Position(**content["position"])
        if content["running"]:
            self.running.restore(content["running"])

    def run_epochs(self, stop: StopRequest) -> None:
        total = self.config.train.epochs * len(self.data.train)
        with self.progress.bar("Training", total, "steps") as bar:
            bar.advance(self.position.epoch * len(self.data.train) + self.position.step)
            while not self.position.finished:
                self.run_epoch(bar, stop)

    def run_epoch(self, bar: Bar, stop: StopRequest) -> None:
        position, num_steps = self.position, len(self.data.train)
        started, waited, num_images = time.perf_counter(), 0.0, 0
        self.model.train()
        watch = _LossWatch(self.data.paths, self.position.epoch + 1)
        batches = self.data.train.epoch(position.epoch, first_step=position.step)
        asked = time.perf_counter()
        for batch in batches:
            waited += time.perf_counter() - asked
            loss = self.train_step(batch)
            watch.check(loss, batch.rows, lag_steps=0 if self.device.type == "cpu" else NOT_FINITE_LAG_STEPS)
            position.step += 1
            num_images += len(batch)
            rate = num_images / (time.perf_counter() - started)
            bar.advance(1, note=f"epoch {position.epoch + 1}/{self.config.train.epochs}, {rate:,.0f} images/s")
            if stop.signal_number is not None and position.step < num_steps:
                batches.close()
                self.stop(stop.signal_number)
            if time.monotonic() - self.saved_at > 60.0 * self.config.train.checkpoint_minutes:
                watch.check_all()
                self.save_last()
            asked = time.perf_counter()
        watch.check_all()
        self.end_epoch(num_images, time.perf_counter() - started, waited)
        if stop.signal_number is not None and not self.position.finished:
            self.stop(stop.signal_number)

    def train_step(self, batch: Batch) -> torch.Tensor:
        torch.manual_seed(derive_seed(self.config.seed, 2, self.position.epoch, self.position.step))
        pixels = self.augmentation(batch.images.to(self.device, non_blocking=True))
        labels = batch.labels.to(self.device, non_blocking=True)
        logits = self.model(pixels)
        loss: torch.Tensor = self.criterion(logits.float(), labels)
        self.fabric_optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(loss)
        self.fabric_optimizer.step()
        self.schedule.step()
        self.running.update(logits.detach(), labels, loss)
        return loss.detach()

    def validate(self) -> dict[str, Any]:
        running = RunningMetrics(len(self.data.class_names), self.device)
        autocast = AUTOCAST[self.config.train.precision]
        for batch, logits in predict_logits(self.classifier, self.data.val, self.device, autocast):
            running.update(logits, batch.labels.to(self.device))
        return running.row("val_")

    def end_epoch(self, num_images: int, seconds: float, waited: float) -> None:
        position = self.position
        row = {
            "epoch": position.epoch + 1,
            **self.running.row("train_"),
            **self.validate(),
            "lr": float(self.schedule.get_last_lr()[0]),
            "seconds": round(seconds, 3),
            "images_per_second": round(num_images / seconds, 1),
            "data_wait_share": round(waited / seconds, 4),
        }
        position.history.append(row)
        monitor = self.config.train.early_stopping.monitor
        sign = -1.0 if monitor.endswith("loss") else 1.0
        # A figure that is not defined, such as top 3 of three classes, must not stop the training: the loss decides.
        figure = [sign * float(row.get(monitor, 0.0) or 0.0), -float(row["val_loss"])]
        if math.isfinite(figure[1]) and (not position.best or figure > position.best):
            position.best, position.best_epoch = figure, position.epoch + 1
            checkpoint.save(
                self.run.checkpoints / checkpoint.BEST,
                {"model": self.classifier.net.state_dict(), "epoch": position.best_epoch, "row": row},
            )
        position.epoch, position.step = position.epoch + 1, 0
        patience = self.config.train.early_stopping.patience
        out_of_patience = patience is not None and position.epoch - position.best_epoch >= patience
        position.finished = position.epoch >= self.config.train.epochs or out_of_patience
        self.running = RunningMetrics(len(self.data.class_names), self.device)
        self.save_last()
        columns = list(dict.fromkeys(key for past in position.history for key in past))
        write_csv(self.run.metrics, columns, [[past.get(key, "") for key in columns] for past in position.history])
        self.run.log_event("epoch", **row)
        self.progress.say(_epoch_sentence(row, self.config.train.epochs, position.best_epoch == position.epoch))

    def save_last(self) -> None:
        content = {
            "model": self.classifier.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "position": vars(self.position),
            "running": self.running.state() if self.position.step else {},
        }
        checkpoint.save_last(self.run.checkpoints, content)
        self.saved_at = time.monotonic()

    def stop(self, signal_number: int) -> None:
        self.save_last()
        where = f"epoch {self.position.epoch + 1}, step {self.position.step} of {len(self.data.train)}"
        self.run.log_event("interrupted", signal=signal_number, epoch=self.position.epoch + 1, step=self.position.step)
        raise InterruptedRunError(
            f"Stopped at {where}; everything is saved.",
            signal_number=signal_number,
            fix=f"go on with: foveal train --out {self.run.path} --resume",
        )


class _LossWatch:
    """Stops within a few steps of a loss that is not finite, without making a GPU wait at every step."""

    def __init__(self, paths: Sequence[Path], epoch: int) -> None:
        self._paths, self._epoch = paths, epoch
        self._unchecked: deque[tuple[torch.Tensor, NDArray[np.int64]]] = deque()

    def check(self, loss: torch.Tensor, rows: NDArray[np.int64], *, lag_steps: int) -> None:
        self._unchecked.append((loss, rows))
        while len(self._unchecked) > lag_steps:
            self._check_oldest()

    def check_all(self) -> None:
        while self._unchecked:
            self._check_oldest()

    def _check_oldest(self) -> None:
        loss, rows = self._unchecked.popleft()
        if math.isfinite(float(loss)):
            return
        raise TrainingError(
            f"The loss became {float(loss)} in epoch {self._epoch}; training stopped, and the last good checkpoint is "
            f"kept. The batch held these {len(rows)} files:",
            problems=[str(self._paths[row]) for row in rows],
            fix="lower optim.lr (a tenth is a good try), use train.precision=fp32, and look at the files above.",
        )


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
