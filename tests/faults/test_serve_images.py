"""Rows 8-10, 18-31, 39 and 54 against the real server: what an image file can be, over real sockets."""

import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

import foveal
import image_factory as factory
from foveal.errors import FovealError
from foveal.exported.engine import OnnxPredictor
from foveal.prediction import Prediction
from plain_export import write_export

SMALL = factory.scene(24, 16)
REFUSED = {
    "row 18, empty": b"",
    **{f"row 18 or 23, {name}": content for name, content in factory.NO_IMAGES.items()},
    "row 19, cut off": factory.truncated_jpeg(),
    "row 21, 50k x 50k": factory.png_bomb(50_000, 50_000),
    "row 22, 13k x 13k": factory.png_bomb(13_000, 13_000),
}
TAKEN = {
    "row 24, 16-bit grey": factory.gray16_ramp_png(),
    "row 24, 16-bit colour": factory.rgb16_ramp_png(),
    "row 25, float": factory.float_tiff_ramp(),
    "row 26, CMYK": factory.cmyk_jpeg(profile=factory.cmyk_profile()),
    "row 26, ICC": factory.icc_jpeg(factory.adobe_rgb_profile()),
    "row 26, palette": factory.palette_png_transparent(),
    "row 26, one bit": factory.one_bit_png(),
    "row 27, hidden colour": factory.rgba_hidden_colour(),
    **{f"row 28, orientation {turn}": factory.exif_oriented(turn) for turn in range(1, 9)},
    "row 29, GIF": factory.animated_gif(),
    "row 29, WEBP": factory.animated_webp(),
    "row 29, TIFF": factory.multipage_tiff(),
    "row 30, 1 x 1": factory.saved(np.full((1, 1, 3), 90, np.uint8), "PNG"),
    "row 30, 1 x 10000": factory.saved(np.full((10_000, 1, 3), 90, np.uint8), "PNG"),
}
NUM_MUTATED, IN_ONE_REQUEST = 4_000, 32
RAW = {"content-type": "application/octet-stream"}
HOSTILE = "<img src=x onerror=alert(1)>"
NAMES = {
    "composed": unicodedata.normalize("NFC", "ä é.png"),
    "decomposed": unicodedata.normalize("NFD", "ä é.png"),
    "dash": "-rf.png",
    "255 bytes": "ü" * 125 + "a.png",
    "spaces": " a  b.png ",
    "percent": "50%25.png",
    "separator": "a\u2028;b=c,'.png",
    "backslash": "a\\b.png",
    "path": "../../etc/passwd",
    "formula": "=HYPERLINK(1)",
    "markup": f"{HOSTILE}.png",
    "other scripts": "\u540d\u524d\U0001f600.png",
}


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_export(tmp_path_factory.mktemp("exports") / "signs", class_names=("discs", HOSTILE, "=1+1"))


@pytest.fixture(scope="module")
def client(export: Path) -> Iterator[httpx.Client]:
    with foveal.Server(export) as server, httpx.Client(base_url=server.url, timeout=60.0) as asking:
        yield asking


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_used_is_refused_with_its_reason_at_once(client: httpx.Client, kind: str) -> None:
    start = time.monotonic()
    reply = client.post("/v1/predict", content=REFUSED[kind], headers=RAW)
    assert time.monotonic() - start < 5.0
    assert reply.status_code in (400, 422), reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json()["detail"]
    assert client.get("/readyz").status_code == 200


def test_whatever_can_be_read_has_the_answer_of_python(client: httpx.Client, export: Path) -> None:
    expected = OnnxPredictor(export)(list(TAKEN.values()))
    assert isinstance(expected, list)
    for (kind, content), prediction in zip(TAKEN.items(), expected, strict=True):
        assert isinstance(prediction, Prediction)
        assert prediction.status == "ok", kind
        reply = client.post("/v1/predict", content=content, headers=RAW)
        assert reply.status_code == 200, kind
        said = reply.json()["predictions"][0]
        difference = np.abs(np.array(list(said["probabilities"].values())) - prediction.probabilities).max()
        assert difference < 1e-6, kind


