"""Classical models of pooled features as torch modules: the nearest neighbours, and trees.

All that they have learnt lies in buffers, so that a bundle holds it beside the backbone's weights, and nothing is ever
unpickled. They say what scikit-learn's and XGBoost's `predict_proba` say, as logits: the logarithm of the shares, or
the sum over the trees. No step depends on the data, so that they can be traced and exported.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from foveal.model.config import ClassicalHeadConfig

SMALLEST_SHARE = 1e-6
"""What a class without any vote is given, since the logarithm of nothing is no number."""
SMALLEST_DISTANCE = 1e-30
"""What a distance is taken for that is smaller and not 0, so that its inverse can be added up."""
NUM_SPARE = 8
"""The nearest are chosen among so many more, which a rounding error may have brought out of order."""


def make_classical(config: ClassicalHeadConfig, num_features: int, num_classes: int) -> nn.Module:
    """An empty head of the sizes that `config` names, to be filled by `load_state_dict`.

    Args:
        config: which kind, and its sizes.
        num_features: of the pooled features.
        num_classes: outputs.
    """
    if config.kind == "neighbours":
        return NeighbourHead(config, num_features, num_classes)
    return TreesHead(config, num_features, num_classes)


class _Filled(nn.Module, ABC):
    """A head whose whole numbers are checked when they are loaded: they are places in other arrays."""

    def __init__(self) -> None:
        super().__init__()
        self.register_load_state_dict_post_hook(_check_places)  # type: ignore[no-untyped-call]

    @abstractmethod
    def ranges(self) -> dict[str, int]:
        """For each buffer of whole numbers, the number that all of its values are below."""


def _check_places(module: Any, _: Any) -> None:
    for name, end in module.ranges().items():
        values = getattr(module, name)
        if values.numel() and not (int(values.min()) >= 0 and int(values.max()) < end):
            raise RuntimeError(f"{name} of the head holds numbers outside 0..{end - 1}")


class NeighbourHead(_Filled):
    """The shares of the classes among the nearest of the kept images (Cover and Hart 1967), as logarithms.

    Args:
        config: of kind neighbours.
        num_features: of the pooled features.
        num_classes: outputs.
    """

    centre: torch.Tensor
    references: torch.Tensor
    halves: torch.Tensor
    labels: torch.Tensor

    def __init__(self, config: ClassicalHeadConfig, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.config, self.num_classes = config, num_classes
        self.register_buffer("centre", torch.zeros(num_features))
        self.register_buffer("references", torch.zeros(config.num_references, num_features))
        self.register_buffer("halves", torch.zeros(config.num_references))
        self.register_buffer("labels", torch.zeros(config.num_references, dtype=torch.int32))

    @classmethod
    def of(
        cls, config: ClassicalHeadConfig, features: torch.Tensor, labels: torch.Tensor, num_classes: int
    ) -> "NeighbourHead":
        """The head that keeps these images.

        Args:
            config: of kind neighbours, with as many references.
            features: float32 [references, features].
            labels: int [references].
            num_classes: outputs.
        """
        head = cls(config, features.shape[1], num_classes)
        kept = F.normalize(features, dim=1) if config.distance == "cosine" else features
        # Centred, so that little is lost to rounding where products are taken for distances.
        head.centre = kept.mean(dim=0)
        head.references = kept - head.centre
        head.halves = 0.5 * head.references.square().sum(dim=1)
        head.labels = labels.to(torch.int32)
        return head

    def ranges(self) -> dict[str, int]:
        """See `_Filled`."""
        return {"labels": self.num_classes}

    def forward(self, row: torch.Tensor) -> torch.Tensor:
        """Pooled features, float32 [n, features], to logits, float32 [n, classes]."""
        return votes(*self.nearest(row), self.config.weighting, self.num_classes)

    def nearest(self, row: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The kept images that are nearest, the nearest first.

        Args:
            row: float32 [n, features].

        Returns:
            Their distances, float32 [n, k], and their labels, int32 [n, k].
        """
        is_cosine = self.config.distance == "cosine"
        asked = (F.normalize(row, dim=1) if is_cosine else row) - self.centre
        # Half the squared distance, turned round, but for what is the same for all.
        closeness = asked @ self.references.T - self.halves
        num_asked = min(self.config.num_neighbours + NUM_SPARE, self.config.num_references)
        places = closeness.topk(num_asked, dim=1).indices
        squares = (self.references[places] - asked[:, None]).square().sum(dim=2)
        best, order = squares.topk(self.config.num_neighbours, dim=1, largest=False)
        distances = 0.5 * best if is_cosine else best.sqrt()
        return distances, self.labels[places.gather(1, order)]


