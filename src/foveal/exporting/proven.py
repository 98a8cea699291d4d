"""Exporting: make the file, prove it from disk against the bundle, time it, and only then give it its name."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from foveal.errors import ExportError, FovealError
from foveal.exported.opening import PARITY_FILE, open_export
from foveal.exported.spec import IMAGE_INPUT, ONNX_FILES, PROBABILITIES, ExportSpec
from foveal.exporting.config import ExportConfig
from foveal.exporting.describing import architecture_of, bundle_sha256, library_versions, networks_of
from foveal.exporting.engines import (
    HubPredictor,
    ScriptPredictor,
    make_cores,
    prepared,
    quantised,
    write_onnx,
    write_torchscript,
)
from foveal.exporting.gate_images import GateImages, Sample, noise_images
from foveal.exporting.parity import Limits, answers_of, check_image_input, judge
from foveal.exporting.parity_facts import ImageInputCheck, Parity
from foveal.exporting.speed import Engine, EngineName, Speed, default_layout, measure_speed
from foveal.exporting.staging import SCRIPT_FILE, check_target, staged
from foveal.files import sha256_file, write_json
from foveal.inference import Predictor
from foveal.machine import num_threads
from foveal.model.bundle import WEIGHTS_FILE, Bundle, EnsembleBundle, open_bundle
from foveal.pixels.policy import ImageRejectedError
from foveal.prediction import ImageInput, ImagePredictor, pixels_of
from foveal.progress import Progress
from foveal.run_folder import now
from foveal.version import __version__

if TYPE_CHECKING:
    from foveal.exported.engine import OnnxPredictor
    from foveal.exporting.cores import Core

Target = Literal["onnx", "torchscript", "hub-folder"]

FORMAT_VERSION = 1
"""Of parity.json."""

_NUM_RESIZED = 24
_MOST_TOLD = 8


@dataclass(frozen=True)
class Source:
    """What is exported.

    Attributes:
        bundle: checked.
        home: the folder of the run or experiment that holds it; None for a bundle alone.
    """

    bundle: Bundle | EnsembleBundle
    home: Path | None

    @property
    def manifest(self) -> Path | None:
        """Where the model's own images are listed."""
        file = None if self.home is None else self.home / "manifest.parquet"
        return file if file is not None and file.is_file() else None


@dataclass(frozen=True)
class Exported:
    """A proven export.

    Attributes:
        folder: where it lies.
        file: the model within it.
        parity: what was proven.
        speed: how fast it is; None where that was not measured.
        spec: what an ONNX file says of itself; None of others.
    """

    folder: Path
    file: Path
    parity: Parity
    speed: Speed | None
    spec: ExportSpec | None


def open_source(path: Path) -> Source:
    """The bundle of a run, of an experiment, or by itself.

    Raises:
        ArtifactError: there is none, or it is damaged.
    """
    bundle = open_bundle(path)
    above = bundle.path.absolute().parent
    is_held = bundle.path.absolute().name == "bundle" and any(
        (above / name).is_file() for name in ("config.yaml", "experiment.json")
    )
    return Source(bundle, above if is_held else None)


def export_model(
    source: Source,
    images: GateImages | None,
    out: Path,
    *,
    to: Target,
    is_int8: bool,
    config: ExportConfig,
    seed: int,
    force: bool,
    progress: Progress,
) -> Exported:
    """Export a bundle; nothing appears in `out` unless it was proven.

    Args:
        source: the bundle.
        images: what to prove it on; None for generated noise, which says nothing of accuracies.
        out: the folder, new or empty.
        to: which kind of file.
        is_int8: whether to quantise; of ONNX alone.
        config: the limits, and how it is made.
        seed: of the resampling behind the intervals.
        force: whether to replace an export that is there.
        progress: where to show it.

    Raises:
        ExportError: it cannot be made, or is not equal to the bundle.
        ArtifactError: `out` holds something, or cannot be written.
        MissingExtraError: the libraries for it are not installed.
    """
    check_target(out, force=force)
    original = Predictor(source.bundle.path, device="cpu", num_workers=num_threads())
    task = _Task(source, original, images, to, is_int8, config, seed, progress)
    with staged(out) as folder:
        scratch = folder.parent / "scratch"
        scratch.mkdir()
        name, cores = _write(task, folder, scratch)
        written = _open(task, folder / name)
        parity = _prove(task, written)
        if not parity.passed:
            raise _not_equal(parity, is_int8=is_int8)
        speed = _timed(task, folder / name, cores, scratch)
        spec = _spec_of(written)
        record = _record(task, folder / name, spec, parity, speed)
        write_json(folder / PARITY_FILE, record)
        from foveal.exporting.model_card import write_model_card

        write_model_card(
            folder, source.bundle, model_file=name, export=spec, run=source.home, parity=parity, speed=speed
        )
    return Exported(out, out / name, parity, speed, spec)


