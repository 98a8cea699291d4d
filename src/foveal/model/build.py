"""Networks: any name of the zoo under a head, as one pure torch module."""

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import nn

from foveal.config import Section
from foveal.errors import ConfigError
from foveal.model.classical import make_classical
from foveal.model.config import (
    ClassicalHeadConfig,
    HeadConfig,
    Names,
    Normalisation,
    check_backbones,
    each_name,
    in_words,
)
from foveal.model.heads import ComposedNet, compose, is_plain, plain_dropout, ramp
from foveal.model.joint import JointNet, join
from foveal.model.zoo import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    create_net,
    libraries_of,
    pretrained_facts,
    size_explained,
)

INCEPTION = "inception_v3"
"""The one network of the zoo with a second head for training."""
SMALLEST_AUXILIARY_MAP = 17
"""Side of the map that Inception's auxiliary head needs, which images of 299 pixels give."""


class Architecture(Section):
    """All that is needed to build a network again, without its weights. A closed schema: names, never code."""

    name: Names
    """A model of the zoo, without a tag; or several, whose features go into one head."""
    num_classes: int = Field(ge=2)
    """Number of outputs."""
    image_size: int = Field(ge=8, le=4096)
    """Side of the square input, in pixels."""
    head: HeadConfig = HeadConfig()
    """What stands between the backbone and the classes."""
    classical: ClassicalHeadConfig | None = None
    """Neighbours or trees in place of the head's layers, as `foveal probe` makes them."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """What is subtracted from red, green and blue in 0..1."""
    std: tuple[float, float, float] = IMAGENET_STD
    """What they are divided by then."""
    further_normalisations: tuple[Normalisation, ...] = ()
    """Mean and standard deviation of each backbone after the first; empty where they are those of the first."""

    @model_validator(mode="after")
    def _backbones_fit_together(self) -> "Architecture":
        check_backbones(self.name, self.further_normalisations)
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The backbones one by one, also where there is one only."""
        return each_name(self.name)

    @property
    def in_words(self) -> str:
        """The name as a person reads it."""
        return in_words(self.name)

    @property
    def normalisations(self) -> tuple[Normalisation, ...]:
        """What each backbone wants of its pixels."""
        first = Normalisation(mean=self.mean, std=self.std)
        return (first, *(self.further_normalisations or (first,) * (len(self.names) - 1)))

    def spec(self) -> dict[str, Any]:
        """What a bundle says of it beside its classes and preprocessing: plain values for `ArchitectureSpec`."""
        classical = {} if self.classical is None else {"classical": self.classical.model_dump(mode="json")}
        return {
            "library": libraries_of(self.name),
            "name": self.name,
            "head": self.head.model_dump(mode="json"),
            "further_normalisations": [each.model_dump(mode="json") for each in self.further_normalisations],
            **classical,
        }


