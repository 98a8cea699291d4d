"""Optimisers, by timm's factory: which there are, which options each takes, and which parameters go in at what rate."""

import difflib
import inspect
from importlib.util import find_spec
from typing import Any

import torch

from foveal.errors import ConfigError
from foveal.model.build import Classifier
from foveal.model.config import ModelConfig
from foveal.model.freeze import apply_every_freeze
from foveal.training.config import OptimConfig, ResolvedOptimConfig

USUAL_MOMENTUM = 0.9
"""Of the relatives of SGD, whose classes have none of their own."""
FUSED = {"Adam", "AdamW", "SGD"}
"""What torch computes in one kernel on a GPU."""
OPTIONS = ("beta1", "beta2", "momentum", "nesterov", "rho", "eps")

_SGD_KIN = {"SGD", "SGDW", "SGDP", "Lars"}
DECOUPLED_DECAY, L2_DECAY = 0.05, 1e-4
_DECAYS_IN_GRADIENT = frozenset(
    {"sgd", "momentum", "nesterov", "adam", "nadam", "radam", "rmsprop", "rmsproptf", "adagrad", "adadelta", "adamax"}
)
_LEARNING_RATES = {
    # Tuned for foveal's default; other implementations of AdamW, and Muon, which timm scales to AdamW's steps.
    "AdamW": (2e-3, 5e-4),
    "AdamWLegacy": (2e-3, 5e-4),
    "NAdamW": (2e-3, 5e-4),
    "Muon": (2e-3, 5e-4),
    # Loshchilov and Hutter 2016 begin at 0.1; Kornblith et al. 2019 find 0.01 to 0.03 for fine-tuning.
    "SGD": (0.1, 0.02),
    "SGDW": (0.1, 0.02),
    "SGDP": (0.1, 0.02),
    # Kingma and Ba 2015; a quarter of it from weights, as for AdamW.
    "Adam": (1e-3, 2.5e-4),
    # Keras and TensorFlow begin at 1e-3; torch's 1e-2 is that of Hinton's lecture, for wide batches.
    "RMSprop": (1e-3, 2.5e-4),
    "RMSpropTF": (1e-3, 2.5e-4),
    # Torch's, and Duchi et al. 2011 go by it too; its steps shrink by themselves.
    "Adagrad": (1e-2, 2.5e-3),
    # Chen et al. 2023: a third to a tenth of AdamW's; of short trainings a third learns more.
    "Lion": (6e-4, 1.5e-4),
}
_FALLBACK_LR = 1e-3
_SHARE_FROM_WEIGHTS = 0.25


def make_optimizer(
    classifier: Classifier, config: ResolvedOptimConfig, model: ModelConfig | None = None, *, fused: bool = False
) -> torch.optim.Optimizer:
    """The optimiser over all that trains; norms, biases and what the network wants spared are without weight decay.

    A parameter that is frozen for now has no gradient, so that no optimiser moves it, by weight decay or momentum
    either; when it thaws, its state begins then.

    Args:
        classifier: the network.
        config: with a learning rate.
        model: what freezes when. Given, all parameters that ever train are taken, and left requiring gradients, which
            whoever spreads the network over processes must see too; not given, those that require gradients now.
        fused: whether to step in one kernel, where the optimiser can: on a GPU, and not with scaled gradients (fp16),
            which fused optimisers unscale by themselves, too late for clipping. On a CPU it saves a hundredth of a
            step, and is silently wrong where a gradient lies otherwise in memory than its parameter.

    Raises:
        ConfigError: see `check_optim` and `apply_every_freeze`; or nothing trains.
    """
    from timm.optim import create_optimizer_v2

    check_optim(config)
    if model is not None:
        apply_every_freeze(classifier, model)
    arguments = _arguments(config)
    if fused and _class_of(config.name).__name__ in FUSED:
        arguments["fused"] = True
    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        parameter_groups(classifier, config), opt=config.name, lr=config.lr, weight_decay=0.0, **arguments
    )
    for group in optimizer.param_groups:
        # Timm's corrected weight decay goes by the share of the highest rate, which is each group's own.
        if "max_lr_snapshot" in group:
            group["max_lr_snapshot"] = group["lr"]
    return optimizer


