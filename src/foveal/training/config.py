"""The `optim` and `train` sections, and the root of the configuration."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

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

    name: str = "adamw"
    """An optimiser of timm's factory: adamw, adam, sgd, rmsprop, adagrad, lion and many more."""
    lr: Annotated[float, Field(gt=0.0)] | Auto = "auto"
    """Highest learning rate; auto takes what suits the optimiser and the start: for adamw 2e-3 from a random start and
    5e-4 from weights."""
    weight_decay: Annotated[float, Field(ge=0.0)] | Auto = "auto"
    """Weight decay; norms and biases are spared. auto takes 0.05 where the optimiser has it decoupled, as adamw and
    lion, and 1e-4 where it is L2, as for sgd, adam, rmsprop and adagrad."""
    beta1: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """Decay of the mean of gradients; not given, the optimiser's own."""
    beta2: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """Decay of the mean of squared gradients; not given, the optimiser's own."""
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """Momentum of sgd and rmsprop; not given, 0.9 for sgd and the optimiser's own for others."""
    nesterov: bool | None = None
    """Whether sgd's momentum is Nesterov's; not given, it is."""
    rho: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Decay of rmsprop's mean of squared gradients (torch's alpha); not given, the optimiser's own."""
    eps: Annotated[float, Field(gt=0.0)] | None = None
    """What keeps a division from zero; not given, the optimiser's own."""
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """Factor on the learning rate for each layer group further from the head (layer-wise learning rates, as BEiT and
    ConvNeXt are tuned); 0.7 to 0.9 is usual. Not given, all layers have the same."""
    schedule: Literal["one_cycle", "cosine", "step", "plateau", "constant"] = "one_cycle"
    """one_cycle: up over the first quarter and down to nothing (Smith 2018); cosine: down to min_lr; step: times
    `factor` every `step_epochs`; plateau: times `factor` after `patience` epochs without a better monitored figure;
    constant."""
    warmup_epochs: float = Field(default=0.0, ge=0.0)
    """Epochs over which the rate rises from nothing before cosine, step, plateau or constant begin."""
    min_lr: float = Field(default=0.0, ge=0.0)
    """The rate below which cosine, step and plateau never go."""
    factor: float = Field(default=0.1, gt=0.0, lt=1.0)
    """What step and plateau multiply the rate by."""
    step_epochs: Annotated[float, Field(gt=0.0)] | Auto = "auto"
    """Epochs between two steps down; auto makes two of them: a third of the epochs."""
    patience: int = Field(default=3, ge=0)
    """Epochs without a better figure after which plateau lowers the rate."""


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


class DistillationConfig(Section):
    """What a trained model says of the same images, which is to be kept (Li and Hoiem 2017)."""

    teacher: str | None = None
    """Path of a run or a bundle whose classes are among these; not given, nothing is distilled."""
    weight: float = Field(default=1.0, ge=0.0)
    """What the distance from the teacher counts beside the loss of the labels."""
    temperature: float = Field(default=2.0, gt=0.0)
    """What logits are divided by before they are compared: the higher, the more the small probabilities count."""

    @property
    def is_on(self) -> bool:
        """Whether there is a teacher that counts."""
        return self.teacher is not None and self.weight > 0.0


