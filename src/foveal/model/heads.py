"""What stands between a backbone and its classes: blocks on the feature map, pooling, and the layers to the logits.

Backbones give their features in three layouts: maps with the channels first, maps with the channels last (swin), and
rows of tokens with class tokens in front (vit). Blocks see one: a map with the channels first, without class tokens.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from foveal.errors import ConfigError
from foveal.model.config import HeadConfig

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
}
LARGEST_LAST_STD = 0.02


def is_plain(config: HeadConfig) -> bool:
    """Whether the network's own way of pooling and one layer, with or without dropout before it, are all of it."""
    return config.model_copy(update={"dropout": 0.0}) == HeadConfig()


def plain_dropout(config: HeadConfig) -> float:
    """The share that a plain head drops before its layer."""
    return config.dropout if isinstance(config.dropout, float) else 0.0


class Head(nn.Module):
    """Pooled features to logits.

    kind=linear: batch normalisation if asked for, dropout, one layer. kind=dense: for each width a layer, batch
    normalisation if asked for, the activation and, where shares are listed, dropout; then the last layer, with dropout
    before it where there is one share only.

    Args:
        num_features: of the pooled features.
        num_classes: outputs.
        config: what to build.
    """

    def __init__(self, num_features: int, num_classes: int, config: HeadConfig) -> None:
        super().__init__()
        shares = config.dropout if isinstance(config.dropout, tuple) else (0.0,) * len(config.layers)
        has_norm = config.batch_norm and config.kind == "linear"
        self.norm = nn.BatchNorm1d(num_features) if has_norm else nn.Identity()
        blocks, width = [], num_features
        for wider, share in zip(config.layers, shares, strict=True):
            blocks.append(_dense_block(width, wider, share, config))
            width = wider
        self.dense = nn.Sequential(*blocks)
        self.drop = nn.Dropout(config.dropout) if isinstance(config.dropout, float) else nn.Identity()
        self.fc = nn.Linear(width, num_classes)
        # Small, so that the first loss is that of guessing, however wide the features are.
        nn.init.trunc_normal_(self.fc.weight, std=min(LARGEST_LAST_STD, width**-0.5))
        nn.init.zeros_(self.fc.bias)

    def forward(self, row: torch.Tensor) -> torch.Tensor:
        """Pooled features, float32 [n, features], to logits, float32 [n, classes]."""
        logits: torch.Tensor = self.fc(self.drop(self.dense(self.norm(row))))
        return logits


def _dense_block(width: int, wider: int, share: float, config: HeadConfig) -> nn.Sequential:
    # A bias before a batch normalisation would be taken out by it again.
    layer = nn.Linear(width, wider, bias=not config.batch_norm)
    if config.activation == "tanh":
        nn.init.xavier_uniform_(layer.weight)  # Glorot and Bengio 2010
    else:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # He et al. 2015
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    block = nn.Sequential()
    block.add_module("fc", layer)
    if config.batch_norm:
        block.add_module("norm", nn.BatchNorm1d(wider))
    block.add_module("act", _ACTIVATIONS[config.activation]())
    if share:
        block.add_module("drop", nn.Dropout(share))
    return block


def make_neck(num_channels: int, config: HeadConfig) -> nn.Sequential:
    """What is done to the feature map before it is pooled: attention, then spatial dropout; empty where neither is."""
    from timm.layers import SEModule
    from timm.layers.cbam import CbamModule, ChannelAttn, SpatialAttn

    kinds: dict[str, Callable[[], nn.Module]] = {
        "se": lambda: SEModule(num_channels),
        "channel": lambda: ChannelAttn(num_channels),
        "spatial": SpatialAttn,
        "cbam": lambda: CbamModule(num_channels),
    }
    neck = nn.Sequential()
    if config.attention != "none":
        neck.add_module("attention", kinds[config.attention]())
    if config.spatial_dropout:
        neck.add_module("spatial_dropout", nn.Dropout2d(config.spatial_dropout))
    return neck


