"""`foveal export`: from a bundle to one file that others can run, proven to say the same."""

import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from os import PathLike, fspath
from pathlib import Path
from typing import get_args

from foveal.api.export_result import ExportPlan, ExportResult
from foveal.api.opening import refuse_inside, refuse_unfinished
from foveal.data.manifest import Manifest
from foveal.data.scan import scan
from foveal.errors import ArtifactError, ConfigError, FovealError
from foveal.exported.opening import is_export
from foveal.exported.spec import ONNX_FILES
from foveal.exporting.config import LEAST_IMAGES, ExportSettings, read_settings, refuse_data_keys
from foveal.exporting.describing import architecture_of
from foveal.exporting.gate_images import ORDER, GateImages, choose_images
from foveal.exporting.proven import Source, Target, export_model, open_source
from foveal.exporting.staging import SCRIPT_FILE, check_target
from foveal.model.bundle import WEIGHTS_FILE
from foveal.progress import Progress, Silence
from foveal.run_folder import RunFolder, is_run_folder
from foveal.training.config import Config
from foveal.types import SPLITS, Split


@dataclass(frozen=True)
class _Task:
    """What is asked for, checked before anything is made."""

    source: Source
    settings: ExportSettings
    manifest: Manifest
    train: Manifest | None
    order: tuple[Split, ...]
    is_own: bool
    where: str


