"""The policies none, light, medium and heavy: all geometry in one resampling, all light in one matrix."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.nn import functional

from foveal.data.augment_colour import lit
from foveal.data.augment_config import AugmentConfig, FusedPolicyName
from foveal.data.augment_geometry import PADDING
from foveal.data.augment_ways import Operation, Way, mirrored, ways_by_turns

OperationName = Literal[
    "turn", "shift", "zoom", "mirror", "upside down", "light", "saturation", "blur", "grey", "erasing"
]
OPERATION_NAMES: tuple[OperationName, ...] = get_args(OperationName)


@dataclass(frozen=True)
class _Strength:
    """Ranges of one policy, within which every image draws uniformly; the last four are probabilities."""

    turn_degrees: float = 0.0
    shift: float = 0.0
    zoom: tuple[float, float] = (1.0, 1.0)
    light: float = 0.0
    saturation: float = 0.0
    mirror: float = 0.0
    blur: float = 0.0
    grey: float = 0.0
    erasing: float = 0.0


_STRENGTHS: dict[FusedPolicyName, _Strength] = {
    "none": _Strength(),
    "light": _Strength(turn_degrees=8.0, shift=0.04, zoom=(0.92, 1.12), light=0.15),
    "medium": _Strength(15.0, 0.08, (0.85, 1.25), light=0.25, saturation=0.25, mirror=0.5, erasing=0.25),
    "heavy": _Strength(25.0, 0.12, (0.75, 1.4), 0.4, 0.4, mirror=0.5, blur=0.3, grey=0.1, erasing=0.25),
}
_BLUR_SIGMA_PX = (0.1, 1.5)
_ERASED_SHARE = (0.02, 0.15)


class FusedPolicy(Way):
    """A policy as a module.

    All geometry is one resampling and all light one colour matrix, so that an image is read and written twice however
    many operations a policy has; what does not fit this form is kornia's and comes after.

    Args:
        config: the policy.
        policy: its name.
        side_px: side of the images that go in.
        size_px: side of the images that come out, at most `side_px`.
    """

    def __init__(self, config: AugmentConfig, policy: FusedPolicyName, *, side_px: int, size_px: int) -> None:
        super().__init__(side_px, size_px)
        base = _STRENGTHS[policy]
        mirror = base.mirror if config.horizontal_flip is None else config.horizontal_flip
        self._strength = replace(base, mirror=mirror)
        self._vertical_flip = config.vertical_flip
        self._is_plain, self._padding = policy == "none", PADDING[config.filled_with]
        self._level = 0.5 if config.filled_with == "grey" else 0.0
        self.after = nn.Sequential(*_kornia_operations(base))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Augment a batch."""
        pixels = images.float().div_(255.0)
        if self._is_plain:
            return mirrored(mirrored(self.centre(pixels), self._strength.mirror, 3), self._vertical_flip, 2)
        pixels = self._light(self._resample(pixels))
        if len(self.after):
            pixels = self.after(pixels)
        return pixels.clamp_(0.0, 1.0)

    @property
    def operations(self) -> tuple[Operation, ...]:
        """What the policy does, in the order in which it is done; what it does not do is left out."""
        strength = self._strength
        low, high = strength.zoom
        shift = 0.0 if self._is_plain else self._reach() / 2.0
        every = (
            Operation("turn", f"up to ±{strength.turn_degrees:g}°", float(strength.turn_degrees > 0.0)),
            Operation("shift", f"up to ±{round(100 * shift, 1):g} %", float(shift > 0.0)),
            Operation("zoom", f"{low:g} to {high:g}", float(high > low)),
            Operation("mirror", "", strength.mirror),
            Operation("upside down", "", self._vertical_flip),
            Operation("light", f"up to ±{100 * strength.light:g} %", float(strength.light > 0.0)),
            Operation("saturation", f"up to ±{100 * strength.saturation:g} %", float(strength.saturation > 0.0)),
            Operation("blur", f"sigma up to {_BLUR_SIGMA_PX[1]:g} px", strength.blur),
            Operation("grey", "", strength.grey),
            Operation("erasing", f"up to {100 * _ERASED_SHARE[1]:g} %", strength.erasing),
        )
        return tuple(operation for operation in every if operation.share > 0.0)

    def alone(self, name: str, images: torch.Tensor) -> torch.Tensor:
        """One operation of the policy and nothing else."""
        pixels, strength, num_images = images.float().div_(255.0), self._strength, len(images)
        centre = self.centre(pixels)
        first, second = ways_by_turns(num_images)
        still, unlit = _Moves.none(num_images), torch.ones(num_images)
        by_zoom = torch.where(first > 0, strength.zoom[1], strength.zoom[0])
        ways: dict[str, Callable[[], torch.Tensor]] = {
            "turn": lambda: self._moved(pixels, replace(still, degrees=first * strength.turn_degrees)),
            "shift": lambda: self._moved(
                pixels, replace(still, shift=self._reach() * torch.stack([first, second], dim=1))
            ),
            "zoom": lambda: self._moved(pixels, replace(still, zoom=by_zoom)),
            "mirror": lambda: centre.flip(3),
            "upside down": lambda: centre.flip(2),
            "light": lambda: lit(centre, 1.0 + first * strength.light, 1.0 + second * strength.light, unlit),
            "saturation": lambda: lit(centre, unlit, unlit, 1.0 + first * strength.saturation),
            "blur": lambda: _blur(1.0, (_BLUR_SIGMA_PX[1], _BLUR_SIGMA_PX[1]))(centre),
            "grey": lambda: _grey(1.0)(centre),
            "erasing": lambda: _erasing(1.0, (_ERASED_SHARE[1], _ERASED_SHARE[1]))(centre),
        }
        return ways[name]().clamp(0.0, 1.0)

    def _reach(self) -> float:
        """How far the middle may be shifted, in units of half sides of what goes in."""
        # Half of what the crop leaves over may be shifted away besides the policy's own share.
        return 2.0 * self._strength.shift + (1.0 - self.size_px / self.side_px)

    def _resample(self, pixels: torch.Tensor) -> torch.Tensor:
        """Mirror, turn, zoom, shift and crop, as one affine map from the result's pixels back to the source's."""
        strength, num_images, reach = self._strength, len(pixels), self._reach()
        moves = _Moves(
            degrees=_draw(num_images, -strength.turn_degrees, strength.turn_degrees),
            zoom=_draw(num_images, *strength.zoom),
            mirror_x=1.0 - 2.0 * (torch.rand(num_images) < strength.mirror).float(),
            mirror_y=1.0 - 2.0 * (torch.rand(num_images) < self._vertical_flip).float(),
            shift=_draw(num_images * 2, -reach, reach).view(num_images, 2),
        )
        return self._moved(pixels, moves)

    def _moved(self, pixels: torch.Tensor, moves: "_Moves") -> torch.Tensor:
        angle = moves.degrees * (torch.pi / 180.0)
        scale = (self.size_px / self.side_px) / moves.zoom
        theta = torch.empty(len(pixels), 2, 3)
        theta[:, 0, 0] = scale * torch.cos(angle) * moves.mirror_x
        theta[:, 0, 1] = -scale * torch.sin(angle) * moves.mirror_y
        theta[:, 1, 0] = scale * torch.sin(angle) * moves.mirror_x
        theta[:, 1, 1] = scale * torch.cos(angle) * moves.mirror_y
        theta[:, :, 2] = moves.shift
        size = [len(pixels), 3, self.size_px, self.size_px]
        grid = functional.affine_grid(theta.to(pixels.device), size, align_corners=False)
        source = pixels - self._level if self._level else pixels
        found = functional.grid_sample(source, grid, mode="bilinear", padding_mode=self._padding, align_corners=False)
        return found + self._level if self._level else found

    def _light(self, pixels: torch.Tensor) -> torch.Tensor:
        """Brightness, contrast and saturation, each image by its own draw."""
        strength, num_images = self._strength, len(pixels)
        brightness = _draw(num_images, 1.0 - strength.light, 1.0 + strength.light)
        contrast = _draw(num_images, 1.0 - strength.light, 1.0 + strength.light)
        saturation = _draw(num_images, 1.0 - strength.saturation, 1.0 + strength.saturation)
        return lit(pixels, brightness, contrast, saturation)


