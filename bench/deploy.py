"""A served EfficientNet-B4 against bare ONNX Runtime and against torch, by turns, with the same number of threads.

The network has random weights, whose batch normalisation has seen a few batches, so that its numbers are of the usual
sizes; bundle, export and server are foveal's own. Images are JPEG files of 500x375 pixels.

1. **One image**, from the bytes of the file to the probabilities: by HTTP over loopback with a kept connection; by ONNX
   Runtime, Pillow and numpy alone in one process, ONNX Runtime's other options being its own; by eager torch in its
   usual layout, and in channels_last, each in a process of its own.
2. **64 clients at once**, each with a kept connection and always one request under way, against ONNX Runtime alone on
   finished squares at whatever batch size is its best here.

The clients run on the same processors as the server.

    python bench/deploy.py
    python bench/deploy.py --model efficientnet_b0 --size-px 128 --rounds 1     # for trying it
"""

import argparse
import asyncio
import http.client
import io
import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from foveal.evaluation.latency import BenchImages, EngineProcess, EngineSource
from foveal.machine import num_cpus
from harness import FOVEAL, Bench
from images import find_or_generate
from measuring import Figure, NotMeasuredError, ratios
from recording import Record, add_out, print_table, with_spread
from turns import in_turns
from waiting import HEIGHT_PX, WIDTH_PX

NUM_CLASSES = 10
NUM_CLIENTS = 64
BATCH_SIZES = (1, 2, 4, 8, 16, 32)
START_SECONDS = 120.0
SERVED, BARE, EAGER, CHANNELS_LAST = "served", "bare ONNX Runtime", "eager torch", "torch, channels last"
MOST_OF_BARE, LEAST_OF_EAGER, LEAST_OF_RATE = 1.15, 3.2, 0.9


def make_bundle(name: str, size_px: int | None, folder: Path) -> tuple[Path, int]:
    """A bundle of a network with random weights, by foveal's own functions, and the side of its square."""
    import torch

    from foveal.model.build import Architecture, build
    from foveal.model.bundle import write_bundle
    from foveal.model.weights import FROM_RANDOM
    from foveal.model.zoo import pretrained_facts
    from foveal.pixels.policy import POLICY_VERSION, PixelPolicy

    facts = pretrained_facts(name)
    side = size_px or int(facts["input_size"][1])
    torch.manual_seed(0)
    classifier = build(Architecture(name=name, num_classes=NUM_CLASSES, image_size=side)).train()
    with torch.no_grad():
        for _ in range(4):
            classifier(torch.rand(4, 3, side, side))
    background = PixelPolicy().background
    spec = {
        "architecture": classifier.architecture.spec(),
        "class_names": [f"class {number}" for number in range(NUM_CLASSES)],
        "preprocessing": {
            "policy_version": POLICY_VERSION, "max_pixels": PixelPolicy.max_pixels, "size_px": side,
            "store_px": round(side / facts["crop_pct"]), "fit": "crop", "interpolation": "bicubic",
            "background": background, "mean": facts["mean"], "std": facts["std"],
        },
        "temperature": 1.0,
        "training_data": {"fingerprint": "0" * 64, "num_images": {"train": 0}},
        "weights": {"source": "none", "licence": FROM_RANDOM},
    }  # fmt: skip
    return write_bundle(folder, spec, classifier.net.state_dict()).path, side


