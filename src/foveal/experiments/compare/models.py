"""Which models take part in a comparison: what was named, what it holds, what it is called, and what repeats what."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from foveal.config import load
from foveal.data.manifest import Manifest
from foveal.errors import ArtifactError, ConfigError, FovealError
from foveal.experiments.shared_data import run_behind
from foveal.exported.opening import is_export
from foveal.files import read_json
from foveal.model.bundle import BUNDLE_FILE, Bundle, EnsembleBundle, open_bundle
from foveal.model.config import in_words
from foveal.run_folder import ExperimentFolder, RunFolder, is_run_folder
from foveal.training.config import ResolvedConfig

_OF_READING = (
    *("format", "columns", "images_root", "class_names", "exclude_classes", "allow_outside_root"),
    *("val_fraction", "test_fraction", "leaks", "num_workers", "store", "store_cap_gib"),
)
_NO_DIFFERENCE: Any = {"seed": True, "data": set(_OF_READING), "train": {"device"}, "log": True, "audit": True}
"""What runs that repeat each other may differ in; whether their images are the same is seen from the images."""


@dataclass(frozen=True)
class Entry:
    """A model that takes part.

    Attributes:
        name: what it is called in tables; no other has the same name.
        path: what was named: a run, a bundle, or the folder of an experiment.
        kind: run, bundle, ensemble, or the verb of the experiment that made it.
        bundle: its bundle, checked.
        home: the run that it comes from, or the experiment, which has images and evaluations like a run; None for a
            bundle by itself.
        group: what it repeats, with others of the same group; empty for one by itself.
    """

    name: str
    path: Path
    kind: str
    bundle: Bundle | EnsembleBundle
    home: RunFolder | None
    group: str = ""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Its classes, in its order."""
        return self.bundle.spec.class_names

    @property
    def networks(self) -> tuple[Bundle, ...]:
        """The networks that answer: one, or the members of the vote."""
        return (self.bundle,) if isinstance(self.bundle, Bundle) else self.bundle.members

    @property
    def architecture(self) -> str:
        """What is built, such as "resnet18", or "vote of 5 × resnet18"."""
        names = [_architecture(network) for network in self.networks]
        if len(names) == 1:
            return names[0]
        counts = Counter(names)
        parts = [name if count == 1 else f"{count} × {name}" for name, count in counts.items()]
        return f"vote of {', '.join(parts)}"

    def manifest(self) -> Manifest | None:
        """The images that it was made with; None where it brings none."""
        if self.home is None or not self.home.manifest.is_file():
            return None
        return Manifest.read(self.home.manifest)

    def evaluation(self, split: str) -> Path | None:
        """Where an evaluation of one of its splits lies; None where there is none."""
        if self.home is None:
            return None
        names = [split]
        if isinstance(self.bundle, EnsembleBundle):
            names.append(f"{split}-{self.bundle.spec.vote}")  # a cross-validation tries several votes
        folders = [self.home.evaluation(name) for name in names]
        files = ("metrics.json", "predictions.parquet")
        return next((folder for folder in folders if all((folder / name).is_file() for name in files)), None)


def find_models(paths: Sequence[str | PathLike[str]]) -> list[Entry]:
    """Open everything that is to be compared.

    A run, a bundle (that of a run is the run), or the folder of another verb, which is what it chose or made; a
    cross-validation is the vote of its folds.

    Raises:
        ArtifactError: something is no model, is damaged, has not come to its end, or was named twice; all at once.
        ConfigError: nothing was named.
    """
    if not paths:
        raise ConfigError("Expected at least one run or bundle, got none.", fix="foveal compare runs/a runs/b")
    found: list[Entry] = []
    problems: list[str] = []
    for path in map(Path, paths):
        try:
            found.append(_open(path))
        except FovealError as error:
            problems.append(f"{path}: {' '.join([error.message, *error.problems])}")
    seen: dict[Path, Path] = {}
    for entry in found:
        place = entry.bundle.path.resolve()
        if place in seen:
            problems.append(f"{entry.path}: was named before, as {seen[place]}")
        seen[place] = entry.path
    if problems:
        raise ArtifactError(
            "Not everything that was named can be compared.",
            problems=problems,
            fix="name finished runs, bundles, or folders of crossval, ensemble, probe, tune or extend, each once.",
        )
    return _grouped(_named(found))


