"""How training sets are blown up: the copies that are planted, each kind one change, and chains of three."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageEnhance, ImageFilter

QUALITY = 90
Operation = Callable[[Image.Image, Generator], Image.Image]


def encoded(image: Image.Image, quality: int = QUALITY) -> bytes:
    """A JPEG file."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def reencoded(image: Image.Image, generator: Generator | None = None) -> Image.Image:
    """JPEG at quality 60 and back."""
    del generator
    return Image.open(io.BytesIO(encoded(image, 60))).convert("RGB")


def resized(image: Image.Image, generator: Generator) -> Image.Image:
    """60 % of each side."""
    del generator
    return image.resize((round(image.width * 0.6), round(image.height * 0.6)), Image.Resampling.BICUBIC)


def mirrored(image: Image.Image, generator: Generator) -> Image.Image:
    """Left and right exchanged."""
    del generator
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def rotated_90(image: Image.Image, generator: Generator) -> Image.Image:
    """A quarter turn to either side."""
    return image.transpose(Image.Transpose.ROTATE_90 if generator.integers(2) else Image.Transpose.ROTATE_270)


def rotated_8(image: Image.Image, generator: Generator) -> Image.Image:
    """8° to either side; the corners black, as the edge's colour, or mirrored, a third each."""
    angle, filling = (8.0 if generator.integers(2) else -8.0), ("black", "edge", "reflect")[generator.integers(3)]
    if filling == "black":
        return image.rotate(angle, Image.Resampling.BICUBIC)
    margin = max(image.size) // 4
    pixels = np.pad(np.asarray(image), ((margin, margin), (margin, margin), (0, 0)), mode=filling)  # type: ignore[call-overload]
    turned = Image.fromarray(pixels).rotate(angle, Image.Resampling.BICUBIC)
    return turned.crop((margin, margin, margin + image.width, margin + image.height))


def brightened(image: Image.Image, generator: Generator) -> Image.Image:
    """Every value times 1.3."""
    del generator
    return ImageEnhance.Brightness(image).enhance(1.3)


def cropped(share: float) -> Operation:
    """Keep a share of each side at a random place; half of the time scaled back to the full size."""

    def crop(image: Image.Image, generator: Generator) -> Image.Image:
        width, height = round(image.width * share), round(image.height * share)
        left = int(generator.integers(image.width - width + 1))
        top = int(generator.integers(image.height - height + 1))
        part = image.crop((left, top, left + width, top + height))
        return part.resize(image.size, Image.Resampling.BICUBIC) if generator.integers(2) else part

    return crop


def greyed(image: Image.Image, generator: Generator) -> Image.Image:
    """Without colour."""
    del generator
    return image.convert("L").convert("RGB")


def blurred(image: Image.Image, generator: Generator) -> Image.Image:
    """A Gaussian of radius 1.5 px for each 100 px of the shorter side."""
    del generator
    return image.filter(ImageFilter.GaussianBlur(1.5 * min(image.size) / 100))


def jittered(image: Image.Image, generator: Generator) -> Image.Image:
    """Brightness, contrast, saturation and hue in random order, as torchvision's ColorJitter(0.3, 0.3, 0.3, 0.05)."""
    for at in generator.permutation(4).tolist():
        if at < 3:
            enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[at]
            image = enhance(image).enhance(float(generator.uniform(0.7, 1.3)))
        else:
            hsv = np.array(image.convert("HSV"))
            hsv[..., 0] += np.uint8(round(float(generator.uniform(-0.05, 0.05)) * 255) % 256)
            image = Image.fromarray(hsv, "HSV").convert("RGB")
    return image


OPERATIONS: dict[str, Operation] = {
    "re-encoded": reencoded,
    "resized": resized,
    "mirrored": mirrored,
    "rotated_90": rotated_90,
    "rotated_8": rotated_8,
    "brightened": brightened,
    "cropped_5": cropped(0.95),
    "cropped_15": cropped(0.85),
    "greyed": greyed,
    "blurred": blurred,
    "jittered": jittered,
}
KINDS = ("exact", *OPERATIONS, "chain")


def copy_of(source: Path, kind: str, generator: Generator) -> tuple[bytes, str]:
    """The file of a copy, and the operations of a chain."""
    if kind == "exact":
        return source.read_bytes(), ""
    with Image.open(source) as opened:
        image = opened.convert("RGB")
    if kind == "re-encoded":
        return encoded(image, 60), ""
    if kind == "chain":
        names = [str(name) for name in generator.choice(list(OPERATIONS), size=3, replace=False)]
        for name in names:
            image = OPERATIONS[name](image, generator)
        return encoded(image), "+".join(names)
    image = OPERATIONS[kind](image, generator)
    if kind == "greyed" and generator.integers(2):
        image = image.convert("L")  # half of them as files of one channel
    return encoded(image), ""
