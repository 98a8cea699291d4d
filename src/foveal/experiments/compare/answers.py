"""What each model says of the same images: read where it was evaluated before, evaluated where not, and aligned."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveal.config import load
from foveal.data.config import DataConfig
from foveal.data.manifest import Manifest
from foveal.data.split import straddling
from foveal.errors import ArtifactError, DataError, FovealError
from foveal.evaluation.evaluate import (
    SplitLogits,
    align_labels,
    groups_of,
    majority_class,
    measure,
    predict_split,
    rows_of_split,
    write_evaluation,
)
from foveal.evaluation.predictions import read_predictions
from foveal.evaluation.sources import stored_for
from foveal.experiments.compare.models import Entry
from foveal.experiments.preparing import changed_images
from foveal.files import read_json, sha256_file, write_json
from foveal.inference import Predictor
from foveal.machine import num_cpus
from foveal.metrics import SplitMetrics
from foveal.model.bundle import BUNDLE_FILE
from foveal.progress import Progress
from foveal.training.config import ResolvedConfig
from foveal.types import Box, Split


@dataclass(frozen=True, eq=False)
class Answers:
    """What one model says of the images of a split.

    Attributes:
        metrics: of these images.
        images: the images, as rows of a manifest.
        probabilities: float64 [n, C] in the order of `metrics.class_names`; rows sum to 1.
        groups: int64 [n], which images belong together; None where each stands for itself.
        was_trained_on: bool [n], whether the model was trained on the same bytes; None where nobody knows.
        is_new: whether it was evaluated for this comparison.
        num_looks: how often this split of the run has been looked at by now; 0 where that is not counted.
    """

    metrics: SplitMetrics
    images: Manifest
    probabilities: NDArray[np.float64]
    groups: NDArray[np.int64] | None
    was_trained_on: NDArray[np.bool_] | None
    is_new: bool
    num_looks: int = 0

    def take(self, rows: NDArray[np.int64]) -> "Answers":
        """The same answers for some images, in another order; the metrics stay those of all."""
        return replace(
            self,
            images=self.images.take(rows),
            probabilities=self.probabilities[rows],
            groups=None if self.groups is None else self.groups[rows],
            was_trained_on=None if self.was_trained_on is None else self.was_trained_on[rows],
        )


@dataclass(frozen=True, eq=False)
class Aligned:
    """All models on the same images, in the same order, with the same classes.

    Attributes:
        class_names: the classes that any model knows.
        images: the images, as rows of a manifest.
        labels: int64 [n], true classes by their place in `class_names`.
        probabilities: float64 [n, C] by model; 0 for classes that a model does not know.
        groups: int64 [n], which images belong together; None where each stands for itself.
        was_trained_on: by model, bool [n], or None where nobody knows.
    """

    class_names: tuple[str, ...]
    images: Manifest
    labels: NDArray[np.int64]
    probabilities: Mapping[str, NDArray[np.float64]]
    groups: NDArray[np.int64] | None
    was_trained_on: Mapping[str, NDArray[np.bool_] | None]

    def __len__(self) -> int:
        return len(self.labels)

    def paths(self) -> list[Path]:
        """Where each image lies."""
        return self.images.absolute_paths()

    def boxes(self) -> list[Box | None]:
        """Each sample's box, or None where the whole image is the sample."""
        return self.images.boxes()

    def right(self, name: str) -> NDArray[np.bool_]:
        """Which images a model has right, bool [n]."""
        predicted: NDArray[np.int64] = self.probabilities[name].argmax(axis=1)
        return np.asarray(predicted == self.labels)


@dataclass(frozen=True)
class Question:
    """What all models are asked.

    Attributes:
        split: which split.
        data: the images that all are evaluated on; None for those of their own runs.
        data_config: how `data` is decoded and kept.
        folder: where new evaluations go, a folder a model.
        device: auto, cpu, cuda or mps.
        seed: of the intervals of new evaluations; a run's own split takes the run's.
    """

    split: Split
    data: Manifest | None
    data_config: DataConfig
    folder: Path
    device: str
    seed: int


def own_images(entry: Entry, others: Sequence[Entry]) -> Manifest | None:
    """The images that a model was made with: its own, or those of another entry that was made with the same ones."""
    manifest = entry.manifest()
    if manifest is not None:
        return manifest
    fingerprint = entry.bundle.spec.training_data.fingerprint
    for other in others:
        manifest = other.manifest()
        if manifest is not None and manifest.fingerprint() == fingerprint:
            return manifest
    return None


