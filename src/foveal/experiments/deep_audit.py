"""The deep checks of an audit: pictures that do not belong, and labels that are probably wrong."""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import torch
from numpy.typing import NDArray

from foveal.auditing.findings import Finding
from foveal.auditing.off_domain import (
    DESCRIBED_PX,
    MIN_PICTURES,
    Far,
    describe,
    neighbour_distances,
    off_domain,
    whitened,
)
from foveal.auditing.wrong_labels import Suspect, wrong_labels
from foveal.data.batches import Batch, Batches
from foveal.data.ingest import Recipe, ingest
from foveal.data.manifest import Manifest
from foveal.data.scan import ScanResult
from foveal.data.sizes import peek_sizes
from foveal.data.split import connected, siblings
from foveal.data.store import PixelSource
from foveal.data.stratify import stratify
from foveal.experiments.out_of_fold import NUM_FOLDS, OutOfFold, Shrunk, by_features, by_quick_model
from foveal.extras import require
from foveal.model.build import build
from foveal.model.config import in_words
from foveal.model.features import pooled_features
from foveal.model.weights import load_weights, weights_cached
from foveal.model.zoo import facts_of_each
from foveal.pixels.policy import Geometry, PixelPolicy
from foveal.progress import Bar, Progress
from foveal.training.config import Config
from foveal.training.resolve import Facts, architecture_of, geometry_of, resolve

MIN_INDEPENDENT = 3 * NUM_FOLDS
"""Independent images that a class needs for its labels to be judged: each model then has learnt from eight or more."""

_PORTION = 1024
_BATCH_SIZE = 64
_PLAIN_VIEW = "colours, edges and where they lie"

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class DeepResult:
    """What the deep checks found, and how.

    Attributes:
        findings: of the kinds off_domain and wrong_label.
        checks: for each of the two `check`, `status` (done or skipped) and `detail`, one sentence.
        out_of_fold_accuracy: share of the judged images whose label the models gave; None where none was judged.
    """

    findings: list[Finding]
    checks: list[dict[str, str]]
    out_of_fold_accuracy: float | None = None


@dataclass(frozen=True)
class _Judged:
    """The rows whose labels can be judged.

    Attributes:
        rows: int64 [n], row numbers.
        labels: int64 [n], numbers of the judged classes, from 0 on.
        folds: int64 [n].
        names: the judged classes.
        num_left_out: classes that are too small.
    """

    rows: Integers
    labels: Integers
    folds: Integers
    names: tuple[str, ...]
    num_left_out: int

    def left_out(self) -> str:
        """What was not judged, to go on with a sentence."""
        if not self.num_left_out:
            return ""
        few = f"fewer than {MIN_INDEPENDENT} independent images, and their labels were not judged"
        return f"; {self.num_left_out} {'class has' if self.num_left_out == 1 else 'classes have'} {few}"


def audit_deeply(
    scanned: ScanResult, manifest: Manifest, clusters: Integers, config: Config, progress: Progress
) -> DeepResult:
    """Bring the pictures into the form that the network wants, and look at them; see `deep_findings`.

    Args:
        scanned: DATA as it was read, before the decode pass.
        manifest: the same rows after it.
        clusters: int64 [rows], copies of one original; -1 alone.
        config: the whole configuration.
        progress: where to show it.
    """
    require("cleanlab", extra="labels", purpose="find labels that are probably wrong")
    if not _is_at_hand(config):
        # Small networks want small pictures, and not the size of weights that are not there.
        config = config.model_copy(update={"model": config.model.model_copy(update={"weights": "none"})})
    sizes, num_samples = peek_sizes(manifest), len(manifest.usable())
    resolved = resolve(config, Facts(scanned.format, num_samples, num_samples, sizes.shorter_side_px, sizes.aspect))
    geometry, data = geometry_of(resolved), resolved.data
    ingested = ingest(
        scanned.manifest,
        Recipe(geometry, PixelPolicy(background=data.background), data.box_margin),
        keep_pixels=data.store == "on",
        cap_bytes=int(data.store_cap_gib * (1 << 30)),
        num_workers=data.num_workers,
        progress=progress,
    )
    return deep_findings(manifest, ingested.source, geometry, clusters, config=config, progress=progress)


