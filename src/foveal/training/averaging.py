"""An exponential moving average of the weights, which is often better than the last weights themselves."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

Tensors = tuple[torch.Tensor, ...] | list[torch.Tensor]


class WeightAverage:
    """The average of a network's weights and running statistics over the steps; torch's AveragedModel holds it.

    The first update takes the weights as they are, and the t-th after it decays by min(decay, (1 + t) / (10 + t)), so
    that a short training is not dominated by its random start. Statistics of batch norms are averaged like weights,
    and counters are copied. What does not change, as frozen weights, stays equal bit for bit.

    Args:
        net: the network as the training starts, on its device; it is copied, not kept.
        decay: what the average keeps of itself at each step, once it is warm.

    Source: B. Polyak and A. Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992; the warm-up is
    that of TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self._decay = decay
        self._is_swapped = False
        self._averaged = AveragedModel(net, multi_avg_fn=self._blend, use_buffers=True)
        self._averaged.requires_grad_(False).eval()

    @property
    def module(self) -> nn.Module:
        """The network with the averaged weights, in evaluation mode."""
        return self._averaged.module

    @property
    def num_updates(self) -> int:
        """Steps that went into it."""
        return int(self._averaged.n_averaged)

    def update(self, net: nn.Module) -> None:
        """Take in the weights after a step.

        Args:
            net: the network, on the device it was on at the start.
        """
        self._refuse_swapped()
        self._averaged.update_parameters(net)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What a checkpoint must keep; tensors only."""
        self._refuse_swapped()
        return dict(self._averaged.state_dict())

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from `state`."""
        self._refuse_swapped()
        self._averaged.load_state_dict(state)

    @contextmanager
    def swapped(self, net: nn.Module) -> Iterator[nn.Module]:
        """Let `net` have the averaged weights for a while; it has its own again afterwards, also after an error.

        Values change places, not tensors, so that what holds on to the tensors (an optimiser, DDP, a compiled graph)
        does not notice. Within it the average has no state of its own: to save a checkpoint, leave first.

        Args:
            net: the network that is trained.
        """
        self._refuse_swapped()
        self._exchange(net)
        self._is_swapped = True
        try:
            yield net
        finally:
            self._exchange(net)
            self._is_swapped = False

    @torch.no_grad()
    def _exchange(self, net: nn.Module) -> None:
        for own, other in zip(_tensors(self.module), _tensors(net), strict=True):
            kept = own.clone()
            own.copy_(other)
            other.copy_(kept)

    @torch.no_grad()
    def _blend(self, averages: Tensors, currents: Tensors, num_averaged: torch.Tensor | int) -> None:
        """One update of all tensors of a type; `num_averaged` may be on a GPU, which must not be waited for."""
        del num_averaged
        if not averages[0].is_floating_point():
            for average, current in zip(averages, currents, strict=True):
                average.copy_(current)
            return
        decay = min(self._decay, (1 + self.num_updates) / (10 + self.num_updates))
        torch._foreach_lerp_(averages, currents, 1.0 - decay)

    def _refuse_swapped(self) -> None:
        if self._is_swapped:
            raise RuntimeError("the averaged weights are lent to the network; leave swapped() first")


def _tensors(net: nn.Module) -> Iterator[torch.Tensor]:
    return chain(net.parameters(), net.buffers())
