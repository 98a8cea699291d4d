"""Transfer, honestly: what a backbone from another data set is worth where there are 300 labelled images.

A small net is trained by foveal on 1,000 images a class of CIFAR-10, which `foveal.split` draws, 15 % of them to
validate and 15 % to test. Then 300 images of another data set, 30 a class, are all that may be learnt from: foveal
takes 15 % of them for validation by itself, and every image that is left is the test. Four trainings with the same
number of steps: from scratch; with the backbone frozen (`model.freeze=all`), partly frozen (`partial`: the last four
layers train) and free, these three from the weights of the first run. Each has a learning rate of its own, for a head
learns at another rate than a network.

    python bench/transfer.py CIFAR10 ../shared/data/sign_digits
"""

import argparse
import csv
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import foveal
from foveal.api.results import TrainResult
from foveal.progress import Terminal
from recording import Record, add_out, print_table

WAYS: dict[str, tuple[str, bool, float]] = {
    "from scratch": ("none", False, 2e-3),
    "frozen backbone": ("all", True, 2e-2),
    "partly frozen": ("partial", True, 4e-3),
    "free": ("none", True, 2e-3),
}
"""Freeze, whether it starts from the first run's weights, and the learning rate."""


def few_labels(images: Path, table: Path, per_class: int, seed: int) -> tuple[int, int]:
    """A table of a folder of class folders: so many images of each class in train, all others in test.

    Returns:
        How many there are in train and in test.
    """
    draw = np.random.default_rng(seed)
    counts = {"train": 0, "test": 0}
    with table.open("w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream)
        rows.writerow(("path", "label", "split"))
        for folder in sorted(each for each in images.iterdir() if each.is_dir()):
            files = sorted(file for file in folder.iterdir() if file.is_file())
            chosen = set(draw.permutation(len(files))[:per_class].tolist())
            for number, file in enumerate(files):
                split = "train" if number in chosen else "test"
                counts[split] += 1
                rows.writerow((file.relative_to(images), folder.name, split))
    return counts["train"], counts["test"]


def row_of(result: TrainResult, seconds: float) -> dict[str, Any]:
    """What is told of one training."""
    test = result.metrics["test"]
    return {
        "accuracy": test.accuracy,
        "interval": list(test.confidence_intervals["accuracy"]),
        "num_test": test.num_images,
        "val_accuracy": result.metrics["val"].accuracy,
        "num_val": result.metrics["val"].num_images,
        "best_epoch": result.best_epoch,
        "seconds": round(seconds, 1),
    }


def main() -> None:
    """Train five times, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifar", type=Path, help="CIFAR-10 as class folders, or a folder with train/ of these")
    parser.add_argument("signs", type=Path, help="the other data set, a folder of class folders")
    parser.add_argument("--model", default="small_cnn")
    parser.add_argument("--size-px", type=int, default=32)
    parser.add_argument("--source-per-class", type=int, default=1000)
    parser.add_argument("--source-epochs", type=int, default=12)
    parser.add_argument("--per-class", type=int, default=30, help="labelled images of each class (default: 30)")
    parser.add_argument("--epochs", type=int, default=60, help="of the four trainings (default: 60)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="for the runs; a temporary one if not given")
    add_out(parser, "transfer")
    wanted = parser.parse_args()
    record = Record("transfer", wanted.out)
    with tempfile.TemporaryDirectory(prefix="foveal-bench-") as name:
        os.environ["FOVEAL_CACHE_DIR"] = str(Path(name) / "cache")
        runs = wanted.keep or Path(name) / "runs"
        runs.mkdir(parents=True, exist_ok=True)
        usual = [f"model.name={wanted.model}", f"data.image_size={wanted.size_px}", "data.crop_fraction=1.0"]
        usual += [f"seed={wanted.seed}", "train.device=cpu"]

        cifar = wanted.cifar / "train" if (wanted.cifar / "train").is_dir() else wanted.cifar
        subset = runs / "cifar10-subset.parquet"
        drawn = ["split.near_duplicates=false", f"split.per_class={wanted.source_per_class}", f"seed={wanted.seed}"]
        foveal.split(cifar, subset, overrides=drawn, force=True)
        started = time.perf_counter()
        source_settings = ["model.weights=none", f"train.epochs={wanted.source_epochs}", "train.batch_size=128"]
        source_settings += ["augment.horizontal_flip=0.5", "audit.near_duplicates=false", "optim.lr=4e-3", *usual]
        source = foveal.train(
            subset, runs / "source", overrides=source_settings, force=wanted.keep is not None, progress=Terminal()
        )
        source_row = row_of(source, time.perf_counter() - started)

        table = runs / "signs.csv"
        num_train, num_test = few_labels(wanted.signs, table, wanted.per_class, wanted.seed)
        rows: dict[str, dict[str, Any]] = {}
        for way, (freeze, is_transferred, lr) in WAYS.items():
            settings = [f"model.freeze={freeze}", f"optim.lr={lr}", f"train.epochs={wanted.epochs}"]
            settings += [f"model.weights={source.run if is_transferred else 'none'}", "train.batch_size=32"]
            settings += [f"data.images_root={wanted.signs.resolve()}", *usual]
            started = time.perf_counter()
            result = foveal.train(
                table,
                runs / way.replace(" ", "-"),
                overrides=settings,
                force=wanted.keep is not None,
                progress=Terminal(),
            )
            rows[way] = {**row_of(result, time.perf_counter() - started), "settings": settings}

    low, high = source_row["interval"]
    print(
        f"\n{wanted.model} at {wanted.size_px} px, {wanted.source_epochs} epochs on {wanted.source_per_class:,} images "
    )
    print(
        f"images a class of CIFAR-10: {source_row['accuracy']:.3f} ({low:.3f} to {high:.3f}) on "
        f"{source_row['num_test']:,}."
    )
    print(f"Then {wanted.epochs} epochs on {num_train} images of {wanted.signs.name}, validation included, ", end="")
    print(f"and {num_test:,} to test:\n")
    head = ("start", "model.freeze", "lr", "test accuracy (95 % interval)", "validation", "best epoch", "seconds")
    cells = [
        (way, WAYS[way][0], f"{WAYS[way][2]:g}", "{:.3f} ({:.3f} to {:.3f})".format(row["accuracy"], *row["interval"]),
         f"{row['val_accuracy']:.3f} of {row['num_val']}", row["best_epoch"], f"{row['seconds']:.0f}")
        for way, row in rows.items()
    ]  # fmt: skip
    print_table(head, cells)
    record.write({"source": {**source_row, "settings": source_settings}, "trainings": rows})


if __name__ == "__main__":
    main()
