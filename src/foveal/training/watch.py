"""What goes wrong in the course of a training, said once in a sentence as soon as the figures show it.

Every rule waits for several epochs and asks for an interval, since a warning that comes in healthy trainings is read by
nobody.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foveal.metrics import wilson_interval

LEAST_STEPS = 100
"""Steps that a network is given before anything is said of it: it guesses one class, or has batch norms that lag."""
LEAST_EPOCHS, MOST_EPOCHS = 3, 10

_LEAST_FALL = 0.02
"""Share of ln(classes) that the training loss must have fallen by."""
_PARTED = 0.05
"""Share of ln(classes) by which the validation loss must have risen above its best."""
_PARTED_EPOCHS = 3
_LEARNT = 0.8
"""Training accuracy, as a share of the way from the same guess for all to 1, above which the images are learnt."""

_KEPT = ("epoch", "train_loss", "val_loss", "train_accuracy", "val_accuracy")


class Watch:
    """Reads each epoch's figures and says what looks wrong; each thing once.

    Args:
        class_names: all classes, in the order of their numbers.
        steps_per_epoch: optimiser steps in an epoch; rules are given more epochs where these are short.
    """

    def __init__(self, class_names: Sequence[str], *, steps_per_epoch: int) -> None:
        self._class_names = tuple(class_names)
        wanted = math.ceil(LEAST_STEPS / max(1, steps_per_epoch))
        self._patience = min(MOST_EPOCHS, max(LEAST_EPOCHS, wanted))
        self._rows: list[dict[str, float]] = []
        self._said: list[str] = []
        self._num_single = self._num_lost = 0

    def observe(self, row: Mapping[str, Any], confusion_val: NDArray[np.int64], majority_share: float) -> list[str]:
        """What is to be said after an epoch; mostly nothing.

        Args:
            row: the epoch's figures, as in metrics.csv.
            confusion_val: int64 [classes, classes], validation images by true (first) and predicted class.
            majority_share: share of the validation images that the best constant guess gets right, 0..1.

        Returns:
            Sentences, none of which was given before.
        """
        self._rows.append({name: float(row[name]) for name in _KEPT if row.get(name) is not None})
        matrix = np.asarray(confusion_val, dtype=np.int64)
        found = {
            "one class": self._one_class(matrix, majority_share),
            "no fall": self._no_fall(matrix, majority_share),
            "parted": self._parted(),
            "shuffled": self._shuffled(matrix, majority_share),
        }
        told = [sentence for name, sentence in found.items() if sentence and name not in self._said]
        self._said += [name for name, sentence in found.items() if sentence and name not in self._said]
        return told

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {
            "rows": [dict(row) for row in self._rows],
            "said": list(self._said),
            "num_single": self._num_single,
            "num_lost": self._num_lost,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`: nothing that was said is said again."""
        self._rows = [dict(row) for row in state["rows"]]
        self._said = list(state["said"])
        self._num_single, self._num_lost = int(state["num_single"]), int(state["num_lost"])

    @property
    def _chance(self) -> float:
        return math.log(max(2, len(self._class_names)))

    def _one_class(self, matrix: NDArray[np.int64], majority_share: float) -> str:
        predicted = np.flatnonzero(matrix.sum(axis=0))
        is_single = len(predicted) == 1 and np.count_nonzero(matrix.sum(axis=1)) > 1
        self._num_single = self._num_single + 1 if is_single else 0
        if self._num_single < self._patience:
            return ""
        return (
            f"For {self._num_single} epochs every validation image has been taken for "
            f"{self._class_names[int(predicted[0])]!r}; always the most frequent class would get "
            f"{majority_share:.0%} right. Lower optim.lr, or weigh rare classes by train.class_weights=balanced."
        )

    def _no_fall(self, matrix: NDArray[np.int64], majority_share: float) -> str:
        losses = self._column("train_loss")
        if len(losses) <= self._patience:
            return ""
        fall = losses[0] - min(losses[1:])
        # A network that starts from good weights has nothing left to lose, and mixed labels hide what it has learnt.
        is_learnt = losses[-1] < 0.5 * self._chance or self._val_accuracy(matrix) > 0.5 * (1.0 + majority_share)
        if fall >= _LEAST_FALL * self._chance or is_learnt:
            return ""
        moved = f"fell by {fall:.3f}" if fall > 0 else "did not fall"
        return (
            f"The training loss {moved} since the first epoch, {len(losses) - 1} epochs ago; it is {losses[-1]:.3f}, "
            f"and an even guess has {self._chance:.3f}. Look at optim.lr and model.freeze: foveal train DATA --check "
            "tries learning rates."
        )

    def _parted(self) -> str:
        val, train = self._column("val_loss"), self._column("train_loss")
        if len(val) != len(train) or len(val) <= max(self._patience, _PARTED_EPOCHS):
            return ""
        best = int(np.argmin(val))
        since = val[best + 1 :]
        margin = _PARTED * self._chance
        if len(since) < _PARTED_EPOCHS or min(since[-_PARTED_EPOCHS:]) < val[best] + margin:
            return ""
        if max(train[-_PARTED_EPOCHS:]) > 0.8 * train[best]:
            return ""
        epoch = int(self._rows[best].get("epoch", best + 1))
        return (
            f"Training and validation have parted since epoch {epoch}: the training loss fell from {train[best]:.3f} "
            f"to {train[-1]:.3f}, and the validation loss rose from {val[best]:.3f} to {val[-1]:.3f}. The network "
            "learns the training images by heart: more images, a stronger augment.policy, dropout or fewer epochs help."
        )

    def _shuffled(self, matrix: NDArray[np.int64], majority_share: float) -> str:
        train = self._column("train_accuracy")
        num_images = int(matrix.sum())
        if not train or not num_images:
            return ""
        right = self._val_accuracy(matrix)
        low, high = wilson_interval(right * num_images, num_images, level=0.99)
        is_learnt = train[-1] > majority_share + _LEARNT * (1.0 - majority_share)
        # Half-way to perfect would have been seen, and is not there.
        is_lost = low <= majority_share and high < 0.5 * (majority_share + 1.0)
        self._num_lost = self._num_lost + 1 if is_learnt and is_lost else 0
        if self._num_lost < self._patience:
            return ""
        return (
            f"The labels of validation look shuffled: the training accuracy is {train[-1]:.2f}, and that of validation "
            f"{right:.2f} [{low:.2f}, {high:.2f}], no better than the same guess for all ({majority_share:.2f}). See "
            "whether both get their labels in the same way; where all labels are shuffled, it looks the same."
        )

    def _val_accuracy(self, matrix: NDArray[np.int64]) -> float:
        return float(np.trace(matrix)) / max(1, int(matrix.sum()))

    def _column(self, name: str) -> list[float]:
        return [row[name] for row in self._rows if name in row]
