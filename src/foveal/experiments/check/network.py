"""Whether a network can learn at all: what its last layer does to the logits, and whether anything in it is dead."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from foveal.experiments.check.data import CheckData
from foveal.experiments.check.result import Checked
from foveal.training.rehearsal import Integers, Rehearsal, trace

NAME = "network"
_NUM_STEPS, _NUM_IMAGES = 5, 64
_MOST_DEAD = 0.5
_EXPECTED = "logits of both signs that differ from image to image, and gradients for all that trains."
_LIMITING: tuple[type[nn.Module], ...] = (
    *(nn.ReLU, nn.ReLU6, nn.Softmax, nn.Softplus, nn.Sigmoid, nn.Tanh),
    *(nn.Hardtanh, nn.Hardsigmoid, nn.GELU, nn.SiLU, nn.Hardswish, nn.ELU),
)
"""What may follow every layer but the last."""
_RELU = (nn.ReLU, nn.ReLU6)

Floats = NDArray[np.float64]


def look_at_network(rehearsal: Rehearsal, data: CheckData, lr: float) -> Checked:
    """Train for a few gentle steps, and look at logits, units and gradients.

    A few steps, and not one: a last layer that starts at zero, as some networks have it, gives equal logits and no
    gradient below it before the first step, and is healthy.

    Args:
        rehearsal: what to train; begun anew here.
        data: images to try it on.
        lr: a gentle learning rate.
    """
    rehearsal.begin(lr)
    gradients = _Gradients(rehearsal.classifier)
    for rows in rehearsal.stream(data.train, _NUM_STEPS):
        rehearsal.step(rows, data.labels[rows], lr)
        gradients.look()
    rows = data.train[:: max(1, data.num_train // _NUM_IMAGES)][:_NUM_IMAGES]
    logits = rehearsal.logits(rows, data.train)
    last, num_dead, num_units = _units(rehearsal, rows)
    figures: dict[str, Any] = {
        "share_of_negative_logits": float((logits < 0).mean()),
        "share_of_zero_logits": float((logits == 0).mean()),
        "share_of_dead_relu_channels": num_dead / num_units if num_units else None,
        "num_tensors_without_gradient": len(gradients.zero),
        "num_tensors_that_train": gradients.num_tensors,
        "last_module": last,
    }
    faults = [*_faults_of_logits(logits, last), *_faults_of_gradients(gradients)]
    if num_units and num_dead / num_units > _MOST_DEAD:
        change = "lower optim.lr, check the pixels' normalisation, or take a network with batch norm."
        faults.append((f"{num_dead:,} of {num_units:,} channels behind a ReLU are zero for every image.", change))
    if faults:
        found = " ".join(each for each, _ in faults)
        change = " Then: ".join(each for _, each in faults)
        return Checked(NAME, "fault", found, _EXPECTED, change, figures)
    if gradients.zero and len(gradients.zero) > gradients.num_tensors // 4:
        some = ", ".join(gradients.zero[:3])
        found = f"{len(gradients.zero)} of {gradients.num_tensors} tensors that should train get no gradient: {some}."
        change = "freeze them (model.freeze), or look why the loss does not reach them."
        return Checked(NAME, "warning", found, _EXPECTED, change, figures)
    found = f"Logits lie between {logits.min():.2g} and {logits.max():.2g}; "
    found += (
        f"{gradients.num_tensors - len(gradients.zero)} of {gradients.num_tensors} tensors that train get gradients."
    )
    return Checked(NAME, "ok", found, _EXPECTED, "", figures)


class _Gradients:
    """The largest gradient that each tensor that trains has had."""

    def __init__(self, classifier: nn.Module) -> None:
        self._parameters = [(name, part) for name, part in classifier.named_parameters() if part.requires_grad]
        self._largest = np.zeros(len(self._parameters))

    def look(self) -> None:
        seen = [0.0 if part.grad is None else float(part.grad.abs().max()) for _, part in self._parameters]
        self._largest = np.where(np.isfinite(self._largest), np.maximum(self._largest, seen), self._largest)

    @property
    def num_tensors(self) -> int:
        return len(self._parameters)

    @property
    def zero(self) -> list[str]:
        """Names of those that have had none."""
        return [name for (name, _), most in zip(self._parameters, self._largest, strict=True) if most == 0.0]

    @property
    def not_finite(self) -> list[str]:
        """Names of those with an infinite gradient, or NaN."""
        is_bad = ~np.isfinite(self._largest)
        return [name for (name, _), bad in zip(self._parameters, is_bad, strict=True) if bad]


def _faults_of_logits(logits: Floats, last: str) -> list[tuple[str, str]]:
    """What is wrong with logits, each with what to change."""
    if not np.isfinite(logits).all():
        return [("Logits are not finite.", "lower optim.lr, or set train.precision=fp32.")]
    found = []
    zeros = f"no logit is negative and {(logits == 0).mean():.0%} are exactly 0"
    if (logits >= 0).all() and (logits == 0).any():
        found.append(
            (
                f"A ReLU follows the last layer{f', {last}' if last else ''}: {zeros}.",
                "leave out the ReLU after the last layer: cross-entropy wants plain outputs, and a class at 0 gets no "
                "gradient.",
            )
        )
    elif (logits >= 0).all() and np.allclose(logits.sum(axis=1), 1.0, atol=1e-3):
        found.append(
            (
                "A softmax follows the last layer: each image's outputs are positive and add up to 1.",
                "leave out the softmax: the loss has one of its own.",
            )
        )
    elif last:
        found.append(
            (
                f"The last thing that the network does is {last}, which limits the logits.",
                "leave it out: cross-entropy wants the last linear layer's plain outputs.",
            )
        )
    spread = float(np.ptp(logits, axis=0).max()) if len(logits) > 1 else 1.0
    if spread <= 1e-6 * max(1.0, float(np.abs(logits).max())):
        found.append(
            (
                "The logits are the same for every image.",
                "nothing of the image reaches the last layer: look for what is dead, constant or multiplied by zero.",
            )
        )
    return found


def _faults_of_gradients(gradients: _Gradients) -> list[tuple[str, str]]:
    if gradients.not_finite:
        some = ", ".join(gradients.not_finite[:3])
        return [(f"Gradients are not finite: {some}.", "set train.precision=fp32 and train.clip_norm=1.")]
    if gradients.num_tensors == 0:
        return [("Nothing in the network trains.", "set model.freeze=none, or all, which leaves the head to train.")]
    if len(gradients.zero) == gradients.num_tensors:
        return [("All gradients are zero.", "the loss does not depend on the weights: look for what is cut off.")]
    return []


def _units(rehearsal: Rehearsal, rows: Integers) -> tuple[str, int, int]:
    """What follows the last layer where nothing should, and the dead channels behind ReLUs, of how many."""
    pixels = torch.from_numpy(rehearsal.images[rows]).to(rehearsal.device).float().div_(255.0)
    alive: dict[tuple[str, int], torch.Tensor] = {}

    def note(name: str) -> Any:
        def keep(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            del module, inputs
            # Channels are the second axis of maps and the last of tokens and vectors.
            axes = [axis for axis in range(output.ndim) if axis != (1 if output.ndim == 4 else output.ndim - 1)]
            is_alive = output.amax(dim=axes) > 0
            key = (name, len(is_alive))
            alive[key] = is_alive | alive[key] if key in alive else is_alive

        return keep

    relus = [(name, module) for name, module in rehearsal.classifier.named_modules() if isinstance(module, _RELU)]
    handles = [module.register_forward_hook(note(name)) for name, module in relus]
    try:
        called, logits = trace(rehearsal.classifier, pixels)
    finally:
        for handle in handles:
            handle.remove()
    dead = [int((~is_alive).sum()) for is_alive in alive.values()]
    done = [each for each in called if not isinstance(each[1], nn.Identity | nn.Flatten | nn.Dropout)]
    name, module, output = done[-1]
    is_limited = isinstance(module, _LIMITING) and output.shape == logits.shape
    last = f"{type(module).__name__} ({name})" if is_limited else ""
    return last, sum(dead), sum(len(is_alive) for is_alive in alive.values())
