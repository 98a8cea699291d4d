"""What models cost, measured side by side: size, operations, milliseconds, images a second, joules.

Everything that takes time is interleaved: each round times every model once, in an order that moves on, so that a busy
moment of the machine hits all alike.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from foveal.evaluation.turns import in_turns
from foveal.files import read_json
from foveal.inference import Predictor
from foveal.model.build import Classifier
from foveal.model.costs import count_macs, count_parameters
from foveal.progress import Progress

MIB = 1 << 20
BATCH_SIZE = 32
MAX_ROUNDS = 50
MIN_ROUNDS = 10
SECONDS_A_MODEL = 4.0
"""After so long for each model, and the least number of rounds, no further round begins."""
NUM_BATCH_ROUNDS = 7
MIN_BATCH_ROUNDS = 3
ENERGY_SECONDS = 0.3
"""Energy counters move in steps, so batches are repeated for so long between two looks at one."""

TIMES = ("train_wall_seconds", "train_cpu_seconds", "total_wall_seconds", "total_cpu_seconds")

_POWERCAP = Path("/sys/class/powercap")


@dataclass
class Speed:
    """What was timed of one model on one device; None with a reason where it could not be.

    Attributes:
        latency_ms: of one image from its file, decoding included: p50 and p95.
        network_ms: of one image's pixels through the network alone: p50 and p95.
        images_per_second: through the network in batches of `BATCH_SIZE`; the median of the rounds.
        joules_per_1000_images: what the processor or GPU drew meanwhile, everything else on it included.
        undefined: why a figure is None, by its name.
    """

    latency_ms: tuple[float, float] | None = None
    network_ms: tuple[float, float] | None = None
    images_per_second: float | None = None
    joules_per_1000_images: float | None = None
    undefined: dict[str, str] = field(default_factory=dict)


@dataclass
class _Clock:
    """The times of one model, in seconds, as they come in."""

    latencies: list[float] = field(default_factory=list)
    networks: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    joules: float = 0.0
    num_images: int = 0


def size_of(predictor: Predictor) -> dict[str, float | int | None]:
    """Parameters, multiply-accumulates for one image, and MiB of the bundle; all members of an ensemble together."""
    networks = [member.classifier for member in predictor.members]
    parameters = sum(count_parameters(net.net if isinstance(net, Classifier) else net) for net in networks)
    macs = sum(count_macs(net) for net in networks if isinstance(net, Classifier))
    files = [path for path in predictor.bundle.path.rglob("*") if path.is_file()]
    return {
        "num_parameters": parameters,
        "num_macs": macs,
        "bundle_mib": round(sum(path.stat().st_size for path in files) / MIB, 3),
    }


def training_seconds(runs: Sequence[Path]) -> dict[str, float | None]:
    """Wall and CPU seconds of the trainings, and of all stages of their runs, from timings.json; None if unknown.

    Args:
        runs: the run folders whose trainings made the model: one, or the folds that vote.
    """
    found = _timings(runs)
    if not found or not all("train" in timings for timings in found):
        return dict.fromkeys(TIMES)
    seconds: dict[str, float | None] = {
        f"train_{key}": round(sum(float(timings["train"][key]) for timings in found), 3)
        for key in ("wall_seconds", "cpu_seconds")
    }
    return seconds | total_seconds(runs)


def total_seconds(folders: Sequence[Path]) -> dict[str, float | None]:
    """Wall and CPU seconds of all stages of some folders, from timings.json; None if unknown."""
    stages = [stage for timings in _timings(folders) for stage in timings.values()]
    return {
        f"total_{key}": round(sum(float(stage[key]) for stage in stages), 3) if stages else None
        for key in ("wall_seconds", "cpu_seconds")
    }


def _timings(folders: Sequence[Path]) -> list[dict[str, dict[str, float]]]:
    files = [folder / "timings.json" for folder in folders]
    return [read_json(file) for file in files if file.is_file()]


def measure_speed(
    predictors: Mapping[str, Predictor], images: Sequence[Path], device: torch.device, progress: Progress
) -> dict[str, Speed]:
    """Time every model on the same images, in turns.

    Args:
        predictors: the models, all on `device`.
        images: files to predict one by one; those that cannot be read are passed over.
        device: where they compute.
        progress: where to show it.
    """
    names = list(predictors)
    clocks = {name: _Clock() for name in names}
    num_rounds = max(MIN_ROUNDS, min(MAX_ROUNDS, len(images)))
    with progress.bar(f"Timing on {device.type}", num_rounds + NUM_BATCH_ROUNDS, "rounds") as bar:
        start = time.perf_counter()
        for number in range(num_rounds):
            if number >= MIN_ROUNDS and time.perf_counter() - start > SECONDS_A_MODEL * len(names):
                break
            for name in in_turns(names, number):
                if images:
                    _time_image(predictors[name], images[number % len(images)], clocks[name])
                clocks[name].networks.append(_time_network(predictors[name], device))
            bar.advance()
        meter, why_no_meter = energy_meter(device)
        start = time.perf_counter()
        for number in range(-1, NUM_BATCH_ROUNDS):  # the first to warm up
            if number >= MIN_BATCH_ROUNDS and time.perf_counter() - start > SECONDS_A_MODEL * len(names):
                break
            for name in in_turns(names, number):
                _time_batch(predictors[name], device, meter, _Clock() if number < 0 else clocks[name])
            bar.advance()
    return {name: _speed(clock, why_no_meter) for name, clock in clocks.items()}


def energy_meter(device: torch.device) -> tuple[Callable[[], float] | None, str]:
    """What reads the joules that a device has drawn so far, or None and why there is no such thing here.

    Sources: for a processor, the counters of RAPL (Intel, AMD) under /sys/class/powercap; for a GPU, NVML.
    """
    return _gpu_meter(device) if device.type == "cuda" else _cpu_meter(_POWERCAP)


def _cpu_meter(folder: Path) -> tuple[Callable[[], float] | None, str]:
    if not folder.is_dir():
        return None, f"this machine shows no energy counter ({folder})"
    # Whole packages alone: what lies in them, intel-rapl:0:0 and on, is part of their sum.
    counters = [path / "energy_uj" for path in sorted(folder.glob("*-rapl:*")) if path.name.count(":") == 1]
    readable: list[tuple[Path, float]] = []
    for counter in counters:
        with suppress(OSError, ValueError):
            float(counter.read_text(encoding="ascii"))
            readable.append((counter, float((counter.parent / "max_energy_range_uj").read_text(encoding="ascii"))))
    if not readable:
        return None, f"the energy counters under {folder} may only be read by root" if counters else (
            f"this machine shows no energy counter ({folder})"
        )
    last = [float(counter.read_text(encoding="ascii")) for counter, _ in readable]
    total = 0.0

    def joules() -> float:
        nonlocal total
        for at, (counter, largest) in enumerate(readable):
            now = float(counter.read_text(encoding="ascii"))
            total += now - last[at] if now >= last[at] else now - last[at] + largest  # it starts again at 0
            last[at] = now
        return total / 1e6

    return joules, ""


def _gpu_meter(device: torch.device) -> tuple[Callable[[], float] | None, str]:
    try:
        import pynvml  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ModuleNotFoundError:
        return None, "the package nvidia-ml-py, which reads the GPU's counter, is not installed"
    try:
        pynvml.nvmlInit()
        identity = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        handle = pynvml.nvmlDeviceGetHandleByUUID(identity)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError as error:
        return None, f"the GPU shows no energy counter: {error}"
    return lambda: float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3, ""


def _time_image(predictor: Predictor, image: Path, clock: _Clock) -> None:
    # It predicts the image once before, so that no model pays for the first look at a file.
    found = predictor.measure_latency([image])
    if found is not None:
        clock.latencies.append(found["p50"] / 1000.0)


def _time_network(predictor: Predictor, device: torch.device) -> float:
    _timed(predictor, device, 1)
    return _timed(predictor, device, 1)


def _time_batch(predictor: Predictor, device: torch.device, meter: Callable[[], float] | None, clock: _Clock) -> None:
    before = meter() if meter else 0.0
    seconds, num_images = 0.0, 0
    while not num_images or (meter and seconds < ENERGY_SECONDS):
        seconds += _timed(predictor, device, BATCH_SIZE)
        num_images += BATCH_SIZE
    clock.rates.append(num_images / seconds)
    if meter:
        clock.joules += meter() - before
        clock.num_images += num_images


def _timed(predictor: Predictor, device: torch.device, batch_size: int) -> float:
    """Seconds for a batch of grey images through all networks."""
    sides = [member.geometry.size_px for member in predictor.members]
    grey = [torch.full((batch_size, 3, side, side), 0.5, device=device) for side in sides]
    batches = [pixels.contiguous(memory_format=torch.channels_last) for pixels in grey]
    _synchronise(device)
    start = time.perf_counter()
    with torch.inference_mode():
        for member, pixels in zip(predictor.members, batches, strict=True):
            member.classifier(pixels)
    _synchronise(device)
    return time.perf_counter() - start


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def _speed(clock: _Clock, why_no_meter: str) -> Speed:
    speed = Speed(network_ms=_ends(clock.networks), images_per_second=float(np.median(clock.rates)))
    if clock.latencies:
        speed.latency_ms = _ends(clock.latencies)
    else:
        speed.undefined["latency_ms"] = "no image could be read"
    if clock.num_images:
        speed.joules_per_1000_images = 1000.0 * clock.joules / clock.num_images
    else:
        speed.undefined["joules_per_1000_images"] = why_no_meter
    return speed


def _ends(seconds: Sequence[float]) -> tuple[float, float]:
    """The median and the 95th percentile, in milliseconds."""
    values: NDArray[np.float64] = 1000.0 * np.asarray(seconds)
    return float(np.percentile(values, 50)), float(np.percentile(values, 95))
