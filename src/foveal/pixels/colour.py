"""Any colours that a file can hold, as 8-bit sRGB.

The rules, in this order:

- 16-bit values keep their high byte, as libpng's `png_set_strip_16` and Pillow do: 0..65535 becomes 0..255, the same in
  grey, in colour and in arrays, and an 8-bit image that was widened to 16 bits comes back exactly. Where a TIFF says
  that it holds fewer bits (12), those count; signed values are shifted first, so that the lowest is black.
- 32-bit integers within 0..65535 count as 16-bit; others are stretched from their smallest to their largest value.
- Floats within [0, 1] are multiplied by 255 and rounded; others are stretched from their smallest to their largest
  value, a flat image becoming black. Not-a-number and infinity are refused.
- An embedded ICC profile is followed to sRGB with the perceptual intent, the one every profile is made for; for matrix
  profiles, as cameras and screens have them, it equals the relative colorimetric one. A profile that means sRGB leaves
  the pixels untouched, a broken one or one of another colour space is ignored with a note.
- Without a profile: CMYK is multiplied out, R = (255 - C)(255 - K) / 255; JPEG's four components are taken as inverted,
  as Adobe writes them. LAB goes through the CIE's D50 white. PNG's gAMA and cHRM are not followed.
- Transparency comes last: round((alpha * colour + (255 - alpha) * background) / 255), on sRGB values as browsers do. So
  a colour under full transparency has no influence at all.
"""

import io
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from foveal.pixels.rejection import ImageRejectedError

MAX_PROFILE_BYTES = 4 * 2**20
_NUM_CACHED_PROFILES = 16
# Profiles of sRGB by different makers differ by a rounding; nobody can see two levels.
_SAME_COLOUR_LEVELS = 2
_BLOCK_ROWS = 256

_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_WHITE_IS_ZERO, _SIGNED = 0, 2


def to_srgb(image: Image.Image, background: tuple[int, int, int], rawmode: str = "") -> tuple[Image.Image, list[str]]:
    """Turn a loaded image of any mode to 8-bit sRGB.

    Args:
        image: loaded, its metadata in `info`; left as it is.
        background: sRGB, what transparency is composited on.
        rawmode: how its values were stored, see `stored_rawmode`.

    Returns:
        An image of mode RGB, and notes on what was done.

    Raises:
        ImageRejectedError: the mode or the values have no meaning as a picture.
    """
    profile, key = image.info.get("icc_profile", b""), image.info.get("transparency")
    # None says that one is there, but not whole.
    notes = ["broken ICC profile ignored"] if profile is None else []
    if image.mode == "RGB" and not profile and key is None:
        return image, notes
    alpha = _alpha(image, key, rawmode)
    if key is not None:
        # Pillow tries to carry a transparent colour over to other modes, and warns where it cannot.
        image = image.copy()
        del image.info["transparency"]
    flat = _eight_bits(image, notes)
    rgb = _through_profile(flat, profile, notes) if isinstance(profile, bytes) and profile else plain_rgb(flat)
    if alpha is not None and alpha.getextrema() != (255, 255):
        base = Image.new("RGB", rgb.size, background)
        base.paste(rgb, (0, 0), alpha)
        rgb = base
        notes.append("transparency composited")
    return rgb, notes


def stored_rawmode(image: Image.Image) -> str:
    """How the values of a PNG are stored, in Pillow's words; to be asked before the image is loaded, or it is "".

    Pillow widens greys of 2 and 4 bits and narrows colours of 16, but not the transparent value that goes with them.
    """
    tiles = getattr(image, "tile", None)
    rawmode = tiles[0][3] if tiles else None
    return rawmode if isinstance(rawmode, str) else ""


def plain_rgb(image: Image.Image) -> Image.Image:
    """An 8-bit image as RGB where no profile says how."""
    if image.mode == "RGB":
        return image
    return _lab_transform().apply(image) if image.mode == "LAB" else image.convert("RGB")


@lru_cache(maxsize=1)
def _lab_transform() -> ImageCms.ImageCmsTransform:
    # Not through a table of interpolated colours: its white is (254, 255, 254).
    return ImageCms.buildTransform(
        ImageCms.createProfile("LAB"),
        ImageCms.createProfile("sRGB"),
        "LAB",
        "RGB",
        ImageCms.Intent.PERCEPTUAL,
        ImageCms.Flags.NOOPTIMIZE,
    )


