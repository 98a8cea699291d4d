"""The `export` section: how an exported model is made, and what has to be proven of it."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Literal

from pydantic import Field

from foveal.config import Section, load
from foveal.errors import ConfigError
from foveal.training.config import Config

LEAST_IMAGES = 200
"""From how many images on one split alone is enough for the parity gate."""


class ExportConfig(Section):
    """How an exported model is made, and what has to be proven of it before there is a file."""

    resize: Literal["inside", "outside"] = "inside"
    """Whether the ONNX graph takes images of any size and resizes them itself, or finished squares alone, as TensorRT,
    OpenVINO and phones want them."""
    num_images: int = Field(default=500, ge=LEAST_IMAGES)
    """Most images that the parity gate compares; of one split where it has 200 or more, else others fill up to 200."""
    tolerance: float = Field(default=1e-4, gt=0.0, le=0.1)
    """Largest difference of a probability that fp32 may show against the bundle; two classes that are closer to each
    other than this are a tie."""
    int8_points: float = Field(default=1.0, ge=0.0, le=100.0)
    """Most accuracy that int8 may lose against the bundle on the same images, in percentage points."""
    num_calibration_images: int = Field(default=128, ge=16, le=4096)
    """Training images that int8's ranges are taken from, as many of each class; none of them is in the gate."""
    num_speed_images: int = Field(default=20, ge=0, le=1000)
    """Images that each engine is timed on, one by one; 0 leaves the timing out."""
    speed_batch_size: int = Field(default=8, ge=1, le=256)
    """Images in the batches that are timed."""


class ExportSettings(Config):
    """The whole configuration with the section of this verb, so that one file serves training and exporting."""

    export: ExportConfig = ExportConfig()
    """How an exported model is made, and what has to be proven of it."""


def read_settings(config: Config | str | PathLike[str] | None, overrides: Sequence[str] = ()) -> ExportSettings:
    """The configuration of an export: an object, a YAML file or nothing, with overrides on top.

    Raises:
        ConfigError: keys or values are wrong; all at once.
    """
    if isinstance(config, Config):
        base = config.model_dump(mode="json", exclude_unset=True)
        return load(ExportSettings, None, overrides, base=base, is_shared=True)
    return load(ExportSettings, None if config is None else Path(config), overrides, is_shared=True)


def refuse_data_keys(overrides: Sequence[str]) -> None:
    """Refuse settings that say how DATA is read, where there is no DATA: they would change nothing.

    Raises:
        ConfigError: with each of them.
    """
    foreign = [text for text in overrides if text.partition("=")[0].partition(".")[0] not in ("export", "seed")]
    if foreign:
        raise ConfigError(
            "The model's own images are read as they were for training, and these keys would change nothing.",
            problems=[f"--set {text}" for text in foreign],
            fix="leave them out, or add --data DATA.",
        )
