"""Opening what a verb is given as RUN_OR_BUNDLE."""

import shlex
from os import PathLike
from pathlib import Path

from foveal.errors import ArtifactError
from foveal.inference import Predictor
from foveal.model.bundle import BUNDLE_FILE
from foveal.run_folder import RunFolder, is_run_folder


def open_predictor(
    model: str | PathLike[str], *, device: str = "auto", batch_size: int = 32, num_workers: int = 2
) -> Predictor:
    """The classifier of a run or a bundle, ready to predict.

    Raises:
        ArtifactError: it is neither, is damaged, or is a run whose training has not come to its end.
        ConfigError: the device is not there.
    """
    path = Path(model)
    refuse_unfinished(path)
    return Predictor(path, device=device, batch_size=batch_size, num_workers=num_workers)


def refuse_unfinished(path: Path) -> None:
    """Say of a run without a bundle why it has none.

    Raises:
        ArtifactError: the training of the run has not come to its end.
    """
    if is_run_folder(path) and not (RunFolder(path).bundle / BUNDLE_FILE).is_file():
        raise ArtifactError(
            f"The run {path} has no bundle yet: its training has not come to its end.",
            fix=f"go on with it: foveal train --out {shlex.quote(str(path))} --resume",
        )
