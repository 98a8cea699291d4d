"""Training images a second of fastai; run by `bench/run.py` with the Python of `bench/.venv-peers`.

Prints one JSON object on stdout: the rate of each epoch but the first.
"""

import argparse
import json
import time
import warnings
from importlib.metadata import version
from pathlib import Path

from fastai.vision.all import (
    Callback,
    CancelTrainException,
    ImageDataLoaders,
    Resize,
    accuracy,
    aug_transforms,
    resnet18,
    vision_learner,
)


class Clock(Callback):
    """Times the training part of each epoch, from before the workers start to after the last step."""

    def __init__(self, num_steps: int | None) -> None:
        super().__init__()
        self.num_steps, self.rates = num_steps, []

    def before_train(self) -> None:
        """Start the clock."""
        self.num_images, self.started = 0, time.perf_counter()

    def after_batch(self) -> None:
        """Count."""
        if self.training:
            self.num_images += len(self.xb[0])
            if self.num_steps and self.iter + 1 >= self.num_steps:
                raise CancelTrainException

    def after_train(self) -> None:
        """Stop the clock."""
        self.rates.append(self.num_images / (time.perf_counter() - self.started))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("--epochs", type=int, default=1, help="that count; one more comes before them")
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
    learner = vision_learner(loaders, resnet18, pretrained=False, metrics=accuracy)
    clock = Clock(wanted.steps)
    with learner.no_bar(), learner.no_logging():
        learner.fit_one_cycle(wanted.epochs + 1, lr_max=2e-3, wd=0.05, cbs=clock)
    print(json.dumps({"fastai": clock.rates[1:], "version": version("fastai"), "torch": version("torch")}))


if __name__ == "__main__":
    main()
