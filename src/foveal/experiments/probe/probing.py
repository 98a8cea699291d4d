"""A probe: a frozen backbone's features once, classical heads on them, and the best of them as a bundle.

Test decides nothing: the points of each grid, the temperatures and the winner are chosen on validation.
"""

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from foveal.config import dump_yaml
from foveal.data.augment_config import AugmentConfig
from foveal.data.split import straddling
from foveal.errors import DataError
from foveal.evaluation.evaluate import SplitLogits, calibrate, groups_of, majority_class, write_evaluation
from foveal.experiments.outcome import bundle_state, evaluate_run, headlines_of
from foveal.experiments.preparing import Settled, recipe_of
from foveal.experiments.probe.heads import (
    HEADS,
    FittedHead,
    HeadData,
    fit_head,
    head_logits,
    head_module,
)
from foveal.experiments.probe.kept import keep, taken_up
from foveal.experiments.probe.network import backbone_of, plain_head, with_head
from foveal.experiments.probe.result import ProbeOutcome, ProbeTask, run_name
from foveal.experiments.probe.words import sentences
from foveal.experiments.shared_data import SharedData
from foveal.experiments.summary import metrics_row, write_summary
from foveal.files import read_json, write_json, write_text
from foveal.machine import num_cpus
from foveal.metrics import SplitMetrics, compare_paired, holm, softmax, summarise
from foveal.model.bundle import update_bundle
from foveal.model.costs import summarise as summarise_layers
from foveal.model.feature_store import cached_features
from foveal.progress import Progress
from foveal.run_folder import ExperimentFolder, RunFolder, describe_environment
from foveal.training.config import Config
from foveal.training.logs import Logs
from foveal.training.losses import make_criterion
from foveal.types import SPLITS, Split

_FROM_IMAGES: tuple[Split, ...] = ("val", "test")
_TOLD_APART = 0.01
"""A larger change of validation's log loss between features and images is worth a word."""


@dataclass(frozen=True)
class _Features:
    """The features of one backbone at one size.

    Attributes:
        settled: the data and the configuration.
        backbone: its name, as it is shown.
        rows: of each split, int64 [n].
        labels: of each split, int64 [n].
        values: of each split, float32 [n, features].
        seconds: that they took.
    """

    settled: Settled
    backbone: str
    rows: Mapping[Split, NDArray[np.int64]]
    labels: Mapping[Split, NDArray[np.int64]]
    values: Mapping[Split, NDArray[np.float32]]
    seconds: float


@dataclass(frozen=True)
class _Result:
    """One head on the features of one backbone at one size."""

    name: str
    settled: Settled
    fitted: FittedHead
    row: dict[str, Any]
    said: Mapping[Split, SplitLogits]
    metrics: Mapping[str, SplitMetrics]

    @property
    def rank(self) -> tuple[float, float]:
        """By validation: macro F1, then log loss."""
        return self.row["val_macro_f1"], -self.row["val_log_loss"]

    @property
    def test_probabilities(self) -> NDArray[np.float64]:
        """float64 [n, classes]."""
        return softmax(self.said["test"].logits.astype(np.float64), self.metrics["test"].temperature)


