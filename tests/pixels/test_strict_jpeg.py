"""Row 20: damage that Pillow decodes silently is found, and odd but whole photographs are left in peace."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from foveal.pixels import strict_jpeg
from foveal.pixels.policy import ImageRejectedError, decode
from foveal.pixels.strict_jpeg import BAD_CODE, FAULTS, LEFT_OVER, OUT_OF_STEP, TOO_SHORT, jpeg_fault

pytest.importorskip("simplejpeg")

DATA = os.environ.get("FOVEAL_DATA")
VARIANTS: dict[str, dict[str, object]] = {
    "baseline": {"quality": 85},
    "full colour": {"quality": 90, "subsampling": 0},
    "progressive": {"quality": 85, "progressive": True},
    "restart markers": {"quality": 85, "restart_marker_blocks": 5},
    "optimised": {"quality": 40, "optimize": True},
    "profile": {"icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()},
    "comment": {"comment": b"x" * 3000},
}


def photograph(seed: int, side_px: int = 240) -> Image.Image:
    """Smooth forms and some grain, so that it codes to about as much as a photograph."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((side_px, side_px), Image.Resampling.BICUBIC)).astype(np.int16)
    return Image.fromarray(np.clip(smooth + rng.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8))


def coded(image: Image.Image, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", **options)
    return stream.getvalue()


def scan_start(content: bytes) -> int:
    """Where the coded data of the last scan begins."""
    marker = content.rfind(b"\xff\xda")
    return marker + 2 + int.from_bytes(content[marker + 2 : marker + 4], "big")


def is_decoded(content: bytes) -> bool:
    try:
        decode(content)
    except ImageRejectedError:
        return False
    return True


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_whole_files_pass(variant: str, mode: str) -> None:
    for side_px in (1, 17, 160):
        content = coded(photograph(side_px, side_px).convert(mode), **VARIANTS[variant])
        assert jpeg_fault(content) is None


def odd_files() -> dict[str, bytes]:
    """Variants that cameras and programs write, and that every viewer shows."""
    whole = coded(photograph(1))
    first = 4 + int.from_bytes(whole[4:6], "big")
    return {
        "no end marker": whole[:-2],
        "bytes after the end": whole + b"\0" * 3000,
        "a second picture after the end": whole + whole,
        "zeros before the end marker": whole[:-2] + b"\0" * 214 + whole[-2:],
        "fill bytes before the end marker": whole[:-2] + b"\xff" * 30 + whole[-2:],
        "zeros up to the end, and no end marker": whole[:-2] + b"\0" * 4096,
        "junk between the header's segments": whole[:first] + b"\x12\x34\x56" + whole[first:],
        "two starts": whole[:2] + whole,
        "an unknown JFIF version": whole[:11] + b"\x07\x09" + whole[13:],
        "an unknown Adobe transform": whole[:2] + b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x07" + whole[2:],
        "a broken profile": whole[:2] + b"\xff\xe2\x00\x14ICC_PROFILE\0\x05\x02junk" + whole[2:],
    }


@pytest.mark.parametrize("name", odd_files())
def test_odd_but_whole_files_pass(name: str) -> None:
    content = odd_files()[name]
    if is_decoded(content):
        assert jpeg_fault(content) is None
    else:
        assert name in ("two starts", "no end marker")


def test_the_common_ones_among_the_odd_files_do_reach_the_check() -> None:
    assert sum(is_decoded(content) for content in odd_files().values()) >= 9


def damage(content: bytes, kind: str, rng: np.random.Generator) -> bytes:
    start, end = scan_start(content), len(content) - 2
    at = int(rng.integers(start, end - 600))
    if kind == "lost sector":
        return content[:at] + bytes(512) + content[at + 512 :]
    if kind == "foreign sector":
        foreign = rng.integers(0, 255, 512, dtype=np.uint8).tobytes()  # no 0xFF: a marker is what Pillow sees too
        return content[:at] + foreign + content[at + 512 :]
    if kind == "shortened":
        return content[:at] + content[at + 600 :]
    if kind == "broken off, filled up with zeros":
        return content[:at] + bytes(end - at) + content[end:]
    return content[:at] + content[end:]  # broken off, with an end marker


@pytest.mark.parametrize(
    "kind", ["lost sector", "foreign sector", "shortened", "broken off, filled up with zeros", "broken off"]
)
@pytest.mark.parametrize("variant", ["baseline", "restart markers"])
def test_damage_that_pillow_does_not_see_is_found(kind: str, variant: str) -> None:
    rng = np.random.default_rng(3)
    num_silent = num_found = 0
    for seed in range(30):
        content = damage(coded(photograph(seed), **VARIANTS[variant]), kind, rng)
        if is_decoded(content):
            num_silent += 1
            fault = jpeg_fault(content)
            assert fault is None or fault in FAULTS
            num_found += fault is not None
    assert num_silent >= 20, "else there is nothing to find"
    assert num_found >= 0.95 * num_silent


@pytest.mark.real_data
@pytest.mark.skipif(DATA is None, reason="FOVEAL_DATA is not set")
@pytest.mark.parametrize(("name", "share_found"), [("sign_digits", 0.85), ("bccd", 0.95)])
def test_real_photographs_pass_and_their_damage_is_found(name: str, share_found: float) -> None:
    files = sorted(file for file in Path(DATA or "").joinpath(name).rglob("*") if file.suffix.lower() == ".jpg")
    assert len(files) > 300
    rng = np.random.default_rng(0)
    num_silent = num_found = 0
    for number, file in enumerate(files):
        content = file.read_bytes()
        assert jpeg_fault(content) is None, file
        if number < 200:
            at = int(rng.integers(scan_start(content), len(content) - 600))
            harmed = content[:at] + bytes(512) + content[at + 512 :]
            if is_decoded(harmed):
                num_silent += 1
                num_found += jpeg_fault(harmed) is not None
    assert num_silent > 100
    assert num_found >= share_found * num_silent


def test_faults_are_named() -> None:
    whole = coded(photograph(5), restart_marker_blocks=5)
    start = scan_start(whole)
    assert jpeg_fault(whole[: start + 2000] + whole[-2:]) in (TOO_SHORT, OUT_OF_STEP)
    plain = coded(photograph(5))
    junk = np.random.default_rng(0).integers(1, 255, 60, dtype=np.uint8).tobytes()
    assert jpeg_fault(plain[:-2] + junk + plain[-2:]) == LEFT_OVER
    assert jpeg_fault(plain[: scan_start(plain) + 900] + plain[-2:]) == TOO_SHORT
    turned = whole.replace(b"\xff\xd2", b"\xff\xd6", 1)
    assert jpeg_fault(turned) == OUT_OF_STEP
    assert BAD_CODE in FAULTS


def test_damage_behind_a_harmless_oddity_is_found() -> None:
    whole = odd_files()["junk between the header's segments"]
    at = scan_start(whole)
    assert jpeg_fault(whole[: at + 900] + whole[-2:]) == TOO_SHORT


@pytest.mark.parametrize("content", [b"", b"\xff\xd8", b"\xff\xd8\xff\xd9", b"no picture at all", b"\xff\xd8\xff\xda"])
def test_what_is_no_jpeg_cannot_be_told(content: bytes) -> None:
    assert jpeg_fault(content) is None


def test_without_the_library_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = coded(photograph(5))
    monkeypatch.setattr(strict_jpeg, "_decoder", lambda: None)
    assert not strict_jpeg.is_available()
    assert jpeg_fault(plain[: scan_start(plain) + 900] + plain[-2:]) is None
