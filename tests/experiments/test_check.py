"""The checks before a training: a healthy set-up passes, and each sick one is found by name."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from foveal.config import load
from foveal.errors import DataError
from foveal.experiments.check import data as check_data
from foveal.experiments.check import setup as checking
from foveal.experiments.check.data import CheckData, read_check_data
from foveal.experiments.check.network import look_at_network
from foveal.experiments.check.setup import (
    LEARNING_RATE,
    NETWORK,
    ONE_BATCH,
    SHUFFLED_LABELS,
    TRUE_LABELS,
    check_classifier,
)
from foveal.experiments.preparing import prepare
from foveal.model.build import Classifier, build
from foveal.progress import Silence
from foveal.training.config import Config, ResolvedConfig
from foveal.training.lr_range import read_range, run_range_test
from foveal.training.rehearsal import Rehearsal
from foveal.training.resolve import Facts, architecture_of, resolve

BASE = (
    *("model.name=test_resnet", "model.weights=none", "data.image_size=32", "train.device=cpu", "train.batch_size=16"),
    *("train.precision=fp32", "optim.lr=0.005"),
)
NAMES = ("blue", "green", "red")


def config(*overrides: str) -> ResolvedConfig:
    return resolve(load(Config, None, (*BASE, *overrides)), Facts("folder", 160, 240, 32, 1.0))


def classifier(settings: ResolvedConfig) -> Classifier:
    torch.manual_seed(0)
    return build(architecture_of(settings, len(NAMES)))


@pytest.fixture(scope="module")
def squares() -> CheckData:
    """Noise with more light in the channel of the class: 160 images to train on and 80 to validate."""
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 3, 240)
    images = draw.integers(0, 120, (240, 3, 32, 32)).astype(np.uint8)
    images[np.arange(240), labels] += np.uint8(60)
    return CheckData(images, labels, 160, NAMES, np.empty(0, dtype=np.int64))


def rehearsal_of(net: Classifier, data: CheckData, settings: ResolvedConfig) -> Rehearsal:
    return Rehearsal(net, data.images, data.labels, settings, batch_size=16)


def test_a_healthy_set_up_passes_and_is_left_as_it_was(
    make_images: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare(make_images(tmp_path / "images", num_per_class=40), load(Config, None, BASE))
    monkeypatch.setattr(check_data, "MOST_TRAIN", 70)
    net = classifier(prepared.config)
    net.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.random.get_rng_state()
    found = checking.check(prepared.manifest, net, prepared.config, out=tmp_path / "out")
    assert {each.name: each.verdict for each in found.checks if each.verdict not in {"ok", "unclear"}} == {}
    assert found.named(ONE_BATCH).figures["accuracy"] == 1.0
    assert found.named(TRUE_LABELS).verdict == found.named(LEARNING_RATE).verdict == "ok"
    assert found.ok
    assert str(found).endswith("Nothing was found that speaks against the training.")
    assert (found.num_train, found.num_val) == (70, 18)  # bounded, and not all that there is
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(part.grad is None for part in net.parameters())
    written = json.loads((tmp_path / "out" / "check.json").read_text())
    assert written["ok"] is True
    assert [each["name"] for each in written["checks"]] == [c.name for c in found.checks]
    assert len(written["lr_range"]["rates"]) == len(written["lr_range"]["losses"]) > 30
    picture = (tmp_path / "out" / "lr_range.svg").read_text()
    assert "configured: 5.0e-03" in picture
    assert ">0.001<" in picture
    assert "mathdefault" not in picture


def test_shuffled_labels_are_found_by_name(squares: CheckData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "_MOST_ROUNDS", 2)
    mixed = replace(squares, labels=np.random.default_rng(1).permutation(squares.labels))
    found = check_classifier(classifier(config()), mixed, config())
    labels = found.named(TRUE_LABELS)
    assert labels.verdict == "fault"
    assert labels.found.startswith("The labels look shuffled")
    assert not found.ok
    assert str(found).endswith("Do not train like this: labels.")
    assert found.named(SHUFFLED_LABELS).verdict == "ok"


def test_a_learning_rate_of_a_tenth_is_too_high_and_a_tiny_one_too_low(squares: CheckData) -> None:
    settings = config()
    rehearsal = rehearsal_of(classifier(settings), squares, settings)
    with rehearsal.undone():
        found = run_range_test(rehearsal, squares.train)
    assert found.suggestion is not None
    assert found.lowest_good is not None
    assert found.highest_good is not None
    assert found.lowest_good <= found.suggestion <= found.highest_good < 0.1
    assert (found.place(1.0), found.place(found.suggestion), found.place(1e-8)) == ("too high", "good", "too low")
    with rehearsal.undone():
        for lr, verdict in ((1.0, "fault"), (found.suggestion, "ok"), (1e-8, "warning")):
            asked = checking._Questions(rehearsal, squares, config(f"optim.lr={lr}"), lambda: None)
            checked = asked.learning_rate(found)
            assert checked.verdict == verdict
            assert f"optim.lr={lr:g} " in checked.found


def test_the_range_is_read_off_a_curve_that_is_known() -> None:
    rates = np.geomspace(1e-7, 10.0, 81)
    decades = np.log10(rates)
    # Flat, down around 1e-3, lowest at 1e-2, and away.
    losses = 2.3 - 1.5 / (1.0 + np.exp(-6.0 * (decades + 3.0))) + 4.0 * np.maximum(0.0, decades + 2.0)
    found = read_range(rates, losses, chance=2.3, num_steps=81)
    assert found.suggestion == pytest.approx(1e-3, rel=0.6)
    assert found.highest_good is not None
    assert 1e-3 < found.highest_good < 1e-2
    assert (found.place(0.1), found.place(1e-3), found.place(1e-7)) == ("too high", "good", "too low")
    assert found.runs_away is not None
    assert 1e-2 < found.runs_away < 0.1
    # Nothing is learnt, and yet it is known where steps are too large.
    stuck = read_range(rates, 2.3 + 4.0 * np.maximum(0.0, decades + 3.0), chance=2.3, num_steps=81)
    assert [stuck.place(lr) for lr in (1e-4, 1e-2)] == ["unclear", "too high"]
    assert stuck.usable == pytest.approx(1e-4, rel=0.6)
    flat = read_range(rates, np.full(81, 2.3), chance=2.3, num_steps=81)
    assert flat.suggestion is None
    assert flat.place(1e-3) == "unclear"
    broken = read_range(rates[:60], np.append(losses[:59], np.nan), chance=2.3, num_steps=81)
    assert broken.has_diverged
    assert broken.to_dict()["losses"][-1] is None
    assert broken.place(1.0) == "too high"


class Blind(nn.Module):
    """Sees nothing of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([0.1, -0.2, 0.3]))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.bias.expand(len(pixels), 3)


