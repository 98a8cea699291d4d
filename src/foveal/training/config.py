"""The `optim` and `train` sections, and the root of the configuration."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from foveal.auditing.config import AuditConfig
from foveal.config import Section, load
from foveal.data.augment_config import AugmentConfig
from foveal.data.config import DataConfig, ResolvedDataConfig
from foveal.data.split_config import SplitConfig
from foveal.model.config import ModelConfig

Auto = Literal["auto"]

MONITORED = ("loss", "accuracy", "balanced_accuracy", "macro_f1", "macro_precision", "macro_recall", "top_3_accuracy")
"""What every epoch measures on train and validation, without the train_ or val_ in front."""


class OptimConfig(Section):
    """How the weights are moved."""

    name: Literal["adamw", "sgd"] = "adamw"
    """adamw (Loshchilov and Hutter 2019), or sgd with Nesterov momentum 0.9."""
    lr: Annotated[float, Field(gt=0.0)] | Auto = "auto"
    """Highest learning rate; auto takes 2e-3 from a random start and 5e-4 from weights (sgd: 0.1 and 0.02)."""
    weight_decay: float = Field(default=0.05, ge=0.0)
    """Decoupled weight decay; norms and biases are spared."""
    schedule: Literal["one_cycle", "constant"] = "one_cycle"
    """one_cycle: up over the first quarter and down to nothing (Smith 2018); or constant."""


class EarlyStoppingConfig(Section):
    """When to stop before the last epoch, and which epoch is the best."""

    monitor: str = "val_macro_f1"
    """The figure that decides which epoch is kept as the best; ties go to the lower validation loss."""
    patience: int | None = Field(default=None, ge=1)
    """Epochs without a better one after which training stops; not given, all epochs are run."""

    @field_validator("monitor")
    @classmethod
    def _known(cls, value: str) -> str:
        known = [f"val_{name}" for name in MONITORED]
        if value not in known:
            raise ValueError(f"expected one of {', '.join(known)}, and came {value!r}")
        return value


class TrainConfig(Section):
    """How long, how much at once, and on what."""

    epochs: Annotated[int, Field(ge=1)] | Auto = "auto"
    """Passes over the training images; auto makes 1,500 steps from weights and 2,000 from a random start, within 5 to
    40 epochs."""
    batch_size: Annotated[int, Field(ge=1)] | Auto = "auto"
    """Images a step; auto takes 64 on a CPU and 128 on a GPU, and less where there are few images."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of training; auto takes bf16 where the device computes it in hardware, else fp32. Evaluation is
    always in fp32."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train; auto takes a GPU where there is one."""
    early_stopping: EarlyStoppingConfig = EarlyStoppingConfig()
    """When to stop, and which epoch is the best."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: a class's loss counts inversely to its number of training images."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of each label that is spread over all classes (Szegedy et al. 2016)."""
    checkpoint_minutes: float = Field(default=10.0, gt=0.0)
    """Minutes between checkpoints within a long epoch; one is written at the end of every epoch in any case."""


class Config(Section):
    """The whole configuration as a user may write it."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """Decides the split, the random start, the order, the augmentation and the bootstrap."""
    data: DataConfig = DataConfig()
    """What is read, how it is split, and the square that the model sees."""
    split: SplitConfig = SplitConfig()
    """How `foveal split` groups, chooses and shares out."""
    audit: AuditConfig = AuditConfig()
    """What `audit` looks for; `train` takes from it whether near duplicates are searched."""
    augment: AugmentConfig = AugmentConfig()
    """What is done to training images."""
    model: ModelConfig = ModelConfig()
    """Which network, from which weights."""
    optim: OptimConfig = OptimConfig()
    """How the weights are moved."""
    train: TrainConfig = TrainConfig()
    """How long, how much at once, and on what."""


def read_config(config: Config | str | PathLike[str] | None, overrides: Sequence[str] = ()) -> Config:
    """A configuration as a verb is given it: an object, a YAML file or nothing, with overrides on top.

    Raises:
        ConfigError: keys or values are wrong; all at once.
    """
    if isinstance(config, Config):
        return load(Config, None, overrides, base=config.model_dump(mode="json", exclude_unset=True))
    return load(Config, None if config is None else Path(config), overrides)


class ResolvedOptimConfig(OptimConfig):
    """The same with nothing left to find out."""

    lr: float


class ResolvedTrainConfig(TrainConfig):
    """The same with nothing left to find out."""

    epochs: int
    batch_size: int
    precision: Literal["fp32", "bf16", "fp16"]
    device: Literal["cpu", "cuda", "mps"]


class ResolvedConfig(Config):
    """The configuration in which no "auto" is left: what is written to the run, and what every stage takes."""

    data: ResolvedDataConfig
    optim: ResolvedOptimConfig
    train: ResolvedTrainConfig
