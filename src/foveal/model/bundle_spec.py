"""What bundle.json holds: a closed schema, for one network and for several that vote."""

import re
from abc import ABC, abstractmethod
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from foveal.config import Section
from foveal.errors import ArtifactError, ConfigError
from foveal.model.config import ClassicalHeadConfig, HeadConfig, Names, Normalisation, check_backbones, each_name
from foveal.model.voting import Vote
from foveal.pixels.policy import POLICY_VERSION, Geometry, PixelPolicy
from foveal.version import __version__

BUNDLE_FILE = "bundle.json"
WEIGHTS_FILE = "model.safetensors"
FORMAT_VERSION = 1

Side = Annotated[int, Field(ge=8, le=8192)]
Byte = Annotated[int, Field(ge=0, le=255)]
Positive = Annotated[float, Field(gt=0.0)]
LIBRARIES = ("timm", "torchvision", "foveal")


class ArchitectureSpec(Section):
    """What to build: a name of the zoo and its head."""

    library: Names = "timm"
    """Where the name is looked up, or each of the names."""
    name: Names
    """A model of the zoo, without a tag; or several, whose features go into one head."""
    head: HeadConfig = HeadConfig()
    """What stands between the backbone and the classes."""
    classical: ClassicalHeadConfig | None = None
    """Neighbours or trees in place of the head's layers."""
    further_normalisations: tuple[Normalisation, ...] = ()
    """Of each backbone after the first, whose own is that of the preprocessing; empty where all have that."""

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

    @field_validator("library")
    @classmethod
    def _library_is_known(cls, value: Names) -> Names:
        if not set(each_name(value)) <= set(LIBRARIES):
            raise ValueError(f"expected {', '.join(LIBRARIES)}, and came {value!r}")
        return value

    @field_validator("name")
    @classmethod
    def _name_is_plain(cls, value: Names) -> Names:
        if not all(re.fullmatch("[a-z0-9_]+", name) for name in each_name(value)):
            raise ValueError(f"expected names of small letters, digits and _, and came {value!r}")
        return value

    @model_validator(mode="after")
    def _backbones_fit_together(self) -> "ArchitectureSpec":
        check_backbones(self.name, self.further_normalisations)
        num_libraries = None if isinstance(self.library, str) else len(self.library)
        if num_libraries != (None if isinstance(self.name, str) else len(self.name)):
            raise ValueError("library: expected one for each name")
        return self


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


class SharedSpec(Section, ABC):
    """What every bundle.json holds."""

    format_version: int
    """Version of this layout."""
    foveal_version: str
    """What wrote it."""
    class_names: tuple[str, ...] = Field(min_length=2)
    """Classes in the order of the outputs: a contract."""
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
    def _closed_file_list(self) -> Self:
        if set(self.files) != self.expected_files():
            raise ValueError(f"files: expected exactly {_listed(self.expected_files())}, and came {sorted(self.files)}")
        if len(set(self.class_names)) != len(self.class_names):
            raise ValueError("class_names: a name occurs twice")
        return self

    @abstractmethod
    def expected_files(self) -> set[str]:
        """Names of the files beside bundle.json."""


class BundleSpec(SharedSpec):
    """The content of bundle.json for one network."""

    architecture: ArchitectureSpec
    """What to build."""
    preprocessing: PreprocessingSpec
    """How a file becomes the input."""

    def expected_files(self) -> set[str]:
        """Its weights."""
        return {WEIGHTS_FILE}


class MemberSpec(Section):
    """One of the networks that vote."""

    name: str
    """What it is called in tables, such as its run folder."""
    weight: float = Field(ge=0.0, le=1.0)
    """Its share in a weighted vote; all are equal in the others."""


class EnsembleSpec(SharedSpec):
    """The content of bundle.json for several networks that vote; the temperature is that of the vote."""

    vote: Vote
    """soft: mean of the probabilities; weighted: with weights; majority: most often the most probable."""
    members: tuple[MemberSpec, ...] = Field(min_length=2)
    """In the order of their folders, members/0 and on."""

    @model_validator(mode="after")
    def _shares_of_a_whole(self) -> Self:
        if abs(sum(member.weight for member in self.members) - 1.0) > 1e-6:
            raise ValueError("members: expected weights that add up to 1")
        return self

    def expected_files(self) -> set[str]:
        """Description and weights of every member."""
        numbers = range(len(self.members))
        return {f"{member_folder(number)}/{name}" for number in numbers for name in (BUNDLE_FILE, WEIGHTS_FILE)}


def member_folder(number: int) -> str:
    """Where a member of an ensemble lies within its bundle."""
    return f"members/{number}"


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)[:4]) + (", ..." if len(names) > 4 else "")