class Hidden(nn.Module):
    """A limit that is no module, so that only the logits tell."""

    def __init__(self, net: nn.Module, limit: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.net, self.limit = net, limit

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.limit(self.net(pixels))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda net: net, ""),
        (lambda net: nn.Sequential(net, nn.ReLU()), "A ReLU follows the last layer, ReLU (net.1)"),
        (lambda net: Hidden(net, torch.relu), "A ReLU follows the last layer: no logit is negative"),
        (lambda net: nn.Sequential(net, nn.Softmax(dim=1)), "A softmax follows the last layer"),
        (lambda net: nn.Sequential(net, nn.Tanh()), "The last thing that the network does is Tanh (net.1)"),
        (lambda net: Blind(), "The logits are the same for every image."),
        (lambda net: Hidden(net, lambda logits: logits * float("nan")), "not finite"),
        (
            lambda net: Hidden(net, lambda logits: -torch.relu(-logits) * 0.0 + logits.detach()),
            "All gradients are zero",
        ),
    ],
)
def test_a_sick_network_is_found_by_name(
    squares: CheckData, spoil: Callable[[nn.Module], nn.Module], words: str
) -> None:
    settings = config()
    healthy = classifier(settings)
    net = Classifier(healthy.architecture, spoil(healthy.net))
    rehearsal = rehearsal_of(net, squares, settings)
    with rehearsal.undone():
        found = look_at_network(rehearsal, squares, 1e-3)
    assert found.name == NETWORK
    assert found.verdict == ("fault" if words else "ok"), found.found
    assert words in found.found
    assert bool(found.change) == bool(words)


