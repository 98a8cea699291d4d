"""Networks: any name of timm's zoo under a new head, as one pure torch module."""

import difflib
from typing import Any

import torch
from pydantic import Field
from torch import nn

from foveal.config import Section
from foveal.errors import ConfigError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Architecture(Section):
    """All that is needed to build a network again, without its weights. A closed schema: names, never code."""

    name: str
    """A model of timm's zoo, without a tag."""
    num_classes: int = Field(ge=2)
    """Number of outputs."""
    image_size: int = Field(ge=8, le=4096)
    """Side of the square input, in pixels."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of the features that are dropped while training."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """What is subtracted from red, green and blue in 0..1."""
    std: tuple[float, float, float] = IMAGENET_STD
    """What they are divided by then."""


class Classifier(nn.Module):
    """A network with its normalisation inside: pixels in 0..1 to logits.

    Args:
        architecture: what to build.
        net: the network itself, from normalised pixels to logits; its state dict is what a bundle holds.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, architecture: Architecture, net: nn.Module) -> None:
        super().__init__()
        self.architecture = architecture
        self.net = net
        self.register_buffer("mean", torch.tensor(architecture.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(architecture.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Classify.

        Args:
            pixels: float32 [n, 3, side, side], 0..1.

        Returns:
            float32 [n, classes], logits.
        """
        logits: torch.Tensor = self.net((pixels - self.mean) / self.std)
        return logits


def build(architecture: Architecture) -> Classifier:
    """Build a network with random weights.

    Raises:
        ConfigError: no such model, or the model does not allow the image size.
    """
    import timm

    check_name(architecture.name)
    size = {"img_size": architecture.image_size} if _takes_image_size(architecture.name) else {}
    try:
        net = timm.create_model(
            architecture.name,
            pretrained=False,
            num_classes=architecture.num_classes,
            drop_rate=architecture.dropout,
            **size,
        )
    except (ArithmeticError, AssertionError, ValueError, RuntimeError, TypeError) as error:
        raise ConfigError(
            f"{architecture.name} cannot be built for images of {architecture.image_size} px: "
            f"{str(error).rstrip('.')}.",
            fix="choose another data.image_size; many transformers need a multiple of their patch size.",
        ) from error
    return Classifier(architecture, net)


def check_name(name: str) -> None:
    """Refuse what is not a plain name of the zoo: no hub addresses, no paths, no unknown models.

    Raises:
        ConfigError: with the nearest names.
    """
    import timm

    if not timm.is_model(name.partition(".")[0]) or any(sign in name for sign in ":/\\"):
        base = name.rpartition(":")[2].rpartition("/")[2].partition(".")[0]
        near = difflib.get_close_matches(base, timm.list_models(), n=5, cutoff=0.5)
        raise ConfigError(
            f"model.name: {name!r} is not a model of timm's zoo"
            + (f"; near ones: {', '.join(near)}." if near else "."),
            fix="list them with `foveal models 'convnext*'`.",
        )


def pretrained_facts(name: str) -> dict[str, Any]:
    """What the zoo says of a model's weights: size, normalisation, crop, interpolation, tag and licence.

    Raises:
        ConfigError: no such model, or no such tag of its weights.
    """
    import timm

    check_name(name)
    try:
        found = timm.models.get_pretrained_cfg(name, allow_unregistered=True)
    except RuntimeError as error:
        base, _, tag = name.partition(".")
        tags = ", ".join(known.partition(".")[2] for known in timm.list_models(f"{base}.*", pretrained=True))
        raise ConfigError(
            f"model.name: {base} has no weights with the tag {tag!r}" + (f"; there are: {tags}." if tags else "."),
            fix=f"choose one of these, or {base} alone for the usual ones.",
        ) from error
    facts: dict[str, Any] = found.to_dict() if found else {}
    return facts


def _takes_image_size(name: str) -> bool:
    """Whether the model must be told its input size, as transformers with learnt positions must."""
    return bool(pretrained_facts(name).get("fixed_input_size", False))