class Classifier(nn.Module):
    """A network with its normalisation inside: pixels in 0..1 to logits.

    Where the network can be divided, `forward` is `classify(pooled(pixels))`: all that is before the head, which is the
    same in every epoch while the backbone is frozen, and the head.

    Args:
        architecture: what to build.
        net: the network itself, from normalised pixels to logits; its state dict is what a bundle holds.
        head_names: names of the submodules of `net` that are its head.
        num_features: of the pooled features, where the head is one submodule that takes nothing else; 0 where the
            network cannot be divided so.
        auxiliary: a second head on features half-way, for training only; no part of `net` and of a bundle.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        architecture: Architecture,
        net: nn.Module,
        *,
        head_names: Sequence[str] = (),
        num_features: int = 0,
        auxiliary: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.net = net
        self.head_names = tuple(head_names)
        self.num_features = num_features
        self.auxiliary = auxiliary
        dropout = plain_dropout(architecture.head)
        has_dropout = num_features and dropout and not isinstance(net, ComposedNet | JointNet)
        # timm's networks drop in many places and ways; here it is once, before the last layer.
        self.dropout = nn.Dropout(dropout) if has_dropout else None
        self.register_buffer("mean", torch.tensor(architecture.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(architecture.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Classify.

        Args:
            pixels: float32 [n, 3, side, side], 0..1.

        Returns:
            float32 [n, classes], logits.
        """
        if self.num_features:
            return self.classify(self.pooled(pixels))
        logits: torch.Tensor = self.net(self._normalised(pixels))
        return logits

    def pooled(self, pixels: torch.Tensor) -> torch.Tensor:
        """All that is before the head.

        Args:
            pixels: float32 [n, 3, side, side], 0..1.

        Returns:
            float32 [n, features].

        Raises:
            ConfigError: the network has no features to give.
        """
        net: Any = self.net
        if not (callable(getattr(net, "forward_features", None)) and callable(getattr(net, "forward_head", None))):
            raise ConfigError(
                f"{self.architecture.in_words} does not give the features before its last layer.",
                fix="choose another model.name, such as resnet18.",
            )
        return self._row(net.forward_features(self._normalised(pixels)))

    def classify(self, row: torch.Tensor) -> torch.Tensor:
        """The head, with its dropout and batch normalisation while training.

        Args:
            row: float32 [n, features], as `pooled` gives them.

        Returns:
            float32 [n, classes], logits.

        Raises:
            ConfigError: the network's head takes more than its pooled features.
        """
        if not self.num_features:
            raise ConfigError(
                f"The head of {self.architecture.in_words} takes more than the pooled features.",
                fix="choose another model.name, such as resnet18, or a head of one's own with model.head.kind=dense.",
            )
        head = self.net.get_submodule(self.head_names[0])
        if self.dropout is not None:
            row = self.dropout(row)
        return _through(head, row)

    def training_logits(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits, and those of the auxiliary head where there is one that trains; the usual loss adds 0.4 of its loss.

        Args:
            pixels: float32 [n, 3, side, side], 0..1.

        Returns:
            Both float32 [n, classes]; the second is None without auxiliary head, and in evaluation mode.
        """
        auxiliary = self.auxiliary if self.training else None
        if auxiliary is None or not any(parameter.requires_grad for parameter in auxiliary.parameters()):
            return self(pixels), None
        backbone: Any = self.backbone
        half_way = backbone.forward_preaux(self._normalised(pixels))
        logits = self.classify(self._row(backbone.forward_postaux(half_way)))
        return logits, auxiliary(half_way)

    @property
    def backbone(self) -> nn.Module:
        """The network from the zoo, with its own last layer where the head is plain; a joint network as it is."""
        return self.net.backbone if isinstance(self.net, ComposedNet) else self.net

    def head_modules(self) -> list[nn.Module]:
        """What the head is made of: what trains where all else is frozen."""
        return [self.net.get_submodule(name) for name in self.head_names]

    def neck_modules(self) -> list[nn.Module]:
        """What is new between backbone and pooling, and trains along with the head; empty where nothing is."""
        composed = [branch for _, branch in self.net.named_branches()] if isinstance(self.net, JointNet) else [self.net]
        return [net.neck for net in composed if isinstance(net, ComposedNet) and len(net.neck)]

    @property
    def can_cache_features(self) -> bool:
        """Whether `pooled` stays the same while the backbone is frozen: nothing but the head trains or draws."""
        return bool(self.num_features) and not self.neck_modules()

    def class_tensors(self) -> frozenset[str]:
        """Names in `net.state_dict()` of the layers whose outputs are the classes."""
        has_layers = isinstance(self.net, ComposedNet | JointNet) and self.architecture.classical is None
        names = ("head.fc",) if has_layers else self.head_names
        return frozenset(key for key in self.net.state_dict() if key.startswith(tuple(f"{name}." for name in names)))

    def _normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        return (pixels - self.mean) / self.std

    def _row(self, features: Any) -> torch.Tensor:
        net: Any = self.net
        row: torch.Tensor = net.forward_head(features, pre_logits=True).flatten(1)
        return row


def build(architecture: Architecture) -> Classifier:
    """Build a network with random weights.

    Raises:
        ConfigError: no such model, or the model does not allow the image size or the head.
    """
    with size_explained(architecture.in_words, architecture.image_size):
        return _joined(architecture) if len(architecture.names) > 1 else _built(architecture)


def _joined(architecture: Architecture) -> Classifier:
    net = join(
        architecture.names,
        num_classes=architecture.num_classes,
        image_size=architecture.image_size,
        config=architecture.head,
        normalisations=architecture.normalisations,
    )
    if architecture.classical is not None:
        net.head = make_classical(architecture.classical, net.num_features, architecture.num_classes)
    return Classifier(architecture, net, head_names=("head",), num_features=net.num_features)


def _built(architecture: Architecture) -> Classifier:
    (name,), size, num_classes = architecture.names, architecture.image_size, architecture.num_classes
    has_auxiliary = name == INCEPTION and _inception_side(size) >= SMALLEST_AUXILIARY_MAP
    extra = {"aux_logits": True} if has_auxiliary else {}
    is_composed = architecture.classical is not None or not is_plain(architecture.head)
    dropout = plain_dropout(architecture.head)
    # The auxiliary head wants the classes also where the main one is left out.
    net = create_net(
        name, num_classes=0 if is_composed and not has_auxiliary else num_classes, image_size=size, **extra
    )
    auxiliary = _taken_out(net) if has_auxiliary else None
    if is_composed:
        if has_auxiliary:
            net.reset_classifier(0)  # type: ignore[operator]
        net, width = compose(name, net, num_classes, size, architecture.head)
        if architecture.classical is not None:
            net.head = make_classical(architecture.classical, width, num_classes)
        names: tuple[str, ...] = ("head",)
    else:
        names, width = _divide(net, name, size)
    if dropout and not width:
        # It cannot drop from outside, so the network does it in its own way.
        net = create_net(name, num_classes=num_classes, image_size=size, drop_rate=dropout)
    return Classifier(architecture, net, head_names=names, num_features=width, auxiliary=auxiliary)


def _divide(net: Any, name: str, image_size: int) -> tuple[tuple[str, ...], int]:
    """Where a network of the zoo can be divided into what pools and what classifies, found out with one image.

    Networks differ in what they do between pooling and their last layer, and some have two last layers; only where the
    last layer takes exactly what the network gives as its features is it divided.

    Returns:
        The names of the head's submodules, and the number of pooled features; 0 where it cannot be divided.
    """
    own = pretrained_facts(name).get("classifier") or ()
    published = (own,) if isinstance(own, str) else tuple(own)
    classifier = net.get_classifier()
    last = tuple(key for key, module in net.named_modules() if key and module is classifier)
    if len(published) > 1:
        return published, 0
    was_training = net.training
    net.eval()
    try:
        with torch.no_grad():
            features = net.forward_features(ramp(image_size))
            for candidate in dict.fromkeys((*last, *published)):
                if width := _width_of(net, candidate, features):
                    return (candidate,), width
    finally:
        net.train(was_training)
    return published or last, 0


def _width_of(net: Any, candidate: str, features: Any) -> int:
    """Number of pooled features if they are all that a submodule takes to give the logits; else 0."""
    head = net.get_submodule(candidate)
    taken: list[torch.Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0]))
    try:
        logits = net.forward_head(features)
        row = net.forward_head(features, pre_logits=True).flatten(1)
    finally:
        hook.remove()
    if len(taken) != 1 or not torch.equal(taken[0].flatten(1), row):
        return 0
    return int(row.shape[1]) if torch.equal(_through(head, row), logits) else 0


def _through(head: nn.Module, row: torch.Tensor) -> torch.Tensor:
    """A row of features through a head, which may be a convolution over one place."""
    logits: torch.Tensor = head(row[:, :, None, None]).flatten(1) if isinstance(head, nn.Conv2d) else head(row)
    return logits


def _taken_out(net: Any) -> nn.Module:
    """Inception's second head (Szegedy et al. 2015), taken out of the network, so that a bundle holds none."""
    auxiliary: nn.Module = net.AuxLogits
    net.AuxLogits, net.aux_logits = None, False
    return auxiliary


def _inception_side(image_size: int) -> int:
    """Side of the map half-way through inception_v3: two strided layers, two unpadded ones and two poolings."""
    side = (image_size - 3) // 2 + 1 - 2
    side = (side - 3) // 2 + 1 - 2
    side = (side - 3) // 2 + 1
    return (side - 3) // 2 + 1