@dataclass(frozen=True)
class _Task:
    """What is asked for, and the bundle as torch runs it."""

    source: Source
    original: Predictor
    images: GateImages | None
    to: Target
    is_int8: bool
    config: ExportConfig
    seed: int
    progress: Progress

    @property
    def bundle(self) -> Bundle | EnsembleBundle:
        return self.source.bundle

    @property
    def inputs(self) -> Sequence[Sample | ImageInput]:
        """Photographs, or noise where there is none."""
        if self.images is not None:
            return self.images.samples
        return noise_images(max(geometry.size_px for geometry, _ in self.original.looks), self.seed)


def _write(task: _Task, folder: Path, scratch: Path) -> "tuple[str, list[Core]]":
    """The file's name, and the fp32 networks where they were made; with int8, the fp32 file goes to `scratch`."""
    bundle, say = task.bundle, task.progress.say
    say(f"Exporting {architecture_of(bundle)} ({', '.join(_sizes(bundle))}) to {task.to}.")
    if task.to == "hub-folder":
        from foveal.exporting.hub_folder import write_hub_folder

        made = write_hub_folder(bundle, folder.parent / "hub", run=task.source.home)
        for path in made.iterdir():
            path.rename(folder / path.name)
        return WEIGHTS_FILE, []
    if task.to == "torchscript":
        write_torchscript(bundle, folder / SCRIPT_FILE)
        return SCRIPT_FILE, []
    cores = make_cores(bundle)
    if not task.is_int8:
        write_onnx(bundle, cores, folder / ONNX_FILES["fp32"], is_int8=False, config=task.config)
        return ONNX_FILES["fp32"], cores
    if task.images is None:
        raise ExportError("int8 takes its ranges from real images, and there is none.", fix="give some: --data DATA.")
    say(f"Quantising to int8 with {len(task.images.calibration):,} {task.images.calibration_split} images.")
    small = quantised(bundle, cores, task.images.calibration, task.original)
    write_onnx(bundle, small, folder / ONNX_FILES["int8"], is_int8=True, config=task.config)
    return ONNX_FILES["int8"], cores


def _open(task: _Task, file: Path, threads: int | None = None) -> ImagePredictor:
    """What was written, read from disk as its users read it."""
    if file.suffix == ".onnx":
        from foveal.exported.engine import OnnxPredictor

        return OnnxPredictor(file, num_workers=num_threads(), num_threads=threads)
    if file.name == SCRIPT_FILE:
        return ScriptPredictor(file, task.original)
    (network,) = networks_of(task.bundle)
    look = network.spec.preprocessing
    return HubPredictor(file.parent, task.original, (look.mean, look.std, network.spec.temperature))


def _prove(task: _Task, written: ImagePredictor) -> Parity:
    """The parity gate, on the file."""
    inputs = task.inputs
    with task.progress.bar("Comparing file and bundle", 2 * len(inputs), "images") as bar:
        answers = answers_of(task.original, written, inputs, bar.advance)
    limits = Limits("int8" if task.is_int8 else "fp32", task.config.tolerance, task.config.int8_points)
    resizes = task.to == "onnx" and task.config.resize == "inside"
    return judge(
        answers,
        written.class_names,
        limits,
        names=[str(each.path) if isinstance(each, Sample) else f"noise {at}" for at, each in enumerate(inputs)],
        images=task.images,
        image_input=_resize_check(written, inputs) if resizes else None,  # type: ignore[arg-type]
        seed=task.seed,
    )