def probe(
    data: str | PathLike[str], config: Config, task: ProbeTask, folder: ExperimentFolder, progress: Progress
) -> ProbeOutcome:
    """Carry a probe out, or go on with it: features and heads that are there are not made again.

    Args:
        data: as for `train`.
        config: as `fixed_config` gives it.
        task: what to try.
        folder: prepared, begun and held by this process.
        progress: where to show it.

    Raises:
        DataError: the data is not what training needs, or training has one class only.
        ArtifactError: the starting weights cannot be had.
        ConfigError: a backbone cannot be probed, or does not suit the data or the machine.
    """
    for sentence in task.skipped:
        progress.say(sentence)
    variants = list(_variants(config, task))
    shared = SharedData.prepare(data, variants[0], folder, progress)
    results = [result for variant in variants for result in _tried_out(shared, variant, task, folder, progress)]
    with folder.stage("compare"):
        ranked = sorted(results, key=lambda result: result.rank, reverse=True)
        _compare_with(ranked)
    with folder.stage("bundle"):
        _make_run(folder, ranked[0], progress)
    rows = [result.row for result in results]
    features = {(row["backbone"], row["size_px"]): row["feature_seconds"] for row in rows}
    seconds = sum(features.values()) + sum(row["fit_seconds"] for row in rows)
    outcome = ProbeOutcome(rows, ranked[0].name, (), seconds)
    told = sentences(outcome, has_random_weights="none" in variants[0].model.starts)
    outcome = ProbeOutcome(rows, ranked[0].name, told, seconds)
    write_summary(
        folder.summary,
        "probe",
        rows,
        winner=outcome.winner,
        sentences=list(told),
        seconds=seconds,
        skipped=list(task.skipped),
    )
    folder.log_event("done", winner=outcome.winner)
    return outcome


def fixed_config(config: Config) -> Config:
    """A configuration as a probe has it: frozen, without augmentation, in float32, with nothing but fitted heads."""
    model = config.model.model_copy(update={"freeze": "all", "unfreeze": {}, "head": plain_head(config.model.head)})
    train: dict[str, Any] = {
        "precision": "fp32",
        "compile": False,
        "mixup": 0.0,
        "cutmix": 0.0,
        "devices": 1,
        "nodes": 1,
    }
    if config.train.batch_size == "largest":
        train["batch_size"] = "auto"
    return config.model_copy(
        update={
            "model": model,
            "augment": AugmentConfig(policy="none"),
            "train": config.train.model_copy(update=train),
            "log": type(config.log)(),
        }
    )


def _variants(config: Config, task: ProbeTask) -> Iterator[Config]:
    """A configuration for each backbone and size, in the order of the task."""
    for backbone in task.backbones or (config.model.name,):
        for size_px in task.sizes or (config.data.image_size,):
            yield config.model_copy(
                update={
                    "model": config.model.model_copy(update={"name": backbone}),
                    "data": config.data.model_copy(update={"image_size": size_px}),
                }
            )


def check_backbones(config: Config, task: ProbeTask) -> None:
    """Find out before hours of decoding that a backbone's weights are out of reach, or that it cannot be probed.

    Raises:
        ArtifactError: the starting weights cannot be had.
        ConfigError: there is no such backbone, or it cannot be taken apart.
    """
    from foveal.training.resolve import Facts, resolve

    for variant in _variants(config, task):
        backbone_of(resolve(variant, Facts("folder", 1000, 1000, 224, 1.0)), ("a", "b"))


def _tried_out(
    shared: SharedData, variant: Config, task: ProbeTask, folder: ExperimentFolder, progress: Progress
) -> Iterator[_Result]:
    """Every head on one backbone at one size."""
    settled = shared.settled(variant)
    with folder.stage("features"):
        found = _features(settled, progress)
    data = _head_data(found)
    with progress.bar(f"Fitting heads on {found.backbone} at {settled.config.data.image_size} px", len(task.heads),
                      "heads") as bar:  # fmt: skip
        for head in task.heads:
            name = run_name(found.backbone, settled.config.data.image_size, head)
            run = folder.run(name)
            with folder.stage("fit"):
                fitted = taken_up(run, head)
                if fitted is None:
                    fitted = fit_head(head, data)
                    keep(run, fitted)
            with folder.stage("evaluate"):
                yield _measured(name, run, found, fitted)
            bar.advance()


