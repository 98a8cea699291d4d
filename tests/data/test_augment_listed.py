"""Lists of operations: each is what the field's library makes of the same numbers, and the order holds."""

from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torchvision.transforms.v2 import functional as vision

from foveal.data import augment_colour as colour
from foveal.data import augment_geometry as geometry
from foveal.data.augment import Augmentation
from foveal.data.augment_config import AugmentConfig
from foveal.data.augment_operations_config import OPERATIONS
from foveal.errors import ConfigError

SIDE = 64
FIRST, SECOND = (1, -1, 1, -1), (1, 1, -1, -1)
INNER = (..., slice(16, -16), slice(16, -16))
BILINEAR = vision.InterpolationMode.BILINEAR


def smooth_images(num_images: int = 4, side: int = SIDE) -> torch.Tensor:
    """Coloured clouds, so that ways to interpolate hardly differ."""
    noise = torch.rand(num_images, 3, side, side, generator=torch.Generator().manual_seed(0)) * 255
    for _ in range(2):
        noise = torch.nn.functional.avg_pool2d(noise, 9, 1, 4, count_include_pad=False)
    noise = (noise - noise.amin((2, 3), keepdim=True)) / (noise.amax((2, 3), keepdim=True) - noise.amin((2, 3), True))
    return (20 + 215 * noise).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def listed(*operations: dict[str, Any], side: int = SIDE, size: int = SIDE, **keys: Any) -> Augmentation:
    return Augmentation(AugmentConfig(operations=operations, **keys), side_px=side, size_px=size)


def alone(images: torch.Tensor, name: str, **keys: Any) -> torch.Tensor:
    return listed({"name": name, **keys}, side=images.shape[3], size=images.shape[3]).alone(name, images)


def close(found: torch.Tensor, expected: torch.Tensor | np.ndarray, tolerance: float = 2e-3) -> None:
    torch.testing.assert_close(found, torch.as_tensor(expected).float(), atol=tolerance, rtol=0)


def by_pillow(image: torch.Tensor, change: Any) -> torch.Tensor:
    changed = change(Image.fromarray(image.permute(1, 2, 0).numpy()))
    return torch.from_numpy(np.array(changed)).permute(2, 0, 1).float() / 255


def test_geometry_is_torchvisions() -> None:
    images = smooth_images()
    floats = images.float() / 255
    found = {
        "rotate": alone(images, "rotate", degrees=12),
        "shift_scale_rotate": alone(images, "shift_scale_rotate", shift=0.125, scale=0.1, degrees=10),
        "zoom": alone(images, "zoom", factor=[0.8, 1.25]),
        "crop": alone(images, "resized_crop", scale=[0.25, 1.0], ratio=[0.5, 2.0]),
        "shear": alone(images, "shear", degrees=10),
    }
    for row, image in enumerate(floats):
        one, two = FIRST[row], SECOND[row]
        close(found["rotate"][row][INNER], vision.rotate(image, 12.0 * one, BILINEAR)[INNER])
        moved = vision.affine(image, -10.0 * two, [8 * one, 8 * two], 1 + 0.1 * one, [0.0, 0.0], BILINEAR)
        close(found["shift_scale_rotate"][row][INNER], moved[INNER], 0.01)
        factor = 1.25 if one > 0 else 0.8
        close(found["zoom"][row][INNER], vision.affine(image, 0.0, [0, 0], factor, [0.0, 0.0], BILINEAR)[INNER])
        left, top = (32 if one > 0 else 0), (32 if two > 0 else 0)
        cropped = vision.resized_crop(image, top, left, 32, 32, [SIDE, SIDE], BILINEAR, antialias=False)
        close(found["crop"][row][INNER], cropped[INNER])
    assert torch.equal(alone(images, "horizontal_flip"), floats.flip(3))
    assert torch.equal(alone(images, "vertical_flip"), floats.flip(2))
    for row, image in enumerate(floats):
        assert torch.equal(alone(images, "quarter_turn")[row], torch.rot90(image, row % 3 + 1, (1, 2)))
    # A slant along one axis; torchvision's angle goes the other way.
    maps = geometry.sheared(torch.tensor([np.tan(np.radians(10.0))] * 4).float(), torch.zeros(4))
    close(geometry.warped(floats, maps, "reflect")[INNER],
          vision.affine(floats, 0.0, [0, 0], 1.0, [10.0, 0.0], BILINEAR)[INNER])  # fmt: skip
    assert (found["shear"] - floats).abs().amax(dim=(1, 2, 3)).min() > 0.05


