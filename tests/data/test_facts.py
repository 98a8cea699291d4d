"""What is measured of a picture: each figure against its definition, the hash against the library that defined it."""

import math

import imagehash
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from foveal.data.facts import MEASURES, RECORD, REDUCED_PIXELS, Facts, glance, look, measure, measured, record
from foveal.data.sketch import SKETCH_BYTES

GREY = (np.float64(0.299), np.float64(0.587), np.float64(0.114))


def noise(height: int, width: int, seed: int = 0, low: int = 0, high: int = 256) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(low, high, (height, width, 3), dtype=np.uint8)


def scene(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """Something with large and small forms, as photographs have."""
    rng = np.random.default_rng(seed)
    layers = [rng.normal(size=(max(2, height // step), max(2, width // step), 3)) * step for step in (4, 12, 40)]
    grown = [ndimage.zoom(one, (height / one.shape[0], width / one.shape[1], 1), order=1) for one in layers]
    total = sum(one[:height, :width] for one in grown)
    return np.clip((total - total.min()) / np.ptp(total) * 255, 0, 255).astype(np.uint8)


def values_of(pixels: NDArray[np.uint8]) -> dict[str, float]:
    return dict(zip(MEASURES, measure(pixels).values.tolist(), strict=True))


def hash_of(pixels: NDArray[np.uint8]) -> str:
    return f"{measure(pixels).phash:016x}"


@pytest.mark.parametrize("shape", [(40, 60), (32, 32), (7, 500), (200, 180)])
def test_each_measure_is_what_it_says(shape: tuple[int, int]) -> None:
    pixels = scene(*shape, seed=shape[0])
    pixels[: shape[0] // 4] = 3
    pixels[-3:] = 250
    luma = np.asarray(Image.fromarray(pixels).convert("L")).astype(np.float64)
    np.testing.assert_allclose(luma, pixels @ np.array(GREY), atol=0.51)
    counts = np.bincount(luma.astype(int).ravel(), minlength=256)
    shares = counts[counts > 0] / luma.size
    ring = np.ones(shape, bool)
    ring[1:-1, 1:-1] = False
    edges = ndimage.laplace(luma)[1:-1, 1:-1]
    found = values_of(pixels)
    expected = {
        "brightness": luma.mean() / 255,
        "contrast": luma.std() / 255,
        "entropy": -(shares * np.log2(shares)).sum(),
        "num_values": len(np.unique(luma)),
        "top_two_share": sum(sorted(shares)[-2:]),
        "dark_share": (luma <= 12).mean(),
        "bright_share": (luma >= 243).mean(),
        "sharpness": edges.std() / luma.std(),
        "border_brightness": luma[ring].mean() / 255,
        "border_contrast": luma[ring].std() / 255,
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    colours = pixels.astype(int)
    if min(shape) < 64:
        assert found["saturation"] == pytest.approx((colours.max(2) - colours.min(2)).mean() / 255, rel=1e-4)


def test_sharpness_tells_a_blurred_photograph_at_any_size() -> None:
    for height, width in ((100, 120), (300, 400), (600, 800)):
        sharp = noise(height, width) if height < 256 else np.kron(noise(100, 134)[:, :, :1], np.ones((6, 6, 3)))
        sharp = np.ascontiguousarray(sharp[:height, :width].astype(np.uint8))
        blurred = np.stack([ndimage.gaussian_filter(sharp[:, :, i], height / 40) for i in range(3)], axis=2)
        assert values_of(sharp)["sharpness"] > 4 * values_of(blurred)["sharpness"]


def test_grey_and_colour_are_told_apart_through_the_noise_of_a_large_photograph() -> None:
    grey = np.repeat(scene(400, 500, 1)[:, :, :1], 3, axis=2)
    assert values_of(grey)["saturation"] == 0.0
    flicker = np.clip(grey.astype(int) + np.random.default_rng(0).integers(-4, 5, grey.shape), 0, 255).astype(np.uint8)
    assert values_of(flicker)["saturation"] < 0.01 < values_of(scene(400, 500, 2))["saturation"]


@pytest.mark.parametrize("value", [0, 1, 128, 255])
def test_a_flat_picture(value: int) -> None:
    found = values_of(np.full((50, 30, 3), value, np.uint8))
    flat = {
        "brightness": value / 255,
        "contrast": 0.0,
        "entropy": 0.0,
        "num_values": 1.0,
        "top_two_share": 1.0,
        "dark_share": float(value <= 12),
        "bright_share": float(value >= 243),
        "sharpness": 0.0,
        "saturation": 0.0,
        "border_brightness": value / 255,
        "border_contrast": 0.0,
    }
    assert found == pytest.approx(flat, abs=1e-6)


def test_a_mask_of_two_values() -> None:
    mask = np.repeat((noise(64, 64)[:, :, :1] > 127).astype(np.uint8) * np.uint8(255), 3, axis=2)
    found = values_of(mask)
    assert (found["num_values"], found["top_two_share"]) == (2.0, 1.0)
    assert found["dark_share"] + found["bright_share"] == pytest.approx(1.0)
    assert found["entropy"] == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1), (2, 2), (3, 3), (1, 10_000), (10_000, 1), (2, 5_000)])
def test_the_smallest_and_oddest_shapes(shape: tuple[int, int]) -> None:
    found = measure(noise(*shape))
    assert np.isfinite(found.values).all()
    assert found.sketch.shape == (SKETCH_BYTES,)
    assert found.sketch.dtype == np.uint8


def test_a_very_large_or_oblong_picture_is_reduced_first() -> None:
    for shape in ((1_000, 1_500), (250, 4_000)):
        assert shape[0] * shape[1] > REDUCED_PIXELS
        assert np.isfinite(measure(noise(*shape)).values).all()


def test_what_is_given_is_left_as_it_is() -> None:
    pixels = noise(30, 40)
    pixels.flags.writeable = False
    before = pixels.copy()
    measure(pixels)
    np.testing.assert_array_equal(pixels, before)


@pytest.mark.parametrize("seed", range(40))
def test_the_hash_is_the_one_of_imagehash(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = (int(value) for value in rng.integers(3, 400, 2))
    pixels = scene(height, width, seed) if seed % 2 else noise(height, width, seed)
    assert hash_of(pixels) == str(imagehash.phash(Image.fromarray(pixels)))


def _ramp(height: int, width: int) -> NDArray[np.uint8]:
    return np.broadcast_to(np.linspace(0, 255, width).astype(np.uint8)[None, :, None], (height, width, 3)).copy()


def test_the_hash_of_pictures_whose_coefficients_are_zero_is_no_noise_either() -> None:
    half = noise(40, 20)
    square = np.zeros((64, 64, 3), np.uint8)
    square[16:48, 16:48] = 255
    mirrored = np.concatenate([half, half[:, ::-1]], axis=1)
    flat = [np.full((50, 70, 3), value, np.uint8) for value in (0, 7, 255)]
    for pixels in (mirrored, square, _ramp(90, 130), np.zeros((1, 1, 3), np.uint8), *flat):
        assert hash_of(pixels) == str(imagehash.phash(Image.fromarray(pixels)))


def test_the_hash_stays_near_where_a_picture_is_saved_again() -> None:
    whole, other = scene(200, 300, 5), scene(200, 300, 6)
    smaller = np.asarray(Image.fromarray(whole).resize((180, 120)))
    assert (measure(whole).phash ^ measure(smaller).phash).bit_count() <= 6
    assert (measure(whole).phash ^ measure(other).phash).bit_count() >= 16


def test_many_together_are_measured_as_each_by_itself() -> None:
    """Bit for bit, so that it does not matter in whose company a file was read."""
    shapes = (
        [(32, 32)] * 3 + [(20, 31)] * 3 + [(70, 31), (1, 1), (1, 5), (2, 9), (9, 2), (63, 63), (64, 64), (300, 280)]
    )
    pictures = [noise(*shape, seed=number) for number, shape in enumerate(shapes)]
    pictures += [scene(32, 32, seed=1), np.full((32, 32, 3), 9, np.uint8), scene(90, 50, seed=2), scene(20, 31, seed=3)]
    alone = [measured([look(each)])[0] for each in pictures]
    for one, other in zip(alone, measured([glance(each) for each in pictures]), strict=True):
        np.testing.assert_array_equal(one.values, other.values)
        assert one.phash == other.phash
        np.testing.assert_array_equal(one.sketch, other.sketch)
    assert measured([]) == []


def test_facts_come_back_from_their_records() -> None:
    pictures = {2: noise(20, 30, 1), 0: scene(70, 50, 2), 5: noise(9, 9, 3)}
    found = {row: measure(pixels) for row, pixels in pictures.items()}
    facts = Facts.unknown(7)
    records = [record(found[row], pixels.shape[1], pixels.shape[0]) for row, pixels in pictures.items()]
    assert {len(one) for one in records} == {RECORD.itemsize}
    facts.fill(list(pictures), records)
    assert np.flatnonzero(facts.is_known).tolist() == [0, 2, 5]
    for row, pixels in pictures.items():
        assert (facts.height_px[row], facts.width_px[row]) == pixels.shape[:2]
        assert int(facts.phash[row]) == found[row].phash
        assert facts.phash_texts()[row] == str(imagehash.phash(Image.fromarray(pixels)))
        np.testing.assert_array_equal(facts.measures[row], found[row].values)
        np.testing.assert_array_equal(facts.sketch[row], found[row].sketch)
        assert facts.measure("contrast")[row] == found[row].values[MEASURES.index("contrast")]
    assert facts.phash_texts()[[1, 3, 4, 6]].tolist() == [None] * 4
    for row in (1, 3, 4, 6):
        assert math.isnan(facts.width_px[row])
        assert np.isnan(facts.measures[row]).all()
        assert facts.phash[row] == 0
        assert facts.format[row] is None
    Facts.unknown(0).fill([], [])
