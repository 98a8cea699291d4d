"""What a model card tells, gathered from a bundle and, where there is one, from the run that made it."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from foveal.data.manifest import Manifest
from foveal.errors import FovealError
from foveal.evaluation.evaluate import groups_of
from foveal.evaluation.predictions import read_predictions
from foveal.files import read_json
from foveal.metrics.by_class import ClassIntervals, class_intervals
from foveal.metrics.split_metrics import SplitMetrics
from foveal.model.bundle import Bundle, EnsembleBundle
from foveal.model.bundle_spec import BundleSpec, EnsembleSpec, PreprocessingSpec
from foveal.model.config import in_words
from foveal.run_folder import RunFolder
from foveal.types import SPLITS


@dataclass(frozen=True)
class CardFacts:
    """What is known of a model.

    Attributes:
        name: what it is called.
        spec: of the bundle.
        networks: of each network: its name, its share in the vote, and its own description.
        splits: what was measured, in the order train, val, test; empty without the run.
        by_class: the intervals of each class, of the splits in which they can be given.
        class_counts: images of each class, by split; empty without the run.
        num_looks: how often the test split was evaluated; None where it is not known.
        num_set_aside: rows of the manifest that were not used; None without the run.
        num_grouped: images of the manifest that share a group or a photograph with others; None without the run.
    """

    name: str
    spec: BundleSpec | EnsembleSpec
    networks: tuple[tuple[str, float, BundleSpec], ...]
    splits: Mapping[str, SplitMetrics]
    by_class: Mapping[str, tuple[ClassIntervals, ...]]
    class_counts: Mapping[str, NDArray[np.int64]]
    num_looks: int | None
    num_set_aside: int | None
    num_grouped: int | None

    @property
    def architecture(self) -> str:
        """The network's name, or the names of those that vote."""
        return ", ".join(dict.fromkeys(in_words(network.architecture.name) for _, _, network in self.networks))

    @property
    def looks(self) -> tuple[PreprocessingSpec, ...]:
        """The kinds of square that the networks see, each once."""
        found: dict[object, PreprocessingSpec] = {}
        for _, _, network in self.networks:
            own = network.preprocessing
            found.setdefault((own.geometry(), own.background), own)
        return tuple(found.values())


def gather(bundle: Bundle | EnsembleBundle, run: Path | None, name: str) -> CardFacts:
    """All that the card needs; what the run lacks, or was not given, is told as not known.

    Args:
        bundle: of the model.
        run: the folder of the run, or of the experiment that made an ensemble; None for a bundle alone.
        name: what the model is called; empty for the run's own name, or the architecture's.

    Raises:
        ArtifactError: the run's own files are damaged.
    """
    networks: tuple[tuple[str, float, BundleSpec], ...]
    if isinstance(bundle, EnsembleBundle):
        named = zip(bundle.spec.members, bundle.members, strict=True)
        networks = tuple((member.name, member.weight, each.spec) for member, each in named)
    else:
        networks = ((in_words(bundle.spec.architecture.name), 1.0, bundle.spec),)
    if not name:
        alone = f"ensemble of {len(networks)} networks" if len(networks) > 1 else networks[0][0]
        name = run.resolve().name if run else alone
    if run is None:
        return CardFacts(name, bundle.spec, networks, {}, {}, {}, None, None, None)
    folder = RunFolder(run)
    splits = _splits(folder)
    looks = read_json(folder.looks) if folder.looks.is_file() else None
    num_looks = len(looks.get("test", ())) if isinstance(looks, dict) else None
    manifest = Manifest.read(folder.manifest) if folder.manifest.is_file() else None
    if manifest is None:
        return CardFacts(name, bundle.spec, networks, splits, {}, {}, num_looks, None, None)
    usable = manifest.usable()
    groups = groups_of(manifest, usable)
    num_grouped = 0 if groups is None else int((np.bincount(groups)[groups] > 1).sum())
    return CardFacts(
        name=name,
        spec=bundle.spec,
        networks=networks,
        splits=splits,
        by_class={
            split: found
            for split, metrics in splits.items()
            if (found := _class_intervals(folder, metrics, manifest, is_grouped=groups is not None))
        },
        class_counts=_class_counts(manifest, bundle.spec.class_names),
        num_looks=num_looks,
        num_set_aside=len(manifest) - len(usable),
        num_grouped=num_grouped,
    )


def _splits(folder: RunFolder) -> dict[str, SplitMetrics]:
    files = {split: folder.evaluation(split) / "metrics.json" for split in SPLITS}
    return {split: SplitMetrics.read(file) for split, file in files.items() if file.is_file()}


def _class_counts(manifest: Manifest, class_names: tuple[str, ...]) -> dict[str, NDArray[np.int64]]:
    """Usable images of each class by split, in the order of the model's outputs."""
    labels = manifest.column("label")
    counts: dict[str, NDArray[np.int64]] = {}
    for split in SPLITS:
        of_split = Counter(labels[manifest.of_split(split)].tolist())
        counts[split] = np.array([of_split[name] for name in class_names], dtype=np.int64)
    return counts


def _class_intervals(
    folder: RunFolder, metrics: SplitMetrics, manifest: Manifest, *, is_grouped: bool
) -> tuple[ClassIntervals, ...]:
    """From the confusion matrix alone where each image stands for itself; else the groups decide. Empty if unknown."""
    num_classes = len(metrics.class_names)
    if not is_grouped:
        counts = np.array(metrics.confusion_matrix)
        true, said = np.nonzero(counts)
        times = counts[true, said]
        return class_intervals(np.repeat(true, times), np.repeat(said, times), num_classes)
    try:
        said_of_each = read_predictions(folder.evaluation(metrics.split) / "predictions.parquet", metrics.class_names)
    except FovealError:
        return ()  # the figures are told without intervals, and the card says so
    row_of = {sample: row for row, sample in enumerate(manifest.column("sample_id").tolist())}
    rows = [row_of.get(sample, -1) for sample in said_of_each.sample_ids]
    if min(rows, default=-1) < 0:
        return ()
    groups = groups_of(manifest, np.array(rows, dtype=np.int64))
    return class_intervals(said_of_each.labels, said_of_each.predicted, num_classes, groups=groups)
