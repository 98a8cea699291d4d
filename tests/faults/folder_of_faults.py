"""A folder with everything in it that goes wrong with images: rows 18 to 38 of the list of faults.

`python tests/faults/folder_of_faults.py DIR` writes it, to look at what `foveal audit DIR/data` makes of it.
"""

import os
import sys
import zipfile
from pathlib import Path

import numpy as np

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from PIL import Image

import image_factory as factory
from textured import COPIES, encoded, pictures, pixels_of, textured

NUM_PLAIN = {"train": 14, "val": 5, "test": 6}
"""Pictures with nothing wrong, in each of the two classes of each split."""
REFUSED: dict[str, str] = {
    "18 empty.jpg": "empty (0 bytes)",
    "18 text.jpg": "a text",
    "18 html.jpg": "HTML",
    "18 json.png": "JSON",
    "18 zip.jpg": "zip",
    "19 truncated.jpg": "truncated",
    "19 truncated.png": "truncated",
    "21 bomb 50k.png": "50000 x 50000",
    "22 bomb 13k.png": "13000 x 13000",
    "23 pdf.jpg": "PDF",
    "23 svg.jpg": "SVG",
    "23 fits.jpg": "FITS",
    "23 eps.png": "PostScript",
    "23 heic.jpg": "HEIC",
    "36 link out.jpg": "leads out of the data's folder",
    "37 link to itself.jpg": "leads",
    "37 link to nowhere.jpg": "leads nowhere",
    "37 link to the folder above": "lies in",
}
"""Files below train/dog that cannot be used, and a part of the reason."""
CORRUPT = "20 corrupt in the middle.jpg"
USABLE = (
    *("24 grey 16 bits.png", "24 grey 16 bits.tif", "25 float.tif", "25 twelve bits.tif", "26 cmyk.jpg"),
    *("26 adobe rgb.jpg", "26 grey.png", "26 palette.png", "26 one bit.png", "27 transparent.png"),
    *(f"28 orientation {number}.jpg" for number in range(1, 9)),
    *("29 animated.gif", "29 animated.webp", "29 pages.tif", "30 one pixel.png", "30 a line.png"),
)
"""Files of odd kinds below train/dog that are read as the pixel policy says."""
ODD_NAMES = (
    *("31 nfc \u00e9.png", "31 nfd e\u0301.png", "31 line\nbreak.png", "31 'quote\" & <b>.png", "-31 leading dash.png"),
    *('=HYPERLINK("x").png', "31 <img src=x onerror=alert(1)>.png", "31" + "\u00fc" * 124 + ".png"),
)
COPIED = ("re-encoded", "resized", "mirrored", "turned by 90°", "turned by 8°", "brightened", "cropped by 5 %")
"""How pictures of train came to test, beside one of the same bytes."""


def write_folder_of_faults(root: Path) -> Path:
    """Write the folder `data` and beside it what it must not be led to; the same bytes every time.

    Returns:
        The folder to audit.
    """
    data, rng = root / "data", np.random.default_rng(18)
    outside = root / "outside"
    outside.mkdir(parents=True)
    (outside / "secret.jpg").write_bytes(encoded(pictures(1, seed=99)[0]))
    train: list[Image.Image] = []
    for split, number in NUM_PLAIN.items():
        for label in ("cat", "dog"):
            for at in range(number):
                image = textured(rng)
                train += [image] if split == "train" else []
                _write(data / split / label / f"{label}{at:03}.jpg", encoded(image))
    for at, kind in enumerate(COPIED):
        copy = COPIES[kind](train[at], rng)
        _write(data / "test" / "cat" / f"taken {at}.jpg", encoded(copy))
    _write(data / "test" / "cat" / "taken exactly.jpg", (data / "train" / "cat" / "cat009.jpg").read_bytes())
    # Rows 32 and 33: a class by two names, one of a single image, one of none, one in test alone.
    for at in range(4):
        _write(data / "train" / "Cat" / f"upper{at}.jpg", encoded(textured(rng)))
    _write(data / "train" / "owl" / "alone.jpg", encoded(textured(rng)))
    (data / "train" / "empty").mkdir()
    _write(data / "test" / "yak" / "only tested.jpg", encoded(textured(rng)))
    for name, content in _odd_files(rng).items():
        _write(data / "train" / "dog" / name, content)
    for name in ODD_NAMES:
        _write(data / "train" / "dog" / name, factory.saved(textured(rng), "PNG"))
    _link(data / "train" / "dog", outside)
    with zipfile.ZipFile(root / "data.zip", "w") as archive:
        archive.writestr("../../evil.jpg", b"x")
    return data


