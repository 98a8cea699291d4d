"""Augmentation: every image its own draw, and nothing done that the policy does not say."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torchvision.transforms.v2 import functional as reference

from foveal.data import augment_colour, augment_policies
from foveal.data.augment import Augmentation
from foveal.data.augment_config import POLICIES, AugmentConfig, FusedPolicyName, PolicyName
from foveal.data.augment_policies import OPERATION_NAMES, FusedPolicy

SIDE, SIZE = 64, 56
FUSED: tuple[FusedPolicyName, ...] = ("none", "light", "medium", "heavy")


def noise(num_images: int, side: int = SIDE) -> torch.Tensor:
    values = np.random.default_rng(0).integers(0, 256, (num_images, side, side, 3), dtype=np.uint8)
    return torch.from_numpy(values).permute(0, 3, 1, 2)


def coordinates(num_images: int) -> torch.Tensor:
    """Pictures that say where each of their pixels is: red is 3 x, green is 3 y."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] * 3
    return torch.from_numpy(np.stack([x, y, np.zeros_like(x)]).astype(np.uint8)).expand(num_images, -1, -1, -1)


def policy_of(augmentation: Augmentation) -> FusedPolicy:
    assert isinstance(augmentation.way, FusedPolicy)
    return augmentation.way


def geometry_alone(config: AugmentConfig) -> Augmentation:
    augmentation = Augmentation(config, side_px=SIDE, size_px=SIZE)
    policy = policy_of(augmentation)
    policy._strength = replace(policy._strength, light=0.0, saturation=0.0)
    policy.after = nn.Sequential()
    return augmentation