def _alpha(image: Image.Image, key: Any, rawmode: str) -> Image.Image | None:
    """The opacity as an image of mode L, or None where there is none.

    Args:
        image: of any mode.
        key: the value that is transparent wherever it occurs; or the opacity of each colour of a palette. The text of
            a PNG can call itself "transparency" too, so it may be anything.
        rawmode: see `stored_rawmode`.
    """
    mode = image.mode
    if mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        return image.getchannel(image.getbands()[-1])
    if mode == "P" and image.palette is not None and image.palette.mode == "RGBA":
        return image.convert("RGBA").getchannel("A")
    if mode == "P" and isinstance(key, bytes | int):
        table = np.full(256, 255, np.uint8)
        if isinstance(key, bytes):
            table[: len(key)] = np.frombuffer(key[:256], np.uint8)
        elif key < 256:
            table[key] = 0
        return Image.fromarray(table[np.asarray(image)])
    if mode == "RGB" and isinstance(key, tuple) and len(key) == 3:
        # Of 16-bit colours Pillow keeps the high byte, so that is all that can be compared.
        shift = 8 if rawmode == "RGB;16B" else 0
        opaque = (np.asarray(image) != np.array([value >> shift & 255 for value in key], np.uint8)).any(axis=2)
    elif mode in ("1", "L") and isinstance(key, int):
        opaque = np.asarray(image.convert("L")) != key * {"L;2": 85, "L;4": 17}.get(rawmode, 1)
    elif mode.startswith("I;16") and isinstance(key, int):
        opaque = np.asarray(image) != key
    else:
        return None
    return Image.fromarray(opaque.astype(np.uint8) * np.uint8(255))


def _eight_bits(image: Image.Image, notes: list[str]) -> Image.Image:
    """The colours alone, 8 bits each: an image of mode L, RGB, CMYK or LAB."""
    mode = image.mode
    if mode in ("RGB", "CMYK", "LAB"):
        return image
    if mode == "L":
        if _tiff_value(image, _SAMPLE_FORMAT, 1) == _SIGNED:
            notes.append("signed 8-bit values shifted")
            return Image.fromarray(np.asarray(image) ^ np.uint8(0x80))
        return image
    if mode == "1":
        return image.convert("L")
    if mode in ("LA", "La"):
        return (image.convert("LA") if mode == "La" else image).getchannel("L")
    if mode == "RGBa":
        return image.convert("RGBA").convert("RGB")
    if mode in ("RGBA", "RGBX", "P", "PA", "YCbCr", "HSV"):
        return image.convert("RGB")
    if mode == "F" or mode.startswith("I"):
        return Image.fromarray(_wide_grey(image, notes))
    raise ImageRejectedError(f"pictures of Pillow's mode {mode} are not supported", "unsupported")


def _wide_grey(image: Image.Image, notes: list[str]) -> NDArray[np.uint8]:
    """Grey of more than 8 bits."""
    values = np.asarray(image)
    bits = _tiff_value(image, _BITS_PER_SAMPLE, 16)
    signed = _tiff_value(image, _SAMPLE_FORMAT, 1) == _SIGNED
    if image.mode == "F":
        grey = floats_to_bytes(values, notes)
    elif image.mode.startswith("I;16"):
        grey = (values >> (min(max(bits, 8), 16) - 8)).astype(np.uint8)
        notes.append(f"{bits}-bit scaled")
    elif signed and bits == 16:
        grey = ((values + 0x8000) >> 8).astype(np.uint8)
        notes.append("signed 16-bit scaled")
    else:
        # Pillow has no unsigned 32-bit mode: large values come as negative ones.
        whole = values if signed or bits != 32 else values.view(np.uint32)
        grey = _wide_integers_to_bytes(whole, notes)
    if _tiff_value(image, _PHOTOMETRIC, 1) == _WHITE_IS_ZERO:
        # Pillow turns this round for 8 bits and fewer, but not for more.
        return np.invert(grey)
    return grey


def _wide_integers_to_bytes(values: NDArray[np.integer[Any]], notes: list[str]) -> NDArray[np.uint8]:
    low, high = int(values.min()), int(values.max())
    if low >= 0 and high <= 65535:
        notes.append("16-bit scaled")
        return (values >> 8).astype(np.uint8)
    notes.append(f"32-bit integers stretched from {low}..{high}")
    return _stretched(values, low, high)


