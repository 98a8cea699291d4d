"""The bundle: the deployable folder of a classifier. Data only, hashed, in a closed schema; nothing executable.

```
bundle/                                          bundle/            of an ensemble
  bundle.json         architecture, classes,       bundle.json      vote, weights, temperature, facts
                      preprocessing, temperature   members/0/...    a bundle of one network
  model.safetensors   the weights                  members/1/...
```
bundle.json holds the sha256 of every other file.

This module imports no torch until weights are asked for, so that a server can read a bundle without it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from foveal.errors import ArtifactError, ConfigError, FovealError
from foveal.files import atomic_writer, read_json, sha256_file, write_json
from foveal.model.bundle_spec import (
    BUNDLE_FILE,
    FORMAT_VERSION,
    WEIGHTS_FILE,
    ArchitectureSpec,
    BundleSpec,
    EnsembleSpec,
    member_folder,
)
from foveal.model.config import in_words
from foveal.version import __version__

if TYPE_CHECKING:
    import torch

    from foveal.model.build import Classifier

__all__ = [
    "BUNDLE_FILE",
    "WEIGHTS_FILE",
    "ArchitectureSpec",
    "Bundle",
    "BundleSpec",
    "EnsembleBundle",
    "find_bundle",
    "is_bundle",
    "open_bundle",
    "read_bundle",
    "update_bundle",
    "write_bundle",
]

SpecT = TypeVar("SpecT", BundleSpec, EnsembleSpec)


@dataclass(frozen=True)
class Bundle:
    """A bundle that was checked: the hashes are right and the schema is known."""

    path: Path
    spec: BundleSpec

    def state(self) -> dict[str, "torch.Tensor"]:
        """The weights by name.

        Raises:
            ArtifactError: the file is not whole.
        """
        from foveal.model.tensors import read_tensors

        return read_tensors(self.path / WEIGHTS_FILE)

    def build(self) -> "Classifier":
        """The classifier with its weights, on the CPU, in evaluation mode.

        Raises:
            ArtifactError: weights and architecture do not fit, or the zoo does not know the architecture.
        """
        from foveal.model.build import Architecture, build
        from foveal.model.zoo import libraries_of

        found = libraries_of(self.spec.architecture.name)
        if found != self.spec.architecture.library:
            raise ArtifactError(
                f"The bundle {self.path} wants {in_words(self.spec.architecture.name)} of "
                f"{in_words(self.spec.architecture.library)}, and this foveal has one of {in_words(found)}, which is "
                "another network.",
                fix=f"use the foveal that wrote it, {self.spec.foveal_version}.",
            )
        preprocessing = self.spec.preprocessing
        architecture = Architecture(
            name=self.spec.architecture.name,
            num_classes=len(self.spec.class_names),
            image_size=preprocessing.size_px,
            head=self.spec.architecture.head,
            classical=self.spec.architecture.classical,
            mean=preprocessing.mean,
            std=preprocessing.std,
            further_normalisations=self.spec.architecture.further_normalisations,
        )
        try:
            classifier = build(architecture)
        except ConfigError as error:
            raise ArtifactError(
                f"The network of {self.path} cannot be built with the timm that is installed. {error.message}",
                fix=f"pip install --upgrade timm; the bundle was written by foveal {self.spec.foveal_version}.",
            ) from error
        try:
            classifier.net.load_state_dict(self.state(), strict=True)
        except RuntimeError as error:
            raise ArtifactError(
                f"The weights in {self.path} do not fit {in_words(self.spec.architecture.name)}: {error}.",
                fix="the bundle is inconsistent; export it again from its run.",
            ) from error
        return classifier.eval()


@dataclass(frozen=True)
class EnsembleBundle:
    """Several bundles that vote, checked like one; its members know the same classes in the same order."""

    path: Path
    spec: EnsembleSpec
    members: tuple[Bundle, ...]


def is_bundle(path: Path) -> bool:
    """Whether `path` is a bundle, or a run that holds one."""
    return any((folder / BUNDLE_FILE).is_file() for folder in (path, path / "bundle"))


def find_bundle(path: Path) -> Path:
    """The bundle's folder, given it or the run that holds it.

    Raises:
        ArtifactError: there is none.
    """
    for folder in (path, path / "bundle"):
        if (folder / BUNDLE_FILE).is_file():
            return folder
    raise ArtifactError(
        f"{path} is neither a bundle nor a run that has one: there is no {BUNDLE_FILE}.",
        fix="give the folder that `foveal train --out` wrote, or its bundle/ folder.",
    )


def open_bundle(path: Path) -> Bundle | EnsembleBundle:
    """Read and check a bundle of any kind: schema, format version, and the SHA-256 of every file.

    Raises:
        ArtifactError: anything is missing, damaged, changed, newer than this foveal, or outside of the schema.
    """
    folder = find_bundle(path)
    content = _content(folder)
    if "members" not in content:
        spec = _checked(folder, BundleSpec, content)
        return Bundle(folder, spec)
    ensemble = _checked(folder, EnsembleSpec, content)
    members = tuple(_read_member(folder, number) for number in range(len(ensemble.members)))
    if any(member.spec.class_names != ensemble.class_names for member in members):
        raise ArtifactError(
            f"The members of {folder} do not know the same classes in the same order.",
            fix="the bundle is inconsistent; make it again with foveal ensemble.",
        )
    return EnsembleBundle(folder, ensemble, members)


def _read_member(folder: Path, number: int) -> Bundle:
    place = folder / member_folder(number)
    content = _content(place)
    if "members" in content:
        raise ArtifactError(
            f"A member of the ensemble {folder} is an ensemble itself: {member_folder(number)}.",
            fix="make it again from single networks with foveal ensemble.",
        )
    return Bundle(place, _checked(place, BundleSpec, content))


def read_bundle(path: Path) -> Bundle:
    """Read and check the bundle of one network, see `open_bundle`.

    Raises:
        ArtifactError: as `open_bundle`; or it is an ensemble.
    """
    folder = find_bundle(path)
    content = _content(folder)
    if "members" in content:
        raise ArtifactError(
            f"{path} is an ensemble, and one network is wanted here.",
            fix=f"give one of its members, such as {folder / member_folder(0)}.",
        )
    return Bundle(folder, _checked(folder, BundleSpec, content))


def _content(folder: Path) -> dict[str, Any]:
    """What bundle.json holds, of a version that is known."""
    try:
        content = read_json(folder / BUNDLE_FILE)
    except FovealError as error:
        raise ArtifactError(error.message, fix="copy the bundle again.") from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise ArtifactError(
            f"{folder / BUNDLE_FILE} has format version {version}, and this foveal reads {FORMAT_VERSION}.",
            fix="use the foveal that wrote it, or a newer one.",
        )
    return dict(content)


def _checked(folder: Path, schema: type[SpecT], content: dict[str, Any]) -> SpecT:
    """The description by its schema, and every file that it names by its hash."""
    try:
        spec = schema.model_validate(content)
    except ValidationError as error:
        problems = [f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in error.errors()]
        raise ArtifactError(
            f"{folder / BUNDLE_FILE} does not follow the schema of a bundle.",
            problems=problems,
            fix="do not edit bundles by hand; take the original.",
        ) from error
    for name, expected in spec.files.items():
        if not (folder / name).is_file():
            raise ArtifactError(f"The bundle {folder} lacks {name}.", fix="copy the whole folder.")
        if sha256_file(folder / name) != expected:
            raise ArtifactError(
                f"{folder / name} is not the file that was written: its sha256 differs from bundle.json.",
                fix="copy the bundle again; it was damaged or changed on the way.",
            )
    return spec


def update_bundle(folder: Path, **changes: Any) -> None:
    """Replace fields of a bundle's description, such as its temperature; the weights stay as they are."""
    spec = open_bundle(folder).spec
    changed = type(spec).model_validate({**spec.model_dump(), **changes})
    write_json(folder / BUNDLE_FILE, changed.model_dump(mode="json"))


def write_bundle(folder: Path, spec: Mapping[str, Any], state: Mapping[str, "torch.Tensor"]) -> Bundle:
    """Write weights first, then the description that makes them a bundle.

    Args:
        folder: where to; made where it is missing.
        spec: the fields of `BundleSpec` but `format_version`, `foveal_version` and `files`.
        state: tensors by name.
    """
    import torch
    from safetensors.torch import save

    # Copies, because safetensors refuses tensors that share memory, as tied weights and views do.
    own = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
    with atomic_writer(folder / WEIGHTS_FILE) as stream:
        stream.write(save(own))
    full = BundleSpec(
        format_version=FORMAT_VERSION,
        foveal_version=__version__,
        files={WEIGHTS_FILE: sha256_file(folder / WEIGHTS_FILE)},
        **spec,
    )
    write_json(folder / BUNDLE_FILE, full.model_dump(mode="json"))
    return Bundle(folder, full)