def test_a_last_layer_that_starts_at_zero_is_healthy(squares: CheckData) -> None:
    settings = config()
    net = classifier(settings)
    nn.init.zeros_(net.net.fc.weight)
    nn.init.zeros_(net.net.fc.bias)
    rehearsal = rehearsal_of(net, squares, settings)
    with rehearsal.undone():
        assert look_at_network(rehearsal, squares, 1e-3).verdict == "ok"


def test_what_is_frozen_stays_so(squares: CheckData) -> None:
    settings = config("model.freeze=all", "model.head.dropout=0.5")
    net = classifier(settings)
    rehearsal = rehearsal_of(net, squares, settings)
    with rehearsal.undone():
        rehearsal.begin(0.01)
        before = {name: value.clone() for name, value in net.state_dict().items()}
        first = rehearsal.first_loss(squares.train)
        assert first == pytest.approx(rehearsal.first_loss(squares.train))  # nothing is dropped
        rehearsal.short_training(squares.train, squares.labels, 0.01, 4, first_step=0)
        rehearsal.logits(squares.val, squares.train)
        moved = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"net.fc.weight", "net.fc.bias"}
    assert all(part.requires_grad for part in net.parameters())
    assert [module.p for module in net.modules() if isinstance(module, nn.Dropout) and module.p] == [0.5]


def test_shuffled_labels_say_nothing_of_the_true_ones() -> None:
    labels = np.repeat([0, 1, 2], [300, 90, 30])
    given = checking.shuffled(labels, 0)
    assert sorted(given) == sorted(labels)
    table = np.array([[np.mean(given[labels == true] == name) for name in range(3)] for true in range(3)])
    assert np.abs(table - np.array([300, 90, 30]) / 420).max() < 0.07
    assert (checking.shuffled(labels, 1) != given).any()


def test_a_little_knowledge_is_told_from_none() -> None:
    draw = np.random.default_rng(3)
    labels, logits = draw.integers(0, 5, 200), draw.normal(size=(200, 5))
    assert checking.chance_of(logits, labels, seed=0) > 0.05
    logits[np.arange(200), labels] += 0.5
    assert checking.chance_of(logits, labels, seed=0) <= 0.005
    assert checking.chance_of(np.full((200, 5), np.nan), labels, seed=0) == 1.0
    assert not checking._could_tell(6, 0.5)
    assert checking._could_tell(60, 0.5)


def test_copies_in_a_validation_set_that_data_brings_are_a_leak(
    make_images: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "_LEARNING_STEPS", 2)
    for seed, name in enumerate(("train", "val", "test")):
        make_images(tmp_path / "images" / name, num_per_class=8, seed=seed)
    for file in sorted((tmp_path / "images" / "train" / "discs").iterdir())[:3]:
        (tmp_path / "images" / "val" / "discs" / f"again-{file.name}").write_bytes(file.read_bytes())
    prepared = prepare(tmp_path / "images", load(Config, None, BASE))
    data = read_check_data(prepared.manifest, prepared.config, Silence())
    assert (data.num_train, len(data.val), len(data.copies)) == (24, 27, 3)
    rehearsal = rehearsal_of(classifier(prepared.config), data, prepared.config)
    with rehearsal.undone():
        found = checking._Questions(rehearsal, data, prepared.config, lambda: None).shuffled_labels(2)
    assert found.verdict == "fault"
    assert "3 of 27 validation images are copies" in found.found


def test_a_classifier_of_other_classes_is_refused(squares: CheckData) -> None:
    with pytest.raises(DataError, match="3 outputs, and the data 2 classes"):
        check_classifier(classifier(config()), replace(squares, class_names=("a", "b")), config())
