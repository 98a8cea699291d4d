"""RandAugment, TrivialAugment and AugMix: their operations against the sources', and how they are drawn."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import autoaugment
from torchvision.transforms.v2 import functional as vision

from foveal.data.augment import Augmentation
from foveal.data.augment_automatic import AutomaticPolicy
from foveal.data.augment_config import AugmentConfig

SIDE = 64
# In the order of torchvision's _augmentation_space, by our names.
THEIRS = {
    "shear x": "ShearX", "shear y": "ShearY", "translate x": "TranslateX", "translate y": "TranslateY",
    "rotate": "Rotate", "brightness": "Brightness", "saturation": "Color", "contrast": "Contrast",
    "sharpness": "Sharpness", "posterize": "Posterize", "solarize": "Solarize", "autocontrast": "AutoContrast",
    "equalize": "Equalize", "identity": "Identity",
}  # fmt: skip


def pictures(num_images: int = 2) -> torch.Tensor:
    noise = torch.rand(num_images, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 255
    for _ in range(2):
        noise = torch.nn.functional.avg_pool2d(noise, 9, 1, 4, count_include_pad=False)
    low, high = noise.amin((2, 3), keepdim=True), noise.amax((2, 3), keepdim=True)
    return (10 + 220 * (noise - low) / (high - low)).round().to(torch.uint8)


def policy(config: AugmentConfig, size: int = SIDE) -> AutomaticPolicy:
    way = Augmentation(config, side_px=SIDE, size_px=size).way
    assert isinstance(way, AutomaticPolicy)
    return way


@pytest.mark.parametrize(("name", "place"), [("randaugment", 9), ("randaugment", 27), ("trivialaugment", 20)])
@pytest.mark.parametrize("sign", [1, -1])
def test_every_operation_is_torchvisions(name: str, place: int, sign: int) -> None:
    """At one of their 31 strengths, filled with black as theirs; theirs shift by whole pixels."""
    ours = policy(AugmentConfig(policy=name, fill="black"))  # type: ignore[arg-type]
    if name == "randaugment":
        space = autoaugment.RandAugment()._augmentation_space(31, (SIDE, SIDE))
    else:
        space = autoaugment.TrivialAugmentWide()._augmentation_space(31)
    assert {THEIRS[each] for each in ours._names} == set(space)
    images = pictures()
    for number, each in enumerate(ours._names):
        magnitudes, signed = space[THEIRS[each]]
        magnitude = float(magnitudes[place]) if magnitudes.ndim else float(magnitudes)
        way = sign if signed else 1
        strength = torch.full((2,), place / 30)
        found = ours.applied(images / 255, torch.full((2,), number), strength, torch.full((2,), float(sign)))
        if each.startswith("translate"):
            share = float(ours._amounts[each](strength)[0])
            assert abs(share * SIDE - magnitude) < 1e-3 * SIDE
            whole = int(share * SIDE)
            ours._amounts[each] = lambda strength, whole=whole: torch.full_like(strength, whole / SIDE)  # type: ignore[misc]
            found = ours.applied(images / 255, torch.full((2,), number), strength, torch.full((2,), float(sign)))
        expected = autoaugment._apply_op(
            images, THEIRS[each], way * magnitude, vision.InterpolationMode.BILINEAR, None
        )  # fmt: skip
        difference = (found * 255 - expected.float()).abs()
        # Next to the black theirs blend, or not, by another rule of half pixels.
        if each.startswith(("shear", "rotate", "translate")):
            assert difference.flatten().quantile(0.95) < 1.5, each
            assert (difference > 20).float().mean() < 0.03, each
        else:
            assert difference.max() < 2.1, each
        if each != "identity":
            assert difference.mean() < 0.1 * (images.float() - expected.float()).abs().mean() + 0.7, each


def test_randaugment_draws_its_operations_evenly_and_as_many_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = policy(AugmentConfig(policy="randaugment", randaugment_num=3, randaugment_magnitude=0.32))
    seen = []
    monkeypatch.setattr(ours, "applied", lambda pixels, *drawn: seen.append(drawn) or pixels)
    torch.manual_seed(0)
    ours(pictures(1).expand(2000, -1, -1, -1)[:, :, :8, :8])
    assert len(seen) == 3
    for ids, strengths, signs in seen:
        assert (strengths == 0.32).all()
        counts = torch.bincount(ids, minlength=14)
        assert len(counts) == 14
        assert counts.min() > 100
        assert 0.45 < (signs > 0).float().mean() < 0.55
    assert 0.05 < (seen[0][0] == seen[1][0]).float().mean() < 0.09, "each layer for itself"


def test_trivialaugment_draws_one_operation_at_any_of_31_strengths(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = policy(AugmentConfig(policy="trivialaugment"))
    seen = []
    monkeypatch.setattr(ours, "applied", lambda pixels, *drawn: seen.append(drawn) or pixels)
    torch.manual_seed(0)
    ours(pictures(1).expand(3000, -1, -1, -1)[:, :, :8, :8])
    ((ids, strengths, _),) = seen
    assert torch.bincount(ids, minlength=14).min() > 150
    places, counts = torch.unique((strengths * 30).round(), return_counts=True)
    assert places.tolist() == list(range(31))
    assert counts.min() > 60


def test_augmix_mixes_three_chains_and_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """With chains that give white, what comes out says how much of the image is left: Beta(1, 1) is uniform."""
    ours = policy(AugmentConfig(policy="augmix"))
    levels, lengths = [], torch.zeros(4000)

    def white(pixels: torch.Tensor, ids: torch.Tensor, strengths: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        is_done = ids < 9
        lengths.add_(is_done)
        levels.append(strengths[is_done])
        return torch.where(is_done[:, None, None, None], torch.ones_like(pixels), pixels)

    monkeypatch.setattr(ours, "applied", white)
    torch.manual_seed(0)
    left = 1 - ours(torch.zeros(4000, 3, 8, 8, dtype=torch.uint8))[:, 0, 0, 0]
    assert np.abs(np.quantile(left, [0.1, 0.5, 0.9]) - [0.1, 0.5, 0.9]).max() < 0.03
    drawn = torch.cat(levels)
    assert 0.0099 < drawn.min() < 0.012
    assert 0.297 < drawn.max() <= 0.3
    assert {int(each) for each in lengths} == set(range(3, 10))
    assert abs(lengths.mean() - 6) < 0.1


def test_augmix_operations_are_the_authors() -> None:
    """By Pillow, as in their augmentations.py."""
    ours = policy(AugmentConfig(policy="augmix", fill="black"))
    images = pictures(1)
    picture = Image.fromarray(images[0].permute(1, 2, 0).numpy())
    size, affine, bilinear = picture.size, Image.Transform.AFFINE, Image.Resampling.BILINEAR
    level = 0.27  # of theirs 2.7 of 10
    expected = {
        "rotate": picture.rotate(int(level * 30), resample=bilinear),
        "shear x": picture.transform(size, affine, (1, level * 0.3, 0, 0, 1, 0), resample=bilinear),
        "shear y": picture.transform(size, affine, (1, 0, 0, level * 0.3, 1, 0), resample=bilinear),
        "translate x": picture.transform(size, affine, (1, 0, level * SIDE / 3, 0, 1, 0), resample=bilinear),
        "posterize": picture.point([value & ~(2 ** (8 - (4 - int(level * 4))) - 1) for value in range(256)] * 3),
        "solarize": picture.point([v if v < 256 - int(level * 256) else 255 - v for v in range(256)] * 3),
    }
    for name, theirs in expected.items():
        ids = torch.tensor([ours._names.index(name)])
        wanted = torch.from_numpy(np.array(theirs)).permute(2, 0, 1).float()
        found = {
            sign: ours.applied(images / 255, ids, torch.tensor([level]), torch.tensor([sign]))[0] * 255
            for sign in (1.0, -1.0)
        }
        inner = (slice(None), slice(14, -14), slice(14, -14))
        differences = {sign: (each - wanted)[inner].abs().mean() for sign, each in found.items()}
        # Their sign is drawn too, so either may be the same.
        assert min(differences.values()) < 1.3, (name, differences)


@pytest.mark.parametrize("name", ["randaugment", "trivialaugment", "augmix"])
def test_a_random_square_and_flips_come_first(name: str) -> None:
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    ramp = (torch.stack([x, y, x]) * 3).to(torch.uint8).expand(300, -1, -1, -1)
    config = AugmentConfig(policy=name, horizontal_flip=0.5, vertical_flip=0.2)  # type: ignore[arg-type]
    ours = policy(config, size=56)
    ours.drawn = lambda pixels: pixels  # type: ignore[method-assign]
    torch.manual_seed(0)
    out = (ours(ramp) * 255 / 3).round()
    assert {int(each) for each in out[:, 0].amin(dim=(1, 2))} == set(range(9))
    assert {int(each) for each in out[:, 1].amin(dim=(1, 2))} == set(range(9))
    is_mirrored, is_upside_down = out[:, 0, 0, 0] > out[:, 0, 0, -1], out[:, 1, 0, 0] > out[:, 1, -1, 0]
    assert 0.4 < is_mirrored.float().mean() < 0.6
    assert 0.13 < is_upside_down.float().mean() < 0.27
    names = [each.name for each in ours.operations]
    assert names[:3] == ["shift", "mirror", "upside down"]
    assert "identity" not in names
    corner = ours.alone("shift", ramp[:4])[0] * 255 / 3
    assert (float(corner[0, 0, 0]), float(corner[1, 0, 0])) == (0.0, 0.0)
