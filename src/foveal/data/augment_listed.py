"""An ordered list of operations, each done to its own draw of images.

Every operation turns uniform draws into its own numbers, so that the draws of a batch are the same whatever the
operations do with them. Turns, shifts and the like that follow each other directly are multiplied into one map, and
the image is resampled once.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from foveal.data import augment_colour as colour
from foveal.data import augment_geometry as geometry
from foveal.data.augment_config import Fill
from foveal.data.augment_operations_config import GaussianBlur, OperationConfig
from foveal.data.augment_ways import Operation, Way, ways_by_turns
from foveal.errors import ConfigError

Draws = torch.Tensor
"""Uniform draws, float32 [n, k], 0..1: a row an image, a column a number that the operation draws."""

_CROP_TRIES = 10


@dataclass(frozen=True)
class _Kind:
    """How an operation is done.

    Attributes:
        reach: how far it goes, in words.
        num_draws: numbers that it draws for each image.
        matrices: from its section and draws, the affine maps float32 [n, 3, 3]; None where it is none.
        change: from its section, pixels and draws, and what stands beyond the edge, the new pixels.
        ends: draws at which it is strongest; one way and the other by turns where not given.
    """

    reach: Callable[[Any], str]
    num_draws: int = 0
    matrices: Callable[[Any, Draws], torch.Tensor] | None = None
    change: Callable[[Any, torch.Tensor, Draws, Fill], torch.Tensor] | None = None
    ends: Callable[[int], Draws] | None = None


def _within(draws: Draws, low: float, high: float) -> torch.Tensor:
    return draws * (high - low) + low


def _around(draws: Draws, reach: float) -> torch.Tensor:
    return _within(draws, -reach, reach)


def _in_proportion(draws: Draws, low: float, high: float) -> torch.Tensor:
    """As often below as above where a half is to one as one to two."""
    ends = torch.tensor([low, high]).log()
    return _within(draws, *ends.tolist()).exp()


def _shift_scale_rotate(config: Any, draws: Draws) -> torch.Tensor:
    scale = 1.0 + _around(draws[:, 2], config.scale)
    moved = geometry.shifted(_around(draws[:, 0], config.shift), _around(draws[:, 1], config.shift))
    # From the result back: first the shift is undone, then the turn about the middle.
    return geometry.turned(_around(draws[:, 3], config.degrees)) @ geometry.zoomed(scale, scale) @ moved


def _sheared(config: Any, draws: Draws) -> torch.Tensor:
    tangents = torch.tan(_around(draws, config.degrees) * (torch.pi / 180.0))
    return geometry.sheared(tangents[:, 0], tangents[:, 1])


def _zoomed(config: Any, draws: Draws) -> torch.Tensor:
    factor = _within(draws[:, 0], *config.factor)
    return geometry.zoomed(factor, factor)


def _resized_crop(config: Any, draws: Draws) -> torch.Tensor:
    """The first of ten tries that fits into the image, else as much of it as the ratio allows."""
    areas = _within(draws[:, :_CROP_TRIES], *config.scale)
    ratios = _in_proportion(draws[:, _CROP_TRIES : 2 * _CROP_TRIES], *config.ratio)
    width, height = (areas * ratios).sqrt(), (areas / ratios).sqrt()
    fits = (width <= 1.0) & (height <= 1.0)
    first = fits.int().argmax(dim=1, keepdim=True)
    nearest = min(max(1.0, config.ratio[0]), config.ratio[1])
    is_found = fits.any(dim=1)
    width = torch.where(is_found, width.gather(1, first)[:, 0], torch.tensor(min(1.0, nearest)))
    height = torch.where(is_found, height.gather(1, first)[:, 0], torch.tensor(min(1.0, 1.0 / nearest)))
    right = (draws[:, -2] - 0.5) * (1.0 - width)
    down = (draws[:, -1] - 0.5) * (1.0 - height)
    # The middle of the crop is brought to the middle of the image, and then enlarged.
    return geometry.shifted(-right, -down) @ geometry.zoomed(1.0 / width, 1.0 / height)


def _crop_ends(num_images: int) -> Draws:
    draws = torch.full((num_images, 2 * _CROP_TRIES + 2), 0.5)
    draws[:, :_CROP_TRIES] = 0.0
    draws[:, -2:] = _by_turns(num_images, 2)
    return draws


def _color_jitter(config: Any, pixels: torch.Tensor, draws: Draws, _: Fill) -> torch.Tensor:
    factors = [1.0 + _around(draws[:, place], reach) for place, reach in enumerate(
        (config.brightness, config.contrast, config.saturation)
    )]  # fmt: skip
    pixels = colour.lit(pixels, *factors)
    if config.hue:
        still = torch.zeros(len(pixels))
        pixels = colour.hsv_shifted(pixels.clamp_(0.0, 1.0), _around(draws[:, 3], config.hue), still, still)
    return pixels


def _hue_saturation_value(config: Any, pixels: torch.Tensor, draws: Draws, _: Fill) -> torch.Tensor:
    hue = _around(draws[:, 0], config.hue / 180.0)
    saturation, value = _around(draws[:, 1], config.saturation / 255.0), _around(draws[:, 2], config.value / 255.0)
    return colour.hsv_shifted(pixels, hue, saturation, value)


def _brightness_contrast(config: Any, pixels: torch.Tensor, draws: Draws, _: Fill) -> torch.Tensor:
    offsets, factors = _around(draws[:, 0], config.brightness), 1.0 + _around(draws[:, 1], config.contrast)
    return colour.scaled(pixels, factors, offsets)


def _channel_shift(config: Any, pixels: torch.Tensor, draws: Draws, _: Fill) -> torch.Tensor:
    return colour.scaled(pixels, torch.ones(len(pixels), 1), _around(draws, config.levels / 255.0))


def _gaussian_blur(config: Any, pixels: torch.Tensor, draws: Draws, _: Fill) -> torch.Tensor:
    low, high = config.kernel_px
    count = (high - low) // 2 + 1
    sides = low + 2 * (draws[:, 0] * count).long().clamp(max=count - 1)
    sigmas = None if config.sigma_px is None else _within(draws[:, 1], *config.sigma_px)
    return colour.blurred(pixels, colour.gaussian_kernels(sides, sigmas))


def _gaussian_noise(config: Any, pixels: torch.Tensor, draws: Draws, _: Fill) -> torch.Tensor:
    sigmas = _within(draws[:, 0], *config.sigma).view(-1, 1, 1, 1)
    return pixels + (sigmas * torch.randn(pixels.shape)).to(pixels.device)


def _gamma(config: Any, pixels: torch.Tensor, draws: Draws, _: Fill) -> torch.Tensor:
    power = _within(draws[:, 0], *config.power).view(-1, 1, 1, 1)
    return pixels.pow(power.to(pixels.device))


def _erased(config: Any, pixels: torch.Tensor, draws: Draws, _: Fill) -> torch.Tensor:
    areas, ratios = _within(draws[:, 0], *config.scale), _in_proportion(draws[:, 1], *config.ratio)
    return geometry.erased(pixels, areas, ratios, draws[:, 2:])


def _grid_distorted(config: Any, pixels: torch.Tensor, draws: Draws, fill: Fill) -> torch.Tensor:
    widths = 1.0 + _around(draws[:, : config.num_steps], config.limit)
    heights = 1.0 + _around(draws[:, config.num_steps : 2 * config.num_steps], config.limit)
    return geometry.grid_distorted(pixels, widths, heights, fill)


def _elastic(config: Any, pixels: torch.Tensor, _: Draws, fill: Fill) -> torch.Tensor:
    side = pixels.shape[3]
    noise = torch.randn(len(pixels), 2, side, side)
    return geometry.elastically(pixels, noise, config.distance, config.smoothness, fill)


def _by_turns(num_images: int, num_draws: int) -> Draws:
    """The one end and the other, so that four images see all ends of two numbers."""
    ways = ways_by_turns(num_images)
    columns = [(1.0 + ways[place % 2]) / 2.0 for place in range(num_draws)]
    return torch.stack(columns, dim=1) if columns else torch.empty(num_images, 0)


def _checkered(num_images: int, num_draws: int) -> Draws:
    return ((torch.arange(num_images)[:, None] + torch.arange(num_draws)) % 2).float()


def _range(words: str) -> Callable[[Any], str]:
    """Words with the section's keys filled in."""
    return lambda config: words.format(**{
        key: "{:g} to {:g}".format(*value) if isinstance(value, tuple) else value for key, value in config
    })  # fmt: skip


