"""Optimisers and schedules, by torch's and timm's own factories."""

from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, OneCycleLR

from foveal.training.config import ResolvedOptimConfig


def make_optimizer(model: nn.Module, config: ResolvedOptimConfig) -> torch.optim.Optimizer:
    """The optimiser over all parameters that train; norms and biases without weight decay."""
    from timm.optim import create_optimizer_v2

    kwargs: dict[str, Any] = {"momentum": 0.9} if config.name == "sgd" else {}
    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        model, opt=config.name, lr=config.lr, weight_decay=config.weight_decay, filter_bias_and_bn=True, **kwargs
    )
    return optimizer


def make_schedule(optimizer: torch.optim.Optimizer, config: ResolvedOptimConfig, num_steps: int) -> LRScheduler:
    """The learning rate by step."""
    if config.schedule == "constant":
        return ConstantLR(optimizer, factor=1.0, total_iters=0)
    # Of up to four steps a quarter is none, by which torch would divide; and it needs three to go up and down at all.
    share = 0.25 if num_steps > 4 else 0.5
    return OneCycleLR(optimizer, max_lr=config.lr, total_steps=max(3, num_steps), pct_start=share)
