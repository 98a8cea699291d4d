"""What every way to augment has in common: policies, lists of operations, automatic policies."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import nn


@dataclass(frozen=True)
class Operation:
    """One thing that is done to images, in words.

    Attributes:
        name: what it is; no two of an augmentation have the same.
        reach: how far it goes at most; empty where there is no more or less of it.
        share: of the images, 0..1.
    """

    name: str
    reach: str
    share: float = 1.0

    def __str__(self) -> str:
        part = Fraction(self.share).limit_denominator(100)
        how_many = "every image" if part == 1 else f"{part.numerator} in {part.denominator} images"
        return f"{self.reach}, {how_many}" if self.reach and self.share < 1.0 else self.reach or how_many


class Way(nn.Module, ABC):
    """A way to augment a batch.

    Args:
        side_px: side of the images that go in.
        size_px: side of the images that come out, at most `side_px`.
    """

    def __init__(self, side_px: int, size_px: int) -> None:
        super().__init__()
        self.side_px, self.size_px = side_px, size_px

    @abstractmethod
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """From uint8 [n, 3, side, side] to float32 [n, 3, size, size], 0..1, drawing from torch's CPU generator."""

    @property
    @abstractmethod
    def operations(self) -> tuple[Operation, ...]:
        """What is done, in its order; what is never done is left out."""

    @abstractmethod
    def alone(self, name: str, images: torch.Tensor) -> torch.Tensor:
        """One operation at its strongest, done to every image, in the shapes of `forward`."""

    def centre(self, pixels: torch.Tensor) -> torch.Tensor:
        """The square that evaluation sees."""
        start = (pixels.shape[3] - self.size_px) // 2
        return pixels[:, :, start : start + self.size_px, start : start + self.size_px]


def ways_by_turns(num_images: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A way for each of two draws, 1 or -1, float32 [n], so that four images see all their ends."""
    numbers = torch.arange(num_images)
    return 1.0 - 2.0 * (numbers % 2), 1.0 - 2.0 * (numbers // 2 % 2)


def mirrored(pixels: torch.Tensor, probability: float, axis: int) -> torch.Tensor:
    """Each image turned over along an axis, or not, by its own draw; without a probability nothing is drawn."""
    if not probability:
        return pixels
    is_mirrored = (torch.rand(len(pixels)) < probability).to(pixels.device)
    return torch.where(is_mirrored[:, None, None, None], pixels.flip(axis), pixels)