def parameter_groups(classifier: Classifier, config: ResolvedOptimConfig) -> list[dict[str, Any]]:
    """Parameters that require gradients, by weight decay and learning rate; the highest rate comes first.

    With `layer_decay`, the learning rate is lowered by it for each of timm's layer groups further from the head
    (`group_matcher`, as Bao et al. 2021 tune BEiT).

    Raises:
        ConfigError: nothing trains.
    """
    from timm.optim import param_groups_layer_decay, param_groups_weight_decay

    net: Any = classifier.net
    spared = net.no_weight_decay() if hasattr(net, "no_weight_decay") else ()
    if config.layer_decay is None:
        groups = param_groups_weight_decay(net, config.weight_decay, no_weight_decay_list=spared)
    else:
        groups = param_groups_layer_decay(
            net, config.weight_decay, no_weight_decay_list=spared, layer_decay=config.layer_decay
        )
    if classifier.auxiliary is not None:
        groups += param_groups_weight_decay(classifier.auxiliary, config.weight_decay)
    if not groups:
        raise ConfigError("model.freeze: nothing of the network trains.", fix="choose another model.freeze.")
    # Torch's schedules know nothing of timm's lr_scale.
    for group in groups:
        group["lr"] = config.lr * group.pop("lr_scale", 1.0)
    return sorted(groups, key=lambda group: (-group["lr"], group["weight_decay"] > 0.0))


def check_optim(config: OptimConfig) -> None:
    """Refuse what cannot be done, or would be silently without effect; without a network.

    Raises:
        ConfigError: an unknown or unsupported optimiser, options that it does not take, or settings of the schedule
            that contradict each other; all at once.
    """
    name_problem, fix = _name_problem(config.name)
    problems = [name_problem] if name_problem else _option_problems(config)
    problems += _schedule_problems(config)
    if problems:
        raise ConfigError(
            problems[0] if len(problems) == 1 else "The settings of the optimiser do not fit together.",
            problems=problems if len(problems) > 1 else (),
            fix=fix or "leave these keys out, or choose another optim.name or optim.schedule.",
        )


def auto_lr(config: OptimConfig, *, from_weights: bool) -> float:
    """The learning rate that `optim.lr=auto` stands for.

    By the class of the optimiser, whichever name it goes by: see the table above. For any other it is the one that its
    class has of its own, which is its authors' for a random start, and a quarter of that from weights.

    Raises:
        ConfigError: no such optimiser.
    """
    check_optim(config)
    known = _LEARNING_RATES.get(_class_of(config.name).__name__)
    if known is not None:
        return known[from_weights]
    own = _defaults_of(config.name).get("lr")
    # A rate of 1 is a factor on one that the method computes by itself, and None is left to it altogether.
    scratch = float(own) if isinstance(own, int | float) and own < 1.0 else _FALLBACK_LR
    return scratch * (_SHARE_FROM_WEIGHTS if from_weights else 1.0)


def auto_weight_decay(config: OptimConfig) -> float:
    """The weight decay that `optim.weight_decay=auto` stands for, by how the optimiser applies it.

    Decoupled decay shrinks a weight by its share of the rate, and 0.05 is usual for fine-tuning. As a part of the
    gradient (L2) the same number would outweigh the loss; 1e-4 is what convolutional networks are trained with there.

    Source: I. Loshchilov and F. Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.
    """
    return L2_DECAY if config.name in _DECAYS_IN_GRADIENT else DECOUPLED_DECAY


def _name_problem(name: str) -> tuple[str, str]:
    """What is wrong with the name of an optimiser, and what to do; empty if nothing."""
    from timm.optim import get_optimizer_info, list_optimizers

    usual = "choose adamw, adam, sgd, rmsprop, adagrad or lion, or another optimiser of timm's."
    if name.startswith("lookahead_"):
        return f"optim.name: {name!r}: Lookahead keeps weights that a checkpoint would lose.", usual
    known = [str(each) for each in list_optimizers()]
    if name not in known:
        near = difflib.get_close_matches(name.lower(), known, n=5, cutoff=0.5)
        listed = f"; near ones: {', '.join(near)}." if near else "."
        return f"optim.name: {name!r} is not an optimiser of timm's{listed}", usual
    info = get_optimizer_info(name)
    if info.second_order:
        return f"optim.name: {name!r} needs second derivatives, which a training step does not compute.", usual
    if isinstance(info.opt_class, str):
        package = info.opt_class.partition(".")[0]
        if find_spec(package) is None:
            return f"optim.name: {name!r} is of the package {package}, which is not installed.", usual
        if not torch.cuda.is_available():
            return f"optim.name: {name!r} runs on NVIDIA GPUs only, and there is none.", usual
    return "", ""


