"""Augmentation of a whole batch on the training device, each image with its own draw.

The draws come from torch's global generator, which the training loop seeds from (seed, epoch, step): a resumed run
repeats them.
"""

import torch
from torch import nn

from foveal.data.augment_automatic import AUTOMATIC
from foveal.data.augment_config import AugmentConfig
from foveal.data.augment_listed import ListedOperations
from foveal.data.augment_policies import FusedPolicy
from foveal.data.augment_ways import Operation, Way

__all__ = ["Augmentation", "Operation"]


class Augmentation(nn.Module):
    """A policy, or a list of operations, as a module.

    With `augment.albumentations` the pipeline has been run on each image before, and this module only makes a batch of
    the results.

    Args:
        config: the section.
        side_px: side of the images that go in.
        size_px: side of the images that come out, at most `side_px`.

    Raises:
        ConfigError: an operation does not fit images of this size.
    """

    def __init__(self, config: AugmentConfig, *, side_px: int, size_px: int) -> None:
        super().__init__()
        self.way = _way(config, side_px, size_px)

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Augment a batch.

        Args:
            images: uint8 [n, 3, side, side], 0..255; with policy none also [n, 3, size, size].

        Returns:
            float32 [n, 3, size, size], 0..1, in channels-last memory.
        """
        pixels: torch.Tensor = self.way(images)
        return pixels.contiguous(memory_format=torch.channels_last)

    @property
    def operations(self) -> tuple[Operation, ...]:
        """What is done, in the order in which it is done; what is never done is left out."""
        return self.way.operations

    @torch.no_grad()
    def alone(self, name: str, images: torch.Tensor) -> torch.Tensor:
        """One operation and nothing else, done to every image as strongly as it may be.

        Where an operation goes two ways, as to the left and to the right, the images of the batch take them by turns.

        Args:
            name: of one of `operations`.
            images: uint8 [n, 3, side, side], 0..255.

        Returns:
            float32 [n, 3, size, size], 0..1.
        """
        return self.way.alone(name, images).clamp(0.0, 1.0)


def _way(config: AugmentConfig, side_px: int, size_px: int) -> Way:
    if config.operations:
        return ListedOperations(config.operations, config.filled_with, side_px=side_px, size_px=size_px)
    match config.policy:
        case "none" | "light" | "medium" | "heavy":
            return FusedPolicy(config, config.policy, side_px=side_px, size_px=size_px)
        case _:
            return AUTOMATIC[config.policy](config, side_px=side_px, size_px=size_px)