def affine_maps(config: AugmentConfig, num_images: int = 120) -> NDArray[np.float64]:
    """From what came out, the map of each image: float64 [n, 2, 3], from the result's pixels to the source's.

    Both are counted from the middle, so that the last column is the shift.
    """
    torch.manual_seed(1)
    out = geometry_alone(config)(coordinates(num_images)).numpy().astype(np.float64) * 255.0 / 3.0
    y, x = np.mgrid[0:SIZE, 0:SIZE] - (SIZE - 1) / 2
    maps = []
    for found in out[:, :2]:
        # Beyond the edge the picture is reflected, which is no affine map; only what is well inside is fitted.
        rows, columns = slice(SIZE // 4, -SIZE // 4), slice(SIZE // 4, -SIZE // 4)
        known = np.stack([x[rows, columns].ravel(), y[rows, columns].ravel(), np.ones(x[rows, columns].size)], axis=1)
        wanted = found[:, rows, columns].reshape(2, -1).T - (SIDE - 1) / 2
        inside = (np.abs(wanted) < (SIDE - 4) / 2).all(axis=1)
        solution, residual, *_ = np.linalg.lstsq(known[inside], wanted[inside], rcond=None)
        assert residual.max(initial=0) < 1e-3 * inside.sum()
        maps.append(solution.T)
    return np.array(maps)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("size", [SIZE, SIDE])
def test_what_comes_out_is_a_batch_for_the_model(policy: PolicyName, size: int) -> None:
    torch.manual_seed(0)
    images = noise(9)
    before = images.clone()
    out = Augmentation(AugmentConfig(policy=policy), side_px=SIDE, size_px=size)(images)
    assert (out.shape, out.dtype) == ((9, 3, size, size), torch.float32)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert 0.0 <= out.min() < out.max() <= 1.0
    assert not out.requires_grad
    assert torch.equal(images, before), "the store's pixels are not written to"


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_seed_gives_the_same_and_another_seed_another(policy: PolicyName) -> None:
    augmentation = Augmentation(AugmentConfig(policy=policy, vertical_flip=0.5), side_px=SIDE, size_px=SIZE)
    results = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        results.append(augmentation(noise(12)))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


GOLDEN = {
    "none": [0.3451, 0.30588, 0.61569, 0.3451, 0.18824, 0.38039, 0.3451, 0.18824, 0.38039],
    "light": [0.35294, 0.18063, 0.38522, 0.40749, 0.19513, 0.42587, 0.33995, 0.25554, 0.52335],
    "medium": [0.37892, 0.15645, 0.40077, 0.20893, 0.20825, 0.4122, 0.34102, 0.30307, 0.6124],
    "heavy": [0.40802, 0.1236, 0.39289, 0.23387, 0.22176, 0.4214, 0.40615, 0.40615, 0.40615],
}


@pytest.mark.parametrize("policy", FUSED)
def test_a_policy_makes_of_an_image_what_it_always_made(policy: FusedPolicyName) -> None:
    """Runs of earlier releases are resumed and repeated with the pixels that they had."""
    ramp = torch.arange(SIDE, dtype=torch.uint8) * 2
    images = torch.stack([ramp.expand(SIDE, SIDE), ramp[:, None].expand(SIDE, SIDE), 2 * ramp.expand(SIDE, SIDE).T + 1])
    torch.manual_seed(11)
    config = AugmentConfig(policy=policy, vertical_flip=0.25)
    out = Augmentation(config, side_px=SIDE, size_px=SIZE)(images.expand(3, -1, -1, -1))
    torch.testing.assert_close(out[:, :, 20, 40].flatten(), torch.tensor(GOLDEN[policy]), atol=2e-4, rtol=0)


@pytest.mark.parametrize("policy", ["light", "medium", "heavy"])
def test_every_image_has_its_own_draw(policy: PolicyName) -> None:
    torch.manual_seed(0)
    out = Augmentation(AugmentConfig(policy=policy), side_px=SIDE, size_px=SIZE)(noise(1).expand(16, -1, -1, -1))
    distances = torch.cdist(out.flatten(1), out.flatten(1)) + torch.eye(16) * 100
    assert distances.min() > 0.5


@pytest.mark.parametrize(("side", "size"), [(SIDE, SIZE), (SIDE, 55), (SIDE, SIDE)])
def test_none_is_the_central_crop_exactly(side: int, size: int) -> None:
    images = noise(5)
    out = Augmentation(AugmentConfig(policy="none"), side_px=side, size_px=size)(images)
    start = (side - size) // 2
    assert torch.equal(out, images[:, :, start : start + size, start : start + size].float() / 255.0)


def test_none_with_mirroring_mirrors_the_central_crop_and_moves_nothing() -> None:
    images = noise(40)
    start = (SIDE - SIZE) // 2
    crop = images[:, :, start : start + SIZE, start : start + SIZE].float() / 255.0
    config = AugmentConfig(policy="none", horizontal_flip=0.5, vertical_flip=1.0)
    torch.manual_seed(0)
    out = Augmentation(config, side_px=SIDE, size_px=SIZE)(images)
    turned = [torch.equal(o, c.flip(1, 2)) for o, c in zip(out, crop, strict=True)]
    kept = [torch.equal(o, c.flip(1)) for o, c in zip(out, crop, strict=True)]
    assert all(a != b for a, b in zip(turned, kept, strict=True))
    assert 10 < sum(turned) < 30


def test_no_strength_and_the_middle_of_every_draw_give_the_centre_back(monkeypatch: pytest.MonkeyPatch) -> None:
    augmentation = geometry_alone(AugmentConfig(policy="light"))
    policy = policy_of(augmentation)
    policy._strength = replace(policy._strength, turn_degrees=0.0, shift=0.0, zoom=(1.0, 1.0))
    monkeypatch.setattr(augment_policies.torch, "rand", lambda count: torch.full((count,), 0.5))
    images = noise(3)
    start = (SIDE - SIZE) // 2
    crop = images[:, :, start : start + SIZE, start : start + SIZE].float() / 255.0
    torch.testing.assert_close(augmentation(images), crop, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("policy", "angle", "shift", "zoom"), [
    ("light", 8.0, 0.04, (0.92, 1.12)),
    ("medium", 15.0, 0.08, (0.85, 1.25)),
    ("heavy", 25.0, 0.12, (0.75, 1.4)),
])  # fmt: skip
def test_every_map_is_a_turn_a_zoom_a_shift_and_maybe_a_mirror_within_the_policy(
    policy: PolicyName, angle: float, shift: float, zoom: tuple[float, float]
) -> None:
    """Also where an image is mirrored and turned at once: nothing is sheared."""
    maps = affine_maps(AugmentConfig(policy=policy, vertical_flip=0.3))
    linear, shifts = maps[:, :, :2], maps[:, :, 2]
    determinant = np.linalg.det(linear)
    scale = np.sqrt(np.abs(determinant))
    gram = np.einsum("nji,njk->nik", linear, linear) / scale[:, None, None] ** 2
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(2), gram.shape), atol=0.01)
    zooms = 1.0 / scale
    assert zoom[0] - 0.01 < zooms.min() < zooms.max() < zoom[1] + 0.01
    assert zooms.max() - zooms.min() > 0.7 * (zoom[1] - zoom[0])
    # A turn by a and one by 180 degrees minus a are told apart by the mirrors, so the least is the turn.
    turns = np.degrees(np.arcsin(np.clip(linear[:, 1, 0] / scale, -1, 1)))
    assert np.abs(turns).max() < angle + 0.5
    assert np.abs(turns).max() > 0.8 * angle
    reach = shift * SIDE + (SIDE - SIZE) / 2
    assert np.abs(shifts).max() < reach + 0.1
    assert np.abs(shifts).max() > 0.8 * reach
    mirrored = determinant < 0
    assert 0.1 < mirrored.mean() < 0.7


