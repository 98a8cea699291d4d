"""Golden pixels: what every mode becomes, from numbers written out or worked out with plain numpy."""

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

import image_factory as factory
from foveal.pixels.colour import MAX_PROFILE_BYTES, floats_to_bytes, to_srgb
from foveal.pixels.policy import Decoded, ImageRejectedError, PixelPolicy, decode, decode_image

WHITE, BLACK = [255, 255, 255], [0, 0, 0]
BLUISH = PixelPolicy(background=(1, 2, 103))


def srgb_from_xyz_d50(xyz: NDArray[np.float64]) -> NDArray[np.float64]:
    """IEC 61966-2-1 after Lindbloom's Bradford-adapted matrix from D50; 0..255, not rounded."""
    matrix = [
        [3.1338561, -1.6168667, -0.4906146],
        [-0.9787684, 1.9161415, 0.0334540],
        [0.0719453, -0.2289914, 1.4052427],
    ]
    linear = np.clip(xyz @ np.array(matrix).T, 0.0, 1.0)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def flat(decoded: Decoded) -> list[int]:
    """The colour of an image of one colour."""
    assert (decoded.pixels == decoded.pixels[0, 0]).all()
    return decoded.pixels[0, 0].tolist()


def test_palette_with_transparency() -> None:
    # Half green over white: 128/255 * 0 + 127/255 * 255 = 127.
    decoded = decode(factory.palette_png_transparent())
    assert decoded.pixels.tolist() == [[[255, 0, 0], [127, 255, 127], WHITE, WHITE]]
    # Over (1, 2, 103): 0.4980 * 1 = 0.5 -> 0.498 -> 0; 128 + 0.996 = 129; 0.4980 * 103 = 51.3.
    assert decode(factory.palette_png_transparent(), BLUISH).pixels[0, 1].tolist() == [0, 129, 51]


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_transparent_grey_of_any_depth(bits: int) -> None:
    decoded = decode(factory.gray_key_png(bits), BLUISH)
    assert decoded.pixels.tolist() == [[WHITE, [1, 2, 103]]]
    assert "transparency composited" in decoded.notes


def test_transparent_gif() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 200, 0, 0, 0, 99])
    for x in range(3):
        image.putpixel((x, 0), x)
    decoded = decode(factory.saved(image, "GIF", transparency=1), BLUISH)
    assert decoded.pixels.tolist() == [[[255, 0, 0], [1, 2, 103], [0, 0, 99]]]
    assert decoded.notes == ("transparency composited",)


def test_transparent_colour_of_8_and_16_bits() -> None:
    key = factory.chunk(b"tRNS", bytes([0, 9, 0, 8, 0, 7]))
    decoded = decode(factory.png(3, 1, 8, 2, bytes([9, 8, 7, 9, 8, 6, 0, 0, 0]), before=key), BLUISH)
    assert decoded.pixels.tolist() == [[[1, 2, 103], [9, 8, 6], BLACK]]
    wide_key = factory.chunk(b"tRNS", bytes([0, 0, 200, 0, 100, 5]))
    decoded = decode(factory.png(2, 1, 16, 2, bytes([0, 0, 200, 0, 100, 5, 1, 1, 1, 1, 1, 1]), before=wide_key), BLUISH)
    assert decoded.pixels.tolist() == [[[1, 2, 103], [1, 1, 1]]]


def test_grey_with_opacity_of_8_and_16_bits() -> None:
    for content in (
        factory.png(3, 1, 8, 4, bytes([50, 0, 50, 102, 50, 255])),
        factory.png(3, 1, 16, 4, bytes([50, 9, 0, 0, 50, 9, 102, 102, 50, 9, 255, 255])),
    ):
        # 102/255 = 0.4: 20 + 0.6 * (1, 2, 103).
        assert decode(content, BLUISH).pixels.tolist() == [[[1, 2, 103], [21, 21, 82], [50, 50, 50]]]


def test_opaque_opacity_is_no_transparency() -> None:
    decoded = decode(factory.png(1, 1, 8, 6, bytes([5, 6, 7, 255])))
    assert decoded.pixels.tolist() == [[[5, 6, 7]]]
    assert decoded.notes == ()


def test_compositing_is_exact_for_every_colour_and_opacity() -> None:
    colour, opacity = np.meshgrid(np.arange(256), np.arange(256))
    pixels = np.stack([colour, 255 - colour, colour, opacity], axis=-1).astype(np.uint8)
    decoded = decode(factory.saved(pixels, "PNG"), BLUISH)
    background = np.array(BLUISH.background)
    expected = (opacity[..., None] * pixels[..., :3] + (255 - opacity[..., None]) * background + 127) // 255
    assert np.array_equal(decoded.pixels, expected)


