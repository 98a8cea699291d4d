"""The pixel policy: how a file's bytes become the pixels that a model sees.

One function for training, prediction, the ONNX parity gate and the server. In this order:

1. The first bytes say what the file is, whatever its name says: JPEG, PNG, WEBP, BMP, TIFF or GIF, or it is refused.
2. The header is read, and a size over the limit refused, before any decoder is touched.
3. Pillow's decoder of that one format decodes all pixels of the first frame or page. What is cut off or damaged is
   refused, never filled up. A JPEG with wrong bytes in the middle is one thing that Pillow cannot see: its decoder
   goes on with whatever it finds next.
4. Colours become 8-bit sRGB (`colour`), transparency is composited, EXIF rotation undone (`orientation`).
5. The image is scaled once and cut (`geometry`).

All of it may run in many threads: no setting of Pillow or of the `warnings` module is touched, and no warning is given.
"""

import errno
import io
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from foveal.errors import ArtifactError, ConfigError, DataError
from foveal.pixels.colour import floats_to_bytes, shorts_to_bytes, stored_rawmode, to_srgb
from foveal.pixels.geometry import Geometry, background_problems, crop_box, to_square, to_store
from foveal.pixels.headers import Header, PatchedStream, check_num_pixels, read_header
from foveal.pixels.orientation import exif_block, read_orientation, turn_upright
from foveal.pixels.rejection import REJECTION_CODES, ImageRejectedError, RejectionCode, one_line, refuse_no_file
from foveal.pixels.sniffing import ALLOWED_FORMATS, NUM_HEAD_BYTES, Format, sniff

__all__ = [
    "ALLOWED_FORMATS",
    "POLICY_VERSION",
    "REJECTION_CODES",
    "Decoded",
    "Geometry",
    "ImageRejectedError",
    "PixelPolicy",
    "RejectionCode",
    "crop_box",
    "decode",
    "decode_array",
    "decode_image",
    "to_square",
    "to_store",
]

POLICY_VERSION = 1
"""To be raised with any change that can change a pixel: it is part of the store's keys and of every bundle."""


@dataclass(frozen=True)
class PixelPolicy:
    """What may differ between projects.

    Attributes:
        background: sRGB, what transparency is composited on.
        max_pixels: width times height over which an image is refused by its header.
        version: of the rules themselves; decoding by any other than `POLICY_VERSION` is refused.

    Raises:
        ConfigError: a value is out of range.
    """

    background: tuple[int, int, int] = (255, 255, 255)
    max_pixels: int = 120_000_000
    version: int = POLICY_VERSION

    def __post_init__(self) -> None:
        problems = background_problems(self.background)
        if self.max_pixels < 1:
            problems.append(f"max_pixels: at least 1 was expected, {self.max_pixels} came")
        if problems:
            raise ConfigError("The pixel policy makes no sense.", problems=problems)


@dataclass(frozen=True, slots=True)
class Decoded:
    """A decoded image.

    Attributes:
        pixels: uint8 [height, width, 3], sRGB, 0..255, upright, C-contiguous, writable, shared with nobody.
        format: one of `ALLOWED_FORMATS`; of images in memory what Pillow says, "MEMORY" or "ARRAY".
        mode: Pillow's mode as stored in the file ("CMYK", "I;16", "P"); of arrays the type and channels ("float32x3").
        notes: what was done that is not a matter of course, one line each.
    """

    pixels: NDArray[np.uint8]
    format: str
    mode: str
    notes: tuple[str, ...]


class _Jpeg(JpegImageFile):
    """Pillow's JPEG without the search for a resolution in the EXIF block, which warns where that is damaged."""

    def _read_dpi_from_exif(self) -> None:
        pass


# The classes and not Pillow's registry, which any other package may change, and whose JPEG entry also opens a second
# picture where there is one.
_DECODERS: dict[Format, Callable[[IO[bytes]], ImageFile.ImageFile]] = {
    "JPEG": _Jpeg,
    "PNG": PngImageFile,
    "WEBP": WebPImageFile,
    "BMP": BmpImageFile,
    "TIFF": TiffImageFile,
    "GIF": GifImageFile,
}


_PIXELS_AT_ONCE = 2**16

# What indexing and unpacking raise where the bytes have come to an end.
_END_OF_DATA = (EOFError, IndexError, struct.error)


