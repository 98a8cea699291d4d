"""The bundle: the deployable folder of one classifier. Data only, hashed, in a closed schema; nothing executable.

```
bundle/
  bundle.json         architecture, classes, preprocessing, temperature, facts, and the sha256 of every other file
  model.safetensors   the weights
```
This module imports no torch until weights are asked for, so that a server can read a bundle without it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from foveal.config import Section
from foveal.errors import ArtifactError, ConfigError, FovealError
from foveal.files import atomic_writer, read_json, sha256_file, write_json
from foveal.model.config import HeadConfig
from foveal.pixels.policy import POLICY_VERSION, Geometry, PixelPolicy
from foveal.version import __version__

if TYPE_CHECKING:
    import torch

    from foveal.model.build import Classifier

BUNDLE_FILE = "bundle.json"
WEIGHTS_FILE = "model.safetensors"
FORMAT_VERSION = 1

Side = Annotated[int, Field(ge=8, le=8192)]
Byte = Annotated[int, Field(ge=0, le=255)]
Positive = Annotated[float, Field(gt=0.0)]


class ArchitectureSpec(Section):
    """What to build: a name of the zoo and its head."""

    library: Literal["timm", "torchvision", "foveal"] = "timm"
    """Where the name is looked up."""
    name: str = Field(pattern=r"^[a-z0-9_]+$")
    """A model of the zoo, without a tag."""
    head: HeadConfig = HeadConfig()
    """What stands between the backbone and the classes."""

    @model_validator(mode="before")
    @classmethod
    def _dropout_is_the_heads(cls, content: Any) -> Any:
        """Bundles of the first versions have nothing but a share of dropout, beside the name."""
        if isinstance(content, dict) and "head" not in content:
            dropout = content.get("dropout")
            if isinstance(dropout, int | float) and 0.0 <= dropout < 1.0:
                rest = {key: value for key, value in content.items() if key != "dropout"}
                return {**rest, "head": {"dropout": float(dropout)}}
        return content


class PreprocessingSpec(Section):
    """How any image file becomes the model's input."""

    policy_version: int
    """Version of the pixel policy: what every file format and colour mode becomes."""
    max_pixels: int = Field(ge=1, le=PixelPolicy.max_pixels)
    """Largest number of pixels that is decoded; a bundle may not lift the limit that protects its user."""
    size_px: Annotated[Side, Field(le=4096)]
    """Side of the square input."""
    store_px: Side
    """Shorter side before the central square is cut."""
    fit: Literal["crop", "pad", "squash"]
    """How an oblong image becomes square."""
    interpolation: Literal["bilinear", "bicubic", "lanczos"]
    """Resampling filter."""
    background: tuple[Byte, Byte, Byte]
    """Colour under transparency and padding."""
    mean: tuple[float, float, float]
    """Subtracted from red, green and blue in 0..1."""
    std: tuple[Positive, Positive, Positive]
    """What they are divided by then."""

    @model_validator(mode="after")
    def _makes_sense(self) -> "PreprocessingSpec":
        try:
            self.geometry()
        except ConfigError as error:
            raise ValueError("; ".join(error.problems)) from error
        return self

    def geometry(self) -> Geometry:
        """The spatial part."""
        return Geometry(
            size_px=self.size_px,
            store_px=self.store_px,
            fit=self.fit,
            interpolation=self.interpolation,
            background=self.background,
        )

    def policy(self) -> PixelPolicy:
        """The colour and safety part.

        Raises:
            ArtifactError: the bundle was made under a policy that this version does not know.
        """
        if self.policy_version != POLICY_VERSION:
            raise ArtifactError(
                f"The bundle was made with pixel policy {self.policy_version}, and this foveal has {POLICY_VERSION}.",
                fix=f"use the foveal that made it; this is {__version__}.",
            )
        return PixelPolicy(background=self.background, max_pixels=self.max_pixels, version=self.policy_version)


class TrainingDataSpec(Section):
    """Which data the weights have seen."""

    fingerprint: str
    """SHA-256 over the hashes, boxes, labels and splits of all usable rows."""
    num_images: dict[str, int]
    """Images a split."""
    box_margin: float = 0.0
    """Margin around each box, as a share of its width and height, where the samples were boxes."""


class WeightsSpec(Section):
    """Where the weights started and under which licence."""

    source: str
    """pretrained, none, or a path."""
    tag: str = ""
    """The zoo's name of the starting weights."""
    licence: str
    """Licence of the starting weights; that of the code is another matter."""


