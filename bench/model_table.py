"""One step of each of the usual networks, as a table; with `--train DATA` also a short training of four small ones.

    python bench/model_table.py
    python bench/model_table.py --train ../shared/data/sign_digits

Weights are random: the table says that a network can be built at a small size and learns, not how well. One network is
in memory at a time.
"""

import argparse
import gc
import math
import os
import tempfile
import time
from pathlib import Path

# Before torch is imported: two threads that wait for each other are slower than one that sleeps.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import nn

import foveal
from foveal.model.build import Architecture, build
from foveal.model.costs import count_parameters

NUM_CLASSES = 10
BATCH_SIZE = 2
SIZES_PX = {
    "alexnet": 64,
    "vgg16": 64,
    "vgg19": 64,
    "resnet18": 64,
    "resnet50": 64,
    "densenet121": 64,
    "densenet201": 64,
    "inception_v3": 299,
    "efficientnet_b0": 64,
    "efficientnet_b4": 64,
    "tf_efficientnetv2_s": 64,
    "convnext_tiny": 64,
    "convnext_base": 64,
    "mobilenetv3_small_100": 64,
    "vit_base_patch16_224": 64,
    "small_cnn": 64,
}
"""Side of the square input; inception_v3 has its auxiliary head from 299 pixels on."""
TRAINED = ("small_cnn", "resnet18", "mobilenetv3_small_100", "efficientnet_b0")
TRAINED_SIZE_PX = 64


def one_step(name: str, size_px: int) -> tuple[str, ...]:
    """A row of the table: what one forward and backward of two random images gives."""
    torch.manual_seed(0)
    started = time.perf_counter()
    classifier = build(Architecture(name=name, num_classes=NUM_CLASSES, image_size=size_px)).train()
    built = time.perf_counter()
    labels = torch.arange(BATCH_SIZE) % NUM_CLASSES
    logits, auxiliary = classifier.training_logits(torch.rand(BATCH_SIZE, 3, size_px, size_px))
    loss = nn.functional.cross_entropy(logits, labels)
    whole = loss if auxiliary is None else loss + 0.4 * nn.functional.cross_entropy(auxiliary, labels)
    whole.backward()
    stepped = time.perf_counter()
    without = [key for key, p in classifier.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    if without or not math.isfinite(loss.item()):
        raise SystemExit(f"{name}: loss {loss.item()}, no finite gradient for {without}")
    more = "" if classifier.auxiliary is None else f" + {count_parameters(classifier.auxiliary):,} auxiliary"
    return (
        name,
        f"{size_px}",
        f"{count_parameters(classifier.net):,}{more}",
        f"{classifier.num_features:,}",
        f"{loss.item():.2f}",
        f"{built - started:.1f}",
        f"{stepped - built:.1f}",
    )


def short_training(name: str, data: Path, num_epochs: int, folder: Path) -> tuple[str, ...]:
    """A row of the second table: test accuracy after a few epochs from a random start."""
    started = time.perf_counter()
    result = foveal.train(
        data,
        folder / name,
        overrides=[
            f"model.name={name}",
            "model.weights=none",
            f"data.image_size={TRAINED_SIZE_PX}",
            f"train.epochs={num_epochs}",
            "train.device=cpu",
        ],
    )
    test = result.metrics["test"]
    low, high = test.confidence_intervals["accuracy"]
    seconds = time.perf_counter() - started
    return name, f"{test.accuracy:.3f} ({low:.3f} to {high:.3f})", f"{test.num_images:,}", f"{seconds:.0f}"


def print_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    for row in (head, tuple("---" for _ in head), *rows):
        print(f"| {' | '.join(row)} |", flush=True)
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description="One step of each of the usual networks, as a table.")
    parser.add_argument("--train", type=Path, metavar="DATA", help="a folder of class folders to train four of them on")
    parser.add_argument("--epochs", type=int, default=4, help="of each of these trainings (default: 4)")
    parser.add_argument("--models", nargs="+", default=list(SIZES_PX), choices=list(SIZES_PX), metavar="NAME")
    arguments = parser.parse_args()
    rows = []
    for name in arguments.models:
        rows.append(one_step(name, SIZES_PX[name]))
        gc.collect()
    head = ("model", "px", "parameters", "pooled features", "first loss", "build s", "step s")
    print(
        f"Batches of {BATCH_SIZE} images, {NUM_CLASSES} classes: guessing has a loss of {math.log(NUM_CLASSES):.2f}.\n"
    )
    print_table(head, rows)
    if arguments.train:
        with tempfile.TemporaryDirectory() as folder:
            trained = [short_training(name, arguments.train, arguments.epochs, Path(folder)) for name in TRAINED]
        print(f"{arguments.epochs} epochs at {TRAINED_SIZE_PX} px on {arguments.train.name}, from a random start:\n")
        print_table(("model", "test accuracy (95 % interval)", "test images", "seconds"), trained)


if __name__ == "__main__":
    main()
