"""Several models, one bundle that votes: fitted on validation, measured on test beside each of its members."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveal.data.manifest import Manifest
from foveal.errors import ArtifactError, DataError
from foveal.evaluation.evaluate import (
    BATCH_SIZE,
    SplitLogits,
    align_labels,
    calibrate,
    groups_of,
    measure,
    rows_of_split,
    write_evaluation,
)
from foveal.evaluation.sources import Stored, stored_for
from foveal.experiments.ensemble.data import VoteData, check_new, settings_data
from foveal.experiments.ensemble.members import Candidate
from foveal.experiments.ensemble.weights import greedy_weights
from foveal.experiments.outcome import headlines_of
from foveal.experiments.preparing import changed_images
from foveal.experiments.summary import Row, metrics_row, write_summary
from foveal.files import read_json
from foveal.inference import Predictor
from foveal.machine import num_cpus
from foveal.metrics import PairedComparison, SplitMetrics, compare_paired, shown, softmax
from foveal.model.bundle import update_bundle
from foveal.model.bundle_spec import member_folder
from foveal.model.ensemble_bundle import write_ensemble, write_single
from foveal.model.voting import Vote, logits_of, voted
from foveal.progress import Progress
from foveal.run_folder import ExperimentFolder
from foveal.training.config import Config
from foveal.types import Split

MEASURED: tuple[Split, ...] = ("val", "test")
ENSEMBLE = "ensemble"
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Ensemble:
    """What an ensemble came to.

    Attributes:
        folder: where everything lies; its bundle votes.
        rows: on test, a row a member and the last one of the ensemble, with the keys of metrics.json.
        validation: the same on validation.
        weights: each member's share in the vote, by name; 0 for those that were left out.
        best_member: the name of the member that is best on validation.
        comparison: the ensemble (second) against that member (first) on test, as plain values.
        sentences: the result in words, the most important first.
    """

    folder: ExperimentFolder
    rows: Sequence[Row]
    validation: Sequence[Row]
    weights: dict[str, float]
    best_member: str
    comparison: dict[str, Any]
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class _Measured:
    """What all say of one split.

    Attributes:
        split: which one.
        rows: int64 [n], rows of the manifest.
        labels: int64 [n].
        by_member: float64 [members, n, classes].
    """

    split: Split
    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    by_member: Floats


def settings_of(
    candidates: Sequence[Candidate], vote: Vote, data: str | PathLike[str] | None, config: Config
) -> dict[str, Any]:
    """What the same command has to say again."""
    return {
        "members": [f"{each.path.resolve()} ({each.fingerprint()[:12]})" for each in candidates],
        "vote": vote,
        "seed": config.seed,
        **settings_data(data, config),
    }


def make_ensemble(
    folder: ExperimentFolder,
    candidates: Sequence[Candidate],
    data: VoteData,
    *,
    vote: Vote,
    seed: int,
    device: str,
    progress: Progress,
) -> Ensemble:
    """Fit the vote on validation, write its bundle, and measure it and its members on validation and test.

    Args:
        folder: begun, and held by this process.
        candidates: what is to vote, of the same classes.
        data: the images.
        vote: how.
        seed: of every draw.
        device: where to compute.
        progress: where to show it.

    Raises:
        ArtifactError: the outputs of a member cannot be put into the first one's order.
        DataError: the images have changed, cannot be read, or are known to a member.
    """
    names = [candidate.name for candidate in candidates]
    asked = _ask(folder, candidates, data, seed=seed, device=device, progress=progress)
    found, manifest = asked.found, asked.judge.manifest
    with folder.stage("fit"):
        groups = groups_of(manifest, found["val"].rows)
        weights = np.full(len(names), 1.0 / len(names))
        if vote == "weighted":
            weights = greedy_weights(found["val"].by_member, found["val"].labels, groups=groups, seed=seed)
        said = _fitted(folder, candidates, weights, vote, found)
    with folder.stage("evaluate"):
        predictor = Predictor(folder.bundle, device=device)
        metrics: dict[str, SplitMetrics] = {}
        for split in MEASURED:
            metrics[split] = asked.judge.measured(predictor, said[split])
            place = folder.path / "evaluation" / split
            write_evaluation(place, said[split], metrics[split], manifest, predictor.temperature)
        update_bundle(folder.bundle, metrics=headlines_of(metrics))
    shares, rows = dict(zip(names, weights.tolist(), strict=True)), asked.rows
    best = min(range(len(names)), key=lambda at: _cost(rows["val"][at]))
    comparison = compare_paired(
        found["test"].labels,
        found["test"].by_member[best],
        softmax(said["test"].logits.astype(np.float64), predictor.temperature),
        groups=groups_of(manifest, found["test"].rows),
        seed=seed,
    )
    for split in MEASURED:
        own: Row = {"weight": 1.0, "path": str(folder.path), "model": "vote", "image_size": None}
        rows[split] = [{**row, "weight": shares[row["name"]]} for row in rows[split]]
        rows[split].append(metrics_row(ENSEMBLE, metrics[split], **own))
    sentences = (*_sentences(vote, shares, metrics["test"], names[best], comparison), *asked.notes)
    result = Ensemble(folder, rows["test"], rows["val"], shares, names[best], comparison.to_dict(), sentences)
    _write(result, vote, predictor.temperature, _disagreements(names, found["val"]))
    return result


def finished(folder: ExperimentFolder) -> Ensemble | None:
    """What an ensemble came to, if it is done: the summary is written last."""
    if not folder.summary.is_file():
        return None
    summary = read_json(folder.summary)
    return Ensemble(
        folder=folder,
        rows=summary["rows"],
        validation=summary["validation"],
        weights=summary["weights"],
        best_member=summary["best_member"],
        comparison=summary["comparison"],
        sentences=tuple(summary["sentences"]),
    )


def read_finished(folder: ExperimentFolder) -> Ensemble:
    """The same, where it must be there.

    Raises:
        ArtifactError: it is not done.
    """
    done = finished(folder)
    if done is None:
        raise ArtifactError(f"The ensemble {folder.path} has not come to its end: it has no summary.json.")
    return done


@dataclass(frozen=True)
class _Asked:
    """What the members say, before anything is fitted.

    Attributes:
        found: by split.
        rows: a row a member, by split.
        judge: measures on the same images.
        notes: what else there is to say about the images.
    """

    found: dict[Split, _Measured]
    rows: dict[Split, list[Row]]
    judge: "_Judge"
    notes: tuple[str, ...]


def _ask(
    folder: ExperimentFolder,
    candidates: Sequence[Candidate],
    data: VoteData,
    *,
    seed: int,
    device: str,
    progress: Progress,
) -> _Asked:
    """Decode, and ask and measure each member."""
    copies, notes = folder.path / "runs" / "all", data.notes
    try:
        with folder.stage("copy"):
            everyone = _everyone(copies, candidates, device)
        with folder.stage("decode"):
            stored = _stored(everyone, data, candidates, progress)
        if not data.is_own:
            notes = (*notes, *check_new(candidates, stored.manifest))
        stored.manifest.write(folder.manifest)
        with folder.stage("predict"):
            found = {split: _asked(everyone, stored, split) for split in MEASURED}
        with folder.stage("evaluate members"):
            _count_looks(candidates, data)
            judge = _Judge(stored.manifest, data, seed)
            rows = _member_rows(copies, candidates, found, judge, device)
    finally:
        shutil.rmtree(copies, ignore_errors=True)
    return _Asked(found, rows, judge, notes)


def _everyone(copies: Path, candidates: Sequence[Candidate], device: str) -> Predictor:
    """All members, ready to be asked: by copies, which all know the classes in one order."""
    num = len(candidates)
    # What is fitted is fitted on what the bundle will say, for it will hold copies like these.
    bundles, names = [each.bundle for each in candidates], [each.name for each in candidates]
    write_ensemble(copies, bundles, names, vote="soft", weights=[1.0 / num] * num)
    return Predictor(copies, device=device)


def _stored(everyone: Predictor, data: VoteData, candidates: Sequence[Candidate], progress: Progress) -> Stored:
    stored = stored_for(everyone, data.manifest, data.config, progress)
    if data.is_own and (changed := changed_images(data.manifest, stored.manifest)):
        raise DataError(
            f"{len(changed)} of the {len(data.manifest)} samples are not what {candidates[0].name} was made with.",
            problems=changed,
            fix="bring them back, or measure on what there is now: --data DATA",
        )
    return stored


def _asked(everyone: Predictor, stored: Stored, split: Split) -> _Measured:
    rows = rows_of_split(stored.manifest, split)
    labels = align_labels(stored.manifest, everyone.class_names)[rows]
    by_member = everyone.member_probabilities(stored.sources, rows, batch_size=BATCH_SIZE, num_workers=num_cpus())
    return _Measured(split, rows, labels, by_member)


def _fitted(
    folder: ExperimentFolder,
    candidates: Sequence[Candidate],
    weights: Floats,
    vote: Vote,
    found: Mapping[Split, _Measured],
) -> dict[Split, SplitLogits]:
    """Write the bundle of those that have a weight, with its temperature; what it says of each split.

    Where one alone has a weight, the bundle is that one's own.
    """
    kept = np.flatnonzero(weights > 0)
    chosen, class_names = [candidates[at] for at in kept.tolist()], candidates[0].bundle.spec.class_names
    bundles = [candidate.bundle for candidate in chosen]
    if len(kept) == 1:
        temperature = write_single(folder.bundle, bundles[0], class_names).spec.temperature
        return {split: _said(each, each.by_member[kept[0]], temperature) for split, each in found.items()}
    shares = weights[kept].tolist()
    # In the class order of the first, whether or not that one is kept.
    names = [candidate.name for candidate in chosen]
    write_ensemble(folder.bundle, bundles, names, vote=vote, weights=shares, class_names=class_names)
    said = {split: _said(each, voted(each.by_member[kept], vote, shares)) for split, each in found.items()}
    update_bundle(folder.bundle, temperature=calibrate(said["val"]))
    return said


def _said(found: _Measured, probabilities: Floats, temperature: float = 1.0) -> SplitLogits:
    """Probabilities as logits that, divided by the temperature, give them again."""
    logits = logits_of(probabilities, temperature).astype(np.float32)
    return SplitLogits(found.split, found.rows, found.labels, logits)


def _count_looks(candidates: Sequence[Candidate], data: VoteData) -> None:
    """Counted before it can be read, in every run whose test split this is."""
    if data.is_own:
        for candidate in candidates:
            if candidate.run is not None:
                candidate.run.count_look("test", "ensemble")


class _Judge:
    """Measures every model on the same images in the same way."""

    def __init__(self, manifest: Manifest, data: VoteData, seed: int) -> None:
        self.manifest, self._data, self._seed = manifest, data, seed

    def measured(self, predictor: Predictor, said: SplitLogits) -> SplitMetrics:
        """Every figure of metrics.json."""
        data, names = self._data, predictor.class_names
        return measure(
            said,
            self.manifest,
            predictor,
            majority_class=names.index(data.majority) if data.majority in names else None,
            siblings_in_train=None if data.siblings is None else data.siblings[said.rows],
            seed=self._seed,
        )


def _member_rows(
    copies: Path,
    candidates: Sequence[Candidate],
    found: Mapping[Split, _Measured],
    judge: _Judge,
    device: str,
) -> dict[Split, list[Row]]:
    """A row a member, by split; each as its copy in the bundle of all says it."""
    rows: dict[Split, list[Row]] = {split: [] for split in MEASURED}
    for at, candidate in enumerate(candidates):
        alone = Predictor(copies / member_folder(at), device=device)
        facts: Row = {
            "weight": None,
            "path": str(candidate.path),
            "model": candidate.architecture,
            "image_size": candidate.bundle.spec.preprocessing.size_px,
        }
        for split in MEASURED:
            said = _said(found[split], found[split].by_member[at], alone.temperature)
            rows[split].append(metrics_row(candidate.name, judge.measured(alone, said), **facts))
    return rows


def _cost(row: Row) -> tuple[float, float]:
    """Smaller is better: by accuracy, and of equal ones by log loss."""
    return -row["accuracy"], row["log_loss"]


def _sentences(
    vote: Vote, shares: dict[str, float], test: SplitMetrics, best: str, comparison: PairedComparison
) -> list[str]:
    kept = {name: share for name, share in shares.items() if share > 0}
    sentences = [comparison.sentence(f"{best} (best on validation)", "the ensemble")]
    sentences.append(f"The {vote} vote of {len(kept)} models: {test.sentence()}")
    if vote == "weighted":
        listed = ", ".join(f"{name} {shown(share)}" for name, share in kept.items())
        sentences.append(f"Weights, fitted on validation alone: {listed}")
        if left := [name for name in shares if name not in kept]:
            sentences.append(f"Left out of the bundle, since the vote is as good without: {', '.join(left)}")
        if len(kept) == 1:
            sentences.append(
                f"No mixture did better on validation than {next(iter(kept))} alone: the bundle is its own"
            )
    return [f"{sentence}." for sentence in sentences]


def _disagreements(names: Sequence[str], validation: _Measured) -> list[dict[str, Any]]:
    """How often two members predict different classes: a vote gains where each errs on images of its own."""
    predicted = validation.by_member.argmax(axis=2)
    return [
        {"first": names[i], "second": names[j], "share": float((predicted[i] != predicted[j]).mean())}
        for i, j in combinations(range(len(names)), 2)
    ]


def _write(result: Ensemble, vote: Vote, temperature: float, disagreements: Sequence[dict[str, Any]]) -> None:
    write_summary(
        result.folder.summary,
        "ensemble",
        result.rows,
        validation=result.validation,
        vote=vote,
        weights=result.weights,
        temperature=temperature,
        best_member=result.best_member,
        comparison=result.comparison,
        disagreement_on_validation=list(disagreements),
        sentences=list(result.sentences),
    )
    result.folder.log_event("done", vote=vote)
