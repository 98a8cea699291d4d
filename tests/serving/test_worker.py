"""The worker as a process of its own, and the client that keeps it running."""

import asyncio
import io
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveal.errors import ArtifactError, ConfigError
from foveal.exported.engine import OnnxPredictor
from foveal.prediction import Prediction
from foveal.serving.messages import Answer, ServedExport, WorkerSettings
from foveal.serving.protocol import packed, read_frame
from foveal.serving.worker_client import Busy, NotReady, TimedOut, WorkerClient
from plain_export import CLASSES, write_export

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sockets are handed to child processes")

BACK_SECONDS = 60.0


def picture(seed: int, kind: str = "JPEG", width: int = 60, height: int = 44) -> bytes:
    rng = np.random.default_rng(seed)
    content = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(content, kind)
    return content.getvalue()


PICTURES = [picture(seed, kind) for seed, kind in enumerate(["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"] * 2)]


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_export(tmp_path_factory.mktemp("exports") / "with space")


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_export(tmp_path_factory.mktemp("exports") / "slow", num_slow_layers=2, seed=1, heatmap=False)


def served(test: Callable[[WorkerClient], Awaitable[None]], *exports: Path, **settings: Any) -> list[str]:
    """Run a test against a worker that is ready; nothing of it is left behind. What the client told its log."""
    named = tuple(ServedExport(export.name, str(export)) for export in exports)
    events: list[str] = []

    async def run() -> None:
        limits = {name: settings.pop(name) for name in ("start_seconds", "stall_seconds") if name in settings}
        chosen = {"num_threads": 1, "num_decode_threads": 2, **settings}
        client = WorkerClient(WorkerSettings(named, **chosen), on_event=events.append, **limits)
        await client.start()
        pid = client.pid
        try:
            await asyncio.wait_for(test(client), 3 * BACK_SECONDS)
        finally:
            await client.stop(5.0)
        assert client.pid is None
        assert not is_alive(pid)

    asyncio.run(run())
    return events


def is_alive(pid: int | None) -> bool:
    assert pid is not None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def assert_same(answers: list[Answer], predictions: Prediction | list[Prediction]) -> None:
    assert isinstance(predictions, list)
    for answer, prediction in zip(answers, predictions, strict=True):
        assert answer.status == "ok"
        assert answer.predicted == prediction.predicted
        assert np.abs(answer.probabilities - prediction.probabilities).max() <= 1e-6
        assert answer.probability == answer.probabilities.max()


async def ready_again(client: WorkerClient, num_restarts: int) -> None:
    end = time.monotonic() + BACK_SECONDS
    while not client.is_ready or client.statistics.num_restarts < num_restarts:
        assert time.monotonic() < end
        await asyncio.sleep(0.01)


def test_it_says_what_the_model_says_in_every_way_of_asking(fast: Path, slow: Path) -> None:
    async def test(client: WorkerClient) -> None:
        assert [(facts.name, facts.is_default) for facts in client.models] == [("with space", True), ("slow", False)]
        facts = client.models[0]
        assert (facts.class_names, facts.size_px, facts.precision, facts.licence) == (CLASSES, 16, "fp32", "Apache-2.0")
        assert (facts.heatmap, facts.metrics) == (True, {"test": {"accuracy": 0.5}})
        for tta in ("none", "flip", "dihedral", "crops5", "3"):
            predictor = OnnxPredictor(fast, tta=tta)
            assert_same(await client.predict("with space", PICTURES, tta=tta), predictor(PICTURES))
            seen = await client.predict("with space", PICTURES, tta=tta, heatmap=True)
            assert_same(seen, predictor(PICTURES))
            maps = predictor.heatmaps([predictor.prepare(each) for each in PICTURES])
            for answer, each in zip(seen, maps, strict=True):
                wanted = np.maximum(each[CLASSES.index(answer.predicted)], 0.0)
                assert answer.heatmap is not None
                assert answer.heatmap_reason == ""
                np.testing.assert_allclose(answer.heatmap, wanted / wanted.max(), atol=1e-6)
        (blind,) = await client.predict("slow", PICTURES[:1], heatmap=True)
        assert blind.heatmap is None
        assert blind.heatmap_reason == "the head is no linear layer over a feature map"
        assert_same([blind], OnnxPredictor(slow)(PICTURES[:1]))

    served(test, fast, slow)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks at processes in /proc")
