"""Several backbones that look at the same image, and one head on all that they see of it."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from foveal.model.config import HeadConfig, Normalisation
from foveal.model.heads import ComposedNet, Head, compose
from foveal.model.zoo import create_net, size_explained


class JointNet(nn.Module):
    """Backbones side by side, their pooled features one after the other in a row, and a head on that row.

    Each backbone sees the image normalised as its own weights want it. The methods are those of timm's networks, but
    that `forward_features` gives one tensor a backbone. Tensors are named `branches.N.backbone.*`, `branches.N.neck.*`
    and `head.*`.

    Args:
        branches: backbones with what is done to their maps, and no heads.
        head: features of all branches to logits.
        num_features: of all branches together, pooled.
        normalisations: what each backbone wants; images come in as the first one wants them.
    """

    scales: torch.Tensor
    shifts: torch.Tensor

    def __init__(
        self,
        branches: Sequence[ComposedNet],
        head: nn.Module,
        *,
        num_features: int,
        normalisations: Sequence[Normalisation],
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.head = head
        self.num_features = num_features
        first = normalisations[0]
        self._is_other = tuple(each != first for each in normalisations)
        means = torch.tensor([each.mean for each in normalisations], dtype=torch.float64)
        stds = torch.tensor([each.std for each in normalisations], dtype=torch.float64)
        self.register_buffer("scales", (stds[0] / stds).float(), persistent=False)
        self.register_buffer("shifts", ((means[0] - means) / stds).float(), persistent=False)

    def forward_features(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Pixels to each backbone's features in its own layout.

        Args:
            x: float32 [n, 3, h, w], normalised as the first backbone wants it.
        """
        features = []
        for number, branch in enumerate(self.branches):
            own = x
            if self._is_other[number]:
                own = x * self.scales[number, :, None, None] + self.shifts[number, :, None, None]
            features.append(branch.forward_features(own))  # type: ignore[operator]
        return tuple(features)

    def forward_head(self, x: Sequence[torch.Tensor], pre_logits: bool = False) -> torch.Tensor:
        """All backbones' features to logits, float32 [n, classes]; or to the row of them, float32 [n, features]."""
        rows = [
            branch.forward_head(features, pre_logits=True)  # type: ignore[operator]
            for branch, features in zip(self.branches, x, strict=True)
        ]
        row = torch.cat(rows, dim=1)
        if pre_logits:
            return row
        logits: torch.Tensor = self.head(row)
        return logits

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pixels as the first backbone wants them, float32 [n, 3, h, w], to logits, float32 [n, classes]."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.head.get_submodule("fc")

    def no_weight_decay(self) -> set[str]:
        """Parameters that the backbones want spared of weight decay, such as learnt positions."""
        return {f"{prefix}{name}" for prefix, branch in self.named_branches() for name in branch.no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> Callable[[str], float]:
        """Which layer a parameter belongs to, in timm's way, counted from the head.

        The last layer of each backbone is next to the head, however deep the backbones are, so that a rate that falls
        from layer to layer falls alike in both.
        """
        layers: dict[str, float] = {}
        for prefix, branch in self.named_branches():
            layer = branch.group_matcher(coarse)
            own = {name: layer(name) for name, _ in branch.named_parameters()}
            last = max((number for number in own.values() if number < math.inf), default=0.0)
            layers |= {f"{prefix}{name}": number - last for name, number in own.items()}

        def layer_of(name: str) -> float:
            return layers.get(name, math.inf)

        return layer_of

    def named_branches(self) -> list[tuple[str, ComposedNet]]:
        """What stands before the names of a branch's tensors, with the branch."""
        return [(f"branches.{number}.", branch) for number, branch in enumerate(self.branches)]  # type: ignore[misc]


def join(
    names: Sequence[str],
    *,
    num_classes: int,
    image_size: int,
    config: HeadConfig,
    normalisations: Sequence[Normalisation],
) -> JointNet:
    """Put one head onto several backbones with random weights.

    Attention, spatial dropout and pooling act on each backbone's map; what comes after the pooling on all of them.

    Args:
        names: models of the zoo, without tags; one may occur twice.
        num_classes: outputs.
        image_size: side of the square input in pixels, the same for all.
        config: the head.
        normalisations: one a backbone.

    Raises:
        ConfigError: no such model; or one does not allow the image size, or gives no map of features where one is
            needed.
    """
    before_pooling = {"attention": config.attention, "spatial_dropout": config.spatial_dropout, "pool": config.pool}
    branches, num_features = [], 0
    for name in names:
        with size_explained(name, image_size):
            backbone = create_net(name, num_classes=0, image_size=image_size)
            branch, width = compose(name, backbone, num_classes, image_size, HeadConfig.model_validate(before_pooling))
        branch.head = nn.Identity()
        branches.append(branch)
        num_features += width
    head = Head(num_features, num_classes, config)
    return JointNet(branches, head, num_features=num_features, normalisations=normalisations)
