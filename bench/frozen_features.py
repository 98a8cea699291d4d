"""Ten epochs of a frozen backbone, with its features computed once and with its images seen anew in every epoch.

All ways in turns, in one process, on the same images, by the loop that `foveal train` runs, its checkpoints and its
validation included: `uncached` on images; `first` on features that are computed within the time that is measured;
`again` on features that an earlier run, fold or trial has left in the store. Prints one JSON object on stdout: the
seconds of each, how many times as fast as `uncached` the others are, and the accuracies on validation.
"""

import argparse
import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from foveal.config import load
from foveal.data.augment import Augmentation
from foveal.data.batches import Batches, TrainingBatches
from foveal.data.ingest import Ingested, Recipe, ingest
from foveal.data.manifest import Manifest
from foveal.experiments.run import draw_split, prepare
from foveal.model.build import Classifier, build
from foveal.model.weights import load_weights
from foveal.pixels.policy import PixelPolicy
from foveal.progress import Terminal
from foveal.run_folder import RunFolder
from foveal.training.config import Config, ResolvedConfig
from foveal.training.fit import fit
from foveal.training.frozen_features import features_can_be_cached, with_features
from foveal.training.resolve import architecture_of, geometry_of
from foveal.training.state import TrainingData

WAYS = ("uncached", "first", "again")
# A rate at which random features are learnt from too.
RECIPE = ("model.freeze=all", "augment.policy=none", "train.device=cpu", "train.batch_size=64", "optim.lr=0.02")


@dataclass(frozen=True)
class Work:
    """What is trained on, decoded and divided."""

    config: ResolvedConfig
    manifest: Manifest
    ingested: Ingested
    recipe: Recipe

    def classifier(self) -> Classifier:
        """The network with the same start each time."""
        torch.manual_seed(self.config.seed)
        classifier = build(architecture_of(self.config, len(self.manifest.class_names)))
        load_weights(classifier, self.config.model.name, self.config.model.weights)
        return classifier

    def data(self) -> TrainingData:
        """The training on images."""
        config, geometry, labels = self.config, self.recipe.geometry, self.manifest.label_ids()
        train, val = self.manifest.of_split("train"), self.manifest.of_split("val")
        return TrainingData(
            train=TrainingBatches(
                self.ingested.source,
                train,
                labels[train],
                side_px=geometry.store_px,
                batch_size=config.train.batch_size,
                seed=config.seed,
                random_window=False,
            ),
            val=Batches(self.ingested.source, val, labels[val], geometry, batch_size=config.train.batch_size),
            augmentation=Augmentation(config.augment, side_px=geometry.store_px, size_px=geometry.size_px),
            class_names=self.manifest.class_names,
            paths=self.manifest.absolute_paths(),
            train_labels=labels[train],
        )


def make_work(images: Path, settings: list[str]) -> Work:
    """Read, decode and divide, by the code that `foveal train` runs."""
    prepared = prepare(images, load(Config, None, [*RECIPE, *settings]))
    config = prepared.config
    recipe = Recipe(geometry_of(config), PixelPolicy(background=config.data.background), config.data.box_margin)
    ingested = ingest(
        prepared.manifest, recipe, keep_pixels=True, cap_bytes=8 << 30, num_workers=config.data.num_workers
    )
    return Work(config, draw_split(ingested.manifest, config), ingested, recipe)


def train(work: Work, way: str, scratch: Path) -> tuple[float, list[dict[str, Any]]]:
    """The seconds of a whole training, and its table of epochs."""
    if way == "first":
        os.environ["FOVEAL_CACHE_DIR"] = tempfile.mkdtemp(dir=scratch)
    run = RunFolder(Path(tempfile.mkdtemp(dir=scratch)))
    run.prepare()
    classifier, data = work.classifier(), work.data()
    started = time.perf_counter()
    if way != "uncached":
        data = with_features(
            data, classifier, work.config, work.manifest, work.ingested.source, work.recipe, Terminal()
        )
    position = fit(classifier, data, work.config, run, Terminal())
    return time.perf_counter() - started, position.history


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--weights", default="none", help="a run, a bundle or a file; random if not given")
    parser.add_argument("--size-px", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], help="any other setting, as of foveal train")
    wanted = parser.parse_args()
    settings = [f"model.name={wanted.model}", f"model.weights={wanted.weights}", f"data.image_size={wanted.size_px}"]
    settings += [f"train.epochs={wanted.epochs}", *wanted.set]
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    accuracies: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["FOVEAL_CACHE_DIR"] = scratch
        work = make_work(wanted.images, settings)
        if reason := features_can_be_cached(work.config, work.classifier(), len(work.manifest)):
            parser.error(f"the features cannot be cached: {reason}")
        for _ in range(wanted.rounds):
            for way in WAYS:
                took, history = train(work, way, Path(scratch))
                seconds[way].append(took)
                accuracies[way] = history[-1]["val_accuracy"]
    ratios = {
        way: [slow / fast for slow, fast in zip(seconds["uncached"], seconds[way], strict=True)] for way in WAYS[1:]
    }
    said = {
        "num_train": len(work.manifest.of_split("train")),
        "precision": work.config.train.precision,
        "seconds": seconds,
        "times_as_fast": {way: median(values) for way, values in ratios.items()},
        "val_accuracy": accuracies,
    }
    print(json.dumps(said))


if __name__ == "__main__":
    main()
