"""What is known of the speed of engines, as typed, frozen objects."""

from collections.abc import Sequence
from typing import Literal, Self

import numpy as np
from pydantic import Field

from foveal.config import Section

EngineName = Literal["torch", "torch_channels_last", "torch_compiled", "torchscript", "onnx_fp32", "onnx_int8"]

ENGINES: dict[EngineName, str] = {
    "torch": "torch",
    "torch_channels_last": "torch, channels last",
    "torch_compiled": "torch, compiled",
    "torchscript": "TorchScript",
    "onnx_fp32": "ONNX fp32",
    "onnx_int8": "ONNX int8",
}
"""By name: what it is called in tables."""

LEAST_SAMPLES = {"p50": 6, "p95": 59, "p99": 299}
"""With fewer, the slowest image lies below the true percentile with a probability of more than 0.05 (for p50, the
order statistics give no 95 % interval of the median)."""


class Percentiles(Section):
    """Of the milliseconds that one image takes."""

    num_samples: int
    """How many times were taken."""
    p50: float | None
    """Median, in milliseconds."""
    p95: float | None
    """95th percentile, in milliseconds."""
    p99: float | None
    """99th percentile, in milliseconds."""
    undefined: dict[str, str] = Field(default_factory=dict)
    """The reason for every null."""

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Self:
        """Of so many times."""
        values: dict[str, float | None] = {}
        undefined = {}
        for name, least in LEAST_SAMPLES.items():
            if len(seconds) >= least:
                values[name] = 1000.0 * float(np.percentile(seconds, int(name[1:])))
            else:
                values[name] = None
                undefined[name] = f"{len(seconds):,} times were taken, and {least} are needed"
        return cls(num_samples=len(seconds), undefined=undefined, **values)


class BatchRate(Section):
    """Images a second in batches of one size, decoding left out."""

    batch_size: int
    """Images in a batch."""
    images_per_second: float
    """The median over the rounds."""
    low: float
    """The slowest round."""
    high: float
    """The fastest round."""
    num_rounds: int
    """How many batches were timed."""


class EngineFigures(Section):
    """What one engine does with so many threads."""

    engine: EngineName
    """Which."""
    num_threads: int
    """Threads that compute."""
    load_seconds: float
    """From the start of loading the model, its libraries included, until it can be asked."""
    network_ms: Percentiles
    """One image, from its finished square to its probabilities."""
    whole_ms: Percentiles | None
    """The same from the image file on; null where there are no files."""
    rates: tuple[BatchRate, ...]
    """By batch size."""
    one_image_mib: float | None
    """Peak resident memory of the process with one image at a time, libraries included."""
    peak_mib: float | None
    """The same with the largest batch."""


class BenchFigures(Section):
    """All engines, and the machine that the figures hold for."""

    machine: str
    """The processor."""
    num_cpus: int
    """Processors that this process may use."""
    device: str
    """Where torch computed."""
    load_before: float
    """Processes that ran or waited to run, a minute's mean, before the first engine."""
    load_after: float
    """The same after the last."""
    images: str
    """What was timed, in words."""
    num_images: int
    """Different images among them."""
    engines: tuple[EngineFigures, ...]
    """By threads, in the order of the engines."""
    missing: dict[str, str] = Field(default_factory=dict)
    """Engines that were not measured, and why."""