def votes(distances: torch.Tensor, labels: torch.Tensor, weighting: str, num_classes: int) -> torch.Tensor:
    """The logarithms of the classes' shares among neighbours.

    Args:
        distances: float32 [n, k].
        labels: int [n, k].
        weighting: equal or inverse.
        num_classes: outputs.

    Returns:
        float32 [n, classes].
    """
    weights = torch.ones_like(distances)
    if weighting == "inverse":
        # As in scikit-learn: where some are at no distance at all, they alone count.
        is_same = distances == 0
        inverse = 1.0 / distances.clamp(min=SMALLEST_DISTANCE)
        weights = torch.where(is_same.any(dim=1, keepdim=True), is_same.to(inverse.dtype), inverse)
    classes = torch.arange(num_classes, device=labels.device)
    won = ((labels[:, :, None] == classes) * weights[:, :, None]).sum(dim=1)
    return (won / weights.sum(dim=1, keepdim=True)).clamp(min=SMALLEST_SHARE).log()


class TreesHead(_Filled):
    """Many decision trees: their mean shares as logarithms (Breiman 2001), or their sums (Friedman 2001).

    The nodes of all trees stand in one row, leaves last. A node that is no leaf goes to `left` where the feature is
    less than its threshold, else to `right`; a leaf goes to itself, so that `depth` steps bring every image to a leaf.

    Args:
        config: of kind forest or boosting.
        num_features: of the pooled features.
        num_classes: outputs.
    """

    root: torch.Tensor
    feature: torch.Tensor
    threshold: torch.Tensor
    left: torch.Tensor
    right: torch.Tensor
    values: torch.Tensor
    base: torch.Tensor

    def __init__(self, config: ClassicalHeadConfig, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.config, self.num_features, self.num_classes = config, num_features, num_classes
        nodes, is_forest = config.num_nodes, config.kind == "forest"
        self.register_buffer("root", torch.zeros(config.num_trees, dtype=torch.int32))
        self.register_buffer("feature", torch.zeros(nodes, dtype=torch.int32))
        self.register_buffer("threshold", torch.zeros(nodes))
        self.register_buffer("left", torch.zeros(nodes, dtype=torch.int32))
        self.register_buffer("right", torch.zeros(nodes, dtype=torch.int32))
        self.register_buffer("values", torch.zeros(config.num_leaves, num_classes if is_forest else 1))
        self.register_buffer("base", torch.zeros(num_classes))

    def ranges(self) -> dict[str, int]:
        """See `_Filled`."""
        nodes = self.config.num_nodes
        return {"root": nodes, "left": nodes, "right": nodes, "feature": self.num_features}

    def forward(self, row: torch.Tensor) -> torch.Tensor:
        """Pooled features, float32 [n, features], to logits, float32 [n, classes]."""
        leaves = self.leaves(row)
        values = self.values.index_select(0, leaves.reshape(-1))
        if self.config.kind == "forest":
            shares = values.reshape(-1, self.config.num_trees, self.num_classes).mean(dim=1)
            return shares.clamp(min=SMALLEST_SHARE).log()
        # The trees of boosting come in turns, one for each class.
        turns = self.config.num_trees // self.num_classes
        return values.reshape(-1, turns, self.num_classes).sum(dim=1) + self.base

    def leaves(self, row: torch.Tensor) -> torch.Tensor:
        """The leaf that each image comes to in each tree: int64 [n, trees], rows of `values`."""
        node = self.root.long().expand(row.shape[0], -1)
        for _ in range(self.config.depth):
            flat = node.reshape(-1)
            feature = self.feature.index_select(0, flat).reshape_as(node).long()
            threshold = self.threshold.index_select(0, flat).reshape_as(node)
            is_less = row.gather(1, feature) < threshold
            left = self.left.index_select(0, flat).reshape_as(node)
            right = self.right.index_select(0, flat).reshape_as(node)
            node = torch.where(is_less, left, right).long()
        # A damaged tree may not have come to a leaf; it must not read what is no leaf's.
        return (node - (self.config.num_nodes - self.config.num_leaves)).clamp(min=0)
