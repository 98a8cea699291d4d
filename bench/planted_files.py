"""What has no business among the photographs: foreign pictures, and files that are broken."""

import io
import struct
import tarfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from planted_copies import encoded

NUM_FOREIGN, NUM_PHOTOGRAPHS, SIDE_PX = 10, 4, 100
WORDS = (
    "invoice",
    "total",
    "month",
    "figures",
    "each",
    "branch",
    "sent",
    "by",
    "post",
    "Monday",
    "all",
    "who",
    "asked",
)
# Of a few flipped bits nobody can tell in one case of three: the stream that comes out is a valid one.
STRETCH = 256
File = tuple[str, str, bytes]
"""What it is, the ending of its name, and its content."""


def foreign_pictures(generator: Generator, archive: Path | None) -> list[File]:
    """Six kinds of drawn pictures and four photographs of CIFAR-10, enlarged; drawn ones in their place without it."""
    drawers: list[Callable[[Generator], Image.Image]] = [_text_page, _chart, _poster, _noise, _drawing, _screenshot]
    photographs = _photographs(generator, archive, NUM_PHOTOGRAPHS) if archive else []
    pictures = [
        (drawers[at % len(drawers)].__name__.strip("_"), drawers[at % len(drawers)](generator))
        for at in range(NUM_FOREIGN - len(photographs))
    ]
    pictures += [("photograph", picture) for picture in photographs]
    return [(name, ".JPG", encoded(picture)) for name, picture in pictures]


def _photographs(generator: Generator, archive: Path, number: int) -> list[Image.Image]:
    with tarfile.open(archive) as opened:
        members = {each.name: each for each in opened if each.isfile() and "test/" in each.name}
        names = sorted(members)
        pictures = []
        for at in generator.choice(len(names), size=number, replace=False).tolist():
            stream = opened.extractfile(members[names[at]])
            if stream is None:
                raise FileNotFoundError(names[at])
            image = Image.open(io.BytesIO(stream.read())).convert("RGB")
            pictures.append(image.resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC))
    return pictures


def _colour(generator: Generator, low: int = 0, high: int = 256) -> tuple[int, int, int]:
    red, green, blue = generator.integers(low, high, 3).tolist()
    return red, green, blue


