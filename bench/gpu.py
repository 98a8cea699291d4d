"""Training from the store on a GPU, against the rate on one synthetic batch that stays on the GPU; `make bench-gpu`.

*foveal* is `foveal.training.fit`, from JPEGs that are generated and put through the store: batches, transfer,
augmentation, metrics and checks included. *Synthetic* is the ceiling: the same network of timm's in channels-last
memory, forwards, backwards and AdamW in one kernel on one batch of ready pixels, with nothing else in the loop. Both
wait for the GPU before the clock starts, after some steps that do not count, and before it stops. They take turns, and
each ratio is of one turn. Target: at least 0.95.

Without a GPU it says so and ends with exit code 2. Its logic can be tried on a CPU:

    python bench/gpu.py --device cpu --model test_resnet --size-px 64 --batch-size 8 --steps 4 --warm-up 2 --images 200
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import timm
import torch
from PIL import Image
from torch.nn import functional

from foveal.data.batches import Batch
from foveal_loop import AUTOCAST, Clock, Stack, foveal_rate, make_stack
from measuring import ratios
from recording import Record, add_out, print_table, with_spread
from turns import in_turns

TARGET = 0.95
NUM_CLASSES = 10
NO_GPU = 2


@dataclass(frozen=True)
class Synthetic:
    """A bare loop over one batch.

    Attributes:
        stack: whose recipe it follows.
        num_steps: a round, those that do not count included.
    """

    stack: Stack
    num_steps: int

    def rate(self, clock: Clock) -> float:
        """Images a second of one round."""
        config = self.stack.config
        device = torch.device(config.train.device)
        size_px, batch_size = config.data.image_size, self.stack.data.train.batch_size
        torch.manual_seed(0)
        model = timm.create_model(config.model.name, pretrained=False, num_classes=NUM_CLASSES)
        model = model.to(device, memory_format=torch.channels_last).train()
        optimizer = timm.optim.create_optimizer_v2(
            model, opt="adamw", lr=config.optim.lr, weight_decay=config.optim.weight_decay, fused=device.type == "cuda"
        )
        pixels = torch.randn(batch_size, 3, size_px, size_px, device=device).contiguous(
            memory_format=torch.channels_last
        )
        labels = torch.arange(batch_size, device=device) % NUM_CLASSES
        autocast = AUTOCAST[config.train.precision]
        batch = Batch(pixels, labels, np.arange(batch_size))
        for each in clock.over(batch for _ in range(self.num_steps)):
            with torch.autocast(device.type, dtype=autocast or torch.bfloat16, enabled=autocast is not None):
                loss = functional.cross_entropy(model(each.images), each.labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return clock.rates[-1]


def _wait_for_gpu() -> None:
    """Until all is done that was queued; nothing is on a CPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def generate(folder: Path, num_images: int, size_px: int) -> None:
    """Smooth coloured JPEGs, a little larger than the network sees and oblong, in class folders."""
    draw = np.random.default_rng(0)
    width, height = round(1.5 * size_px), round(1.15 * size_px)
    for number in range(num_images):
        coarse = draw.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        place = folder / f"class{number % NUM_CLASSES}"
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{number:06}.jpg", quality=90)


def main() -> int:
    """Measure and print; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--size-px", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--precision", choices=list(AUTOCAST), default="bf16")
    parser.add_argument("--images", type=int, default=2000, help="to generate (default: 2000)")
    parser.add_argument("--steps", type=int, default=60, help="that count, a round (default: 60)")
    parser.add_argument("--warm-up", type=int, default=20, help="steps before them in each round (default: 20)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu is for trying the script")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any other setting of foveal's")
    add_out(parser, "gpu")
    wanted = parser.parse_args()
    if wanted.device == "cuda" and not torch.cuda.is_available():
        print(
            "There is no CUDA GPU here (torch.cuda.is_available() is false), so nothing was measured.\n"
            "Try the script itself with: python bench/gpu.py --device cpu --model test_resnet --size-px 64 "
            "--batch-size 8 --steps 4 --warm-up 2 --images 200",
            file=sys.stderr,
        )
        return NO_GPU
    record = Record("gpu", wanted.out)
    is_cuda = wanted.device == "cuda"
    name = torch.cuda.get_device_name() if is_cuda else "cpu, which says nothing of a GPU"
    num_steps = wanted.warm_up + wanted.steps
    with tempfile.TemporaryDirectory(prefix="foveal-bench-") as folder:
        scratch = Path(folder)
        os.environ["FOVEAL_CACHE_DIR"] = str(scratch / "cache")
        generate(scratch / "images", wanted.images, wanted.size_px)
        num_train = int(wanted.images * 0.65)  # what the split leaves, and a little less
        settings = [
            f"model.name={wanted.model}",
            "model.weights=none",
            f"data.image_size={wanted.size_px}",
            f"train.batch_size={wanted.batch_size}",
            f"train.precision={wanted.precision}",
            f"train.device={wanted.device}",
            "train.epochs=1",
            f"augment.repeats={-(-num_steps * wanted.batch_size // num_train)}",
            *wanted.set,
        ]
        stack = make_stack(scratch / "images", settings)
        clock = Clock(
            stack.data.train.batch_size,
            warm_up_steps=wanted.warm_up,
            synchronize=_wait_for_gpu,
        )
        synthetic = Synthetic(stack, num_steps)
        sides: dict[str, Callable[[], float]] = {
            "foveal": lambda: foveal_rate(stack, scratch / "run", clock),
            "synthetic": lambda: synthetic.rate(clock),
        }
        for side in sides.values():
            side()  # sets up kernels and the memory's allocator, and does not count
        rates = in_turns(sides, wanted.rounds)
    found = ratios(rates["foveal"], rates["synthetic"])
    print(f"{wanted.model} at {wanted.size_px} px, {wanted.precision}, batches of {wanted.batch_size}, {name}\n")
    rows = [(side, with_spread(values, 4)) for side, values in rates.items()]
    print_table(("images/s", f"median of {wanted.rounds} (lowest to highest)"), rows)
    verdict = "met" if median(found) >= TARGET else "MISSED"
    target = f"target at least {TARGET}: {verdict}" if is_cuda else "a trial, to which no target applies"
    print(f"\nfoveal / synthetic: {with_spread(found)}; {target}.")
    content = {
        "device": name,
        "settings": settings,
        "num_steps": num_steps,
        "ratios": found,
        "images_per_second": rates,
    }
    record.write(content, device=wanted.device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
