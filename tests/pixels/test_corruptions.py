"""Corruptions: each does what it says, as strongly as it says, and the same each time."""

import colorsys
import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_sample_image

from foveal.errors import ConfigError
from foveal.pixels import corruptions
from foveal.pixels.corruptions import CORRUPTIONS, corrupt, corruptions_of

STRENGTHS = range(1, 6)


@pytest.fixture(scope="module")
def photograph() -> NDArray[np.uint8]:
    """A real one, of 80 x 60 pixels."""
    picture = Image.fromarray(load_sample_image("flower.jpg")).resize((80, 60), Image.Resampling.LANCZOS)
    pixels = np.array(picture)
    pixels.flags.writeable = False
    return pixels


def distance(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    return float(np.abs(first.astype(float) - second).mean())


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_grows_with_its_strength_and_is_the_same_each_time(name: str, photograph: NDArray[np.uint8]) -> None:
    assert corrupt(photograph, name, 0) is photograph
    made = [corrupt(photograph, name, strength, row=3) for strength in STRENGTHS]
    distances = [distance(each, photograph) for each in made]
    assert distances == sorted(distances)
    assert len(set(distances)) == 5
    assert distances[0] > 0
    for strength, each in zip(STRENGTHS, made, strict=True):
        assert each.dtype == np.uint8
        assert each.shape == photograph.shape
        np.testing.assert_array_equal(corrupt(photograph, name, strength, row=3), each)
        other_row = corrupt(photograph, name, strength, row=4)
        assert np.array_equal(other_row, each) == (name != "noise")


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (40, 2)])
def test_pictures_of_a_few_pixels_are_no_trouble(name: str, shape: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    for strength in STRENGTHS:
        assert corrupt(picture, name, strength).shape == picture.shape


@pytest.mark.parametrize("strength", STRENGTHS)
def test_noise_is_white_and_as_strong_as_it_says(strength: int) -> None:
    grey = np.full((120, 120, 3), 128, dtype=np.uint8)
    noise = (corrupt(grey, "noise", strength).astype(float) - 128) / 255
    assert abs(noise.mean()) < 0.005
    assert noise.std() == pytest.approx(corruptions.NOISE[strength - 1], rel=0.06)  # a little is clipped
    assert abs(np.corrcoef(noise[:, :-1].ravel(), noise[:, 1:].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]) < 0.02


@pytest.mark.parametrize("strength", STRENGTHS)
def test_blur_is_gaussian_and_relative_to_the_shorter_side(strength: int, photograph: NDArray[np.uint8]) -> None:
    deviation_px = corruptions.BLUR[strength - 1] * 60
    wanted = gaussian_filter(photograph.astype(float), (deviation_px, deviation_px, 0), mode="nearest")
    assert np.abs(corrupt(photograph, "blur", strength) - wanted).max() <= 0.51


@pytest.mark.parametrize("strength", STRENGTHS)
def test_light_contrast_and_colour_follow_their_formulas(strength: int, photograph: NDArray[np.uint8]) -> None:
    at, values = strength - 1, photograph.astype(float)
    darker = values * corruptions.DARKER[at]
    mean = values.mean(axis=(0, 1))
    contrast = mean + (values - mean) * corruptions.CONTRAST[at]
    grey = np.asarray(Image.fromarray(photograph).convert("L"), dtype=float)[..., None]
    saturation = grey + (values - grey) * corruptions.SATURATION[at]
    for name, wanted, off in (("darker", darker, 0.51), ("contrast", contrast, 0.51), ("saturation", saturation, 1.1)):
        assert np.abs(corrupt(photograph, name, strength) - wanted).max() <= off
    brighter = corrupt(photograph, "brighter", strength)
    for y, x in ((0, 0), (30, 40), (59, 79), (20, 50)):
        hue, colour, value = colorsys.rgb_to_hsv(*(photograph[y, x] / 255))
        wanted = 255 * np.array(colorsys.hsv_to_rgb(hue, colour, min(1.0, value + corruptions.BRIGHTER[at])))
        assert np.abs(brighter[y, x] - wanted).max() <= 0.51


def test_black_becomes_grey_in_more_light_and_white_stays_white() -> None:
    ends = np.stack([np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)])
    assert corrupt(ends[0], "brighter", 5).tolist() == np.full((4, 4, 3), 128).tolist()
    assert corrupt(ends[1], "brighter", 5).tolist() == ends[1].tolist()


@pytest.mark.parametrize("strength", STRENGTHS)
def test_jpeg_is_what_a_program_would_have_saved(strength: int, photograph: NDArray[np.uint8]) -> None:
    stream = io.BytesIO()
    Image.fromarray(photograph).save(stream, "JPEG", quality=corruptions.JPEG[strength - 1])
    np.testing.assert_array_equal(corrupt(photograph, "jpeg", strength), np.asarray(Image.open(stream)))


def test_resizing_leaves_no_detail_finer_than_its_share() -> None:
    stripes = np.zeros((60, 60, 3), np.uint8)
    stripes[:, ::2] = 255  # one pixel wide: gone as soon as half of the pixels are
    assert corrupt(stripes, "resize", 2)[10:-10, 10:-10].std() < 0.1 * stripes.std()
    broad = np.zeros((60, 60, 3), np.uint8)
    broad[:, 20:40] = 255
    assert corrupt(broad, "resize", 4)[30, 30].min() > 240


def test_names_are_read_in_one_order_each_once() -> None:
    assert corruptions_of("all") == CORRUPTIONS
    assert corruptions_of(" Blur , noise,blur") == ("noise", "blur")
    assert corruptions_of("brightness") == ("darker", "brighter")
    with pytest.raises(ConfigError) as refused:
        corruptions_of("noise,blurr,,fog")
    assert list(refused.value.problems) == ["'blurr'", "an empty name", "'fog'"]
    assert "saturation" in (refused.value.fix or "")


@pytest.mark.parametrize(("name", "strength"), [("fog", 1), ("noise", 6), ("noise", -1)])
def test_what_there_is_not_is_refused(name: str, strength: int) -> None:
    with pytest.raises(ConfigError, match="expected one of noise"):
        corrupt(np.zeros((4, 4, 3), np.uint8), name, strength)