@pytest.mark.parametrize("mode", ["La", "RGBa"])
def test_premultiplied_opacity(mode: str) -> None:
    via = mode.upper()
    image = Image.new(via, (2, 1), (200, 0) if via == "LA" else (200, 40, 10, 0))
    image.putpixel((1, 0), (80, 255) if via == "LA" else (80, 80, 80, 255))
    decoded = decode_image(image.convert(mode), BLUISH)
    assert decoded.pixels.tolist() == [[[1, 2, 103], [80, 80, 80]]]
    assert (decoded.format, decoded.mode) == ("MEMORY", mode)


def test_palette_with_opacity_beside_it() -> None:
    palette = np.zeros((3, 256), "<u2")
    palette[:, 7] = (200 * 257, 40 * 257, 10 * 257)
    samples = np.array([[[7, 0], [7, 102], [7, 255]]], np.uint8)
    tags = {320: (3, 768, palette.tobytes()), 338: (3, 1, b"\2\0")}
    decoded = decode(factory.tiff(samples, bits=8, photometric=3, tags=tags), BLUISH)
    # 0.4 * (200, 40, 10) + 0.6 * (1, 2, 103)
    assert decoded.pixels.tolist() == [[[1, 2, 103], [81, 17, 66], [200, 40, 10]]]
    assert decoded.mode == "PA"


def test_bmp_whose_opacity_was_never_used() -> None:
    assert flat(decode(factory.bmp_with_opacity((200, 0, 0, 0), (200, 0, 0, 0)))) == [200, 0, 0]
    decoded = decode(factory.bmp_with_opacity((200, 0, 0, 0), (200, 0, 0, 255)))
    assert decoded.pixels.tolist() == [[WHITE, [200, 0, 0]]]


def test_cmyk_without_a_profile() -> None:
    # (255 - C)(255 - K) / 255 with K = 25: 55 * 230 / 255 = 49.6, 155 * 230 / 255 = 139.8, 205 * 230 / 255 = 184.9.
    assert flat(decode(factory.cmyk_jpeg())) == [50, 140, 185]
    assert decode(factory.cmyk_jpeg()).mode == "CMYK"
    inks = np.array([[[200, 100, 50, 25], [0, 0, 0, 0], [0, 0, 0, 255]]], np.uint8)
    assert decode(factory.tiff(inks, bits=8, photometric=5)).pixels.tolist() == [[[50, 140, 185], WHITE, BLACK]]


def test_ycck_jpeg() -> None:
    # Stored inverted: Y = 55, Cb = 155, Cr = 205, K = 230. JFIF: R = Y + 1.402 (Cr - 128), and so on, is the ink.
    inks = np.array([55 + 1.402 * 77, max(55 - 0.344 * 27 - 0.714 * 77, 0.0), 55 + 1.772 * 27])
    expected = (255 - inks) * 230 / 255
    assert np.abs(np.array(flat(decode(factory.ycck_jpeg()))) - expected).max() <= 2


def test_cmyk_profile_is_followed() -> None:
    profile = factory.cmyk_profile()
    assert flat(decode(factory.cmyk_jpeg((0, 0, 0, 0), profile))) == WHITE
    # L* = 128 / 255 * 100 = 50.2 is Y = 0.1858, which sRGB encodes as 119.4.
    cyan = decode(factory.cmyk_jpeg((255, 0, 0, 0), profile))
    assert np.abs(np.array(flat(cyan)) - 119.4).max() <= 1
    assert cyan.notes == ("ICC profile converted to sRGB",)
    assert max(flat(decode(factory.cmyk_jpeg((0, 0, 0, 255), profile)))) <= 1


def test_rgb_profile_is_followed() -> None:
    levels = np.array([0, 40, 128, 200, 255], np.uint8)
    pixels = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    decoded = decode(factory.saved(pixels, "PNG", icc_profile=factory.adobe_rgb_profile()))
    xyz = (pixels / 255.0) ** factory.ADOBE_GAMMA @ factory.ADOBE_RGB_TO_XYZ.T
    assert np.abs(decoded.pixels - srgb_from_xyz_d50(xyz)).max() <= 1.6
    assert np.abs(decoded.pixels.astype(int) - pixels).max() > 20
    assert decoded.notes == ("ICC profile converted to sRGB",)