def ask(entry: Entry, others: Sequence[Entry], question: Question, progress: Progress) -> Answers:
    """What a model says: as it was evaluated before, or evaluated now.

    Args:
        entry: the model.
        others: all models, whose images a bundle by itself can be evaluated on if it was trained on them.
        question: which images.
        progress: where to show it.

    Raises:
        DataError: there is no such image, one has changed since the run, or one is of a class that it does not know.
        ArtifactError: an evaluation that lies there is damaged.
    """
    own = own_images(entry, others)
    if question.data is not None:
        return _evaluate(entry, question.data, own, question, progress)
    if own is None:
        raise DataError(
            f"{entry.path} is a bundle, and brings no images; no other model here was trained on the same ones.",
            fix="give the run instead of its bundle, or --data DATA.",
        )
    folder = entry.evaluation(question.split)
    if folder is not None:
        return _read(folder, own, own, is_new=False)
    return _evaluate(entry, own, own, question, progress)


def _evaluate(entry: Entry, images: Manifest, own: Manifest | None, question: Question, progress: Progress) -> Answers:
    """Evaluate into the comparison's folder, or read what was evaluated there before, by the same model on the same."""
    rows = rows_of_split(images, question.split)
    folder = question.folder / entry.name / question.split
    stamp = {
        "bundle": sha256_file(entry.bundle.path / BUNDLE_FILE),
        "images": images.take(rows).fingerprint(),
        "seed": question.seed,
    }
    # Whether other data are what they were, only decoding shows; a run's manifest has their hashes.
    if question.data is not None or not _is_stamped(folder, stamp):
        _evaluate_anew(entry, images, own, question, folder, progress)
        write_json(folder / "made_of.json", stamp)
    found = _read(folder, images, own, is_new=True)
    home = entry.home if question.data is None else None
    looks = read_json(home.looks) if home is not None and home.looks.is_file() else {}
    return replace(found, num_looks=len(looks.get(question.split, ())))


def _evaluate_anew(
    entry: Entry, images: Manifest, own: Manifest | None, question: Question, folder: Path, progress: Progress
) -> None:
    split, home = question.split, entry.home
    is_own = question.data is None
    config = load(ResolvedConfig, home.config) if home is not None and is_own and home.config.is_file() else None
    progress.say(f"{entry.name}: evaluating its {split} split." if is_own else f"{entry.name}: evaluating DATA.")
    predictor = Predictor(entry.bundle.path, device=question.device, num_workers=num_cpus())
    rows = rows_of_split(images, split)
    align_labels(images.take(rows), predictor.class_names)
    before = images.take(rows)
    stored = stored_for(predictor, before, config.data if config else question.data_config, progress)
    if is_own and (changed := changed_images(before, stored.manifest)):
        raise DataError(
            f"{len(changed)} of the {len(rows)} {split} samples are not those that {entry.name} was made with.",
            problems=changed,
            fix="bring them back, or compare on what there is now with --data DATA.",
        )
    said = predict_split(predictor, stored.manifest, stored.sources, split, num_workers=num_cpus())
    siblings: NDArray[np.bool_] | None = None
    if is_own:
        # By the rows of the whole manifest, which knows the siblings in other splits.
        manifest, said = images, replace(said, rows=rows)
        siblings = straddling(images)[rows] if split != "train" else None
    else:
        manifest = stored.manifest
        siblings = _same_bytes(manifest, own)[said.rows] if own is not None else None
    metrics = measure(
        said,
        manifest,
        predictor,
        majority_class=majority_class(own, predictor.class_names) if own is not None else None,
        siblings_in_train=siblings,
        seed=config.seed if config else question.seed,
    )
    if home is not None and is_own:
        # Counted before it can be read, as in `foveal evaluate`.
        with home.lock():
            home.count_look(split, "compare")
    _write(folder, said, metrics, manifest, predictor.temperature)


def _write(folder: Path, said: SplitLogits, metrics: SplitMetrics, manifest: Manifest, temperature: float) -> None:
    write_evaluation(folder, said, metrics, manifest, temperature)
    # With the hashes that only decoding has shown.
    manifest.take(said.rows).write(folder / "images.parquet")


def _read(folder: Path, images: Manifest, own: Manifest | None, *, is_new: bool) -> Answers:
    metrics = SplitMetrics.read(folder / "metrics.json")
    said = read_predictions(folder / "predictions.parquet", metrics.class_names)
    listed = folder / "images.parquet"
    images = Manifest.read(listed) if listed.is_file() else images
    place = {sample: row for row, sample in enumerate(images.column("sample_id"))}
    unknown = [sample for sample in said.sample_ids if sample not in place]
    if unknown:
        raise ArtifactError(
            f"{folder / 'predictions.parquet'} is of other images: {len(unknown)} of its {len(said.sample_ids)} "
            "samples are not in the manifest.",
            fix="evaluate the run again with foveal evaluate.",
        )
    rows = np.array([place[sample] for sample in said.sample_ids], dtype=np.int64)
    trained = None if own is None else _same_bytes(images, own)[rows]
    return Answers(metrics, images.take(rows), said.probabilities, groups_of(images, rows), trained, is_new)


