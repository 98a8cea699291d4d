"""What is to vote: runs and bundles that know the same classes, each once."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from foveal.data.class_names import shortened
from foveal.data.manifest import Manifest
from foveal.errors import ArtifactError, ConfigError, FovealError
from foveal.experiments.shared_data import run_behind
from foveal.files import sha256_file
from foveal.model.bundle import BUNDLE_FILE, WEIGHTS_FILE, Bundle, EnsembleBundle, find_bundle, open_bundle
from foveal.model.config import in_words
from foveal.run_folder import RunFolder, is_run_folder


@dataclass(frozen=True)
class Candidate:
    """A network that is to vote.

    Attributes:
        name: what it is called; no other has the same name.
        path: as it was given.
        bundle: checked.
        run: the run that it comes of, which knows its images; None for a bundle by itself.
    """

    name: str
    path: Path
    bundle: Bundle
    run: RunFolder | None

    def manifest(self) -> Manifest | None:
        """The images that it was trained with, as far as they are known."""
        return None if self.run is None else Manifest.read(self.run.manifest)

    def fingerprint(self) -> str:
        """What its bundle is."""
        return sha256_file(self.bundle.path / BUNDLE_FILE)

    @property
    def architecture(self) -> str:
        """Its network, in words."""
        return in_words(self.bundle.spec.architecture.name)


def open_candidates(paths: Sequence[str | PathLike[str]]) -> list[Candidate]:
    """Open everything that is to vote.

    Raises:
        ArtifactError: something is no model or damaged, has not come to its end, votes itself, or was named twice;
            all at once.
        ConfigError: fewer than two were named.
    """
    if len(paths) < 2:
        raise ConfigError(
            f"An ensemble needs at least two models, and {len(paths) or 'none'} was named.",
            fix="foveal ensemble runs/a runs/b --out ensemble",
        )
    found: list[Candidate] = []
    problems: list[str] = []
    seen: dict[str, Path] = {}
    for path in map(Path, paths):
        try:
            candidate = _open(path)
        except FovealError as error:
            problems.append(f"{path}: {' '.join([error.message, error.fix])}".rstrip())
            continue
        weights = candidate.bundle.spec.files[WEIGHTS_FILE]
        if weights in seen:
            problems.append(f"{path}: holds the same weights as {seen[weights]}, and would vote twice")
        seen.setdefault(weights, path)
        found.append(candidate)
    if problems:
        raise ArtifactError(
            "Not everything that was named can vote.",
            problems=problems,
            fix="name finished runs, or bundles of one network, each once.",
        )
    return _named(found)


def check_classes(candidates: Sequence[Candidate]) -> None:
    """Refuse models that do not tell the same classes apart; their order may differ.

    Raises:
        ArtifactError: with what each has less and more than the first.
    """
    first = candidates[0].bundle.spec
    problems = []
    for candidate in candidates[1:]:
        spec = candidate.bundle.spec
        lacking = [name for name in first.class_names if name not in spec.class_names]
        other = [name for name in spec.class_names if name not in first.class_names]
        if lacking or other:
            parts = [f"lacks {shortened(lacking)}"] if lacking else []
            parts += [f"has {shortened(other)} besides"] if other else []
            problems.append(f"{candidate.name}: {' and '.join(parts)}")
        elif spec.ordered != first.ordered or (spec.ordered and spec.class_names != first.class_names):
            problems.append(f"{candidate.name}: its classes are other grades, or in another order of grades")
    if problems:
        raise ArtifactError(
            f"Only models of the same classes can vote, and these do not have those of {candidates[0].name}: "
            f"{shortened(first.class_names)}.",
            problems=problems,
            fix="leave the others out, or train them on the same classes.",
        )


def _open(path: Path) -> Candidate:
    if is_run_folder(path) and not (path / "bundle" / BUNDLE_FILE).is_file():
        raise ArtifactError("its training has not come to its end, so it has no bundle yet.")
    bundle = open_bundle(path)
    if isinstance(bundle, EnsembleBundle):
        raise ArtifactError(
            "is an ensemble itself.",
            fix=f"Name its members, such as {bundle.members[0].path}, or the runs they are of.",
        )
    if (path / "experiment.json").is_file() and (chosen := run_behind(path, bundle)) is not None:
        # A probe or a study stands for the run that it chose, which knows its images.
        return Candidate(path.resolve().name, path, bundle, RunFolder(chosen))
    home = find_bundle(path).resolve().parent
    is_of_run = home.is_dir() and is_run_folder(home) and find_bundle(path).name == "bundle"
    name = home.name if find_bundle(path).name == "bundle" else path.resolve().name
    return Candidate(name, path, bundle, RunFolder(home) if is_of_run else None)


def _named(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The same, with the folder above before names that occur twice, and a number where that does not help."""
    names = [candidate.name for candidate in candidates]
    counts = Counter(names)
    for at, candidate in enumerate(candidates):
        if counts[names[at]] > 1:
            parent = (candidate.run.path if candidate.run else candidate.path).resolve().parent.name
            names[at] = f"{parent}/{candidate.name}"
    counts = Counter(names)
    final = [f"{name} ({at + 1})" if counts[name] > 1 else name for at, name in enumerate(names)]
    return [
        Candidate(name, candidate.path, candidate.bundle, candidate.run)
        for name, candidate in zip(final, candidates, strict=True)
    ]