class TrainConfig(Section):
    """How long, how much at once, and on what."""

    epochs: Annotated[int, Field(ge=1)] | Auto = "auto"
    """Passes over the training images; auto makes 1,500 steps from weights and 2,000 from a random start, within 5 to
    40 epochs."""
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto", "largest"] = "auto"
    """Images that are computed together, over all devices; auto takes 64 on a CPU and 128 on a GPU, less with few;
    largest tries out what fits into memory."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of training; auto takes bf16 where the device computes it in hardware, else fp32. Evaluation is
    always in fp32."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train; auto takes a GPU where there is one."""
    early_stopping: EarlyStoppingConfig = EarlyStoppingConfig()
    """When to stop, and which epoch is the best."""
    class_weights: Literal["none", "balanced", "effective"] | dict[str, Annotated[float, Field(ge=0.0)]] = "none"
    """balanced: a class's loss counts inversely to its number of training images; effective: inversely to its effective
    number of images (Cui et al. 2019); or a weight for each class by name."""
    sampling: Literal["natural", "balanced"] = "natural"
    """natural: every image once an epoch; balanced: images are drawn so that every class comes equally often."""
    loss: Literal["cross_entropy", "focal"] = "cross_entropy"
    """cross_entropy, or focal (Lin et al. 2017), which lets easy images count less."""
    focal_gamma: float = Field(default=2.0, ge=0.0)
    """How much less easy images count in the focal loss; 0 is cross-entropy."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of each label that is spread over all classes (Szegedy et al. 2016)."""
    distillation: DistillationConfig = DistillationConfig()
    """A trained model whose answers are kept while this one learns."""
    mixup: float = Field(default=0.0, ge=0.0)
    """Alpha of mixup (Zhang et al. 2018): images and labels of a batch are blended in pairs; 0 is off, 0.2 usual."""
    cutmix: float = Field(default=0.0, ge=0.0)
    """Alpha of CutMix (Yun et al. 2019): a rectangle comes from another image; 0 is off, 1 usual. With mixup as well,
    each batch takes one of the two."""
    mixing_share: float = Field(default=1.0, gt=0.0, le=1.0)
    """Share of the batches that are mixed, where mixup or cutmix is on."""
    ema: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Decay of an exponential moving average of the weights, such as 0.999, which is then what is validated and
    bundled; not given, none is kept."""
    clip_norm: Annotated[float, Field(gt=0.0)] | None = None
    """Largest norm of the gradient over all weights; larger ones are scaled down to it. Not given, none is."""
    accumulate: int = Field(default=1, ge=1)
    """Batches that make one step, computed one after the other, so that a large batch fits into memory: the step is
    over batch_size × accumulate images, and its result is that of the large batch."""
    halve_batch: bool = False
    """Whether memory that runs out halves batch_size and doubles accumulate, instead of ending the run."""
    compile: bool = False
    """Whether the network is compiled by torch.compile; takes minutes at the start, and pays on long runs on a GPU."""
    devices: int = Field(default=1, ge=1)
    """GPUs, or CPU processes, on each machine; batch_size is over all of them."""
    nodes: int = Field(default=1, ge=1)
    """Machines, each started by torchrun or SLURM."""
    checkpoint_minutes: float = Field(default=10.0, gt=0.0)
    """Minutes between checkpoints within a long epoch; one is written at the end of every epoch in any case."""

    @model_validator(mode="after")
    def _corrects_once(self) -> "TrainConfig":
        if self.sampling == "balanced" and self.class_weights in ("balanced", "effective"):
            raise ValueError(
                f"sampling=balanced and class_weights={self.class_weights} each make up for rare classes, and together "
                "they count them too much: choose one"
            )
        return self


class LogConfig(Section):
    """Where figures go besides the run folder."""

    to: tuple[Literal["csv", "tensorboard", "wandb", "mlflow"], ...] = ("csv",)
    """csv is always written; tensorboard, wandb and mlflow need the extras of these names."""
    project: str = "foveal"
    """The project of W&B, and the experiment of MLflow."""


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
    log: LogConfig = LogConfig()
    """Where figures go besides the run folder."""


def read_config(config: Config | str | PathLike[str] | None, overrides: Sequence[str] = ()) -> Config:
    """A configuration as a verb is given it: an object, a YAML file or nothing, with overrides on top.

    Raises:
        ConfigError: keys or values are wrong; all at once.
    """
    if isinstance(config, Config):
        base = config.model_dump(mode="json", exclude_unset=True)
        return load(Config, None, overrides, base=base, is_shared=True)
    return load(Config, None if config is None else Path(config), overrides, is_shared=True)


class ResolvedOptimConfig(OptimConfig):
    """The same with nothing left to find out."""

    lr: float
    weight_decay: float
    step_epochs: float


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
