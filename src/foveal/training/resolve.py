"""From the wishes of a configuration and the facts of data and machine to what will be done."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from foveal.data.batches import check_ranks
from foveal.errors import ConfigError
from foveal.machine import num_cpus, num_threads
from foveal.model.build import Architecture, build
from foveal.model.bundle import is_bundle, read_bundle
from foveal.model.config import Normalisation, each_name
from foveal.model.costs import depthwise_share
from foveal.model.devices import choose_device
from foveal.model.zoo import IMAGENET_MEAN, IMAGENET_STD, facts_of_each
from foveal.pixels.policy import Geometry
from foveal.training.batch_size import largest_batch_size
from foveal.training.config import Config, ResolvedConfig
from foveal.training.optim import auto_lr, auto_weight_decay, check_optim
from foveal.training.processes import place_told

STEPS_FROM_WEIGHTS = 1_500
STEPS_FROM_SCRATCH = 2_000
DEFAULT_CROP_FRACTION = 0.95
LARGEST_DEFAULT_SIDE_PX = 224
LARGEST_DEPTHWISE_SHARE = 0.2
"""Beyond it bfloat16 was slower on a CPU: mobilenetv3_small_100 and efficientnet_b0 were, convnext_tiny was not."""


@dataclass(frozen=True)
class Facts:
    """What `resolve` must know of the data and the machine.

    Attributes:
        data_format: what DATA was recognised as.
        num_train: training images, as far as known; an estimate before the split is drawn.
        num_samples: images in all splits.
        median_side_px: median of the images' shorter sides, boxes' where there are boxes.
        median_aspect: median of longer by shorter side.
    """

    data_format: Literal["folder", "split_folders", "csv", "parquet"]
    num_train: int
    num_samples: int
    median_side_px: int
    median_aspect: float


def resolve(config: Config, facts: Facts) -> ResolvedConfig:
    """Replace every "auto" by what suits the facts.

    Raises:
        ConfigError: the model or the device does not exist, or the device cannot compute in the precision, or the store
            was forced on and is too large for its cap.
    """
    check_optim(config.optim)
    weights = facts_of_each(config.model.name)
    starts_from_weights = set(config.model.starts) != {"none"}
    device = choose_device(config.train.device)
    batch_size = _batch_size(config, facts, device)
    _check_processes(config, device, num_images=min(batch_size * config.train.accumulate, max(1, facts.num_train)))
    data = _resolve_data(config, facts, weights)
    lr, weight_decay, step_epochs = config.optim.lr, config.optim.weight_decay, config.optim.step_epochs
    if lr == "auto":
        lr = auto_lr(config.optim, from_weights=starts_from_weights)
    if weight_decay == "auto":
        weight_decay = auto_weight_decay(config.optim)
    epochs = config.train.epochs
    if epochs == "auto":
        steps = STEPS_FROM_WEIGHTS if starts_from_weights else STEPS_FROM_SCRATCH
        num_images = max(1, facts.num_train * config.augment.repeats)
        epochs = min(40, max(5, math.ceil(steps * batch_size * config.train.accumulate / num_images)))
    if step_epochs == "auto":
        step_epochs = max(1.0, int(epochs) / 3.0)
    precision = config.train.precision
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError(
            "train.precision=fp16: a CPU does not train in 16-bit floating point with scaled gradients.",
            fix="choose train.precision=bf16 or fp32, or train.device=cuda.",
        )
    tree = config.model_dump()
    tree["data"] |= data
    tree["optim"] |= {"lr": lr, "weight_decay": weight_decay, "step_epochs": step_epochs}
    tree["train"] |= {"epochs": epochs, "batch_size": batch_size, "device": device.type}
    if precision == "auto":
        tree["train"]["precision"] = "fp32"
        if _has_fast_bfloat16(device) and _gains_by_bfloat16(ResolvedConfig.model_validate(tree), device):
            tree["train"]["precision"] = "bf16"
    resolved = ResolvedConfig.model_validate(tree)
    if config.train.batch_size == "largest":
        with torch.random.fork_rng(devices=[]):
            classifier = build(architecture_of(resolved, num_classes=2))
        found = largest_batch_size(classifier, resolved, facts.num_train)
        # All that depends on the batch once more, such as the epochs.
        train = config.train.model_copy(update={"batch_size": found})
        return resolve(config.model_copy(update={"train": train}), facts)
    return resolved


def geometry_of(config: ResolvedConfig) -> Geometry:
    """The spatial preprocessing that a configuration asks for."""
    size_px = config.data.image_size
    # Only a cut needs something around the square; padded and squeezed images already are the square.
    store_px = math.ceil(size_px / config.data.crop_fraction) if config.data.fit == "crop" else size_px
    return Geometry(
        size_px=size_px,
        store_px=store_px,
        fit=config.data.fit,
        interpolation=config.data.interpolation,
        background=config.data.background,
    )


def architecture_of(config: ResolvedConfig, num_classes: int) -> Architecture:
    """The network that a configuration asks for."""
    first, *further = _normalisations(config)
    names = tuple(name.partition(".")[0] for name in config.model.names)
    return Architecture(
        name=names if len(names) > 1 else names[0],
        num_classes=num_classes,
        image_size=config.data.image_size,
        head=config.model.head,
        mean=first.mean,
        std=first.std,
        further_normalisations=tuple(further) if any(each != first for each in further) else (),
    )


def _normalisations(config: ResolvedConfig) -> tuple[Normalisation, ...]:
    """What each backbone's starting weights were trained with; ImageNet's where nobody says."""
    names, weights = config.model.names, config.model.weights
    if isinstance(weights, str) and len(names) > 1 and (joint := _of_bundle(weights)):
        # One bundle for all: that of a joint network, if it fits at all.
        return joint if len(joint) == len(names) else joint[:1] * len(names)
    usual = Normalisation(mean=IMAGENET_MEAN, std=IMAGENET_STD)
    found = []
    for facts, start in zip(facts_of_each(config.model.name), config.model.starts, strict=True):
        if start == "pretrained":
            found.append(Normalisation(mean=facts.get("mean", IMAGENET_MEAN), std=facts.get("std", IMAGENET_STD)))
        else:
            found.append(next(iter(_of_bundle(start)), usual))
    return tuple(found)


def _of_bundle(start: str) -> tuple[Normalisation, ...]:
    """What each backbone of a bundle wants; empty where the weights are none of a bundle."""
    path = Path(start).expanduser()
    if start in {"pretrained", "none"} or not is_bundle(path):
        return ()
    spec = read_bundle(path).spec
    first = Normalisation(mean=spec.preprocessing.mean, std=spec.preprocessing.std)
    further = spec.architecture.further_normalisations
    return (first, *(further or (first,) * (len(each_name(spec.architecture.name)) - 1)))


def store_bytes(num_samples: int, median_aspect: float, store_px: int) -> int:
    """Estimated size of a store, in bytes."""
    return int(num_samples * store_px * store_px * 3 * min(4.0, median_aspect))


def _own_side(config: Config, weights: Sequence[dict[str, Any]]) -> int | None:
    """The side that the networks want, by what is known of them; None where any will do.

    Raises:
        ConfigError: several are fixed to sides of their own, which differ.
    """
    sides = [int(each.get("input_size", (3, LARGEST_DEFAULT_SIDE_PX, 0))[1]) for each in weights]
    told = {
        name: side
        for name, side, each in zip(config.model.names, sides, weights, strict=True)
        if each.get("fixed_input_size")
    }
    if len(set(told.values())) > 1:
        wanted = ", ".join(f"{name} {side} px" for name, side in told.items())
        raise ConfigError(
            f"data.image_size=auto: the backbones want images of different sides: {wanted}.",
            fix="set data.image_size; transformers take multiples of their patch size.",
        )
    if told:
        return next(iter(told.values()))
    return sides[0] if config.model.starts[0] == "pretrained" else None


def _resolve_data(config: Config, facts: Facts, of_each: Sequence[dict[str, Any]]) -> dict[str, Any]:
    data = config.data
    size_px = data.image_size
    if size_px == "auto":
        size_px = _own_side(config, of_each) or _fitting_side(facts.median_side_px)
    # All backbones see the same square, which is made as the first of them wants it.
    weights, pretrained = of_each[0], config.model.starts[0] == "pretrained"
    own_crop = float(weights.get("crop_pct") or DEFAULT_CROP_FRACTION) if pretrained else DEFAULT_CROP_FRACTION
    crop = max(0.51, own_crop) if data.crop_fraction == "auto" else data.crop_fraction
    filter_name = data.interpolation
    if filter_name == "auto":
        own = str(weights.get("interpolation", "bicubic")) if pretrained else "bicubic"
        filter_name = own if own in {"bilinear", "bicubic", "lanczos"} else "bicubic"  # type: ignore[assignment]
    store_px = math.ceil(size_px / crop) if data.fit == "crop" else size_px
    needed, cap = store_bytes(facts.num_samples, facts.median_aspect, store_px), int(data.store_cap_gib * (1 << 30))
    if data.store == "on" and needed > cap:
        raise ConfigError(
            f"data.store=on: the decoded images need about {needed / (1 << 30):.1f} GiB, and data.store_cap_gib is "
            f"{data.store_cap_gib:g}.",
            fix="raise data.store_cap_gib, lower data.image_size, or leave data.store=auto to decode on the fly.",
        )
    return {
        "format": facts.data_format if data.format == "auto" else data.format,
        "image_size": size_px,
        "crop_fraction": crop,
        "interpolation": filter_name,
        "num_workers": num_threads(data.num_workers),
        "store": data.store if data.store != "auto" else "on" if needed <= cap else "off",
    }


def _fitting_side(median_side_px: int) -> int:
    """The multiple of 32 nearest to the images' own size, from 32 up to the usual 224."""
    return min(LARGEST_DEFAULT_SIDE_PX, max(32, 32 * round(median_side_px / 32)))


