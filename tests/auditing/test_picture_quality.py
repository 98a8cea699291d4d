"""Pictures that say little: each fault is found among photographs, and what a whole set has is told once."""

from pathlib import Path

import numpy as np
import pytest
from made_facts import made_facts, measured
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy.ndimage import gaussian_filter

from foveal.auditing.broken_files import animated, corrupt_jpeg, unreadable
from foveal.auditing.config import QualityConfig
from foveal.auditing.findings import Finding
from foveal.auditing.picture_quality import picture_quality
from foveal.data.facts import Facts
from foveal.data.manifest import Manifest
from foveal.pixels.strict_jpeg import CORRUPT_JPEG


def manifest_of(num: int, **columns: object) -> Manifest:
    columns.setdefault("label", ["a", "b"] * (num // 2) + ["a"] * (num % 2))
    return Manifest.build(Path("/data"), path=[f"{i}.jpg" for i in range(num)], **columns)


def found_in(facts: Facts, **columns: object) -> list[Finding]:
    checked = picture_quality(manifest_of(len(facts.format), **columns), facts, QualityConfig())
    return [finding for each in checked for finding in each.findings]


def kinds_of(facts: Facts) -> dict[int | None, list[str]]:
    found: dict[int | None, list[str]] = {}
    for each in found_in(facts):
        found.setdefault(each.row, []).append(each.finding)
    return found


def photograph(rng: np.random.Generator, side: int = 96) -> NDArray[np.uint8]:
    """Blobs of every size with some colour, as photographs have: detail at every scale."""
    layers = sum(gaussian_filter(rng.normal(size=(side, side, 3)), (s, s, 0)) * s for s in (0.7, 2, 6, 15))
    pixels = 128 + 55 * (layers - layers.mean()) / layers.std() + rng.normal(0, 8, 3)
    return np.clip(pixels, 0, 255).astype(np.uint8)


def test_each_fault_is_found_among_photographs_and_nothing_else_is() -> None:
    rng = np.random.default_rng(3)
    pictures = [photograph(rng) for _ in range(60)]
    mask = np.repeat((gaussian_filter(rng.normal(size=(96, 96)), 8) > 0)[..., None], 3, axis=2)
    jpeg_noise = np.where(mask, 250, 4) + rng.integers(-4, 5, (96, 96, 1))
    faults = {
        "blank": np.full((96, 96, 3), 200, np.uint8),
        "tiny": pictures[0][:20, :20],
        "odd_aspect": np.tile(pictures[1], (1, 5, 1)),
        "dark": pictures[2] // 12,
        "overexposed": 255 - pictures[3] // 16,
        "blurred": np.asarray(Image.fromarray(pictures[4]).filter(ImageFilter.GaussianBlur(5))),
        "odd_channels": np.asarray(Image.fromarray(pictures[5]).convert("L").convert("RGB")),
    }
    masks = [mask.astype(np.uint8) * 255, jpeg_noise.astype(np.uint8)]
    found = kinds_of(measured([*pictures, *faults.values(), *masks]))
    assert found == {
        **{60 + place: [kind] for place, kind in enumerate(faults)},
        67: ["binarised"],
        68: ["binarised"],
    }


def test_one_pixel_and_a_line_are_told_and_do_no_harm() -> None:
    rng = np.random.default_rng(4)
    pictures = [photograph(rng, 48) for _ in range(20)]
    line = np.zeros((1, 10_000, 3), np.uint8)
    assert kinds_of(measured([*pictures, pictures[0][:1, :1], line]))[20] == ["tiny"]
    assert {"tiny", "odd_aspect"} <= set(kinds_of(measured([*pictures, pictures[0][:1, :1], line]))[21])
    assert kinds_of(measured([line])) == {0: ["tiny", "odd_aspect", "blank"]}  # alone there is no usual picture


@pytest.mark.parametrize(
    ("kind", "columns"),
    [
        ("tiny", {"width_px": 8, "height_px": 8}),
        ("binarised", {"num_values": 2, "saturation": 0}),
        ("dark", {"brightness": 0.04, "contrast": 0.05}),
        ("overexposed", {"brightness": 0.97, "contrast": 0.02}),
        ("blank", {"contrast": 0.001}),
        ("odd_aspect", {"width_px": 3000, "height_px": 300}),
    ],
)
def test_what_most_of_a_set_has_is_told_once(kind: str, columns: dict[str, float]) -> None:
    found = found_in(made_facts(200, **columns))
    assert [(each.finding, each.severity, each.row) for each in found] == [(kind, "note", None)]
    assert found[0].detail.startswith("All of the pictures")


def test_sets_of_small_pictures_and_of_grey_ones_are_not_full_of_faults() -> None:
    assert found_in(made_facts(300, width_px=32, height_px=32)) == []
    assert found_in(made_facts(300, saturation=0.0)) == []
    sides = np.where(np.arange(300) % 3 == 0, 20, 110)  # platelets beside red cells
    labels = ["small" if side == 20 else "large" for side in sides]
    assert found_in(made_facts(300, width_px=sides, height_px=sides), label=labels) == []


def test_scanned_digits_of_black_on_white() -> None:
    """The digits of scikit-learn: 8 x 8 px, 17 greys."""
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    pictures = [np.repeat((255 - 15 * image.astype(np.uint8))[..., None], 3, axis=2) for image in digits.images[:400]]
    assert [(each.finding, each.row) for each in found_in(measured(pictures))] == [("tiny", None)]


def test_grey_among_colour_and_the_reverse() -> None:
    few = np.where(np.arange(100) < 5, 0.0, 0.3)
    assert [each.row for each in found_in(made_facts(100, saturation=few))] == [0, 1, 2, 3, 4]
    assert [each.row for each in found_in(made_facts(100, saturation=0.3 - few))] == [0, 1, 2, 3, 4]
    half = np.where(np.arange(100) < 50, 0.0, 0.3)
    assert [(each.row, each.detail) for each in found_in(made_facts(100, saturation=half))] == [
        (None, "50 % of the pictures are grey, and the others have colour.")
    ]


def test_rows_that_are_unknown_are_not_judged() -> None:
    facts = made_facts(40, contrast=np.where(np.arange(40) < 3, 0.0, 0.2))
    facts.is_known[:3] = False
    facts.measures[:3] = np.nan
    facts.width_px[:3] = np.nan
    assert found_in(facts) == []
    checked = picture_quality(manifest_of(4), Facts.unknown(4), QualityConfig())
    assert len(checked) == 8
    assert all(each.skipped and not each.findings for each in checked)


def test_files_that_cannot_be_used_stand_by_reason() -> None:
    reasons = ["the file is empty", "the file is cut off: 7 bytes", None, "the file is cut off: 9 bytes", None]
    reasons[2] = f"{CORRUPT_JPEG}: it ends before the last block"
    status = ["quarantined" if reason else "ok" for reason in reasons]
    manifest = manifest_of(5, status=status, reason=reasons)
    found = unreadable(manifest).findings
    assert [(each.row, each.detail) for each in found] == [
        (1, "The file is cut off: 7 bytes."),
        (3, "The file is cut off: 9 bytes."),
        (0, "The file is empty."),
    ]
    assert {(each.severity, each.repair) for each in found} == {("warning", "quarantine")}
    assert [each.row for each in corrupt_jpeg(manifest, made_facts(5)).findings] == [2]
    before = unreadable(manifest, np.array([True, True, False, False, False])).findings
    assert [(each.row, each.severity) for each in before] == [(3, "warning"), (None, "note")]


def test_frames_and_pages_are_counted() -> None:
    facts = made_facts(4)
    facts.notes[1] = "grey to RGB; animation with 12 frames: first frame taken"
    facts.notes[3] = "3 pages: first page taken"
    found = [(each.row, each.value, each.severity) for each in animated(facts).findings]
    assert sorted(found) == [(1, 12, "note"), (3, 3, "note")]