def _features(settled: Settled, progress: Progress) -> _Features:
    config, manifest = settled.config, settled.manifest
    started = time.perf_counter()
    classifier, origin = backbone_of(config, manifest.class_names)
    progress.say(origin.sentence())
    labels = manifest.label_ids()
    rows: dict[Split, NDArray[np.int64]] = {name: manifest.of_split(name) for name in SPLITS}
    if len(np.unique(labels[rows["train"]])) < 2:
        raise DataError(
            "The training images are all of one class, and nothing can be told apart by them.",
            fix="give the training split images of two classes or more.",
        )
    kept = cached_features(
        classifier,
        settled.source,
        manifest,
        np.concatenate(list(rows.values())),
        recipe_of(config),
        device=torch.device(config.train.device),
        autocast=None,
        cap_bytes=int(config.data.store_cap_gib * (1 << 30)),
        num_workers=1 if config.data.store == "on" else config.data.num_workers,
        progress=progress,
    )
    values: dict[Split, NDArray[np.float32]] = {name: kept.take(rows[name]) for name in SPLITS}
    if not all(np.isfinite(part).all() for part in values.values()):
        raise DataError(
            f"{classifier.architecture.in_words} gives features that are no finite numbers.",
            fix="choose other weights with --set model.weights=PATH, or another --backbone.",
        )
    shown = config.model.name if isinstance(config.model.name, str) else "+".join(config.model.name)
    seconds = time.perf_counter() - started
    return _Features(settled, shown, rows, {name: labels[rows[name]] for name in SPLITS}, values, seconds)


def _head_data(found: _Features) -> HeadData:
    config, names = found.settled.config, found.settled.manifest.class_names
    counts = np.bincount(found.labels["train"], minlength=len(names))
    weights = make_criterion(config.train, names, counts).class_weights
    return HeadData(
        train=found.values["train"],
        train_labels=found.labels["train"],
        val=found.values["val"],
        val_labels=found.labels["val"],
        num_classes=len(names),
        class_weights=None if weights is None else weights.double().numpy(),
        seed=config.seed,
        num_threads=num_cpus(),
    )


def _measured(name: str, run: RunFolder, found: _Features, fitted: FittedHead) -> _Result:
    """Temperature on validation, then every figure of each split, by the head as it would be deployed."""
    settled, manifest = found.settled, found.settled.manifest
    head = head_module(fitted.best, found.values["train"].shape[1], len(manifest.class_names))
    said: dict[Split, SplitLogits] = {
        split: SplitLogits(split, found.rows[split], found.labels[split], head_logits(head, found.values[split]))
        for split in SPLITS
    }
    temperature = calibrate(said["val"])
    metrics: dict[str, SplitMetrics] = {split: _metrics(said[split], settled, temperature) for split in SPLITS}
    for split in SPLITS:
        write_evaluation(run.evaluation(split), said[split], metrics[split], manifest, temperature, with_plots=False)
    return _Result(name, settled, fitted, _row(name, found, fitted, metrics), said, metrics)


def _metrics(said: SplitLogits, settled: Settled, temperature: float) -> SplitMetrics:
    """Every figure of one split but for the latency, which the winner alone has."""
    manifest = settled.manifest
    return summarise(
        said.labels,
        said.logits.astype(np.float64),
        class_names=manifest.class_names,
        split=said.split,
        temperature=temperature,
        majority_class=majority_class(manifest, manifest.class_names),
        groups=groups_of(manifest, said.rows),
        ordered=settled.config.data.ordered,
        siblings_in_train=None if said.split == "train" else straddling(manifest)[said.rows],
        seed=settled.config.seed,
    )


def _row(name: str, found: _Features, fitted: FittedHead, metrics: Mapping[str, SplitMetrics]) -> dict[str, Any]:
    facts = {
        "backbone": found.backbone,
        "size_px": found.settled.config.data.image_size,
        "head": fitted.name,
        "title": HEADS[fitted.name].title,
        "weights": list(found.settled.config.model.starts),
        "num_features": found.values["train"].shape[1],
        "chosen": dict(fitted.best.chosen),
        "grid": [asdict(point) for point in fitted.tried],
        "notes": list(fitted.best.notes),
        "feature_seconds": round(found.seconds, 3),
        "fit_seconds": round(fitted.seconds, 3),
    }
    return {**metrics_row(name, metrics["test"], **facts), **_of_splits(metrics)}


