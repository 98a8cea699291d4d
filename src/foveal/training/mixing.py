"""Mixup and CutMix: batches whose images and labels are blended."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from foveal.training.config import TrainConfig

Mixer = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class Mixing:
    """What `train.mixup`, `train.cutmix` and `train.mixing_share` ask for; torchvision's transforms do it.

    Each image is blended with the one before it in the batch, all by the same draw; batches are shuffled, so any
    pairing is as good. Every draw comes from torch's global CPU generator, so that every device sees the same (timm's
    Mixup takes numpy's, and refuses odd batches; kornia's gives pairs of labels, not shares). CutMix's shares of the
    labels are those of the areas, also where the rectangle reaches over the edge.

    Mix the whole batch of a step and then split it: parts that are mixed one by one are other images.

    Args:
        config: the shapes of the beta distributions and the share of the batches.
        num_classes: number of classes.

    Source: H. Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018; S. Yun et al., "CutMix", ICCV 2019.
    """

    def __init__(self, config: TrainConfig, num_classes: int) -> None:
        self._num_classes, self._share = num_classes, config.mixing_share
        self._mixers = _make_mixers(config, num_classes)

    @property
    def is_on(self) -> bool:
        """Whether any batch is mixed."""
        return bool(self._mixers)

    def __call__(self, pixels: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mix a batch, or leave it as it is, by a draw.

        Args:
            pixels: float [n, 3, h, w], on any device; not changed in place.
            labels: int64 [n], class numbers.

        Returns:
            The pixels, and the targets: float32 [n, classes], shares that add up to 1.
        """
        if self._mixers:
            # Both are drawn every time, so that the draws that follow do not depend on what is switched on.
            gate, choice = torch.rand(2).tolist()
            if gate < self._share:
                return self._mixers[int(choice * len(self._mixers))](pixels, labels)
        return pixels, functional.one_hot(labels, self._num_classes).float()


def _make_mixers(config: TrainConfig, num_classes: int) -> list[Mixer]:
    if not config.mixup and not config.cutmix:
        return []
    from torchvision.transforms import v2

    kinds: list[tuple[float, Any]] = [(config.mixup, v2.MixUp), (config.cutmix, v2.CutMix)]
    return [kind(alpha=float(alpha), num_classes=num_classes) for alpha, kind in kinds if alpha]
