"""The contact sheet: every picture is where it belongs, pixel by pixel, and words are signs and not boxes."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from foveal.errors import ConfigError
from foveal.report.contact_sheet import (
    MAX_CELL_PX,
    MAX_NAME_PX,
    MAX_WIDTH_PX,
    Band,
    Column,
    Row,
    _fitted,
    _font,
    _legible,
    _width,
    _wrapped,
    draw_contact_sheet,
    write_picture,
)

NAMES = ("cat", "=HYPERLINK(1)", "a" * 255, "new\nline", "猫", "<img onerror=x>", "Ünïcødé", "\udcff.jpg", "x\u202egpj")


def pictures(num: int, side: int, seed: int = 0) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    return list(rng.integers(0, 200, (num, side, side, 3), dtype=np.uint8))


def sheet_of(num_columns: tuple[int, ...], side: int, *, names: tuple[str, ...] = ("a", "b")) -> NDArray[np.uint8]:
    bands = [Band(f"band {n}", tuple(Column(f"c{i}", "a note of words") for i in range(n))) for n in num_columns]
    rows = [Row(name, f"{name}.jpg", pictures(sum(num_columns), side, seed)) for seed, name in enumerate(names)]
    return np.array(draw_contact_sheet("A title", "A note.", bands, rows))


def places_of(sheet: NDArray[np.uint8], part: NDArray[np.uint8]) -> list[tuple[int, int]]:
    """Where a picture stands, found by its corner."""
    height, width = part.shape[:2]
    candidates = np.argwhere((sheet == part[0, 0]).all(axis=2))
    return [(y, x) for y, x in candidates.tolist() if np.array_equal(sheet[y : y + height, x : x + width], part)]


@pytest.mark.parametrize(("side", "factor"), [(8, 20), (32, 5), (50, 3), (96, 1), (160, 1)])
def test_small_pictures_are_enlarged_by_whole_numbers_and_stand_in_their_column(side: int, factor: int) -> None:
    sheet = sheet_of((1, 3), side)
    found = {}
    for row, column in product(range(2), range(4)):
        part = pictures(4, side, row)[column].repeat(factor, axis=0).repeat(factor, axis=1)
        (found[row, column],) = places_of(sheet, part)
    for row in range(2):
        assert len({found[row, column][0] for column in range(4)}) == 1
    lefts = [found[0, column][1] for column in range(4)]
    assert lefts == [found[1, column][1] for column in range(4)]
    steps = np.diff(lefts)
    assert steps[0] > steps[1] == steps[2] > side * factor
    assert found[1, 0][0] > found[0, 0][0] + side * factor


def test_large_pictures_are_made_smaller_and_the_sheet_stays_within_its_width() -> None:
    few, many = sheet_of((1, 4), 300), sheet_of((1, 12, 12, 12), 300)
    assert few.shape[1] < MAX_WIDTH_PX
    assert few.shape[0] > 2 * MAX_CELL_PX
    assert MAX_WIDTH_PX - 60 < many.shape[1] <= MAX_WIDTH_PX


def test_names_of_every_kind_are_drawn_within_their_margin() -> None:
    sheet = sheet_of((1,), 32, names=NAMES)
    # Left and right of the names nothing is drawn but white.
    assert (sheet[120:, :28] == 255).all()
    assert (sheet[130:, 28 + MAX_NAME_PX + 1 : 28 + MAX_NAME_PX + 14] == 255).all()


@pytest.mark.parametrize(("name", "shown"), [
    ("Ünïcødé Ωжא", "Ünïcødé Ωжא"),
    ("猫", "\\u732b"),
    ("new\nline", "new\\nline"),
    ("\udcff.jpg", "\\udcff.jpg"),
    ("x\u202egpj", "x\\u202egpj"),
    ("\U0001f9ff", "\\U0001f9ff"),
])  # fmt: skip
def test_what_the_type_does_not_have_is_escaped(name: str, shown: str) -> None:
    assert _legible(name, bold=False) == shown


@pytest.mark.parametrize("bold", [False, True])
def test_no_sign_that_is_let_through_is_a_box(bold: bool) -> None:
    """Against what Pillow draws for a code point that no font has."""
    box = bytes(_font(13, bold=bold).getmask("\U000effff"))
    letters = [chr(code) for code in range(0x21, 0x3000) if _legible(chr(code), bold=bold) == chr(code)]
    assert len(letters) > 3000
    assert [letter for letter in letters if bytes(_font(13, bold=bold).getmask(letter)) == box] == []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("width", [60, 100, 190])
def test_a_name_fits_and_keeps_both_its_ends(name: str, width: int) -> None:
    shown = _fitted(name, 13, width, bold=True)
    whole = _legible(name, bold=True)
    assert _width(shown, 13, bold=True) <= width
    if shown != whole:
        head, tail = shown.split("…")
        assert whole.startswith(head)
        assert whole.endswith(tail)
        assert len(shown) > 3


def test_words_are_wrapped_and_none_is_lost() -> None:
    text = "sigma up to 1.5 px, 3 in 10 images"
    lines = _wrapped(text, 11, 80)
    assert len(lines) > 1
    assert " ".join(lines) == text
    assert all(_width(line, 11) <= 80 for line in lines)
    assert _wrapped("", 11, 80) == []


@pytest.mark.parametrize(
    ("name", "kind"), [("a.png", "PNG"), ("a.JPG", "JPEG"), ("a.jpeg", "JPEG"), ("a.webp", "WEBP")]
)
def test_the_ending_says_the_format_and_the_same_pixels_give_the_same_bytes(
    name: str, kind: str, tmp_path: Path
) -> None:
    picture = Image.fromarray(sheet_of((2,), 32))
    write_picture(picture, tmp_path / "new" / name)
    write_picture(picture, tmp_path / name)
    assert (tmp_path / name).read_bytes() == (tmp_path / "new" / name).read_bytes()
    with Image.open(tmp_path / name) as read:
        assert (read.format, read.size) == (kind, picture.size)
        difference = np.abs(np.array(read.convert("RGB"), dtype=float) - np.array(picture)).mean()
    assert difference == 0 if kind == "PNG" else difference < 15  # noise in colour is the worst that there is


@pytest.mark.parametrize("name", ["a.gif", "a.svg", "a", "a.png.txt"])
def test_other_endings_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.png, \.jpg, \.jpeg, \.webp") as caught:
        write_picture(Image.new("RGB", (4, 4)), tmp_path / name)
    assert ".png" in caught.value.fix
    assert list(tmp_path.iterdir()) == []
