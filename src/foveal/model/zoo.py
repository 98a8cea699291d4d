"""Names of networks: which there are, what is known of their weights, and the bare network of a name.

timm's whole zoo, and a closed table of the few that timm lacks. Nothing is registered with timm, so that its names stay
its own.
"""

import difflib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import nn

from foveal.errors import ConfigError
from foveal.model import alexnet, small_cnn
from foveal.model.config import Names, each_name

Library = Literal["timm", "torchvision", "foveal"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_BEYOND_TIMM: dict[str, tuple[Library, Callable[..., nn.Module]]] = {
    alexnet.NAME: ("torchvision", alexnet.AlexNet),
    small_cnn.NAME: ("foveal", small_cnn.SmallCnn),
}
_COMMON = {
    "num_classes": 1000,
    "mean": IMAGENET_MEAN,
    "std": IMAGENET_STD,
    "crop_pct": 0.875,
    "interpolation": "bilinear",
    "fixed_input_size": False,
}
# Torchvision has one set of weights for alexnet; the facts are those of its AlexNet_Weights.IMAGENET1K_V1, the tag and
# the licence what timm's zoo gives torchvision's weights.
_FACTS: dict[str, dict[str, Any]] = {
    alexnet.NAME: {
        **_COMMON,
        "architecture": alexnet.NAME,
        "tag": "tv_in1k",
        "url": "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        "input_size": (3, 224, 224),
        "min_input_size": (3, 63, 63),
        "first_conv": "features.0",
        "classifier": "classifier.6",
        "license": "bsd-3-clause",
    },
    small_cnn.NAME: {
        **_COMMON,
        "architecture": small_cnn.NAME,
        "input_size": (3, 64, 64),
        "min_input_size": (3, 8, 8),
        "first_conv": "blocks.0.conv",
        "classifier": "fc",
    },
}


def library_of(name: str) -> Library:
    """Which library a name is looked up in."""
    own = _BEYOND_TIMM.get(name.partition(".")[0])
    return own[0] if own else "timm"


def libraries_of(names: Names) -> Library | tuple[Library, ...]:
    """Which library a name is looked up in, or each of several names."""
    return library_of(names) if isinstance(names, str) else tuple(library_of(name) for name in names)


def check_name(name: str) -> None:
    """Refuse what is not a plain name of the zoo: no hub addresses, no paths, no unknown models.

    Raises:
        ConfigError: with the nearest names.
    """
    import timm

    base = name.partition(".")[0]
    if any(sign in name for sign in ":/\\") or not (base in _BEYOND_TIMM or timm.is_model(base)):
        base = name.rpartition(":")[2].rpartition("/")[2].partition(".")[0]
        near = difflib.get_close_matches(base, [*timm.list_models(), *_BEYOND_TIMM], n=5, cutoff=0.5)
        raise ConfigError(
            f"model.name: {name!r} is not a model of timm's zoo, nor alexnet or small_cnn"
            + (f"; near ones: {', '.join(near)}." if near else "."),
            fix="list them with `foveal models 'convnext*'`.",
        )


def pretrained_facts(name: str) -> dict[str, Any]:
    """What is known of a model's weights: size, normalisation, crop, interpolation, tag and licence.

    Raises:
        ConfigError: no such model, or no such tag of its weights.
    """
    import timm

    check_name(name)
    base, _, tag = name.partition(".")
    if base in _FACTS:
        if tag and tag != _FACTS[base].get("tag"):
            raise _no_such_tag(base, tag, str(_FACTS[base].get("tag", "")))
        return dict(_FACTS[base])
    try:
        found = timm.models.get_pretrained_cfg(name, allow_unregistered=True)
    except RuntimeError as error:
        tags = (known.partition(".")[2] for known in timm.list_models(f"{base}.*", pretrained=True))
        raise _no_such_tag(base, tag, ", ".join(tags)) from error
    facts: dict[str, Any] = found.to_dict() if found else {}
    return facts


def facts_of_each(names: Names) -> tuple[dict[str, Any], ...]:
    """What is known of the weights of one or several models, see `pretrained_facts`.

    Raises:
        ConfigError: what is wrong with any of the names, all at once.
    """
    facts: dict[str, dict[str, Any]] = {}
    errors = []
    for name in dict.fromkeys(each_name(names)):
        try:
            facts[name] = pretrained_facts(name)
        except ConfigError as error:
            errors.append(error)
    if len(errors) > 1:
        raise ConfigError(
            f"model.name: {len(errors)} of the {len(each_name(names))} networks are not there.",
            problems=[error.message for error in errors],
            fix=errors[0].fix,
        ) from errors[0]
    if errors:
        raise errors[0]
    return tuple(facts[name] for name in each_name(names))


@contextmanager
def size_explained(name: str, image_size: int) -> Iterator[None]:
    """Say for what a network has, in its own words, refused to be built.

    Raises:
        ConfigError: in place of what the network's code raised.
    """
    try:
        yield
    except (ArithmeticError, AssertionError, ValueError, RuntimeError, TypeError) as error:
        raise ConfigError(
            f"{name} cannot be built for images of {image_size} px: {str(error).rstrip('.')}.",
            fix="choose another data.image_size; many networks need more pixels, and many transformers a multiple of "
            "their patch size.",
        ) from error


def list_names(pattern: str) -> set[str]:
    """Names that a glob matches, with their tags where there are weights; the pattern may ask for tags."""
    import timm

    names = set(timm.list_models(pattern, pretrained=True)) | set(timm.list_models(f"{pattern}.*", pretrained=True))
    tagged = {name.partition(".")[0] for name in names}
    names |= {name for name in timm.list_models(pattern) if name not in tagged}
    for base, facts in _FACTS.items():
        full = f"{base}.{facts['tag']}" if facts.get("tag") else base
        if any(fnmatchcase(each, pattern) for each in (base, full)):
            names.add(full)
    return names


def create_net(
    name: str, *, num_classes: int | None = None, image_size: int | None = None, drop_rate: float = 0.0, **kwargs: Any
) -> nn.Module:
    """The bare network, from normalised pixels to logits, with random weights unless `kwargs` say otherwise.

    Args:
        name: with or without a tag.
        num_classes: outputs; 0 for none, None for as many as the published weights have.
        image_size: side of the square input in pixels, for networks that must be told; None for their own.
        drop_rate: what the network's own head drops while training.
        **kwargs: for timm's factory, such as pretrained=True.

    Raises:
        ConfigError: no such model.
    """
    import timm

    check_name(name)
    if own := _BEYOND_TIMM.get(name.partition(".")[0]):
        return own[1](1000 if num_classes is None else num_classes, drop_rate=drop_rate)
    if image_size is not None and pretrained_facts(name).get("fixed_input_size"):
        # Transformers with learnt positions must be told.
        kwargs["img_size"] = image_size
    net: nn.Module = timm.create_model(
        name, **{"pretrained": False, "num_classes": num_classes, "drop_rate": drop_rate, **kwargs}
    )
    return net


def _no_such_tag(base: str, tag: str, tags: str) -> ConfigError:
    return ConfigError(
        f"model.name: {base} has no weights with the tag {tag!r}" + (f"; there are: {tags}." if tags else "."),
        fix=f"choose one of these, or {base} alone for the usual ones." if tags else f"take {base} without a tag.",
    )