def test_light_never_mirrors_and_the_others_do_so_half_of_the_time() -> None:
    assert (affine_maps(AugmentConfig(policy="light"))[:, 0, 0] > 0).all()
    for policy in ("medium", "heavy"):
        assert 0.35 < (affine_maps(AugmentConfig(policy=policy))[:, 0, 0] < 0).mean() < 0.65
    assert (affine_maps(AugmentConfig(policy="heavy", horizontal_flip=0.0))[:, 0, 0] > 0).all()
    assert (affine_maps(AugmentConfig(policy="light", horizontal_flip=1.0))[:, 0, 0] < 0).all()
    assert (affine_maps(AugmentConfig(policy="light", vertical_flip=1.0))[:, 1, 1] < 0).all()


def test_a_mirrored_result_is_the_mirror_image_of_the_result() -> None:
    results = []
    for flip in (0.0, 1.0):
        torch.manual_seed(2)
        config = AugmentConfig(policy="light", horizontal_flip=flip)
        results.append(Augmentation(config, side_px=SIDE, size_px=SIZE)(noise(6)))
    torch.testing.assert_close(results[1], results[0].flip(3), atol=1e-4, rtol=0)


@pytest.mark.parametrize("policy", ["light", "heavy"])
def test_the_colour_matrix_is_torchvisions_three_adjustments(
    policy: PolicyName, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(augment_colour, "LUMA", (0.2989, 0.587, 0.114))  # torchvision rounds
    augmentation = policy_of(Augmentation(AugmentConfig(policy=policy), side_px=SIDE, size_px=SIDE))
    pixels = 0.4 + 0.15 * noise(5).float() / 255.0  # so that nothing is clipped on the way
    torch.manual_seed(7)
    out = augmentation._light(pixels)
    torch.manual_seed(7)
    light, saturation = augmentation._strength.light, augmentation._strength.saturation
    draws = [1 - reach + 2 * reach * torch.rand(5) for reach in (light, light, saturation)]
    for image, found, brightness, contrast, colour in zip(pixels, out, *(d.tolist() for d in draws), strict=True):
        expected = reference.adjust_contrast(reference.adjust_brightness(image, brightness), contrast)
        torch.testing.assert_close(found, reference.adjust_saturation(expected, colour), atol=1e-5, rtol=0)


def test_light_changes_no_colour_to_grey_and_heavy_sometimes_does() -> None:
    torch.manual_seed(0)
    spread = {}
    for policy in ("light", "heavy"):
        out = Augmentation(AugmentConfig(policy=policy), side_px=SIDE, size_px=SIZE)(noise(150))
        spread[policy] = (out.amax(1) - out.amin(1)).amax(dim=(1, 2))
    assert (spread["light"] > 0.3).all()
    assert 3 <= int((spread["heavy"] < 0.02).sum()) <= 35


def test_erasing_blackens_a_part_of_some_images() -> None:
    torch.manual_seed(0)
    bright = torch.full((200, 3, SIDE, SIDE), 160, dtype=torch.uint8)
    shares = {}
    for policy in ("light", "medium"):
        out = Augmentation(AugmentConfig(policy=policy), side_px=SIDE, size_px=SIZE)(bright)
        shares[policy] = (out.amax(1) == 0).float().mean(dim=(1, 2))
    assert shares["light"].max() == 0
    erased = shares["medium"] > 0
    assert 0.12 < erased.float().mean() < 0.4
    assert shares["medium"].max() < 0.2


def test_every_draw_comes_in_its_order_from_the_global_generator() -> None:
    """The order is a contract: a resumed run draws again what the interrupted one drew."""
    config, num_images = AugmentConfig(policy="light", horizontal_flip=0.5, vertical_flip=0.5), 20
    torch.manual_seed(1)
    draws = [torch.rand(num_images) for _ in range(4)] + [torch.rand(2 * num_images)]
    draws += [torch.rand(num_images) for _ in range(3)]
    after = torch.rand(5)
    torch.manual_seed(1)
    Augmentation(config, side_px=SIDE, size_px=SIZE)(noise(num_images))
    assert torch.equal(torch.rand(5), after)

    degrees, zoom, is_mirrored, is_upside_down, shift = (draw.numpy().astype(np.float64) for draw in draws[:5])
    maps = affine_maps(config, num_images)
    scale = 1.0 / (0.92 + 0.2 * zoom)
    np.testing.assert_allclose(np.abs(np.linalg.det(maps[:, :, :2])), scale**2, rtol=0.02)
    angle = np.radians(-8.0 + 16.0 * degrees)
    mirror_x, mirror_y = 1 - 2.0 * (is_mirrored < 0.5), 1 - 2.0 * (is_upside_down < 0.5)
    np.testing.assert_allclose(maps[:, 0, 0], scale * np.cos(angle) * mirror_x, atol=0.01)
    np.testing.assert_allclose(maps[:, 1, 0], scale * np.sin(angle) * mirror_x, atol=0.01)
    np.testing.assert_allclose(maps[:, 1, 1], scale * np.cos(angle) * mirror_y, atol=0.01)
    reach = 0.04 * SIDE + (SIDE - SIZE) / 2
    np.testing.assert_allclose(maps[:, :, 2], reach * (2 * shift.reshape(-1, 2) - 1), atol=0.05)


@pytest.mark.parametrize(("config", "names"), [
    (AugmentConfig(policy="none"), ""),
    (AugmentConfig(policy="none", horizontal_flip=0.1, vertical_flip=1.0), "mirror, upside down"),
    (AugmentConfig(policy="light"), "turn, shift, zoom, light"),
    (AugmentConfig(policy="medium"), "turn, shift, zoom, mirror, light, saturation, erasing"),
    (AugmentConfig(policy="medium", horizontal_flip=0.0), "turn, shift, zoom, light, saturation, erasing"),
    (AugmentConfig(policy="heavy"), "turn, shift, zoom, mirror, light, saturation, blur, grey, erasing"),
])  # fmt: skip
def test_operations_are_those_that_the_policy_has(config: AugmentConfig, names: str) -> None:
    augmentation = Augmentation(config, side_px=SIDE, size_px=SIDE)
    assert ", ".join(operation.name for operation in augmentation.operations) == names


def test_an_operation_says_how_far_it_goes_and_how_often() -> None:
    config = AugmentConfig(policy="heavy", horizontal_flip=1.0, vertical_flip=0.25)
    words = {each.name: str(each) for each in Augmentation(config, side_px=100, size_px=95).operations}
    assert words == {
        "turn": "up to ±25°",
        "shift": "up to ±14.5 %",  # 12 % of the policy and half of the 5 % that the crop leaves over
        "zoom": "0.75 to 1.4",
        "mirror": "every image",
        "upside down": "1 in 4 images",
        "light": "up to ±40 %",
        "saturation": "up to ±40 %",
        "blur": "sigma up to 1.5 px, 3 in 10 images",
        "grey": "1 in 10 images",
        "erasing": "up to 15 %, 1 in 4 images",
    }


def alone(name: str, images: torch.Tensor, size: int = SIDE, policy: PolicyName = "heavy") -> torch.Tensor:
    config = AugmentConfig(policy=policy, vertical_flip=0.5)
    out = Augmentation(config, side_px=SIDE, size_px=size).alone(name, images)
    assert (out.shape, out.dtype) == ((len(images), 3, size, size), torch.float32)
    assert 0.0 <= out.min() <= out.max() <= 1.0
    return out


def test_an_operation_alone_is_that_operation_at_its_ends() -> None:
    """Against torchvision's own, which counts angles the other way round."""
    images = noise(4, SIDE)
    smooth = torch.nn.functional.avg_pool2d(images.float(), 9, 1, 4).round().to(torch.uint8)
    centre = images[:, :, 4:60, 4:60].float() / 255.0
    assert torch.equal(alone("mirror", images, SIZE), centre.flip(3))
    assert torch.equal(alone("upside down", images, SIZE), centre.flip(2))
    for place, image in enumerate(smooth.float() / 255.0):
        sign, other = (1, -1, 1, -1)[place], (1, 1, -1, -1)[place]
        inner = slice(18, -18)
        turned = reference.rotate(image[None], sign * 25.0, interpolation=reference.InterpolationMode.BILINEAR)[0]
        found = alone("turn", smooth)[place]
        torch.testing.assert_close(found[:, inner, inner], turned[:, inner, inner], atol=0.01, rtol=0)
        saturated = reference.adjust_saturation(image, 1 + 0.4 * sign)
        torch.testing.assert_close(alone("saturation", smooth)[place], saturated, atol=2e-3, rtol=0)
        brighter, steeper = 1 + 0.4 * sign, 1 + 0.4 * other
        lit = steeper * brighter * image + (1 - steeper) * brighter * reference.rgb_to_grayscale(image).mean()
        torch.testing.assert_close(alone("light", smooth)[place], lit.clamp(0, 1), atol=2e-3, rtol=0)
        blurred = reference.gaussian_blur(image, [5, 5], [1.5, 1.5])
        torch.testing.assert_close(alone("blur", smooth)[place], blurred, atol=1e-3, rtol=0)
        grey = reference.rgb_to_grayscale(image, num_output_channels=3)
        torch.testing.assert_close(alone("grey", smooth)[place], grey, atol=1e-3, rtol=0)


def test_shift_and_zoom_alone_go_as_far_as_the_policy_and_no_other_way() -> None:
    middle = (slice(None), slice(None, 2), slice(SIZE // 2 - 1, SIZE // 2 + 1), slice(SIZE // 2 - 1, SIZE // 2 + 1))
    places = alone("shift", coordinates(4), SIZE)[middle].mean(dim=(2, 3)) * 255 / 3 - (SIDE - 1) / 2
    reach = 0.12 * SIDE + (SIDE - SIZE) / 2
    expected = reach * torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    torch.testing.assert_close(places, expected, atol=0.1, rtol=0)
    zoomed = alone("zoom", coordinates(2))[:, :, 20:44, 20:44] * 255 / 3
    steps = zoomed[:, 0].diff(dim=2).mean(dim=(1, 2))
    torch.testing.assert_close(1.0 / steps, torch.tensor([1.4, 0.75]), atol=0.01, rtol=0)


def test_erasing_alone_takes_the_largest_share_of_every_image() -> None:
    torch.manual_seed(0)
    shares = (alone("erasing", torch.full((40, 3, SIDE, SIDE), 160, dtype=torch.uint8)).amax(1) == 0).float()
    assert shares.mean(dim=(1, 2)).min() > 0.12
    assert shares.mean(dim=(1, 2)).max() < 0.17


def test_the_page_has_every_policy_with_the_strengths_of_the_code() -> None:
    page = (Path(__file__).parents[2] / "docs" / "augmentation.md").read_text(encoding="utf-8")
    words = {
        policy: {each.name: str(each) for each in Augmentation(
            AugmentConfig(policy=policy), side_px=SIDE, size_px=SIDE).operations}
        for policy in FUSED
    }  # fmt: skip
    names = [name for name in OPERATION_NAMES if name != "upside down"]
    rows = [f"| {name} | {' | '.join(words[policy].get(name, '') or '–' for policy in FUSED)} |" for name in names]
    assert [row for row in rows if row not in page] == []
    assert "| operation | none | light | medium | heavy |" in page
