"""Writing the bundle of several networks that vote: copies of theirs in one folder, which replaces another at once."""

import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from foveal.errors import ArtifactError
from foveal.files import atomic_writer, fsync_folder, natural_key, sha256_bytes, sha256_file, write_json
from foveal.model.bundle import Bundle, EnsembleBundle, read_bundle, write_bundle
from foveal.model.bundle_spec import (
    BUNDLE_FILE,
    FORMAT_VERSION,
    WEIGHTS_FILE,
    EnsembleSpec,
    MemberSpec,
    TrainingDataSpec,
    WeightsSpec,
    member_folder,
)
from foveal.model.voting import Vote
from foveal.version import __version__

if TYPE_CHECKING:
    import torch

    from foveal.model.build import Classifier

_OF_A_BUNDLE = {BUNDLE_FILE, WEIGHTS_FILE, "members"}
_PROBE_IMAGES = 4


def write_ensemble(
    folder: Path,
    members: Sequence[Bundle],
    names: Sequence[str],
    *,
    vote: Vote,
    weights: Sequence[float],
    class_names: Sequence[str] | None = None,
) -> EnsembleBundle:
    """Copy bundles into one that votes; what it comes to, temperature and metrics, follows with `update_bundle`.

    An earlier bundle in the folder is replaced by a renaming when the new one is whole, so that a process that is
    killed leaves the old one, the new one, or for a moment none; never a mixture.

    Args:
        folder: where to; made where it is missing.
        members: bundles that know the same classes.
        names: what each is called.
        vote: how they come to one answer.
        weights: a share for each, adding up to 1.
        class_names: the classes in order, that of the first member if not given; the outputs of members that have
            another order are put into this one in their copies.

    Raises:
        ArtifactError: the outputs of a member cannot be reordered, or the folder holds other files.
    """
    first = members[0].spec
    ordered_names = first.class_names if class_names is None else tuple(class_names)
    staging = _staging(folder)
    try:
        for number, member in enumerate(members):
            _copy(member, staging / member_folder(number), ordered_names)
        spec = EnsembleSpec(
            format_version=FORMAT_VERSION,
            foveal_version=__version__,
            class_names=ordered_names,
            temperature=1.0,
            ordered=first.ordered,
            training_data=_training_data(members),
            weights=WeightsSpec(
                source="ensemble", licence="; ".join(dict.fromkeys(each.spec.weights.licence for each in members))
            ),
            files={
                f"{member_folder(number)}/{name}": sha256_file(staging / member_folder(number) / name)
                for number in range(len(members))
                for name in (BUNDLE_FILE, WEIGHTS_FILE)
            },
            vote=vote,
            members=tuple(MemberSpec(name=name, weight=weight) for name, weight in zip(names, weights, strict=True)),
        )
        write_json(staging / BUNDLE_FILE, spec.model_dump(mode="json"))
        _put_in_place(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return EnsembleBundle(folder, spec, tuple(read_bundle(folder / member_folder(n)) for n in range(len(members))))


def write_single(folder: Path, member: Bundle, class_names: Sequence[str]) -> Bundle:
    """Copy the bundle of one network, where a vote has come to that one alone; see `write_ensemble`.

    Raises:
        ArtifactError: its outputs cannot be reordered, or the folder holds other files.
    """
    staging = _staging(folder)
    try:
        _copy(member, staging, tuple(class_names))
        _put_in_place(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return read_bundle(folder)


def reordered_state(bundle: Bundle, class_names: Sequence[str]) -> "dict[str, torch.Tensor]":
    """The weights of a bundle with its outputs in another order of the same classes.

    Only a plain last layer can be put into another order: its rows are. That the logits are the same ones, in the new
    order, is tried on a few random images.

    Args:
        bundle: of one network.
        class_names: its classes in the order that is wanted.

    Raises:
        ArtifactError: the last layer is no plain linear one.
    """
    import torch

    classifier, state = bundle.build(), bundle.state()
    places = torch.tensor([bundle.spec.class_names.index(name) for name in class_names])
    is_classical = bundle.spec.architecture.classical is not None
    layer = None if is_classical else _last_layer(classifier, len(class_names))
    if layer is not None:
        for tensor in (f"{layer}.weight", f"{layer}.bias"):
            if tensor in state:
                state[tensor] = state[tensor][places].clone()
        size_px = bundle.spec.preprocessing.size_px
        images = torch.rand(_PROBE_IMAGES, 3, size_px, size_px, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            expected = classifier(images)[:, places]
            classifier.net.load_state_dict(state, strict=True)
            if torch.allclose(classifier(images), expected, rtol=1e-4, atol=1e-5):
                return state
    raise ArtifactError(
        f"{bundle.path} knows the classes in another order than the first member, and its outputs cannot be put into "
        "that order: its last layer is no plain linear one.",
        problems=[f"it has {', '.join(bundle.spec.class_names)}", f"wanted is {', '.join(class_names)}"],
        fix="train it anew with the classes in that order, or leave it out.",
    )


def _last_layer(classifier: "Classifier", num_classes: int) -> str | None:
    """The name of the linear layer whose outputs are the logits; None where there is none."""
    from torch import nn

    get = getattr(classifier.net, "get_classifier", None)
    found = get() if get is not None else None
    candidates = [found] if isinstance(found, nn.Module) else []
    candidates += [module for module in reversed(list(classifier.net.modules())) if isinstance(module, nn.Linear)]
    for candidate in candidates:
        last = [part for part in candidate.modules() if isinstance(part, nn.Linear)][-1:]
        if last and last[0].out_features == num_classes:
            names: dict[nn.Module, str] = {module: name for name, module in classifier.net.named_modules()}
            return names[last[0]]
    return None


def _copy(member: Bundle, place: Path, class_names: tuple[str, ...]) -> None:
    """A member's bundle in another folder, with its outputs in the order of `class_names`."""
    place.mkdir(parents=True, exist_ok=True)
    if member.spec.class_names != class_names:
        state = reordered_state(member, class_names)
        content = member.spec.model_dump(exclude={"format_version", "foveal_version", "files"})
        write_bundle(place, {**content, "class_names": class_names}, state)
        return
    for name in (WEIGHTS_FILE, BUNDLE_FILE):
        with atomic_writer(place / name) as stream, (member.path / name).open("rb") as original:
            shutil.copyfileobj(original, stream)


def _training_data(members: Sequence[Bundle]) -> TrainingDataSpec:
    """What all have seen; where that is not the same, a fingerprint of the fingerprints."""
    found = {member.spec.training_data.fingerprint: member.spec.training_data for member in members}
    if len(found) == 1:
        return next(iter(found.values()))
    return TrainingDataSpec(fingerprint=sha256_bytes("".join(sorted(found)).encode()), num_images={})


def _staging(folder: Path) -> Path:
    """A folder beside the one that it will become; what killed processes left of such is removed.

    Raises:
        ArtifactError: the folder holds what is no bundle's.
    """
    foreign = sorted((path.name for path in folder.iterdir()), key=natural_key) if folder.is_dir() else []
    foreign = [name for name in foreign if name not in _OF_A_BUNDLE and not name.endswith(".partial")]
    if foreign:
        raise ArtifactError(
            f"{folder} holds files that are no bundle's: {', '.join(foreign[:5])}.", fix="choose another folder."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in (*folder.parent.glob(f".{folder.name}.*.partial"), *folder.parent.glob(f".{folder.name}.*.old")):
        shutil.rmtree(left, ignore_errors=True)
    staging = folder.parent / f".{folder.name}.{secrets.token_hex(6)}.partial"
    staging.mkdir()
    return staging


def _put_in_place(staging: Path, folder: Path) -> None:
    old = staging.with_suffix(".old")
    if folder.is_dir():
        folder.rename(old)
    staging.rename(folder)
    fsync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)
