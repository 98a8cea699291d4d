"""What of a network trains: freezing by part and by epoch, and the mode that frozen parts run in.

A *layer with weights* is a convolution or a linear layer, whatever it is for: shortcuts and squeeze-and-excitation
count too. They are counted in the order in which an image passes through them, which need not be that of definition.
What else has parameters goes with them: norms, layer scales and learnt activations with the layer before them (as in
conv-norm-activation); position embeddings, class tokens and the like, which belong to no layer, train where every layer
of the module that holds them does. The head, and what stands between it and the backbone, always trains whole: it is
new, and nothing is gained by keeping random weights. Where several backbones stand under one head, all of this holds
for each of them with the head.

*Stages* are those of timm's feature pyramid (`feature_info`), the stem being part of the first one or the first one
itself; in transformers that keep their resolution each block is one.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from foveal.errors import ConfigError
from foveal.model.build import Classifier
from foveal.model.config import ModelConfig
from foveal.model.costs import count_parameters, run_blank
from foveal.model.joint import JointNet

PARTIAL = "last:4"
"""What freeze=partial stands for."""
MAX_NAMES_SHOWN = 4
BEHIND_AUXILIARY = ("Mixed_7", "fc.")
"""What comes after the auxiliary head of Inception-v3, the one network that has one."""


def freeze_at(config: ModelConfig, epoch: int) -> str:
    """The `freeze` that holds in an epoch, counted from 0; the keys of `unfreeze` count from 1."""
    freeze = config.freeze
    for first_epoch, later in sorted(config.unfreeze.items()):
        if epoch + 1 >= first_epoch:
            freeze = later
    return freeze


def apply_freeze(classifier: Classifier, freeze: str) -> None:
    """Let exactly those parameters require gradients that train; the others lose the gradient that they hold.

    Args:
        classifier: the network; its weights stay as they are.
        freeze: none, all, partial, last:N or stages:N, as `model.freeze`.

    Raises:
        ConfigError: there are fewer layers or stages than asked for, or no stages at all.
    """
    _let_train(classifier, _trained_parts(classifier, [freeze])[freeze])


def apply_every_freeze(classifier: Classifier, config: ModelConfig) -> None:
    """Let those parameters require gradients that train in any epoch: what an optimiser and DDP must know of.

    Raises:
        ConfigError: as `apply_freeze`, for every freeze of the configuration at once.
    """
    parts = _trained_parts(classifier, list(dict.fromkeys([config.freeze, *config.unfreeze.values()])))
    _let_train(classifier, set().union(*parts.values()))


def set_training_mode(classifier: Classifier) -> None:
    """Put what trains into training mode and what is frozen into evaluation mode.

    So frozen batch norms normalise by the statistics that they came with, and keep them, and nothing is dropped on
    the way through frozen layers: their output for an image is always the same. Call it after `apply_freeze`.
    """
    classifier.train()
    if all(parameter.requires_grad for parameter in classifier.parameters()):
        return
    for module in _topmost_frozen(classifier):
        module.eval()
    loose = [module for module in classifier.net.modules() if module.training and _acts_in_training_only(module)]
    if not loose:
        return
    passage = _Passage.of(classifier)
    for way in _ways(classifier):
        order = way.part_of(passage.order)
        first_trained = min((passage.reached[m] for m in order if _own_trains(m)), default=0)
        frozen_before = [at for m in order if (at := passage.reached[m]) < first_trained]
        for module in way.part_of(loose):
            at = passage.reached.get(module, first_trained)
            # Dropout just before the first layer that trains is that layer's; statistics there are the frozen layer's.
            if at < (first_trained if isinstance(module, _NormBase) else max(frozen_before, default=0)):
                module.eval()


def freeze_sentence(classifier: Classifier) -> str:
    """How much of a network trains, and which parts, in the words of a log: `trains: 130 of 980 parameters (fc)`."""
    total, trained = count_parameters(classifier.net), count_parameters(classifier.net, trainable_only=True)
    if trained == total:
        return f"trains: all {total:,} parameters"
    names = list(_names_of_trained(classifier.net, ""))
    shown = names if len(names) <= MAX_NAMES_SHOWN else ["...", *names[-MAX_NAMES_SHOWN:]]
    return f"trains: {trained:,} of {total:,} parameters ({', '.join(shown) or 'nothing'})"


def layers_with_weights(classifier: Classifier) -> list[nn.Module]:
    """The convolutions and linear layers, in the order in which an image passes through them.

    Raises:
        ConfigError: the network cannot take images of the size that it was built for.
    """
    return [module for module in _Passage.of(classifier).order if _has_weight_matrix(module)]


@dataclass(frozen=True)
class _Passage:
    """How an image passes through a network.

    Attributes:
        order: the modules that have parameters of their own, in the order in which they are last reached; those that
            are never called, because their weights are used without them, follow the one that is defined before them.
        reached: when a module was last reached.
        left: when a module was last left.
    """

    order: tuple[nn.Module, ...]
    reached: dict[nn.Module, int]
    left: dict[nn.Module, int]

    @classmethod
    def of(cls, classifier: Classifier) -> "_Passage":
        reached: dict[nn.Module, int] = {}
        left: dict[nn.Module, int] = {}
        clock = itertools.count()

        def note_arrival(module: nn.Module, inputs: Any) -> None:
            del inputs
            reached[module] = next(clock)

        def note_departure(module: nn.Module, inputs: Any, output: Any) -> None:
            del inputs, output
            left[module] = next(clock)

        hooks = [module.register_forward_pre_hook(note_arrival) for module in classifier.net.modules()]
        hooks += [module.register_forward_hook(note_departure) for module in classifier.net.modules()]
        try:
            run_blank(classifier)
        finally:
            for hook in hooks:
                hook.remove()
        holders = [module for module in classifier.net.modules() if any(True for _ in module.parameters(recurse=False))]
        previous = 0
        for module in holders:
            previous = reached.setdefault(module, previous)
        # Sorting keeps the order of definition among those with the same moment: the one that was called comes first.
        return cls(tuple(sorted(holders, key=reached.__getitem__)), reached, left)

    def end_of(self, module: nn.Module) -> int | None:
        """When the image left a module for good; None where it never came there."""
        return max((self.left[part] for part in module.modules() if part in self.left), default=None)


@dataclass(frozen=True)
class _Way:
    """How an image comes through one backbone to the classes.

    Attributes:
        name: the backbone's model.
        trunk: the backbone.
        modules: of it, of what is done to its map, and of the head.
    """

    name: str
    trunk: nn.Module
    modules: frozenset[nn.Module]

    def part_of(self, modules: Sequence[nn.Module]) -> list[nn.Module]:
        """Those that lie on this way, in their order."""
        return [module for module in modules if module in self.modules]


def _ways(classifier: Classifier) -> list[_Way]:
    """The ways from the image to the classes, one a backbone; the head is on all of them."""
    net = classifier.net
    if not isinstance(net, JointNet):
        return [_Way(classifier.architecture.in_words, classifier.backbone, frozenset(net.modules()))]
    head = frozenset(net.head.modules())
    return [
        _Way(name, branch.backbone, head | frozenset(branch.modules()))
        for name, (_, branch) in zip(classifier.architecture.names, net.named_branches(), strict=True)
    ]


def _trained_parts(classifier: Classifier, freezes: Sequence[str]) -> dict[str, set[int]]:
    """The identities of the parameters that train, by freeze."""
    passage = None if set(freezes) <= {"none", "all"} else _Passage.of(classifier)
    new = [*classifier.neck_modules(), *classifier.head_modules()]
    behind = {id(p) for module in new for p in module.parameters()}
    parts: dict[str, set[int]] = {}
    problems: list[str] = []
    for freeze in freezes:
        kind, _, number = (PARTIAL if freeze == "partial" else freeze).partition(":")
        if kind == "none":
            parts[freeze] = {id(p) for p in classifier.net.parameters()}
        elif passage is None or kind == "all":
            parts[freeze] = set(behind)
        else:
            choose = _from_layer if kind == "last" else _from_stage
            chosen: list[nn.Module] = []
            for way in _ways(classifier):
                found = choose(way, passage, int(number))
                if isinstance(found, str):
                    problems.append(f"{freeze}: {way.name} has {found}")
                else:
                    chosen += found
            parts[freeze] = behind | _parameters_of(passage, chosen)
    if problems := list(dict.fromkeys(problems)):
        raise ConfigError(
            f"model.freeze: {problems[0]}." if len(problems) == 1 else "model.freeze asks for more than there is.",
            problems=problems if len(problems) > 1 else (),
            fix="name no more than there are, or choose none, all or last:N; `model.txt` of a run lists the parts.",
        )
    return parts


def _from_layer(way: _Way, passage: _Passage, num_layers: int) -> list[nn.Module] | str:
    """The modules from the n-th last layer with weights on, or how many there are."""
    order = way.part_of(passage.order)
    places = [place for place, module in enumerate(order) if _has_weight_matrix(module)]
    if num_layers > len(places):
        return f"{len(places)} layers with weights"
    # What comes before the first layer goes with the first.
    return order[places[-num_layers] if num_layers < len(places) else 0 :]


def _from_stage(way: _Way, passage: _Passage, num_stages: int) -> list[nn.Module] | str:
    """The modules of the last stages and behind them, or how many stages there are."""
    trunk: Any = way.trunk
    known = getattr(trunk, "feature_info", None) or ()
    ends = []
    for stage in getattr(known, "info", known):
        try:
            end = passage.end_of(trunk.get_submodule(stage["module"]))
        except AttributeError:
            end = None
        if end is None:
            return "no stages that can be told apart"
        ends.append(end)
    if num_stages > len(ends):
        return f"{len(ends)} stages" if ends else "no stages"
    begin = -1 if num_stages == len(ends) else ends[-num_stages - 1]
    return [module for module in way.part_of(passage.order) if passage.reached[module] > begin]


def _parameters_of(passage: _Passage, chosen: Sequence[nn.Module]) -> set[int]:
    """The identities of the parameters of these modules, and of the modules around them that hold no other layer."""
    layers = {module for module in passage.order if _has_weight_matrix(module)}
    trained = set()
    for module in passage.order:
        within = layers.intersection(module.modules()) - {module}
        if within <= set(chosen) if within else module in chosen:
            trained |= {id(p) for p in module.parameters(recurse=False)}
    return trained


def _let_train(classifier: Classifier, trained: set[int]) -> None:
    for parameter in classifier.net.parameters():
        parameter.requires_grad_(id(parameter) in trained)
        if not parameter.requires_grad:
            # A gradient of an earlier step would move it, and so would its momentum and its weight decay.
            parameter.grad = None
    if classifier.auxiliary is not None:
        # Its loss is of use only to what comes before it; where all of that is frozen, it would train for nothing.
        before = (p for name, p in classifier.backbone.named_parameters() if not name.startswith(BEHIND_AUXILIARY))
        classifier.auxiliary.requires_grad_(any(parameter.requires_grad for parameter in before))


def _has_weight_matrix(module: nn.Module) -> bool:
    """Whether it is a layer with weights: theirs have an input and an output dimension, those of norms have not."""
    weight = module._parameters.get("weight")
    return weight is not None and weight.ndim >= 2 and not isinstance(module, nn.Embedding)


def _own_trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters(recurse=False))


def _topmost_frozen(module: nn.Module) -> Iterator[nn.Module]:
    """The largest modules that have parameters of which none trains."""
    parameters = list(module.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        yield module
    elif parameters:
        for child in module.children():
            yield from _topmost_frozen(child)


def _acts_in_training_only(module: nn.Module) -> bool:
    """Whether it has no parameters, and yet does something else in training: dropout, or a norm without weights."""
    if any(True for _ in module.parameters()) or any(True for _ in module.children()):
        return False
    share = next((getattr(module, name) for name in ("p", "drop_prob", "prob") if hasattr(module, name)), 0.0)
    return isinstance(module, _NormBase) or (isinstance(share, int | float) and share > 0.0)


def _names_of_trained(module: nn.Module, name: str) -> Iterator[str]:
    """The largest parts that train whole, and the single parameters that belong to none."""
    inner = f"{name}." if name else ""
    for own, parameter in module.named_parameters(recurse=False):
        if parameter.requires_grad:
            yield inner + own
    for own, child in module.named_children():
        parameters = list(child.parameters())
        if parameters and all(parameter.requires_grad for parameter in parameters):
            yield inner + own
        elif parameters:
            yield from _names_of_trained(child, inner + own)
