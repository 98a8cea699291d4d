"""What goes wrong in a training, found early and said so that a user knows what to change."""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from foveal.errors import TrainingError
from foveal.model.config import in_words
from foveal.training import checkpoint
from foveal.training.config import ResolvedConfig

OUT_OF_MEMORY_WORDS = ("not enough memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
OTHER_PROCESS_WORDS = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection refused",
    "NCCL",
    "Timed out waiting",
)


@dataclass(frozen=True)
class Bad:
    """What is not finite any more, and the batch that it came with: int64 [n], row numbers in the manifest."""

    what: str
    rows: NDArray[np.int64]


class LossWatch:
    """Finds a loss that is not finite within a few steps, without making a GPU wait at every step.

    Args:
        lag_steps: steps that a loss may wait before it is looked at.
    """

    def __init__(self, *, lag_steps: int) -> None:
        self._lag_steps = lag_steps
        self._unchecked: deque[tuple[torch.Tensor, NDArray[np.int64]]] = deque()

    def add(self, loss: torch.Tensor, rows: NDArray[np.int64]) -> Bad | None:
        """Take note of a step's loss; returns the oldest bad one that is due."""
        self._unchecked.append((loss, rows))
        return self._check(down_to=self._lag_steps)

    def rest(self) -> Bad | None:
        """Look at all that is left."""
        return self._check(down_to=0)

    def _check(self, down_to: int) -> Bad | None:
        while len(self._unchecked) > down_to:
            loss, rows = self._unchecked.popleft()
            if not math.isfinite(float(loss)):
                return Bad(f"loss became {float(loss)}", rows)
        return None


def bad_weights(parameters: Sequence[torch.nn.Parameter], rows: NDArray[np.int64]) -> Bad | None:
    """Whether a step has spoilt the weights, which a finite loss does not tell: it was computed before the step."""
    finite = [parameter.detach().isfinite().all() for parameter in parameters]
    return None if bool(torch.stack(finite).all()) else Bad("weights became infinite or NaN", rows)


def not_finite(
    what: str, epoch: int, config: ResolvedConfig, checkpoints: Path, files: Sequence[str] = ()
) -> TrainingError:
    """The error of a training that has run away; `epoch` is counted from 0."""
    last = checkpoints / checkpoint.LAST
    kept = f"the last good checkpoint, {last}, is kept" if last.exists() else "no checkpoint had been written yet"
    batch = f" The batch held these {len(files)} files:" if files else ""
    return TrainingError(
        f"The {what} in epoch {epoch + 1}; training stopped, and {kept}.{batch}",
        problems=files,
        fix=f"train anew with a lower optim.lr (it was {config.optim.lr:g}; a tenth is a good try) or with "
        f"train.precision=fp32{', and look at the files above' if files else ''}.",
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whichever device."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        words in text for words in OUT_OF_MEMORY_WORDS
    )


def explained(error: Exception, config: ResolvedConfig) -> TrainingError | None:
    """What a user can do about an error of torch; None where that is unknown."""
    text = str(error)
    if is_out_of_memory(error):
        return TrainingError(
            f"Memory ran out with train.batch_size={config.train.batch_size} at "
            f"data.image_size={config.data.image_size}.",
            fix="halve train.batch_size (train.halve_batch=true does so by itself, and computes the same step in "
            "more parts), lower data.image_size, or choose a smaller model.name.",
        )
    if "Expected more than 1 value per channel" in text:
        return TrainingError(
            f"{in_words(config.model.name)} normalises over the batch, and cannot learn from one image at a time at "
            f"data.image_size={config.data.image_size}.",
            fix=f"raise train.batch_size (it is {config.train.batch_size}), or choose another model.name.",
        )
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        reason = text.strip().splitlines()[0] if text.strip() else repr(error)
        return TrainingError(
            f"torch.compile could not compile {in_words(config.model.name)}: {reason}.",
            fix="leave train.compile=false; it changes speed only.",
        )
    if config.train.devices * config.train.nodes > 1 and any(words in text for words in OTHER_PROCESS_WORDS):
        return TrainingError(
            "Another process of this training is gone, so that the rest of them cannot go on.",
            fix="look for its error further up; then go on with --resume.",
        )
    return None
