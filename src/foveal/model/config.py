"""The `model` section: which network, from which weights."""

from pydantic import Field

from foveal.config import Section


class HeadConfig(Section):
    """What stands between the backbone's features and the classes."""

    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of the features that are dropped while training."""


class ModelConfig(Section):
    """Which network, from which weights."""

    name: str = "resnet18"
    """A model of timm's zoo, with or without a tag (resnet18, convnext_tiny.fb_in22k); `foveal models` lists them."""
    weights: str = "pretrained"
    """pretrained: timm's weights, downloaded once; none: random; or the path of a run, a bundle or a file."""
    head: HeadConfig = HeadConfig()
    """The classification head."""
