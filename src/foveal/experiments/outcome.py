"""What a training comes to: its bundle, its metrics, and what the logs are shown of them."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from foveal.data.manifest import Manifest
from foveal.data.split import straddling
from foveal.errors import FovealError
from foveal.evaluation.evaluate import SplitLogits, calibrate, majority_class, measure, predict_split, write_evaluation
from foveal.experiments.preparing import Settled
from foveal.files import read_json
from foveal.inference import Predictor
from foveal.metrics import SplitMetrics
from foveal.model.build import Architecture, Classifier
from foveal.model.bundle import read_bundle, update_bundle, write_bundle
from foveal.pixels.policy import PixelPolicy, to_square
from foveal.progress import Progress
from foveal.run_folder import RunFolder
from foveal.training import checkpoint
from foveal.training.config import ResolvedConfig
from foveal.training.logs import MAX_IMAGES, Logs
from foveal.training.resolve import geometry_of
from foveal.types import SPLITS, Split

HEADLINES = ("accuracy", "balanced_accuracy", "macro_f1", "macro_roc_auc", "log_loss", "ece")
"""Metrics that a bundle carries with it, for each split."""


@dataclass(frozen=True)
class Outcome:
    """A finished run: its metrics by split, and the epoch that the bundle holds, counted from 1."""

    metrics: Mapping[str, SplitMetrics]
    best_epoch: int


def finished(run: RunFolder, splits: Sequence[Split] = SPLITS) -> Outcome | None:
    """What a run came to on some splits, if it has done all its work; the bundle gets its metrics last of all."""
    if not all((run.evaluation(name) / "metrics.json").is_file() for name in splits):
        return None
    # What is damaged by now counts as not done, and is made again.
    with suppress(FovealError):
        if read_bundle(run.bundle).spec.metrics:
            best_epoch = int(checkpoint.load(run.checkpoints / checkpoint.BEST)["epoch"])
            metrics: dict[str, SplitMetrics] = {
                name: SplitMetrics.read(run.evaluation(name) / "metrics.json") for name in splits
            }
            return Outcome(metrics, best_epoch)
    return None


def bundle_best(run: RunFolder, config: ResolvedConfig, manifest: Manifest, classifier: Classifier) -> None:
    """Write the best epoch's weights with all that a prediction needs; the temperature follows with the evaluation."""
    best = checkpoint.load(run.checkpoints / checkpoint.BEST)
    bundle_state(run, config, manifest, classifier.architecture, best["model"])


def bundle_state(
    run: RunFolder,
    config: ResolvedConfig,
    manifest: Manifest,
    architecture: Architecture,
    state: Mapping[str, torch.Tensor],
) -> None:
    """Write a network's tensors as the bundle of a run, not calibrated yet."""
    geometry = geometry_of(config)
    spec: dict[str, Any] = {
        "architecture": architecture.spec(),
        "class_names": manifest.class_names,
        "preprocessing": {
            "policy_version": PixelPolicy().version,
            "max_pixels": PixelPolicy().max_pixels,
            "size_px": geometry.size_px,
            "store_px": geometry.store_px,
            "fit": geometry.fit,
            "interpolation": geometry.interpolation,
            "background": geometry.background,
            "mean": architecture.mean,
            "std": architecture.std,
        },
        "temperature": 1.0,
        "ordered": config.data.ordered,
        "training_data": {
            "fingerprint": manifest.fingerprint(),
            "num_images": {name: len(manifest.of_split(name)) for name in SPLITS},
            "box_margin": config.data.box_margin,
        },
        "weights": run.read_weights_origin(),
    }
    write_bundle(run.bundle, spec, state)


def evaluate_run(
    run: RunFolder,
    settled: Settled,
    progress: Progress,
    logs: Logs,
    splits: Sequence[Split] = SPLITS,
    *,
    with_plots: bool = True,
) -> dict[str, SplitMetrics]:
    """Fit the temperature on validation, then measure splits with the bundle as it will be deployed.

    Args:
        run: with its bundle.
        settled: the data.
        progress: where to show it.
        logs: where figures go besides.
        splits: which; validation is among them.
        with_plots: whether to draw, which a run that nobody looks at has no need of.
    """
    config, manifest = settled.config, settled.manifest
    predictor = Predictor(run.bundle, device=config.train.device)
    num_workers = config.data.num_workers
    said: dict[Split, SplitLogits] = {}
    with progress.bar("Evaluating", len(splits), "splits") as bar:
        for name in splits:
            said[name] = predict_split(predictor, manifest, [settled.source], name, num_workers=num_workers)
            bar.advance()
    update_bundle(run.bundle, temperature=calibrate(said["val"]))
    predictor = Predictor(run.bundle, device=config.train.device)
    metrics: dict[str, SplitMetrics] = {}
    guess = majority_class(manifest, predictor.class_names)
    for name in splits:
        metrics[name] = measure(
            said[name],
            manifest,
            predictor,
            majority_class=guess,
            siblings_in_train=straddling(manifest)[said[name].rows] if name != "train" else None,
            seed=config.seed,
        )
        write_evaluation(
            run.evaluation(name),
            said[name],
            metrics[name],
            manifest,
            predictor.temperature,
            with_plots=with_plots,
        )
        _count_look(run, name)
    update_bundle(run.bundle, metrics=headlines_of(metrics))
    _show(logs, settled, said["val"], metrics)
    return metrics


def headlines_of(metrics: Mapping[str, SplitMetrics]) -> dict[str, dict[str, Any]]:
    """What a bundle carries of its metrics: split to name to value and interval."""
    return {
        name: {key: [getattr(found, key), found.confidence_intervals.get(key)] for key in HEADLINES}
        for name, found in metrics.items()
    }


def _show(logs: Logs, settled: Settled, said: SplitLogits, metrics: Mapping[str, SplitMetrics]) -> None:
    """Send to the logs what a run came to: figures, matrices, and the validation images that it is most wrong about."""
    if not logs.names:
        return
    geometry, names = geometry_of(settled.config), metrics["val"].class_names
    predicted = said.logits.argmax(axis=1)
    wrong = np.flatnonzero(predicted != said.labels)
    # By how far the wrong class lies before the right one.
    margins = said.logits.max(axis=1)[wrong] - said.logits[wrong, said.labels[wrong]]
    worst = wrong[np.argsort(-margins, kind="stable")][:MAX_IMAGES]
    if len(worst):
        squares = np.stack([to_square(settled.source[row], geometry) for row in said.rows[worst]])
        captions = [f"{names[said.labels[i]]} taken for {names[predicted[i]]}" for i in worst]
        logs.images("worst validation errors", squares, captions)
    for name, found in metrics.items():
        logs.confusion_matrix(name, np.asarray(found.confusion_matrix), found.class_names)
    logs.summary({name: {key: getattr(found, key) for key in HEADLINES} for name, found in metrics.items()})


def _count_look(run: RunFolder, split: Split) -> None:
    """Count the look that belongs to the training; once, however often the evaluation was killed and made again."""
    looks = read_json(run.looks) if run.looks.exists() else {}
    if not any(look["verb"] == "train" for look in looks.get(split, [])):
        run.count_look(split, "train")
