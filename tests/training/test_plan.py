"""The plan of `--dry-run` against what a training then does."""

import json

import pytest
import torch
import yaml

from foveal.errors import ConfigError
from foveal.training.config import ResolvedConfig
from foveal.training.plan import TrainPlan, make_plan

from .small_training import CLASS_NAMES, tiny_config, tiny_data, tiny_model


def planned(*overrides: str, num_train: int = 40) -> TrainPlan:
    config = tiny_config(*overrides)
    counts = {"train": num_train, "val": 15, "test": 9}
    return make_plan(
        tiny_model(config), config, num_images=counts, class_names=CLASS_NAMES, num_quarantined=2, notes=("a note",)
    )


@pytest.mark.parametrize("num_train", [1, 7, 8, 40, 47])
def test_the_steps_are_those_of_the_batches(num_train: int) -> None:
    plan = planned("train.epochs=3", num_train=num_train)
    batches = tiny_data(tiny_config("train.epochs=3"), num_train=num_train).train
    assert plan.steps_per_epoch == len(batches) == len(list(batches.epoch(0)))
    assert plan.num_steps == 3 * len(batches)


def test_the_counts_are_those_of_the_network() -> None:
    plan = planned()
    model = tiny_model(tiny_config())
    assert plan.num_parameters == plan.num_trainable == sum(p.numel() for p in model.net.parameters())
    # The convolutions and the head by hand: outputs times the products behind each.
    macs, hooks = [], []
    for module in model.net.modules():
        if type(module).__name__ == "Conv2d":
            hooks.append(module.register_forward_hook(lambda m, _, out: macs.append(out.numel() * m.weight[0].numel())))
        elif type(module).__name__ == "Linear":
            hooks.append(module.register_forward_hook(lambda m, _, out: macs.append(out.numel() * m.in_features)))
    model.eval()(torch.zeros(1, 3, 32, 32))
    assert plan.macs == sum(macs)


def test_the_memory_grows_with_the_batch_and_shrinks_with_the_precision() -> None:
    small, large = planned("train.batch_size=8"), planned("train.batch_size=32")
    half = planned("train.batch_size=32", "train.precision=bf16")
    assert 0 < small.memory_mib < large.memory_mib
    assert half.memory_mib < large.memory_mib
    weights_mib = 16 * small.num_parameters / (1 << 20)
    assert large.memory_mib - weights_mib == pytest.approx(4 * (small.memory_mib - weights_mib), abs=4)  # whole MiB


def test_the_plan_as_text_begins_with_the_resolved_configuration() -> None:
    plan = planned()
    text, _, words = str(plan).partition("\n\n")
    assert ResolvedConfig.model_validate(yaml.safe_load(text)) == plan.config
    assert "40 train, 15 val, 9 test; 2 quarantined" in words
    assert "3: 2, 10, b" in words
    assert "10: 2 epochs of 5 at 8 images" in words
    assert "a note" in words
    assert json.loads(json.dumps(plan.to_dict()))["config"]["train"]["epochs"] == 2


def test_images_too_small_for_the_network_are_refused_in_words() -> None:
    with pytest.raises(ConfigError, match="edgenext_xx_small cannot be built for images of 8 px") as caught:
        planned("model.name=edgenext_xx_small", "data.image_size=8")
    assert "data.image_size" in caught.value.fix
