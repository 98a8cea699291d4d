"""Opening what a verb is given as RUN_OR_BUNDLE."""

import difflib
import shlex
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from foveal.errors import ArtifactError, ConfigError
from foveal.exported.opening import is_export
from foveal.exporting.staging import SCRIPT_FILE
from foveal.files import read_json
from foveal.model.bundle_spec import BUNDLE_FILE
from foveal.progress import Progress, Silence
from foveal.run_folder import ExperimentFolder, RunFolder, is_run_folder

if TYPE_CHECKING:
    from foveal.exported.engine import OnnxPredictor
    from foveal.inference import Predictor

Engine = Literal["auto", "torch", "onnx"]


def open_predictor(
    model: str | PathLike[str], *, device: str = "auto", batch_size: int = 32, num_workers: int = 2, tta: str = "none"
) -> "Predictor":
    """The classifier of a run or a bundle, ready to predict.

    Raises:
        ArtifactError: it is neither, is damaged, or is a run whose training has not come to its end.
        ConfigError: the device is not there, or there is no such test-time augmentation.
    """
    path = Path(model)
    refuse_unfinished(path)
    refuse_export(path)
    from foveal.inference import Predictor

    return Predictor(path, device=device, batch_size=batch_size, num_workers=num_workers, tta=tta)


def open_any_predictor(
    model: str | PathLike[str],
    *,
    engine: Engine = "auto",
    device: str = "auto",
    batch_size: int = 32,
    num_workers: int = 2,
    tta: str = "none",
    progress: Progress | None = None,
) -> "Predictor | OnnxPredictor":
    """A run, a bundle or an exported model, ready to predict.

    Args:
        model: which.
        engine: torch or onnx; auto takes onnx for exported models and torch for the others. A run or bundle on onnx is
            exported on the way, once.
        device: for torch.
        batch_size: images that are computed together.
        num_workers: threads that decode.
        tta: test-time augmentation.
        progress: where to show an export on the way.

    Raises:
        ArtifactError: it is none of these, is damaged, or is a run whose training has not come to its end.
        ConfigError: the device or the engine is not there, or there is no such test-time augmentation.
        ExportError: it cannot be exported.
        MissingExtraError: the engine is not installed.
    """
    path = Path(model)
    refuse_unfinished(path)
    if engine == "torch" and is_export(path):
        raise ConfigError(
            f"{path} is an exported model, which torch does not run.",
            fix="leave out --engine, or give the run or bundle that it was made from.",
        )
    if engine == "onnx" or is_export(path):
        if device not in ("auto", "cpu"):
            raise ConfigError(f"device={device}: exported models run on the CPU.", fix="leave out --device.")
        from foveal.exported.engine import OnnxPredictor

        file = path if is_export(path) else _exported(path, progress or Silence())
        return OnnxPredictor(file, batch_size=batch_size, num_workers=num_workers, tta=tta)
    return open_predictor(path, device=device, batch_size=batch_size, num_workers=num_workers, tta=tta)


def _exported(path: Path, progress: Progress) -> Path:
    from foveal.exporting.on_the_way import exported_of

    return exported_of(path, progress)


def refuse_export(path: Path) -> None:
    """Say of an exported model that it is not wanted here.

    Raises:
        ArtifactError: it is one.
    """
    if is_export(path):
        raise ArtifactError(
            f"{path} is an exported model, and the run or bundle that it was made from is wanted here.",
            fix="give that; foveal predict, serve and bench take exported models.",
        )


def refuse_unfinished(path: Path) -> None:
    """Say of a path that is not there so, of an export that foveal does not run, and of a run without a bundle.

    Raises:
        ArtifactError: nothing is there; it was exported for torch or timm; the training of the run has not come to its
            end, or the experiment has not, or makes no bundle.
    """
    _refuse_missing(path)
    _refuse_for_others(path)
    experiment = ExperimentFolder(path)
    if experiment.settings.is_file() and not (experiment.bundle / BUNDLE_FILE).is_file():
        settings = read_json(experiment.settings)
        verb = settings.get("verb", "experiment") if isinstance(settings, dict) else "experiment"
        ended = experiment.summary.is_file()
        raise ArtifactError(
            f"{path} holds no bundle: it is the folder of foveal {verb}"
            + (", which has come to its end without one." if ended else ", which has not come to its end."),
            fix=f"give one of its runs, if it has any: {shlex.quote(str(path / 'runs'))}/..."
            if ended
            else "the same command again goes on with it; or give one of its finished runs.",
        )
    if is_run_folder(path) and not (RunFolder(path).bundle / BUNDLE_FILE).is_file():
        raise ArtifactError(
            f"The run {path} has no bundle yet: its training has not come to its end.",
            fix=f"go on with it: foveal train --out {shlex.quote(str(path))} --resume",
        )


def _refuse_missing(path: Path) -> None:
    if path.exists():
        return
    beside = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
    near = [shlex.quote(str(path.with_name(name))) for name in difflib.get_close_matches(path.name, beside)]
    raise ArtifactError(
        f"{path}: there is no such file or folder.",
        fix=f"check the path; did you mean {' or '.join(near)}?" if near else "check the path.",
    )


def _refuse_for_others(path: Path) -> None:
    """Refuse what `foveal export` wrote for torch and for timm."""
    if (path / BUNDLE_FILE).is_file():
        return
    if path.name == SCRIPT_FILE or (path / SCRIPT_FILE).is_file():
        folder = shlex.quote(str(path.parent if path.name == SCRIPT_FILE else path))
        raise ArtifactError(
            f"{path} is a TorchScript export, which torch.jit.load reads, and foveal does not.",
            fix=f"give the run or bundle that it was made from; foveal bench RUN --export {folder} times it.",
        )
    if (path / "config.json").is_file() and (path / "model.safetensors").is_file():
        raise ArtifactError(
            f"{path} is a folder for timm, which timm.create_model reads, and foveal does not.",
            fix="give the run or bundle that it was made from; its README.md says how timm takes it.",
        )


def refuse_inside(out: Path, data: str | PathLike[str]) -> None:
    """Refuse to write among the images: folders that are written there would be classes the next time.

    Raises:
        ConfigError: `out` lies in DATA.
    """
    if Path(data).is_dir() and out.resolve().is_relative_to(Path(data).resolve()):
        raise ConfigError(
            f"The folder {out} lies in DATA, where its own folders would be taken for classes.",
            fix="choose an --out beside DATA.",
        )
