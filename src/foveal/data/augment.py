"""Augmentation of a whole batch on the training device, each image with its own draw.

The draws come from torch's global generator, which the training loop seeds from (seed, epoch, step): a resumed run
repeats them.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from foveal.config import Section

PolicyName = Literal["none", "light", "medium", "heavy"]


class AugmentConfig(Section):
    """What is done to training images, never to those that validate or test."""

    policy: PolicyName = "light"
    """none; light: small shifts, turns, zooms and changes of light, right for nearly every domain; medium: more of
    the same, mirroring and erasing; heavy: strong, with blur and grey."""
    horizontal_flip: float | None = Field(default=None, ge=0.0, le=1.0)
    """Probability of mirroring left to right; not given, the policy decides (light 0, medium and heavy 0.5).
    Wrong for digits, letters and left-or-right questions."""
    vertical_flip: float = Field(default=0.0, ge=0.0, le=1.0)
    """Probability of mirroring top to bottom; right for cells, satellites and other pictures without an up."""


@dataclass(frozen=True)
class _Strength:
    """Ranges of one policy; every image draws uniformly within them."""

    turn_degrees: float
    shift: float
    zoom: tuple[float, float]
    light: float
    saturation: float
    mirror: float


_STRENGTHS: dict[PolicyName, _Strength] = {
    "light": _Strength(turn_degrees=8.0, shift=0.04, zoom=(0.92, 1.12), light=0.15, saturation=0.0, mirror=0.0),
    "medium": _Strength(turn_degrees=15.0, shift=0.08, zoom=(0.85, 1.25), light=0.25, saturation=0.25, mirror=0.5),
    "heavy": _Strength(turn_degrees=25.0, shift=0.12, zoom=(0.75, 1.4), light=0.4, saturation=0.4, mirror=0.5),
}
_LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey, ITU-R BT.601, as Pillow has them (torchvision rounds red to 0.2989)."""


class Augmentation(nn.Module):
    """A policy as a module.

    All geometry is one resampling and all light one colour matrix, so that an image is read and written twice however
    many operations a policy has; what does not fit this form is kornia's and comes after.

    Args:
        config: the policy.
        side_px: side of the images that go in.
        size_px: side of the images that come out, at most `side_px`.
    """

    def __init__(self, config: AugmentConfig, *, side_px: int, size_px: int) -> None:
        super().__init__()
        self._side_px, self._size_px = side_px, size_px
        base = _STRENGTHS.get(config.policy) or _Strength(0.0, 0.0, (1.0, 1.0), 0.0, 0.0, 0.0)
        mirror = base.mirror if config.horizontal_flip is None else config.horizontal_flip
        self._strength = replace(base, mirror=mirror)
        self._vertical_flip = config.vertical_flip
        self._is_plain = config.policy == "none"
        self.after = nn.Sequential(*_kornia_operations(config))

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Augment a batch.

        Args:
            images: uint8 [n, 3, side, side], 0..255.

        Returns:
            float32 [n, 3, size, size], 0..1, in channels-last memory.
        """
        pixels = images.float().div_(255.0)
        if self._is_plain:
            start = (self._side_px - self._size_px) // 2
            pixels = pixels[:, :, start : start + self._size_px, start : start + self._size_px]
            pixels = _mirrored(_mirrored(pixels, self._strength.mirror, 3), self._vertical_flip, 2)
        else:
            pixels = self._light(self._resample(pixels))
            if len(self.after):
                pixels = self.after(pixels)
            pixels = pixels.clamp_(0.0, 1.0)
        return pixels.contiguous(memory_format=torch.channels_last)

    def _resample(self, pixels: torch.Tensor) -> torch.Tensor:
        """Mirror, turn, zoom, shift and crop, as one affine map from the result's pixels back to the source's."""
        strength, num_images = self._strength, len(pixels)
        angle = _draw(num_images, -strength.turn_degrees, strength.turn_degrees) * (torch.pi / 180.0)
        scale = (self._size_px / self._side_px) / _draw(num_images, *strength.zoom)
        mirror_x = 1.0 - 2.0 * (torch.rand(num_images) < strength.mirror).float()
        mirror_y = 1.0 - 2.0 * (torch.rand(num_images) < self._vertical_flip).float()
        # Half of what the crop leaves over may be shifted away besides the policy's own share, in units of half sides.
        reach = 2.0 * strength.shift + (1.0 - self._size_px / self._side_px)
        theta = torch.empty(num_images, 2, 3)
        theta[:, 0, 0] = scale * torch.cos(angle) * mirror_x
        theta[:, 0, 1] = -scale * torch.sin(angle) * mirror_y
        theta[:, 1, 0] = scale * torch.sin(angle) * mirror_x
        theta[:, 1, 1] = scale * torch.cos(angle) * mirror_y
        theta[:, :, 2] = _draw(num_images * 2, -reach, reach).view(num_images, 2)
        size = [num_images, 3, self._size_px, self._size_px]
        grid = functional.affine_grid(theta.to(pixels.device), size, align_corners=False)
        return functional.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)

    def _light(self, pixels: torch.Tensor) -> torch.Tensor:
        """Brightness, contrast about each image's mean grey, and saturation, as one matrix an image.

        Source: the definitions of torchvision's adjust_brightness, adjust_contrast and adjust_saturation.
        """
        strength, num_images = self._strength, len(pixels)
        brightness = _draw(num_images, 1.0 - strength.light, 1.0 + strength.light)
        contrast = _draw(num_images, 1.0 - strength.light, 1.0 + strength.light)
        saturation = _draw(num_images, 1.0 - strength.saturation, 1.0 + strength.saturation)
        luma = torch.tensor(_LUMA)
        mix = saturation[:, None, None] * torch.eye(3) + (1.0 - saturation)[:, None, None] * luma.expand(3, 3)
        matrix = ((brightness * contrast)[:, None, None] * mix).to(pixels.device)
        mean_grey = pixels.mean(dim=(2, 3)) @ luma.to(pixels.device)
        offset = (brightness * (1.0 - contrast)).to(pixels.device) * mean_grey
        flat = torch.baddbmm(offset[:, None, None].expand(-1, 3, 1), matrix, pixels.flatten(2))
        return flat.view_as(pixels)


def _mirrored(pixels: torch.Tensor, probability: float, axis: int) -> torch.Tensor:
    """Each image turned over along an axis, or not."""
    if not probability:
        return pixels
    is_mirrored = (torch.rand(len(pixels)) < probability).to(pixels.device)
    return torch.where(is_mirrored[:, None, None, None], pixels.flip(axis), pixels)


def _draw(num_draws: int, low: float, high: float) -> torch.Tensor:
    """Uniform draws on the CPU, so that every device sees the same."""
    return torch.rand(num_draws) * (high - low) + low


def _kornia_operations(config: AugmentConfig) -> list[Any]:
    """What one resampling and one matrix cannot do."""
    if config.policy not in {"medium", "heavy"}:
        return []
    import kornia.augmentation as kornia

    erasing = kornia.RandomErasing(scale=(0.02, 0.15), p=0.25)
    if config.policy == "medium":
        return [erasing]
    blur = kornia.RandomGaussianBlur(kernel_size=(5, 5), sigma=(0.1, 1.5), p=0.3)
    return [blur, kornia.RandomGrayscale(p=0.1), erasing]
