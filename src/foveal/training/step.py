"""One optimiser step: augment, mix, forwards, backwards, move the weights."""

import gc
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from foveal.data.batches import Batch, derive_seed
from foveal.model.build import Classifier
from foveal.model.freeze import apply_every_freeze, apply_freeze, freeze_at, freeze_sentence, set_training_mode
from foveal.training.averaging import WeightAverage
from foveal.training.config import ResolvedConfig
from foveal.training.losses import make_criterion, weighted_mean
from foveal.training.mishaps import is_out_of_memory
from foveal.training.mixing import Mixing
from foveal.training.optim import make_optimizer
from foveal.training.processes import Processes
from foveal.training.schedules import make_schedule
from foveal.training.state import Position, TrainingData

AUXILIARY_WEIGHT = 0.4
"""What an auxiliary head's loss counts beside the main one's (Szegedy et al. 2015 take 0.3, the Inception-v3 recipes
0.4)."""


@dataclass(frozen=True)
class Stepped:
    """What a step has computed of this process's share of the images.

    Attributes:
        loss: the mean over them, a scalar on the device; of the labels alone, where there is a teacher.
        logits: float32 [n, classes], before the step moved the weights.
        targets: int64 [n], or float32 [n, classes] where images were mixed.
        weight: what they count in the mean over all, a scalar.
    """

    loss: torch.Tensor
    logits: torch.Tensor
    targets: torch.Tensor
    weight: torch.Tensor


class TrainingNetwork(nn.Module):
    """A classifier as training runs it: with the logits of its auxiliary head, where it has one.

    Args:
        classifier: what is trained.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits of the main and of the auxiliary head.

        Args:
            pixels: float32 [n, 3, side, side], 0..1.
        """
        return self.classifier.training_logits(pixels)


