"""Training images a second of fastai; run by `bench/run.py` with the Python of `bench/.venv-peers`.

`mobilenetv3_small_100` and `efficientnet_b0` are torchvision's here, the same networks as timm's, under fastai's head.

Prints one JSON object on stdout, then one with the rate of a round for each line on stdin.
"""

import argparse
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import torchvision
from fastai.vision.all import (
    Callback,
    CancelTrainException,
    CancelValidException,
    ImageDataLoaders,
    Resize,
    accuracy,
    aug_transforms,
    vision_learner,
)

from turns import serve_rounds

MODELS: dict[str, Callable[..., Any]] = {
    "resnet18": torchvision.models.resnet18,
    "mobilenetv3_small_100": torchvision.models.mobilenet_v3_small,
    "efficientnet_b0": torchvision.models.efficientnet_b0,
}
WARM_UP_STEPS = 3


class Clock(Callback):
    """Times the training part of each epoch, from before the workers start to after the last step."""

    def __init__(self, num_steps: int | None) -> None:
        super().__init__()
        self.num_steps, self.rates = num_steps, []

    def before_train(self) -> None:
        """Start the clock."""
        self.num_images, self.started = 0, perf_counter()

    def after_batch(self) -> None:
        """Count."""
        if self.training:
            self.num_images += len(self.xb[0])
            if self.num_steps and self.iter + 1 >= self.num_steps:
                raise CancelTrainException

    def after_train(self) -> None:
        """Stop the clock."""
        self.rates.append(self.num_images / (perf_counter() - self.started))

    def before_validate(self) -> None:
        """Pass over what is not measured."""
        raise CancelValidException


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--model", choices=list(MODELS), default="resnet18")
    parser.add_argument("--steps", type=int, help="cut each epoch short")
    wanted = parser.parse_args()
    warnings.simplefilter("ignore")
    loaders = ImageDataLoaders.from_folder(
        wanted.images,
        valid_pct=0.3,  # as many images to train on as foveal takes
        seed=0,
        item_tfms=Resize(96),
        batch_tfms=aug_transforms(
            do_flip=False,
            max_rotate=8.0,
            min_zoom=0.92,
            max_zoom=1.12,
            max_lighting=0.15,
            max_warp=0.0,
            p_affine=1.0,
            p_lighting=1.0,
        ),
        bs=64,
        device="cpu",
    )
    learner = vision_learner(loaders, MODELS[wanted.model], pretrained=False, metrics=accuracy)

    def one_round(num_steps: int | None = wanted.steps) -> float:
        clock = Clock(num_steps)
        with learner.no_bar(), learner.no_logging():
            learner.fit_one_cycle(1, lr_max=2e-3, wd=0.05, cbs=clock)
        return float(clock.rates[-1])

    one_round(WARM_UP_STEPS)
    serve_rounds(one_round, {"version": version("fastai"), "torch": version("torch")})


if __name__ == "__main__":
    main()
