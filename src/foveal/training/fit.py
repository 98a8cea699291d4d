"""Training: reads as the algorithm. Lightning's Fabric brings devices and precision; the loop is ours.

Every random draw of a step comes from (seed, epoch, step), so that a resumed run needs no generator state to do exactly
what an uninterrupted one does: the order, the windows, the augmentation and the dropout are all derived again.
"""

import math
import shlex
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from foveal.data.batches import Batch
from foveal.errors import InterruptedRunError
from foveal.files import write_csv
from foveal.inference import predict_logits
from foveal.model.build import Classifier
from foveal.model.devices import AUTOCAST
from foveal.progress import Bar, Progress
from foveal.run_folder import RunFolder
from foveal.training import checkpoint
from foveal.training.config import ResolvedConfig
from foveal.training.epoch_metrics import RunningMetrics
from foveal.training.logs import MAX_IMAGES, Logs
from foveal.training.mishaps import Bad, LossWatch, bad_weights, explained, not_finite
from foveal.training.processes import Processes
from foveal.training.resources import Resources, advice
from foveal.training.signals import StopRequest
from foveal.training.state import Position, TrainingData
from foveal.training.step import Stepper
from foveal.training.watch import Watch

NOT_FINITE_LAG_STEPS = 2
LEAST_SECONDS_FOR_ADVICE = 30.0
"""Of training, below which nothing can be gained."""


def fit(
    classifier: Classifier,
    data: TrainingData,
    config: ResolvedConfig,
    run: RunFolder,
    progress: Progress,
    *,
    resume: bool = False,
    processes: Processes | None = None,
    logs: Logs | None = None,
    after_epoch: Callable[[Mapping[str, Any]], None] | None = None,
) -> Position:
    """Train to the last epoch, or until patience ends; `checkpoints/best.ckpt` holds the best epoch's weights.

    Args:
        classifier: with its starting weights; trained in place.
        data: what to go through; this process's share where there are several.
        config: with nothing left to find out.
        run: where checkpoints, metrics and events go.
        progress: where to show it.
        resume: whether to go on from `checkpoints/last.ckpt`.
        processes: which train together; this one alone if not given.
        logs: where figures and images go besides; nowhere if not given.
        after_epoch: told each epoch's row once its checkpoint is written; an exception ends the training.

    Raises:
        TrainingError: the loss is not finite, or memory ran out.
        InterruptedRunError: Ctrl-C or SIGTERM; a checkpoint was written.
        ArtifactError: `resume`, and there is no checkpoint that can be read.
    """
    try:
        loop = _Loop(classifier, data, config, run, progress, processes or Processes(), logs or Logs(), after_epoch)
        if resume:
            loop.resume()
        loop.show_images()
        with StopRequest() as stop:
            loop.run_epochs(stop)
    except (RuntimeError, MemoryError, ValueError) as error:
        if found := explained(error, config):
            raise found from error
        raise
    return loop.position


