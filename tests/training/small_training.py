"""A training in memory: learnable squares, a tiny network, and the loop itself; nothing is decoded or evaluated."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from foveal.config import load
from foveal.data.augment import Augmentation
from foveal.data.batches import Batches, TrainingBatches
from foveal.model.build import Classifier, build
from foveal.pixels.policy import Geometry
from foveal.progress import Progress, Silence
from foveal.run_folder import RunFolder
from foveal.training.config import Config, ResolvedConfig
from foveal.training.fit import fit
from foveal.training.processes import Processes
from foveal.training.resolve import Facts, architecture_of, geometry_of, resolve
from foveal.training.state import Position, TrainingData

CLASS_NAMES = ("2", "10", "b")
MID_EPOCH = "train.checkpoint_minutes=0.0000001"
"""A checkpoint after every step."""
TINY = (
    "model.name=test_resnet",
    "model.weights=none",
    "model.head.dropout=0.3",
    "data.image_size=32",
    "train.epochs=2",
    "train.batch_size=8",
    "train.precision=fp32",
    "train.device=cpu",
)


def tiny_config(*overrides: str) -> ResolvedConfig:
    """A resolved configuration of the smallest training."""
    facts = Facts("folder", num_train=40, num_samples=64, median_side_px=34, median_aspect=1.0)
    return resolve(load(Config, None, (*TINY, *overrides)), facts)


class Squares:
    """Stored forms that can be learnt: noise with more light in the channel of the class."""

    def __init__(self, labels: np.ndarray, side_px: int, *, contrast: int = 90, seed: int = 0) -> None:
        draw = np.random.default_rng(seed)
        self._pixels = draw.integers(0, 120, (len(labels), side_px, side_px + 4, 3)).astype(np.uint8)
        self._pixels[np.arange(len(labels)), :, :, labels % 3] += np.uint8(contrast)

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, row: int) -> np.ndarray:
        return self._pixels[row]


def tiny_data(
    config: ResolvedConfig,
    *,
    num_train: int = 40,
    num_val: int = 15,
    contrast: int = 90,
    batch_size: int | None = None,
    processes: Processes | None = None,
) -> TrainingData:
    """Training and validation images of three classes; the first is twice as frequent."""
    processes = processes or Processes()
    labels = np.array([0, 1, 0, 2] * (num_train + num_val), dtype=np.int64)[: num_train + num_val]
    geometry: Geometry = geometry_of(config)
    source = Squares(labels, geometry.store_px, contrast=contrast)
    train, val = np.arange(num_train), np.arange(num_train, num_train + num_val)
    return TrainingData(
        train=TrainingBatches(
            source,
            train,
            labels[train],
            side_px=geometry.store_px,
            batch_size=batch_size or config.train.batch_size,
            seed=config.seed,
            random_window=config.augment.policy != "none",
            rank=processes.rank,
            num_ranks=processes.num_ranks,
        ),
        val=Batches(
            source,
            val,
            labels[val],
            geometry,
            batch_size=config.train.batch_size,
            rank=processes.rank,
            num_ranks=processes.num_ranks,
        ),
        augmentation=Augmentation(config.augment, side_px=geometry.store_px, size_px=geometry.size_px),
        class_names=CLASS_NAMES,
        paths=[Path(f"image-{row:03}.png") for row in range(len(labels))],
        train_labels=labels[train],
    )


def tiny_model(config: ResolvedConfig) -> Classifier:
    """The network with the weights that every training of this configuration starts from."""
    torch.manual_seed(config.seed)
    return build(architecture_of(config, len(CLASS_NAMES)))


def train_tiny(
    folder: Path,
    config: ResolvedConfig,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    **data: Any,
) -> tuple[Classifier, Position, RunFolder]:
    """Go through a whole training, or on with one."""
    run = RunFolder(folder)
    run.prepare()
    classifier = tiny_model(config)
    position = fit(classifier, tiny_data(config, **data), config, run, progress or Silence(), resume=resume)
    return classifier, position, run


def same_weights(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether two states are equal bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class Lines(Silence):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)