def _is_stamped(folder: Path, stamp: Mapping[str, Any]) -> bool:
    """Whether an evaluation was finished here, of the same bundle and images; what is damaged is not."""
    try:
        return bool(read_json(folder / "made_of.json") == stamp)
    except FovealError:
        return False


def _same_bytes(images: Manifest, own: Manifest) -> NDArray[np.bool_]:
    """Which images have the same bytes as one that a model was trained on."""
    seen = {sha for sha in own.column("sha256")[own.of_split("train")] if sha is not None}
    return np.array([sha in seen for sha in images.column("sha256")], dtype=bool)


def align(answers: Mapping[str, Answers]) -> Aligned:
    """Put all models' answers in the order of the first one's images, and of one list of classes.

    Images are the same where their bytes and their box are, whatever their names; each of several copies has one
    partner.

    Raises:
        DataError: the models were not evaluated on the same images, or an image has several labels.
    """
    names = list(answers)
    keys = {name: _image_keys(each.images) for name, each in answers.items()}
    first = keys[names[0]]
    if problems := _differences(keys):
        raise DataError(
            "The models were evaluated on different images, so no test can tell which is better.",
            problems=problems,
            fix="evaluate all on the same images with --data DATA; to have the same test split from the start, draw it "
            "once with foveal split DATA --out manifest.parquet, and train on that manifest.",
        )
    place = {name: {key: row for row, key in enumerate(keys[name])} for name in names}
    moved = {name: each.take(np.array([place[name][key] for key in first])) for name, each in answers.items()}
    lead = moved[names[0]]
    class_names = _all_classes([each.metrics.class_names for each in moved.values()])
    labels = lead.images.column("label")
    if problems := _relabelled(moved):
        raise DataError("Images have one label for one model and another for the next.", problems=problems)
    number = {name: at for at, name in enumerate(class_names)}
    return Aligned(
        class_names=class_names,
        images=lead.images,
        labels=np.array([number[label] for label in labels], dtype=np.int64),
        probabilities={name: _widened(each, number) for name, each in moved.items()},
        groups=_joined_groups([each.groups for each in moved.values()]),
        was_trained_on={name: each.was_trained_on for name, each in moved.items()},
    )


def _image_keys(images: Manifest) -> list[tuple[str, Box | None, int]]:
    """What makes an image the same as another: its bytes, its box, and its number among those that share both."""
    counts: Counter[tuple[str, Box | None]] = Counter()
    ids, boxes = images.column("sample_id"), images.boxes()
    contents = [sha or f"id {sample}" for sha, sample in zip(images.column("sha256"), ids, strict=True)]
    keys: list[tuple[str, Box | None, int]] = [("", None, 0)] * len(images)
    for row in np.argsort(ids.astype(str), kind="stable").tolist():
        key = (contents[row], boxes[row])
        keys[row] = (*key, counts[key])
        counts[key] += 1
    return keys


def _differences(keys: Mapping[str, Sequence[tuple[str, Box | None, int]]]) -> list[str]:
    names = list(keys)
    first = set(keys[names[0]])
    problems = []
    for name in names[1:]:
        other = set(keys[name])
        if other != first:
            shared = len(first & other)
            problems.append(f"{names[0]} on {len(first):,} images, {name} on {len(other):,}; {shared:,} are the same")
    return problems


def _relabelled(moved: Mapping[str, Answers]) -> list[str]:
    names = list(moved)
    lead = moved[names[0]].images
    labels, paths = lead.column("label"), lead.column("path")
    problems = []
    for name in names[1:]:
        others = moved[name].images.column("label")
        rows = np.flatnonzero(others != labels)
        problems += [f"{paths[row]}: {labels[row]} for {names[0]}, {others[row]} for {name}" for row in rows]
    return problems


def _all_classes(lists: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """The classes of the first, then those that only others know."""
    return tuple(dict.fromkeys(name for names in lists for name in names))


def _widened(answers: Answers, number: Mapping[str, int]) -> NDArray[np.float64]:
    """A model's probabilities by the places of all classes; 0 for those that it does not know."""
    rows = np.zeros((len(answers.probabilities), len(number)))
    rows[:, [number[name] for name in answers.metrics.class_names]] = answers.probabilities
    return rows


def _joined_groups(groups: Sequence[NDArray[np.int64] | None]) -> NDArray[np.int64] | None:
    """Which images belong together by the manifest of any model."""
    from foveal.data.split import connected

    known = [each for each in groups if each is not None]
    return connected(len(known[0]), known) if known else None
