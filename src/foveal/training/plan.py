"""What a training would do, before it does it."""

from dataclasses import asdict, dataclass
from typing import Any

from foveal.config import dump_yaml
from foveal.model.build import Classifier
from foveal.model.costs import count_macs, count_parameters, layer_outputs
from foveal.training.config import ResolvedConfig

BYTES_PER_PARAMETER = {"adamw": 16, "sgd": 12}
"""Weight, gradient, and what the optimiser keeps, all in float32."""


@dataclass(frozen=True)
class TrainPlan:
    """What `train --dry-run` shows.

    Attributes:
        num_images: usable images a split.
        class_names: the classes, in order.
        num_quarantined: rows that cannot be used, as far as known without decoding.
        notes: what reading the data taught.
        num_parameters: of the network.
        num_trainable: those of them that train.
        macs: multiply-accumulates for one image.
        steps_per_epoch: optimiser steps in one pass.
        num_steps: optimiser steps in all.
        memory_mib: estimated peak of weights, gradients, optimiser and activations.
        config: the resolved configuration.
    """

    num_images: dict[str, int]
    class_names: tuple[str, ...]
    num_quarantined: int
    notes: tuple[str, ...]
    num_parameters: int
    num_trainable: int
    macs: int
    steps_per_epoch: int
    num_steps: int
    memory_mib: int
    config: ResolvedConfig

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "config": self.config.model_dump(mode="json")}

    def __str__(self) -> str:
        images = ", ".join(f"{count:,} {split}" for split, count in self.num_images.items())
        shown = ", ".join(self.class_names[:12]) + (", ..." if len(self.class_names) > 12 else "")
        config = self.config
        lines = [
            dump_yaml(config).rstrip(),
            "",
            f"images      {images}" + (f"; {self.num_quarantined:,} quarantined" if self.num_quarantined else ""),
            f"classes     {len(self.class_names)}: {shown}",
            f"model       {config.model.name}, {self.num_parameters:,} parameters, {self.num_trainable:,} train, "
            f"{self.macs / 1e6:,.0f} million multiply-accumulates an image",
            f"steps       {self.num_steps:,}: {config.train.epochs} epochs of {self.steps_per_epoch:,} at "
            f"{config.train.batch_size} images",
            f"memory      about {self.memory_mib:,} MiB on {config.train.device}, in {config.train.precision}",
            *(f"note        {note}" for note in self.notes),
        ]
        return "\n".join(lines)


def make_plan(
    classifier: Classifier,
    config: ResolvedConfig,
    *,
    num_images: dict[str, int],
    class_names: tuple[str, ...],
    num_quarantined: int,
    notes: tuple[str, ...],
) -> TrainPlan:
    """Count what a training would take, on the model itself.

    Raises:
        ConfigError: the images are too small for the network.
    """
    batch_size = min(config.train.batch_size, max(1, num_images["train"]))
    steps = max(1, num_images["train"] // batch_size)
    return TrainPlan(
        num_images=num_images,
        class_names=class_names,
        num_quarantined=num_quarantined,
        notes=notes,
        num_parameters=count_parameters(classifier),
        num_trainable=count_parameters(classifier, trainable_only=True),
        macs=count_macs(classifier),
        steps_per_epoch=steps,
        num_steps=steps * config.train.epochs,
        memory_mib=_memory_bytes(classifier, config, batch_size) >> 20,
        config=config,
    )


def _memory_bytes(classifier: Classifier, config: ResolvedConfig, batch_size: int) -> int:
    """Weights and what belongs to them, and every layer's output for one batch: kept once forwards, once backwards."""
    num_values = sum(num for _, num in layer_outputs(classifier))
    bytes_per_value = 4 if config.train.precision == "fp32" else 2
    weights = count_parameters(classifier) * BYTES_PER_PARAMETER[config.optim.name]
    return weights + 2 * num_values * batch_size * bytes_per_value
