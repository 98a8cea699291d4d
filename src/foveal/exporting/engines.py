"""What is written, and what is timed beside it: each as a predictor that reads its file from disk."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from foveal.errors import ExportError
from foveal.exporting.assembly import assemble, save_onnx
from foveal.exporting.describing import describe, networks_of
from foveal.exporting.gate_images import Sample
from foveal.extras import require
from foveal.files import sha256_file
from foveal.model.bundle import WEIGHTS_FILE, Bundle, EnsembleBundle
from foveal.pixels.policy import ImageRejectedError
from foveal.prediction import ImagePredictor, Seen

if TYPE_CHECKING:
    from foveal.exporting.config import ExportConfig
    from foveal.exporting.cores import Core
    from foveal.inference import Predictor


class ScriptPredictor(ImagePredictor):
    """A TorchScript file that is ready to predict.

    Args:
        file: what `foveal.exporting.torchscript` wrote.
        original: names the classes and the look; none of its networks is used.
    """

    def __init__(self, file: Path, original: ImagePredictor) -> None:
        super().__init__(
            original.class_names,
            original.looks,
            batch_size=original.batch_size,
            num_workers=original.num_workers,
            tta="none",
        )
        load: Any = torch.jit.load
        with warnings.catch_warnings():
            # torch.jit is in maintenance; what it still writes and reads is what was asked for by --to torchscript.
            warnings.filterwarnings("ignore", message=".*torch.jit", category=FutureWarning)
            self._module = load(str(file), map_location="cpu")
        self._identity = f"torchscript {sha256_file(file)}"

    @property
    def identity(self) -> str:
        """The SHA-256 of the file."""
        return self._identity

    def probabilities(self, seen: Sequence[Seen]) -> NDArray[np.float64]:
        """What the module says of images, see `ImagePredictor.probabilities`."""
        squares = [torch.from_numpy(np.stack([each[look][0] for each in seen])) for look in self.looks]
        with torch.inference_mode():
            values = self._module(*squares).numpy().astype(np.float64)
        return np.asarray(values / values.sum(axis=1, keepdims=True))


class HubPredictor(ImagePredictor):
    """A folder in the hub's form, read by timm alone; the squares are foveal's.

    Args:
        folder: what `foveal.exporting.hub_folder` wrote.
        original: names the classes and the look; its network is not used.
        preprocessing: mean and standard deviation, each float [3] in 0..1, and the temperature.
    """

    def __init__(
        self, folder: Path, original: ImagePredictor, preprocessing: tuple[Sequence[float], Sequence[float], float]
    ) -> None:
        super().__init__(
            original.class_names,
            original.looks,
            batch_size=original.batch_size,
            num_workers=original.num_workers,
            tta="none",
        )
        timm = require("timm", extra="train", purpose="load a folder of the hub")
        self._network: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        mean, std, self._temperature = preprocessing
        self._mean, self._std = (torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1) for values in (mean, std))
        self._identity = f"timm {sha256_file(folder / WEIGHTS_FILE)}"

    @property
    def identity(self) -> str:
        """The SHA-256 of the weights."""
        return self._identity

    def probabilities(self, seen: Sequence[Seen]) -> NDArray[np.float64]:
        """What the network says of images, see `ImagePredictor.probabilities`."""
        (look,) = self.looks
        squares = torch.from_numpy(np.stack([each[look][0] for each in seen])).permute(0, 3, 1, 2)
        with torch.inference_mode():
            logits = self._network((squares.float() / 255.0 - self._mean) / self._std)
            return np.asarray(torch.softmax(logits.double() / self._temperature, dim=1).numpy())


def make_cores(bundle: Bundle | EnsembleBundle) -> list["Core"]:
    """Each network as ONNX.

    Raises:
        ExportError: one of them cannot be translated.
        MissingExtraError: the export libraries are not installed.
    """
    from foveal.exporting.cores import make_core

    return [make_core(network) for network in networks_of(bundle)]


def quantised(bundle: Bundle | EnsembleBundle, cores: "Sequence[Core]", samples: Sequence[Sample],
              original: "Predictor") -> "list[Core]":  # fmt: skip
    """The same networks in int8, each calibrated on the squares that it sees.

    Args:
        bundle: what they are of.
        cores: in fp32.
        samples: for calibration.
        original: cuts the squares.

    Raises:
        ExportError: no image for calibration can be read, or a network cannot be quantised.
    """
    from foveal.exporting.int8 import quantise

    seen = prepared(original, samples)
    if not seen:
        raise ExportError(
            f"None of the {len(samples):,} images for calibration can be read.",
            fix="give others: --data DATA; or export without --int8.",
        )
    return [
        quantise(core, np.stack([each[member.look][0] for each in seen]))
        for core, member in zip(cores, original.members, strict=True)
    ]


def prepared(predictor: ImagePredictor, samples: Sequence[Sample]) -> list[Seen]:
    """What the networks see of images; those that cannot be read are left out."""
    seen = []
    for sample in samples:
        try:
            seen.append(predictor.prepare(sample.load()))
        except (ImageRejectedError, OSError):
            continue  # the gate tells of those that it compares; others only serve to measure
    return seen


def write_onnx(
    bundle: Bundle | EnsembleBundle,
    cores: "Sequence[Core]",
    file: Path,
    *,
    is_int8: bool,
    config: "ExportConfig",
) -> None:
    """Assemble the networks and write them as one file.

    Raises:
        ExportError: they do not go together, or are too large for one file.
    """
    spec = describe(bundle, cores, precision="int8" if is_int8 else "fp32", resize=config.resize)
    save_onnx(assemble(cores, spec), file)


def write_torchscript(bundle: Bundle | EnsembleBundle, file: Path) -> None:
    """Write the network as TorchScript.

    Raises:
        ExportError: it cannot be traced.
    """
    from foveal.exporting.torchscript import make_torchscript

    file.write_bytes(make_torchscript(bundle))
