"""What one image costs a network, layer by layer."""

from typing import Any

import torch
from torch import nn

from foveal.model.build import Classifier, run_blank


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
