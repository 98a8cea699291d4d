"""The `model` section: which network, from which weights, and what of it trains."""

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from foveal.config import Section

MOST_BACKBONES = 4
"""Under one head: more would cost more than they bring, and is rather a slip of the pen."""

Names = str | tuple[str, ...]
"""One network, or the backbones that stand under one head."""

Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[float, Field(gt=0.0)]

_FREEZE = re.compile(r"none|all|partial|(last|stages):[1-9][0-9]*")


def each_name(names: Names) -> tuple[str, ...]:
    """The backbones one by one, also where there is one only."""
    return (names,) if isinstance(names, str) else names


def in_words(names: Names) -> str:
    """What a person reads: `resnet18`, or `efficientnet_b0 + densenet121`."""
    return " + ".join(each_name(names))


class Normalisation(Section):
    """How a network wants its pixels."""

    mean: tuple[float, float, float]
    """Subtracted from red, green and blue in 0..1."""
    std: tuple[Positive, Positive, Positive]
    """What they are divided by then."""


def check_backbones(names: Names, further: tuple[Normalisation, ...]) -> None:
    """Refuse too few or too many backbones, and another number of normalisations than there are after the first.

    Raises:
        ValueError: as pydantic's validators do.
    """
    if not isinstance(names, str) and not 2 <= len(names) <= MOST_BACKBONES:
        raise ValueError(f"name: expected a name, or 2 to {MOST_BACKBONES} of them, and came {len(names)}")
    num_further = len(each_name(names)) - 1
    if further and len(further) != num_further:
        raise ValueError(
            f"further_normalisations: expected one for each of the {num_further} backbones after the first, or none, "
            f"and came {len(further)}"
        )


class HeadConfig(Section):
    """What stands between the backbone's feature map and the classes."""

    kind: Literal["linear", "dense"] = "linear"
    """linear: one layer from the pooled features to the classes; dense: the stack of `layers` before it."""
    layers: tuple[Annotated[int, Field(ge=1, le=65_536)], ...] = ()
    """Widths of the dense layers before the last one, as [512, 256, 128]; only with kind=dense."""
    dropout: Share | tuple[Share, ...] = 0.0
    """Share of the features that are dropped while training: before the last layer, or a list with one after each of
    `layers`."""
    batch_norm: bool = False
    """Batch normalisation: after each dense layer, before its activation; of the pooled features where kind=linear."""
    activation: Literal["relu", "gelu", "silu", "tanh", "leaky_relu", "elu"] = "relu"
    """What follows each dense layer."""
    spatial_dropout: Share = 0.0
    """Share of the feature map's channels that are dropped whole while training (Tompson et al. 2015)."""
    attention: Literal["none", "se", "channel", "spatial", "cbam"] = "none"
    """What weighs the feature map before it is pooled: se (squeeze and excitation, Hu et al. 2018), channel or spatial
    attention, or both in turn (cbam, Woo et al. 2018)."""
    pool: Literal["own", "avg", "max", "avgmax", "flatten"] = "own"
    """How the feature map becomes one row of features; own is the network's way, flatten keeps every place."""

    @model_validator(mode="after")
    def _fits_together(self) -> "HeadConfig":
        if bool(self.layers) != (self.kind == "dense"):
            raise ValueError("layers and kind=dense go together: give both, or neither")
        if isinstance(self.dropout, tuple) and len(self.dropout) != len(self.layers):
            raise ValueError(
                f"dropout: a list has one share for each of the {len(self.layers)} layers, and has {len(self.dropout)}"
            )
        return self


