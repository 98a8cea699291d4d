"""Schedules against what their papers say and torch's own, step by step."""

import io
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from foveal.training.config import ResolvedOptimConfig
from foveal.training.schedules import Schedule, make_schedule

LR = 0.8


def settings(**keys: Any) -> ResolvedOptimConfig:
    return ResolvedOptimConfig.model_validate({"lr": LR, "weight_decay": 0.05, "step_epochs": 1.0} | keys)


def two_groups(kind: type[torch.optim.Optimizer] = torch.optim.SGD, **arguments: Any) -> torch.optim.Optimizer:
    """The second group has a quarter of the rate, as deeper layers have."""
    groups = [{"params": [nn.Parameter(torch.ones(1))], "lr": share * LR} for share in (1.0, 0.25)]
    return kind(groups, lr=LR, **arguments)


def rates(
    config: ResolvedOptimConfig, steps_per_epoch: int, num_epochs: int, figures: list[float] | None = None
) -> list[float]:
    """The rate of each step of the first group; the second's is always a quarter of it."""
    optimizer = two_groups()
    schedule = make_schedule(optimizer, config, steps_per_epoch=steps_per_epoch, num_epochs=num_epochs)
    found = []
    for epoch in range(num_epochs):
        for _ in range(steps_per_epoch):
            first, second = (group["lr"] for group in optimizer.param_groups)
            assert second == pytest.approx(0.25 * first, rel=1e-12)
            found.append(first)
            optimizer.step()
            schedule.step()
        schedule.end_epoch(figures[epoch] if figures else 0.0)
    return found


@pytest.mark.parametrize("num_steps", [40, 41, 400])
def test_one_cycle_goes_up_over_the_first_quarter_and_down_to_nothing(num_steps: int) -> None:
    found = rates(settings(), num_steps, 1)

    def cosine(start: float, end: float, share: float) -> float:
        return end + (start - end) / 2.0 * (1.0 + math.cos(math.pi * share))

    peak = 0.25 * num_steps - 1.0
    first, last = LR / 25.0, LR / 25.0 / 1e4
    expected = [
        cosine(first, LR, step / peak) if step <= peak else cosine(LR, last, (step - peak) / (num_steps - 1 - peak))
        for step in range(num_steps)
    ]
    assert found == pytest.approx(expected, rel=1e-9)
    assert max(found) == pytest.approx(LR, rel=2e-2)
    assert found[-1] < 1e-5