def test_grid_distortion_is_opencvs_remap_of_the_widened_steps() -> None:
    image = smooth_images(1).float() / 255
    widths, heights = torch.tensor([[0.8, 1.2, 1.0, 0.9, 1.1]]), torch.tensor([[1.2, 0.8, 1.1, 1.1, 0.7]])
    maps = []
    for steps in (widths, heights):
        knots = np.concatenate([[0], np.cumsum(steps[0].numpy())])
        places = np.interp((np.arange(SIDE) + 0.5) / SIDE * 5, np.arange(6), knots / knots[-1] * SIDE) - 0.5
        maps.append(places.astype(np.float32))
    x, y = np.meshgrid(*maps)
    expected = cv2.remap(image[0].permute(1, 2, 0).numpy(), x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    close(geometry.grid_distorted(image, widths, heights, "reflect")[0], expected.transpose(2, 0, 1), 0.01)
    same = geometry.grid_distorted(image, torch.ones(1, 7), torch.full((1, 7), 3.0), "black")
    close(same[:, :, 1:-1, 1:-1], image[:, :, 1:-1, 1:-1], 1e-4)


def test_elastic_moves_by_its_distance_and_smoothly() -> None:
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    ramp = (torch.stack([x, y, x]) * 3).to(torch.uint8).expand(40, -1, -1, -1)
    torch.manual_seed(0)
    moves = (
        (alone(ramp, "elastic", distance=0.02, smoothness=0.08) - ramp / 255)[:, :2, 12:-12, 12:-12] * 255 / 3 / SIDE
    )
    assert 0.017 < moves.square().mean().sqrt() < 0.023
    along = (moves[..., :-10] * moves[..., 10:]).mean() / moves.square().mean()
    # The autocorrelation of Gaussian-smoothed noise, at 10 px for a smoothing of 5.12 px.
    assert abs(along - np.exp(-((10 / 5.12) ** 2) / 4)) < 0.08


def test_light_and_colour_are_those_of_opencv_torchvision_and_albumentations() -> None:
    images = smooth_images()
    floats = images.float() / 255
    contrast = alone(images, "brightness_contrast", brightness=0.1, contrast=0.3)
    hsv = alone(images, "hue_saturation_value", hue=10, saturation=20, value=10)
    shift, gain = alone(images, "channel_shift", levels=20), alone(images, "gain", factor=1.5)
    gamma = alone(images, "gamma", power=[0.5, 2.0])
    close(alone(images, "grey"), vision.rgb_to_grayscale(floats, 3))
    for row, image in enumerate(floats):
        one, two = FIRST[row], SECOND[row]
        close(contrast[row], (image * (1 + 0.3 * two) + 0.1 * one).clamp(0, 1), 1e-5)
        # In floats OpenCV counts hue in degrees, two of which are one of its bytes.
        as_hsv = cv2.cvtColor(image.permute(1, 2, 0).numpy(), cv2.COLOR_RGB2HSV)
        as_hsv[..., 0] = (as_hsv[..., 0] + 20 * one) % 360
        as_hsv[..., 1] = np.clip(as_hsv[..., 1] + two * 20 / 255, 0, 1)
        as_hsv[..., 2] = np.clip(as_hsv[..., 2] + one * 10 / 255, 0, 1)
        close(hsv[row], cv2.cvtColor(as_hsv, cv2.COLOR_HSV2RGB).transpose(2, 0, 1), 1e-3)
        close(shift[row], (image + torch.tensor([one, two, one])[:, None, None] * 20 / 255).clamp(0, 1), 1e-5)
        bytes_out = cv2.convertScaleAbs(images[row].permute(1, 2, 0).numpy(), alpha=1.5)
        close(gain[row] * 255, bytes_out.transpose(2, 0, 1), 0.51)
        close(gamma[row], image ** (2.0 if one > 0 else 0.5), 1e-5)


def test_hue_saturation_value_on_grey_black_and_white() -> None:
    pixels = torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 1, 3).expand(1, 3, 1, 3)
    found = colour.hsv_shifted(pixels, *(torch.tensor([each]) for each in (0.25, 0.0, 0.1)))
    close(found, (pixels + 0.1).clamp(0, 1), 1e-6)
    redder = colour.hsv_shifted(pixels, *(torch.tensor([each]) for each in (0.0, 0.2, 0.0)))
    close(redder[0, :, 0], torch.tensor([[0, 0.5, 1.0], [0, 0.4, 0.8], [0, 0.4, 0.8]]), 1e-6)