def photographs(scratch: Path, num_images: int) -> list[Path]:
    """Images of one size, as JPEG files."""
    files = sorted(path for path in find_or_generate(scratch).rglob("*") if path.is_file())
    folder = scratch / "photographs"
    folder.mkdir()
    for number, file in enumerate(files[:: max(1, len(files) // num_images)][:num_images]):
        with Image.open(file) as image:
            grown = image.convert("RGB").resize((WIDTH_PX, HEIGHT_PX), Image.Resampling.BICUBIC)
        grown.save(folder / f"{number:03}.jpg", quality=92)
    return sorted(folder.iterdir())


class BareRuntime:
    """ONNX Runtime as a careful person would call it: Pillow, numpy, and one session with its own options.

    Args:
        file: the exported model, which is given finished squares.
        num_threads: threads that compute.
    """

    def __init__(self, file: Path, num_threads: int) -> None:
        import onnxruntime

        onnxruntime.disable_telemetry_events()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        look = json.loads(self._session.get_modelmeta().custom_metadata_map["foveal"])["looks"][0]["preprocessing"]
        self._side, self._shorter = int(look["size_px"]), int(look["store_px"])

    def square(self, content: bytes) -> np.ndarray:
        """The bytes of a JPEG to uint8 [1, side, side, 3]."""
        with Image.open(io.BytesIO(content)) as opened:
            image = opened.convert("RGB")
        scale = self._shorter / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        left, top = (image.width - self._side) // 2, (image.height - self._side) // 2
        return np.asarray(image.crop((left, top, left + self._side, top + self._side)))[None]

    def run(self, squares: np.ndarray) -> np.ndarray:
        """Probabilities, float32 [n, classes]."""
        feeds = {"square": squares, "image": np.zeros((0, 1, 1, 3), np.uint8)}
        return np.asarray(self._session.run(["probabilities"], feeds)[0])


@contextmanager
def served(export: Path, num_threads: int, environment: dict[str, str]) -> Iterator[tuple[str, int]]:
    """The real server process; gives its host and port."""
    command = [*FOVEAL, "serve", str(export), "--port", "0", "--set", f"serve.num_threads={num_threads}"]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stderr=errors, stdout=subprocess.DEVNULL, env=environment)
        try:
            deadline = time.monotonic() + START_SECONDS
            while True:
                errors.seek(0)
                said = errors.read()
                if found := re.search(r"at http://([0-9.]+):(\d+)", said):
                    break
                if process.poll() is not None or time.monotonic() > deadline:
                    raise NotMeasuredError(f"foveal serve did not start: {(said.strip() or 'no words')[-300:]}")
                time.sleep(0.05)
            yield found[1], int(found[2])
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def ask(connection: http.client.HTTPConnection, content: bytes) -> dict[str, Any]:
    """One image over a kept connection."""
    connection.request("POST", "/v1/predict", content, {"Content-Type": "image/jpeg"})
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200:
        raise NotMeasuredError(f"the server answered {answer.status}: {body[:200].decode(errors='replace')}")
    said: dict[str, Any] = json.loads(body)["predictions"][0]
    return said


def one_by_one(answer: Callable[[int], object], num_images: int) -> float:
    """The median seconds of one image."""
    seconds = []
    for number in range(num_images):
        started = time.perf_counter()
        answer(number)
        seconds.append(time.perf_counter() - started)
    return median(seconds)


async def _client(
    address: tuple[str, int], contents: Sequence[bytes], first: int, until: float, ends: list[float]
) -> None:
    """One client that always has one request under way; notes when each answer came."""
    reader, writer = await asyncio.open_connection(*address)
    try:
        number = first
        while time.perf_counter() < until:
            content = contents[number % len(contents)]
            head = (
                f"POST /v1/predict HTTP/1.1\r\nHost: {address[0]}:{address[1]}\r\nContent-Type: image/jpeg\r\n"
                f"Content-Length: {len(content)}\r\n\r\n"
            )
            writer.write(head.encode() + content)
            await writer.drain()
            answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            length = re.search(r"content-length: (\d+)", answer)
            body = await reader.readexactly(int(length[1])) if length else b""
            if " 200 " not in answer.split("\r\n", 1)[0] or b'"ok"' not in body:
                raise NotMeasuredError(f"the server answered {answer.splitlines()[0]}: {body[:200]!r}")
            ends.append(time.perf_counter())
            number += 1
    finally:
        writer.close()


async def _crowd(address: tuple[str, int], contents: Sequence[bytes], seconds: float) -> float:
    """Images a second; the first fifth of the time, in which queues fill, does not count."""
    ends: list[float] = []
    started = time.perf_counter()
    until = started + seconds
    clients = [_client(address, contents, number, until, ends) for number in range(NUM_CLIENTS)]
    await asyncio.gather(*clients)
    begin = started + seconds / 5
    return sum(begin <= end <= until for end in ends) / (until - begin)


def rate_alone(bare: BareRuntime, squares: np.ndarray, batch_size: int, seconds: float) -> float:
    """Images a second of ONNX Runtime alone, on finished squares."""
    batch = squares[np.arange(batch_size) % len(squares)]
    bare.run(batch)
    started, count = time.perf_counter(), 0
    while (passed := time.perf_counter() - started) < seconds or not count:
        bare.run(batch)
        count += batch_size
    return count / passed


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="efficientnet_b4")
    parser.add_argument("--size-px", type=int, help="the model's own, as timm says it, if not given")
    parser.add_argument("--threads", type=int, default=num_cpus(), help="of all sides (default: all processors)")
    parser.add_argument("--images", type=int, default=20, help="one by one, by side and round")
    parser.add_argument("--seconds", type=float, default=20.0, help="of the crowd, by side and round")
    parser.add_argument("--rounds", type=int, default=3)
    add_out(parser, "deploy")
    wanted = parser.parse_args()
    record = Record("deploy", wanted.out)
    with tempfile.TemporaryDirectory(prefix="foveal-bench-") as name, ExitStack() as stack:
        os.environ["FOVEAL_CACHE_DIR"] = str(Path(name) / "cache")
        content = measure(wanted, Path(name), stack)
    seconds, rates = content["seconds"], content["rates"]
    print(f"\n{wanted.model} at {content['size_px']} px, {WIDTH_PX}x{HEIGHT_PX} px JPEG, {wanted.threads} threads.\n")
    print_table(("one image", "seconds"), [(side, with_spread(values)) for side, values in seconds.items()])
    print()
    print_table(("at once", "images/s"), [(side, with_spread(values)) for side, values in rates.items()])
    print()
    rows = [(figure.name, with_spread(figure.values), figure.verdict) for figure in figures_of(content)]
    print_table(("ratio", "", ""), rows)
    record.write(content)


def measure(wanted: argparse.Namespace, scratch: Path, stack: ExitStack) -> dict[str, Any]:
    """Seconds and rates by side, a value a round."""
    from foveal.exporting.on_the_way import exported_of
    from foveal.progress import Silence

    bundle, size_px = make_bundle(wanted.model, wanted.size_px, scratch / "bundle")
    export = exported_of(bundle, Silence())
    files = photographs(scratch, wanted.images)
    contents = [file.read_bytes() for file in files]
    images = BenchImages("photographs", tuple({"path": str(file)} for file in files))
    bare = BareRuntime(export / "model.onnx", wanted.threads)
    host, port = stack.enter_context(served(export, wanted.threads, dict(os.environ)))
    connection = stack.enter_context(_closing(http.client.HTTPConnection(host, port, timeout=60)))
    sides: dict[str, Callable[[int], object]] = {
        SERVED: lambda number: ask(connection, contents[number]),
        BARE: lambda number: bare.run(bare.square(contents[number])),
    }
    with ExitStack() as engines:
        for side, engine in ((EAGER, "torch"), (CHANNELS_LAST, "torch_channels_last")):
            source = EngineSource(engine, bundle)  # type: ignore[arg-type]
            process = engines.enter_context(EngineProcess(source, wanted.threads, "cpu", images))
            process.ask("prepare", num_kept=1)
            sides[side] = lambda number, process=process: process.ask("one", number=number)
        check_same(ask(connection, contents[0]), bare.run(bare.square(contents[0]))[0])
        timed = {side: (lambda answer=answer: one_by_one(answer, len(files))) for side, answer in sides.items()}
        for warm in timed.values():
            warm()
        seconds = in_turns(timed, wanted.rounds)
    squares = np.concatenate([bare.square(content) for content in contents])
    sweep = {size: rate_alone(bare, squares, size, min(3.0, wanted.seconds)) for size in BATCH_SIZES}
    best = max(sweep, key=lambda size: sweep[size])
    crowd = {
        SERVED: lambda: asyncio.run(_crowd((host, port), contents, wanted.seconds)),
        BARE: lambda: rate_alone(bare, squares, best, wanted.seconds),
    }
    return {
        "model": wanted.model, "size_px": size_px, "num_threads": wanted.threads, "num_clients": NUM_CLIENTS,
        "seconds": seconds, "rates": in_turns(crowd, wanted.rounds), "best_batch_size": best, "rate by batch": sweep,
    }  # fmt: skip


def check_same(said: dict[str, Any], bare: np.ndarray) -> None:
    """That both sides answer the same question; Pillow's scaling alone rounds the longer side as foveal does here.

    Raises:
        NotMeasuredError: they do not.
    """
    difference = float(np.abs(np.array(list(said["probabilities"].values())) - bare).max())
    if difference > 1e-4:
        raise NotMeasuredError(f"server and bare ONNX Runtime differ by {difference:.2g}")


@contextmanager
def _closing(connection: http.client.HTTPConnection) -> Iterator[http.client.HTTPConnection]:
    try:
        yield connection
    finally:
        connection.close()


def figures_of(said: dict[str, Any]) -> list[Figure]:
    """The ratios with their targets, from what `measure` gave."""
    seconds, rates = said["seconds"], said["rates"]
    what = f"{said['model']} at {said['size_px']} px, {said['num_threads']} threads"
    best = said["best_batch_size"]
    return [
        Figure(key="m", name=f"one image, {what}: served / bare ONNX Runtime with decoding",
               values=ratios(seconds[SERVED], seconds[BARE]), at_most=MOST_OF_BARE, detail=said),
        Figure(key="m", name="the same, eager torch / served",
               values=ratios(seconds[EAGER], seconds[SERVED]), at_least=LEAST_OF_EAGER),
        Figure(key="m", name="the same, torch in channels_last / served",
               values=ratios(seconds[CHANNELS_LAST], seconds[SERVED])),
        Figure(key="m", name=f"{said['num_clients']} clients, images a second: served / ONNX Runtime alone in batches "
               f"of {best}", values=ratios(rates[SERVED], rates[BARE]), at_least=LEAST_OF_RATE),
    ]  # fmt: skip


def deployed(bench: Bench) -> list[Figure]:
    """A served EfficientNet-B4 against bare ONNX Runtime and against torch."""
    return figures_of(bench.script("deploy", "--rounds", str(bench.rounds)))


if __name__ == "__main__":
    main()
