"""Opening what a verb is given as RUN_OR_BUNDLE."""

import shlex
from os import PathLike
from pathlib import Path

from foveal.errors import ArtifactError, ConfigError
from foveal.files import read_json
from foveal.inference import Predictor
from foveal.model.bundle import BUNDLE_FILE
from foveal.run_folder import ExperimentFolder, RunFolder, is_run_folder


def open_predictor(
    model: str | PathLike[str], *, device: str = "auto", batch_size: int = 32, num_workers: int = 2, tta: str = "none"
) -> Predictor:
    """The classifier of a run or a bundle, ready to predict.

    Raises:
        ArtifactError: it is neither, is damaged, or is a run whose training has not come to its end.
        ConfigError: the device is not there, or there is no such test-time augmentation.
    """
    path = Path(model)
    refuse_unfinished(path)
    return Predictor(path, device=device, batch_size=batch_size, num_workers=num_workers, tta=tta)


def refuse_unfinished(path: Path) -> None:
    """Say of a run or an experiment without a bundle why it has none.

    Raises:
        ArtifactError: the training of the run has not come to its end, or the experiment has not, or makes no bundle.
    """
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