def test_jitter_is_torchvisions_in_its_order() -> None:
    images = smooth_images() // 2 + 40  # so that nothing is clipped between
    found = alone(images, "color_jitter", brightness=0.1, contrast=0.2, saturation=0.2, hue=0.1)
    for row, image in enumerate(images.float() / 255):
        one, two = FIRST[row], SECOND[row]
        expected = vision.adjust_contrast(vision.adjust_brightness(image, 1 + 0.1 * one), 1 + 0.2 * two)
        expected = vision.adjust_hue(vision.adjust_saturation(expected, 1 + 0.2 * one), 0.1 * two)
        close(found[row], expected, 2e-3)


def test_histograms_bits_and_sharpness_are_pillows() -> None:
    images = smooth_images()
    for name, keys, change in (
        ("autocontrast", {}, ImageOps.autocontrast),
        ("equalize", {}, ImageOps.equalize),
        ("posterize", {"bits": 3}, lambda image: ImageOps.posterize(image, 3)),
        ("solarize", {"level": 100}, lambda image: ImageOps.solarize(image, 100)),
        ("sharpness", {"factor": [1.8, 1.8]}, lambda image: ImageEnhance.Sharpness(image).enhance(1.8)),
        ("sharpness", {"factor": [0.2, 0.2]}, lambda image: ImageEnhance.Sharpness(image).enhance(0.2)),
    ):
        found = alone(images, name, **keys)
        for row, image in enumerate(images):
            close(
                found[row] * 255,
                by_pillow(image, change) * 255,
                1.6 if name in {"sharpness", "autocontrast"} else 0.01,
            )


@pytest.mark.parametrize(("kernel", "sigma"), [(3, None), (5, None), (9, None), (11, None), (5, 1.3)])
def test_blur_is_opencvs(kernel: int, sigma: float | None) -> None:
    images = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = alone(images, "gaussian_blur", kernel_px=[1, kernel], sigma_px=sigma and [sigma, sigma])
    for row, image in enumerate(images.float() / 255):
        expected = cv2.GaussianBlur(image.permute(1, 2, 0).numpy(), (kernel, kernel), sigma or 0)
        close(found[row], expected.transpose(2, 0, 1), 1e-4)
    with pytest.raises(ConfigError, match=r"operations\.1\.kernel_px"):
        listed({"name": "grey"}, {"name": "gaussian_blur", "kernel_px": [3, 81]}, side=40, size=40)


def test_every_kernel_between_comes_as_often() -> None:
    dot = torch.zeros(300, 3, 21, 21, dtype=torch.uint8)
    dot[:, :, 10, 10] = 255
    torch.manual_seed(0)
    out = listed({"name": "gaussian_blur", "kernel_px": [3, 7], "probability": 1}, side=21, size=21)(dot)
    widths = (out[:, 0, 10] > 0).sum(dim=1)
    assert {width: 75 < int((widths == width).sum()) < 125 for width in (3, 5, 7)} == {3: True, 5: True, 7: True}


