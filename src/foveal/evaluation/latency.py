"""How long one image takes and how many go through in a second, for every engine that is there.

Each engine has a process of its own, so that its threads and its memory are its own, and the engines take turns image
by image, so that whatever else the machine does hits all of them alike. A percentile is told only where enough images
were timed for it: so many that the slowest of them lies above the true percentile with a probability of 0.95.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Self

import numpy as np

from foveal.errors import DataError, FovealError
from foveal.evaluation.latency_figures import (
    ENGINES,
    LEAST_SAMPLES,
    BatchRate,
    BenchFigures,
    EngineFigures,
    EngineName,
    Percentiles,
)
from foveal.evaluation.turns import in_turns
from foveal.machine import num_cpus
from foveal.run_folder import describe_environment

_LEAST_ROUNDS = 3
_MOST_ROUNDS = 20
_END_SECONDS = 20.0


@dataclass(frozen=True)
class EngineSource:
    """What an engine is made from.

    Attributes:
        name: which.
        model: an exported model for ONNX; else a bundle.
        script: the TorchScript file, of that engine alone.
    """

    name: EngineName
    model: Path
    script: Path | None = None


@dataclass(frozen=True)
class BenchImages:
    """What engines are timed on.

    Attributes:
        words: what they are.
        requests: one an image, as `foveal.evaluation.engine_process.EngineServer` takes them.
        is_noise: whether there are no files, and so nothing to decode.
    """

    words: str
    requests: tuple[dict[str, Any], ...]
    is_noise: bool = False


@dataclass(frozen=True)
class BenchPlan:
    """How much is measured.

    Attributes:
        batch_sizes: images in a batch, each at least 1.
        thread_counts: threads that compute, each at least 1.
        num_samples: images that are timed one by one, by engine and number of threads.
        seconds: after so long an engine's one-by-one timing ends early, and so does that of its batches.
        device: where torch computes.
    """

    batch_sizes: tuple[int, ...]
    thread_counts: tuple[int, ...]
    num_samples: int
    seconds: float
    device: str


class EngineProcess:
    """A process of one engine; as a context it is started, and ended."""

    def __init__(self, source: EngineSource, num_threads: int, device: str, images: BenchImages) -> None:
        self.source = source
        self._settings = {
            "engine": source.name,
            "model": str(source.model.absolute()),
            "script": str(source.script.absolute()) if source.script else "",
            "num_threads": num_threads,
            "device": device,
            "images": images.requests,
        }
        self._num_threads = num_threads
        self._errors: IO[str] = TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self.load_seconds = 0.0

    def __enter__(self) -> Self:
        threads = {name: str(self._num_threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "foveal.evaluation.engine_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            env={**os.environ, **threads},
        )
        try:
            self.load_seconds = float(self.ask("setup", **self._settings)["load_seconds"])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def ask(self, name: str, **values: Any) -> dict[str, Any]:
        """Ask, and wait for the answer.

        Raises:
            FovealError: the engine has failed, or its process has ended.
        """
        title = ENGINES[self.source.name]
        line = ""
        if self._process.stdin is not None and self._process.stdout is not None:
            try:
                self._process.stdin.write(json.dumps({"ask": name, "with": values}) + "\n")
                self._process.stdin.flush()
                line = self._process.stdout.readline()
            except BrokenPipeError:
                line = ""  # it has ended; what it said last tells why
        if not line:
            code = self._process.wait()
            self._errors.seek(0)
            last = (self._errors.read().strip() or "no words").splitlines()[-1]
            raise FovealError(f"The process of {title} ended with exit code {code}: {last}")
        said: dict[str, Any] = json.loads(line)
        if "error" in said:
            raise FovealError(f"{title}: {said['error']}")
        return said


def measure_engines(
    sources: Sequence[EngineSource],
    images: BenchImages,
    plan: BenchPlan,
    *,
    missing: Mapping[str, str] | None = None,
    advance: Callable[[str], None] = lambda _: None,
) -> BenchFigures:
    """Time them, in turns, for each number of threads.

    Args:
        sources: at least one engine.
        images: what they are timed on; those that cannot be read are left out.
        plan: how much.
        missing: engines that could not be made, and why.
        advance: called after each piece of work, with words for it.

    Raises:
        DataError: none of the images can be read.
        FovealError: no engine runs.
    """
    load_before = os.getloadavg()[0]
    rows: list[EngineFigures] = []
    failed: dict[str, str] = dict(missing or {})
    num_images = 0
    for num_threads in plan.thread_counts:
        found, faults, num_images = _with_threads(sources, images, plan, num_threads, advance)
        rows += found
        failed |= faults
    if not rows:
        raise FovealError("No engine could be measured.", problems=[f"{key}: {why}" for key, why in failed.items()])
    return BenchFigures(
        machine=str(describe_environment(seed=0, device=plan.device)["cpu"]),
        num_cpus=num_cpus(),
        device=plan.device,
        load_before=load_before,
        load_after=os.getloadavg()[0],
        images=images.words
        + ("" if (left_out := len(images.requests) - num_images) == 0 else f", of which {left_out:,} cannot be read"),
        num_images=num_images,
        engines=tuple(rows),
        missing=failed,
    )


def _with_threads(
    sources: Sequence[EngineSource],
    images: BenchImages,
    plan: BenchPlan,
    num_threads: int,
    advance: Callable[[str], None],
) -> tuple[list[EngineFigures], dict[str, str], int]:
    """Figures by engine, why others have none, and how many images could be read."""
    engines: list[EngineProcess] = []
    faults: dict[str, str] = {}
    try:
        readable = list(range(len(images.requests)))
        for source in sources:
            advance(f"loading {ENGINES[source.name]}")
            engine = EngineProcess(source, num_threads, plan.device, images)
            try:
                engine.__enter__()
            except FovealError as error:
                faults[source.name] = str(error)
                continue
            engines.append(engine)
            unread = engine.ask("prepare", num_kept=max(plan.batch_sizes))["failed"]
            readable = [number for number in readable if str(number) not in unread]
            if not readable:
                problems = [f"{images.requests[int(number)]['path']}: {why}" for number, why in unread.items()]
                raise DataError("None of the images can be read.", problems=problems, fix="give other images.")
        if not engines:
            return [], faults, 0
        one = _one_by_one(engines, readable, plan, advance)
        peaks = [engine.ask("memory")["peak_bytes"] for engine in engines]
        rates = _in_batches(engines, plan, advance)
        figures = [
            EngineFigures(
                engine=engine.source.name,
                num_threads=num_threads,
                load_seconds=engine.load_seconds,
                network_ms=Percentiles.of([network for _, network in times]),
                whole_ms=None if images.is_noise else Percentiles.of([sum(each) for each in times]),
                rates=tuple(rate),
                one_image_mib=_mib(peak),
                peak_mib=_mib(engine.ask("memory")["peak_bytes"]),
            )
            for engine, times, rate, peak in zip(engines, one, rates, peaks, strict=True)
        ]
        return figures, faults, len(readable)
    finally:
        for engine in engines:
            engine.__exit__()


def _one_by_one(
    engines: Sequence[EngineProcess], readable: Sequence[int], plan: BenchPlan, advance: Callable[[str], None]
) -> list[list[tuple[float, float]]]:
    """Seconds of decoding and of computing, by engine and image; the first image of each is a warm-up."""
    times: list[list[tuple[float, float]]] = [[] for _ in engines]
    budget = plan.seconds * len(engines)
    started = time.perf_counter()
    for number in range(-1, plan.num_samples):
        for place in in_turns(range(len(engines)), max(number, 0)):
            said = engines[place].ask("one", number=readable[number % len(readable)])
            if number >= 0:
                times[place].append((said["decode"], said["network"]))
        advance("one by one")
        if number + 1 >= LEAST_SAMPLES["p50"] and time.perf_counter() - started > budget:
            break
    return times


def _in_batches(
    engines: Sequence[EngineProcess], plan: BenchPlan, advance: Callable[[str], None]
) -> list[list[BatchRate]]:
    rates: list[list[BatchRate]] = [[] for _ in engines]
    budget = plan.seconds * len(engines) / len(plan.batch_sizes)
    for size in plan.batch_sizes:
        for engine in engines:
            engine.ask("batch", size=size)  # plans are made for each shape
        seconds: list[list[float]] = [[] for _ in engines]
        started = time.perf_counter()
        for number in range(_MOST_ROUNDS):
            for place in in_turns(range(len(engines)), number):
                seconds[place].append(float(engines[place].ask("batch", size=size)["seconds"]))
            if number + 1 >= _LEAST_ROUNDS and time.perf_counter() - started > budget:
                break
        advance(f"batches of {size}")
        for place, taken in enumerate(seconds):
            rates[place].append(
                BatchRate(
                    batch_size=size,
                    images_per_second=size / float(np.median(taken)),
                    low=size / max(taken),
                    high=size / min(taken),
                    num_rounds=len(taken),
                )
            )
    return rates


def _mib(num_bytes: float | None) -> float | None:
    return None if num_bytes is None else round(num_bytes / 2**20, 1)