def test_row_20_a_jpeg_damaged_in_the_middle_has_the_answer_of_python(client: httpx.Client, export: Path) -> None:
    """libjpeg decodes it without a word; the server decodes as everything else does, and knows no more."""
    whole = factory.jpeg(factory.scene(96, 64), quality=90)
    middle = len(whole) // 2
    damaged = [whole[:middle] + b"U" * 40 + whole[middle + 40 :], whole[:middle] + whole[middle + 60 :]]
    expected = OnnxPredictor(export)([whole, *damaged])
    assert isinstance(expected, list)
    for content, prediction in zip(damaged, expected[1:], strict=True):
        assert np.abs(prediction.probabilities - expected[0].probabilities).max() > 1e-4, "nothing was damaged"
        reply = client.post("/v1/predict", content=content, headers=RAW)
        assert (reply.status_code, prediction.status) == (200, "ok")
        said = reply.json()["predictions"][0]
        assert np.abs(np.array(list(said["probabilities"].values())) - prediction.probabilities).max() < 1e-6
    # Where its end is missing too, both say so, in the same words.
    cut = damaged[0][: -len(whole) // 4]
    refused, told = OnnxPredictor(export)(cut), client.post("/v1/predict", content=cut, headers=RAW)
    assert isinstance(refused, Prediction)
    assert told.status_code == 422
    assert told.json()["detail"] in refused.reason


def test_row_31_names_come_back_as_they_were_sent(client: httpx.Client) -> None:
    """In the order of the images; neither normalised, nor decoded, nor used as a path."""
    content = factory.saved(SMALL, "PNG")
    assert len(NAMES["255 bytes"].encode()) == 255
    files = [("image", (name, content)) for name in NAMES.values()]
    reply = client.post("/v1/predict", files=files)
    assert [each["name"] for each in reply.json()["predictions"]] == list(NAMES.values())
    # Browsers and curl write quotes and ends of lines as %22, %0A and %0D (HTML, "multipart/form-data encoding").
    for name, sent in (('q"uote\n.png', "q%22uote%0A.png"), ("a\r\nb: c\r\n\r\n.png", "a%0D%0Ab: c%0D%0A%0D%0A.png")):
        (said,) = client.post("/v1/predict", files={"image": (name, content)}).json()["predictions"]
        assert said["name"] == sent
    # Whoever escapes them as in a quoted string (RFC 7578) has them back; a name that is no UTF-8 is read as Latin-1.
    for words, name in (
        (b'"q\\"uote.png"', 'q"uote.png'),
        ("n\u00e4m\u00e9.png".encode("latin-1"), "n\u00e4m\u00e9.png"),
    ):
        head = b'--b\r\nContent-Disposition: form-data; name="image"; filename=' + words
        raw = head + b"\r\n\r\n" + content + b"\r\n--b--\r\n"
        reply = client.post("/v1/predict", content=raw, headers={"content-type": "multipart/form-data; boundary=b"})
        assert reply.json()["predictions"][0]["name"] == name
    (said,) = client.post("/v1/predict", files={"image": ("x" * 3000, content)}).json()["predictions"]
    assert said["name"] == "x" * 1024


def test_row_39_markup_in_classes_names_and_questions_is_never_shown_as_a_page(client: httpx.Client) -> None:
    content = factory.saved(SMALL, "PNG")
    good = client.post("/v1/predict", files={"image": (HOSTILE, content)})
    assert HOSTILE in good.json()["predictions"][0]["probabilities"]
    assert good.json()["predictions"][0]["name"] == HOSTILE
    models = client.get("/v1/models")
    assert HOSTILE in models.json()["models"][0]["class_names"]
    refused = [
        client.post("/v1/predict", files={"image": (HOSTILE, HOSTILE.encode())}),
        client.post("/v1/predict", params={"tta": HOSTILE[:16]}, files={"image": content}),
        client.post("/v1/predict", params={HOSTILE: HOSTILE}, files={"image": content}),
        client.post("/v1/predict", content=content, headers={"content-type": f"text/html; {HOSTILE}"}),
        client.post("/v1/predict", files={HOSTILE: content}),
        client.get(f"/v1/models/{HOSTILE}/predict"),
        client.get(f"/{HOSTILE}"),
        client.get(f"/assets/{HOSTILE}.js"),
        client.get("/v1/models", headers={"Origin": HOSTILE}),
        client.get("/v1/models", headers={"Host": "<img>"}),
    ]
    for reply in (good, models, *refused):
        is_good = reply.status_code == 200
        assert is_good == (reply in (good, models))
        assert reply.headers["content-type"] == f"application/{'json' if is_good else 'problem+json'}"
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in reply.headers["content-security-policy"]
        assert not any(HOSTILE in value for value in reply.headers.values())


def test_files_that_are_small_and_pictures_that_are_not_are_answered_in_bounded_time(client: httpx.Client) -> None:
    """Row 22 within the cap, and row 29 with hundreds of pages and frames: of these, the first alone is read."""
    bits, pages = factory.saved(Image.new("1", (5_000, 5_000)), "PNG"), factory.multipage_tiff(600)
    frames = factory.animated_gif(2_000)
    assert len(bits) < 20_000
    for content in (bits, pages, frames):
        start = time.monotonic()
        assert client.post("/v1/predict", content=content, headers=RAW).status_code == 200
        assert time.monotonic() - start < 5.0


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks at processes in /proc")
def test_large_pictures_leave_no_memory_behind(export: Path) -> None:
    """The C library would keep for each decoder what its largest picture took."""
    large = factory.saved(Image.new("1", (60_000, 600)), "PNG")
    with foveal.Server(export) as server, httpx.Client(base_url=server.url, timeout=60.0) as client:
        (worker,) = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text(encoding="ascii").split()

        def resident_mib() -> int:
            lines = Path(f"/proc/{worker}/status").read_text(encoding="ascii").splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) // 1024

        before = resident_mib()
        for _ in range(2):
            reply = client.post("/v1/predict", files=[("image", large)] * 4)
            assert {each["status"] for each in reply.json()["predictions"]} == {"ok"}
        assert resident_mib() - before < 64