def test_noise_has_its_strength_and_erasing_its_area() -> None:
    grey = torch.full((60, 3, SIDE, SIDE), 128, dtype=torch.uint8)
    torch.manual_seed(0)
    noisy = listed({"name": "gaussian_noise", "sigma": [0.05, 0.1], "probability": 1})(grey)
    deviations = noisy.std(dim=(1, 2, 3))
    assert 0.048 < deviations.min() < 0.056
    assert 0.094 < deviations.max() < 0.102
    erased = listed({"name": "erasing", "scale": [0.1, 0.3], "probability": 1})(grey).amax(dim=1) == 0
    areas = erased.float().mean(dim=(1, 2))
    assert 0.085 < areas.min() < 0.15
    assert 0.25 < areas.max() < 0.33
    rows, columns = erased.any(dim=2).sum(dim=1), erased.any(dim=1).sum(dim=1)
    assert torch.equal(rows * columns, erased.sum(dim=(1, 2))), "one rectangle"
    assert len({(int(r), int(c)) for r, c in zip(rows, columns, strict=True)}) > 30


def test_a_crop_draws_its_area_and_ratio_and_stays_inside() -> None:
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    ramp = (torch.stack([x, y, x]) * 4).to(torch.uint8).expand(200, -1, -1, -1)
    torch.manual_seed(0)
    out = listed({"name": "resized_crop", "scale": [0.2, 0.6], "ratio": [0.5, 2.0], "probability": 1})(ramp) * 255 / 4
    steps_x = (out[:, 0, 32, 40] - out[:, 0, 32, 20]) / 20
    steps_y = (out[:, 1, 40, 32] - out[:, 1, 20, 32]) / 20
    areas, ratios = steps_x * steps_y, steps_x / steps_y
    assert 0.19 < areas.min() < 0.24
    assert 0.5 < areas.max() < 0.61
    assert 0.49 < ratios.min() < 0.6
    assert 1.7 < ratios.max() < 2.02
    assert 0.4 < (ratios < 1).float().mean() < 0.6
    assert out.min() >= 0
    whole = listed({"name": "resized_crop", "scale": [1.0, 1.0], "ratio": [2.0, 2.0], "probability": 1})(ramp) * 255 / 4
    # A ratio of two does not fit a square of all its area: the whole width, and half of the height.
    close((whole[:, 0, 32, 40] - whole[:, 0, 32, 20]) / 20, torch.ones(200), 0.02)
    close((whole[:, 1, 40, 32] - whole[:, 1, 20, 32]) / 20, torch.full((200,), 0.5), 0.02)


def test_a_probability_is_a_share_of_the_images_each_by_its_own_draw() -> None:
    images = smooth_images(1).expand(400, -1, -1, -1)
    torch.manual_seed(0)
    out = listed(
        {"name": "gain", "probability": 0.3},
        {"name": "grey", "probability": 0.6},
        {"name": "equalize", "probability": 0},
    )(images)
    is_grey = (out.amax(1) - out.amin(1)).amax(dim=(1, 2)) < 1e-6
    is_bright = out.mean(dim=(1, 2, 3)) > out.mean()
    assert 0.52 < is_grey.float().mean() < 0.68
    assert 0.23 < is_bright.float().mean() < 0.37
    assert 0.12 < (is_grey & is_bright).float().mean() < 0.24, "each for itself"
    before = images[:1].float() / 255
    untouched = ~is_grey & ~is_bright
    assert torch.equal(out[untouched], before.expand(int(untouched.sum()), -1, -1, -1))


def test_order_is_kept() -> None:
    images = smooth_images()
    grey, shift = {"name": "grey", "probability": 1}, {"name": "channel_shift", "levels": 60, "probability": 1}
    torch.manual_seed(0)
    last = listed(shift, grey)(images)
    torch.manual_seed(0)
    first = listed(grey, shift)(images)
    assert (last.amax(1) - last.amin(1)).max() < 1e-6 < 0.1 < (first.amax(1) - first.amin(1)).max()


