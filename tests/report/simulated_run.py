"""A run folder as the other stages leave it, of real small images and simulated logits, through the real writers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
from PIL import Image

from foveal.data.manifest import Manifest
from foveal.evaluation.plots import write_plots
from foveal.files import sha256_file, write_csv, write_json, write_text
from foveal.metrics import SplitMetrics, softmax, summarise
from foveal.run_folder import RunFolder, describe_environment


def simulate_logits(labels: np.ndarray, num_classes: int, *, sharpness: float, seed: int) -> np.ndarray:
    """Logits of a model that is right more often the larger `sharpness` is, and takes some classes for the next one."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(len(labels), num_classes))
    logits[np.arange(len(labels)), labels] += sharpness
    neighbour = (labels + 1) % num_classes
    logits[np.arange(len(labels)), neighbour] += np.where(labels % 3 == 0, sharpness * 0.45, 0)
    return 2 * logits


def write_run(
    folder: Path,
    images_root: Path,
    *,
    path: Sequence[str],
    label: Sequence[str],
    sharpness: float = 4.0,
    num_looks: int = 1,
    siblings: int = 0,
    warnings: Sequence[str] = (),
    splits: Sequence[str] = ("train", "val", "test"),
    with_plots: bool = True,
    hash_files: bool = True,
    image_size: int = 96,
    seed: int = 0,
    **columns: Any,
) -> RunFolder:
    """Write a whole run folder: 70 % of the samples train and 15 % test, unless `split` says otherwise."""
    run = RunFolder(folder)
    run.prepare()
    rng = np.random.default_rng(seed)
    columns.setdefault("split", rng.choice(["train", "val", "test"], size=len(path), p=[0.7, 0.15, 0.15]).tolist())
    columns.setdefault("status", ["ok"] * len(path))
    if hash_files:
        columns["sha256"] = [sha256_file(f) if (f := images_root / p).is_file() else None for p in path]
    manifest = Manifest.build(images_root, path=path, label=label, **columns)
    manifest.write(run.manifest)
    _write_settings(run, image_size=image_size, seed=seed)
    _write_history(run, num_looks=num_looks, warnings=warnings, num_epochs=8, seed=seed)
    for position, split in enumerate(splits):
        rows = manifest.of_split(split)
        labels = manifest.take(rows).label_ids()
        sharp = sharpness + (2.0 if split == "train" else 0.0)
        logits = simulate_logits(labels, len(manifest.class_names), sharpness=sharp, seed=seed + position)
        in_train = np.arange(len(labels)) < siblings if split == "test" else None
        metrics = summarise(
            labels, logits, class_names=manifest.class_names, split=split, temperature=1.3, num_resamples=200,
            siblings_in_train=in_train,
        ).with_latency(11.8, 14.2)  # fmt: skip
        write_evaluation(run, manifest, rows, metrics, softmax(logits, 1.3), with_plots=with_plots)
    return run


def write_evaluation(
    run: RunFolder,
    manifest: Manifest,
    rows: np.ndarray,
    metrics: SplitMetrics,
    probabilities: np.ndarray,
    *,
    with_plots: bool,
) -> None:
    """One split's metrics.json, predictions.parquet and plots."""
    folder = run.evaluation(metrics.split)
    folder.mkdir(parents=True, exist_ok=True)
    metrics.write(folder / "metrics.json")
    some, names = manifest.take(rows), np.array(manifest.class_names, dtype=object)
    table = {name: some.column(name) for name in ("sample_id", "path", "label")}
    table |= {"predicted": names[probabilities.argmax(axis=1)], "probability": probabilities.max(axis=1)}
    table |= {f"p_{name}": probabilities[:, at] for at, name in enumerate(names)}
    parquet.write_table(pa.table(table), folder / "predictions.parquet")
    if with_plots:
        write_plots(folder / "plots", metrics, some.label_ids(), probabilities)