def decode(source: bytes | Path, policy: PixelPolicy | None = None) -> Decoded:
    """Decode an image file.

    Args:
        source: the file's content, or where it is. A path is read as far as needed: the first kilobyte of what is no
            image, the header of what is too large.
        policy: the default policy if None.

    Raises:
        ImageRejectedError: the content cannot be used; the reason and its code say why.
        OSError: the path cannot be read, which says nothing about the content.
        DataError: Pillow is told to accept cut-off images.
        ArtifactError: the policy is of another version.
    """
    policy = _known(policy)
    if isinstance(source, bytes):
        return _decode_stream(io.BytesIO(source), len(source), policy)
    status = source.stat()
    refuse_no_file(status)
    with source.open("rb") as stream:
        return _decode_stream(stream, status.st_size, policy)


def decode_image(image: Image.Image, policy: PixelPolicy | None = None) -> Decoded:
    """Apply the same rules to an image that Pillow has opened already; the current frame is taken.

    Args:
        image: opened, loaded or not; it is loaded, otherwise left as it is.
        policy: the default policy if None.

    Raises:
        ImageRejectedError: it is too large, cannot be decoded, or has no meaning as a picture.
    """
    policy = _known(policy)
    if not image.width or not image.height:
        raise ImageRejectedError(f"an image of {image.width} x {image.height} pixels", "empty")
    check_num_pixels(image.width, image.height, policy.max_pixels)
    mode, rawmode = image.mode, stored_rawmode(image)
    with _decoder_faults():
        image.load()
    # Pillow turns a TIFF upright when it loads it, so only the block in `info` counts here.
    return _finish(image, image.format or "MEMORY", mode, policy, rawmode=rawmode)


def decode_array(array: NDArray[Any], policy: PixelPolicy | None = None) -> Decoded:
    """Apply the same rules to an array.

    Args:
        array: [height, width], or [height, width, channels] with 1, 3 or 4 channels (grey, RGB, RGB and opacity);
            bool, uint8, uint16 or floating. Floats follow the rule for floating-point images, over all colour channels
            together; an opacity among them must lie within 0..1.
        policy: the default policy if None.

    Raises:
        ImageRejectedError: the shape, type or values are none of these.
    """
    policy = _known(policy)
    if array.size == 0:
        raise ImageRejectedError(f"an array of shape {list(array.shape)} is empty", "empty")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ImageRejectedError(
            f"an array of shape {list(array.shape)}; [height, width] or [height, width, 1, 3 or 4] was expected",
            "unsupported",
        )
    check_num_pixels(array.shape[1], array.shape[0], policy.max_pixels)
    planes = array if array.ndim == 3 else array[:, :, None]
    notes: list[str] = []
    values = _array_bytes(planes, notes)
    image = Image.fromarray(np.ascontiguousarray(values[:, :, 0] if planes.shape[2] == 1 else values))
    return _finish(image, "ARRAY", f"{array.dtype}x{planes.shape[2]}", policy, notes=notes)


def _known(policy: PixelPolicy | None) -> PixelPolicy:
    if policy is None:
        return PixelPolicy()
    if policy.version != POLICY_VERSION:
        raise ArtifactError(
            f"Pixels by version {policy.version} of the pixel policy are asked for; this foveal has version "
            f"{POLICY_VERSION}.",
            fix="use the foveal version that the model was trained with, or train again.",
        )
    return policy


def _array_bytes(planes: NDArray[Any], notes: list[str]) -> NDArray[np.uint8]:
    if planes.dtype == np.bool_:
        return planes.astype(np.uint8) * np.uint8(255)
    if planes.dtype == np.uint8:
        return planes
    if planes.dtype.kind == "u" and planes.dtype.itemsize == 2:
        return shorts_to_bytes(planes, notes)
    if planes.dtype.kind != "f":
        raise ImageRejectedError(
            f"an array of {planes.dtype} has no agreed black and white; convert it to uint8, uint16 or float in 0..1",
            "unsupported",
        )
    if planes.shape[2] < 4:
        return floats_to_bytes(planes, notes)
    opacity = planes[:, :, 3:]
    if not (float(opacity.min()) >= 0.0 and float(opacity.max()) <= 1.0):
        raise ImageRejectedError("a floating-point opacity outside 0..1", "unsupported")
    return np.concatenate([floats_to_bytes(planes[:, :, :3], notes), floats_to_bytes(opacity, [])], axis=2)


