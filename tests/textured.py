"""Pictures like photographs, no two alike, and what data sets are blown up with: copies of them."""

import io
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

Copier = Callable[[Image.Image, np.random.Generator], Image.Image]


def textured(rng: np.random.Generator, side_px: int = 96) -> Image.Image:
    """Smooth fields of four sizes in three colours, with sharp shapes and a little grain."""
    pixels = np.zeros((side_px, side_px, 3))
    for cells in (3, 6, 12, 24):
        field = rng.normal(0.0, 70.0 * cells**-0.5, (cells, cells, 3)).astype(np.float32)
        channels = [
            Image.fromarray(field[..., at]).resize((side_px, side_px), Image.Resampling.BICUBIC) for at in range(3)
        ]
        pixels += np.stack([np.asarray(channel) for channel in channels], axis=-1)
    image = Image.fromarray((125 + pixels + rng.normal(0, 2, pixels.shape)).clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(7):
        left, top = rng.uniform(0, 0.85 * side_px, 2)
        width, height = rng.uniform(0.05 * side_px, 0.3 * side_px, 2)
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        (draw.ellipse if rng.integers(2) else draw.rectangle)((left, top, left + width, top + height), fill=colour)
    return image


def pictures(number: int, seed: int = 0, side_px: int = 96) -> list[Image.Image]:
    """So many originals."""
    rng = np.random.default_rng(seed)
    return [textured(rng, side_px) for _ in range(number)]


def pixels_of(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image.convert("RGB"))


def encoded(image: Image.Image, quality: int = 90) -> bytes:
    """A JPEG file."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def reencoded(image: Image.Image, quality: int = 60) -> Image.Image:
    return Image.open(io.BytesIO(encoded(image, quality))).convert("RGB")


def scaled(image: Image.Image, share: float = 0.6) -> Image.Image:
    return image.resize((round(image.width * share), round(image.height * share)), Image.Resampling.BICUBIC)


def turned(degrees: float) -> Copier:
    """Right angles exactly; others with black corners."""
    if degrees % 90 == 0:
        method = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
        return lambda image, rng: image.transpose(method[int(degrees)])
    return lambda image, rng: image.rotate(degrees, Image.Resampling.BICUBIC)


def cropped(image: Image.Image, rng: np.random.Generator, share: float) -> Image.Image:
    """Keep so much of each side, somewhere."""
    width, height = round(image.width * share), round(image.height * share)
    left, top = int(rng.integers(image.width - width + 1)), int(rng.integers(image.height - height + 1))
    return image.crop((left, top, left + width, top + height))


def jittered(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = enhance(image).enhance(float(rng.uniform(0.7, 1.3)))
    return image


COPIES: Mapping[str, Copier] = {
    "re-encoded": lambda image, rng: reencoded(image),
    "resized": lambda image, rng: scaled(image),
    "mirrored": lambda image, rng: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "upside down": lambda image, rng: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    "turned by 90°": turned(90),
    "turned by 180°": turned(180),
    "turned by 270°": turned(270),
    "turned by 8°": turned(8),
    "turned by -8°": turned(-8),
    "brightened": lambda image, rng: ImageEnhance.Brightness(image).enhance(1.3),
    "cropped by 5 %": lambda image, rng: cropped(image, rng, 0.95),
    "cropped by 15 %": lambda image, rng: cropped(image, rng, 0.85),
    "grey": lambda image, rng: image.convert("L").convert("RGB"),
    "blurred": lambda image, rng: image.filter(ImageFilter.GaussianBlur(0.015 * image.width)),
    "jittered": jittered,
}  # fmt: skip
"""Each a single change."""


def chain(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Three of them, one after the other."""
    for name in rng.choice([name for name in COPIES if "180" not in name and "270" not in name], 3, replace=False):
        image = COPIES[str(name)](image, rng)
    return image