@pytest.mark.parametrize(
    ("kind", "arguments", "keys", "cycles"),
    [
        (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}, {}, True),
        (torch.optim.AdamW, {}, {}, True),
        (torch.optim.AdamW, {"betas": (0.9, 0.95)}, {"beta2": 0.95}, True),
        # What somebody chose is kept, also where it is what the cycle passes through.
        (torch.optim.SGD, {"momentum": 0.9}, {"momentum": 0.9}, False),
        (torch.optim.AdamW, {"betas": (0.5, 0.999)}, {"beta1": 0.5}, False),
        # None, or none to speak of.
        (torch.optim.SGD, {}, {}, False),
        (torch.optim.RMSprop, {}, {}, False),
        (torch.optim.Adagrad, {}, {}, False),
    ],
)
def test_one_cycle_turns_momentum_down_where_the_rate_is_high(
    kind: type[torch.optim.Optimizer], arguments: dict[str, Any], keys: dict[str, Any], *, cycles: bool
) -> None:
    optimizer = two_groups(kind, **arguments)
    before = [(group.get("betas"), group.get("momentum")) for group in optimizer.param_groups]
    schedule = make_schedule(optimizer, settings(**keys), steps_per_epoch=40, num_epochs=1)
    seen = []
    for _ in range(40):
        seen.append([(group.get("betas"), group.get("momentum")) for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    if not cycles:
        assert seen == [before] * 40
        return
    firsts = [group[0][0] if group[0] else group[1] for step in seen for group in step]
    assert firsts[::2] == firsts[1::2]
    assert (firsts[0], min(firsts[::2])) == pytest.approx((0.95, 0.85))
    assert firsts[::2].index(min(firsts[::2])) == 9, "where the rate is highest"
    assert all(group[0] is None or group[0][1:] == before[0][0][1:] for step in seen for group in step)


@pytest.mark.parametrize("schedule", ["one_cycle", "cosine", "step", "plateau", "constant"])
@pytest.mark.parametrize("num_steps", range(1, 8))
def test_a_training_of_hardly_any_steps_has_a_schedule_too(schedule: str, num_steps: int) -> None:
    keys = {} if schedule == "one_cycle" else {"warmup_epochs": 1.5}
    assert all(0.0 < rate <= LR for rate in rates(settings(schedule=schedule, **keys), num_steps, 1))
    assert all(0.0 < rate <= LR for rate in rates(settings(schedule=schedule), num_steps, 1))


def test_a_constant_rate_stays() -> None:
    assert rates(settings(schedule="constant"), 5, 4) == [LR] * 20


@pytest.mark.parametrize("min_lr", [0.0, 0.1])
def test_cosine_is_torch_s(min_lr: float) -> None:
    parameter = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([parameter], lr=LR)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=21, eta_min=min_lr)
    expected = []
    for _ in range(21):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()
    assert rates(settings(schedule="cosine", min_lr=min_lr), 7, 3) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("warmup", [0.5, 1.0, 2.25])
@pytest.mark.parametrize("schedule", ["cosine", "step", "plateau", "constant"])
def test_the_warm_up_rises_evenly_and_the_rest_begins_where_it_ends(schedule: str, warmup: float) -> None:
    config = settings(schedule=schedule, warmup_epochs=warmup, step_epochs=2.0)
    steps = warmup * 8
    found = rates(config, 8, 6, figures=[float(epoch) for epoch in range(6)])
    expected = [LR * (step + 1) / (steps + 1) for step in range(int(steps))]
    assert found[: int(steps)] == pytest.approx(expected)
    rest = [step - steps for step in range(int(steps), 48)]
    shapes = {
        "cosine": [LR / 2.0 * (1.0 + math.cos(math.pi * since / (48 - steps))) for since in rest],
        "step": [LR * 0.1 ** (since // 16) for since in rest],
        "plateau": [LR] * len(rest),
        "constant": [LR] * len(rest),
    }
    assert found[int(steps) :] == pytest.approx(shapes[schedule])


def test_a_warm_up_longer_than_the_training_rises_to_the_end() -> None:
    found = rates(settings(schedule="cosine", warmup_epochs=10.0), 4, 3)
    assert found == pytest.approx([LR * (step + 1) / 41 for step in range(12)])


def test_steps_down_come_when_they_are_due() -> None:
    found = rates(settings(schedule="step", step_epochs=2.0, factor=0.5), 3, 7)
    assert found == pytest.approx([LR * 0.5 ** (step // 6) for step in range(21)])
    halfway = rates(settings(schedule="step", step_epochs=1.5, factor=0.5), 4, 3)
    assert halfway == pytest.approx([LR] * 6 + [LR / 2] * 6)
    # A third of the epochs, which no binary number is: two steps, and not one too late.
    thirds = rates(settings(schedule="step", step_epochs=40 / 3), 30, 40)
    assert [step for step, (one, two) in enumerate(pairwise(thirds), 1) if one != two] == [400, 800]
    floored = rates(settings(schedule="step", step_epochs=1.0, min_lr=0.2, factor=0.5), 1, 5)
    assert floored == pytest.approx([0.8, 0.4, 0.2, 0.2, 0.2])


@pytest.mark.parametrize("shift", [0.0, -5.0])
def test_plateau_lowers_the_rate_after_epochs_without_a_better_figure(shift: float) -> None:
    """Figures below nothing, as minus the loss is, are compared as others are."""
    #          best  -    -   lower  best  -    best   -    -   lower  -    -    lower
    figures = [0.5, 0.4, 0.5, 0.3, 0.6, 0.6, 0.61, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    config = settings(schedule="plateau", patience=3, factor=0.5, min_lr=0.15)
    found = rates(config, 2, len(figures) + 1, [figure + shift for figure in [*figures, 0.0]])
    lowered = [0.8] * 4 + [0.4] * 6 + [0.2] * 3 + [0.15]
    assert found == pytest.approx([rate for rate in lowered for _ in range(2)])


@pytest.mark.parametrize("patience", [0, 1])
def test_plateau_without_patience_lowers_the_rate_at_once(patience: int) -> None:
    found = rates(settings(schedule="plateau", patience=patience), 1, 4, [0.5, 0.5, 0.6, 0.5])
    assert found == pytest.approx([0.8, 0.8, 0.08, 0.08])


def test_plateau_does_not_look_at_epochs_of_the_warm_up() -> None:
    config = settings(schedule="plateau", patience=1, factor=0.5, warmup_epochs=2.5)
    found = rates(config, 2, 6, [0.9, 0.8, 0.1, 0.2, 0.1, 0.0])
    assert found[:5] == pytest.approx([LR * (step + 1) / 6 for step in range(5)])
    assert found[5:] == pytest.approx([LR] * 5 + [LR / 2] * 2)


def go(schedule: Schedule, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    """The rates and momenta of these steps; an epoch has four, and the figures get worse from the second on."""
    found = []
    for step in steps:
        found += [value for group in optimizer.param_groups for value in (group["lr"], group["momentum"])]
        optimizer.step()
        schedule.step()
        if step % 4 == 3:
            schedule.end_epoch(-float(step))
    return found


@pytest.mark.parametrize("stop", [1, 3, 4, 9, 12, 18])
@pytest.mark.parametrize("name", ["one_cycle", "cosine", "step", "plateau", "constant"])
def test_going_on_from_a_saved_state_gives_the_same_rates(name: str, stop: int) -> None:
    keys = {} if name == "one_cycle" else {"warmup_epochs": 0.75}
    config = settings(schedule=name, patience=2, **keys)

    def make() -> tuple[torch.optim.Optimizer, Schedule]:
        optimizer = two_groups(momentum=0.9)
        return optimizer, make_schedule(optimizer, config, steps_per_epoch=4, num_epochs=6)

    optimizer, schedule = make()
    whole = go(schedule, optimizer, range(24))
    optimizer, schedule = make()
    parts, stream = go(schedule, optimizer, range(stop)), io.BytesIO()
    torch.save({"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}, stream)
    stream.seek(0)
    saved = torch.load(stream, weights_only=True)
    optimizer, schedule = make()
    optimizer.load_state_dict(saved["optimizer"])
    schedule.load_state_dict(saved["schedule"])
    assert parts + go(schedule, optimizer, range(stop, 24)) == whole
    assert name == "constant" or len(set(whole)) > 2


def test_a_first_step_that_overflowed_is_no_reason_to_warn() -> None:
    """With scaled gradients the optimiser's step is left out then, and the schedule goes on."""
    for name in ("one_cycle", "cosine", "plateau"):
        optimizer = two_groups()
        keys = {} if name == "one_cycle" else {"warmup_epochs": 2.0}
        schedule = make_schedule(optimizer, settings(schedule=name, **keys), steps_per_epoch=4, num_epochs=3)
        before = optimizer.param_groups[0]["lr"]
        schedule.step()
        schedule.step()
        assert optimizer.param_groups[0]["lr"] > before
