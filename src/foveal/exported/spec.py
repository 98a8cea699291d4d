"""What an exported model says of itself: a closed schema, kept in the file's own metadata."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from foveal.config import Section
from foveal.model.bundle_spec import PreprocessingSpec, TrainingDataSpec, WeightsSpec
from foveal.model.voting import Vote

FORMAT_VERSION = 1
"""To be raised with any change to the names, shapes or meaning of what goes in and out."""

METADATA_KEY = "foveal"
"""Under which of the file's metadata the JSON of `ExportSpec` stands."""

IMAGE_INPUT = "image"
"""uint8 [batch, height, width, 3], any size: what the pixel policy gives after decoding."""

PROBABILITIES = "probabilities"
"""float32 [batch, classes]."""

MEMBER_PROBABILITIES = "member_probabilities"
"""float32 [members, batch, classes], of ensembles alone."""

HEATMAP = "heatmap"
"""float32 [batch, classes, h, w]: the part of each place in each class's logit."""

ONNX_FILES = {"fp32": "model.onnx", "int8": "model.int8.onnx"}
"""By precision: how the file is called."""


class LookSpec(Section):
    """One kind of square that networks of the model see."""

    input: str = Field(pattern="square(_[0-9]+)?")
    """The name of its optional input, uint8 [batch, size_px, size_px, 3]."""
    preprocessing: PreprocessingSpec
    """How a file becomes it."""


class ExportedMember(Section):
    """One of the networks in the file."""

    name: str
    """What it is called in tables."""
    weight: float = Field(ge=0.0, le=1.0)
    """Its share in a weighted vote."""
    temperature: float = Field(gt=0.0)
    """What its own logits are divided by before its softmax."""
    look: int = Field(ge=0)
    """Which of the looks it sees, from 0 on."""


class ExportSpec(Section):
    """The facts of an exported model."""

    format_version: int
    """Version of inputs, outputs and this layout."""
    foveal_version: str
    """What wrote it."""
    libraries: dict[str, str]
    """Versions of torch, onnx and the others that made it."""
    bundle_sha256: str
    """SHA-256 of the bundle.json that it was made from."""
    architecture: str
    """The network's name, in words; of an ensemble those of its members."""
    class_names: tuple[str, ...] = Field(min_length=2)
    """Classes in the order of the outputs: a contract."""
    ordered: bool = False
    """Whether the classes are grades."""
    precision: Literal["fp32", "int8"]
    """What it computes in."""
    opset: int
    """Version of ONNX's operators."""
    resize: Literal["inside", "outside"] = "inside"
    """Whether the graph takes images of any size, or finished squares alone."""
    temperature: float = Field(gt=0.0)
    """What logits are divided by before the softmax; of an ensemble, that of the vote."""
    looks: tuple[LookSpec, ...] = Field(min_length=1)
    """The squares that the networks see."""
    vote: Vote | None = None
    """How members come to one answer; None where there is one network."""
    members: tuple[ExportedMember, ...] = Field(min_length=1)
    """The networks, one or several."""
    heatmap: bool
    """Whether the graph gives class activation maps."""
    heatmap_reason: str = ""
    """Why not; empty where it does."""
    training_data: TrainingDataSpec
    """What it was trained on."""
    weights: WeightsSpec
    """Where the training started, and its licence."""
    metrics: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Headline metrics a split, with their intervals, as measured before the export."""

    @model_validator(mode="after")
    def _hangs_together(self) -> Self:
        if len(set(self.class_names)) != len(self.class_names):
            raise ValueError("class_names: a name occurs twice")
        if (self.vote is None) != (len(self.members) == 1):
            raise ValueError("vote: several members vote, and one does not")
        if any(member.look >= len(self.looks) for member in self.members):
            raise ValueError("members: a look that is not there")
        if len({look.input for look in self.looks}) != len(self.looks):
            raise ValueError("looks: an input occurs twice")
        return self
