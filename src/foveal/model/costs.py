"""What a network costs: parameters, operations and values an image, layer by layer."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from foveal.errors import ConfigError
from foveal.model.build import Classifier
from foveal.model.joint import JointNet


def count_parameters(module: nn.Module, *, trainable_only: bool = False) -> int:
    """Number of scalar parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable_only)


def run_blank(classifier: Classifier) -> None:
    """Run one blank image through a network in evaluation mode, for whoever counts or listens meanwhile.

    Raises:
        ConfigError: the network cannot take images of the size that it was built for.
    """
    size = classifier.architecture.image_size
    modes = [(module, module.training) for module in classifier.modules()]
    classifier.eval()
    try:
        with torch.no_grad():
            classifier(torch.zeros(1, 3, size, size, device=classifier.mean.device))
    except (ArithmeticError, AssertionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"{classifier.architecture.in_words} cannot take images of {size} x {size} px: {str(error).rstrip('.')}.",
            fix="choose another data.image_size (many networks need a multiple of 16 or 32, or more pixels), or a "
            "model.name that takes any size, such as resnet18.",
        ) from error
    finally:
        # One by one: what is frozen is in another mode than the rest.
        for module, was_training in modes:
            module.training = was_training


def count_macs(classifier: Classifier) -> int:
    """Multiply-accumulates for one image, by torch's own counter (which counts two operations for each).

    Raises:
        ConfigError: see `run_blank`.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run_blank(classifier)
    return int(counter.get_total_flops() // 2)


def summarise(classifier: Classifier, class_names: Sequence[str]) -> str:
    """The text of model.txt: totals first, then a line a module down to two levels of each backbone."""
    net = classifier.net
    architecture, size = classifier.architecture, classifier.architecture.image_size
    lines = [
        f"{architecture.in_words}: {len(class_names)} classes, {size} x {size} px",
        f"parameters          {count_parameters(net):>14,}",
        f"trainable           {count_parameters(net, trainable_only=True):>14,}",
        f"multiply-accumulates{count_macs(classifier):>14,} for one image",
        *_auxiliary_line(classifier),
        "",
        f"{'module':<44}{'kind':<28}{'parameters':>14}  trains",
    ]
    told = _names_of_branches(classifier)
    for name, module in net.named_modules():
        # A branch's backbone lies two levels further down.
        if name and name.count(".") <= (3 if told and name.startswith("branches.") else 1):
            kind = told.get(name, type(module).__name__)
            lines.append(f"{name:<44}{kind:<28}{count_parameters(module):>14,}  {_what_trains(module)}")
    return "\n".join(lines) + "\n"


def _names_of_branches(classifier: Classifier) -> dict[str, str]:
    """Which model each backbone of a joint network is, by its place in it; empty for one backbone."""
    if not isinstance(classifier.net, JointNet):
        return {}
    names = classifier.architecture.names
    return {f"{prefix}backbone": name for (prefix, _), name in zip(classifier.net.named_branches(), names, strict=True)}


def _what_trains(module: nn.Module) -> str:
    """yes, partly, frozen, or - where there is nothing to train."""
    total, trained = count_parameters(module), count_parameters(module, trainable_only=True)
    return "-" if not total else "frozen" if not trained else "yes" if trained == total else "partly"


def _auxiliary_line(classifier: Classifier) -> list[str]:
    if classifier.auxiliary is None:
        return []
    return [f"auxiliary head      {count_parameters(classifier.auxiliary):>14,} more, for training only"]


def layer_outputs(classifier: Classifier) -> list[tuple[nn.Module, int]]:
    """Every innermost layer with the number of values that it puts out for one image, in the order of computing.

    Raises:
        ConfigError: the network cannot take images of the size that it was built for.
    """
    outputs: list[tuple[nn.Module, int]] = []

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        del inputs
        if isinstance(output, torch.Tensor):
            outputs.append((module, output.numel()))

    leaves = [module for module in classifier.modules() if not any(module.children())]
    hooks = [leaf.register_forward_hook(note) for leaf in leaves]
    try:
        run_blank(classifier)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs


def depthwise_share(classifier: Classifier) -> float:
    """The share of all convolutions' and linear layers' output values that comes from depthwise convolutions, 0..1.

    CPUs multiply matrices of bfloat16 fast, but a depthwise convolution is none, and is slower in bfloat16 than in
    float32: mobile networks lose what the rest gains.
    """
    total = depthwise = 0
    for module, num_values in layer_outputs(classifier):
        if isinstance(module, nn.Conv2d | nn.Linear):
            total += num_values
            if isinstance(module, nn.Conv2d) and module.groups > 1 and module.groups == module.in_channels:
                depthwise += num_values
    return depthwise / total if total else 0.0
