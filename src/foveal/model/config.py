"""The `model` section: which network, from which weights, and what of it trains."""

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from foveal.config import Section

Share = Annotated[float, Field(ge=0.0, lt=1.0)]

_FREEZE = re.compile(r"none|all|partial|(last|stages):[1-9][0-9]*")


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


class ModelConfig(Section):
    """Which network, from which weights, and what of it trains."""

    name: str = "resnet18"
    """A model of timm's zoo, with or without a tag (resnet18, convnext_tiny.fb_in22k), torchvision's alexnet, or
    small_cnn; `foveal models` lists them."""
    weights: str = "pretrained"
    """pretrained: timm's weights, downloaded once; none: random; or the path of a run, a bundle or a file."""
    freeze: str = "none"
    """What keeps its starting weights: none; all but the head; partial (all but the last four layers with weights, the
    head's own among them); last:N trains the last N layers with weights; stages:N the last N stages and the head."""
    unfreeze: dict[Annotated[int, Field(ge=2)], str] = Field(default_factory=dict)
    """From which epoch on, counted from 1, another `freeze` holds, as {3: "stages:1", 6: none} (gradual unfreezing,
    Howard and Ruder 2018)."""
    head: HeadConfig = HeadConfig()
    """The classification head."""

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
