"""Rows 18, 19 and 21 to 31 of the list of faults, and the promises of `decode`."""

import errno
import io
import os
import pickle
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

import image_factory as factory
from foveal.errors import ArtifactError, ConfigError, DataError
from foveal.pixels.policy import (
    ALLOWED_FORMATS,
    POLICY_VERSION,
    REJECTION_CODES,
    ImageRejectedError,
    PixelPolicy,
    decode,
)

SLOWEST_REFUSAL_SECONDS = 0.25


def refused(content: bytes | Path, policy: PixelPolicy | None = None) -> ImageRejectedError:
    start = time.thread_time()
    with pytest.raises(ImageRejectedError) as caught:
        decode(content, policy)
    assert time.thread_time() - start < SLOWEST_REFUSAL_SECONDS
    assert caught.value.code in REJECTION_CODES
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("kind", factory.NO_IMAGES)
def test_row_18_what_is_no_image_is_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "cat.jpg"
    path.write_bytes(factory.NO_IMAGES[kind])
    error = refused(path)
    assert error.code == "not_an_image"
    assert ("a text" if kind.startswith("text") else kind) in str(error)
    assert "cat.jpg" not in str(error)
    assert str(refused(factory.NO_IMAGES[kind])) == str(error)


def test_row_18_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "cat.jpg"
    path.touch()
    assert refused(path).code == "empty"
    assert refused(b"").code == "empty"