def _decode_stream(stream: IO[bytes], size: int, policy: PixelPolicy) -> Decoded:
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise DataError(
            "Pillow is told to fill up cut-off images with grey (PIL.ImageFile.LOAD_TRUNCATED_IMAGES is True).",
            fix="find what sets it and set it to False: such pictures would be learned and counted like true ones.",
        )
    name = sniff(stream.read(NUM_HEAD_BYTES))
    header = read_header(name, stream, size, policy.max_pixels)
    stream.seek(0)
    seen = cast(IO[bytes], PatchedStream(stream, header.patches)) if header.patches else stream
    with _decoder_faults():
        image = _DECODERS[name](seen)
        check_num_pixels(image.width, image.height, policy.max_pixels)
        mode, rawmode = image.mode, stored_rawmode(image)
        _make_room(image)
        image.load()
    notes = _frame_notes(image, name, header)
    return _finish(image, name, mode, policy, rawmode=rawmode, orientation=header.orientation, notes=notes)


def _make_room(image: ImageFile.ImageFile) -> None:
    """Give a TIFF the memory that its size was checked for; Pillow would ask its own limit, and warn."""
    limit = Image.MAX_IMAGE_PIXELS
    if isinstance(image, TiffImageFile) and limit is not None and image.width * image.height > limit:
        image.im = Image.new(image.mode, image.size).im


def _frame_notes(image: ImageFile.ImageFile, name: Format, header: Header) -> list[str]:
    num_frames = image.n_frames if isinstance(image, WebPImageFile) else header.num_frames
    if num_frames == 1:
        return []
    if name == "TIFF":
        return [f"{num_frames} pages: first page taken"]
    return [f"animation with {num_frames} frames: first frame taken"]


def _finish(
    image: Image.Image,
    format_name: str,
    mode: str,
    policy: PixelPolicy,
    *,
    rawmode: str = "",
    orientation: int | None = None,
    notes: Sequence[str] = (),
) -> Decoded:
    """From a loaded image to upright sRGB pixels."""
    done = list(notes)
    if format_name == "BMP" and image.mode == "RGBA" and not image.getchannel("A").getbbox():
        # A field of nothing but zeros was never used for opacity; browsers take it so too.
        image = image.convert("RGB")
    rgb, colour_notes = to_srgb(image, policy.background, rawmode)
    done += colour_notes
    exif = exif_block(image.info) if orientation is None else None
    if exif is not None:
        try:
            orientation = read_orientation(exif)
        except ValueError:
            done.append("broken EXIF ignored")
    rgb = turn_upright(rgb, orientation, done)
    return Decoded(_as_array(rgb), format_name, mode, tuple(done))


def _as_array(rgb: Image.Image) -> NDArray[np.uint8]:
    """Pillow's four bytes a pixel as three; in blocks, which takes half the time and the memory of doing it at once."""
    width, height = rgb.size
    num_rows = max(1, _PIXELS_AT_ONCE // width)
    if num_rows >= height:
        return np.array(rgb)
    pixels = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, num_rows):
        bottom = min(top + num_rows, height)
        # With a box of the same size, this is a crop without Pillow's check of its limit.
        block = rgb.resize((width, bottom - top), Image.Resampling.NEAREST, box=(0, top, width, bottom))
        pixels[top:bottom] = np.asarray(block)
    return pixels


@contextmanager
def _decoder_faults() -> Iterator[None]:
    """Turn what a decoder raises into a rejection; out of memory and a failing disk are no fault of the image."""
    try:
        yield
    except (ImageRejectedError, MemoryError):
        raise
    except OSError as error:
        if error.errno not in (None, errno.EINVAL, errno.EOVERFLOW):
            raise
        raise _rejection(error) from error
    # Decoders fed with damaged bytes raise nearly anything: ValueError, SyntaxError, KeyError, zlib.error.
    except Exception as error:
        raise _rejection(error) from error


def _rejection(error: Exception) -> ImageRejectedError:
    words = one_line(str(error)) or type(error).__name__
    if isinstance(error, Image.DecompressionBombError) or re.search("too large|too much memory", words, re.IGNORECASE):
        return ImageRejectedError(f"it unpacks to too much: {words}", "too_large")
    ends_early = any(isinstance(fault, _END_OF_DATA) for fault in (error, error.__cause__))
    if ends_early or re.search("truncated|not enough|not large enough|incomplete|no more images", words, re.IGNORECASE):
        return ImageRejectedError(f"the file is cut off: {words}", "truncated")
    if re.search(
        "unsupported|not supported|cannot handle|unknown (pixel mode|data org|compression)", words, re.IGNORECASE
    ):
        return ImageRejectedError(f"a variant that cannot be read: {words}", "unsupported")
    return ImageRejectedError(f"the file is damaged: {words}", "damaged")
