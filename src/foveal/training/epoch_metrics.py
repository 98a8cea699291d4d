"""Running figures of one pass, kept on the device until they are asked for."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from foveal.metrics import confusion_metrics, epoch_metrics


class RunningMetrics:
    """Loss, confusion matrix and top-3 hits of the images seen so far.

    Args:
        num_classes: number of classes.
        device: where logits and labels are.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self._num_classes = num_classes
        self._confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)
        # Losses times weights, hits within the top 3, weights.
        self._sums = torch.zeros(3, dtype=torch.float64, device="cpu" if device.type == "mps" else device)

    @torch.no_grad()
    def update(
        self,
        logits: torch.Tensor,
        targets: torch.Tensor,
        loss: torch.Tensor | None = None,
        weight: torch.Tensor | None = None,
    ) -> None:
        """Count a batch.

        Args:
            logits: float [n, classes].
            targets: int64 [n], or float [n, classes] for mixed images, which count as of the class with the largest
                share: a training accuracy under mixup or CutMix says how often the stronger image is seen.
            loss: the batch's mean loss; the plain cross-entropy if not given.
            weight: what the batch's loss counts in the mean, the sum of its images' weights; their number if not given.
        """
        logits = logits.float()
        loss = functional.cross_entropy(logits, targets) if loss is None else loss
        labels = targets.argmax(dim=1) if targets.is_floating_point() else targets
        cells = labels * self._num_classes + logits.argmax(dim=1)
        self._confusion += torch.bincount(cells, minlength=self._num_classes**2).view_as(self._confusion)
        top3 = (logits.topk(min(3, self._num_classes), dim=1).indices == labels[:, None]).any(dim=1).sum()
        counted = loss.new_full((), len(labels)) if weight is None else weight.to(loss)
        self._sums += torch.stack([loss.detach() * counted, top3, counted]).to(self._sums)

    def reduce(self, all_reduce: Callable[[torch.Tensor], torch.Tensor]) -> "RunningMetrics":
        """The figures of all processes together; these here go on as they are.

        A checkpoint within an epoch keeps the reduced state, and one process alone restores it.

        Args:
            all_reduce: the sum of a tensor over all processes; it may change the one it is given.
        """
        reduced = RunningMetrics(self._num_classes, self._confusion.device)
        reduced._confusion = all_reduce(self._confusion.clone())
        reduced._sums = all_reduce(self._sums.clone())
        return reduced

    @property
    def confusion(self) -> NDArray[np.int64]:
        """int64 [classes, classes], images by true (first) and predicted class."""
        counts: NDArray[np.int64] = self._confusion.cpu().numpy()
        return counts

    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint within an epoch must keep."""
        return {"confusion": self._confusion.cpu(), "sums": self._sums.cpu()}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from `state`."""
        self._confusion.copy_(state["confusion"])
        self._sums.copy_(state["sums"])

    def row(self, prefix: str) -> dict[str, Any]:
        """The figures by name, each with `prefix` before it."""
        confusion = self._confusion.cpu().numpy()
        num_images = int(confusion.sum())
        if not num_images:
            return {}
        loss_sum, top3, weight_sum = self._sums.tolist()
        mean_loss = loss_sum / weight_sum if weight_sum else 0.0
        figures: dict[str, Any] = {"loss": mean_loss, **epoch_metrics(confusion)}
        figures["balanced_accuracy"] = float(confusion_metrics(confusion)["balanced_accuracy"])
        if self._num_classes > 3:
            figures["top_3_accuracy"] = top3 / num_images
        return {prefix + name: value for name, value in figures.items()}
