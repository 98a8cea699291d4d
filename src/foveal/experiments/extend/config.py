"""The configuration of an extension: the old model's network and preprocessing, and what is asked for on top."""

import math
from typing import Any

from pydantic import BaseModel

from foveal.config import load
from foveal.errors import ArtifactError, ConfigError
from foveal.model.bundle import Bundle
from foveal.run_folder import RunFolder, is_run_folder
from foveal.training.config import Config, ResolvedConfig
from foveal.training.resolve import geometry_of

_OF_THE_DATA = ("val_fraction", "test_fraction", "leaks")
"""Keys of `data` that an extension inherits from the run; which files and columns it reads are its own."""
_FOUND_AGAIN = {"optim": ("lr", "step_epochs"), "train": ("epochs", "batch_size", "precision", "device")}
"""What was found for the old data, and is found anew for these."""
_OF_THE_MACHINE = ("devices", "nodes", "distillation")


def extended_config(bundle: Bundle, chosen: Config, *, distill: float) -> Config:
    """What an extension trains with.

    Args:
        bundle: the old model; the configuration of its run counts where it lies in one.
        chosen: what is asked for on top.
        distill: weight of the old model's answers; 0 for none.

    Raises:
        ConfigError: another network or another preprocessing is asked for than the old model's.
    """
    run = RunFolder(bundle.path.parent)
    held: dict[str, Any] = {}
    if is_run_folder(run.path):
        config = load(ResolvedConfig, run.config)
        held = config.model_dump(mode="json")
        if config.augment.albumentations is not None and (own := run.pipeline(config.augment.albumentations)).is_file():
            held["augment"]["albumentations"] = str(own.resolve())
    for section, keys in _FOUND_AGAIN.items():
        for key in keys:
            held.get(section, {}).pop(key, None)
    for key in _OF_THE_MACHINE:
        held.get("train", {}).pop(key, None)
    fixed = _fixed(bundle)
    of_data: dict[str, Any] = {key: held["data"][key] for key in _OF_THE_DATA} if held else {}
    kept: dict[str, Any] = {
        key: held[key] for key in ("seed", "split", "audit", "augment", "optim", "train") if key in held
    }
    freezing = {key: value for key, value in held.get("model", {}).items() if key in ("freeze", "unfreeze")}
    tree: dict[str, Any] = {**kept, "data": {**of_data, **fixed["data"]}, "model": {**freezing, **fixed["model"]}}
    _refuse_others(chosen, fixed, bundle)
    _lay_over(tree, chosen)
    for section, values in fixed.items():
        tree[section] |= values
    if distill:
        teaching = {"teacher": str(bundle.path.resolve()), "weight": distill}
        train = tree.setdefault("train", {})
        train["distillation"] = {**train.get("distillation", {}), **teaching}
    return load(Config, None, (), base=tree)


def check_geometry(config: ResolvedConfig, bundle: Bundle) -> None:
    """Refuse to go on where the network would see other squares than it was trained on.

    Raises:
        ArtifactError: this version cannot make them.
    """
    if geometry_of(config) != bundle.spec.preprocessing.geometry():
        raise ArtifactError(
            f"The preprocessing of {bundle.path} cannot be expressed as a configuration of this foveal: "
            f"{bundle.spec.preprocessing.geometry()}.",
            fix=f"use the foveal that wrote it, {bundle.spec.foveal_version}.",
        )


def _fixed(bundle: Bundle) -> dict[str, dict[str, Any]]:
    """Keys that the old model decides."""
    spec = bundle.spec
    seen, architecture = spec.preprocessing, spec.architecture
    name = architecture.name if isinstance(architecture.name, str) else list(architecture.name)
    return {
        "data": {
            "image_size": seen.size_px,
            "fit": seen.fit,
            "crop_fraction": _crop_fraction(seen.size_px, seen.store_px),
            "interpolation": seen.interpolation,
            "background": list(seen.background),
            "box_margin": spec.training_data.box_margin,
            "ordered": spec.ordered,
        },
        "model": {
            "name": name,
            "weights": str(bundle.path.resolve()),
            "head": architecture.head.model_dump(mode="json"),
        },
    }


def _crop_fraction(size_px: int, store_px: int) -> float:
    """The share of the stored side that gives exactly this stored side again, whatever is rounded on the way."""
    share = size_px / store_px
    while math.ceil(size_px / share) > store_px:
        share = math.nextafter(share, 2.0)
    return min(1.0, share)


def _refuse_others(chosen: Config, fixed: dict[str, dict[str, Any]], bundle: Bundle) -> None:
    problems = []
    for section, values in fixed.items():
        given = getattr(chosen, section).model_dump(mode="json", exclude_unset=True)
        problems += [
            f"{section}.{key}: the model has {values[key]!r}, and {value!r} is asked for"
            for key, value in given.items()
            if key in values and value not in ("auto", values[key])
        ]
    if problems:
        raise ConfigError(
            f"An extension keeps the network and the preprocessing of {bundle.path}.",
            problems=problems,
            fix="leave these keys out; to change them, train anew with the images of all classes.",
        )


def _lay_over(tree: dict[str, Any], chosen: BaseModel) -> None:
    """Replace what is asked for, section by section; a value that is a mapping is replaced whole."""
    for key in chosen.model_fields_set:
        value = getattr(chosen, key)
        if isinstance(value, BaseModel):
            below = tree.setdefault(key, {})
            _lay_over(below, value)
        else:
            tree[key] = chosen.model_dump(mode="json", include={key})[key]