def _resize_check(written: "OnnxPredictor", inputs: Sequence[Sample | ImageInput]) -> ImageInputCheck:
    """Raw pixels against finished squares, on images of their own sizes."""
    session = open_export(written.path).session(num_threads())
    policy = written.looks[0][1]

    def run(feeds: dict[str, NDArray[np.uint8]]) -> NDArray[np.float64]:
        return np.asarray(session.run([PROBABILITIES], feeds)[0], dtype=np.float64)

    def square_feeds(pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.uint8]]:
        seen = written.prepare(pixels)
        feeds = {look.input: seen[key][0][None] for look, key in zip(written.spec.looks, written.looks, strict=True)}
        return {**feeds, IMAGE_INPUT: np.zeros((0, 1, 1, 3), dtype=np.uint8)}

    pixels = []
    for image in inputs[:: max(1, len(inputs) // _NUM_RESIZED)][:_NUM_RESIZED]:
        try:
            pixels.append(pixels_of(image.load() if isinstance(image, Sample) else image, policy))
        except (ImageRejectedError, OSError):
            continue  # the comparison tells of it
    return check_image_input(run, square_feeds, pixels)


def _timed(task: _Task, file: Path, cores: "list[Core]", scratch: Path) -> Speed | None:
    """The speed verdict; None where it is not asked for, or is that of torch itself."""
    samples = task.images.samples[: task.config.num_speed_images] if task.images is not None else ()
    readable = [sample for sample in samples if prepared(task.original, [sample])]
    if not readable or task.to == "hub-folder":
        return None
    threads = torch.get_num_threads()
    engines, missing = _engines(task, file, cores, scratch, threads)
    with task.progress.bar("Timing engines in turns", len(readable), "images") as bar:
        return measure_speed(
            engines,
            [lambda sample=sample: task.original.prepare(sample.load()) for sample in readable],  # type: ignore[misc]
            exported=_engine_name(task),
            batch_size=task.config.speed_batch_size,
            num_threads=threads,
            missing=missing,
            advance=bar.advance,
        )


def _engines(
    task: _Task, file: Path, cores: "list[Core]", scratch: Path, threads: int
) -> tuple[list[Engine], dict[EngineName, str]]:
    """All that can be made of the bundle, and why the others cannot."""
    weights = sum((network.path / WEIGHTS_FILE).stat().st_size for network in networks_of(task.bundle))
    engines = [
        Engine("torch", default_layout(task.original), weights),
        Engine("torch_channels_last", task.original.probabilities, weights),
    ]
    missing: dict[EngineName, str] = {}
    others: list[tuple[EngineName, Path]] = [
        ("torchscript", scratch / SCRIPT_FILE),
        ("onnx_fp32", scratch / "fp32.onnx"),
    ]
    if task.is_int8:
        others.append(("onnx_int8", file))
    for name, place in others:
        try:
            target = file if name == _engine_name(task) else place
            if not target.exists() and name == "torchscript":
                write_torchscript(task.bundle, target)
            elif not target.exists():
                write_onnx(task.bundle, cores or make_cores(task.bundle), target, is_int8=False, config=task.config)
            engines.append(Engine(name, _open(task, target, threads).probabilities, target.stat().st_size))
        except FovealError as error:
            missing[name] = error.message
    return engines, missing


def _engine_name(task: _Task) -> EngineName:
    """What the file is called among the engines."""
    if task.to == "torchscript":
        return "torchscript"
    return "onnx_int8" if task.is_int8 else "onnx_fp32"


def _record(task: _Task, file: Path, spec: ExportSpec | None, parity: Parity, speed: Speed | None) -> dict[str, Any]:
    """What parity.json holds."""
    bundle = task.bundle
    return {
        "format_version": FORMAT_VERSION,
        "passed": parity.passed,
        "file": {"name": file.name, "sha256": sha256_file(file), "bytes": file.stat().st_size},
        "to": task.to,
        "precision": "int8" if task.is_int8 else "fp32",
        "opset": spec.opset if spec else None,
        "resize": spec.resize if spec else None,
        "time": now(),
        "foveal_version": __version__,
        "libraries": library_versions(),
        "bundle_sha256": bundle_sha256(bundle),
        "architecture": architecture_of(bundle),
        "limits": {"tolerance": task.config.tolerance, "int8_points": task.config.int8_points},
        "num_calibration_images": len(task.images.calibration) if task.images and task.is_int8 else 0,
        **parity.model_dump(mode="json", exclude={"passed"}),
        "lost_points": parity.lost_points,
        "speed": None if speed is None else speed.model_dump(mode="json"),
    }


def _not_equal(parity: Parity, *, is_int8: bool) -> ExportError:
    told = [
        f"{each.path}: the bundle says {each.bundle.predicted!r} ({each.bundle.probability:.4f}), the file "
        f"{each.file.predicted!r} ({each.file.probability:.4f})"
        for each in parity.disagreements
        if not each.is_tie
    ]
    more = [f"and {parity.num_disagreements - _MOST_TOLD:,} more"] if parity.num_disagreements > _MOST_TOLD else []
    fix = "export it without --int8; or allow more: --set export.int8_points=2"
    if not is_int8:
        fix = "report this, with the model's name; --set export.tolerance=1e-3 allows larger differences."
    return ExportError(
        "The exported file does not say what the bundle says, and was not kept.",
        problems=[*parity.problems, *told[:_MOST_TOLD], *more],
        fix=fix,
    )


def _spec_of(written: ImagePredictor) -> ExportSpec | None:
    found = getattr(written, "spec", None)
    return found if isinstance(found, ExportSpec) else None


def _sizes(bundle: Bundle | EnsembleBundle) -> list[str]:
    return list(dict.fromkeys(f"{network.spec.preprocessing.size_px} px" for network in networks_of(bundle)))
