"""Fitted trees of scikit-learn and XGBoost as the flat arrays of `foveal.model.classical.TreesHead`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from foveal.model.config import ClassicalHeadConfig

_TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class Tree:
    """One tree, its root first.

    Attributes:
        feature: int64 [nodes], which feature is asked; of no meaning in leaves.
        threshold: float32 [nodes]; an image goes to the left where its feature is less.
        left: int64 [nodes], below 0 in leaves.
        right: int64 [nodes], below 0 in leaves.
        values: float32 [nodes, m], what a leaf says.
    """

    feature: NDArray[np.int64]
    threshold: NDArray[np.float32]
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    values: NDArray[np.float32]


def trees_of_forest(forest: Any, num_classes: int) -> list[Tree]:
    """The trees of a fitted `RandomForestClassifier`; classes that it has not met get no share."""
    found = []
    for estimator in forest.estimators_:
        tree = estimator.tree_
        shares = np.zeros((tree.node_count, num_classes), dtype=np.float32)
        shares[:, forest.classes_.astype(np.int64)] = tree.value[:, 0, :]
        found.append(
            Tree(
                tree.feature.astype(np.int64),
                less_than(tree.threshold),
                tree.children_left.astype(np.int64),
                tree.children_right.astype(np.int64),
                shares,
            )
        )
    return found


def less_than(thresholds: NDArray[np.float64]) -> NDArray[np.float32]:
    """For `x <= t` with float32 x, the float32 thresholds u for which `x < u` says the same.

    Args:
        thresholds: float64 [n], t.
    """
    rounded = thresholds.astype(np.float32)
    below = np.where(rounded > thresholds, np.nextafter(rounded, np.float32(-np.inf)), rounded)
    above = np.nextafter(below, np.float32(np.inf))
    # Numbers nearer to 0 than this are taken for 0 by many processors; features never are that small.
    return np.where((above > 0) & (above < _TINY), _TINY, above).astype(np.float32)


def trees_of_booster(booster: Any) -> tuple[list[Tree], NDArray[np.float32]]:
    """The trees of a `multi:softprob` booster of XGBoost, in turns by class, and the logits that they start from."""
    learner = json.loads(bytes(booster.save_raw("json")))["learner"]
    model = learner["gradient_booster"]["model"]
    num_classes = int(learner["learner_model_param"]["num_class"])
    base = np.atleast_1d(np.array(json.loads(learner["learner_model_param"]["base_score"]), dtype=np.float32))
    # In order of the rounds, and within each of the classes.
    places = np.argsort(np.array(model["tree_info"]) + num_classes * _rounds(model["tree_info"]), kind="stable")
    trees = [_tree_of_booster(model["trees"][place]) for place in places.tolist()]
    return trees, np.broadcast_to(base, (num_classes,)).astype(np.float32)


def _rounds(classes: Sequence[int]) -> NDArray[np.int64]:
    """Which tree of its class each is."""
    seen: dict[int, int] = {}
    found = []
    for number in classes:
        found.append(seen.get(number, 0))
        seen[number] = found[-1] + 1
    return np.array(found, dtype=np.int64)


def _tree_of_booster(tree: dict[str, Any]) -> Tree:
    conditions = np.array(tree["split_conditions"], dtype=np.float32)
    return Tree(
        np.array(tree["split_indices"], dtype=np.int64),
        conditions,
        np.array(tree["left_children"], dtype=np.int64),
        np.array(tree["right_children"], dtype=np.int64),
        conditions[:, None],
    )


def flattened(
    kind: str, trees: Sequence[Tree], base: NDArray[np.float32]
) -> tuple[ClassicalHeadConfig, dict[str, torch.Tensor]]:
    """Trees as one row of nodes, leaves last; in both parts, tree by tree.

    Args:
        kind: forest or boosting.
        trees: at least one.
        base: float32 [classes], what boosting starts from.

    Returns:
        The sizes, and the tensors of the head.
    """
    ends = np.cumsum([0, *(len(tree.left) for tree in trees)])
    left, right = (
        np.concatenate([np.where(part < 0, -1, part + start) for part, start in zip(parts, ends[:-1], strict=True)])
        for parts in ([tree.left for tree in trees], [tree.right for tree in trees])
    )
    is_leaf = left < 0
    order = np.argsort(is_leaf, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    own = np.arange(len(order))
    left, right = (np.where(is_leaf, own, place[children])[order] for children in (left, right))
    left[is_leaf[order]] = right[is_leaf[order]] = own[is_leaf[order]]
    feature = np.where(is_leaf, 0, np.concatenate([tree.feature for tree in trees]))[order]
    threshold = np.where(is_leaf, 0.0, np.concatenate([tree.threshold for tree in trees]))[order]
    values = np.concatenate([tree.values for tree in trees])[order][is_leaf[order]]
    config = ClassicalHeadConfig(
        kind=kind,  # type: ignore[arg-type]
        num_trees=len(trees),
        num_nodes=len(order),
        num_leaves=int(is_leaf.sum()),
        depth=max(_depth(tree) for tree in trees),
    )
    tensors = {
        "root": torch.from_numpy(place[ends[:-1]].astype(np.int32)),
        "feature": torch.from_numpy(feature.astype(np.int32)),
        "threshold": torch.from_numpy(threshold.astype(np.float32)),
        "left": torch.from_numpy(left.astype(np.int32)),
        "right": torch.from_numpy(right.astype(np.int32)),
        "values": torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)),
        "base": torch.from_numpy(base.copy()),
    }
    return config, tensors


def _depth(tree: Tree) -> int:
    """Steps from the root to the farthest leaf."""
    depth, level = 0, np.array([0])
    while True:
        inner = level[tree.left[level] >= 0]
        if not len(inner):
            return depth
        level = np.concatenate([tree.left[inner], tree.right[inner]])
        depth += 1