@dataclass(frozen=True)
class MapLayout:
    """How a backbone's features are a map.

    Attributes:
        kind: channels first [n, c, h, w], channels last [n, h, w, c], or tokens [n, prefix + h * w, c].
        num_channels: c.
        side: h and w, for tokens.
        num_prefix: class and register tokens in front, which are no place of the image.
    """

    kind: Literal["first", "last", "tokens"]
    num_channels: int
    side: int = 0
    num_prefix: int = 0

    def to_map(self, features: torch.Tensor) -> torch.Tensor:
        """Features as the backbone gives them to a map, float32 [n, c, h, w]."""
        if self.kind == "first":
            return features
        if self.kind == "last":
            return features.permute(0, 3, 1, 2)
        places = features[:, self.num_prefix :].transpose(1, 2)
        # No len(): to the exporter it would be a number, and the size of the batch is none.
        return places.reshape(features.shape[0], self.num_channels, self.side, self.side)

    def from_map(self, changed: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """A map back to the backbone's layout; tokens in front are taken from `features` as they were."""
        if self.kind == "first":
            return changed
        if self.kind == "last":
            return changed.permute(0, 2, 3, 1)
        return torch.cat([features[:, : self.num_prefix], changed.flatten(2).transpose(1, 2)], dim=1)


def layout_of(backbone: Any, features: Any) -> MapLayout | None:
    """How the features of a backbone are a map; None where they are none."""
    if not isinstance(features, torch.Tensor):
        return None
    width = int(backbone.num_features)
    if features.ndim == 4:
        last = getattr(backbone, "output_fmt", "NCHW") == "NHWC"
        if features.shape[3 if last else 1] == width:
            return MapLayout("last" if last else "first", width)
        return MapLayout("first", int(features.shape[1])) if not last else None
    if features.ndim == 3 and features.shape[2] == width:
        num_prefix = int(getattr(backbone, "num_prefix_tokens", 0) or 0)
        num_places = features.shape[1] - num_prefix
        side = math.isqrt(max(0, num_places))
        if num_places > 1 and side * side == num_places:
            return MapLayout("tokens", width, side, num_prefix)
    return None


class Pooling(nn.Module):
    """A map to one row of features, in a way of one's own.

    Args:
        kind: avg, max, avgmax or flatten, which keeps every place.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        from timm.layers import SelectAdaptivePool2d

        self.pool: nn.Module = nn.Identity() if kind == "flatten" else SelectAdaptivePool2d(pool_type=kind)

    def forward(self, features: torch.Tensor, norm: nn.Module | None) -> torch.Tensor:
        """A map to its row, float32 [n, c], or [n, c * h * w] where flattened.

        Args:
            features: float32 [n, c, h, w].
            norm: the backbone's last normalisation, where it comes after the pooling, as in convnext.
        """
        pooled: torch.Tensor = self.pool(features)
        if norm is not None:
            pooled = norm(pooled) if _wants_map(norm) else norm(pooled.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return pooled.flatten(1)


def _wants_map(norm: nn.Module) -> bool:
    """Whether a normalisation takes channels first; timm's are named so, and torch's LayerNorm wants them last."""
    return "2d" in type(norm).__name__ or isinstance(norm, nn.GroupNorm)


def late_norm(backbone: nn.Module) -> str:
    """The name of the normalisation that a backbone does after pooling; empty where it has none."""
    for name in ("head.norm", "fc_norm"):
        module: Any = backbone
        for part in name.split("."):
            module = getattr(module, part, None)
        if isinstance(module, nn.Module) and any(True for _ in module.parameters()):
            return name
    return ""


class ComposedNet(nn.Module):
    """A backbone without its last layer, blocks on its feature map, and a head of our own.

    It has the methods of timm's networks. Its tensors are named `backbone.*`, `neck.*` and `head.*`.

    Args:
        backbone: a network whose own last layer was left out.
        neck: what is done to the map; may be empty.
        pooling: None for the backbone's own way.
        head: pooled features to logits.
        layout: how the backbone's features are a map; None only where nothing needs one.
    """

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Sequential,
        pooling: Pooling | None,
        head: nn.Module,
        layout: MapLayout | None,
    ) -> None:
        super().__init__()
        self.backbone, self.neck, self.pooling, self.head, self.layout = backbone, neck, pooling, head, layout
        self._late_norm = late_norm(backbone) if pooling is not None else ""

    @property
    def num_features(self) -> int:
        """Channels of the feature map."""
        net: Any = self.backbone
        return int(net.num_features)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised pixels, float32 [n, 3, h, w], to the backbone's features in its own layout."""
        net: Any = self.backbone
        features: torch.Tensor = net.forward_features(x)
        return features

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """The backbone's features to logits, float32 [n, classes]; or to the pooled features, float32 [n, features]."""
        net: Any = self.backbone
        features = x
        if self.layout is not None and len(self.neck):
            features = self.neck(self.layout.to_map(x))
            if self.pooling is None:
                features = self.layout.from_map(features, x)
        elif self.layout is not None and self.pooling is not None:
            features = self.layout.to_map(x)
        row: torch.Tensor
        if self.pooling is None:
            row = net.forward_head(features, pre_logits=True).flatten(1)
        else:
            row = self.pooling(features, net.get_submodule(self._late_norm) if self._late_norm else None)
        if pre_logits:
            return row
        logits: torch.Tensor = self.head(row)
        return logits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised pixels, float32 [n, 3, h, w], to logits, float32 [n, classes]."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.head.get_submodule("fc")

    def no_weight_decay(self) -> set[str]:
        """Parameters that the backbone wants spared of weight decay, such as learnt positions."""
        spared = getattr(self.backbone, "no_weight_decay", None)
        return {f"backbone.{name}" for name in spared()} if callable(spared) else set()

    def group_matcher(self, coarse: bool = False) -> Callable[[str], float]:
        """Which layer a parameter belongs to, in timm's way: the backbone's, then neck and head."""
        from timm.models import group_parameters

        net: Any = self.backbone
        layers = group_parameters(net, net.group_matcher(coarse=coarse), reverse=True)

        def layer(name: str) -> float:
            inside = name.startswith("backbone.")
            return float(layers.get(name.removeprefix("backbone."), math.inf)) if inside else math.inf

        return layer


def compose(
    name: str, backbone: nn.Module, num_classes: int, image_size: int, config: HeadConfig
) -> tuple[ComposedNet, int]:
    """Put neck and head onto a backbone, both as wide as one image tells; what is left without use is left out.

    Args:
        name: the model's, for messages.
        backbone: fresh, without its last layer, in training mode.
        num_classes: outputs.
        image_size: side of the square input in pixels.
        config: what to build.

    Returns:
        The network, and the number of its pooled features.

    Raises:
        ConfigError: the backbone gives no map of features where one is needed.
    """
    net: Any = backbone.eval()
    features = net.forward_features(ramp(image_size))
    layout = layout_of(backbone, features)
    asked = _asked_of_the_map(config)
    if layout is None and asked:
        raise ConfigError(
            f"{asked} needs a map of features, and {name} gives none: its features are no grid of places.",
            fix=f"leave {asked.partition('=')[0]} out, or choose another model.name, such as resnet18 or "
            "vit_base_patch16_224.",
        )
    neck = nn.Sequential() if layout is None else make_neck(layout.num_channels, config)
    pooling = None if config.pool == "own" else Pooling(config.pool)
    if layout is not None and pooling is None and len(neck):
        _check_pooling_looks(name, net, layout, features.detach(), asked)
    # The head's width is known once something was pooled.
    composed = ComposedNet(backbone, neck, pooling, nn.Identity(), layout).eval()
    row = composed.forward_head(features, pre_logits=True)
    (row * ramp_like(row)).sum().backward()  # type: ignore[no-untyped-call]
    _leave_out_unused(backbone)
    composed.zero_grad(set_to_none=True)
    composed.head = Head(row.shape[1], num_classes, config)
    return composed.train(), row.shape[1]


def ramp(image_size: int) -> torch.Tensor:
    """An image that is no constant and needs no draw, float32 [1, 3, side, side], -1..1."""
    return torch.linspace(-1.0, 1.0, 3 * image_size**2).view(1, 3, image_size, image_size)


def ramp_like(row: torch.Tensor) -> torch.Tensor:
    """Weights for a sum that no normalisation makes constant: float32 [features], 0.5..1."""
    return torch.linspace(0.5, 1.0, row.shape[-1])


def _asked_of_the_map(config: HeadConfig) -> str:
    """The first setting that needs a map of features; empty where none does."""
    settings = {
        f"model.head.attention={config.attention}": config.attention != "none",
        f"model.head.spatial_dropout={config.spatial_dropout:g}": config.spatial_dropout > 0.0,
        f"model.head.pool={config.pool}": config.pool != "own",
    }
    return next((setting for setting, is_on in settings.items() if is_on), "")


def _check_pooling_looks(name: str, net: Any, layout: MapLayout, features: torch.Tensor, asked: str) -> None:
    """Refuse blocks on a map that the network's own pooling does not look at, as that of a class token does not.

    Raises:
        ConfigError: they would have no effect.
    """
    seen = layout.to_map(features).requires_grad_()
    row = net.forward_head(layout.from_map(seen, features), pre_logits=True).flatten(1)
    (gradient,) = torch.autograd.grad((row * ramp_like(row)).sum(), seen, allow_unused=True)
    if gradient is None or not gradient.any():
        raise ConfigError(
            f"{asked} would have no effect: {name} pools its class token, and not the map of features.",
            fix="pool the map with --set model.head.pool=avg.",
        )


def _leave_out_unused(module: nn.Module) -> None:
    """Replace what no gradient reached, such as the wide layers of vgg where the map is pooled before them."""
    for name, child in list(module.named_children()):
        parameters = list(child.parameters())
        if parameters and all(parameter.grad is None for parameter in parameters):
            setattr(module, name, nn.Identity())
        else:
            _leave_out_unused(child)