def export(
    model: str | PathLike[str],
    out: str | PathLike[str] = "export",
    *,
    to: Target = "onnx",
    int8: bool = False,
    data: str | PathLike[str] | None = None,
    split: Split = "test",
    config: Config | str | PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> ExportResult:
    """Export a model as one file, and prove from that file that it says what the bundle says; else there is no file.

    Args:
        model: a run, a bundle, or an experiment with a bundle.
        out: the folder of the export, new or empty.
        to: onnx, torchscript, or hub-folder (what timm loads by `local-dir:`).
        int8: quantise the ONNX file, calibrated on training images.
        data: labelled images to prove it on; the model's own, if not given.
        split: which split is taken first; another fills up where it has fewer than 200 images.
        config: a configuration, or a YAML file of one: the section `export`, and how `data` is read.
        overrides: texts such as "export.num_images=1000", on top of it.
        seed: of the draw of images and of the intervals; that of the configuration if not given.
        force: whether to replace an export that is in `out`.
        progress: where to show it.

    Raises:
        ExportError: it cannot be made, or is not equal to the bundle; nothing is left then.
        ArtifactError: the model is damaged or unfinished, or `out` holds something.
        ConfigError: a key or value is wrong, or a bundle alone came without `data`.
        DataError: the images are gone or cannot be read.
        MissingExtraError: the libraries for it are not installed.

    Example:
        >>> import foveal
        >>> foveal.export("runs/signs", "export", int8=True).parity.agreement.share  # doctest: +SKIP
        0.9967637540453075
    """
    task, target = _prepare(model, out, to, int8, data, split, config, overrides, seed, force), Path(out)
    progress = progress or Silence()
    images = _images(task, int8)
    for note in images.notes:
        progress.say(note)
    if task.is_own:
        _count_look(task.source, images)
    done = export_model(
        task.source,
        images,
        target,
        to=to,
        is_int8=int8,
        config=task.settings.export,
        seed=task.settings.seed,
        force=force,
        progress=progress,
    )
    return ExportResult(done.folder, done.file, done.parity, done.speed, to)


def plan_export(
    model: str | PathLike[str],
    out: str | PathLike[str] = "export",
    *,
    to: Target = "onnx",
    int8: bool = False,
    data: str | PathLike[str] | None = None,
    split: Split = "test",
    config: Config | str | PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    force: bool = False,
) -> ExportPlan:
    """What `export` would do: nothing is written, and no image is opened.

    Raises:
        ArtifactError: as `export`.
        ConfigError: as `export`.
        DataError: as `export`, but for what only opening the files can show.
    """
    task = _prepare(model, out, to, int8, data, split, config, overrides, seed, force)
    chosen, counts = task.settings.export, {name: len(task.manifest.of_split(name)) for name in SPLITS}
    number = 0
    for name in task.order:
        number += (
            min(counts[name], chosen.num_images) if not number else min(counts[name], max(0, LEAST_IMAGES - number))
        )
    files = {"torchscript": SCRIPT_FILE, "hub-folder": WEIGHTS_FILE}
    precision = "int8" if int8 else "fp32"
    return ExportPlan(
        model=Path(model),
        architecture=architecture_of(task.source.bundle),
        to=to,
        precision=precision,
        num_images=number,
        num_calibration_images=chosen.num_calibration_images if int8 else 0,
        source=task.where,
        out=Path(out),
        file=files.get(to, ONNX_FILES[precision]),
    )


def _prepare(
    model: str | PathLike[str],
    out: str | PathLike[str],
    to: Target,
    int8: bool,
    data: str | PathLike[str] | None,
    split: Split,
    config: Config | str | PathLike[str] | None,
    overrides: Sequence[str],
    seed: int | None,
    force: bool,
) -> _Task:
    """Everything that can be refused before an image is opened."""
    path, target = Path(model), Path(out)
    problems = [f"--to {to}: expected {', '.join(get_args(Target))}"] if to not in get_args(Target) else []
    problems += [f"--split {split}: expected {', '.join(SPLITS)}"] if split not in SPLITS else []
    problems += [f"--int8 is for --to onnx, and --to {to} is asked for"] if int8 and to != "onnx" else []
    if problems:
        raise ConfigError("This cannot be exported.", problems=problems, fix="see foveal export --help")
    if data is None:
        refuse_data_keys(overrides)
    settings = read_settings(config, overrides)
    if seed is not None:
        settings = settings.model_copy(update={"seed": seed})
    if is_export(path):
        raise ArtifactError(
            f"{path} is an exported model already.", fix="give the run or the bundle that it was made from."
        )
    refuse_unfinished(path)
    source = open_source(path)
    if target.resolve().is_relative_to(source.bundle.path.resolve()):
        raise ArtifactError(
            f"{target} lies in the bundle that is exported, which holds its own files alone.",
            fix="choose another --out.",
        )
    if data is not None:
        refuse_inside(target, data)
    check_target(target, force=force)
    return _with_images(source, settings, data, split, path)


def _with_images(
    source: Source, settings: ExportSettings, data: str | PathLike[str] | None, split: Split, path: Path
) -> _Task:
    """The task with the list of images that it will be proven on."""
    order = (split, *(each for each in ORDER if each != split))
    own = None if source.manifest is None else Manifest.read(source.manifest)
    train = own if own is not None and len(own.of_split("train")) else None
    if data is not None:
        manifest = scan(fspath(data), settings.data).manifest
        if not (manifest.split_codes() >= 0).any():
            manifest = manifest.with_columns(split=[split] * len(manifest))
        return _Task(source, settings, manifest, train, order, is_own=False, where=fspath(data))
    if own is None:
        raise ConfigError(
            f"{path} is a bundle without its run, and brings no images to prove the export on.",
            fix=f"give labelled images of the same classes: foveal export {shlex.quote(str(path))} --data DATA",
        )
    # Without training rows, as of an ensemble, the members have been checked not to know these images.
    return _Task(source, settings, own, train or own, order, is_own=True, where=str(source.home))


def _images(task: _Task, int8: bool) -> GateImages:
    chosen = task.settings.export
    spec = task.source.bundle.spec
    images = choose_images(
        task.manifest,
        spec.class_names,
        margin=spec.training_data.box_margin,
        num_images=chosen.num_images,
        num_calibration=chosen.num_calibration_images if int8 else 0,
        seed=task.settings.seed,
        order=task.order,
        train=task.train,
    )
    if task.is_own or task.train is not None:
        return images
    return replace(images, notes=(*images.notes, "Whether the bundle was trained on these images is not known."))


def _count_look(source: Source, images: GateImages) -> None:
    """The accuracy on test images is a look at them; a run that cannot be written is exported all the same."""
    if source.home is None or "test" not in images.splits or not is_run_folder(source.home):
        return
    run = RunFolder(source.home)
    with suppress(FovealError, OSError), run.lock():
        run.count_look("test", "export")
