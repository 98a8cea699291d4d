"""Training images a second of foveal's loop and of a bare PyTorch loop, in turns, in one process.

Both are timed by the same clock, which sits between the batches and the loop: from the request for the first batch to
the return from the last one's step. So all that a loop does between two batches counts. The bare loop is what a careful
person would write: the same network of timm's in channels-last memory, the same optimiser (with norms and biases spared
from weight decay) and schedule, the same precision, the same augmentation module on the same batches from the store;
no metrics, no progress, no checks. With `--in-memory` it takes its batches from one tensor instead.

Prints one JSON object on stdout: the rates of each round. Run by `bench/run.py`.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch.nn import functional
from torch.optim.lr_scheduler import OneCycleLR

from foveal.config import load
from foveal.data.augment import Augmentation
from foveal.data.batches import Batch, Batches, TrainingBatches
from foveal.data.ingest import Recipe, ingest
from foveal.experiments.preparing import draw_split, prepare
from foveal.model.build import build
from foveal.model.zoo import IMAGENET_MEAN, IMAGENET_STD
from foveal.pixels.policy import PixelPolicy, to_square
from foveal.progress import Silence
from foveal.run_folder import RunFolder
from foveal.training.config import Config, ResolvedConfig
from foveal.training.fit import fit
from foveal.training.resolve import architecture_of, geometry_of
from foveal.training.state import TrainingData
from turns import in_turns, serve_rounds

SIZE_PX, BATCH_SIZE, NUM_VAL = 96, 64, 64
WARM_UP_STEPS = 3
AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Clock:
    """Times passes over batches, from the request for one to the end of what is done with the last.

    Attributes:
        batch_size: images in each batch.
        warm_up_steps: batches at the start of each pass that do not count.
        synchronize: waits for the device.
        rates: images a second of each pass.
    """

    batch_size: int
    warm_up_steps: int = 0
    synchronize: Callable[[], None] = lambda: None
    rates: list[float] = field(default_factory=list)

    def over(self, batches: Generator[Batch, None, None]) -> Generator[Batch, None, None]:
        """The same batches, timed."""
        with closing(batches):
            number, started = 0, self._now()
            for number, batch in enumerate(batches, start=1):
                yield batch
                if number == self.warm_up_steps:
                    started = self._now()
            self.rates.append((number - self.warm_up_steps) * self.batch_size / (self._now() - started))

    def _now(self) -> float:
        self.synchronize()
        return time.perf_counter()


class TimedBatches(TrainingBatches):
    """The batches of a training, in the same order, by the clock.

    Args:
        like: the same without a clock.
        clock: where the rates go.
    """

    def __init__(self, like: TrainingBatches, clock: Clock) -> None:
        vars(self).update(vars(like))
        self._clock = clock

    def epoch(self, epoch: int, *, first_step: int = 0) -> Generator[Batch, None, None]:
        """The batches of one epoch."""
        return self._clock.over(super().epoch(epoch, first_step=first_step))


@dataclass(frozen=True)
class Stack:
    """A training as foveal's own stages prepare it.

    Attributes:
        config: the recipe.
        data: what the loop goes through.
        store_px: side of the windows that the augmentation gets.
        windows: the middle windows of the training images, uint8 [n, 3, side, side], where they are asked for.
    """

    config: ResolvedConfig
    data: TrainingData
    store_px: int
    windows: torch.Tensor | None = None

    def augmentation(self) -> Augmentation:
        """A fresh one."""
        return Augmentation(self.config.augment, side_px=self.store_px, size_px=self.config.data.image_size)


def make_stack(images: Path, settings: Iterable[str], num_steps: int | None = None, in_memory: bool = False) -> Stack:
    """Scan, split and decode, by the code that `foveal train` runs.

    Args:
        images: DATA.
        settings: of the training.
        num_steps: the images of so many batches at most; all if not given.
        in_memory: whether to keep all windows in one tensor, too.
    """
    prepared = prepare(images, load(Config, None, list(settings)))
    config, geometry = prepared.config, geometry_of(prepared.config)
    recipe = Recipe(geometry, PixelPolicy(background=config.data.background), config.data.box_margin)
    ingested = ingest(
        prepared.manifest, recipe, keep_pixels=True, cap_bytes=8 << 30, num_workers=config.data.num_workers
    )
    manifest = draw_split(ingested.manifest, config)
    labels, batch_size = manifest.label_ids(), config.train.batch_size
    train, val = np.random.default_rng(0).permutation(manifest.of_split("train")), manifest.of_split("val")[:NUM_VAL]
    if num_steps:
        train = train[: num_steps * batch_size]
    source = ingested.source
    data = TrainingData(
        train=TrainingBatches(
            source,
            train,
            labels[train],
            side_px=geometry.store_px,
            batch_size=batch_size,
            seed=config.seed,
            random_window=config.augment.random_window,
            size_px=geometry.size_px,
            repeats=config.augment.repeats,
        ),
        val=Batches(source, val, labels[val], geometry, batch_size=batch_size),
        augmentation=Augmentation(config.augment, side_px=geometry.store_px, size_px=geometry.size_px),
        class_names=manifest.class_names,
        paths=manifest.absolute_paths(),
        train_labels=labels[train],
    )
    stack = Stack(config, data, geometry.store_px)
    if not in_memory:
        return stack
    square = replace(geometry, size_px=geometry.store_px)
    windows: list[NDArray[np.uint8]] = [to_square(source[row], square) for row in train.tolist()]
    return replace(stack, windows=torch.from_numpy(np.stack(windows)).permute(0, 3, 1, 2))


def foveal_rate(stack: Stack, folder: Path, clock: Clock) -> float:
    """Images a second of one epoch of `fit`."""
    run = RunFolder(folder)
    run.prepare()
    run.checkpoints.mkdir(exist_ok=True)
    torch.manual_seed(0)
    classifier = build(architecture_of(stack.config, len(stack.data.class_names)))
    data = replace(stack.data, augmentation=stack.augmentation(), train=TimedBatches(stack.data.train, clock))
    fit(classifier, data, stack.config, run, Silence())
    return clock.rates[-1]


def bare_rate(stack: Stack, clock: Clock) -> float:
    """Images a second of one epoch of a bare loop on a CPU."""
    config, num_steps = stack.config, len(stack.data.train)
    torch.manual_seed(0)
    model = timm.create_model(config.model.name, pretrained=False, num_classes=len(stack.data.class_names))
    model = model.to(memory_format=torch.channels_last).train()
    optimizer = timm.optim.create_optimizer_v2(
        model, opt=config.optim.name, lr=config.optim.lr, weight_decay=config.optim.weight_decay
    )
    # Torch divides by the length of the rise, which would be none where a few steps are tried out.
    rise = 0.25 if num_steps > 4 else 0.5
    schedule = OneCycleLR(optimizer, max_lr=config.optim.lr, total_steps=max(3, num_steps), pct_start=rise)
    augmentation = stack.augmentation()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    autocast = AUTOCAST[config.train.precision]
    batches = stack.data.train.epoch(0) if stack.windows is None else _from_memory(stack, num_steps)
    for batch in clock.over(batches):
        pixels = augmentation(batch.images)
        with torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None):
            logits = model((pixels - mean) / std)
        loss = functional.cross_entropy(logits.float(), batch.labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return clock.rates[-1]


def _from_memory(stack: Stack, num_steps: int) -> Generator[Batch, None, None]:
    labels = torch.from_numpy(stack.data.train_labels)
    order = torch.randperm(len(labels))
    size = stack.data.train.batch_size
    for start in range(0, num_steps * size, size):
        chosen = order[start : start + size]
        if stack.windows is not None:
            yield Batch(stack.windows[chosen], labels[chosen], chosen.numpy())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--model", default="resnet18", help="a network of timm's (default: resnet18)")
    parser.add_argument("--size-px", type=int, default=SIZE_PX)
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="steps a round; a whole epoch if not given")
    parser.add_argument("--in-memory", action="store_true", help="the bare loop's images lie in one tensor")
    parser.add_argument("--on-request", action="store_true", help="foveal's loop alone, a round for each line on stdin")
    wanted = parser.parse_args()
    settings = (
        f"model.name={wanted.model}",
        "model.weights=none",
        f"data.image_size={wanted.size_px}",
        f"train.batch_size={wanted.batch_size}",
        f"train.precision={wanted.precision}",
        "train.epochs=1",
        "augment.policy=light",
        "train.device=cpu",
    )
    stack = make_stack(wanted.images, settings, wanted.steps, wanted.in_memory)
    clock = Clock(stack.data.train.batch_size)
    facts = {"model": wanted.model, "precision": stack.config.train.precision, "num_steps": len(stack.data.train)}
    with tempfile.TemporaryDirectory() as scratch:
        sides = {
            "foveal": lambda: foveal_rate(stack, Path(scratch) / "run", clock),
            "bare": lambda: bare_rate(stack, clock),
        }
        # A short round before the first sets up kernels and threads, and does not count.
        warm_up = make_stack(wanted.images, settings, WARM_UP_STEPS)
        foveal_rate(warm_up, Path(scratch) / "warm-up", clock)
        if wanted.on_request:
            serve_rounds(sides["foveal"], facts)
            return
        bare_rate(warm_up, clock)
        print(json.dumps({**facts, **in_turns(sides, wanted.rounds)}))


if __name__ == "__main__":
    main()
