"""From wishes and facts to what is done: no "auto" is left, and nothing that was wished for is changed."""

import math
import re
from dataclasses import replace
from typing import Any

import pytest
import timm
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.config import load
from foveal.errors import ConfigError
from foveal.model.devices import choose_device
from foveal.training import resolve as module
from foveal.training.config import Config, ResolvedConfig, TrainConfig
from foveal.training.resolve import Facts, architecture_of, geometry_of, resolve, store_bytes

FACTS = Facts("folder", num_train=700, num_samples=1000, median_side_px=100, median_aspect=1.3)


def resolved(*overrides: str, facts: Facts = FACTS) -> ResolvedConfig:
    return resolve(load(Config, None, ("train.device=cpu", *overrides)), facts)


def values(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        return [value for below in tree.values() for value in values(below)]
    return [tree]


@settings(max_examples=40, deadline=None)
@given(
    num_samples=st.integers(2, 2_000_000),
    share=st.floats(0.0, 1.0),
    side=st.integers(1, 20_000),
    aspect=st.floats(1.0, 50.0),
    weights=st.sampled_from(["none", "pretrained", "some/file.pth"]),
    optim=st.sampled_from(["adamw", "sgd"]),
    name=st.sampled_from(["resnet18", "test_vit", "mobilenetv3_small_100.lamb_in1k"]),
    fit=st.sampled_from(["crop", "pad", "squash"]),
)
def test_no_facts_leave_an_auto_behind(
    num_samples: int, share: float, side: int, aspect: float, weights: str, optim: str, name: str, fit: str
) -> None:
    facts = Facts("csv", int(share * num_samples), num_samples, side, aspect)
    config = resolved(
        f"model.weights={weights}", f"optim.name={optim}", f"model.name={name}", f"data.fit={fit}", facts=facts
    )
    assert "auto" not in values(config.model_dump())
    assert config.data.format == "csv"
    assert config.train.epochs >= 5
    assert 8 <= config.train.batch_size <= 64
    geometry = geometry_of(config)
    assert geometry.store_px >= geometry.size_px == config.data.image_size
    assert fit == "crop" or geometry.store_px == geometry.size_px


def test_what_was_asked_for_is_kept() -> None:
    wishes = ["optim.lr=0.5", "train.epochs=77", "train.batch_size=3", "data.image_size=48", "data.crop_fraction=0.8"]
    wishes += ["data.interpolation=lanczos", "data.num_workers=5", "data.store=off", "train.precision=bf16", "seed=9"]
    config = resolved(*wishes)
    flat = {
        "optim.lr": config.optim.lr,
        "train.epochs": config.train.epochs,
        "train.batch_size": config.train.batch_size,
        "data.image_size": config.data.image_size,
        "data.crop_fraction": config.data.crop_fraction,
        "data.interpolation": config.data.interpolation,
        "data.num_workers": config.data.num_workers,
        "data.store": config.data.store,
        "train.precision": config.train.precision,
        "seed": config.seed,
    }
    assert [f"{key}={value}" for key, value in flat.items()] == wishes
    assert geometry_of(config).store_px == 60


def test_weights_bring_their_own_size_crop_filter_and_normalisation() -> None:
    facts = timm.models.get_pretrained_cfg("inception_v3").to_dict()
    config = resolved("model.name=inception_v3", "model.weights=pretrained")
    assert config.data.image_size == facts["input_size"][1] == 299
    assert config.data.crop_fraction == facts["crop_pct"]
    assert config.data.interpolation == facts["interpolation"]
    assert architecture_of(config, 7).mean == tuple(facts["mean"]) == (0.5, 0.5, 0.5)
    from_scratch = resolved("model.name=inception_v3", "model.weights=none")
    assert from_scratch.data.image_size == 96  # the multiple of 32 nearest to the images' own 100 px
    assert architecture_of(from_scratch, 7).mean == (0.485, 0.456, 0.406)
    assert architecture_of(from_scratch, 7).num_classes == 7


def test_a_network_with_a_fixed_input_keeps_it_from_scratch_too() -> None:
    assert resolved("model.name=test_vit", "model.weights=none").data.image_size == 160
    assert resolved("model.name=test_vit", "model.weights=none", "data.image_size=64").data.image_size == 64


def test_several_backbones_take_size_crop_and_filter_of_the_first() -> None:
    facts = timm.models.get_pretrained_cfg("inception_v3").to_dict()
    config = resolved("model.name=[inception_v3,resnet18]")
    assert config.data.image_size == 299
    assert config.data.crop_fraction == facts["crop_pct"]
    assert config.data.interpolation == facts["interpolation"]
    architecture = architecture_of(config, 7)
    assert architecture.name == ("inception_v3", "resnet18")
    assert architecture.mean == (0.5, 0.5, 0.5)
    assert [each.mean for each in architecture.further_normalisations] == [(0.485, 0.456, 0.406)]
    turned = resolved("model.name=[resnet18.a1_in1k,inception_v3]")
    assert turned.data.image_size == 224
    assert architecture_of(turned, 7).name == ("resnet18", "inception_v3")
    assert resolved("model.name=[resnet18,small_cnn]", "model.weights=none").data.image_size == 96


def test_a_backbone_with_a_fixed_input_decides_for_all_and_two_that_differ_are_refused() -> None:
    wishes = ("model.name=[small_cnn,test_vit]", "model.weights=none")
    assert resolved(*wishes).data.image_size == 160
    assert resolved(*wishes, "data.image_size=64").data.image_size == 64
    both = "model.name=[test_vit,vit_tiny_patch16_224]"
    with pytest.raises(ConfigError, match="different sides: test_vit 160 px, vit_tiny_patch16_224 224 px"):
        resolved(both, "model.weights=none")
    assert resolved(both, "model.weights=none", "data.image_size=96").data.image_size == 96


def test_every_unknown_backbone_is_told_with_near_ones() -> None:
    with pytest.raises(ConfigError, match=r"^model.name: 'resnet81' is not a model .* near ones:.* resnet18[,.]"):
        resolved("model.name=[small_cnn,resnet81]")
    with pytest.raises(ConfigError, match="2 of the 3 networks are not there") as caught:
        resolved("model.name=[convnext_tinny,small_cnn,resnet81]")
    assert [re.findall("near ones: ([a-z0-9_]+)", problem) for problem in caught.value.problems] == [
        ["convnext_tiny"],
        ["resnet18"],
    ]


@pytest.mark.parametrize(("side", "size"), [(1, 32), (20, 32), (47, 32), (49, 64), (100, 96), (223, 224), (9000, 224)])
def test_from_scratch_the_size_fits_the_images(side: int, size: int) -> None:
    facts = Facts("folder", 700, 1000, side, 1.0)
    assert resolved("model.weights=none", facts=facts).data.image_size == size


def test_the_learning_rate_depends_on_the_start_and_the_optimiser() -> None:
    rates = {
        (name, weights): resolved(f"optim.name={name}", f"model.weights={weights}").optim.lr
        for name in ("adamw", "sgd")
        for weights in ("none", "pretrained")
    }
    assert rates == {
        ("adamw", "none"): 2e-3,
        ("adamw", "pretrained"): 5e-4,
        ("sgd", "none"): 0.1,
        ("sgd", "pretrained"): 0.02,
    }


@pytest.mark.parametrize("num_train", [30, 160, 700, 20_000, 1_000_000])
@pytest.mark.parametrize(
    ("weights", "steps"), [("none", module.STEPS_FROM_SCRATCH), ("pretrained", module.STEPS_FROM_WEIGHTS)]
)
def test_the_number_of_epochs_makes_the_steps(num_train: int, weights: str, steps: int) -> None:
    facts = Facts("folder", num_train, 2 * num_train, 100, 1.0)
    train = resolved(f"model.weights={weights}", facts=facts).train
    documented = re.findall(r"[\d,]+\d|\d", TrainConfig.model_fields["epochs"].description or "")
    least, most = (int(number) for number in documented[-2:])
    assert f"{steps:,}" in documented
    assert train.epochs == max(least, min(most, math.ceil(steps * train.batch_size / num_train)))
    if num_train >= 160:
        assert num_train // train.batch_size >= 20


def test_the_store_is_on_unless_it_is_larger_than_its_cap() -> None:
    facts = Facts("folder", 700_000, 1_000_000, 500, 1.5)
    needed_gib = store_bytes(1_000_000, 1.5, geometry_of(resolved(facts=facts)).store_px) / (1 << 30)
    assert needed_gib > 200
    assert resolved(facts=facts).data.store == "off"
    assert resolved(f"data.store_cap_gib={needed_gib + 1}", facts=facts).data.store == "on"
    with pytest.raises(ConfigError, match=f"{needed_gib:.1f} GiB") as caught:
        resolved("data.store=on", facts=facts)
    assert "data.store_cap_gib" in caught.value.fix


def test_a_device_that_is_not_there_and_a_precision_it_has_not_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"cuda.*none on this machine"):
        resolve(load(Config, None, ["train.device=cuda"]), FACTS)
    assert choose_device("auto").type != "cuda"
    # Lightning would train in bfloat16 and say nothing.
    with pytest.raises(ConfigError, match=r"train\.precision=fp16"):
        resolved("train.precision=fp16")