def _open(path: Path) -> Entry:
    # The bundle of a run or experiment stands for it, and knows the same images.
    if path.name == "bundle" and (path / BUNDLE_FILE).is_file() and _is_home(path.parent):
        path = path.parent
    if not path.exists():
        raise ArtifactError("there is no such folder.")
    if is_export(path):
        raise ArtifactError("an exported model; name the run or bundle that it was made from.")
    if (path / "experiment.json").is_file():
        return _of_experiment(ExperimentFolder(path))
    if is_run_folder(path):
        if not (path / "bundle" / BUNDLE_FILE).is_file():
            raise ArtifactError("its training has not come to its end, so it has no bundle yet.")
        return Entry("", path, "run", open_bundle(path), RunFolder(path))
    bundle = open_bundle(path)
    return Entry("", path, "bundle" if isinstance(bundle, Bundle) else "ensemble", bundle, None)


def _is_home(path: Path) -> bool:
    return is_run_folder(path) or (path / "experiment.json").is_file()


def _of_experiment(folder: ExperimentFolder) -> Entry:
    settings = read_json(folder.settings)
    verb = str(settings.get("verb", "experiment")) if isinstance(settings, dict) else "experiment"
    # The summary is what an experiment writes last.
    if folder.summary.is_file() and not (folder.bundle / BUNDLE_FILE).is_file():
        raise ArtifactError(
            f"this {verb} makes no bundle of its own; name its runs, which lie in {folder.path / 'runs'}."
        )
    if not folder.summary.is_file():
        raise ArtifactError(f"this {verb} has not come to its end, so it holds no bundle yet.")
    bundle = open_bundle(folder.bundle)
    # What it chose is a copy of one of its runs; what it made of several has a home in the experiment itself.
    home = run_behind(folder.path, bundle) or folder.path
    return Entry("", folder.path, verb, bundle, RunFolder(home))


def _architecture(network: Bundle) -> str:
    """The network's name, also of several backbones under one head, and what stands in place of its head."""
    spec = network.spec.architecture
    name = in_words(spec.name)
    return name if spec.classical is None else f"{name}, {spec.classical.kind}"


def _named(entries: Sequence[Entry]) -> list[Entry]:
    """Each entry with the shortest end of its path that is its own."""
    places = [entry.path.resolve().parts for entry in entries]
    names = [parts[-1] for parts in places]
    for length in range(2, max(map(len, places), default=1) + 1):
        counts = Counter(names)
        if all(count == 1 for count in counts.values()):
            break
        names = [
            name if counts[name] == 1 else "/".join(parts[-length:]) for name, parts in zip(names, places, strict=True)
        ]
    return [replace(entry, name=name) for entry, name in zip(entries, names, strict=True)]


def _grouped(entries: Sequence[Entry]) -> list[Entry]:
    """Runs whose configurations differ by the seed alone, on the same images, as one group."""
    keys = [_recipe_key(entry) if entry.kind == "run" else "" for entry in entries]
    counts = Counter(key for key in keys if key)
    return [
        replace(entry, group=key) if key and counts[key] > 1 else entry
        for entry, key in zip(entries, keys, strict=True)
    ]


def _recipe_key(entry: Entry) -> str:
    """What a run was made with, but for its seed: equal for runs that repeat each other."""
    manifest = entry.manifest()
    if entry.home is None or manifest is None:
        return ""
    settings = load(ResolvedConfig, entry.home.config).model_dump(mode="json", exclude=_NO_DIFFERENCE)
    rows = manifest.take(manifest.usable())
    images = sorted(f"{sha}\0{label}" for sha, label in zip(rows.column("sha256"), rows.column("label"), strict=True))
    text = json.dumps([settings, images], sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", errors="surrogateescape")).hexdigest()