def _text_page(generator: Generator) -> Image.Image:
    image = Image.new("RGB", (SIDE_PX, SIDE_PX), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(8)
    for line in range(10):
        pen.text((5, 4 + 9 * line), " ".join(generator.choice(WORDS, 5).tolist()), fill=(20, 20, 20), font=font)
    return image


def _chart(generator: Generator) -> Image.Image:
    image = Image.new("RGB", (SIDE_PX, SIDE_PX), (250, 250, 250))
    pen = ImageDraw.Draw(image)
    pen.line([(10, 8), (10, 90), (95, 90)], fill="black")
    for bar in range(8):
        height = int(generator.integers(10, 75))
        pen.rectangle((14 + 10 * bar, 90 - height, 20 + 10 * bar, 89), fill=_colour(generator, 40, 220))
    return image


def _poster(generator: Generator) -> Image.Image:
    across, down = np.meshgrid(np.linspace(0, 1, SIDE_PX), np.linspace(0, 1, SIDE_PX))
    first, second = np.array(_colour(generator)), np.array(_colour(generator))
    share = (0.5 * across + 0.5 * down)[..., None]
    image = Image.fromarray((first * share + second * (1 - share)).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    pen.text((12, 30), "WHEN IT", fill="white", font=ImageFont.load_default(18), stroke_width=1, stroke_fill="black")
    pen.text((12, 55), "WORKS", fill="white", font=ImageFont.load_default(18), stroke_width=1, stroke_fill="black")
    return image


def _noise(generator: Generator) -> Image.Image:
    noise = generator.integers(0, 256, (SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
    return Image.fromarray(noise).filter(ImageFilter.GaussianBlur(0.8))


def _drawing(generator: Generator) -> Image.Image:
    image = Image.new("RGB", (SIDE_PX, SIDE_PX), _colour(generator, 200))
    pen = ImageDraw.Draw(image)
    for _ in range(9):
        left, top = generator.integers(0, 70, 2).tolist()
        width, height = generator.integers(12, 40, 2).tolist()
        draw = (pen.ellipse, pen.rectangle)[int(generator.integers(2))]
        draw((left, top, left + width, top + height), fill=_colour(generator), outline="black", width=2)
    return image


def _screenshot(generator: Generator) -> Image.Image:
    image = Image.new("RGB", (SIDE_PX, SIDE_PX), (236, 238, 241))
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(7)
    pen.rectangle((0, 0, SIDE_PX, 11), fill=(45, 90, 160))
    pen.text((4, 2), "Settings - Window", fill="white", font=font)
    pen.rectangle((0, 12, 26, SIDE_PX), fill=(214, 219, 226))
    for line in range(8):
        pen.text((3, 16 + 10 * line), str(generator.choice(WORDS))[:6], fill=(60, 60, 60), font=font)
        pen.rectangle((32, 16 + 10 * line, 94, 23 + 10 * line), fill="white", outline=(190, 190, 190))
    pen.rectangle((70, 88, 94, 97), fill=(60, 140, 80))
    return image


def broken_files(generator: Generator, sources: Sequence[Path]) -> list[File]:
    """Ten files that a folder of photographs may hold and that are none, or only in part."""
    with Image.open(sources[int(generator.integers(len(sources)))]) as opened:
        image = opened.convert("RGB").resize((SIDE_PX, SIDE_PX))
    jpeg, png = encoded(image, 95), io.BytesIO()
    image.save(png, "PNG")
    noise = generator.integers(0, 256, 4000, dtype=np.uint8).tobytes()
    page = b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body><h1>Not Found</h1></body></html>\n"
    pdf = b"%PDF-1.4\n1 0 obj\n<< /Type /Catalog /Pages 2 0 R >>\nendobj\ntrailer\n<< /Root 1 0 R >>\n%%EOF\n"
    return [
        ("empty", ".JPG", b""),
        ("text", ".JPG", b"This is no picture. It was saved under the wrong name.\n"),
        ("html", ".jpg", page),
        ("pdf", ".JPG", pdf),
        ("truncated JPEG", ".JPG", jpeg[: int(0.6 * len(jpeg))]),
        ("garbage after the header", ".JPG", jpeg[: jpeg.index(b"\xff\xdb")] + noise),
        ("damaged PNG", ".png", _flipped_in_png(png.getvalue())),
        ("bomb", ".png", _bomb()),
        ("damaged JPEG", ".JPG", _damaged(jpeg, _flipped, generator)),
        ("overwritten JPEG", ".JPG", _damaged(jpeg, _overwritten, generator)),
    ]


def _flipped_in_png(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes(byte ^ 0x55 for byte in content[middle : middle + 16]) + content[middle + 16 :]


def _bomb() -> bytes:
    """A PNG of 50,000 × 50,000 px in a few hundred bytes."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(64 * 6251))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def _flipped(content: bytes, generator: Generator) -> bytes:
    """A stretch of the data with one bit of each byte flipped."""
    place = _place(content, generator)
    bits = generator.integers(0, 8, STRETCH).tolist()
    stretch = bytes(byte ^ (1 << bit) for byte, bit in zip(content[place : place + STRETCH], bits, strict=True))
    return content[:place] + stretch + content[place + STRETCH :]


def _overwritten(content: bytes, generator: Generator) -> bytes:
    """A stretch of the data replaced, as by a bad block of a disk."""
    place = _place(content, generator)
    stretch = generator.integers(0, 256, STRETCH, dtype=np.uint8).tobytes()
    return content[:place] + stretch + content[place + STRETCH :]


def _place(content: bytes, generator: Generator) -> int:
    """A place in the middle of a JPEG's data, behind the header of its scan."""
    start = content.index(b"\xff\xda") + 14
    return start + int(generator.integers((len(content) - start) // 4, (len(content) - start) // 2))


def _damaged(content: bytes, damage: Callable[[bytes, Generator], bytes], generator: Generator) -> bytes:
    """A JPEG with damage in the middle that ordinary decoders do not mention, though they show another picture."""
    before = _pixels(content)
    if before is None:
        raise ValueError("the picture to damage does not decode")
    for _ in range(1000):
        after = _pixels(damaged := damage(content, generator))
        if after is not None and (np.abs(after - before).max(axis=2) > 16).mean() > 0.05:
            return damaged
    raise RuntimeError("a thousand tries left the picture as it was, or did not decode")


def _pixels(content: bytes) -> NDArray[np.int16] | None:
    try:
        with Image.open(io.BytesIO(content)) as image:
            return np.asarray(image.convert("RGB")).astype(np.int16)
    except (OSError, SyntaxError):
        return None