class ClassicalHeadConfig(Section):
    """The sizes of a head that is no layer: what it takes to make room for its numbers, which the weights file holds.

    Logistic regression and a linear SVM need none of this: they are the layer of an ordinary head.
    """

    kind: Literal["neighbours", "forest", "boosting"]
    """neighbours: the nearest of some kept images; forest: trees that are averaged; boosting: trees that are summed."""
    num_references: int = Field(default=0, ge=0, le=10_000_000)
    """Images that are kept; neighbours only."""
    num_neighbours: int = Field(default=0, ge=0, le=10_000)
    """Of them, how many are asked."""
    distance: Literal["cosine", "euclid"] = "cosine"
    """What is near: a small angle, or a small distance; neighbours only."""
    weighting: Literal["equal", "inverse"] = "equal"
    """How much each neighbour counts: as much as any other, or inversely to its distance."""
    num_trees: int = Field(default=0, ge=0, le=1_000_000)
    """Trees of a forest or boosting; of boosting, a whole number for each class."""
    num_nodes: int = Field(default=0, ge=0, le=500_000_000)
    """Nodes of all trees, leaves among them."""
    num_leaves: int = Field(default=0, ge=0, le=500_000_000)
    """Of these, how many are leaves."""
    depth: int = Field(default=0, ge=0, le=1_000)
    """Steps from a root to the farthest leaf."""

    @model_validator(mode="after")
    def _fits_together(self) -> "ClassicalHeadConfig":
        has_references, has_trees = bool(self.num_references), bool(self.num_trees)
        if (has_references, has_trees) != (self.kind == "neighbours", self.kind != "neighbours"):
            raise ValueError("neighbours have num_references, forest and boosting have num_trees")
        if has_references and not 1 <= self.num_neighbours <= self.num_references:
            raise ValueError("num_neighbours: expected 1 or more, and no more than num_references")
        if has_trees and not self.num_trees <= self.num_leaves <= self.num_nodes:
            raise ValueError("num_leaves: expected a leaf or more for each tree, and no more than num_nodes")
        return self


class ModelConfig(Section):
    """Which network, from which weights, and what of it trains."""

    name: Names = "resnet18"
    """A model of timm's zoo, with or without a tag (resnet18, convnext_tiny.fb_in22k), torchvision's alexnet, or
    small_cnn; `foveal models` lists them. A list of two to four puts them side by side under one head."""
    weights: Names = "pretrained"
    """pretrained: timm's weights, downloaded once; none: random; or the path of a run, a bundle or a file. With several
    backbones one for all, or a list with one for each."""
    freeze: str = "none"
    """What keeps its starting weights: none; all but the head; partial (all but the last four layers with weights, the
    head's own among them); last:N trains the last N layers with weights; stages:N the last N stages and the head."""
    unfreeze: dict[Annotated[int, Field(ge=2)], str] = Field(default_factory=dict)
    """From which epoch on, counted from 1, another `freeze` holds, as {3: "stages:1", 6: none} (gradual unfreezing,
    Howard and Ruder 2018)."""
    head: HeadConfig = HeadConfig()
    """The classification head."""

    @field_validator("name", "weights", mode="before")
    @classmethod
    def _one_is_no_list(cls, value: object) -> object:
        return value[0] if isinstance(value, list | tuple) and len(value) == 1 else value

    @field_validator("name")
    @classmethod
    def _as_many_as_make_sense(cls, value: Names) -> Names:
        if not 1 <= (number := len(each_name(value))) <= MOST_BACKBONES:
            raise ValueError(f"expected a name, or a list of 2 to {MOST_BACKBONES} names, and came a list of {number}")
        return value

    @model_validator(mode="after")
    def _weights_for_each(self) -> "ModelConfig":
        if isinstance(self.weights, tuple) and len(self.weights) != len(self.names):
            raise ValueError(
                f"weights: a list has one for each of the {len(self.names)} backbones of name, and has "
                f"{len(self.weights)}"
                if len(self.names) > 1
                else "weights: a list has one for each of several backbones, and name is one"
            )
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The backbones one by one, also where there is one only."""
        return each_name(self.name)

    @property
    def starts(self) -> tuple[str, ...]:
        """What each backbone starts from; the same path for all where one file holds all of them."""
        return self.weights if isinstance(self.weights, tuple) else (self.weights,) * len(self.names)

    @field_validator("freeze")
    @classmethod
    def _freeze_is_known(cls, value: str) -> str:
        if not _FREEZE.fullmatch(value):
            raise ValueError(f"expected none, all, partial, last:N or stages:N, and came {value!r}")
        return value

    @field_validator("unfreeze")
    @classmethod
    def _unfreeze_is_known(cls, value: dict[int, str]) -> dict[int, str]:
        for freeze in value.values():
            cls._freeze_is_known(freeze)
        return dict(sorted(value.items()))
