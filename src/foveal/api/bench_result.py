"""What `foveal bench` returns and shows."""

import html
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveal.evaluation.latency import BenchImages, BenchPlan, EngineSource
from foveal.evaluation.latency_figures import ENGINES, LEAST_SAMPLES, BenchFigures, Percentiles


@dataclass(frozen=True)
class BenchResult:
    """What was measured.

    Attributes:
        model: the run, bundle or exported model.
        figures: all of it.
        out: the file that was written, or None.
    """

    model: Path
    figures: BenchFigures
    out: Path | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"model": str(self.model), "out": str(self.out) if self.out else None,
                **self.figures.model_dump(mode="json")}  # fmt: skip

    def table(self) -> list[list[str]]:
        """A row an engine and number of threads, the head first."""
        sizes = [rate.batch_size for rate in self.figures.engines[0].rates]
        head = ["engine", "threads", "p50 ms", "p95", "p99", "decoded p50 ms", "p95", "p99",
                *(f"img/s x{size}" for size in sizes), "MiB x1", f"MiB x{max(sizes)}"]  # fmt: skip
        rows = [
            [ENGINES[each.engine], str(each.num_threads), *_three(each.network_ms), *_three(each.whole_ms),
             *(_shown(rate.images_per_second) for rate in each.rates),
             _whole(each.one_image_mib), _whole(each.peak_mib)]
            for each in self.figures.engines
        ]  # fmt: skip
        return [head, *rows]

    def sentences(self) -> list[str]:
        """What a reader of the table has to know, and what is missing from it."""
        figures = self.figures
        lines = [
            f"{figures.machine}, {figures.num_cpus} cores, load {figures.load_before:.1f} before and "
            f"{figures.load_after:.1f} after; {figures.images}.",
            "p50 ms: from the finished square to the probabilities; decoded: from the image file on; img/s: without "
            "decoding; MiB: peak resident memory of the engine's own process, libraries included.",
        ]
        if figures.load_before > 0.5 * figures.num_cpus:
            lines.append("The machine was busy with other work: the figures are too slow, and say little.")
        short = [each for each in figures.engines if each.network_ms.undefined]
        if short:
            fewest = min(each.network_ms.num_samples for each in short)
            needs = ", ".join(f"{least} for {name}" for name, least in LEAST_SAMPLES.items())
            lines.append(f"-: too few images were timed for it, here {fewest:,}; it takes {needs}.")
        return [*lines, *(f"{ENGINES.get(name, name)}: {why}" for name, why in figures.missing.items())]  # type: ignore[call-overload]

    def _repr_html_(self) -> str:
        head, *rows = self.table()
        cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
        lines = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        words = "".join(f"<p>{html.escape(line)}</p>" for line in self.sentences())
        return f"<table><tr>{cells}</tr>{lines}</table>{words}"


@dataclass(frozen=True)
class BenchTask:
    """What `bench --dry-run` shows.

    Attributes:
        model: the run, bundle or exported model.
        sources: the engines; an ONNX file that is still to be made has the bundle's path.
        images: what they are timed on.
        plan: how much is measured.
        missing: engines that cannot be measured, and why.
    """

    model: Path
    sources: tuple[EngineSource, ...]
    images: BenchImages
    plan: BenchPlan
    missing: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "model": str(self.model),
            "engines": [source.name for source in self.sources],
            "images": self.images.words,
            "batch_sizes": list(self.plan.batch_sizes),
            "threads": list(self.plan.thread_counts),
            "samples": self.plan.num_samples,
            "seconds": self.plan.seconds,
            "missing": self.missing,
        }

    def __str__(self) -> str:
        numbers = [", ".join(map(str, each)) for each in (self.plan.thread_counts, self.plan.batch_sizes)]
        lines = [
            f"model       {self.model}",
            f"engines     {'; '.join(ENGINES[source.name] for source in self.sources)}",
            f"images      {self.images.words}",
            f"threads     {numbers[0]}",
            f"batches     {numbers[1]}",
            f"one by one  {self.plan.num_samples:,} each, or {self.plan.seconds:g} s of it",
            *(f"missing     {ENGINES.get(name, name)}: {why}" for name, why in self.missing.items()),  # type: ignore[call-overload]
        ]
        return "\n".join(lines)


def _three(times: Percentiles | None) -> list[str]:
    if times is None:
        return ["-"] * 3
    return ["-" if value is None else _shown(value) for value in (times.p50, times.p95, times.p99)]


def _shown(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _whole(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"
