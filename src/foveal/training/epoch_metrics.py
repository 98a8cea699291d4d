"""Running figures of one pass, kept on the device until they are asked for."""

from typing import Any

import torch
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
        self._sums = torch.zeros(2, dtype=torch.float64, device="cpu" if device.type == "mps" else device)

    @torch.no_grad()
    def update(self, logits: torch.Tensor, labels: torch.Tensor, loss: torch.Tensor | None = None) -> None:
        """Count a batch.

        Args:
            logits: float [n, classes].
            labels: int64 [n].
            loss: the batch's mean loss; the plain cross-entropy if not given.
        """
        logits = logits.float()
        loss = functional.cross_entropy(logits, labels) if loss is None else loss
        cells = labels * self._num_classes + logits.argmax(dim=1)
        self._confusion += torch.bincount(cells, minlength=self._num_classes**2).view_as(self._confusion)
        top3 = (logits.topk(min(3, self._num_classes), dim=1).indices == labels[:, None]).any(dim=1).sum()
        self._sums += torch.stack([loss.detach() * len(labels), top3]).to(self._sums)

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
        loss_sum, top3 = self._sums.tolist()
        figures: dict[str, Any] = {"loss": loss_sum / num_images, **epoch_metrics(confusion)}
        figures["balanced_accuracy"] = float(confusion_metrics(confusion)["balanced_accuracy"])
        if self._num_classes > 3:
            figures["top_3_accuracy"] = top3 / num_images
        return {prefix + name: value for name, value in figures.items()}
