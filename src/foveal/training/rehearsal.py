"""Rehearsals: short trainings of one classifier on a few images in memory, each from the same weights.

Augmentation, dropout and mixing are off and the loss is the plain cross-entropy, so that what comes out is a matter of
the network, the optimiser, the learning rate and the labels alone.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from foveal.data.batches import derive_seed
from foveal.inference import to_unit
from foveal.model.build import Classifier
from foveal.model.freeze import apply_freeze, freeze_at, set_training_mode
from foveal.training.config import ResolvedConfig
from foveal.training.optim import make_optimizer

Integers = NDArray[np.int64]

_NORM_BATCHES = 6
_DROPPED = ("p", "prob", "drop_prob", "drop_rate", "attn_drop_rate", "drop_path_rate")
_NORMS = (nn.modules.batchnorm._BatchNorm,)


class Rehearsal:
    """A classifier with images to try it on.

    Args:
        classifier: as the training would start with it; moved to the training's device. What `model.freeze` says is
            frozen here, and what is frozen already stays so.
        images: uint8 [n, 3, side, side], 0..255, the squares that the model sees.
        labels: int64 [n], class numbers.
        config: for the optimiser, the clipping, the precision, the device and the seed.
        batch_size: images a step.
    """

    def __init__(
        self,
        classifier: Classifier,
        images: NDArray[np.uint8],
        labels: Integers,
        config: ResolvedConfig,
        *,
        batch_size: int,
    ) -> None:
        self.classifier, self.images, self.labels, self.config = classifier, images, labels, config
        self.batch_size, self.device = batch_size, torch.device(config.train.device)
        # In float16 gradients need scaling, and a rehearsal is too short to find the scale.
        self._autocast = torch.bfloat16 if config.train.precision == "bf16" else None
        classifier.to(self.device)
        self._start = {name: value.clone() for name, value in classifier.state_dict().items()}
        self._optimizer: torch.optim.Optimizer | None = None
        self._factors: list[float] = []
        self._training_modes: list[tuple[nn.Module, bool]] = []

    def begin(self, lr: float, *, fresh_head: bool = False) -> None:
        """Put the starting weights back, with a new optimiser.

        Args:
            lr: the learning rate; parts that have a lower one keep their proportion.
            fresh_head: whether the last layer starts at random, whatever it came with.
        """
        self.classifier.load_state_dict(self._start)
        if fresh_head and (head := last_layer(self.classifier, self._pixels(np.arange(min(2, len(self.images)))))):
            torch.manual_seed(derive_seed(self.config.seed, 21))
            _randomise(head)
        # The floor of a schedule may lie above the rates of a range test, and has no say here.
        optim = self.config.optim.model_copy(update={"lr": lr, "min_lr": 0.0})
        self._optimizer = make_optimizer(self.classifier, optim)
        self._factors = [float(group["lr"]) / lr for group in self._optimizer.param_groups]

    def step(self, rows: Integers, labels: Integers, lr: float) -> tuple[float, torch.Tensor]:
        """Train on one batch.

        Args:
            rows: int64 [b], places among the images.
            labels: int64 [b], what to call them.
            lr: the learning rate of this step.

        Returns:
            The loss before the step, and the logits, float32 [b, classes].
        """
        if self._optimizer is None:
            raise RuntimeError("begin() comes before step()")
        self._optimizer.zero_grad(set_to_none=True)
        loss, logits = self._forward(rows, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.config.train.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.classifier.parameters(), self.config.train.clip_norm)
        for group, factor in zip(self._optimizer.param_groups, self._factors, strict=True):
            group["lr"] = lr * factor
        self._optimizer.step()
        return float(loss.detach()), logits.detach()

    def first_loss(self, rows: Integers) -> float:
        """The cross-entropy of the weights as they are, over those images, as a training step would compute it."""
        losses = []
        with torch.no_grad(), _kept_norms(self.classifier):
            for part in self.parts(rows):
                loss, _ = self._forward(part, self.labels[part])
                losses.append(float(loss) * len(part))
        return sum(losses) / len(rows)

    def short_training(self, rows: Integers, labels: Integers, lr: float, num_steps: int, *, first_step: int) -> None:
        """Train for some steps, the learning rate rising over the first tenth and falling to nothing after it.

        Args:
            rows: int64 [n], places to draw from, pass after pass.
            labels: int64 [n], what to call them.
            lr: the highest rate.
            num_steps: how many steps.
            first_step: where in the stream of batches to begin.
        """
        rise = max(1, num_steps // 10)
        for number, part in enumerate(self._stream(len(rows), first_step, num_steps)):
            share = (number + 1) / rise if number < rise else (num_steps - number) / (num_steps - rise + 1)
            self.step(rows[part], labels[part], lr * min(1.0, share))

    def logits(self, rows: Integers, settled_on: Integers | None = None) -> NDArray[np.float64]:
        """What the classifier says when it is not training, float64 [n, classes].

        Args:
            rows: int64 [n], places among the images.
            settled_on: int64 [m], places of training images on which the batch norms' statistics are taken anew: those
                that were averaged while the weights moved lag behind after a few steps.
        """
        if settled_on is not None:
            self._settle_norms(settled_on)
        self.classifier.eval()
        found = []
        with torch.inference_mode():
            for part in self.parts(rows):
                with self._mixed():
                    found.append(self.classifier(self._pixels(part)).float().cpu().numpy().astype(np.float64))
        return np.concatenate(found)

    def parts(self, rows: Integers) -> list[Integers]:
        """The rows in batches."""
        return [rows[start : start + self.batch_size] for start in range(0, len(rows), self.batch_size)]

    @contextmanager
    def undone(self) -> Iterator[None]:
        """At the end of the block, the classifier is as it was: weights, mode, dropout, gradients and random state."""
        was_training = [(module, module.training) for module in self.classifier.modules()]
        trained = [(part, part.requires_grad) for part in self.classifier.parameters()]
        with torch.random.fork_rng(), _without_dropout(self.classifier):
            try:
                if (freeze := freeze_at(self.config.model, 0)) != "none":
                    apply_freeze(self.classifier, freeze)
                yield
            finally:
                self.classifier.load_state_dict(self._start)
                self.classifier.zero_grad(set_to_none=True)
                for module, mode in was_training:
                    module.training = mode
                for part, is_trained in trained:
                    part.requires_grad_(is_trained)
                self._optimizer, self._training_modes = None, []

    def _forward(self, rows: Integers, labels: Integers) -> tuple[torch.Tensor, torch.Tensor]:
        self._set_training()
        if len(rows) == 1:  # over one image there is nothing to normalise
            rows, labels = np.repeat(rows, 2), np.repeat(labels, 2)
        with self._mixed():
            logits = self.classifier(self._pixels(rows)).float()
        return functional.cross_entropy(logits, torch.from_numpy(labels).to(self.device)), logits

    def _pixels(self, rows: Integers) -> torch.Tensor:
        pixels = torch.from_numpy(self.images[rows]).contiguous(memory_format=torch.channels_last)
        return to_unit(pixels, self.device)

    def _mixed(self) -> Any:
        return torch.autocast(self.device.type, self._autocast) if self._autocast else nullcontext()

    def _stream(self, num_rows: int, first_step: int, num_steps: int) -> Iterator[Integers]:
        """Batches of places, shuffled anew in every pass: a pure function of the seed and the step."""
        size = min(self.batch_size, num_rows)
        in_pass = max(1, num_rows // size)
        for step in range(first_step, first_step + num_steps):
            draw = np.random.default_rng(derive_seed(self.config.seed, 22, step // in_pass))
            start = (step % in_pass) * size
            yield draw.permutation(num_rows)[start : start + size]

    def stream(self, rows: Integers, num_steps: int) -> Iterator[Integers]:
        """Batches of those rows, shuffled anew in every pass."""
        return (rows[part] for part in self._stream(len(rows), 0, num_steps))

    def _set_training(self) -> None:
        """Training mode for what trains; which that is takes a pass to find out, so it is found out once."""
        if not self._training_modes:
            set_training_mode(self.classifier)
            self._training_modes = [(module, module.training) for module in self.classifier.modules()]
        for module, mode in self._training_modes:
            module.training = mode

    def _settle_norms(self, rows: Integers) -> None:
        self._set_training()
        norms = [module for module in self.classifier.modules() if isinstance(module, _NORMS) and module.training]
        momenta = [norm.momentum for norm in norms]
        if not norms:
            return
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean over the batches
        with torch.no_grad():
            for part in self.parts(rows)[:_NORM_BATCHES]:
                with self._mixed():
                    self.classifier(self._pixels(part if len(part) > 1 else np.repeat(part, 2)))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def last_layer(classifier: nn.Module, pixels: torch.Tensor) -> nn.Module | None:
    """The layer with weights that makes the logits; None where no layer has as many outputs as there are logits."""
    called, logits = trace(classifier, pixels)
    for _, module, _ in reversed(called):
        weight = getattr(module, "weight", None)
        if isinstance(weight, torch.Tensor) and weight.ndim >= 2 and weight.shape[0] == logits.shape[1]:
            return module
    return None


def trace(
    classifier: nn.Module, pixels: torch.Tensor
) -> tuple[list[tuple[str, nn.Module, torch.Tensor]], torch.Tensor]:
    """Run without training, and note what every innermost module gave, in the order of the calls.

    Args:
        classifier: on the pixels' device.
        pixels: float32 [n, 3, side, side], 0..1.
    """
    called: list[tuple[str, nn.Module, torch.Tensor]] = []
    was_training = classifier.training
    classifier.eval()

    def note(name: str) -> Any:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            del inputs
            if isinstance(output, torch.Tensor):
                called.append((name, module, output))

        return keep

    handles = [
        module.register_forward_hook(note(name))
        for name, module in classifier.named_modules()
        if not any(True for _ in module.children())
    ]
    try:
        with torch.no_grad():
            logits = classifier(pixels)
    finally:
        for handle in handles:
            handle.remove()
        classifier.train(was_training)
    return called, logits


def _randomise(layer: nn.Module) -> None:
    """A small random start, whatever kind of layer it is: the first loss is then near that of an even guess."""
    with torch.no_grad():
        weight, bias = layer.weight, getattr(layer, "bias", None)
        if isinstance(weight, torch.Tensor):
            weight.normal_(0.0, 0.5 / math.sqrt(weight[0].numel()))
        if isinstance(bias, torch.Tensor):
            bias.zero_()


@contextmanager
def _without_dropout(classifier: nn.Module) -> Iterator[None]:
    """Shares that are dropped are nothing within the block, of torch's layers and of timm's, and by function."""
    kept: list[tuple[nn.Module, str, float]] = []
    for module in classifier.modules():
        is_dropping = "drop" in type(module).__name__.lower()
        for name in _DROPPED:
            value = vars(module).get(name)
            if isinstance(value, float) and value > 0.0 and (is_dropping or name.endswith("rate")):
                kept.append((module, name, value))
                setattr(module, name, 0.0)
    try:
        yield
    finally:
        for module, name, value in kept:
            setattr(module, name, value)


@contextmanager
def _kept_norms(classifier: nn.Module) -> Iterator[None]:
    """Running statistics are as before at the end of the block."""
    kept = {name: value.clone() for name, value in classifier.named_buffers()}
    try:
        yield
    finally:
        for name, value in classifier.named_buffers():
            value.copy_(kept[name])
