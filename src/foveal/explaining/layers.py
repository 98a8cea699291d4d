"""The layer whose map is explained, chosen by following one image through the network.

No list of architectures: a layer is a map if its output has places, and the last map that everything passes through on
its way to the classes is the one that Grad-CAM was made for (Selvaraju et al. 2017). For a network that pools its class
token, places of the last tokens say nothing any more, so that it is the last layer whose places still reach the
classes: the normalisation before the last attention.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from foveal.errors import ConfigError
from foveal.model.build import Classifier
from foveal.model.heads import MapLayout, layout_of, ramp, ramp_like
from foveal.model.joint import JointNet

MIN_SIDE = 4
"""Where the last map has fewer places along a side, as with small images, the last one that has so many is taken."""
_FEWEST_PLACES_REACHED = 0.5


@dataclass(frozen=True, eq=False)
class TargetLayer:
    """A layer whose output is a map.

    Attributes:
        name: of the submodule of the classifier's network.
        module: the submodule.
        layout: how its output is a map.
        side: places along each side of the map.
    """

    name: str
    module: nn.Module
    layout: MapLayout
    side: int


@dataclass(eq=False)
class _Passed:
    """What a module gave while the image went through."""

    name: str
    module: nn.Module
    output: torch.Tensor
    version: int
    node: Any


def target_layers(classifier: Classifier) -> tuple[TargetLayer, ...]:
    """The layer to explain, or one for each backbone of a joint network.

    Raises:
        ConfigError: the network has no map of more than one place.
    """
    net: Any = classifier.net
    device = classifier.mean.device
    with at_rest(classifier):
        if isinstance(net, JointNet):
            return tuple(
                _chosen(branch, f"branches.{number}.", classifier, device) for number, branch in enumerate(net.branches)
            )
        return (_chosen(net, "", classifier, device),)


@contextmanager
def at_rest(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, and no parameter that takes part in gradients, for the length of the block; then as before."""
    modes = [(each, each.training) for each in module.modules()]
    wanted = [(each, each.requires_grad) for each in module.parameters()]
    module.eval()
    try:
        for parameter, _ in wanted:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, requires_grad in wanted:
            parameter.requires_grad_(requires_grad)
        for each, training in modes:
            each.training = training


def _chosen(net: Any, prefix: str, classifier: Classifier, device: torch.device) -> TargetLayer:
    pixels = ramp(classifier.architecture.image_size).to(device)
    with torch.no_grad():
        layout = _layout_of_features(net, pixels)
    with torch.enable_grad():
        pixels.requires_grad_()
        passed, row = _followed(net, pixels, pools=bool(classifier.num_features))
        total = (row * ramp_like(row).to(device)).sum()
        found = _maps(passed, layout, total)
    if not found:
        raise ConfigError(
            f"{classifier.architecture.in_words} at {classifier.architecture.image_size} px has no layer that is a map "
            "of places, so that no heatmap can be made.",
            fix="choose another model.name, such as resnet18.",
        )
    best = _best(found, total.grad_fn)
    return TargetLayer(prefix + best[0].name, best[0].module, best[1], best[2])


def _layout_of_features(net: Any, pixels: torch.Tensor) -> MapLayout | None:
    if not callable(getattr(net, "forward_features", None)):
        return None
    return layout_of(getattr(net, "backbone", net), net.forward_features(pixels))


