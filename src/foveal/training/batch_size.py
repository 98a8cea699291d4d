"""The largest batch that fits into memory: tried out on a GPU, estimated on a CPU."""

import gc

import torch
from torch.nn import functional

from foveal.machine import available_memory_bytes
from foveal.model.build import Classifier
from foveal.model.devices import AUTOCAST, choose_device
from foveal.training.config import ResolvedConfig
from foveal.training.mishaps import is_out_of_memory
from foveal.training.optim import make_optimizer
from foveal.training.plan import memory_bytes

MOST_IMAGES = 1024
"""Larger batches gain no speed on one device, and cost accuracy."""
CPU_SHARE = 0.6
"""Of the free memory; a machine whose memory is full swaps long before it says so."""


def largest_batch_size(classifier: Classifier, config: ResolvedConfig, num_train: int) -> int:
    """The largest power of two, up to 1,024 and the number of training images, whose step fits into memory.

    On a GPU a real step is tried at each size, on random images, until memory runs out; a CPU's memory is not tried,
    since the system ends a process that takes too much, but reckoned with.

    Args:
        classifier: of the architecture to be trained; it is spoilt by the trial.
        config: all else about the training.
        num_train: training images.
    """
    device = choose_device(config.train.device)
    sizes = [size for size in (1 << power for power in range(1, 11)) if size <= min(MOST_IMAGES, max(2, num_train))]
    if device.type == "cpu":
        free = available_memory_bytes()
        fitting = [size for size in sizes if free is None or memory_bytes(classifier, config, size) < CPU_SHARE * free]
        return max(fitting, default=sizes[0])
    classifier.to(device).to(memory_format=torch.channels_last).train()
    optimizer = make_optimizer(classifier, config.optim)
    best = sizes[0]
    try:
        for size in sizes:
            _step(classifier, optimizer, config, size, device)
            best = size
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    finally:
        classifier.to("cpu")
        del optimizer
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return best


def _step(
    classifier: Classifier,
    optimizer: torch.optim.Optimizer,
    config: ResolvedConfig,
    num_images: int,
    device: torch.device,
) -> None:
    """Forwards, backwards and on, as the training would, on noise."""
    side = config.data.image_size
    pixels = torch.rand(num_images, 3, side, side, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(num_images, dtype=torch.int64, device=device)
    autocast = AUTOCAST[config.train.precision]
    with torch.autocast(device.type, autocast, enabled=autocast is not None):
        logits = classifier(pixels)
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(functional.cross_entropy(logits.float(), labels))
    optimizer.step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
