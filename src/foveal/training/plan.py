"""What a training would do, before it does it."""

from dataclasses import asdict, dataclass
from typing import Any

from foveal.config import dump_yaml
from foveal.model.build import Classifier
from foveal.model.config import in_words
from foveal.model.costs import count_macs, count_parameters, layer_outputs
from foveal.training.config import ResolvedConfig

STATES_PER_PARAMETER = {"sgd": 1, "lion": 1, "rmsprop": 1, "adagrad": 1}
"""Values that an optimiser keeps beside each weight that trains; 2 for all others, as for adamw."""


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
            f"model       {in_words(config.model.name)}, {self.num_parameters:,} parameters, "
            f"{self.num_trainable:,} train, {self.macs / 1e6:,.0f} million multiply-accumulates an image",
            f"steps       {self.num_steps:,}: {config.train.epochs} epochs of {self.steps_per_epoch:,} at "
            f"{config.train.batch_size * config.train.accumulate} images",
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
    num_train = max(1, num_images["train"])
    batch_size = min(config.train.batch_size, num_train)
    steps = max(
        1, num_train * config.augment.repeats // min(config.train.batch_size * config.train.accumulate, num_train)
    )
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
        memory_mib=memory_bytes(classifier, config, batch_size) >> 20,
        config=config,
    )


def memory_bytes(classifier: Classifier, config: ResolvedConfig, batch_size: int) -> int:
    """Estimated peak of a training step on each device.

    Weights, gradients and the optimiser's state in float32, and every layer's output for the device's share of a batch:
    kept once forwards, once backwards.
    """
    num_values = sum(num for _, num in layer_outputs(classifier))
    bytes_per_value = 4 if config.train.precision == "fp32" else 2
    trained = count_parameters(classifier, trainable_only=True)
    per_trained = 1 + STATES_PER_PARAMETER.get(config.optim.name, 2) + (config.train.ema is not None)
    weights = 4 * (count_parameters(classifier) + trained * per_trained)
    share = -(-batch_size // (config.train.devices * config.train.nodes))
    return weights + 2 * num_values * share * bytes_per_value
