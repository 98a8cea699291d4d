"""Ten epochs of a frozen backbone, with its features computed once and with its images seen anew in every epoch.

All ways in turns, in one process, on the same images, by the loop that `foveal train` runs, its checkpoints and its
validation included: `uncached` on images; `first` on features that are computed within the time that is measured;
`again` on features that an earlier run, fold or trial has left in the store. Prints the seconds of each, how many times
as fast as `uncached` they are, and the accuracies on validation. Target: `again` is at least ten times as fast, with
the same accuracy.

    python bench/frozen_features.py ../shared/data/sign_digits
"""

import argparse
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

import foveal
from foveal.config import load
from foveal.data.augment import Augmentation
from foveal.data.batches import Batches, TrainingBatches
from foveal.data.ingest import Ingested, Recipe, ingest
from foveal.data.manifest import Manifest
from foveal.experiments.preparing import draw_split, prepare
from foveal.model.build import Classifier, build
from foveal.model.weights import load_weights
from foveal.pixels.policy import PixelPolicy
from foveal.progress import Silence, Terminal
from foveal.run_folder import RunFolder
from foveal.training.config import Config, ResolvedConfig
from foveal.training.fit import fit
from foveal.training.frozen_features import features_can_be_cached, with_features
from foveal.training.resolve import architecture_of, geometry_of
from foveal.training.state import TrainingData
from images import unpacked_cifar10
from measuring import ratios
from recording import Record, add_out, print_table, with_spread

WAYS = ("uncached", "first", "again")
TARGET = 10.0
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
        weights = self.config.model.weights
        load_weights(classifier, self.config.model.name, weights, class_names=self.manifest.class_names)
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
                random_window=config.augment.random_window,
                size_px=geometry.size_px,
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
        data = with_features(data, classifier, work.config, work.manifest, work.ingested.source, work.recipe, Silence())
    position = fit(classifier, data, work.config, run, Silence())
    return time.perf_counter() - started, position.history


def quick_weights(model: str, size_px: int, num_images: int, num_epochs: int, scratch: Path) -> Path | None:
    """A run of foveal's own on a subset of CIFAR-10, so that the backbone has learnt to see; None without CIFAR-10."""
    cifar10 = unpacked_cifar10(scratch)
    if cifar10 is None:
        return None
    subset = scratch / "cifar10.parquet"
    foveal.split(cifar10 / "test", subset, overrides=[f"split.total={num_images}", "split.near_duplicates=false"])
    settings = [f"model.name={model}", "model.weights=none", f"data.image_size={size_px}", f"train.epochs={num_epochs}"]
    settings += ["train.device=cpu", "audit.near_duplicates=false", "augment.horizontal_flip=0.5"]
    return foveal.train(subset, scratch / "weights", overrides=settings, progress=Terminal()).run


def subset_of(images: Path, num_images: int | None, scratch: Path) -> Path:
    """A manifest of so many images of a data set, or all of it."""
    if num_images is None:
        return images
    file = scratch / "subset.parquet"
    foveal.split(images, file, overrides=[f"split.total={num_images}", "split.near_duplicates=false"])
    return file


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument(
        "--weights",
        default="quick",
        help="a run, a bundle or a file, or none for random ones; quick trains some on a subset of CIFAR-10 first, and "
        "takes random ones where there is none (default: quick)",
    )
    parser.add_argument("--quick-images", type=int, default=3000, help="images that quick weights learn from")
    parser.add_argument("--quick-epochs", type=int, default=4, help="epochs that quick weights learn in")
    parser.add_argument("--num-images", type=int, default=0, help="of the data set; 0, the default, for all")
    parser.add_argument("--size-px", type=int, default=96)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any other setting")
    add_out(parser, "frozen_features")
    wanted = parser.parse_args()
    record = Record("frozen_features", wanted.out)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    accuracies: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="foveal-bench-") as name:
        scratch = Path(name)
        os.environ["FOVEAL_CACHE_DIR"] = str(scratch / "cache")
        weights = wanted.weights
        if weights == "quick":
            run = quick_weights(wanted.model, wanted.size_px, wanted.quick_images, wanted.quick_epochs, scratch)
            weights = "none" if run is None else str(run)
        settings = [f"model.name={wanted.model}", f"model.weights={weights}", f"data.image_size={wanted.size_px}"]
        settings += [f"train.epochs={wanted.epochs}", *wanted.set]
        work = make_work(subset_of(wanted.images, wanted.num_images or None, scratch), settings)
        num_train, num_val = (len(work.manifest.of_split(split)) for split in ("train", "val"))
        if reason := features_can_be_cached(work.config, work.classifier(), num_train + num_val):
            parser.error(f"the features cannot be cached: {reason}")
        for _ in range(wanted.rounds):
            for way in WAYS:
                took, history = train(work, way, scratch)
                seconds[way].append(took)
                accuracies[way] = history[-1]["val_accuracy"]
    faster = {way: ratios(seconds["uncached"], seconds[way]) for way in WAYS}
    print(
        f"{wanted.epochs} epochs of a frozen {wanted.model} at {wanted.size_px} px, {work.config.train.precision},",
        end=" ",
    )
    print(f"on {num_train} images, {num_val} to validate; weights: {wanted.weights}.\n")
    rows = [(way, with_spread(seconds[way]), with_spread(faster[way]), f"{accuracies[way]:.3f}") for way in WAYS]
    print_table(("features", "seconds", "times as fast", "accuracy on validation"), rows)
    verdict = "met" if median(faster["again"]) >= TARGET else "MISSED"
    print(f"\nTarget: at least {TARGET} times as fast with the features at hand: {verdict}.")
    content = {
        "num_train": num_train,
        "num_val": num_val,
        "precision": work.config.train.precision,
        "weights": wanted.weights,
        "settings": [*RECIPE, *settings],
        "seconds": seconds,
        "times_as_fast": {way: faster[way] for way in WAYS[1:]},
        "val_accuracy": accuracies,
    }
    record.write(content)


if __name__ == "__main__":
    main()
