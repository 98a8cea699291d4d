"""Small pictures of samples, as data URIs that stand inside the page."""

import base64
import io
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from foveal.data.manifest import Manifest
from foveal.errors import FovealError
from foveal.files import sha256_file
from foveal.pixels.policy import PixelPolicy, crop_box, decode
from foveal.types import Box

SIDE_PX = 128
"""The longer side; pages show them at 64 to 112 CSS pixels."""
TINY_PX = 48
"""Smaller pictures are enlarged with hard edges, for smoothing would show pixels that are not there."""
_QUALITY = 80
_MAX_THREADS = 8


@dataclass(frozen=True)
class Thumbnail:
    """A sample as a picture, or in words why there is none.

    Attributes:
        uri: a `data:` URI; empty where there is no picture.
        problem: why there is no picture; empty where there is one.
        is_tiny: whether it is to be enlarged with hard edges.
    """

    uri: str = ""
    problem: str = ""
    is_tiny: bool = False


def make_thumbnails(
    manifest: Manifest, rows: Iterable[int], *, policy: PixelPolicy, box_margin: float = 0.0
) -> dict[int, Thumbnail]:
    """Make the pictures of some rows of a manifest. A row whose image is gone or damaged gets words instead.

    Args:
        manifest: where the samples are listed.
        rows: which of them; one named twice is made once.
        policy: how files become pixels.
        box_margin: margin around each box, as a share of its width and height.
    """
    wanted = sorted(set(rows))
    some = manifest.take(np.array(wanted, dtype=np.int64))
    sources = list(zip(some.absolute_paths(), some.boxes(), some.table["sha256"].to_pylist(), strict=True))
    return dict(zip(wanted, thumbnails_of(sources, policy=policy, box_margin=box_margin), strict=True))


def thumbnails_of(
    sources: Sequence[tuple[Path, Box | None, str | None]], *, policy: PixelPolicy, box_margin: float = 0.0
) -> list[Thumbnail]:
    """Make the pictures of image files, in order; see `make_thumbnails`.

    Args:
        sources: each file, the part of it to show (None: all), and its hash as it was (None: not checked).
        policy: how files become pixels.
        box_margin: margin around each box, as a share of its width and height.
    """
    make = partial(_make, policy=policy, box_margin=box_margin)
    # Decoding is done in C and lets go of the interpreter, so threads are enough.
    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        return list(pool.map(make, *zip(*sources, strict=True))) if sources else []


def _make(path: Path, box: Box | None, sha256: str | None, *, policy: PixelPolicy, box_margin: float) -> Thumbnail:
    try:
        if sha256 is not None and sha256_file(path) != sha256:
            return Thumbnail(problem="the file has changed since")
        pixels = decode(path, policy).pixels
        if box is not None:
            pixels = crop_box(pixels, box, box_margin)
    except FileNotFoundError:
        return Thumbnail(problem="the file is not there any more")
    except OSError as error:
        return Thumbnail(problem=f"the file cannot be read: {error.strerror or type(error).__name__}")
    except FovealError as error:
        return Thumbnail(problem=error.message)
    return encoded(Image.fromarray(pixels))


def encoded(picture: Image.Image) -> Thumbnail:
    """A picture made small, in place, as a data URI."""
    is_tiny = max(picture.size) < TINY_PX
    picture.thumbnail((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS, reducing_gap=3.0)
    stream = io.BytesIO()
    picture.save(stream, "WEBP", lossless=is_tiny, quality=_QUALITY, method=4)
    return Thumbnail(f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}", is_tiny=is_tiny)
