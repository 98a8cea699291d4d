import asyncio
import io
import json
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from foveal.errors import ArtifactError, ConfigError, FovealError
from foveal.serving.messages import (
    Answer,
    AnswerFault,
    AnswerSeconds,
    ServedExport,
    WorkerSettings,
    answers_frame,
    error_header,
    read_answers,
    read_error,
)
from foveal.serving.protocol import (
    MAGIC,
    MAX_BLOBS,
    MAX_HEADER_BYTES,
    Frame,
    ProtocolError,
    TornFrameError,
    packed,
    read_frame,
    receive_frame,
)

HEADER = {"type": "predict", "id": 7, "model": "<img onerror=alert(1)>\n'ü"}
BLOBS = (b"", b"\x00\xff" * 70_000, b"fvl1")


def blocking(content: bytes, **limits: int) -> Frame | None:
    return read_frame(io.BytesIO(content), **limits)


def in_pieces(content: bytes, **limits: int) -> Frame | None:
    """The same from a stream that gets its bytes a few at a time."""

    async def received() -> Frame | None:
        stream = asyncio.StreamReader()

        async def feed() -> None:
            step = max(1, len(content) // 500)
            for start in range(0, len(content), step):
                stream.feed_data(content[start : start + step])
                await asyncio.sleep(0)
            stream.feed_eof()

        feeding = asyncio.create_task(feed())
        try:
            return await receive_frame(stream, **limits)
        finally:
            feeding.cancel()

    return asyncio.run(received())


READERS = pytest.mark.parametrize("read", [blocking, in_pieces])


@READERS
def test_a_frame_comes_out_as_it_went_in(read: Any) -> None:
    frame = read(b"".join(packed(HEADER, BLOBS)))
    assert (frame.header, frame.blobs, frame.type) == (HEADER, BLOBS, "predict")


@READERS
def test_a_clean_end_is_no_error_and_a_torn_frame_is(read: Any) -> None:
    content = b"".join(packed(HEADER, BLOBS))
    assert read(b"") is None
    for length in (1, 11, 12, 20, 35, 40, len(content) - 1):
        with pytest.raises(TornFrameError, match="ended within a frame"):
            read(content[:length])


def start(header_length: int, lengths: Sequence[int], num_blobs: int | None = None) -> bytes:
    count = len(lengths) if num_blobs is None else num_blobs
    return struct.pack("!4sII", MAGIC, header_length, count) + struct.pack(f"!{len(lengths)}Q", *lengths)


@READERS
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "GET "),
        (start(MAX_HEADER_BYTES + 1, []), "header of"),
        (start(2, [], MAX_BLOBS + 1), "blobs"),
        (start(2, [2**62]), "at most 1,000"),
        (start(2, [600, 600]), "1,200 bytes"),
        (start(3, []) + b"{]}", "no JSON"),
        (start(2, []) + b"[]", "list"),
        (start(200_000, []) + b"[" * 200_000, "no JSON"),
    ],
)
def test_what_is_no_frame_or_too_large_is_refused_before_it_is_read(read: Any, content: bytes, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        read(content, max_frame_bytes=1000)


def test_a_writer_keeps_the_limits_too() -> None:
    with pytest.raises(ProtocolError, match="blobs"):
        packed({}, [b""] * (MAX_BLOBS + 1))
    with pytest.raises(ProtocolError, match="header of"):
        packed({"text": "a" * MAX_HEADER_BYTES})
    with pytest.raises(ValueError, match="JSON"):
        packed({"probability": float("nan")})


def test_answers_arrive_to_the_last_bit() -> None:
    seconds = AnswerSeconds(0.1, 0.2, 0.3, 4)
    probabilities = np.array([0.1, 0.7, 0.2]) / 3.0
    heatmap = np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3)
    answers = [
        Answer("ok", "b", 0.7 / 3.0, probabilities, heatmap, "", None, seconds),
        Answer.failed(AnswerFault("truncated", "the file is cut off"), seconds),
        Answer("ok", "b", 0.7 / 3.0, probabilities, None, "no such head", None, seconds),
    ]
    header, blobs = answers_frame(3, answers)
    first, failed, last = read_answers(Frame(json.loads(json.dumps(header)), tuple(blobs)))
    assert first.probabilities.tobytes() == probabilities.tobytes()
    assert first.heatmap is not None
    assert first.heatmap.tobytes() == heatmap.tobytes()
    assert (first.predicted, first.probability, first.error, first.seconds) == ("b", 0.7 / 3.0, None, seconds)
    assert (failed.status, failed.error) == ("failed", AnswerFault("truncated", "the file is cut off"))
    assert failed.probabilities.size == 0
    assert (last.heatmap, last.heatmap_reason) == (None, "no such head")
    with pytest.raises(ProtocolError, match="do not hang together"):
        read_answers(Frame(header, tuple(blobs[:1])))


def test_an_error_keeps_its_class_and_its_words() -> None:
    error = ConfigError("There is no model 'x'.", problems=["a", "b"], fix="ask for another.")
    again = read_error(json.loads(json.dumps(error_header(error, request_id=1))))
    assert type(again) is ConfigError
    assert str(again) == str(error)
    # A name that is no error of ours names no code.
    assert type(read_error({"error": "system", "message": "no"})) is ArtifactError
    assert isinstance(read_error({"error": "InterruptedRunError"}), FovealError)


def test_settings_travel_and_are_checked() -> None:
    settings = WorkerSettings((ServedExport("a", "/x y"), ServedExport("ü\n", "/z")), num_threads=3, max_wait_ms=0.5)
    assert WorkerSettings.from_header(json.loads(json.dumps(settings.to_header()))) == settings
    with pytest.raises(ConfigError) as caught:
        WorkerSettings((ServedExport("a", "/x"), ServedExport("a", "/y")), max_batch=0, max_wait_ms=-1.0)
    assert len(caught.value.problems) == 3