def deep_findings(
    manifest: Manifest,
    source: PixelSource,
    geometry: Geometry,
    clusters: Integers,
    *,
    config: Config,
    progress: Progress,
) -> DeepResult:
    """Look at every usable picture with a network.

    The network is timm's pretrained one that `model.name` names, where its weights are on this machine and
    `model.weights` is pretrained; nothing is downloaded. Else, and also with weights of one's own, which may have
    learnt these very labels, small networks are trained here, each judging the images that it was not trained on.

    Args:
        manifest: after the decode pass.
        source: the stored form of each usable row.
        geometry: what they were stored with.
        clusters: int64 [rows], equal for copies of one original; -1 for a row that has none.
        config: for the model, the seed, the device and the augmentation.
        progress: where to show it.

    Raises:
        MissingExtraError: cleanlab is not installed.
        ArtifactError: the weights in the cache are damaged.
        ConfigError: there is no such model or device.
        TrainingError: memory ran out.
        InterruptedRunError: Ctrl-C or SIGTERM.
    """
    require("cleanlab", extra="labels", purpose="find labels that are probably wrong")
    rows = manifest.usable()
    if len(rows) < MIN_PICTURES:
        few = f"{len(rows)} usable images are too few to tell what is usual; {MIN_PICTURES} are needed."
        return DeepResult([], [_check(name, "skipped", few) for name in ("off_domain", "wrong_label")])
    judged = _judged(manifest, clusters, config.seed)
    looked = _look(manifest, source, geometry, clusters, judged, config, progress)
    far = off_domain(looked.views, clusters[rows])
    findings = [_far_finding(int(rows[each.place]), each) for each in far]
    checks = [_check("off_domain", "done", f"Compared by {' and by '.join(looked.views)}.")]
    if looked.said is None:
        return DeepResult(findings, [*checks, _check("wrong_label", "skipped", looked.how)])
    # What does not belong has no right label.
    foreign = {int(rows[each.place]) for each in far}
    suspects = wrong_labels(judged.labels, looked.said.logits)
    findings += [_label_finding(each, judged) for each in suspects if int(judged.rows[each.place]) not in foreign]
    accuracy = float((looked.said.logits.argmax(axis=1) == judged.labels).mean())
    detail = f"{looked.how}, out-of-fold accuracy {accuracy:.2f}{judged.left_out()}."
    return DeepResult(findings, [*checks, _check("wrong_label", "done", detail)], accuracy)


@dataclass(frozen=True)
class _Looked:
    """What was seen.

    Attributes:
        views: by name, float64 [usable rows], distances to the nearest others in medians; NaN where not seen.
        said: what was said of the judged rows; None where there are none.
        how: by what, or why nothing was said.
    """

    views: dict[str, NDArray[np.float64]]
    said: OutOfFold | None
    how: str


def _look(
    manifest: Manifest,
    source: PixelSource,
    geometry: Geometry,
    clusters: Integers,
    judged: _Judged,
    config: Config,
    progress: Progress,
) -> _Looked:
    rows = manifest.usable()
    plain = describe(_portions(Shrunk(source, geometry, DESCRIBED_PX), rows, progress))
    views = {_PLAIN_VIEW: neighbour_distances(plain, clusters[rows], seed=config.seed)}
    can_judge = len(judged.names) > 1
    none = f"Fewer than two classes have the {MIN_INDEPENDENT} independent images that it takes to judge their labels."
    if _is_at_hand(config):
        features = _backbone_features(source, geometry, rows, config, progress)
        views[f"what {in_words(config.model.name)} sees"] = neighbour_distances(
            whitened(features), clusters[rows], seed=config.seed
        )
        if not can_judge:
            return _Looked(views, None, none)
        places = np.searchsorted(rows, judged.rows)
        said = by_features(features[places], judged.labels, judged.folds, seed=config.seed)
        return _Looked(
            views, said, f"The pretrained {in_words(config.model.name)} and a linear model on {NUM_FOLDS} folds"
        )
    if not can_judge:
        return _Looked(views, None, none)
    said = by_quick_model(source, geometry, judged.rows, judged.labels, judged.folds, config=config, progress=progress)
    distances = np.full(len(manifest), np.nan)
    for places, features in said.features:
        seen = judged.rows[places]
        distances[seen] = neighbour_distances(whitened(features), clusters[seen], seed=config.seed)
    views["what a network trained here sees"] = distances[rows]
    return _Looked(views, said, f"A quick model trained here on {NUM_FOLDS} folds")


