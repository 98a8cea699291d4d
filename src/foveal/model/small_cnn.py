"""A small convolutional network of our own, to teach with and to see in a minute that everything works."""

from collections import OrderedDict

import torch
from torch import nn

NAME = "small_cnn"
WIDTHS = (32, 64, 128, 128)
"""Channels after each block; the network has some 240,000 parameters and a row of the last layer's for each class."""


class SmallCnn(nn.Module):
    """Four blocks of convolution, batch normalisation and ReLU, the first three halving the sides; then the mean.

    It has the methods of timm's networks, so that whatever takes one of those takes this one.

    Args:
        num_classes: outputs; 0 for none, which leaves the pooled features.
        drop_rate: share of the pooled features that are dropped while training.
    """

    def __init__(self, num_classes: int, *, drop_rate: float = 0.0) -> None:
        super().__init__()
        blocks, width = [], 3
        for number, wider in enumerate(WIDTHS):
            blocks.append(_block(width, wider, halves=number < len(WIDTHS) - 1))
            width = wider
        self.blocks = nn.Sequential(*blocks)
        self.num_features = self.head_hidden_size = width
        self.num_classes = num_classes
        self.drop_rate = drop_rate
        self.feature_info = [
            {"num_chs": wider, "reduction": 2 ** min(number + 1, 3), "module": f"blocks.{number}"}
            for number, wider in enumerate(WIDTHS)
        ]
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.head_drop = nn.Dropout(drop_rate)
        self.fc: nn.Module = nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.reset_classifier(num_classes)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised pixels, float32 [n, 3, h, w], to the map of features, float32 [n, 128, h / 8, w / 8]."""
        features: torch.Tensor = self.blocks(x)
        return features

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """The map of features to logits, float32 [n, classes]; or to the pooled features, float32 [n, 128]."""
        row: torch.Tensor = self.head_drop(self.global_pool(x).flatten(1))
        return row if pre_logits else self.fc(row)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised pixels, float32 [n, 3, h, w], to logits, float32 [n, classes]."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a fresh last layer in; the way of pooling is always the mean."""
        del global_pool
        self.num_classes = num_classes
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Which parameters belong to which block, in timm's way."""
        del coarse
        return {"stem": r"^blocks\.0", "blocks": r"^blocks\.(\d+)"}


def _block(width: int, wider: int, *, halves: bool) -> nn.Sequential:
    layers: list[tuple[str, nn.Module]] = [
        ("conv", nn.Conv2d(width, wider, 3, padding=1, bias=False)),
        ("norm", nn.BatchNorm2d(wider)),
        ("act", nn.ReLU(inplace=True)),
    ]
    if halves:
        layers.append(("pool", nn.MaxPool2d(2)))
    return nn.Sequential(OrderedDict(layers))
