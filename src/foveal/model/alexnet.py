"""Torchvision's AlexNet with the methods of timm's networks; timm has none."""

import math
from collections.abc import Callable

import torch
from torch import nn

NAME = "alexnet"


class AlexNet(nn.Module):
    """AlexNet in one column (Krizhevsky 2014), of torchvision's own layers and with its names of tensors.

    Args:
        num_classes: outputs; 0 for none, which leaves the 4,096 features before the last layer.
        drop_rate: share of the features that are dropped before each of the two wide layers while training.
    """

    def __init__(self, num_classes: int, *, drop_rate: float = 0.0) -> None:
        super().__init__()
        from torchvision.models import alexnet

        layers = alexnet(weights=None, num_classes=max(1, num_classes), dropout=drop_rate)
        self.features: nn.Sequential = layers.features
        self.avgpool: nn.Module = layers.avgpool
        self.classifier: nn.Sequential = layers.classifier
        self.num_features = int(self.features[10].out_channels)
        self.head_hidden_size = int(self.classifier[6].in_features)
        self.num_classes = num_classes
        self.drop_rate = drop_rate
        self.feature_info = [
            {"num_chs": 64, "reduction": 4, "module": "features.1"},
            {"num_chs": 192, "reduction": 8, "module": "features.4"},
            {"num_chs": 256, "reduction": 16, "module": "features.11"},
        ]
        if not num_classes:
            self.classifier[6] = nn.Identity()

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised pixels, float32 [n, 3, h, w], 63 x 63 or more, to the map of features, float32 [n, 256, ...]."""
        features: torch.Tensor = self.features(x)
        return features

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """The map of features to logits, float32 [n, classes]; or to what the last layer takes, float32 [n, 4096]."""
        row: torch.Tensor = self.classifier[:-1](self.avgpool(x).flatten(1))
        return row if pre_logits else self.classifier[-1](row)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised pixels, float32 [n, 3, h, w], to logits, float32 [n, classes]."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.classifier[-1]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a fresh last layer in; the map is always pooled to 6 x 6."""
        del global_pool
        self.num_classes = num_classes
        self.classifier[6] = nn.Linear(self.head_hidden_size, num_classes) if num_classes else nn.Identity()

    def group_matcher(self, coarse: bool = False) -> Callable[[str], float]:
        """Which layer a parameter belongs to, in timm's way: each is a group of its own, the last layer the last."""
        del coarse

        def layer(name: str) -> float:
            part, number, *_ = name.split(".")
            if part == "features":
                return float(number)
            return math.inf if int(number) == len(self.classifier) - 1 else float(len(self.features) + int(number))

        return layer