class _Loop:
    """The state of one training."""

    def __init__(
        self,
        classifier: Classifier,
        data: TrainingData,
        config: ResolvedConfig,
        run: RunFolder,
        progress: Progress,
        processes: Processes,
        logs: Logs,
        after_epoch: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        self.classifier, self.data, self.config, self.run, self.progress = classifier, data, config, run, progress
        self.processes, self.logs, self.after_epoch = processes, logs, after_epoch
        # No more than it takes, where all images together are less than a step.
        self.position = Position(num_parts=-(-data.train.batch_size // config.train.batch_size))
        self.request = StopRequest()
        self.stepper = Stepper(classifier, data, config, processes, self.note)
        self.device = self.stepper.device
        self.running = RunningMetrics(len(data.class_names), self.device)
        self.watch = Watch(data.class_names, steps_per_epoch=len(data.train))
        self.val_confusion: NDArray[np.int64] | None = None
        self.resources = Resources(self.device)
        self.frozen: checkpoint.Frozen | None = None
        self.saved_at = time.monotonic()

    def tell(self, sentence: str) -> None:
        self.note(sentence, event="warning")

    def note(self, sentence: str, event: str = "note") -> None:
        self.progress.say(sentence)
        if self.processes.is_leader:
            self.run.log_event(event, message=sentence)

    def resume(self) -> None:
        content, warning = checkpoint.load_last(self.run.checkpoints)
        if warning:
            self.tell(warning)
        self.stepper.restore(content)
        self.position = Position(**content["position"])
        if self.position.watch:
            self.watch.restore(self.position.watch)
        if content["running"] and self.processes.is_leader:
            # It holds the sums of all processes, and is to be counted once.
            self.running.restore(content["running"])
        if not self.processes.is_leader:
            return
        if content.get("frozen"):
            self.frozen = checkpoint.Frozen(self.run.checkpoints, self.classifier.net, content["frozen"])
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
        self.tell_resources()

    def show_images(self) -> None:
        """Send some images as training sees them to the logs; the draws of every step are seeded anew."""
        if not self.logs.names or self.data.head is not None:
            return
        with closing(self.data.train.epoch(0)) as batches:
            batch = next(batches)
        torch.manual_seed(self.config.seed)
        seen = self.stepper.augmentation(batch.images[:MAX_IMAGES].to(self.device))
        pixels = (seen * 255.0).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        names = [self.data.class_names[label] for label in batch.labels[:MAX_IMAGES].tolist()]
        self.logs.images("training images", pixels, names)

    def tell_resources(self) -> None:
        """Say what the training took of the machine, and what to change."""
        usage = self.resources.to_dict()
        if not self.processes.is_leader or usage["data_wait_share"] is None:
            return
        self.run.log_event("resources", **usage)
        peaks = [(usage["peak_ram_mib"], "of memory"), (usage["peak_gpu_mib"], "of the GPU's")]
        told = " and ".join(f"{mib:,.0f} MiB {whose}" for mib, whose in peaks if mib)
        waited = f"Waited for images {usage['data_wait_share']:.1%} of the time"
        self.progress.say(f"{waited}; at its peak it took {told}." if told else f"{waited}.")
        if sum(row["seconds"] for row in self.position.history) < LEAST_SECONDS_FOR_ADVICE:
            return
        for sentence in advice(usage, self.config, num_train=len(self.data.train_labels)):
            self.progress.say(sentence)
            self.run.log_event("advice", message=sentence)

    def run_epoch(self, bar: Bar) -> None:
        position = self.position
        self.stepper.begin_epoch(position.epoch)
        losses = LossWatch(lag_steps=0 if self.device.type == "cpu" else NOT_FINITE_LAG_STEPS)
        rows = np.empty(0, dtype=np.int64)
        with closing(self.data.train.epoch(position.epoch, first_step=position.step)) as batches:
            mark = time.perf_counter()
            for batch in batches:
                waited = time.perf_counter() - mark
                rows = batch.rows
                self.refuse_bad(losses.add(self.train_step(batch), rows))
                took = time.perf_counter() - mark
                position.step += 1
                position.waited_seconds += waited
                position.seconds += took
                if position.epoch or self.config.train.epochs == 1:
                    # The first epoch reads files for the first time, and waits for them once.
                    self.resources.step(waited_seconds=waited, seconds=took)
                rate = position.step * self.data.train.batch_size / position.seconds
                bar.advance(1, note=f"epoch {position.epoch + 1}/{self.config.train.epochs}, {rate:,.0f} images/s")
                if self.is_due():
                    self.refuse_bad(losses.rest() or bad_weights(self.moving(), rows))
                    self.save_last()
                    self.stop_if_asked()
                mark = time.perf_counter()
        self.refuse_bad(losses.rest() or bad_weights(self.moving(), rows))
        self.end_epoch()
        self.stop_if_asked()

    def moving(self) -> list[nn.Parameter]:
        """The weights that train in this epoch."""
        return [parameter for parameter in self.classifier.parameters() if parameter.requires_grad]

    def train_step(self, batch: Batch) -> torch.Tensor:
        stepped = self.stepper.step(batch, self.position)
        self.running.update(stepped.logits, stepped.targets, stepped.loss, stepped.weight)
        return stepped.loss

    def is_due(self) -> bool:
        """Whether a checkpoint is to be written now; all processes come to the same answer."""
        due = time.monotonic() - self.saved_at > 60.0 * self.config.train.checkpoint_minutes
        asked = self.request.signal_number or 0
        if self.processes.is_many:
            words = [due and self.processes.is_leader, asked == signal.SIGINT, asked == signal.SIGTERM]
            due, is_interrupted, is_terminated = (
                self.processes.sum(torch.tensor(words, dtype=torch.int64)).bool().tolist()
            )
            if is_interrupted or is_terminated:
                asked = self.request.signal_number = int(signal.SIGTERM if is_terminated else signal.SIGINT)
        return due or asked > 0

    def validate(self) -> dict[str, Any]:
        running = RunningMetrics(len(self.data.class_names), self.device)
        autocast = AUTOCAST[self.config.train.precision]
        with self.stepper.averaged():
            self.processes.share_buffers(self.classifier.net)
            for batch, logits in predict_logits(
                self.data.head or self.classifier, self.data.val, self.device, autocast
            ):
                running.update(logits, batch.labels.to(self.device))
                if self.request.signal_number is not None and not self.processes.is_many:
                    break
        if self.request.signal_number is not None and not self.processes.is_many:
            # All steps of the epoch are done and none is lost: what goes on begins by validating again.
            self.save_last()
            self.stop_if_asked()
        running = running.reduce(self.processes.sum)
        self.val_confusion = running.confusion
        return running.row("val_")

    def end_epoch(self) -> None:
        position, seconds = self.position, max(self.position.seconds, 1e-9)
        row: dict[str, Any] = {
            "epoch": position.epoch + 1,
            **self.running.reduce(self.processes.sum).row("train_"),
            **self.validate(),
            "lr": position.lr,
            "seconds": round(seconds, 3),
            "images_per_second": round(position.step * self.data.train.batch_size / seconds, 1),
            "data_wait_share": round(position.waited_seconds / seconds, 4),
        }
        if not math.isfinite(row["val_loss"]):
            raise self.not_finite(f"validation loss became {row['val_loss']}")
        row = self.processes.agree(row)
        position.history.append(row)
        self.judge(row)
        warnings = [] if self.val_confusion is None else self.watch_over(row, self.val_confusion)
        position.epoch, position.step, position.seconds, position.waited_seconds = position.epoch + 1, 0, 0.0, 0.0
        patience = self.config.train.early_stopping.patience
        out_of_patience = patience is not None and position.epoch - position.best_epoch >= patience
        position.finished = position.epoch >= self.config.train.epochs or out_of_patience
        self.running = RunningMetrics(len(self.data.class_names), self.device)
        self.save_last()
        if not self.processes.is_leader:
            return
        self.write_metrics()
        self.run.log_event("epoch", **row)
        self.progress.say(_epoch_sentence(row, self.config.train.epochs, position.best_epoch == position.epoch))
        for sentence in warnings:
            self.tell(sentence)
        if self.after_epoch is not None:
            self.after_epoch(row)

    def watch_over(self, row: dict[str, Any], confusion: NDArray[np.int64]) -> list[str]:
        """What the figures of an epoch give to worry about."""
        majority_share = float(confusion.sum(axis=1).max() / max(1, confusion.sum()))
        found = self.watch.observe(row, confusion, majority_share)
        self.position.watch = self.watch.state()
        return found

    def judge(self, row: dict[str, Any]) -> None:
        """Keep the weights of the best epoch so far, and let the schedule know how good this one was."""
        position, monitor = self.position, self.config.train.early_stopping.monitor
        sign = -1.0 if monitor.endswith("loss") else 1.0
        # A figure that is not defined, such as top 3 of three classes, must not stop the training: the loss decides.
        figure = [sign * float(row.get(monitor) or 0.0), -float(row["val_loss"])]
        self.stepper.schedule.end_epoch(figure[0] if row.get(monitor) is not None else figure[1])
        if position.best and figure <= position.best:
            return
        position.best, position.best_epoch = figure, position.epoch + 1
        if self.processes.is_leader:
            with self.stepper.averaged():
                checkpoint.save(
                    self.run.checkpoints / checkpoint.BEST,
                    {"model": self.classifier.net.state_dict(), "epoch": position.best_epoch, "row": row},
                    self.kept_apart(),
                )

    def write_metrics(self) -> None:
        history = self.position.history
        columns = list(dict.fromkeys(key for past in history for key in past))
        for row in history:
            self.logs.epoch(row)
        if history:
            write_csv(self.run.metrics, columns, [[past.get(key, "") for key in columns] for past in history])

    def save_last(self) -> None:
        running = self.running.reduce(self.processes.sum).state() if self.position.step else {}
        if self.processes.is_leader:
            content = {**self.stepper.state(), "position": vars(self.position), "running": running}
            checkpoint.save_last(self.run.checkpoints, content, self.kept_apart())
        self.saved_at = time.monotonic()

    def kept_apart(self) -> checkpoint.Frozen | None:
        """The backbone, where it never moves: else it would be most of what an epoch writes, and of the epoch."""
        if self.frozen is None and self.data.head is not None:
            self.frozen = checkpoint.Frozen(self.run.checkpoints, self.classifier.net)
        return self.frozen

    def where(self) -> str:
        return f"epoch {self.position.epoch + 1}, step {self.position.step} of {len(self.data.train)}"

    def stop_if_asked(self) -> None:
        """End where a signal asked for it; a checkpoint was written just before."""
        signal_number = self.request.signal_number
        if signal_number is None:
            return
        where = "after the last epoch, before the evaluation" if self.position.finished else f"at {self.where()}"
        if self.processes.is_leader:
            epoch = self.position.epoch + 1
            self.run.log_event("interrupted", signal=signal_number, epoch=epoch, step=self.position.step)
        raise InterruptedRunError(
            f"Stopped {where}; everything is saved.",
            signal_number=signal_number,
            fix=f"go on with: foveal train --out {shlex.quote(str(self.run.path))} --resume",
        )

    def refuse_bad(self, bad: Bad | None) -> None:
        if bad is not None:
            raise self.not_finite(bad.what, [str(self.data.paths[row]) for row in bad.rows])

    def not_finite(self, what: str, files: list[str] | None = None) -> Exception:
        return not_finite(what, self.position.epoch, self.config, self.run.checkpoints, files or [])


def _epoch_sentence(row: dict[str, Any], num_epochs: int, is_best: bool) -> str:
    figures = "  ".join(
        f"{side} loss {row[f'{side}_loss']:.3f} accuracy {row[f'{side}_accuracy']:.3f} F1 {row[f'{side}_macro_f1']:.3f}"
        for side in ("train", "val")
    )
    rate = f"{row['images_per_second']:,.0f} images/s, {row['seconds']:.0f} s"
    return f"epoch {row['epoch']:>3}/{num_epochs}  {figures}  {rate}{'  best' if is_best else ''}"
