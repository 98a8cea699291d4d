"""How the learning rate goes: one value for every optimiser step, each part of the network keeping its own ratio."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from foveal.training.config import ResolvedOptimConfig

MOMENTUM_CYCLE = (0.85, 0.95)
"""Lowest and highest momentum of one_cycle, torch's own; momentum is low where the rate is high (Smith 2018)."""
_TOLERANCE_STEPS = 1e-6
"""What may be lost in multiplying epochs by steps."""


class Schedule:
    """The learning rates of one training, by torch's schedulers.

    Args:
        by_step: moves on at every step; with `plateau`, until the warm-up is over.
        plateau: moves on at the end of an epoch.
        warmup_steps: length of the warm-up before `plateau`.
    """

    def __init__(
        self, by_step: LRScheduler, plateau: ReduceLROnPlateau | None = None, warmup_steps: float = 0.0
    ) -> None:
        self._by_step, self._plateau, self._warmup_steps = by_step, plateau, warmup_steps

    def step(self) -> None:
        """Set the rates of the next step; call it after every step of the optimiser."""
        if self._plateau is not None and self._is_warm:
            return
        if self._by_step.last_epoch > 0:
            self._by_step.step()
            return
        with warnings.catch_warnings():
            # With scaled gradients (fp16) the first steps overflow and are left out, which torch takes for a mistake.
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            self._by_step.step()

    def end_epoch(self, figure: float) -> None:
        """Say how good the epoch was; a larger figure is better. Only plateau looks at it, once the warm-up is over."""
        if self._plateau is not None and self._is_warm:
            self._plateau.step(figure)

    @property
    def _is_warm(self) -> bool:
        return self._by_step.last_epoch >= self._warmup_steps - _TOLERANCE_STEPS

    def state_dict(self) -> dict[str, Any]:
        """What must be known to go on, beside the optimiser's state, which holds the rates: plain values."""
        return {
            "by_step": self._by_step.state_dict(),
            "plateau": {} if self._plateau is None else self._plateau.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._by_step.load_state_dict(state["by_step"])
        if self._plateau is not None:
            self._plateau.load_state_dict(state["plateau"])


def make_schedule(
    optimizer: torch.optim.Optimizer, config: ResolvedOptimConfig, *, steps_per_epoch: int, num_epochs: int
) -> Schedule:
    """The schedule of a training, with the first step's rates set.

    Args:
        optimizer: fresh, each group with its highest rate.
        config: the recipe.
        steps_per_epoch: optimiser steps in an epoch.
        num_epochs: of the whole training.
    """
    num_steps = steps_per_epoch * num_epochs
    if config.schedule == "one_cycle":
        return Schedule(_one_cycle(optimizer, config, num_steps))
    warmup_steps = config.warmup_epochs * steps_per_epoch
    factor = _factor_by_step(config, warmup_steps, steps_per_epoch, num_steps)
    plateau = None
    if config.schedule == "plateau":
        plateau = ReduceLROnPlateau(
            optimizer,
            mode="max",
            factor=config.factor,
            # Torch lowers the rate after one epoch more than its patience.
            patience=max(0, config.patience - 1),
            # Figures that are losses come as minus them, and a threshold relative to those would be on the wrong side.
            threshold=0.0,
            threshold_mode="abs",
            min_lr=[config.min_lr * group["lr"] / config.lr for group in optimizer.param_groups],
            eps=0.0,
        )
    return Schedule(LambdaLR(optimizer, factor), plateau, warmup_steps)


def _one_cycle(optimizer: torch.optim.Optimizer, config: ResolvedOptimConfig, num_steps: int) -> OneCycleLR:
    """Up over the first quarter, then down to nothing."""
    low, high = MOMENTUM_CYCLE
    return OneCycleLR(
        optimizer,
        max_lr=[float(group["lr"]) for group in optimizer.param_groups],
        # Of up to four steps a quarter is none, by which torch would divide; and it needs three to go up and down.
        total_steps=max(3, num_steps),
        pct_start=0.25 if num_steps > 4 else 0.5,
        cycle_momentum=_cycles_momentum(optimizer, config),
        base_momentum=low,
        max_momentum=high,
    )


def _cycles_momentum(optimizer: torch.optim.Optimizer, config: ResolvedOptimConfig) -> bool:
    """Whether momentum goes the other way than the rate: where nobody chose it, and the usual one is in the cycle.

    A method that was made with a quite different momentum, or with none, such as RMSprop, is left as it is.
    """
    if config.beta1 is not None or config.momentum is not None:
        return False
    betas = optimizer.defaults.get("betas")
    own = betas[0] if betas else optimizer.defaults.get("momentum")
    # Torch goes by the betas wherever there is such a key, even one without values.
    if "betas" in optimizer.defaults and not betas:
        return False
    return isinstance(own, float) and MOMENTUM_CYCLE[0] <= own <= MOMENTUM_CYCLE[1]


def _factor_by_step(
    config: ResolvedOptimConfig, warmup_steps: float, steps_per_epoch: int, num_steps: int
) -> Callable[[int], float]:
    """What the highest rate is multiplied by at each step, counted from 0.

    The warm-up rises evenly and reaches the highest rate in the first step after it; the other part begins there.
    """
    floor = min(1.0, config.min_lr / config.lr)
    cooling_steps = max(num_steps - warmup_steps, 1.0)
    steps_between = config.step_epochs * steps_per_epoch

    def factor(step: int) -> float:
        since = step - warmup_steps
        if since < -_TOLERANCE_STEPS:
            return (step + 1.0) / (warmup_steps + 1.0)
        if config.schedule == "cosine":
            share = min(1.0, max(0.0, since) / cooling_steps)
            return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * share))
        if config.schedule == "step":
            times = math.floor((since + _TOLERANCE_STEPS) / steps_between)
            return max(floor, float(config.factor**times))
        return 1.0

    return factor