def shorts_to_bytes(values: NDArray[np.uint16], notes: list[str]) -> NDArray[np.uint8]:
    """The high bytes of 16-bit values of any shape."""
    notes.append("16-bit scaled")
    return (values >> 8).astype(np.uint8)


def floats_to_bytes(values: NDArray[np.floating[Any]], notes: list[str]) -> NDArray[np.uint8]:
    """Floats of any shape as bytes; the rule is at the top of this module.

    Raises:
        ImageRejectedError: a value is not a number, or infinite.
    """
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ImageRejectedError("a floating-point image with values that are not a number, or infinite", "unsupported")
    if low >= 0.0 and high <= 1.0:
        notes.append("float scaled from 0..1")
        return _stretched(values, 0.0, 1.0)
    notes.append(f"float stretched from {low:.6g}..{high:.6g}")
    return _stretched(values, low, high)


def _stretched(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """`low` to 0 and `high` to 255, rounded half up; in blocks of rows, as doubles take eight times the room."""
    out = np.zeros(values.shape, np.uint8)
    if low == high:
        return out
    # Halves first, where the span of two huge doubles would overflow.
    factor = 1.0 if math.isfinite(float(high) - float(low)) else 0.5
    span = high * factor - low * factor
    for row in range(0, len(values), _BLOCK_ROWS):
        block = values[row : row + _BLOCK_ROWS].astype(np.float64)
        out[row : row + _BLOCK_ROWS] = np.floor((block * factor - low * factor) / span * 255.0 + 0.5)
    return out


def _tiff_value(image: Image.Image, tag: int, default: int) -> int:
    """The first value of a TIFF tag; the default for other formats."""
    tags = getattr(image, "tag_v2", None)
    value = default if tags is None else tags.get(tag, default)
    if isinstance(value, tuple):
        value = value[0] if value else default
    return value if isinstance(value, int) else default


@dataclass(frozen=True, slots=True)
class _Route:
    """What to do with pixels that carry a certain profile.

    Attributes:
        mode: the mode that the pixels must be in.
        transform: from there to sRGB; None where the pixels are sRGB already.
        fault: why the profile is ignored, or "".
    """

    mode: str
    transform: ImageCms.ImageCmsTransform | None = None
    fault: str = ""


def _through_profile(image: Image.Image, profile: bytes, notes: list[str]) -> Image.Image:
    if image.mode == "LAB":
        return plain_rgb(image)
    if len(profile) > MAX_PROFILE_BYTES:
        notes.append("ICC profile of more than 4 MiB ignored")
        return plain_rgb(image)
    route = _route(profile, image.mode)
    if route.fault:
        notes.append(route.fault)
    if route.transform is None:
        return plain_rgb(image)
    notes.append("ICC profile converted to sRGB")
    return route.transform.apply(image if image.mode == route.mode else image.convert(route.mode))


@lru_cache(maxsize=_NUM_CACHED_PROFILES)
def _route(profile: bytes, mode: str) -> _Route:
    """Build the way from a profile to sRGB once; Little CMS lets many threads use one transform."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        # Grey files often carry the profile of the colour photograph that they were made from.
        needed = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}.get(space, "")
        if needed != mode and (mode, needed) != ("L", "RGB"):
            return _Route(mode, fault=f"ICC profile for {space or 'an unknown space'} ignored")
        transform = ImageCms.buildTransform(
            source, ImageCms.createProfile("sRGB"), needed, "RGB", ImageCms.Intent.PERCEPTUAL
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return _Route(mode, fault="broken ICC profile ignored")
    return _Route(needed, None if _leaves_alone(transform, needed) else transform)


def _leaves_alone(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether a transform moves no colour of a grid by more than can be seen: then the profile means sRGB."""
    if mode == "CMYK":
        return False
    levels = np.arange(0, 256, 15 if mode == "RGB" else 1, dtype=np.uint8)
    if mode == "RGB":
        probe = Image.fromarray(np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(len(levels), -1, 3))
    else:
        probe = Image.fromarray(levels[None])
    before = np.asarray(probe.convert("RGB")).astype(np.int16)
    after = np.asarray(transform.apply(probe)).astype(np.int16)
    return int(np.abs(after - before).max()) <= _SAME_COLOUR_LEVELS
