"""`foveal demo`: the whole way on real handwritten digits that ship inside scikit-learn, with no network."""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from foveal.api.audit import AuditResult, audit
from foveal.api.predict import predict
from foveal.api.results import PredictResult, TrainResult
from foveal.api.train import train
from foveal.data.manifest import Manifest
from foveal.errors import ArtifactError
from foveal.extras import require
from foveal.progress import Progress, Silence

RECIPE: Sequence[str] = (
    "model.name=resnet18",
    "model.weights=none",
    "data.image_size=32",
    "train.epochs=8",
    "train.batch_size=64",
)
NUM_PREDICTED = 20


@dataclass(frozen=True)
class DemoResult:
    """What the demo made.

    Attributes:
        images: the digits as PNG files in class folders.
        audit: what is to be known of them.
        training: the run.
        prediction: of a few test images.
    """

    images: Path
    audit: AuditResult
    training: TrainResult
    prediction: PredictResult

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "images": str(self.images),
            "audit": self.audit.to_dict(),
            **self.training.to_dict(),
            "prediction": self.prediction.to_dict(),
        }

    def _repr_html_(self) -> str:
        return self.audit._repr_html_() + self.training._repr_html_() + self.prediction._repr_html_()


def demo(
    out: str | PathLike[str] = "demo",
    *,
    overrides: Sequence[str] = (),
    force: bool = False,
    progress: Progress | None = None,
) -> DemoResult:
    """Write the digits as images, audit them, train on them, evaluate, report, and predict some of the test images.

    Args:
        out: folder for the images, the audit, the run and the predictions.
        overrides: changes to the demo's configuration.
        force: whether to start anew where a demo was made before.
        progress: where to show it.

    Raises:
        ArtifactError: `out` holds a run already, or cannot be written.
    """
    progress = progress or Silence()
    folder = Path(out)
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise ArtifactError(
            f"{folder} is not empty.",
            fix="look at run/report.html in it if it is an earlier demo; else choose another --out, or give --force.",
        )
    images = folder / "digits"
    progress.say(f"Writing {write_digits(images):,} handwritten digits to {images}.")
    audited = audit(images, folder / "audit", force=force, progress=progress)
    training = train(images, folder / "run", overrides=(*RECIPE, *overrides), force=force, progress=progress)
    manifest = Manifest.read(training.run / "manifest.parquet")
    paths = manifest.absolute_paths()
    tested = [paths[row] for row in manifest.of_split("test")[:NUM_PREDICTED].tolist()]
    prediction = predict(training.run, tested, out=folder / "predictions.csv")
    return DemoResult(images, audited, training, prediction)


def write_digits(folder: Path) -> int:
    """Write scikit-learn's 1,797 digits (8 x 8 px, 17 grey levels) as PNG files in ten class folders.

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI (1998), as in scikit-learn.

    Returns:
        The number of images.

    Raises:
        ArtifactError: the folder cannot be written.
    """
    datasets = require("sklearn.datasets", extra="train", purpose="make the digits")
    digits = datasets.load_digits()
    try:
        for number, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
            target = folder / str(label) / f"{number:04}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.round(image * (255.0 / 16.0)).astype(np.uint8)).save(target)
    except OSError as error:
        raise ArtifactError(f"{folder} cannot be written: {error.strerror}.", fix="choose another --out.") from error
    return len(digits.images)