def _odd_files(rng: np.random.Generator) -> dict[str, bytes]:
    photograph = textured(rng, 160)
    grey16 = (np.asarray(photograph.convert("L")).astype(np.uint16) * 257)[:96, :96]
    other, whole_png = factory.OTHER_CONTENT, factory.saved(textured(rng), "PNG")
    files = {
        "18 empty.jpg": b"",
        "18 text.jpg": factory.NO_IMAGES["text"],
        "18 html.jpg": factory.html_named_jpg(),
        "18 json.png": factory.NO_IMAGES["JSON"],
        "18 zip.jpg": factory.NO_IMAGES["zip"],
        "19 truncated.jpg": factory.truncated_jpeg(),
        "19 truncated.png": whole_png[: len(whole_png) // 2],
        CORRUPT: corrupt_in_the_middle(encoded(photograph)),
        "21 bomb 50k.png": factory.png_bomb(50_000, 50_000),
        "22 bomb 13k.png": factory.png_bomb(13_000, 13_000),
        **{f"23 {kind.lower()}.jpg": other[kind] for kind in ("PDF", "SVG", "FITS", "HEIC")},
        "23 eps.png": other["PostScript"],
        "24 grey 16 bits.png": factory.saved(Image.fromarray(grey16), "PNG"),
        "24 grey 16 bits.tif": factory.tiff(grey16, bits=16),
        "25 float.tif": factory.tiff((grey16 / 65535).astype(np.float32), bits=32, sample_format=3),
        "25 twelve bits.tif": factory.twelve_bit_tiff(),
        "26 cmyk.jpg": factory.saved(textured(rng).convert("CMYK"), "JPEG"),
        "26 adobe rgb.jpg": factory.icc_jpeg(factory.adobe_rgb_profile(), textured(rng)),
        "26 grey.png": factory.saved(textured(rng).convert("L"), "PNG"),
        "26 palette.png": factory.saved(textured(rng).quantize(64), "PNG"),
        "26 one bit.png": factory.saved(textured(rng).convert("1"), "PNG"),
        "27 transparent.png": factory.saved(_see_through(textured(rng)), "PNG"),
        "29 animated.gif": factory.animated_gif(),
        "29 animated.webp": factory.animated_webp(),
        "29 pages.tif": factory.multipage_tiff(),
        "30 one pixel.png": factory.saved(np.full((1, 1, 3), 90, np.uint8), "PNG"),
        "30 a line.png": factory.saved(rng.integers(0, 256, (1, 10_000, 3), dtype=np.uint8), "PNG"),
    }
    turned = textured(rng).crop((0, 0, 96, 64))
    for number in range(1, 9):
        stored = factory.as_stored(pixels_of(turned), number)
        files[f"28 orientation {number}.jpg"] = factory.saved(stored, "JPEG", exif=factory.exif_block(number))
    return files


def corrupt_in_the_middle(content: bytes) -> bytes:
    """A JPEG whose coded pixels are overwritten in the middle, as by a lost sector; Pillow decodes it silently."""
    middle = len(content) // 2
    lost = bytes(value % 251 for value in range(7, 7 + 13 * 40, 13))
    return content[:middle] + lost + content[middle + len(lost) :]


def _see_through(image: Image.Image) -> Image.Image:
    opacity = Image.new("L", image.size, 255)
    opacity.paste(0, (0, 0, image.width // 2, image.height // 2))
    image.putalpha(opacity)
    return image


def _link(folder: Path, outside: Path) -> None:
    for name, target in (
        ("36 link out.jpg", outside / "secret.jpg"),
        ("37 link to itself.jpg", Path("37 link to itself.jpg")),
        ("37 link to nowhere.jpg", Path("nothing.jpg")),
        ("37 link to the folder above", Path("..")),
    ):
        os.symlink(target, folder / name)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


if __name__ == "__main__":
    print(write_folder_of_faults(Path(sys.argv[1])))  # noqa: T201