def _batch_size(config: Config, facts: Facts, device: torch.device) -> int:
    if isinstance(config.train.batch_size, int):
        return config.train.batch_size
    usual = 64 if device.type == "cpu" else 128
    # At least twenty steps an epoch, so that a small set is not passed over in three.
    return max(8, min(usual, 8 * (facts.num_train // 160)))


def _check_processes(config: Config, device: torch.device, *, num_images: int) -> None:
    """Refuse more processes than this machine has devices for, or a step has images for.

    Raises:
        ConfigError: there are too many.
    """
    devices, num_ranks = config.train.devices, config.train.devices * config.train.nodes
    at_hand = {"cuda": torch.cuda.device_count(), "cpu": max(2, num_cpus())}.get(device.type, 1)
    # Processes that torchrun or SLURM has started may see a part of the machine only.
    if place_told() is None and devices > at_hand:
        what = "processors for as many processes" if device.type == "cpu" else "GPUs"
        raise ConfigError(
            f"train.devices={devices}: this machine does not have {what}.",
            fix=f"set train.devices to {at_hand} or less.",
        )
    check_ranks(num_ranks, num_images)


def _gains_by_bfloat16(config: ResolvedConfig, device: torch.device) -> bool:
    """Whether the network is faster in bfloat16: on a GPU always, on a CPU unless much of it is depthwise."""
    if device.type != "cpu":
        return True
    with torch.random.fork_rng(devices=[]):
        classifier = build(architecture_of(config, num_classes=2))
    return depthwise_share(classifier) < LARGEST_DEPTHWISE_SHARE


def _has_fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is computed in hardware: on a CPU that takes AMX, without which it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability()[0] >= 8
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return device.type == "cpu" and bool(capabilities.get("amx_bf16"))