@pytest.mark.parametrize("between", [False, True])
def test_a_turn_then_a_shift_is_no_shift_then_a_turn(between: bool) -> None:
    """Also where the two are multiplied into one map."""
    images = smooth_images(1)
    turn = {"name": "rotate", "degrees": 40, "probability": 1}
    shift = {"name": "shift_scale_rotate", "shift": 0.2, "scale": 0, "degrees": 0, "probability": 1}
    # What does nothing, and cannot be part of a map.
    nothing = [{"name": "gain", "factor": 1, "probability": 1}] if between else []
    for order in ((turn, shift), (shift, turn)):
        torch.manual_seed(3)
        found = listed(order[0], *nothing, order[1], fill="edge")(images)[0]
        torch.manual_seed(3)
        draws, counts = {}, {"rotate": 1, "shift_scale_rotate": 4, "gain": 0}
        for each in (order[0], *nothing, order[1]):
            torch.rand(1)  # whether it is done
            draws[each["name"]] = torch.rand(1, counts[str(each["name"])])[0]
        degrees = float(draws["rotate"][0] * 80 - 40)
        pixels = ((draws["shift_scale_rotate"][:2] * 0.4 - 0.2) * SIDE).tolist()
        expected = images[0].float() / 255
        for each in order:
            if each is turn:
                expected = vision.rotate(expected, degrees, BILINEAR)
            else:
                whole = [round(value) for value in pixels]
                expected = vision.affine(expected, 0.0, whole, 1.0, [0.0, 0.0], BILINEAR)
        middle = (slice(None), slice(26, 38), slice(26, 38))
        assert (found[middle] - expected[middle]).abs().mean() < 0.03, order
        assert (found[middle] - images[0][middle] / 255).abs().mean() > 0.06


def test_neighbouring_maps_are_resampled_once() -> None:
    noise = torch.randint(0, 256, (4, 3, SIDE, SIDE), dtype=torch.uint8)
    there, back = ({"name": "zoom", "factor": [f, f], "probability": 1} for f in (0.5, 2.0))
    found = listed(there, back)(noise)
    close(found[INNER], (noise / 255)[INNER], 1e-4)


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_is_a_function_of_the_seed_and_gives_a_batch(name: str) -> None:
    """At sizes that are no multiple of anything, for one image, and without touching what goes in."""
    images = smooth_images(3, 37)
    before = images.clone()
    augmentation = listed({"name": name, "probability": 0.7}, side=37, size=33)
    for num_images in (3, 1):
        results = []
        for seed in (1, 1):
            torch.manual_seed(seed)
            results.append(augmentation(images[:num_images]))
        out = results[0]
        assert torch.equal(*results)
        assert (out.shape, out.dtype) == ((num_images, 3, 33, 33), torch.float32)
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert torch.isfinite(out).all()
        assert 0 <= out.min() < out.max() <= 1
    assert torch.equal(images, before)
    (operation,) = augmentation.operations
    assert (operation.name, operation.share) == (name, 0.7)
    assert (augmentation.alone(name, images) - images[:, :, 2:35, 2:35] / 255).abs().max() > 0.02
    never = listed({"name": name, "probability": 0}, side=37, size=33)
    assert never.operations == ()
    assert torch.equal(never(images), (images.float() / 255)[:, :, 2:35, 2:35])


@pytest.mark.parametrize(("fill", "corner"), [("reflect", 200), ("edge", 200), ("black", 0), ("grey", 127.5)])
def test_fill_is_what_stands_beyond_the_edge(fill: Any, corner: float) -> None:
    bright = torch.full((2, 3, SIDE, SIDE), 200, dtype=torch.uint8)
    found = listed({"name": "rotate", "degrees": 45}, fill=fill).alone("rotate", bright)
    close(found[:, :, 0, 0] * 255, torch.full((2, 3), float(corner)), 0.01)
    close(found[:, :, 32, 32] * 255, torch.full((2, 3), 200.0), 0.01)


def test_two_of_a_kind_have_names_of_their_own() -> None:
    augmentation = listed({"name": "rotate", "degrees": 5}, {"name": "grey"}, {"name": "rotate", "degrees": 50})
    assert {each.name: str(each) for each in augmentation.operations} == {
        "rotate 1": "up to ±5°, 1 in 2 images", "grey": "1 in 2 images", "rotate 2": "up to ±50°, 1 in 2 images",
    }  # fmt: skip
    images = smooth_images(2)
    assert torch.equal(augmentation.alone("rotate 2", images), alone(images, "rotate", degrees=50))
