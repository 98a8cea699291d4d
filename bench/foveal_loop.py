"""Training images a second of foveal's loop and of a bare PyTorch loop, in turns, in one process.

Prints one JSON object on stdout: the rates of each round. Run by `bench/run.py`.
"""

import argparse
import json
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch.nn import functional
from torch.optim.lr_scheduler import OneCycleLR

from foveal.config import load
from foveal.data.augment import Augmentation
from foveal.data.batches import Batches, TrainingBatches
from foveal.data.ingest import Recipe, ingest
from foveal.experiments.run import draw_split, prepare
from foveal.model.build import IMAGENET_MEAN, IMAGENET_STD, build
from foveal.pixels.policy import PixelPolicy
from foveal.progress import Terminal
from foveal.run_folder import RunFolder
from foveal.training.config import Config, ResolvedConfig
from foveal.training.fit import fit
from foveal.training.resolve import architecture_of, geometry_of
from foveal.training.state import TrainingData

SIZE_PX, BATCH_SIZE = 96, 64
RECIPE = (
    "model.name=resnet18",
    "model.weights=none",
    f"data.image_size={SIZE_PX}",
    f"train.batch_size={BATCH_SIZE}",
    "train.epochs=1",
    "augment.policy=light",
    "train.device=cpu",
)
AUTOCAST = {"fp32": None, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Stack:
    """The data as foveal's own stages hand it to its loop, and as a bare loop would hold it."""

    config: ResolvedConfig
    data: TrainingData
    images: torch.Tensor  # uint8 [n, side, side, 3], 0..255
    labels: torch.Tensor  # int64 [n]
    store_px: int


def make_stack(images: Path, precision: str, num_steps: int | None) -> Stack:
    """Scan, split and decode, by the code that `foveal train` runs."""
    config = load(Config, None, [*RECIPE, f"train.precision={precision}"])
    prepared = prepare(images, config)
    resolved, geometry = prepared.config, geometry_of(prepared.config)
    recipe = Recipe(geometry, PixelPolicy(background=resolved.data.background), resolved.data.box_margin)
    ingested = ingest(
        prepared.manifest, recipe, keep_pixels=True, cap_bytes=4 << 30, num_workers=resolved.data.num_workers
    )
    manifest = draw_split(ingested.manifest, resolved)
    train, val, labels = manifest.of_split("train"), manifest.of_split("val")[:BATCH_SIZE], manifest.label_ids()
    if num_steps:
        train = train[: num_steps * BATCH_SIZE]
    data = TrainingData(
        train=TrainingBatches(
            ingested.source,
            train,
            labels[train],
            side_px=geometry.store_px,
            batch_size=BATCH_SIZE,
            seed=resolved.seed,
            num_workers=1,
        ),
        val=Batches(ingested.source, val, labels[val], geometry, batch_size=BATCH_SIZE),
        augmentation=Augmentation(resolved.augment, side_px=geometry.store_px, size_px=geometry.size_px),
        class_names=manifest.class_names,
        paths=manifest.absolute_paths(),
        train_labels=labels[train],
    )
    squares = [_middle(ingested.source[row], geometry.store_px) for row in train.tolist()]
    return Stack(
        resolved, data, torch.from_numpy(np.stack(squares)), torch.from_numpy(labels[train]), geometry.store_px
    )


def _middle(stored: NDArray[np.uint8], side_px: int) -> NDArray[np.uint8]:
    top, left = (stored.shape[0] - side_px) // 2, (stored.shape[1] - side_px) // 2
    return stored[top : top + side_px, left : left + side_px]


def foveal_rate(stack: Stack, folder: Path) -> float:
    """Images a second of the training part of one epoch of `fit`, as it reports them itself."""
    run = RunFolder(folder)
    run.prepare()
    run.checkpoints.mkdir(exist_ok=True)
    torch.manual_seed(0)
    classifier = build(architecture_of(stack.config, len(stack.data.class_names)))
    augmentation = Augmentation(stack.config.augment, side_px=stack.store_px, size_px=SIZE_PX)
    position = fit(classifier, replace(stack.data, augmentation=augmentation), stack.config, run, Terminal())
    return float(position.history[-1]["images_per_second"])


def bare_rate(stack: Stack) -> float:
    """Images a second of one epoch of what a careful person would write without foveal."""
    torch.manual_seed(0)
    model = timm.create_model("resnet18", pretrained=False, num_classes=len(stack.data.class_names))
    model = model.to(memory_format=torch.channels_last).train()
    num_steps = len(stack.images) // BATCH_SIZE
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = OneCycleLR(optimizer, max_lr=2e-3, total_steps=max(2, num_steps), pct_start=0.25)
    augmentation = Augmentation(stack.config.augment, side_px=stack.store_px, size_px=SIZE_PX)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    autocast = AUTOCAST[stack.config.train.precision]
    started = time.perf_counter()
    order = torch.randperm(len(stack.images))
    for step in range(num_steps):
        chosen = order[step * BATCH_SIZE : (step + 1) * BATCH_SIZE]
        pixels = augmentation(stack.images[chosen].permute(0, 3, 1, 2))
        with torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None):
            logits = model((pixels - mean) / std)
        loss = functional.cross_entropy(logits.float(), stack.labels[chosen])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return num_steps * BATCH_SIZE / (time.perf_counter() - started)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="cut each epoch short")
    parser.add_argument("--alone", action="store_true", help="without the bare loop")
    wanted = parser.parse_args()
    stack = make_stack(wanted.images, wanted.precision, wanted.steps)
    rates: dict[str, list[float]] = {"foveal": [], "bare": []}
    with tempfile.TemporaryDirectory() as scratch:
        # The round before the first sets up kernels and threads, and does not count.
        for number in range(-1, wanted.rounds):
            names = ["foveal"] if wanted.alone else ["foveal", "bare"]
            for name in names if number % 2 else names[::-1]:
                rate = foveal_rate(stack, Path(scratch) / str(number)) if name == "foveal" else bare_rate(stack)
                if number >= 0:
                    rates[name].append(rate)
    print(json.dumps({"precision": stack.config.train.precision, "num_images": len(stack.images), **rates}))


if __name__ == "__main__":
    main()
