"""What a training goes through, and where it stands."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from foveal.data.augment import Augmentation
from foveal.data.batches import Batches, TrainingBatches
from foveal.training.distillation import Teacher


@dataclass
class Position:
    """Where a run stands; all that a checkpoint keeps beside tensors.

    Attributes:
        epoch: the epoch in progress, counted from 0.
        step: steps of it that are done.
        num_parts: parts that a step's batch is computed in.
        best: the monitored figure and minus the validation loss at the best epoch, for comparing.
        best_epoch: the best epoch, counted from 1; 0 before there is one.
        finished: whether the last epoch is over.
        seconds: what the steps of the epoch in progress took so far, over all processes that had a share in it.
        waited_seconds: how much of it was waiting for batches.
        lr: the learning rate of the last step, the head's where layers differ.
        history: one row an epoch, as in metrics.csv.
        watch: what the watch over the figures has seen and said.
    """

    epoch: int = 0
    step: int = 0
    num_parts: int = 1
    best: list[float] = field(default_factory=list)
    best_epoch: int = 0
    finished: bool = False
    seconds: float = 0.0
    waited_seconds: float = 0.0
    lr: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    watch: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingData:
    """What the loop goes through, and how to name the files of a batch.

    Attributes:
        train: training batches.
        val: validation batches.
        augmentation: what is done to training images.
        class_names: the classes, in order.
        paths: the file of every row.
        train_labels: int64 [n], class numbers of the training images.
        head: what takes the place of the whole network where the batches hold a frozen backbone's features.
        teacher: a trained model whose answers are kept; None for none.
    """

    train: TrainingBatches
    val: Batches
    augmentation: Augmentation
    class_names: tuple[str, ...]
    paths: Sequence[Path]
    train_labels: NDArray[np.int64]
    head: nn.Module | None = None
    teacher: Teacher | None = None