def _followed(net: Any, pixels: torch.Tensor, *, pools: bool) -> tuple[list[_Passed], torch.Tensor]:
    """What each module gives of an image, in the order in which they end; those that run twice are left out.

    Of the head, only what stands before the pooling can have a map of its own: what pools may also enlarge.

    Args:
        net: a network of the zoo.
        pixels: float32 [1, 3, side, side], normalised.
        pools: whether the network can be asked for its pooled features; if not, what comes out are its logits.

    Returns:
        What the modules gave, and the row at the end, float32 [1, n].
    """
    passed: list[_Passed] = []
    times: dict[nn.Module, int] = {}

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            times[module] = times.get(module, 0) + 1
            if isinstance(module, nn.Identity):
                return  # it has nothing of its own to be named for
            if isinstance(output, torch.Tensor) and output.requires_grad and output.ndim in (3, 4):
                passed.append(_Passed(name, module, output, output._version, output.grad_fn))

        return hook

    hooks = [module.register_forward_hook(note(name)) for name, module in net.named_modules() if name]
    try:
        if callable(getattr(net, "forward_features", None)) and callable(getattr(net, "forward_head", None)):
            features = net.forward_features(pixels)
            num_before = len(passed)
            row = net.forward_head(features, pre_logits=pools).flatten(1)
            passed[num_before:] = [each for each in passed[num_before:] if each.name.partition(".")[0] == "neck"]
        else:
            row = net(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    # What a later step wrote over is no longer what the layer gave.
    return [each for each in passed if times[each.module] == 1 and each.output._version == each.version], row


def _maps(
    passed: Sequence[_Passed], final: MapLayout | None, total: torch.Tensor
) -> list[tuple[_Passed, MapLayout, int]]:
    """Those of the outputs that are maps whose places reach the classes."""
    maps = [(each, *found) for each in passed if (found := _as_map(each.output, final)) is not None]
    if not maps:
        return []
    outputs = [each.output for each, *_ in maps]
    gradients: Sequence[torch.Tensor | None] = torch.autograd.grad(total, outputs, allow_unused=True)
    reached = []
    for (each, layout, side), gradient in zip(maps, gradients, strict=True):
        if gradient is None:
            continue
        share = layout.to_map(gradient).abs().amax(dim=1).gt(0).float().mean()
        # A maximum over places, or a dead unit, lets some places through only; a class token lets none.
        if float(share) > (_FEWEST_PLACES_REACHED if layout.kind == "tokens" else 0.0):
            reached.append((each, layout, side))
    return reached


def _as_map(output: torch.Tensor, final: MapLayout | None) -> tuple[MapLayout, int] | None:
    """How an output is a map, and the places along its side, in the kind of layout that the network ends with."""
    kinds: tuple[str, ...] = ("first", "last", "tokens") if final is None else (final.kind,)
    if output.ndim == 4:
        _, one, two, three = output.shape
        if "first" in kinds and two == three > 1:
            return MapLayout("first", one), two
        if "last" in kinds and one == two > 1 and two != three:
            return MapLayout("last", three), one
        return None
    if "tokens" not in kinds:
        return None
    _, num_tokens, width = output.shape
    if final is not None and width != final.num_channels:
        return None
    for num_prefix in dict.fromkeys((final.num_prefix if final else 0, 0)):
        side = math.isqrt(max(0, num_tokens - num_prefix))
        if side > 1 and side * side == num_tokens - num_prefix:
            return MapLayout("tokens", width, side, num_prefix), side
    return None


def _best(found: Sequence[tuple[_Passed, MapLayout, int]], end: Any) -> tuple[_Passed, MapLayout, int]:
    """The last map that is fine enough and that nothing passes by; then the last that is fine enough; then any."""
    fine = [each for each in reversed(found) if each[2] >= MIN_SIDE]
    coarse = sorted((each for each in reversed(found) if each[2] < MIN_SIDE), key=lambda each: -each[2])
    for group in (fine, coarse):
        for each in group:
            # Attention takes places together on its own way, beside which the tokens themselves always run.
            if each[1].kind == "tokens" or not _is_passed_by(each[0].node, end):
                return each
    return (fine or coarse)[0]


def _is_passed_by(gate: Any, end: Any) -> bool:
    """Whether a way leads from the image to the end of the graph that does not go through `gate`."""
    waiting, seen = [end], {gate}
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if type(node).__name__ == "AccumulateGrad":
            return True  # the image is all that takes part in gradients
        waiting += [following for following, _ in node.next_functions if following is not None]
    return False