def _write_settings(run: RunFolder, *, image_size: int, seed: int) -> None:
    write_text(
        run.config,
        f"seed: {seed}\ndata:\n  image_size: {image_size}\n  box_margin: 0.1\n  background: [255, 255, 255]\n"
        "augment:\n  policy: light\nmodel:\n  name: resnet18\n  weights: none\noptim:\n  name: adamw\n  lr: 0.003\n"
        "train:\n  epochs: 8\n  early_stopping:\n    monitor: val_loss\n    patience: 5\nlog:\n  to: [csv]\n",
    )
    environment = describe_environment(seed=seed, device="cpu")
    environment["command"] = ["/env/bin/foveal", "train", "my images", "--out", run.path.name, "--seed", str(seed)]
    write_json(run.env, environment)
    write_json(
        run.bundle / "bundle.json",
        {
            "architecture": {"library": "timm", "name": "resnet18"},
            "preprocessing": {"size_px": image_size},
            "weights": {"source": "none", "tag": "", "licence": "none needed"},
            "temperature": 1.3,
        },
    )
    layers = "\n".join(f"layer{at}.conv   Conv2d   [64, 3, 3, 3]   {at * 1000:,}" for at in range(1, 9))
    write_text(
        run.model_summary, f"resnet18, 96 px\n{layers}\n11,181,642 parameters, 334 million multiply-accumulates\n"
    )


def _write_history(run: RunFolder, *, num_looks: int, warnings: Sequence[str], num_epochs: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    at = np.arange(1, num_epochs + 1)
    train_loss = 2.2 * np.exp(-at / 2.2) + 0.02
    val_loss = 2.1 * np.exp(-at / 2.4) + 0.12 + rng.normal(scale=0.02, size=num_epochs) + 0.02 * np.maximum(at - 6, 0)
    columns: dict[str, Any] = {"epoch": at, "train_loss": train_loss, "val_loss": val_loss}
    for name in ("accuracy", "macro_f1", "macro_precision", "macro_recall"):
        columns[f"train_{name}"] = 1 - train_loss / 2.6
        columns[f"val_{name}"] = 1 - val_loss / 2.6
    columns["lr"] = 0.003 * np.sin(np.pi * at / (num_epochs + 1))
    columns["seconds"], columns["images_per_second"] = np.full(num_epochs, 3.4), rng.normal(420, 5, size=num_epochs)
    write_csv(run.metrics, list(columns), zip(*(values.tolist() for values in columns.values()), strict=True))
    stages = {"data": (3.1, 5.9), "model": (0.4, 0.4), "training": (27.5, 52.8), "evaluation": (4.2, 7.7)}
    write_json(run.timings, {name: {"wall_seconds": wall, "cpu_seconds": cpu} for name, (wall, cpu) in stages.items()})
    looks = [{"time": "2025-01-01T00:00:00.000+00:00", "verb": "evaluate"}] * num_looks
    write_json(run.looks, {"test": looks, "val": looks})
    run.log_event("start")
    for message in warnings:
        run.log_event("warning", message=message)
    with run.log.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"event": "end"})[:-4])  # a killed run may leave half a line


def make_images(root: Path, names: Sequence[str], num_each: int, *, prefix: str = "") -> list[str]:
    """PNGs of 40 x 32 pixels, noise around one colour a class; returns their paths below `root`."""
    rng = np.random.default_rng(0)
    paths = []
    for at, _ in enumerate(names):
        (root / f"class{at}").mkdir(parents=True, exist_ok=True)
        colour = rng.integers(40, 215, size=3)
        for number in range(num_each):
            pixels = np.clip(colour + rng.normal(scale=20, size=(32, 40, 3)), 0, 255).astype(np.uint8)
            paths.append(f"class{at}/{prefix}{number}.png")
            Image.fromarray(pixels).save(root / paths[-1])
    return paths


def make_small_run(
    folder: Path, names: Sequence[str] = ("ape", "bee", "cat"), num_each: int = 40, prefix: str = "", **options: Any
) -> RunFolder:
    """A run of generated images in `folder`; `options` are those of `write_run`."""
    paths = make_images(folder / "images", names, num_each, prefix=prefix)
    labels = [name for name in names for _ in range(num_each)]
    return write_run(folder / "run", folder / "images", path=paths, label=labels, **options)