def test_grey_profile_is_followed() -> None:
    # Linear light: 128/255 = 0.502 is 188 in sRGB, 0.1 (26/255 = 0.102) is 90.
    grey = np.array([[0, 26, 128, 255]], np.uint8)
    decoded = decode(factory.saved(grey, "PNG", icc_profile=factory.gray_profile(1.0)))
    assert np.abs(decoded.pixels[0, :, 0].astype(int) - [0, 90, 188, 255]).max() <= 1
    assert (decoded.pixels[..., 0] == decoded.pixels[..., 2]).all()
    with_opacity = Image.merge("LA", [Image.fromarray(grey), Image.fromarray(np.full_like(grey, 255))])
    content = factory.saved(with_opacity, "PNG", icc_profile=factory.gray_profile(1.0))
    assert np.array_equal(decode(content).pixels, decoded.pixels)


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_srgb_profile_changes_nothing(name: str) -> None:
    content = factory.saved(factory.scene(), name, icc_profile=factory.srgb_profile())
    with Image.open(io.BytesIO(content)) as image:
        assert image.info["icc_profile"]
        assert np.array_equal(decode(content).pixels, np.asarray(image))
    assert decode(content).notes == ()


def test_grey_with_the_profile_of_a_colour_photograph() -> None:
    grey = Image.fromarray(np.array([[0, 100, 255]], np.uint8))
    decoded = decode(factory.saved(grey, "PNG", icc_profile=factory.srgb_profile()))
    assert decoded.pixels.tolist() == [[BLACK, [100] * 3, WHITE]]
    # In linear light, 100/255 = 0.392 is 168.5 in sRGB; neutral stays neutral.
    linear = factory.rgb_profile(factory.ADOBE_RGB_TO_XYZ, 1.0)
    decoded = decode(factory.saved(grey, "PNG", icc_profile=linear))
    assert np.abs(decoded.pixels - np.array([[BLACK, [168.5] * 3, WHITE]])).max() <= 1


@pytest.mark.parametrize(
    ("profile", "note"),
    [
        (b"nonsense", "broken ICC profile ignored"),
        (factory.adobe_rgb_profile()[:300], "broken ICC profile ignored"),
        (factory.cmyk_profile(), "ICC profile for CMYK ignored"),
        (factory.gray_profile(2.2), "ICC profile for GRAY ignored"),
        (bytes(MAX_PROFILE_BYTES + 1), "ICC profile of more than 4 MiB ignored"),
    ],
)
def test_profiles_that_do_not_fit_are_ignored_with_a_note(profile: bytes, note: str) -> None:
    image = Image.fromarray(factory.scene())
    image.info["icc_profile"] = profile
    decoded = decode_image(image)
    assert decoded.notes == (note,)
    assert np.array_equal(decoded.pixels, factory.scene())


def test_a_profile_that_is_not_whole() -> None:
    half = b"ICC_PROFILE\0\1\2" + factory.adobe_rgb_profile()
    broken = factory.chunk(b"iCCP", b"profile\0\0nonsense")
    for content in (
        factory.jpeg_with_segment(0xE2, half),
        factory.png(1, 1, 8, 2, b"abc", before=broken),
        factory.png(1, 1, 8, 0, b"a", before=broken),
    ):
        assert decode(content).notes == ("broken ICC profile ignored",)


def test_lab_and_ycbcr() -> None:
    # L* = 100 * L / 255, a* and b* signed: white, a mid grey, a strong red.
    stored = np.array([[[255, 0, 0], [137, 0, 0], [138, 79, 67]]], np.uint8)
    decoded = decode(factory.tiff(stored, bits=8, photometric=8))
    lightness = (stored[..., 0] / 2.55 + 16) / 116
    f = np.stack([lightness + stored[..., 1] / 500, lightness, lightness - stored[..., 2] / 200], axis=-1)
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * [0.9642, 1.0, 0.8249]
    assert np.abs(decoded.pixels - srgb_from_xyz_d50(xyz)).max() <= 2
    assert decoded.mode == "LAB"
    # JFIF: R = Y + 1.402 (Cr - 128), G = Y - 0.3441 (Cb - 128) - 0.7141 (Cr - 128), B = Y + 1.772 (Cb - 128).
    image = Image.new("YCbCr", (2, 1), (100, 128, 128))
    image.putpixel((1, 0), (100, 148, 158))
    expected = np.array([[[100, 100, 100], [142.1, 71.7, 135.4]]])
    assert np.abs(decode_image(image).pixels - expected).max() <= 1
    # As scanners write it: JPEG inside a TIFF, which is YCbCr there.
    in_tiff = decode(factory.saved(factory.scene(), "TIFF", compression="jpeg", quality=95))
    assert np.abs(in_tiff.pixels.astype(int) - factory.scene()).mean() < 3


def test_hsv() -> None:
    image = Image.new("HSV", (1, 1), (85, 255, 255))
    assert flat(decode_image(image)) == [0, 255, 0]


def test_white_is_zero_in_every_depth() -> None:
    for samples, bits in ((np.array([[0, 255]], np.uint8), 8), (np.array([[0, 65535]], np.uint16), 16)):
        assert decode(factory.tiff(samples, bits=bits, photometric=0)).pixels.tolist() == [[WHITE, BLACK]]
    floats = np.array([[0.0, 0.2, 1.0]], np.float32)
    content = factory.tiff(floats, bits=32, photometric=0, sample_format=3)
    assert decode(content).pixels.tolist() == [[WHITE, [204] * 3, BLACK]]


