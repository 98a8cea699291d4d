"""`foveal bench`: latency, throughput and memory of a model on this machine, for every engine that is there."""

import sys
from collections.abc import Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np

from foveal.api.bench_result import BenchResult, BenchTask
from foveal.api.opening import refuse_unfinished
from foveal.errors import ConfigError, DataError, FovealError, MissingExtraError
from foveal.evaluation.latency import BenchImages, BenchPlan, EngineSource, measure_engines
from foveal.evaluation.latency_figures import ENGINES, EngineName
from foveal.exported.opening import Export, is_export, open_export
from foveal.exporting.staging import SCRIPT_FILE
from foveal.files import write_json
from foveal.machine import num_cpus
from foveal.model.bundle import Bundle, EnsembleBundle, open_bundle
from foveal.predictions import expand_inputs
from foveal.progress import Progress, Silence
from foveal.run_folder import RunFolder

MOST_IMAGES = 64
"""Different images that are timed; more would measure the disk."""

_ALL_ONNX = "onnx"
_MOST_BATCH, _MOST_THREADS, _MOST_SAMPLES = 4096, 1024, 100_000


def bench(
    model: str | PathLike[str],
    inputs: Sequence[str | PathLike[str]] = (),
    *,
    engines: Sequence[str] = (),
    exports: Sequence[str | PathLike[str]] = (),
    batch_sizes: Sequence[int] = (1, 8, 32),
    threads: Sequence[int] = (),
    samples: int = 300,
    seconds: float = 20.0,
    out: str | PathLike[str] | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> BenchResult:
    """Measure latency, throughput and memory, each engine in a process of its own, by turns.

    Args:
        model: a run, a bundle or an exported model. A run or bundle is exported to ONNX on the way, once.
        inputs: images to time: files, folders, glob patterns. The run's own test images, if not given; noise for a
            model without a run.
        engines: which: torch, torch_channels_last, torch_compiled, torchscript, onnx_fp32, onnx_int8, or onnx for both
            of these; all that are there, if not given.
        exports: further exported models of the same classes, such as one in int8.
        batch_sizes: images in a batch.
        threads: numbers of threads that compute; one and all processors, if not given.
        samples: images that are timed one by one, by engine and number of threads.
        seconds: after so long an engine's one-by-one timing ends early, and so do its batches.
        out: a JSON file for the result.
        device: auto, cpu, cuda or mps, for torch.
        progress: where to show it.

    Raises:
        ArtifactError: the model is none, or is damaged.
        ConfigError: a number is out of range, or there is no such engine.
        DataError: an input holds no file, or none can be read.
        FovealError: no engine runs.

    Example:
        >>> import foveal
        >>> foveal.bench("runs/signs", threads=[1]).figures.engines[0].network_ms.p50  # doctest: +SKIP
        8.3
    """
    progress = progress or Silence()
    task = plan_bench(
        model,
        inputs,
        engines=engines,
        exports=exports,
        batch_sizes=batch_sizes,
        threads=threads,
        samples=samples,
        seconds=seconds,
        device=device,
    )
    sources, missing = _made(task, bool(engines), progress)
    if task.images.is_noise:
        progress.say("There are no images to time: noise is taken, and decoding is not timed. Give INPUT for that.")
    with progress.bar("Timing engines in turns", 0, "steps") as bar:
        figures = measure_engines(
            sources, task.images, task.plan, missing=missing, advance=lambda words: bar.advance(note=words)
        )
    target = None if out is None else Path(out)
    result = BenchResult(Path(model), figures, target)
    if target is not None:
        write_json(target, result.to_dict())
    return result


def plan_bench(
    model: str | PathLike[str],
    inputs: Sequence[str | PathLike[str]] = (),
    *,
    engines: Sequence[str] = (),
    exports: Sequence[str | PathLike[str]] = (),
    batch_sizes: Sequence[int] = (1, 8, 32),
    threads: Sequence[int] = (),
    samples: int = 300,
    seconds: float = 20.0,
    device: str = "auto",
) -> BenchTask:
    """What `bench` would measure: nothing is exported or timed.

    Raises:
        ArtifactError: as `bench`.
        ConfigError: as `bench`.
        DataError: as `bench`.
    """
    path = Path(model)
    threads = threads or sorted({1, num_cpus()})
    _check(engines, batch_sizes, threads, samples, seconds)
    refuse_unfinished(path)
    sources, missing, bundle = _sources(path, [Path(each) for each in exports], device)
    if engines:
        wanted = {name for name in engines if name != _ALL_ONNX}
        wanted |= {name for name in ENGINES if name.startswith("onnx")} if _ALL_ONNX in engines else set()
        sources = [source for source in sources if source.name in wanted]
        if not sources:
            raise ConfigError(
                f"None of the engines {', '.join(engines)} is there for {path}.",
                problems=[f"{name}: {missing.get(name, 'there is no such file')}" for name in engines],
                fix="leave out --engine for all that are there.",
            )
        missing = {name: why for name, why in missing.items() if name in wanted}
    plan = BenchPlan(
        tuple(dict.fromkeys(batch_sizes)),
        tuple(dict.fromkeys(threads)),
        samples,
        seconds,
        _device(device) if any(source.name.startswith("torch") for source in sources) else "cpu",
    )
    return BenchTask(path, tuple(sources), _images(path, inputs, bundle), plan, missing)


def _check(
    engines: Sequence[str], batch_sizes: Sequence[int], threads: Sequence[int], samples: int, seconds: float
) -> None:
    known = (*ENGINES, _ALL_ONNX)
    problems = [f"engine {name}: expected one of {', '.join(known)}" for name in engines if name not in known]
    for words, numbers, most in (
        ("batch size", batch_sizes, _MOST_BATCH),
        ("threads", threads, _MOST_THREADS),
        ("samples", [samples], _MOST_SAMPLES),
    ):
        problems += [f"{words} {each}: expected 1 to {most:,}" for each in numbers if not 1 <= each <= most]
        problems += [f"{words}: expected at least one number"] if not numbers else []
    if not seconds > 0:
        problems.append(f"seconds {seconds}: expected more than 0")
    if problems:
        raise ConfigError("That cannot be measured.", problems=problems, fix="correct these.")


def _device(device: str) -> str:
    from foveal.model.devices import choose_device

    return choose_device(device).type


def _sources(
    path: Path, exports: Sequence[Path], device: str
) -> tuple[list[EngineSource], dict[str, str], Bundle | EnsembleBundle | Export]:
    """The engines in the order of the table, why others are not there, and what the model is."""
    found: dict[EngineName, EngineSource] = {}
    missing: dict[str, str] = {}
    home: Bundle | EnsembleBundle | Export
    if is_export(path):
        home = open_export(path)
        found |= _of_export(home)
    else:
        home = open_bundle(path)
        found |= {name: EngineSource(name, home.path) for name in _torch_engines(device)}
        found["onnx_fp32"] = EngineSource("onnx_fp32", home.path)
    for each in exports:
        script = each / SCRIPT_FILE if each.is_dir() else each
        if script.name == SCRIPT_FILE and script.is_file():
            if isinstance(home, Export):
                missing["torchscript"] = "it needs the run or bundle that it was made from as the model"
            else:
                found["torchscript"] = EngineSource("torchscript", home.path, script)
            continue
        opened = open_export(each)
        if opened.spec.class_names != home.spec.class_names:
            raise ConfigError(
                f"{each} does not tell the same classes in the same order as {path}.",
                fix="compare exports of one model.",
            )
        found |= _of_export(opened)
    return [found[name] for name in ENGINES if name in found], missing, home


def _of_export(export: Export) -> dict[EngineName, EngineSource]:
    name: EngineName = "onnx_int8" if export.spec.precision == "int8" else "onnx_fp32"
    return {name: EngineSource(name, export.path)}


def _torch_engines(device: str) -> tuple[EngineName, ...]:
    usual: tuple[EngineName, ...] = ("torch", "torch_channels_last")
    return (*usual, "torch_compiled") if _device(device) == "cuda" else usual


def _images(path: Path, inputs: Sequence[str | PathLike[str]], model: Bundle | EnsembleBundle | Export) -> BenchImages:
    """The images given, the run's own, or noise."""
    if inputs:
        paths = list(expand_inputs([fspath(text) for text in inputs], sys.stdin))
        if not paths:
            raise DataError("The inputs hold no file.", fix="give image files, or folders with some.")
        chosen = [paths[at] for at in _spread(len(paths))]
        words = f"{len(chosen):,} of {len(paths):,} images given" if len(chosen) < len(paths) else (
            f"{len(paths):,} image{'s' if len(paths) != 1 else ''} given")  # fmt: skip
        return BenchImages(words, tuple({"path": str(Path(each).absolute())} for each in chosen))
    if not isinstance(model, Export):
        own = _own_images(path, model)
        if own is not None:
            return own
    looks = _looks(model)
    side = max(look.size_px for look in looks)
    return BenchImages(f"noise of {side} x {side} px, without decoding", ({"noise": side},), is_noise=True)


def _own_images(path: Path, model: Bundle | EnsembleBundle) -> BenchImages | None:
    """Test images of the run, as far as they are still there; timing them shows nobody what is in them."""
    file = RunFolder(path).manifest
    if not file.is_file():
        return None
    from foveal.data.manifest import Manifest

    manifest = Manifest.read(file)
    rows = manifest.of_split("test")
    part = manifest.take(rows[_spread(len(rows))])
    margin = model.spec.training_data.box_margin
    requests: list[dict[str, Any]] = [
        {"path": str(image.absolute()), "box": box, "margin": margin}
        for image, box in zip(part.absolute_paths(), part.boxes(), strict=True)
        if image.is_file()
    ]
    return BenchImages(f"{len(requests):,} of its own test images", tuple(requests)) if requests else None


def _spread(number: int) -> list[int]:
    """Places of at most `MOST_IMAGES` of so many, evenly over all."""
    return np.unique(np.linspace(0, number - 1, min(number, MOST_IMAGES)).astype(np.int64)).tolist() if number else []


def _looks(model: Bundle | EnsembleBundle | Export) -> list[Any]:
    if isinstance(model, Export):
        return [look.preprocessing for look in model.spec.looks]
    networks = (model,) if isinstance(model, Bundle) else model.members
    return [network.spec.preprocessing for network in networks]


def _made(task: BenchTask, is_asked: bool, progress: Progress) -> tuple[list[EngineSource], dict[str, str]]:
    """The engines, the ONNX file made where it is still the bundle; what cannot be made is missing from the table."""
    sources, missing = [], dict(task.missing)
    for source in task.sources:
        if source.name != "onnx_fp32" or is_export(source.model):
            sources.append(source)
            continue
        from foveal.exporting.on_the_way import exported_of

        try:
            sources.append(EngineSource(source.name, exported_of(task.model, progress)))
        except (FovealError, MissingExtraError) as error:
            if is_asked and len(task.sources) == 1:
                raise
            missing[source.name] = error.message
    return sources, missing