def _is_at_hand(config: Config) -> bool:
    """Whether the zoo's weights are meant and are on this machine."""
    is_meant = set(config.model.starts) == {"pretrained"}
    return is_meant and all(weights_cached(facts) for facts in facts_of_each(config.model.name))


def _backbone_features(
    source: PixelSource, geometry: Geometry, rows: Integers, config: Config, progress: Progress
) -> NDArray[np.float32]:
    data = config.data.model_copy(update={"image_size": geometry.size_px, "store": "off"})
    facts = Facts("folder", len(rows), len(rows), geometry.size_px, 1.0)
    resolved = resolve(config.model_copy(update={"data": data}), facts)
    classifier = build(architecture_of(resolved, num_classes=2))
    load_weights(classifier, resolved.model.name, resolved.model.weights)
    device = torch.device(resolved.train.device)
    classifier = classifier.to(device).to(memory_format=torch.channels_last)
    batches = Batches(
        source,
        rows,
        np.full(len(rows), -1),
        geometry,
        batch_size=_BATCH_SIZE,
        num_workers=resolved.data.num_workers,
    )
    with progress.bar(f"Looking with {in_words(resolved.model.name)}", len(batches), "batches") as bar:
        return pooled_features(classifier, _counted(batches, bar), device)


def _counted(batches: Batches, bar: Bar) -> Iterator[Batch]:
    for batch in batches:
        yield batch
        bar.advance()


def _portions(plain: Shrunk, rows: Integers, progress: Progress) -> Iterator[NDArray[np.uint8]]:
    with progress.bar("Looking at colours and edges", len(rows), "images") as bar:
        for start in range(0, len(rows), _PORTION):
            part = rows[start : start + _PORTION]
            yield np.stack([plain[row] for row in part.tolist()])
            bar.advance(len(part))


def _judged(manifest: Manifest, clusters: Integers, seed: int) -> _Judged:
    """The rows of all classes that are large enough, shared out into folds; what belongs together is in one."""
    usable, labels = manifest.is_usable(), manifest.label_ids()
    together = connected(len(manifest), [siblings(manifest), np.where(usable, clusters, -1)])
    pairs = np.unique(np.stack([together[usable], labels[usable]]), axis=1)
    num_independent = np.bincount(pairs[1], minlength=len(manifest.class_names))
    large = num_independent >= MIN_INDEPENDENT
    rows = np.flatnonzero(usable & large[labels])
    number = np.cumsum(large) - 1
    names = manifest.column("sample_id")[rows].tolist()
    digests = (sha256(name.encode("utf-8", "surrogateescape")).digest()[:8] for name in names)
    identities = np.array([int.from_bytes(digest, "little") for digest in digests], dtype=np.uint64)
    folds = stratify(together[rows], number[labels[rows]], identities, [1.0 / NUM_FOLDS] * NUM_FOLDS, seed=seed)
    classes = tuple(name for name, is_large in zip(manifest.class_names, large, strict=True) if is_large)
    return _Judged(rows, number[labels[rows]], folds, classes, int((~large & (num_independent > 0)).sum()))


def _check(name: str, status: str, detail: str) -> dict[str, str]:
    return {"check": name, "status": status, "detail": detail}


def _far_finding(row: int, far: Far) -> Finding:
    detail = (
        f"By {far.view}, it is {far.medians:.1f} times as far from the nearest others as pictures here usually are."
    )
    return Finding("off_domain", "warning", row=row, value=far.medians, detail=detail)


def _label_finding(suspect: Suspect, judged: _Judged) -> Finding:
    given, other = judged.names[judged.labels[suspect.place]], judged.names[suspect.suggested]
    detail = (
        f"A model that did not train on it gives {suspect.suggested_probability:.0%} to {other!r} "
        f"and {suspect.given_probability:.1%} to its label, {given!r}."
    )
    return Finding(
        "wrong_label",
        "warning",
        row=int(judged.rows[suspect.place]),
        related_label=other,
        value=suspect.given_probability,
        detail=detail,
    )