def _of_splits(metrics: Mapping[str, SplitMetrics]) -> dict[str, Any]:
    """What a row says of train and validation beside the figures of test."""
    found: dict[str, Any] = {f"{split}_accuracy": metrics[split].accuracy for split in SPLITS}
    found |= {"val_macro_f1": metrics["val"].macro_f1, "val_log_loss": metrics["val"].log_loss}
    bounds = metrics["val"].confidence_intervals.get("accuracy")
    return {**found, "val_accuracy_interval": None if bounds is None else list(bounds)}


def _compare_with(ranked: Sequence[_Result]) -> None:
    """Put into each other row what the test images say of it beside the winner, corrected for being several."""
    best = ranked[0]
    groups = groups_of(best.settled.manifest, best.settled.manifest.of_split("test"))
    pairs = [
        compare_paired(
            best.said["test"].labels,
            best.test_probabilities,
            other.test_probabilities,
            groups=groups,
            seed=best.settled.config.seed,
        )
        for other in ranked[1:]
    ]
    adjusted = holm([pair.mcnemar_p for pair in pairs])
    best.row["against_winner"] = None
    for place, (other, pair, p) in enumerate(zip(ranked[1:], pairs, adjusted, strict=True), 2):
        fair = pair.adjusted(p)
        other.row["place"] = place
        other.row["against_winner"] = {**fair.to_dict(), "sentence": fair.sentence(best.name, other.name)}
    best.row["place"] = 1


def _make_run(folder: ExperimentFolder, best: _Result, progress: Progress) -> None:
    """The winner as a run with a bundle, measured like any other; its row gets those figures.

    Validation and test go through the bundle from the images on. Of training, which is most of the images, the features
    are at hand, and go through the head.
    """
    run, settled = folder.run(best.name), best.settled
    config, manifest = settled.config, settled.manifest
    base, origin = backbone_of(config, manifest.class_names)
    network = with_head(base, best.fitted.best)
    write_json(run.env, describe_environment(seed=config.seed, device=config.train.device))
    write_text(run.model_summary, summarise_layers(network, manifest.class_names))
    write_json(run.weights_origin, {"source": origin.source, "tag": origin.tag, "licence": origin.licence})
    manifest.write(run.manifest)
    bundle_state(run, config, manifest, network.architecture, network.net.state_dict())
    metrics = evaluate_run(run, settled, progress, Logs(), _FROM_IMAGES)
    temperature = metrics["val"].temperature
    metrics = {"train": _metrics(best.said["train"], settled, temperature), **metrics}
    write_evaluation(run.evaluation("train"), best.said["train"], metrics["train"], manifest, temperature)
    if "train" not in read_json(run.looks):  # once, however often this was killed and made again
        run.count_look("train", "probe")
    update_bundle(run.bundle, metrics=headlines_of(metrics))
    before = best.row["val_log_loss"]
    best.row.update({**metrics["test"].model_dump(mode="json"), **_of_splits(metrics)})
    if abs(best.row["val_log_loss"] - before) > _TOLD_APART:
        message = (
            f"On images the bundle of {best.name} has a log loss of {best.row['val_log_loss']:.3f} on validation, and "
            f"on cached features it had {before:.3f}: what counts are the figures on images."
        )
        progress.say(message)
        run.log_event("warning", message=message)
    # Written last: a folder with a configuration is a run.
    write_text(run.config, dump_yaml(config))
    _link(run.bundle, folder.bundle)


def _link(source: Path, target: Path) -> None:
    """The winner's bundle as the experiment's own, without a second copy on disk where that can be had."""
    target.mkdir(parents=True, exist_ok=True)
    # The description comes last, for it is what makes a folder a bundle.
    for file in sorted(source.iterdir(), key=lambda path: path.name == "bundle.json"):
        (target / file.name).unlink(missing_ok=True)
        try:
            os.link(file, target / file.name)
        except OSError:
            shutil.copyfile(file, target / file.name)