def _option_problems(config: OptimConfig) -> list[str]:
    """The options that are given and that the optimiser does not take."""
    taken = _options_of(config.name)
    takes = f"it takes {', '.join(taken)}" if taken else "it takes none of these options"
    problems = [
        f"optim.{key}: {config.name} does not take it; {takes}."
        for key in OPTIONS
        if getattr(config, key) is not None and key not in taken
    ]
    if config.momentum == 0.0 and config.nesterov and not problems:
        problems.append("optim.nesterov: Nesterov's momentum needs a momentum, and optim.momentum is 0.")
    return problems


def _schedule_problems(config: OptimConfig) -> list[str]:
    """The settings that the schedule would not look at, and a floor above the ceiling."""
    problems = []
    if config.warmup_epochs > 0.0 and config.schedule == "one_cycle":
        problems.append("optim.warmup_epochs: one_cycle warms up by itself, over a quarter of the training.")
    if config.min_lr > 0.0 and config.schedule in {"one_cycle", "constant"}:
        problems.append(f"optim.min_lr: {config.schedule} has no lowest rate; cosine, step and plateau have.")
    if isinstance(config.lr, float) and config.min_lr > config.lr:
        problems.append(f"optim.min_lr: {config.min_lr:g} is above optim.lr, {config.lr:g}.")
    return problems


def _class_of(name: str) -> type[torch.optim.Optimizer]:
    from timm.optim import get_optimizer_class

    found: Any = get_optimizer_class(name, bind_defaults=False)
    return found  # type: ignore[no-any-return]


def _defaults_of(name: str) -> dict[str, Any]:
    """What an optimiser's class takes, with what it is when not given: timm's word goes before the class's."""
    from timm.optim import get_optimizer_info

    signature = inspect.signature(_class_of(name).__init__)
    own = {key: parameter.default for key, parameter in signature.parameters.items()}
    return own | (get_optimizer_info(name).defaults or {})


def _options_of(name: str) -> list[str]:
    """The keys of `optim` that an optimiser takes, in the order of the configuration."""
    defaults = _defaults_of(name)
    places = {
        "beta1": "betas" in defaults,
        # Adafactor has a first beta only, and computes the second.
        "beta2": "betas" in defaults and "decay_rate" not in defaults,
        "momentum": "momentum" in defaults,
        "nesterov": "nesterov" in defaults,
        "rho": "rho" in defaults or "alpha" in defaults,
        "eps": "eps" in defaults,
    }
    return [key for key in OPTIONS if places[key]]


def _arguments(config: OptimConfig) -> dict[str, Any]:
    """The options in the words of the optimiser's class."""
    defaults = _defaults_of(config.name)
    arguments: dict[str, Any] = {}
    if config.beta1 is not None or config.beta2 is not None:
        betas = list(defaults["betas"] or (0.9, 0.999))
        betas[0] = betas[0] if config.beta1 is None else config.beta1
        # The last is the one of the squares, also of Adan's three.
        betas[-1] = betas[-1] if config.beta2 is None else config.beta2
        arguments["betas"] = tuple(betas)
    if "momentum" in defaults:
        own = USUAL_MOMENTUM if _class_of(config.name).__name__ in _SGD_KIN else defaults["momentum"]
        # Timm's factory would give 0.9 to all.
        arguments["momentum"] = own if config.momentum is None else config.momentum
    if config.nesterov is not None:
        arguments["nesterov"] = config.nesterov
    elif defaults.get("nesterov") and arguments.get("momentum") == 0.0:
        arguments["nesterov"] = False
    if config.rho is not None:
        arguments["rho" if "rho" in defaults else "alpha"] = config.rho
    if config.eps is not None:
        arguments["eps"] = config.eps
    return arguments