class BundleSpec(Section):
    """The content of bundle.json."""

    format_version: int
    """Version of this layout."""
    foveal_version: str
    """What wrote it."""
    architecture: ArchitectureSpec
    """What to build."""
    class_names: tuple[str, ...] = Field(min_length=2)
    """Classes in the order of the outputs: a contract."""
    preprocessing: PreprocessingSpec
    """How a file becomes the input."""
    temperature: float = Field(gt=0.0)
    """What logits are divided by before the softmax; fitted on validation."""
    ordered: bool = False
    """Whether the classes are grades."""
    training_data: TrainingDataSpec
    """What it was trained on."""
    weights: WeightsSpec
    """Where it started."""
    metrics: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Headline metrics a split, with their intervals."""
    files: dict[str, str]
    """SHA-256 of every other file of the bundle."""

    @model_validator(mode="after")
    def _closed_file_list(self) -> "BundleSpec":
        if set(self.files) != {WEIGHTS_FILE}:
            raise ValueError(f"files: expected exactly {WEIGHTS_FILE}, and came {sorted(self.files)}")
        if len(set(self.class_names)) != len(self.class_names):
            raise ValueError("class_names: a name occurs twice")
        return self


@dataclass(frozen=True)
class Bundle:
    """A bundle that was checked: the hashes are right and the schema is known."""

    path: Path
    spec: BundleSpec

    def state(self) -> dict[str, "torch.Tensor"]:
        """The weights by name.

        Raises:
            ArtifactError: the file is not whole.
        """
        from foveal.model.tensors import read_tensors

        return read_tensors(self.path / WEIGHTS_FILE)

    def build(self) -> "Classifier":
        """The classifier with its weights, on the CPU, in evaluation mode.

        Raises:
            ArtifactError: weights and architecture do not fit, or the zoo does not know the architecture.
        """
        from foveal.model.build import Architecture, build
        from foveal.model.zoo import library_of

        found = library_of(self.spec.architecture.name)
        if found != self.spec.architecture.library:
            raise ArtifactError(
                f"The bundle {self.path} wants {self.spec.architecture.name} of {self.spec.architecture.library}, and "
                f"this foveal has one of {found}, which is another network.",
                fix=f"use the foveal that wrote it, {self.spec.foveal_version}.",
            )
        preprocessing = self.spec.preprocessing
        architecture = Architecture(
            name=self.spec.architecture.name,
            num_classes=len(self.spec.class_names),
            image_size=preprocessing.size_px,
            head=self.spec.architecture.head,
            mean=preprocessing.mean,
            std=preprocessing.std,
        )
        try:
            classifier = build(architecture)
        except ConfigError as error:
            raise ArtifactError(
                f"The network of {self.path} cannot be built with the timm that is installed. {error.message}",
                fix=f"pip install --upgrade timm; the bundle was written by foveal {self.spec.foveal_version}.",
            ) from error
        try:
            classifier.net.load_state_dict(self.state(), strict=True)
        except RuntimeError as error:
            raise ArtifactError(
                f"The weights in {self.path} do not fit {self.spec.architecture.name}: {error}.",
                fix="the bundle is inconsistent; export it again from its run.",
            ) from error
        return classifier.eval()


def is_bundle(path: Path) -> bool:
    """Whether `path` is a bundle, or a run that holds one."""
    return any((folder / BUNDLE_FILE).is_file() for folder in (path, path / "bundle"))


def find_bundle(path: Path) -> Path:
    """The bundle's folder, given it or the run that holds it.

    Raises:
        ArtifactError: there is none.
    """
    for folder in (path, path / "bundle"):
        if (folder / BUNDLE_FILE).is_file():
            return folder
    raise ArtifactError(
        f"{path} is neither a bundle nor a run that has one: there is no {BUNDLE_FILE}.",
        fix="give the folder that `foveal train --out` wrote, or its bundle/ folder.",
    )


def read_bundle(path: Path) -> Bundle:
    """Read and check a bundle: schema, format version, and the SHA-256 of every file.

    Raises:
        ArtifactError: anything is missing, damaged, changed, newer than this foveal, or outside of the schema.
    """
    folder = find_bundle(path)
    try:
        content = read_json(folder / BUNDLE_FILE)
    except FovealError as error:
        raise ArtifactError(error.message, fix="copy the bundle again.") from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise ArtifactError(
            f"{folder / BUNDLE_FILE} has format version {version}, and this foveal reads {FORMAT_VERSION}.",
            fix="use the foveal that wrote it, or a newer one.",
        )
    try:
        spec = BundleSpec.model_validate(content)
    except ValidationError as error:
        problems = [f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in error.errors()]
        raise ArtifactError(
            f"{folder / BUNDLE_FILE} does not follow the schema of a bundle.",
            problems=problems,
            fix="do not edit bundles by hand; take the original.",
        ) from error
    for name, expected in spec.files.items():
        if not (folder / name).is_file():
            raise ArtifactError(f"The bundle {folder} lacks {name}.", fix="copy the whole folder.")
        if sha256_file(folder / name) != expected:
            raise ArtifactError(
                f"{folder / name} is not the file that was written: its sha256 differs from bundle.json.",
                fix="copy the bundle again; it was damaged or changed on the way.",
            )
    return Bundle(folder, spec)


def update_bundle(folder: Path, **changes: Any) -> BundleSpec:
    """Replace fields of a bundle's description, such as its temperature; the weights stay as they are."""
    spec = read_bundle(folder).spec
    changed = BundleSpec.model_validate({**spec.model_dump(), **changes})
    write_json(folder / BUNDLE_FILE, changed.model_dump(mode="json"))
    return changed


def write_bundle(folder: Path, spec: Mapping[str, Any], state: Mapping[str, "torch.Tensor"]) -> Bundle:
    """Write weights first, then the description that makes them a bundle.

    Args:
        folder: where to; made where it is missing.
        spec: the fields of `BundleSpec` but `format_version`, `foveal_version` and `files`.
        state: tensors by name.
    """
    import torch
    from safetensors.torch import save

    # Copies, because safetensors refuses tensors that share memory, as tied weights and views do.
    own = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
    with atomic_writer(folder / WEIGHTS_FILE) as stream:
        stream.write(save(own))
    full = BundleSpec(
        format_version=FORMAT_VERSION,
        foveal_version=__version__,
        files={WEIGHTS_FILE: sha256_file(folder / WEIGHTS_FILE)},
        **spec,
    )
    write_json(folder / BUNDLE_FILE, full.model_dump(mode="json"))
    return Bundle(folder, full)