def test_signed_values_start_at_black() -> None:
    eight = factory.tiff(np.array([[-128, 0, 127]], np.int8), bits=8, sample_format=2)
    sixteen = factory.tiff(np.array([[-32768, 0, 32767]], np.int16), bits=16, sample_format=2)
    for content in (eight, sixteen):
        assert decode(content).pixels.tolist() == [[BLACK, [128] * 3, WHITE]]
        assert "signed" in decode(content).notes[0]


def test_32_bit_integers() -> None:
    small = factory.tiff(np.array([[0, 32768, 65535]], np.int32), bits=32, sample_format=2)
    assert decode(small).pixels.tolist() == [[BLACK, [128] * 3, WHITE]]
    signed = factory.tiff(np.array([[-100, 0, 100]], np.int32), bits=32, sample_format=2)
    assert decode(signed).pixels.tolist() == [[BLACK, [128] * 3, WHITE]]
    assert decode(signed).notes == ("32-bit integers stretched from -100..100",)
    unsigned = factory.tiff(np.array([[0, 2**31, 2**32 - 1]], np.uint32), bits=32, sample_format=1)
    assert decode(unsigned).pixels.tolist() == [[BLACK, [128] * 3, WHITE]]
    memory = Image.fromarray(np.array([[0, 256, 65535]], np.int32))
    assert decode_image(memory).pixels.tolist() == [[BLACK, [1] * 3, WHITE]]


def test_16_bits_are_the_same_in_grey_colour_and_memory() -> None:
    values = np.arange(0, 65536, 97).astype(">u2")[None]
    grey = decode(factory.png(values.shape[1], 1, 16, 0, values.tobytes()))
    colour = decode(factory.png(values.shape[1], 1, 16, 2, np.stack([values] * 3, axis=-1).astype(">u2").tobytes()))
    memory = decode_image(Image.fromarray(values.astype(np.uint16)))
    assert np.array_equal(grey.pixels, colour.pixels)
    assert np.array_equal(grey.pixels, memory.pixels)
    assert grey.pixels[0, :, 1].tolist() == [int(value) // 256 for value in values[0]]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_floats_that_are_no_numbers(value: float) -> None:
    content = factory.tiff(np.array([[0.0, value]], np.float32), bits=32, sample_format=3)
    with pytest.raises(ImageRejectedError, match="not a number") as caught:
        decode(content)
    assert caught.value.code == "unsupported"


def test_floats_in_blocks_equal_floats_at_once() -> None:
    values = np.random.default_rng(0).normal(size=(600, 3)).astype(np.float32)
    notes: list[str] = []
    low, high = float(values.min()), float(values.max())
    expected = np.floor((values.astype(np.float64) - low) / (high - low) * 255 + 0.5)
    assert np.array_equal(floats_to_bytes(values, notes), expected)
    assert notes == [f"float stretched from {low:.6g}..{high:.6g}"]


def test_text_of_a_png_is_not_taken_for_metadata() -> None:
    """Pillow puts a PNG's text beside its metadata, under names that the file chooses."""
    for name in (b"icc_profile", b"transparency", b"exif", b"Raw profile type exif", b"xmp"):
        text = factory.chunk(b"tEXt", name + b"\0nonsense")
        decoded = decode(factory.png(1, 1, 8, 2, bytes([5, 6, 7]), before=text))
        assert decoded.pixels.tolist() == [[[5, 6, 7]]]
        assert decoded.notes in ((), ("broken EXIF ignored",))


def test_exif_hidden_in_a_pngs_text() -> None:
    text = b"Raw profile type exif\0\nexif\n      40\n" + factory.exif_block(6).hex().encode()
    decoded = decode(factory.png(2, 1, 8, 0, bytes([10, 20]), before=factory.chunk(b"tEXt", text)))
    assert decoded.pixels[:, :, 0].tolist() == [[10], [20]]
    assert decoded.notes == ("rotated by EXIF 6",)


def test_an_unknown_mode_is_refused() -> None:
    image = Image.new("RGB", (2, 2))
    image._mode = "XYZ"
    with pytest.raises(ImageRejectedError, match="XYZ"):
        to_srgb(image, (0, 0, 0))


def test_pillows_lab_profile_is_the_one_assumed() -> None:
    """The golden numbers above take Pillow's LAB profile to have the white of D50."""
    white = ImageCms.createProfile("LAB").media_white_point
    assert np.allclose(white[0], (0.9642, 1.0, 0.8249), atol=2e-3)
