"""Optimisers and schedules against what their papers say."""

import math

import pytest
import torch
from torch import nn

from foveal.training.optim import make_optimizer, make_schedule

from .small_training import tiny_config, tiny_model


def test_norms_and_biases_are_spared_from_weight_decay() -> None:
    config = tiny_config("optim.weight_decay=0.07")
    model = tiny_model(config)
    optimizer = make_optimizer(model, config.optim)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            spared = isinstance(module, nn.BatchNorm2d) or name == "bias"
            assert decay[id(parameter)] == (0.0 if spared else 0.07), (type(module), name)
    assert isinstance(optimizer, torch.optim.AdamW)


def test_sgd_has_nesterov_momentum() -> None:
    config = tiny_config("optim.name=sgd")
    optimizer = make_optimizer(tiny_model(config), config.optim)
    assert isinstance(optimizer, torch.optim.SGD)
    assert {(group["momentum"], group["nesterov"]) for group in optimizer.param_groups} == {(0.9, True)}


def rates(config_overrides: list[str], num_steps: int) -> list[float]:
    config = tiny_config(*config_overrides)
    optimizer = make_optimizer(nn.Linear(2, 2), config.optim)
    schedule = make_schedule(optimizer, config.optim, num_steps)
    found = []
    for _ in range(num_steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize("num_steps", [40, 41, 400])
def test_one_cycle_goes_up_over_the_first_quarter_and_down_to_nothing(num_steps: int) -> None:
    found = rates(["optim.lr=0.8"], num_steps)

    def cosine(start: float, end: float, share: float) -> float:
        return end + (start - end) / 2.0 * (1.0 + math.cos(math.pi * share))

    peak = 0.25 * num_steps - 1.0
    first, last = 0.8 / 25.0, 0.8 / 25.0 / 1e4
    expected = [
        cosine(first, 0.8, step / peak) if step <= peak else cosine(0.8, last, (step - peak) / (num_steps - 1 - peak))
        for step in range(num_steps)
    ]
    assert found == pytest.approx(expected, rel=1e-9)
    assert max(found) == pytest.approx(0.8, rel=2e-2)
    assert found[-1] < 1e-5


def test_a_constant_rate_stays() -> None:
    assert rates(["optim.lr=0.8", "optim.schedule=constant"], 20) == [0.8] * 20


@pytest.mark.parametrize("num_steps", range(1, 10))
def test_a_training_of_hardly_any_steps_has_a_schedule_too(num_steps: int) -> None:
    assert all(0 < rate <= 0.8 for rate in rates(["optim.lr=0.8"], num_steps))