def test_row_54_mutated_images_are_answered_or_refused_and_nothing_breaks(client: httpx.Client) -> None:
    draw = np.random.default_rng(0)
    seeds = [content for content in (*TAKEN.values(), *REFUSED.values()) if 0 < len(content) < 50_000]
    statuses: list[str] = []
    for _ in range(NUM_MUTATED // IN_ONE_REQUEST + 1):
        files = [
            ("image", (f"{number}.jpg", _mutated(seeds[int(draw.integers(len(seeds)))], draw)))
            for number in range(IN_ONE_REQUEST)
        ]
        reply = client.post("/v1/predict", files=files)
        assert reply.status_code == 200, reply.text
        statuses += [each["status"] for each in reply.json()["predictions"]]
    assert len(statuses) >= NUM_MUTATED
    assert set(statuses) == {"ok", "failed"}
    assert client.get("/readyz").status_code == 200
    lines = client.get("/metrics").text.splitlines()
    assert [line.rpartition(" ")[2] for line in lines if "restarts" in line and line[0] != "#"] == ["0.0"]


def _mutated(content: bytes, draw: np.random.Generator) -> bytes:
    """A few bytes overwritten, dropped or doubled, more of them near the beginning, where the headers are."""
    damaged = bytearray(content)
    for _ in range(int(draw.integers(1, 6))):
        at = int(draw.random() ** 2 * len(damaged))
        kind = int(draw.integers(4))
        if kind < 2 and at < len(damaged):
            damaged[at] = int(draw.integers(256))
        elif kind == 2:
            del damaged[at : at + int(draw.integers(1, 32))]
        else:
            damaged[at:at] = damaged[at : at + int(draw.integers(1, 32))]
    return bytes(damaged)


@pytest.mark.parametrize("kind", ["pickle", "external data", "changed", "no export"])
def test_rows_8_to_10_a_model_that_is_not_what_it_says_is_not_served(tmp_path: Path, kind: str) -> None:
    folder = write_export(tmp_path / "signs")
    file = folder / "model.onnx"
    if kind == "pickle":
        file.write_bytes(b"\x80\x04\x95\x0c\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94.")
    elif kind == "external data":
        import onnx

        model = onnx.load(str(file))
        onnx.save_model(
            model,
            str(file),
            save_as_external_data=True,
            location="weights.bin",
            size_threshold=0,
            convert_attribute=True,
        )
    elif kind == "changed":
        (folder / "parity.json").write_text('{"file": {"name": "model.onnx", "sha256": "' + 64 * "0" + '"}}')
    else:
        file.rename(folder / "other.bin")
    with pytest.raises(FovealError), foveal.Server(folder):
        pass
