"""A trained head that learns further classes: the rows of the old ones are kept bit for bit, new ones start small."""

from collections.abc import Mapping, Sequence

import torch

from foveal.errors import ConfigError
from foveal.model.build import Classifier, build
from foveal.model.bundle import Bundle

NEW_ROW_STD = 0.01
"""Standard deviation of a new class's weights: beside the trained rows they say next to nothing at first, and differ
from each other."""


def can_grow(old_names: Sequence[str], class_names: Sequence[str]) -> bool:
    """Whether all old classes are among the new ones, and there are more of these."""
    return set(old_names) < set(class_names)


def places_of(old_names: Sequence[str], class_names: Sequence[str]) -> torch.Tensor:
    """Where each old class stands among the new ones: int64 [old classes].

    Both are in natural order, so old rows move apart where a new name comes between two old ones.
    """
    place = {name: number for number, name in enumerate(class_names)}
    return torch.tensor([place[name] for name in old_names], dtype=torch.int64)


def grown_tensors(
    classifier: Classifier, state: Mapping[str, torch.Tensor], old_names: Sequence[str], class_names: Sequence[str]
) -> dict[str, torch.Tensor]:
    """The last layer for all classes: old rows at their new places, the others drawn small, biases of these 0.

    Args:
        classifier: built for all classes; it stays as it is.
        state: the old network's tensors by name, of the same architecture but for the classes.
        old_names: the old classes in order.
        class_names: all classes in order, the old ones among them.

    Returns:
        A tensor for each name of `Classifier.class_tensors`; empty where the last layer has no row for each class, or
        the old network had another one.
    """
    own, places = classifier.net.state_dict(), places_of(old_names, class_names)
    grown: dict[str, torch.Tensor] = {}
    if state.keys() != own.keys():
        return {}
    for key in sorted(classifier.class_tensors()):
        old, new = state[key], own[key]
        if old.dim() == 0 or old.shape[1:] != new.shape[1:]:
            return {}
        if old.shape == new.shape and len(new) != len(class_names):
            grown[key] = old.to(new.dtype)  # a layer before the last one
            continue
        if len(old) != len(old_names) or len(new) != len(class_names):
            return {}
        rows = torch.zeros_like(new)
        if rows.dim() > 1:
            rows.normal_(std=NEW_ROW_STD)
        rows[places] = old.to(rows.dtype)
        grown[key] = rows
    return grown


def check_growable(bundle: Bundle, class_names: Sequence[str]) -> None:
    """Refuse a trained network whose head cannot be given further classes, before any work.

    Raises:
        ConfigError: it has neighbours or trees for a head, or no row for each class.
    """
    spec = bundle.spec
    if spec.architecture.classical is not None:
        raise ConfigError(
            f"The head of {bundle.path} is {spec.architecture.classical.kind}, which cannot be trained further.",
            fix="make the probe again with the images of all classes: foveal probe DATA.",
        )
    old = bundle.build()
    with torch.random.fork_rng(devices=[]):
        larger = build(old.architecture.model_copy(update={"num_classes": len(class_names)}))
        grown = grown_tensors(larger, old.net.state_dict(), spec.class_names, class_names)
    if not grown:
        raise ConfigError(
            f"The last layer of {old.architecture.in_words} has no row of weights for each class, so it cannot be "
            "given further ones.",
            fix="train anew with the images of all classes, from model.weights=PATH of the old model.",
        )
