"""Attention rollout: which places a transformer's answer could have drawn from, over all of its layers.

Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020. It follows the attention alone: it knows of
no class, and nothing of what the network does with what it attends to.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from foveal.errors import ConfigError
from foveal.model.build import Classifier
from foveal.model.heads import ComposedNet, layout_of
from foveal.model.joint import JointNet


def rollout(classifier: Classifier, pixels: torch.Tensor) -> torch.Tensor:
    """Follow the attention through all layers, half of each layer's answer being the token itself.

    Args:
        classifier: in evaluation mode.
        pixels: float32 [n, 3, side, side], 0..1.

    Returns:
        float32 [n, h, w], how much of each place reaches the class token, or the mean over places where the network
        pools those; not negative.

    Raises:
        ConfigError: the network has no attention over all places.
    """
    if problem := _problem(classifier):
        raise ConfigError(f"Rollout: {problem}.", fix="use another --method, such as hirescam.")
    net: Any = classifier.net
    backbone: Any = _backbone(classifier)
    features: list[torch.Tensor] = []
    with torch.no_grad(), _seen_attention(backbone) as seen:
        features.append(net.forward_features((pixels - classifier.mean) / classifier.std))
        layout = layout_of(backbone, features[0])
        if layout is None or layout.kind != "tokens" or not seen:
            raise ConfigError(
                f"Rollout: {classifier.architecture.in_words} does not end in tokens that stand for places.",
                fix="use another --method, such as hirescam.",
            )
        num_tokens = features[0].shape[1]
        if any(each.shape[-2:] != (num_tokens, num_tokens) for each in seen):
            raise ConfigError(
                f"Rollout: {classifier.architecture.in_words} does not look at the same tokens in all of its layers.",
                fix="use another --method, such as hirescam.",
            )
        flow = _joined(seen)
        has_own_pooling = isinstance(net, ComposedNet) and net.pooling is not None
        pools_token = layout.num_prefix and str(getattr(backbone, "global_pool", "token")) == "token"
        pools_places = has_own_pooling or not pools_token
        rows = flow[:, layout.num_prefix :].mean(dim=1) if pools_places else flow[:, 0]
        return rows[:, layout.num_prefix :].reshape(len(pixels), layout.side, layout.side)


def _problem(classifier: Classifier) -> str:
    """Why there is no rollout of this network, in words; empty where there is one."""
    name = classifier.architecture.in_words
    if isinstance(classifier.net, JointNet):
        return f"{name} is a joint network, and rollout follows one network"
    modules = list(_attentions(_backbone(classifier)))
    if not modules:
        return f"{name} has no attention over all places that could be followed"
    return ""


def _joined(layers: list[torch.Tensor]) -> torch.Tensor:
    """The product of all layers' attention, the mean over heads: float32 [n, tokens, tokens]."""
    unit = torch.eye(layers[0].shape[-1], device=layers[0].device)
    flow = unit.expand(len(layers[0]), -1, -1)
    for attention in layers:
        mixed = 0.5 * attention.float().mean(dim=1) + 0.5 * unit
        flow = (mixed / mixed.sum(dim=-1, keepdim=True)) @ flow
    return flow


def _backbone(classifier: Classifier) -> nn.Module:
    return classifier.backbone


def _attentions(backbone: nn.Module) -> Iterator[nn.Module]:
    """The attention of timm's transformers over all tokens: it can be computed openly."""
    for module in backbone.modules():
        has_switch = isinstance(getattr(module, "fused_attn", None), bool)
        if has_switch and isinstance(getattr(module, "attn_drop", None), nn.Module) and hasattr(module, "num_heads"):
            yield module


@contextmanager
def _seen_attention(backbone: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collect each layer's attention, float32 [n, heads, tokens, tokens]; the fused computing is off meanwhile."""
    seen: list[torch.Tensor] = []
    modules: list[Any] = list(_attentions(backbone))
    were = [module.fused_attn for module in modules]
    hooks = [
        module.attn_drop.register_forward_hook(lambda _, __, output: seen.append(output.detach())) for module in modules
    ]
    try:
        for module in modules:
            module.fused_attn = False
        yield seen
    finally:
        for module, was in zip(modules, were, strict=True):
            module.fused_attn = was
        for hook in hooks:
            hook.remove()