def test_it_knows_no_token(fast: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoders read what strangers send; whoever breaks one is still not who may ask."""
    monkeypatch.setenv("FOVEAL_TOKEN", "a-token-of-enough-letters")

    async def test(client: WorkerClient) -> None:
        environment = Path(f"/proc/{client.pid}/environ").read_bytes()
        assert b"FOVEAL_CACHE_DIR=" in environment
        assert b"a-token-of-enough-letters" not in environment

    served(test, fast)


def test_wrong_questions_are_refused_and_cost_nothing(fast: Path) -> None:
    async def test(client: WorkerClient) -> None:
        with pytest.raises(ConfigError, match="no model 'nope'"):
            await client.predict("nope", PICTURES)
        with pytest.raises(ConfigError, match="Test-time augmentation '65'"):
            await client.predict("with space", PICTURES, tta="65")
        with pytest.raises(ConfigError, match="At least one image"):
            await client.predict("with space", [])
        assert client.statistics.num_queued_images == 0
        assert client.statistics.num_requests["refused"] == 2

    served(test, fast)


def test_one_bad_image_among_32_fails_alone(fast: Path) -> None:
    images = [picture(seed) for seed in range(32)]
    images[5], images[9] = b"", b"<html>no picture</html>"
    images[17] = images[17][:300]

    async def test(client: WorkerClient) -> None:
        answers = await client.predict("with space", images)
        faults = {number: answer.error.code for number, answer in enumerate(answers) if answer.error}
        assert faults == {5: "empty", 9: "not_an_image", 17: "truncated"}
        good = [number for number in range(32) if number not in faults]
        assert_same([answers[number] for number in good], OnnxPredictor(fast)([images[number] for number in good]))
        counts = client.statistics
        assert (counts.num_images["with space", "ok"], counts.num_images["with space", "failed"]) == (29, 3)
        assert sum(size * number for (_, size), number in counts.num_batches.items()) == 29

    served(test, fast)


def test_a_thousand_at_once_are_answered_rightly_or_refused_at_once_in_flat_memory(slow: Path) -> None:
    expected = OnnxPredictor(slow)(PICTURES)
    assert isinstance(expected, list)

    async def test(client: WorkerClient) -> None:
        async def one(number: int) -> str:
            which = number % len(PICTURES)
            start = time.monotonic()
            try:
                answers = await client.predict("slow", [PICTURES[which]], deadline_seconds=120.0)
            except Busy:
                assert time.monotonic() - start < 5.0
                return "busy"
            assert_same(answers, [expected[which]])
            return "right"

        async def round_of_a_thousand() -> tuple[int, int, float]:
            said = await asyncio.gather(*[one(number) for number in range(1000)])
            assert client.statistics.num_queued_images == client.statistics.num_queued_bytes == 0
            return said.count("right"), said.count("busy"), memory_mib(client.pid)

        rounds = [await round_of_a_thousand() for _ in range(3)]
        assert {(right, busy) for right, busy, _ in rounds} == {(256, 744)}
        assert rounds[-1][2] - rounds[0][2] < 15.0
        assert max(size for _, size in client.statistics.num_batches) > 1

    served(test, slow, queue_size=256)


def memory_mib(pid: int | None) -> float:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def test_the_queue_is_counted_in_bytes_too(slow: Path) -> None:
    async def test(client: WorkerClient) -> None:
        # 0.9 MiB of noise each.
        big = picture(0, "BMP", 560, 560)
        first = [asyncio.create_task(client.predict("slow", [big])) for _ in range(3)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        with pytest.raises(Busy):
            await client.predict("slow", [big])
        assert client.statistics.num_queued_images == 2
        said = await asyncio.gather(*first, return_exceptions=True)
        assert [type(each).__name__ for each in said] == ["list", "list", "Busy"]

    served(test, slow, queue_mib=2)


def test_a_killed_worker_fails_what_it_had_and_another_takes_its_place(slow: Path) -> None:
    async def test(client: WorkerClient) -> None:
        tasks = [asyncio.create_task(client.predict("slow", PICTURES)) for _ in range(15)]
        await asyncio.sleep(0.05)
        assert client.pid is not None
        os.kill(client.pid, signal.SIGKILL)
        said = await asyncio.gather(*tasks, return_exceptions=True)
        assert NotReady in {type(each) for each in said}
        assert {type(each) for each in said} <= {NotReady, list}
        assert not client.is_ready
        with pytest.raises(NotReady):
            await client.predict("slow", PICTURES)
        await ready_again(client, 1)
        assert client.statistics.num_queued_images == 0
        assert_same(await client.predict("slow", PICTURES), OnnxPredictor(slow)(PICTURES))

    events = served(test, slow)
    assert any("ended by SIGKILL, as where memory runs out" in event for event in events)


def test_a_worker_that_hangs_is_ended_and_replaced(fast: Path) -> None:
    async def test(client: WorkerClient) -> None:
        assert client.pid is not None
        os.kill(client.pid, signal.SIGSTOP)
        with pytest.raises(TimedOut):
            await client.predict("with space", PICTURES, deadline_seconds=0.1)
        # What it has counts until it is gone, so that a queue that nobody works off fills up.
        assert client.statistics.num_queued_images == len(PICTURES)
        await ready_again(client, 1)
        assert client.statistics.num_queued_images == 0
        assert_same(await client.predict("with space", PICTURES), OnnxPredictor(fast)(PICTURES))

    events = served(test, fast, stall_seconds=0.3)
    assert any("it hangs" in event for event in events)


def test_what_is_cancelled_or_late_leaves_the_queue(slow: Path) -> None:
    async def test(client: WorkerClient) -> None:
        with pytest.raises(TimedOut, match=r"within 0\.01 seconds"):
            await client.predict("slow", PICTURES * 8, deadline_seconds=0.01)
        tasks = [asyncio.create_task(client.predict("slow", PICTURES)) for _ in range(12)]
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        start = time.monotonic()
        while client.statistics.num_queued_images:
            assert time.monotonic() - start < BACK_SECONDS
            await asyncio.sleep(0.005)
        computed = sum(size * number for (_, size), number in client.statistics.num_batches.items())
        assert computed < 8 * len(PICTURES)
        assert client.statistics.num_requests["timed_out"] == 1
        assert_same(await client.predict("slow", PICTURES), OnnxPredictor(slow)(PICTURES))

    served(test, slow)


def test_signals_of_the_terminal_are_not_its_own_and_stopping_answers_what_it_has(slow: Path) -> None:
    async def test(client: WorkerClient) -> None:
        assert client.pid is not None
        tasks = [asyncio.create_task(client.predict("slow", PICTURES)) for _ in range(4)]
        await asyncio.sleep(0.05)
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(client.pid, number)
        stopping = asyncio.create_task(client.stop(BACK_SECONDS))
        await asyncio.sleep(0)
        with pytest.raises(NotReady):
            await client.predict("slow", PICTURES)
        expected = OnnxPredictor(slow)(PICTURES)
        for answers in await asyncio.gather(*tasks):
            assert_same(answers, expected)
        await stopping
        assert client.statistics.num_restarts == 0

    served(test, slow)


def test_draining_ends_when_its_time_is_over(slow: Path) -> None:
    async def test(client: WorkerClient) -> None:
        task = asyncio.create_task(client.predict("slow", PICTURES * 20))
        await asyncio.sleep(0.05)
        start = time.monotonic()
        await client.stop(0.05)
        assert time.monotonic() - start < 5.0
        with pytest.raises(NotReady, match="in its hands"):
            await task

    served(test, slow)


def start_fails(path: Path) -> str:
    async def start() -> None:
        client = WorkerClient(WorkerSettings((ServedExport("a", str(path)),)))
        try:
            with pytest.raises(ArtifactError) as caught:
                await client.start()
            errors.append(str(caught.value))
        finally:
            await client.stop(0.0)
        assert client.pid is None

    errors: list[str] = []
    asyncio.run(start())
    return errors[0]


def test_a_model_that_cannot_be_opened_is_told_at_the_start_in_its_own_words(fast: Path, tmp_path: Path) -> None:
    assert "is no exported model" in start_fails(tmp_path)
    content = bytearray((fast / "model.onnx").read_bytes())
    (tmp_path / "model.onnx").write_bytes(content[: len(content) // 2])
    assert start_fails(tmp_path).startswith(str(tmp_path))


def test_a_worker_that_dies_without_a_word_is_told_too(fast: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert "ended before it was ready: exit code 1" in start_fails(fast)


def raw_worker() -> "tuple[subprocess.Popen[bytes], socket.socket]":
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, "-m", "foveal.serving.worker", str(theirs.fileno())]
        process = subprocess.Popen(command, pass_fds=(theirs.fileno(),), stderr=subprocess.PIPE)
    return process, ours


def test_it_ends_with_the_process_that_started_it(fast: Path) -> None:
    """The server may be killed at any moment: while the worker starts, and later."""
    settings = b"".join(packed(WorkerSettings((ServedExport("a", str(fast)),)).to_header()))
    for is_ready in (False, True):
        process, ours = raw_worker()
        ours.sendall(settings)
        if is_ready:
            frame = read_frame(ours.makefile("rb"))
            assert frame is not None
            assert frame.type == "ready"
        ours.close()
        # A reader of the stream holds the socket open as well.
        del ours
        frame = None
        _, errors = process.communicate(timeout=BACK_SECONDS)
        assert (process.returncode, errors) == (0, b"")


def test_what_is_no_frame_ends_it_with_a_word(fast: Path) -> None:
    process, ours = raw_worker()
    with ours, ours.makefile("rb") as stream:
        ours.sendall(b"".join(packed(WorkerSettings((ServedExport("a", str(fast)),)).to_header())))
        ready = read_frame(stream)
        assert ready is not None
        ours.sendall(b"x" * 1000)
        failed = read_frame(stream)
        assert failed is not None
        assert (failed.type, failed.header["error"]) == ("failed", "ProtocolError")
        assert read_frame(stream) is None
    assert process.wait(BACK_SECONDS) == 1
    assert process.stderr is not None
    process.stderr.close()


FOREIGN = (
    "torch lightning timm fastapi starlette uvicorn onnx onnxscript pyarrow sklearn scipy pandas matplotlib asyncio"
)
WITHOUT = """
import socket, sys, threading

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[3].split():
            raise ImportError(f"{name} is not to be imported here")

sys.meta_path.insert(0, Blocker())
from foveal.serving.messages import ServedExport, WorkerSettings
from foveal.serving.protocol import packed, read_frame
from foveal.serving.worker import Wire, Worker

ours, theirs = socket.socketpair()
worker = Worker(WorkerSettings((ServedExport("a", sys.argv[1]),)), Wire(theirs))
threading.Thread(target=worker.run, daemon=True).start()
header = {"type": "predict", "id": 1, "model": "a", "tta": "flip", "heatmap": True, "seconds_left": 60}
ours.sendall(b"".join(packed(header, [open(sys.argv[2], "rb").read()])))
stream = ours.makefile("rb")
while (frame := read_frame(stream)).type != "answers":
    pass
print(frame.header["answers"][0]["predicted"])
"""


def test_it_needs_nothing_but_the_light_package_and_onnx_runtime(fast: Path, tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(PICTURES[1])
    command = [sys.executable, "-c", WITHOUT, str(fast), str(tmp_path / "image.png"), FOREIGN]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    expected = OnnxPredictor(fast, tta="flip")(PICTURES[1])
    assert isinstance(expected, Prediction)
    assert (done.stdout.strip(), done.stderr) == (expected.predicted, "")