def test_row_18_a_huge_file_that_is_no_image_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "cat.jpg"
    with path.open("wb") as stream:
        stream.write(b"path,label\n")
        stream.truncate(5 * 2**30)
    tracemalloc.start()
    assert refused(path).code == "not_an_image"
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_row_19_truncated_jpeg(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    path.write_bytes(factory.truncated_jpeg())
    with Image.open(path) as image:
        image.verify()  # Pillow's own check sees nothing
    assert refused(path).code == "truncated"


CUTTABLE = {
    "JPEG": factory.jpeg(),
    "JPEG, progressive": factory.jpeg(progressive=True),
    "PNG": factory.saved(factory.scene(), "PNG"),
    "PNG, 16 bits": factory.gray16_ramp_png(),
    "GIF": factory.animated_gif(1),
    "WEBP": factory.saved(factory.scene(), "WEBP"),
    "WEBP, animated": factory.animated_webp(),
    "BMP": factory.saved(factory.scene(), "BMP"),
    "TIFF": factory.saved(factory.scene(), "TIFF"),
    "TIFF, LZW": factory.saved(factory.scene(), "TIFF", compression="tiff_lzw"),
    "TIFF, directory first": factory.tiff(factory.scene(), bits=8, photometric=2),
}


@pytest.mark.parametrize("name", CUTTABLE)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_row_19_every_format_cut_off(name: str, share: float) -> None:
    whole = CUTTABLE[name]
    decode(whole)
    assert refused(whole[: int(len(whole) * share)]).code == "truncated"


def test_row_19_is_refused_even_where_pillow_is_told_to_fill_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(DataError, match="LOAD_TRUNCATED_IMAGES"):
        decode(factory.truncated_jpeg())


HUGE_SIDE = (4, 1, b"\xff\xff\0\0")
BOMBS = {
    "50k x 50k PNG": lambda: factory.png_bomb(50_000, 50_000),
    "13k x 13k PNG": lambda: factory.png_bomb(13_000, 13_000),
    "GIF": lambda: b"GIF89a" + b"\xff" * 4 + b"\0\0\0,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;",
    "GIF, first frame": lambda: b"GIF89a\x01\0\x01\0\0\0\0,\0\0\0\0" + b"\xff" * 4 + b"\0\x02\x02D\x01\0;",
    "BMP": lambda: factory.saved(factory.scene(), "BMP")[:18] + b"\xff\xff\x0f\0" * 2 + bytes(40),
    "BMP, run-length": lambda: b"BM" + bytes(12) + struct.pack("<IiiHHI", 40, 9999, 9999, 1, 8, 1) + bytes(99),
    "WEBP": lambda: b"RIFF\x18\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff\xff\0" * 2 + bytes(8),
    "WEBP, lossless": lambda: b"RIFF\x18\0\0\0WEBPVP8L\x0c\0\0\0/\xff\xff\xff\x0f" + bytes(8),
    "JPEG": lambda: b"\xff\xd8\xff\xc0\0\x11\x08\xff\xff\xff\xff\3\1\x11\0\2\x11\0\3\x11\0\xff\xda\0\2" + bytes(50),
    "TIFF": lambda: factory.tiff(factory.scene(), bits=8, photometric=2, tags=dict.fromkeys((256, 257), HUGE_SIDE)),
    "PNG text": lambda: factory.png_text_bomb(b"zTXt"),
    "PNG international text": lambda: factory.png_text_bomb(b"iTXt"),
    "PNG profile": lambda: factory.png_text_bomb(b"iCCP"),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_rows_21_and_22_bombs_are_refused_from_the_header(name: str) -> None:
    content = BOMBS[name]()
    assert len(content) < 400_000
    error = refused(content)
    assert error.code == "too_large"


def test_rows_21_and_22_memory_stays_flat(tmp_path: Path) -> None:
    """In a process of its own, as only the peak of a whole process also counts what decoders written in C take."""
    for index, make in enumerate(BOMBS.values()):
        (tmp_path / f"{index}.png").write_bytes(make())
    program = """
import resource, sys
from pathlib import Path
from foveal.pixels.policy import ImageRejectedError, decode
import image_factory
decode(image_factory.png_bomb(300, 300)), decode(image_factory.jpeg()), decode(image_factory.animated_webp())
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sorted(Path(sys.argv[1]).iterdir()):
    for source in (path, path.read_bytes()):
        try:
            decode(source)
        except ImageRejectedError as error:
            assert error.code == "too_large", error
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    paths = os.pathsep.join([str(Path(factory.__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 16, "MiB more than before the bombs"


def test_rows_21_and_22_the_limit_is_the_policys_and_pillows_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    content = factory.png_bomb(300, 200)
    assert decode(content, PixelPolicy(max_pixels=60_000)).pixels.shape == (200, 300, 3)
    assert refused(content, PixelPolicy(max_pixels=59_999)).code == "too_large"
    # Pillow's own limit neither refuses nor warns (a warning is an error here).
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for name, content in CUTTABLE.items():
        if not name.startswith("WEBP"):  # Pillow refuses those at twice its limit, where it cannot be hindered
            assert decode(content).pixels.size
    assert Image.MAX_IMAGE_PIXELS == 1000


@pytest.mark.parametrize("kind", factory.OTHER_CONTENT)
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_row_23_other_formats_are_refused_by_content(kind: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"scan{suffix}"
    path.write_bytes(factory.OTHER_CONTENT[kind])
    error = refused(path)
    assert error.code == "format_not_allowed"
    assert kind in str(error)


def test_row_23_the_extension_does_not_matter(tmp_path: Path) -> None:
    for name, content in (("a.txt", factory.jpeg()), ("b.jpg", factory.one_bit_png()), ("c", factory.animated_gif())):
        (tmp_path / name).write_bytes(content)
        assert decode(tmp_path / name).format in ALLOWED_FORMATS


RAMPS = {
    "PNG": factory.gray16_ramp_png(),
    "PNG, RGB": factory.rgb16_ramp_png(),
    "TIFF": factory.gray16_ramp_tiff(),
    "TIFF, big-endian": factory.gray16_ramp_tiff(">"),
    "BigTIFF": factory.gray16_ramp_tiff(big=True),
    "TIFF, 12 bits": factory.twelve_bit_tiff(),
    "TIFF, float": factory.float_tiff_ramp(),
    "TIFF, float, any range": factory.float_tiff_ramp(-1000.0, 3.5),
}


@pytest.mark.parametrize("name", RAMPS)
def test_rows_24_and_25_a_ramp_stays_a_ramp(name: str) -> None:
    decoded = decode(RAMPS[name])
    expected = np.repeat(np.arange(256)[None, :, None], 3, axis=2)
    assert decoded.pixels.tolist() == expected.tolist()
    assert decoded.notes or name == "PNG, RGB"


def test_row_26_golden_pixels_of_the_simple_modes() -> None:
    white, black = [255, 255, 255], [0, 0, 0]
    one_bit = decode(factory.one_bit_png())
    assert one_bit.pixels.tolist() == [[white, black, black, white, white, black, white, black]]
    assert one_bit.mode == "1"
    grey = decode(factory.png(3, 1, 8, 0, bytes([0, 77, 255])))
    assert grey.pixels.tolist() == [[black, [77, 77, 77], white]]
    colours = factory.chunk(b"PLTE", bytes([1, 2, 3, 250, 128, 0]))
    palette = decode(factory.png(2, 1, 8, 3, bytes([1, 0]), before=colours))
    assert palette.pixels.tolist() == [[[250, 128, 0], [1, 2, 3]]]
    assert (grey.mode, palette.mode) == ("L", "P")
    assert (one_bit.notes, grey.notes, palette.notes) == ((), (), ())


def test_row_27_hidden_colours_never_leak() -> None:
    content = factory.rgba_hidden_colour()
    decoded = decode(content)
    # 64/255 of (255, 0, 0) over white: 255, and 191/255 of 255.
    assert decoded.pixels.tolist() == [[[255, 255, 255], [255, 191, 191], [255, 0, 0]]]
    assert decoded.notes == ("transparency composited",)
    # Over (10, 200, 30): 64/255 * 255 + 191/255 * 10 = 71.49; 191/255 * 200 = 149.8; 191/255 * 30 = 22.47.
    over_green = decode(content, PixelPolicy(background=(10, 200, 30)))
    assert over_green.pixels.tolist() == [[[10, 200, 30], [71, 150, 22], [255, 0, 0]]]


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_row_28_all_orientations(name: str, orientation: int) -> None:
    decoded = decode(factory.exif_oriented(orientation, name))
    assert decoded.pixels.shape == factory.CORNERS.shape
    worst = np.abs(decoded.pixels.astype(int) - factory.CORNERS).max()
    assert worst <= (2 if name == "JPEG" else 0)
    assert decoded.notes == (() if orientation == 1 else (f"rotated by EXIF {orientation}",))
    if name != "TIFF":
        with Image.open(io.BytesIO(factory.exif_oriented(orientation, name))) as image:
            assert np.array_equal(decoded.pixels, np.asarray(ImageOps.exif_transpose(image).convert("RGB")))


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate"])
def test_row_28_orientation_of_a_compressed_tiff(compression: str) -> None:
    content = factory.saved(factory.as_stored(factory.CORNERS, 6), "TIFF", compression=compression, tiffinfo={274: 6})
    assert np.array_equal(decode(content).pixels, factory.CORNERS)


BROKEN_EXIF = {
    "no EXIF at all": b"Exif\0\0nonsense",
    "cut off": factory.exif_block(6)[:-9],
    "points nowhere": b"Exif\0\0MM\0*\xff\xff\xff\xff",
    "no number": factory.exif_block(6).replace(b"\x01\x12\0\x03", b"\x01\x12\0\x02"),
}


@pytest.mark.parametrize("name", BROKEN_EXIF)
def test_row_28_broken_exif_is_ignored_with_a_note(name: str) -> None:
    content = factory.jpeg_with_segment(0xE1, BROKEN_EXIF[name])
    decoded = decode(content)
    assert decoded.notes == ("broken EXIF ignored",)
    assert np.array_equal(decoded.pixels, decode(factory.jpeg()).pixels)


def test_row_28_impossible_or_unknown_orientation() -> None:
    assert decode(factory.jpeg_with_segment(0xE1, factory.exif_block(9))).notes == (
        "impossible EXIF orientation 9 ignored",
    )
    assert decode(factory.jpeg_with_segment(0xE1, factory.exif_block(0))).notes == ()
    assert decode(factory.jpeg_with_segment(0xE1, factory.exif_block(6, "<"))).notes == ("rotated by EXIF 6",)


@pytest.mark.parametrize(
    ("content", "note"),
    [
        (factory.animated_gif(4), "animation with 4 frames: first frame taken"),
        (factory.animated_webp(5), "animation with 5 frames: first frame taken"),
        (factory.multipage_tiff(3), "3 pages: first page taken"),
    ],
)
def test_row_29_first_frame_of_many(content: bytes, note: str) -> None:
    decoded = decode(content)
    assert np.array_equal(decoded.pixels, factory.CORNERS)
    assert decoded.notes == (note,)


def test_row_29_animated_png_and_single_frames() -> None:
    decoded = decode(factory.apng(3))
    assert decoded.notes == ("animation with 3 frames: first frame taken",)
    assert (decoded.pixels == (255, 0, 0)).all()
    assert decode(factory.animated_gif(1)).notes == ()
    assert decode(factory.multipage_tiff(1)).notes == ()


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 10_000), (10_000, 1)])
def test_row_30_one_pixel_wide(name: str, width: int, height: int) -> None:
    pixels = np.full((height, width, 3), 90, np.uint8)
    assert np.array_equal(
        decode(factory.saved(pixels, name, **({"lossless": True} if name == "WEBP" else {}))).pixels, pixels
    )


@pytest.mark.parametrize(
    "name",
    ["caf\u00e9.jpg", "cafe\u0301.jpg", "new\nline.jpg", "quo'te\".jpg", "-rf.jpg", "\u00e9" * 127, "\udcff.jpg"],
)
def test_row_31_any_file_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(factory.jpeg())
    assert decode(path).format == "JPEG"
    path.write_bytes(b"nothing")
    assert name not in str(refused(path))


def test_a_path_and_its_bytes_give_the_same(tmp_path: Path) -> None:
    contents = [*CUTTABLE.values(), *RAMPS.values(), factory.exif_oriented(6, "TIFF"), factory.cmyk_jpeg()]
    for index, content in enumerate(contents):
        path = tmp_path / str(index)
        path.write_bytes(content)
        one, two = decode(path), decode(content)
        assert np.array_equal(one.pixels, two.pixels)
        assert (one.format, one.mode, one.notes) == (two.format, two.mode, two.notes)
        assert one.pixels.dtype == np.uint8
        assert one.pixels.flags.c_contiguous
        assert one.pixels.flags.writeable


def test_an_unreadable_path_is_no_fact_of_the_content(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        decode(tmp_path / "missing.jpg")
    with pytest.raises(OSError, match="not a regular file"):
        decode(tmp_path)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="not a regular file"):
        decode(pipe)


def test_a_failing_disk_is_no_fact_of_the_content(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: object, size: int) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("PIL.JpegImagePlugin.JpegImageFile.load_read", fail)
    with pytest.raises(OSError, match="Input/output error"):
        decode(factory.jpeg())


def test_a_rejection_survives_the_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(refused(b"")))
    assert isinstance(error, ImageRejectedError)
    assert (str(error), error.code) == ("the file is empty (0 bytes)", "empty")


def test_large_images_are_copied_whole() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (701, 333, 3), np.uint8)
    assert np.array_equal(decode(factory.saved(pixels, "BMP")).pixels, pixels)


def test_many_threads_give_what_one_gives() -> None:
    contents = [
        factory.icc_jpeg(factory.adobe_rgb_profile()),
        factory.cmyk_jpeg(profile=factory.cmyk_profile()),
        factory.rgba_hidden_colour(),
        *CUTTABLE.values(),
    ] * 8
    expected = [decode(content).pixels for content in contents]
    together = threading.Barrier(4)

    def work(part: int) -> bool:
        together.wait()
        return all(np.array_equal(decode(contents[i]).pixels, expected[i]) for i in range(part, len(contents), 4))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


def test_policies_that_make_no_sense() -> None:
    with pytest.raises(ConfigError) as caught:
        PixelPolicy(background=(0, 0, 256), max_pixels=0)
    assert len(caught.value.problems) == 2
    with pytest.raises(ArtifactError, match=f"version {POLICY_VERSION + 1}"):
        decode(factory.jpeg(), replace(PixelPolicy(), version=POLICY_VERSION + 1))
