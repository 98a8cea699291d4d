"""RandAugment, TrivialAugment and AugMix: which operation an image gets is itself drawn.

The images of a batch are grouped by the operation that they drew, so that a batch takes as many passes as there are
kinds of operations, not as there are images.
"""

from abc import abstractmethod
from collections.abc import Callable

import torch

from foveal.data import augment_colour as colour
from foveal.data import augment_geometry as geometry
from foveal.data.augment_config import AugmentConfig, AutomaticPolicyName
from foveal.data.augment_ways import Operation, Way, mirrored, ways_by_turns

Amounts = dict[str, Callable[[torch.Tensor], torch.Tensor]]
"""The operations of a policy by name, each with what a strength of 0..1 makes of it: a tangent, a share of the side,
degrees, a change of a factor, bits, or a threshold."""

_MOVES = ("shear x", "shear y", "translate x", "translate y", "rotate")
_LIGHTS = ("brightness", "saturation", "contrast")
_SIGNED = (*_MOVES, *_LIGHTS, "sharpness")
_NUM_STRENGTHS = 31
_NUM_CHAINS, _LONGEST_CHAIN = 3, 3


def _times(most: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda strength: strength * most


def _randaugment_amounts() -> Amounts:
    """Torchvision's RandAugment, whose ranges are those of AutoAugment on ImageNet (Cubuk et al. 2019)."""
    return {
        "identity": _times(0.0),
        "shear x": _times(0.3),
        "shear y": _times(0.3),
        "translate x": _times(150.0 / 331.0),
        "translate y": _times(150.0 / 331.0),
        "rotate": _times(30.0),
        "brightness": _times(0.9),
        "saturation": _times(0.9),
        "contrast": _times(0.9),
        "sharpness": _times(0.9),
        "posterize": lambda strength: 8.0 - torch.round(4.0 * strength),
        "solarize": lambda strength: 1.0 - strength,
        "autocontrast": _times(0.0),
        "equalize": _times(0.0),
    }


def _trivialaugment_amounts(size_px: int) -> Amounts:
    """Torchvision's TrivialAugmentWide; shifts go to 32 px, as in the paper, whatever the image's size."""
    return {
        **_randaugment_amounts(),
        "shear x": _times(0.99),
        "shear y": _times(0.99),
        "translate x": _times(32.0 / size_px),
        "translate y": _times(32.0 / size_px),
        "rotate": _times(135.0),
        **{name: _times(0.99) for name in (*_LIGHTS, "sharpness")},
        "posterize": lambda strength: 8.0 - torch.round(6.0 * strength),
    }


def _augmix_amounts() -> Amounts:
    """The authors' nine operations, which leave out what ImageNet-C corrupts, with their whole numbers."""
    return {
        "autocontrast": _times(0.0),
        "equalize": _times(0.0),
        "posterize": lambda strength: 4.0 - torch.floor(4.0 * strength),
        "rotate": lambda strength: torch.floor(30.0 * strength),
        "solarize": lambda strength: (256.0 - torch.floor(256.0 * strength)) / 255.0,
        "shear x": _times(0.3),
        "shear y": _times(0.3),
        "translate x": _times(1.0 / 3.0),
        "translate y": _times(1.0 / 3.0),
    }


class AutomaticPolicy(Way):
    """What the three have in common: a random square of `size_px`, flips where they are asked for, then the policy.

    Args:
        config: the section.
        amounts: the operations.
        side_px: side of the images that go in.
        size_px: side of the images that come out.
    """

    def __init__(self, config: AugmentConfig, amounts: Amounts, *, side_px: int, size_px: int) -> None:
        super().__init__(side_px, size_px)
        self._amounts, self._names, self._fill = amounts, tuple(amounts), config.filled_with
        self._horizontal_flip, self._vertical_flip = config.horizontal_flip or 0.0, config.vertical_flip

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Augment a batch."""
        pixels = mirrored(mirrored(self._square(images), self._horizontal_flip, 3), self._vertical_flip, 2)
        return self.drawn(pixels)

    @abstractmethod
    def drawn(self, pixels: torch.Tensor) -> torch.Tensor:
        """The policy itself, on float32 [n, 3, size, size], which it may write to."""

    @property
    @abstractmethod
    def chance(self) -> float:
        """How likely an image is to get a certain operation."""

    @property
    @abstractmethod
    def strongest(self) -> float:
        """The largest strength that is drawn, 0..1."""

    @property
    def operations(self) -> tuple[Operation, ...]:
        """Those of the policy, of which each image draws some."""
        slack = (1.0 - self.size_px / self.side_px) / 2.0
        frame = (
            Operation("shift", f"up to ±{round(100 * slack, 1):g} %", float(slack > 0.0)),
            Operation("mirror", "", self._horizontal_flip),
            Operation("upside down", "", self._vertical_flip),
        )
        drawn = (Operation(name, self._reach(name), self.chance) for name in self._names if name != "identity")
        return tuple(each for each in (*frame, *drawn) if each.share > 0.0)

    def alone(self, name: str, images: torch.Tensor) -> torch.Tensor:
        """One operation of the policy and nothing else."""
        pixels, num_images = images.float().div_(255.0), len(images)
        first, second = ways_by_turns(num_images)
        slack = self.side_px - self.size_px
        if name == "shift":
            return self._cut(pixels, (first < 0).long() * slack, (second < 0).long() * slack)
        centre = self.centre(pixels).contiguous()
        if name in {"mirror", "upside down"}:
            return centre.flip(3 if name == "mirror" else 2)
        ids = torch.full((num_images,), self._names.index(name))
        return self.applied(centre, ids, torch.full((num_images,), self.strongest), first)

    def applied(
        self, pixels: torch.Tensor, ids: torch.Tensor, strengths: torch.Tensor, signs: torch.Tensor
    ) -> torch.Tensor:
        """Do to each image the one operation that it drew.

        Args:
            pixels: float32 [n, 3, size, size], 0..1; it is written to.
            ids: int64 [n], numbers of operations.
            strengths: float32 [n], 0..1.
            signs: float32 [n], 1 or -1, for those that go two ways.
        """
        amounts = torch.zeros(len(ids))
        for place, name in enumerate(self._names):
            of_this = ids == place
            amounts[of_this] = self._amounts[name](strengths[of_this]) * (signs[of_this] if name in _SIGNED else 1.0)
        groups = [_MOVES, _LIGHTS, *[(name,) for name in self._names if name not in (*_MOVES, *_LIGHTS, "identity")]]
        for group in groups:
            places = torch.tensor([self._names.index(name) for name in group if name in self._names])
            chosen = torch.nonzero(torch.isin(ids, places))[:, 0]
            if len(chosen):
                on_device = chosen.to(pixels.device)
                done = self._done(group, pixels[on_device], ids[chosen], amounts[chosen])
                pixels[on_device] = done.clamp(0.0, 1.0)
        return pixels

    def _done(
        self, group: tuple[str, ...], pixels: torch.Tensor, ids: torch.Tensor, amounts: torch.Tensor
    ) -> torch.Tensor:
        def of(name: str) -> torch.Tensor:
            return amounts * (ids == self._names.index(name)) if name in self._names else torch.zeros_like(amounts)

        match group[0]:
            case "shear x":
                maps = geometry.sheared(of("shear x"), of("shear y"), corner=True)
                maps = maps @ geometry.shifted(of("translate x"), of("translate y")) @ geometry.turned(of("rotate"))
                return geometry.warped(pixels, maps, self._fill)
            case "brightness":
                return colour.lit(pixels, 1.0 + of("brightness"), 1.0 + of("contrast"), 1.0 + of("saturation"))
            case "sharpness":
                return colour.sharpened(pixels, 1.0 + amounts)
            case "posterize":
                return colour.posterized(pixels, amounts.long())
            case "solarize":
                return colour.solarized(pixels, amounts)
            case "autocontrast":
                return colour.autocontrasted(pixels)
            case _:
                return colour.equalized(pixels)

    def _reach(self, name: str) -> str:
        amount = float(self._amounts[name](torch.tensor(self.strongest)))
        match name:
            case "rotate":
                return f"up to ±{amount:g}°" if amount != int(amount) else f"up to ±{int(amount)}°"
            case "posterize":
                return f"{amount:g} bits"
            case "solarize":
                return f"from {round(255 * amount)} of 255"
            case "autocontrast" | "equalize":
                return ""
            case _:
                return f"up to ±{round(100 * amount, 1):g} %"

    def _square(self, images: torch.Tensor) -> torch.Tensor:
        """A random square of each image, by whole pixels."""
        slack = self.side_px - self.size_px
        pixels = images.to(torch.float32, memory_format=torch.contiguous_format).div_(255.0)
        if not slack:
            return pixels
        left, top = (torch.randint(slack + 1, (len(images),)) for _ in range(2))
        return self._cut(pixels, left, top)

    def _cut(self, pixels: torch.Tensor, left: torch.Tensor, top: torch.Tensor) -> torch.Tensor:
        size, corners = self.size_px, zip(left.tolist(), top.tolist(), strict=True)
        return torch.stack([pixels[i, :, y : y + size, x : x + size] for i, (x, y) in enumerate(corners)])


class RandAugment(AutomaticPolicy):
    """A few operations, drawn for each image, one after the other, all at one strength.

    Source: E. Cubuk et al., "RandAugment: Practical Automated Data Augmentation with a Reduced Search Space", NeurIPS
    2020, with torchvision's operations and ranges.
    """

    def __init__(self, config: AugmentConfig, *, side_px: int, size_px: int) -> None:
        super().__init__(config, _randaugment_amounts(), side_px=side_px, size_px=size_px)
        self._magnitude, self._num = config.randaugment_magnitude, config.randaugment_num

    def drawn(self, pixels: torch.Tensor) -> torch.Tensor:
        """Draw and do the operations."""
        num_images = len(pixels)
        for _ in range(self._num):
            ids, signs = torch.randint(len(self._names), (num_images,)), _signs(num_images)
            pixels = self.applied(pixels, ids, torch.full((num_images,), self._magnitude), signs)
        return pixels

    @property
    def chance(self) -> float:
        """How likely an image is to get a certain operation at least once."""
        return 1.0 - (1.0 - 1.0 / len(self._names)) ** self._num

    @property
    def strongest(self) -> float:
        """The one strength."""
        return self._magnitude


class TrivialAugment(AutomaticPolicy):
    """One operation, drawn for each image, at a strength that is drawn too.

    Source: S. Müller and F. Hutter, "TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation", ICCV 2021,
    the wide ranges.
    """

    def __init__(self, config: AugmentConfig, *, side_px: int, size_px: int) -> None:
        super().__init__(config, _trivialaugment_amounts(size_px), side_px=side_px, size_px=size_px)

    def drawn(self, pixels: torch.Tensor) -> torch.Tensor:
        """Draw and do the operation."""
        num_images = len(pixels)
        ids = torch.randint(len(self._names), (num_images,))
        strengths = torch.randint(_NUM_STRENGTHS, (num_images,)) / (_NUM_STRENGTHS - 1)
        return self.applied(pixels, ids, strengths, _signs(num_images))

    @property
    def chance(self) -> float:
        """How likely an image is to get a certain operation."""
        return 1.0 / len(self._names)

    @property
    def strongest(self) -> float:
        """All of it."""
        return 1.0


class AugMix(AutomaticPolicy):
    """Three chains of one to three operations, mixed with each other and with the image.

    The consistency loss of the paper, which needs each image three times in a batch, is not part of it.

    Source: D. Hendrycks et al., "AugMix: A Simple Data Processing Method to Improve Robustness and Uncertainty", ICLR
    2020, and its code.
    """

    def __init__(self, config: AugmentConfig, *, side_px: int, size_px: int) -> None:
        super().__init__(config, _augmix_amounts(), side_px=side_px, size_px=size_px)
        self._severity = config.augmix_severity

    def drawn(self, pixels: torch.Tensor) -> torch.Tensor:
        """Draw the chains and mix them."""
        num_images = len(pixels)
        # With all their parameters at 1, as in the paper: Dirichlet over the chains, Beta over mix and image.
        of_chain = torch.distributions.Dirichlet(torch.ones(_NUM_CHAINS)).sample((num_images,))
        of_mix = torch.rand(num_images)
        shares = torch.cat([(1.0 - of_mix)[:, None], of_mix[:, None] * of_chain], dim=1).to(pixels.device)
        mixed = pixels * shares[:, 0].view(-1, 1, 1, 1)
        for chain in range(_NUM_CHAINS):
            mixed.addcmul_(self._chain(pixels), shares[:, 1 + chain].view(-1, 1, 1, 1))
        return mixed.clamp_(0.0, 1.0)

    def _chain(self, pixels: torch.Tensor) -> torch.Tensor:
        num_images = len(pixels)
        result, lengths = pixels.clone(), torch.randint(1, _LONGEST_CHAIN + 1, (num_images,))
        for step in range(_LONGEST_CHAIN):
            ids, signs = torch.randint(len(self._names), (num_images,)), _signs(num_images)
            levels = (torch.rand(num_images) * (self._severity - 0.1) + 0.1) / 10.0
            # A number that no operation has, where the chain has ended.
            ids[lengths <= step] = len(self._names)
            result = self.applied(result, ids, levels, signs)
        return result

    @property
    def chance(self) -> float:
        """How likely an image is to get a certain operation in one of its chains."""
        never = 1.0 - 1.0 / len(self._names)
        in_chain = sum(never**length for length in range(1, _LONGEST_CHAIN + 1)) / _LONGEST_CHAIN
        return float(1.0 - in_chain**_NUM_CHAINS)

    @property
    def strongest(self) -> float:
        """The severity, of 10."""
        return self._severity / 10.0


AUTOMATIC: dict[AutomaticPolicyName, type[RandAugment | TrivialAugment | AugMix]] = {
    "randaugment": RandAugment,
    "trivialaugment": TrivialAugment,
    "augmix": AugMix,
}


def _signs(num_images: int) -> torch.Tensor:
    return 1.0 - 2.0 * (torch.rand(num_images) < 0.5).float()