def _same(_: Any) -> str:
    return ""


_MOST_ERASED = (1.0, 0.5, 0.5, 0.5)
_KINDS: dict[str, _Kind] = {
    "horizontal_flip": _Kind(_same, change=lambda _, pixels, *__: pixels.flip(3)),
    "vertical_flip": _Kind(_same, change=lambda _, pixels, *__: pixels.flip(2)),
    "quarter_turn": _Kind(
        lambda _: "0, 90, 180 or 270°", 1,
        change=lambda _, pixels, draws, __: geometry.quarter_turned(pixels, (draws[:, 0] * 4).long().clamp(max=3)),
        ends=lambda count: ((torch.arange(count) % 3 + 1.5) / 4.0)[:, None],
    ),
    "rotate": _Kind(
        _range("up to ±{degrees:g}°"), 1,
        matrices=lambda config, draws: geometry.turned(_around(draws[:, 0], config.degrees)),
    ),
    "shift_scale_rotate": _Kind(
        lambda c: f"up to ±{100 * c.shift:g} %, ±{100 * c.scale:g} %, ±{c.degrees:g}°", 4,
        matrices=_shift_scale_rotate,
        ends=lambda count: _by_turns(count, 4),
    ),
    "shear": _Kind(_range("up to ±{degrees:g}°"), 2, matrices=_sheared),
    "zoom": _Kind(_range("{factor}"), 1, matrices=_zoomed),
    "resized_crop": _Kind(
        lambda c: f"{100 * c.scale[0]:g} to {100 * c.scale[1]:g} % of the area", 2 * _CROP_TRIES + 2,
        matrices=_resized_crop, ends=_crop_ends,
    ),
    "grid_distortion": _Kind(
        lambda c: f"{c.num_steps} steps, up to ±{100 * c.limit:g} %", -1, change=_grid_distorted
    ),
    "elastic": _Kind(lambda c: f"by {100 * c.distance:g} %", change=_elastic),
    "brightness_contrast": _Kind(
        lambda c: f"up to ±{100 * c.brightness:g} %, ±{100 * c.contrast:g} %", 2, change=_brightness_contrast
    ),
    "color_jitter": _Kind(
        lambda c: "up to " + ", ".join(
            f"±{100 * each:g} %" for each in (c.brightness, c.contrast, c.saturation, c.hue) if each
        ), 4, change=_color_jitter,
    ),
    "hue_saturation_value": _Kind(
        _range("up to ±{hue:g}, ±{saturation:g}, ±{value:g}"), 3, change=_hue_saturation_value
    ),
    "channel_shift": _Kind(_range("up to ±{levels:g} of 255"), 3, change=_channel_shift),
    "grey": _Kind(_same, change=lambda _, pixels, *__: colour.grey(pixels)),
    "gain": _Kind(_range("times {factor:g}"), change=lambda config, pixels, *_: pixels * config.factor),
    "gamma": _Kind(_range("power {power}"), 1, change=_gamma),
    "autocontrast": _Kind(_same, change=lambda _, pixels, *__: colour.autocontrasted(pixels)),
    "equalize": _Kind(_same, change=lambda _, pixels, *__: colour.equalized(pixels)),
    "posterize": _Kind(
        _range("{bits} bits"),
        change=lambda config, pixels, *_: colour.posterized(pixels, torch.full((len(pixels),), config.bits)),
    ),
    "solarize": _Kind(
        _range("from {level:g} of 255"),
        change=lambda config, pixels, *_: colour.solarized(pixels, torch.full((len(pixels),), config.level / 255.0)),
    ),
    "sharpness": _Kind(
        _range("{factor}"), 1,
        change=lambda config, pixels, draws, _: colour.sharpened(pixels, _within(draws[:, 0], *config.factor)),
    ),
    "gaussian_blur": _Kind(
        _range("kernel {kernel_px} px"), 2, change=_gaussian_blur, ends=lambda count: torch.ones(count, 2)
    ),
    "gaussian_noise": _Kind(
        lambda c: f"up to {100 * c.sigma[1]:g} %", 1, change=_gaussian_noise, ends=lambda count: torch.ones(count, 1)
    ),
    "erasing": _Kind(
        lambda c: f"up to {100 * c.scale[1]:g} %", 4, change=_erased,
        ends=lambda count: torch.tensor([_MOST_ERASED]).expand(count, -1),
    ),
}  # fmt: skip