@pytest.mark.parametrize("fast", [True, False])
def test_bfloat16_is_taken_only_where_it_is_fast(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"amx_bf16": fast}, raising=False)
    assert resolved().train.precision == ("bf16" if fast else "fp32")


def test_a_model_that_does_not_exist_names_those_that_are_near() -> None:
    with pytest.raises(ConfigError, match="resnet18") as caught:
        resolved("model.name=resnet-18")
    assert "foveal models" in caught.value.fix


def test_the_number_of_workers_follows_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    for cpus, workers in ((1, 1), (6, 6), (64, 16)):
        monkeypatch.setattr("foveal.machine.num_cpus", lambda cpus=cpus: cpus)
        assert resolved().data.num_workers == workers


@pytest.mark.parametrize(
    ("name", "expected"), [("adamw", 0.05), ("lion", 0.05), ("sgd", 1e-4), ("adam", 1e-4), ("adagrad", 1e-4)]
)
def test_weight_decay_suits_the_way_in_which_the_optimiser_applies_it(name: str, expected: float) -> None:
    assert resolved(f"optim.name={name}").optim.weight_decay == expected
    assert resolved(f"optim.name={name}", "optim.weight_decay=0.3").optim.weight_decay == 0.3


def test_epochs_are_counted_with_the_batch_that_was_found_to_fit() -> None:
    wish = ("model.name=test_resnet", "model.weights=none", "data.image_size=32")
    facts = replace(FACTS, num_train=20_000, num_samples=24_000)
    usual, largest = resolved(*wish, facts=facts), resolved(*wish, "train.batch_size=largest", facts=facts)
    assert (usual.train.batch_size, largest.train.batch_size) == (64, 1024)
    assert (usual.train.epochs, largest.train.epochs) == (7, 40)
