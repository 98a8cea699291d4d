"""Rows 8-10, 18-31 and 54 against the real server: what an image file can be, over real sockets."""

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

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


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_export(tmp_path_factory.mktemp("exports") / "signs")


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
