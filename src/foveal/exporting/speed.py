"""The speed verdict: every engine that can be made, side by side on this machine, on the same images and threads.

Engines take turns image by image, so that whatever else the machine does hits all of them alike; what is said of them
is a ratio with its interval, from the same images drawn again (the paired bootstrap). Milliseconds are only told beside
the machine that they hold for.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from foveal.config import Section
from foveal.evaluation.turns import in_turns
from foveal.inference import Predictor, to_unit
from foveal.machine import num_cpus
from foveal.prediction import Seen
from foveal.run_folder import describe_environment

if TYPE_CHECKING:
    from collections.abc import Iterator

EngineName = Literal["torch", "torch_channels_last", "torchscript", "onnx_fp32", "onnx_int8"]
Times = NDArray[np.float64]

TITLES: dict[EngineName, str] = {
    "torch": "torch",
    "torch_channels_last": "torch, channels last",
    "torchscript": "TorchScript",
    "onnx_fp32": "ONNX fp32",
    "onnx_int8": "ONNX int8",
}

_NUM_RESAMPLES = 2000
_LEAST_ROUNDS = 3
_ALIKE = 0.02
"""A difference below this share of the time is not worth another file."""


@dataclass(frozen=True)
class Engine:
    """Something that can be timed.

    Attributes:
        name: which.
        run: computes the probabilities of prepared images.
        num_bytes: of its file.
    """

    name: EngineName
    run: Callable[[Sequence[Seen]], object]
    num_bytes: int


class EngineSpeed(Section):
    """How fast one engine is."""

    name: EngineName
    """Which."""
    size_mib: float
    """Of its file, in MiB."""
    one_p50_ms: float
    """Median milliseconds for one image, decoding left out."""
    one_p95_ms: float
    """The 95th percentile of the same."""
    with_decoding_p50_ms: float
    """Median milliseconds for one image, from the file on."""
    batch_images_per_second: float
    """Images a second in batches, decoding left out."""
    time_ratio: float
    """Its median time for one image, as a multiple of that of torch in its usual layout."""
    time_ratio_interval: tuple[float, float]
    """The 95 % interval of that multiple."""


class Speed(Section):
    """What was measured, and on what."""

    machine: str
    """The processor."""
    num_cpus: int
    """Processors that were there."""
    num_threads: int
    """Threads that computed, the same for all engines."""
    num_images: int
    """Images that each engine was timed on, one by one."""
    batch_size: int
    """Images in a batch."""
    decoding_p50_ms: float
    """Median milliseconds for decoding one image and cutting its square."""
    engines: tuple[EngineSpeed, ...]
    """In the order of the table."""
    missing: dict[EngineName, str]
    """Engines that could not be made, and why."""
    fastest: EngineName
    """Least median time for one image."""
    sentence: str
    """The verdict in words."""
    advice: str
    """What to take, in words."""

    def of(self, name: EngineName) -> EngineSpeed | None:
        """One engine's figures; None where it was not timed."""
        return next((engine for engine in self.engines if engine.name == name), None)


def default_layout(predictor: Predictor) -> Callable[[Sequence[Seen]], object]:
    """The same networks as they are by default in torch, without channels_last."""
    device = torch.device("cpu")
    networks = [(member.bundle.build(), member.look, member.temperature) for member in predictor.members]

    def run(seen: Sequence[Seen]) -> object:
        said = []
        for network, look, temperature in networks:
            squares = np.ascontiguousarray(np.stack([each[look][0] for each in seen]).transpose(0, 3, 1, 2))
            with torch.inference_mode():
                logits = network(to_unit(torch.from_numpy(squares), device))
                said.append(torch.softmax(logits / temperature, dim=1))
        return said

    return run


