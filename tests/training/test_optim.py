"""Optimisers against the bare ones of torch and timm, bit for bit; and each option by what it does to the weights."""

import copy
import io
from typing import Any

import pytest
import timm.optim
import torch
from torch import nn

from foveal.errors import ConfigError
from foveal.model.build import Architecture, Classifier, build
from foveal.model.config import HeadConfig, ModelConfig
from foveal.model.freeze import apply_freeze, set_training_mode
from foveal.training.config import OptimConfig, ResolvedOptimConfig
from foveal.training.optim import auto_lr, check_optim, make_optimizer

RATES = {"lr": 0.01, "weight_decay": 0.05, "step_epochs": 1.0}


def settings(**keys: Any) -> ResolvedOptimConfig:
    return ResolvedOptimConfig.model_validate(RATES | keys)


def make(name: str = "test_resnet", head: HeadConfig | None = None) -> Classifier:
    torch.manual_seed(0)
    return build(
        Architecture(name=name, num_classes=3, image_size=64 if name == "alexnet" else 32, head=head or HeadConfig())
    )


def small() -> Classifier:
    """A convolution, a norm and a layer."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 3))
    return Classifier(Architecture(name="by_hand", num_classes=3, image_size=8), net, head_names=["4"])


def train(classifier: Classifier, optimizer: torch.optim.Optimizer, *, first: int = 0, steps: int = 3) -> None:
    side = classifier.architecture.image_size
    for step in range(first, first + steps):
        draw = torch.Generator().manual_seed(step)
        optimizer.zero_grad(set_to_none=True)
        logits = classifier(torch.rand(4, 3, side, side, generator=draw))
        nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()


def weights(classifier: Classifier) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in classifier.parameters()])


def trained(**keys: Any) -> torch.Tensor:
    classifier = small()
    train(classifier, make_optimizer(classifier, settings(**keys)))
    return weights(classifier)


@pytest.mark.parametrize(
    ("keys", "bare", "arguments"),
    [
        ({"name": "adamw"}, torch.optim.AdamW, {}),
        ({"name": "adamw", "beta1": 0.8, "eps": 1e-6}, torch.optim.AdamW, {"betas": (0.8, 0.999), "eps": 1e-6}),
        ({"name": "adam", "beta2": 0.9}, torch.optim.Adam, {"betas": (0.9, 0.9)}),
        ({"name": "sgd"}, torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
        ({"name": "sgd", "momentum": 0.5, "nesterov": False}, torch.optim.SGD, {"momentum": 0.5}),
        ({"name": "sgd", "momentum": 0.0}, torch.optim.SGD, {}),
        ({"name": "rmsprop"}, torch.optim.RMSprop, {"alpha": 0.9}),
        (
            {"name": "rmsprop", "rho": 0.7, "momentum": 0.3, "eps": 1e-5},
            torch.optim.RMSprop,
            {"alpha": 0.7, "momentum": 0.3, "eps": 1e-5},
        ),
        ({"name": "adagrad", "eps": 1e-4}, torch.optim.Adagrad, {"eps": 1e-4}),
        ({"name": "adadelta", "rho": 0.5}, torch.optim.Adadelta, {"rho": 0.5}),
        ({"name": "lion"}, timm.optim.Lion, {}),
        ({"name": "lion", "beta1": 0.7, "beta2": 0.8}, timm.optim.Lion, {"betas": (0.7, 0.8)}),
        ({"name": "adan", "beta2": 0.5}, timm.optim.Adan, {"betas": (0.98, 0.92, 0.5)}),
    ],
)
def test_steps_are_those_of_the_bare_optimiser(keys: dict[str, Any], bare: Any, arguments: dict[str, Any]) -> None:
    ours, theirs = small(), small()
    train(ours, make_optimizer(ours, settings(**keys, weight_decay=0.07)))
    spared = [parameter for parameter in theirs.parameters() if parameter.ndim == 1]
    decayed = [parameter for parameter in theirs.parameters() if parameter.ndim > 1]
    groups = [{"params": spared, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 0.07}]
    train(theirs, bare(groups, lr=0.01, **arguments))
    assert torch.equal(weights(ours), weights(theirs))


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("adamw", "lr", 0.02),
        ("adamw", "weight_decay", 0.5),
        ("adamw", "beta1", 0.5),
        ("adamw", "beta2", 0.5),
        ("adamw", "eps", 0.01),
        ("adamw", "layer_decay", 0.5),
        ("sgd", "momentum", 0.5),
        ("sgd", "nesterov", False),
        ("rmsprop", "rho", 0.5),
        ("rmsprop", "momentum", 0.5),
        ("adagrad", "eps", 0.01),
        ("lion", "beta1", 0.1),
        ("lion", "beta2", 0.1),
    ],
)
def test_every_option_changes_the_weights(name: str, key: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    matcher = {"stem": "^0|1"}
    monkeypatch.setattr(nn.Sequential, "group_matcher", lambda _, coarse: matcher, raising=False)
    assert not torch.equal(trained(name=name), trained(name=name, **{key: value}))


def test_norms_biases_and_learnt_positions_are_spared_from_weight_decay() -> None:
    for classifier, spared_too in [
        (make(), set()),
        (make("test_vit"), {"cls_token", "pos_embed"}),
        (
            make("test_vit", HeadConfig(kind="dense", layers=(4,))),
            {"backbone.cls_token", "backbone.pos_embed"},
        ),
    ]:
        optimizer = make_optimizer(classifier, settings(weight_decay=0.07))
        decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        assert len(decay) == len(list(classifier.parameters()))
        for name, parameter in classifier.net.named_parameters():
            is_matrix = parameter.ndim > 1 and name not in spared_too
            assert decay[id(parameter)] == (0.07 if is_matrix else 0.0), name


@pytest.mark.parametrize(
    ("name", "is_dense"),
    [(name, False) for name in ("test_resnet", "test_vit", "test_convnext", "small_cnn", "alexnet", "densenet121")]
    + [(name, True) for name in ("test_resnet", "test_vit", "small_cnn")],
)
def test_rates_fall_from_the_head_to_the_stem(name: str, *, is_dense: bool) -> None:
    from timm.models import group_parameters

    classifier = make(name, HeadConfig(kind="dense", layers=(4,)) if is_dense else None)
    optimizer = make_optimizer(classifier, settings(layer_decay=0.5, weight_decay=0.07))
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert optimizer.param_groups[0]["lr"] == 0.01, "the first group has the highest rate"
    for module in classifier.head_modules():
        assert {rates[id(p)] for p in module.parameters()} == {0.01}
    net: Any = classifier.net
    layers = group_parameters(net, net.group_matcher(coarse=False), reverse=True)
    by_layer = {layers[key]: rates[id(parameter)] for key, parameter in net.named_parameters()}
    assert [by_layer[n] for n in sorted(by_layer)] == [0.01 * 0.5 ** (max(by_layer) - n) for n in sorted(by_layer)]
    assert len(by_layer) > 3
    blocks = {"test_resnet": "layer", "test_vit": "blocks.", "test_convnext": "stages.", "small_cnn": "blocks."}
    deeper = [
        max(rates[id(p)] for key, p in net.named_parameters() if f"{blocks[name]}{number}." in key)
        for number in range(1, 4)
        if name in blocks
    ]
    assert deeper == sorted(set(deeper))
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.07}


def test_what_thaws_later_is_in_from_the_start_and_weight_decay_leaves_it_alone_until_then() -> None:
    model = ModelConfig(freeze="all", unfreeze={2: "stages:1"})
    for name in ("adamw", "sgd", "rmsprop", "lion"):
        classifier = make()
        optimizer = make_optimizer(classifier, settings(name=name, weight_decay=0.5), model)
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        wanted = [*classifier.net.layer4.parameters(), *classifier.net.fc.parameters()]
        assert held == {id(p) for p in wanted} == {id(p) for p in classifier.parameters() if p.requires_grad}
        before = copy.deepcopy(classifier.net.state_dict())
        for freeze, thawed in [("all", ("fc.",)), ("stages:1", ("fc.", "layer4."))]:
            apply_freeze(classifier, freeze)
            set_training_mode(classifier)
            train(classifier, optimizer)
            for key, value in classifier.net.state_dict().items():
                assert torch.equal(value, before[key]) != key.startswith(thawed), (name, freeze, key)
            before = copy.deepcopy(classifier.net.state_dict())


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "rmsprop", "adagrad", "lion"])
def test_going_on_from_a_saved_state_is_the_same_bit_for_bit(name: str) -> None:
    config, model = settings(name=name, layer_decay=0.8), ModelConfig(freeze="last:3", unfreeze={2: "none"})

    def run(classifier: Classifier, optimizer: torch.optim.Optimizer, epochs: range) -> None:
        for epoch in epochs:
            apply_freeze(classifier, "last:3" if epoch == 0 else "none")
            set_training_mode(classifier)
            train(classifier, optimizer, first=2 * epoch, steps=2)

    whole = make()
    run(whole, make_optimizer(whole, config, model), range(3))
    for stop in (1, 2):
        first, stream = make(), io.BytesIO()
        optimizer = make_optimizer(first, config, model)
        run(first, optimizer, range(stop))
        torch.save({"net": first.net.state_dict(), "optimizer": optimizer.state_dict()}, stream)
        stream.seek(0)
        saved = torch.load(stream, weights_only=True)
        second = make()
        optimizer = make_optimizer(second, config, model)
        second.net.load_state_dict(saved["net"])
        optimizer.load_state_dict(saved["optimizer"])
        run(second, optimizer, range(stop, 3))
        assert torch.equal(weights(whole), weights(second))


def test_an_auxiliary_head_trains_at_the_full_rate() -> None:
    classifier = small()
    classifier.auxiliary = nn.Linear(2, 2)
    optimizer = make_optimizer(classifier, settings())
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in classifier.parameters()}
    assert {group["lr"] for group in optimizer.param_groups} == {0.01}


def test_one_kernel_is_used_only_where_there_is_one() -> None:
    for name, has_kernel in [("adamw", True), ("sgd", True), ("lion", False), ("rmsprop", False)]:
        optimizer = make_optimizer(small(), settings(name=name), fused=True)
        assert bool(optimizer.defaults.get("fused")) == has_kernel
        assert not make_optimizer(small(), settings(name=name)).defaults.get("fused")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"name": "adamx"}, "near ones: .*adamw"),
        ({"name": "AdamW"}, "near ones: .*adamw"),
        ({"name": "lookahead_adamw"}, "checkpoint"),
        ({"name": "adahessian"}, "second derivatives"),
        ({"name": "fusedadam"}, "package apex, which is not installed"),
        ({"name": "bnbadam8bit"}, "package bitsandbytes, which is not installed"),
        ({"name": "adamw", "momentum": 0.9}, r"optim\.momentum: adamw does not take it; it takes beta1, beta2, eps"),
        ({"name": "sgd", "rho": 0.9}, r"optim\.rho: sgd does not take it; it takes momentum, nesterov"),
        ({"name": "adagrad", "beta1": 0.9}, r"optim\.beta1: adagrad does not take it; it takes eps"),
        ({"name": "sgd", "momentum": 0.0, "nesterov": True}, r"optim\.nesterov.* needs a momentum"),
        ({"warmup_epochs": 1.0}, r"optim\.warmup_epochs: one_cycle warms up by itself"),
        ({"schedule": "constant", "min_lr": 1e-5}, r"optim\.min_lr: constant has no lowest rate"),
        ({"schedule": "cosine", "lr": 0.1, "min_lr": 0.2}, r"optim\.min_lr: 0\.2 is above optim\.lr, 0\.1"),
    ],
)
def test_what_cannot_be_done_is_refused_with_what_can(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        check_optim(OptimConfig.model_validate(keys))
    assert caught.value.fix


def test_all_problems_come_at_once() -> None:
    config = OptimConfig(name="lion", eps=1e-8, rho=0.9, momentum=0.9, warmup_epochs=1.0)
    with pytest.raises(ConfigError) as caught:
        check_optim(config)
    keys = [problem.partition(":")[0] for problem in caught.value.problems]
    assert keys == ["optim.momentum", "optim.rho", "optim.eps", "optim.warmup_epochs"]


def test_nothing_to_train_is_refused() -> None:
    classifier = small()
    classifier.requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing of the network trains"):
        make_optimizer(classifier, settings())


def test_the_rate_that_auto_stands_for_suits_the_optimiser() -> None:
    def rates(name: str) -> tuple[float, float]:
        config = OptimConfig(name=name)
        return auto_lr(config, from_weights=False), auto_lr(config, from_weights=True)

    assert rates("adamw") == rates("cadamw") == (2e-3, 5e-4)
    assert rates("sgd") == rates("momentum") == (0.1, 0.02)
    assert all(0.1 <= lion / adamw <= 0.34 for lion, adamw in zip(rates("lion"), rates("adamw"), strict=True)), (
        "as its authors say"
    )
    assert rates("radam") == (1e-3, 2.5e-4), "its class's own, and a quarter"
    assert rates("adafactor") == rates("adadelta") == (1e-3, 2.5e-4)
    usable = [
        name for name in timm.optim.list_optimizers() if isinstance(timm.optim.get_optimizer_info(name).opt_class, type)
    ]
    for name in usable:
        if name != "adahessian":
            scratch, weights_too = rates(name)
            assert 1e-5 < weights_too < scratch < 0.2, name