class Stepper:
    """Holds all that a step moves: weights, optimiser, schedule and the weights' average.

    Args:
        classifier: trained in place.
        data: whose steps they are.
        config: the recipe.
        processes: which share the images of a step.
        tell: takes a sentence for the user.
    """

    def __init__(
        self,
        classifier: Classifier,
        data: TrainingData,
        config: ResolvedConfig,
        processes: Processes,
        tell: Callable[[str], None],
    ) -> None:
        self.classifier, self.config, self.processes, self._tell = classifier, config, processes, tell
        self._holds_features = data.head is not None
        self.fabric = processes.make_fabric(config)
        self.device: torch.device = self.fabric.device
        classifier.to(memory_format=torch.channels_last)
        counts = np.bincount(data.train_labels, minlength=len(data.class_names))
        self.criterion = make_criterion(config.train, data.class_names, counts).to(self.device)
        self.teacher = None if data.teacher is None else data.teacher.to(self.device)
        self.mixing = Mixing(config.train, len(data.class_names))
        self.augmentation = data.augmentation.to(self.device)
        # Over all that ever trains; what is frozen at first has no gradient, and optimisers pass it over.
        apply_every_freeze(classifier, config.model)
        is_fused = config.train.device == "cuda" and config.train.precision != "fp16"
        self.optimizer = make_optimizer(classifier, config.optim, fused=is_fused)
        self.schedule = make_schedule(
            self.optimizer, config.optim, steps_per_epoch=len(data.train), num_epochs=config.train.epochs
        )
        network: nn.Module = data.head or TrainingNetwork(classifier)
        if config.train.compile:
            network = torch.compile(network)  # type: ignore[assignment]
        self.network, self._fabric_optimizer = self.fabric.setup(network, self.optimizer)
        self._freeze = ""
        self.average = None if config.train.ema is None else WeightAverage(classifier.net, config.train.ema)

    def begin_epoch(self, epoch: int) -> None:
        """Set what trains in this epoch, counted from 0, and everything into its mode of training."""
        freeze = freeze_at(self.config.model, epoch)
        if freeze != self._freeze:
            apply_freeze(self.classifier, freeze)
            if freeze != "none" or self._freeze:
                self._tell(f"model.freeze={freeze}: {freeze_sentence(self.classifier)}.")
            self._freeze = freeze
        set_training_mode(self.classifier)

    def step(self, batch: Batch, position: Position) -> Stepped:
        """Do one step.

        Args:
            batch: this process's share of the images.
            position: where the run stands; the parts of later steps are kept there.
        """
        while True:
            try:
                stepped = self._gradients(batch, position)
                break
            except (RuntimeError, MemoryError) as error:
                if not (is_out_of_memory(error) and self._may_halve(batch, position)):
                    raise
            self._halve(batch, position)
        if self.config.train.clip_norm is not None:
            self.fabric.clip_gradients(
                self.network, self._fabric_optimizer, max_norm=self.config.train.clip_norm, error_if_nonfinite=False
            )
        self._fabric_optimizer.step()
        if self.average is not None:
            self.average.update(self.classifier.net)
        # Before the schedule moves on: after the last step there is no next one, and it would say anything.
        position.lr = max(float(group["lr"]) for group in self.optimizer.param_groups)
        self.schedule.step()
        return stepped

    def averaged(self) -> AbstractContextManager[object]:
        """While it holds, the network has the weights that count: their average, where one is kept."""
        return nullcontext() if self.average is None else self.average.swapped(self.classifier.net)

    def state(self) -> dict[str, Any]:
        """All that a checkpoint must hold of it."""
        auxiliary = self.classifier.auxiliary
        return {
            "model": self.classifier.net.state_dict(),
            "auxiliary": {} if auxiliary is None else auxiliary.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "precision": self.fabric.strategy.precision.state_dict(),
            "average": {} if self.average is None else self.average.state_dict(),
        }

    def restore(self, content: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.classifier.net.load_state_dict(content["model"])
        if self.classifier.auxiliary is not None:
            self.classifier.auxiliary.load_state_dict(content["auxiliary"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.schedule.load_state_dict(content["schedule"])
        self.fabric.strategy.precision.load_state_dict(content["precision"])
        if self.average is not None:
            self.average.load_state_dict(content["average"])

    def _gradients(self, batch: Batch, position: Position) -> Stepped:
        """The gradient of the mean loss over all images of the step, in parts and over all processes."""
        whose = (self.processes.rank,) if self.processes.is_many else ()
        torch.manual_seed(derive_seed(self.config.seed, 2, position.epoch, position.step, *whose))
        # All images before the first part, so that their draws and what they count do not depend on the parts.
        images, targets = self._inputs(batch)
        own = self.criterion.weights(targets).sum()
        total = self.processes.sum(own)
        # DDP takes the mean over the processes, and the sum is wanted; where no image counts, nothing is learnt.
        scale = self.processes.num_ranks * (total > 0) / total.clamp(min=torch.finfo(torch.float32).tiny)
        self._fabric_optimizer.zero_grad(set_to_none=True)
        losses, logits = [], []
        parts = range(position.num_parts)
        pairs = zip(images.tensor_split(len(parts)), targets.tensor_split(len(parts)), strict=True)
        for number, (some, theirs) in enumerate(pair for pair in pairs if len(pair[0])):
            is_last = number == min(len(parts), len(batch)) - 1
            with self.fabric.no_backward_sync(self.network, enabled=self.processes.is_many and not is_last):
                found, auxiliary = self._logits(some)
                loss = self.criterion(found, theirs).sum()
                whole = loss if auxiliary is None else loss + AUXILIARY_WEIGHT * self.criterion(auxiliary, theirs).sum()
                if self.teacher is not None:
                    with self.fabric.autocast():
                        kept = self.teacher(some)
                    # What an image counts for its label it counts for the teacher as well.
                    whole = whole + (self.teacher.distance(found, kept) * self.criterion.weights(theirs)).sum()
                self.fabric.backward(whole * scale)
            losses.append(loss.detach())
            logits.append(found.detach())
        return Stepped(weighted_mean(torch.stack(losses).sum(), own), torch.cat(logits), targets, own)

    def _inputs(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """What the network is given, and what it is to say: class numbers, or shares of classes where images mix."""
        images = batch.images.to(self.device, non_blocking=True)
        labels = batch.labels.to(self.device, non_blocking=True)
        if self._holds_features:
            return images, labels
        images = self.augmentation(images)
        return self.mixing(images, labels) if self.mixing.is_on else (images, labels)

    def _logits(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        found = self.network(images)
        main, auxiliary = found if isinstance(found, tuple) else (found, None)
        return main.float(), None if auxiliary is None else auxiliary.float()

    def _may_halve(self, batch: Batch, position: Position) -> bool:
        # With others in the middle of the same step there is no way back.
        return self.config.train.halve_batch and not self.processes.is_many and position.num_parts < len(batch)

    def _halve(self, batch: Batch, position: Position) -> None:
        """Compute the same step in twice as many parts; nothing has been moved yet."""
        self.optimizer.zero_grad(set_to_none=True)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        position.num_parts = min(len(batch), 2 * position.num_parts)
        self._tell(
            f"Memory ran out: from here on each step is computed in {position.num_parts} parts of "
            f"{-(-len(batch) // position.num_parts)} images; but for batch norms and dropout it stays the same step."
        )