class ListedOperations(Way):
    """The operations of a list, one after the other, and then the square that evaluation sees.

    Args:
        operations: their sections, in order.
        fill: what stands beyond the edge.
        side_px: side of the images that go in; the operations are done on all of it.
        size_px: side of the images that come out.

    Raises:
        ConfigError: a kernel is larger than the image.
    """

    def __init__(self, operations: Sequence[OperationConfig], fill: Fill, *, side_px: int, size_px: int) -> None:
        super().__init__(side_px, size_px)
        self._operations, self._fill = tuple(operations), fill
        counts = Counter(each.name for each in operations)
        seen: Counter[str] = Counter()
        self._by_name: dict[str, OperationConfig] = {}
        for each in operations:
            seen[each.name] += 1
            self._by_name[f"{each.name} {seen[each.name]}" if counts[each.name] > 1 else each.name] = each
        if too_large := [
            f"augment.operations.{place}.kernel_px: the image has {side_px} px, and a kernel of {each.kernel_px[1]} "
            f"needs at least {each.kernel_px[1] // 2 + 1}"
            for place, each in enumerate(operations)
            if isinstance(each, GaussianBlur) and each.kernel_px[1] // 2 >= side_px
        ]:
            raise ConfigError("A kernel is too large for the images.", problems=too_large)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Augment a batch."""
        pixels = _as_floats(images)
        pending: torch.Tensor | None = None
        for config in self._operations:
            kind, num_images = _KINDS[config.name], len(pixels)
            is_chosen = torch.rand(num_images) < config.probability
            draws = torch.rand(num_images, _num_draws(kind, config))
            chosen = torch.nonzero(is_chosen)[:, 0]
            if kind.matrices is not None:
                # The maps lead backwards, so that what is done later stands on the right.
                maps = _still(num_images)
                maps[chosen] = kind.matrices(config, draws[chosen])
                pending = maps if pending is None else pending @ maps
                continue
            pixels, pending = self._moved(pixels, pending), None
            if len(chosen):
                pixels = self._changed(pixels, config, chosen, draws[chosen])
        return self.centre(self._moved(pixels, pending))

    @property
    def operations(self) -> tuple[Operation, ...]:
        """The list, in words."""
        return tuple(
            Operation(name, _KINDS[config.name].reach(config), config.probability)
            for name, config in self._by_name.items()
            if config.probability > 0.0
        )

    def alone(self, name: str, images: torch.Tensor) -> torch.Tensor:
        """One operation of the list and nothing else."""
        pixels, config = _as_floats(images), self._by_name[name]
        kind, every = _KINDS[config.name], torch.arange(len(images))
        ends = kind.ends(len(images)) if kind.ends else _ends(kind, config, len(images))
        if kind.matrices is not None:
            return self.centre(self._moved(pixels, kind.matrices(config, ends)))
        return self.centre(self._changed(pixels, config, every, ends))

    def _moved(self, pixels: torch.Tensor, maps: torch.Tensor | None) -> torch.Tensor:
        """Resample those images whose map moves anything."""
        if maps is None:
            return pixels
        chosen = torch.nonzero((maps != torch.eye(3)).flatten(1).any(dim=1))[:, 0]
        return _replaced(pixels, chosen, lambda part: geometry.warped(part, maps[chosen], self._fill))

    def _changed(
        self, pixels: torch.Tensor, config: OperationConfig, chosen: torch.Tensor, draws: Draws
    ) -> torch.Tensor:
        change = _KINDS[config.name].change
        if change is None:
            raise TypeError(f"{config.name} is a map, not a change of pixels")
        return _replaced(pixels, chosen, lambda part: change(config, part, draws, self._fill).clamp(0.0, 1.0))


def _num_draws(kind: _Kind, config: Any) -> int:
    return kind.num_draws if kind.num_draws >= 0 else 2 * config.num_steps


def _ends(kind: _Kind, config: Any, num_images: int) -> Draws:
    # Steps that are all wide are no wider than those that are all narrow.
    return (_checkered if kind.num_draws < 0 else _by_turns)(num_images, _num_draws(kind, config))


def _as_floats(images: torch.Tensor) -> torch.Tensor:
    """In memory a channel after the other, which resampling and blurring on a CPU take twice as fast."""
    return images.to(torch.float32, memory_format=torch.contiguous_format).div_(255.0)


def _still(num_images: int) -> torch.Tensor:
    return torch.eye(3).repeat(num_images, 1, 1)


def _replaced(
    pixels: torch.Tensor, chosen: torch.Tensor, change: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """The batch with some of its images, int64 [m], changed; it is written to."""
    if not len(chosen):
        return pixels
    if len(chosen) == len(pixels):
        return change(pixels)
    places = chosen.to(pixels.device)
    pixels[places] = change(pixels[places])
    return pixels