@contextmanager
def torch_threads(number: int) -> "Iterator[None]":
    """Let torch compute in so many threads for the length of the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure_speed(
    engines: Sequence[Engine],
    prepared: Sequence[Callable[[], Seen]],
    *,
    exported: EngineName,
    batch_size: int,
    num_threads: int,
    missing: dict[EngineName, str] | None = None,
    advance: Callable[[], None] = lambda: None,
) -> Speed:
    """Time them.

    Args:
        engines: the first is what the others are compared with. All compute in `num_threads` already.
        prepared: decodes an image and cuts its squares, once for each call; at least one.
        exported: which of the engines is the file that is being exported.
        batch_size: images in the batches.
        num_threads: threads that compute, to be told.
        missing: engines that could not be made, and why.
        advance: called after each image.
    """
    first = [make() for make in prepared]
    batch = [first[number % len(first)] for number in range(batch_size)]
    with torch_threads(num_threads):
        for engine in engines:
            engine.run(first[:1])
            engine.run(batch)
        decoding, one = _one_by_one(engines, prepared, advance)
        num_rounds = max(_LEAST_ROUNDS, len(prepared) // batch_size)
        together = _in_batches(engines, batch, num_rounds)
    rows = tuple(
        EngineSpeed(
            name=engine.name,
            size_mib=engine.num_bytes / 2**20,
            one_p50_ms=float(np.median(one[at])) * 1000.0,
            one_p95_ms=float(np.percentile(one[at], 95)) * 1000.0,
            with_decoding_p50_ms=float(np.median(one[at] + decoding[at])) * 1000.0,
            batch_images_per_second=batch_size / float(np.median(together[at])),
            time_ratio=float(np.median(one[at]) / np.median(one[0])),
            time_ratio_interval=_ratio_interval(one[at], one[0]),
        )
        for at, engine in enumerate(engines)
    )
    by_name = {engine.name: times for engine, times in zip(engines, one, strict=True)}
    fastest = min(rows, key=lambda row: row.one_p50_ms)
    return Speed(
        machine=str(describe_environment(seed=0, device="cpu")["cpu"]),
        num_cpus=num_cpus(),
        num_threads=num_threads,
        num_images=len(prepared),
        batch_size=batch_size,
        decoding_p50_ms=float(np.median(decoding)) * 1000.0,
        engines=rows,
        missing=missing or {},
        fastest=fastest.name,
        sentence=_sentence(rows, by_name, exported),
        advice=_advice(rows, by_name, exported),
    )


def _one_by_one(
    engines: Sequence[Engine], prepared: Sequence[Callable[[], Seen]], advance: Callable[[], None]
) -> tuple[Times, Times]:
    """Seconds of decoding and of computing, float64 [engines, images] each; who begins moves on with each image."""
    decoding, computing = np.empty((len(engines), len(prepared))), np.empty((len(engines), len(prepared)))
    for at, make in enumerate(prepared):
        for place in in_turns(range(len(engines)), at):
            start = time.perf_counter()
            seen = make()
            middle = time.perf_counter()
            engines[place].run([seen])
            computing[place, at] = time.perf_counter() - middle
            decoding[place, at] = middle - start
        advance()
    return decoding, computing


def _in_batches(engines: Sequence[Engine], batch: Sequence[Seen], num_rounds: int) -> Times:
    """Seconds a batch, float64 [engines, rounds]."""
    seconds = np.empty((len(engines), num_rounds))
    for at in range(num_rounds):
        for place in in_turns(range(len(engines)), at):
            start = time.perf_counter()
            engines[place].run(batch)
            seconds[place, at] = time.perf_counter() - start
    return seconds


def _ratio_interval(times: Times, reference: Times) -> tuple[float, float]:
    """The 95 % interval of the ratio of two medians over the same images."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(times), (_NUM_RESAMPLES, len(times)))
    ratios = np.median(times[drawn], axis=1) / np.median(reference[drawn], axis=1)
    low, high = np.percentile(ratios, (2.5, 97.5)).tolist()
    return float(low), float(high)


def _compared(times: Times, reference: Times) -> tuple[float, Literal["slower", "faster", "alike"]]:
    """The ratio of the medians, and whether it can be told from 1."""
    ratio = float(np.median(times) / np.median(reference))
    low, high = _ratio_interval(times, reference)
    if low > 1.0 and ratio > 1.0 + _ALIKE:
        return ratio, "slower"
    if high < 1.0 and ratio < 1.0 - _ALIKE:
        return ratio, "faster"
    return ratio, "alike"


def _sentence(rows: Sequence[EngineSpeed], times: dict[EngineName, Times], exported: EngineName) -> str:
    """What is fastest, and how the exported file stands to torch as foveal runs it."""
    sizes = {row.name: row.size_mib for row in rows}
    parts = []
    if exported == "onnx_int8" and "onnx_fp32" in times:
        ratio, verdict = _compared(times["onnx_int8"], times["onnx_fp32"])
        share = sizes["onnx_int8"] / sizes["onnx_fp32"]
        size = f"its file has {share:.2f} of the size"
        if verdict == "slower":
            parts.append(f"int8 is slower on this machine than fp32 ONNX: {ratio:.2g} times the time; {size}.")
        elif verdict == "faster":
            parts.append(f"int8 is faster on this machine than fp32 ONNX: {ratio:.2f} of the time; {size}.")
        else:
            parts.append(f"int8 and fp32 ONNX take about the same time on this machine ({ratio:.2f}); {size}.")
    if exported in times and "torch_channels_last" in times and exported != "torch_channels_last":
        ratio, verdict = _compared(times[exported], times["torch_channels_last"])
        words = "about the time" if verdict == "alike" else f"{ratio:.2g} of the time"
        parts.append(f"For one image, {TITLES[exported]} takes {words} that torch takes in channels_last.")
    fastest = min(rows, key=lambda row: row.one_p50_ms)
    if fastest.name != exported and _compared(times[fastest.name], times[exported])[1] == "faster":
        parts.append(f"The fastest for one image is {TITLES[fastest.name]}.")
    return " ".join(parts)


def _advice(rows: Sequence[EngineSpeed], times: dict[EngineName, Times], exported: EngineName) -> str:
    """Which file to take on a machine like this one."""
    if exported == "onnx_int8" and "onnx_fp32" in times:
        verdict = _compared(times["onnx_int8"], times["onnx_fp32"])[1]
        by_name = {row.name: row for row in rows}
        if verdict == "slower":
            whole = by_name["onnx_fp32"].batch_images_per_second < by_name["onnx_int8"].batch_images_per_second
            also = " In batches int8 is the faster one." if whole else ""
            return f"On a machine like this one take the fp32 file: without --int8.{also}"
        if verdict == "alike":
            return "On a machine like this one int8 gains size alone; the fp32 file is exact."
        return "On a machine like this one take the int8 file, if the accuracy that it keeps is enough."
    fastest = min(rows, key=lambda row: row.one_p50_ms)
    if exported == "torchscript" and fastest.name == "onnx_fp32":
        return "On a machine like this one take the ONNX file: --to onnx."
    return f"On a machine like this one {TITLES[exported]} serves well." if fastest.name == exported else ""