@dataclass(frozen=True)
class _Moves:
    """Where each image of a batch goes: float32 [n], and [n, 2] in units of half sides for the shift."""

    degrees: torch.Tensor
    zoom: torch.Tensor
    mirror_x: torch.Tensor
    mirror_y: torch.Tensor
    shift: torch.Tensor

    @classmethod
    def none(cls, num_images: int) -> "_Moves":
        one = torch.ones(num_images)
        return cls(torch.zeros(num_images), one, one, one, torch.zeros(num_images, 2))


def _draw(num_draws: int, low: float, high: float) -> torch.Tensor:
    """Uniform draws on the CPU, so that every device sees the same."""
    return torch.rand(num_draws) * (high - low) + low


def _kornia_operations(strength: _Strength) -> list[nn.Module]:
    """What one resampling and one matrix cannot do."""
    operations = []
    if strength.blur:
        operations.append(_blur(strength.blur, _BLUR_SIGMA_PX))
    if strength.grey:
        operations.append(_grey(strength.grey))
    if strength.erasing:
        operations.append(_erasing(strength.erasing, _ERASED_SHARE))
    return operations


def _blur(share: float, sigma_px: tuple[float, float]) -> nn.Module:
    module: nn.Module = _kornia().RandomGaussianBlur(kernel_size=(5, 5), sigma=sigma_px, p=share)
    return module


def _grey(share: float) -> nn.Module:
    module: nn.Module = _kornia().RandomGrayscale(p=share)
    return module


def _erasing(share: float, area: tuple[float, float]) -> nn.Module:
    """A black rectangle somewhere in the image.

    Source: Z. Zhong et al., "Random Erasing Data Augmentation", AAAI 2020.
    """
    module: nn.Module = _kornia().RandomErasing(scale=area, p=share)
    return module


def _kornia() -> Any:
    import kornia.augmentation

    return kornia.augmentation
