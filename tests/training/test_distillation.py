"""Distillation: the gradient of a step is that of the labels' loss and of the divergence from the teacher, by hand."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from foveal.errors import ConfigError
from foveal.model.build import build
from foveal.training.config import DistillationConfig
from foveal.training.distillation import Teacher, check_teacher, read_teacher
from foveal.training.processes import Processes
from foveal.training.resolve import architecture_of
from foveal.training.state import Position
from foveal.training.step import Stepper
from training.small_training import tiny_config, tiny_data, tiny_model

WEIGHT, TEMPERATURE = 0.7, 2.0
PLACES = torch.tensor([0, 2])


def gradients(teacher: Teacher | None, num_parts: int = 1) -> tuple[dict[str, torch.Tensor], Stepper, object]:
    """What one step without augmentation and dropout leaves in `grad`, with classes that count differently."""
    config = tiny_config(
        "augment.policy=none", "model.head.dropout=0", "train.class_weights=balanced", "model.name=small_cnn"
    )
    data = replace(tiny_data(config), teacher=teacher)
    stepper = Stepper(tiny_model(config), data, config, Processes(), lambda _: None)
    stepper.begin_epoch(0)
    batch = next(data.train.epoch(0))
    stepper._gradients(batch, Position(num_parts=num_parts))
    found = {name: p.grad.clone() for name, p in stepper.classifier.named_parameters() if p.grad is not None}
    return found, stepper, batch


def make_teacher(weight: float = WEIGHT, temperature: float = TEMPERATURE) -> Teacher:
    config = tiny_config("model.head.dropout=0", "model.name=small_cnn")
    torch.manual_seed(11)
    classifier = build(architecture_of(config, len(PLACES)))
    with torch.no_grad():
        for parameter in classifier.net.get_submodule(classifier.head_names[0]).parameters():
            parameter.mul_(20.0)  # so that it has something to say
    return Teacher(classifier, PLACES, weight=weight, temperature=temperature)


def test_the_gradient_is_that_of_a_divergence_computed_by_hand() -> None:
    teacher = make_teacher()
    found, stepper, batch = gradients(teacher)
    stepper.classifier.zero_grad()
    pixels = stepper.augmentation(batch.images)
    logits = stepper.classifier(pixels)
    weights = stepper.criterion.class_weights[batch.labels]
    own = torch.softmax(logits[:, [0, 2]] / TEMPERATURE, dim=1)
    taught = torch.softmax(teacher.classifier(pixels) / TEMPERATURE, dim=1)
    divergence = (taught * (taught / own).log()).sum(dim=1)
    cross_entropy = -logits.softmax(dim=1)[torch.arange(len(logits)), batch.labels].log()
    total = ((cross_entropy + WEIGHT * TEMPERATURE**2 * divergence) * weights).sum() / weights.sum()
    total.backward()
    for name, parameter in stepper.classifier.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(found[name], parameter.grad, atol=2e-6, rtol=1e-3), name
    without, _, _ = gradients(None)
    assert max((found[name] - without[name]).abs().max() for name in found) > 1e-3
    halves, _, _ = gradients(teacher, num_parts=1)
    assert all(torch.equal(found[name], halves[name]) for name in found)


def test_the_gradient_keeps_its_size_at_high_temperatures_and_vanishes_where_both_agree() -> None:
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    sizes = []
    for temperature in (50.0, 100.0):
        teacher = make_teacher(1.0, temperature)
        taught = torch.tensor([[1.0, -1.0]] * 6)
        (gradient,) = torch.autograd.grad(teacher.distance(logits, taught).sum(), logits)
        sizes.append(gradient.norm().item())
        assert (gradient[:, 1] == 0).all(), "a class that the teacher does not know is left alone"
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)
    same = make_teacher().distance(logits, logits.detach()[:, [0, 2]] + 3.0)
    assert same.abs().max() < 1e-5


def test_a_teacher_is_asked_only_and_never_trained() -> None:
    teacher = make_teacher()
    before = {name: tensor.clone() for name, tensor in teacher.classifier.state_dict().items()}
    _, stepper, _ = gradients(teacher)
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.classifier.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not any(name.startswith("teacher") for name in stepper.state()["model"])


def test_a_teacher_of_other_classes_or_of_another_size_is_refused(tiny_bundle: Path) -> None:
    config = DistillationConfig(teacher=str(tiny_bundle))
    names = ("discs", "hearts", "squares", "stripes")
    taught = read_teacher(config, names, image_size=32)
    assert taught is not None
    assert taught.places.tolist() == [0, 2, 3]
    assert taught(torch.rand(2, 3, 32, 32)).shape == (2, 3)
    with pytest.raises(ConfigError) as refused:
        check_teacher(config, ("discs", "hearts"), image_size=64)
    assert len(refused.value.problems) == 3
    assert read_teacher(DistillationConfig(teacher=str(tiny_bundle), weight=0.0), names, image_size=32) is None
    assert np.isclose(taught.weight, 1.0)
