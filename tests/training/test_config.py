"""The whole configuration: what may be written, and what is left of it once it is resolved."""

import pytest
import torch
import yaml

from foveal.config import dump_yaml, known_keys, load
from foveal.errors import ConfigError
from foveal.training.config import MONITORED, Config, EarlyStoppingConfig, ResolvedConfig
from foveal.training.epoch_metrics import RunningMetrics

from .small_training import tiny_config

FIXED_KEYS = """seed data.image_size data.val_fraction data.test_fraction data.num_workers augment.policy model.name
model.weights model.head.dropout optim.name optim.lr optim.weight_decay optim.schedule train.epochs train.batch_size
train.precision train.early_stopping.monitor train.early_stopping.patience train.class_weights train.label_smoothing"""


def test_the_keys_that_users_have_in_their_files_exist_and_are_documented() -> None:
    keys = dict(known_keys(Config))
    assert set(FIXED_KEYS.split()) <= keys.keys()
    undocumented = [key for key, field in keys.items() if not field.description]
    assert undocumented == []


def test_every_key_that_may_be_auto_is_narrowed_by_the_resolved_type() -> None:
    may_be_auto = {key for key, field in known_keys(Config) if field.default == "auto"}
    assert may_be_auto >= {"optim.lr", "train.epochs", "train.batch_size", "train.precision", "train.device"}
    for key in may_be_auto:
        with pytest.raises(ConfigError, match=key):
            load(ResolvedConfig, None, [f"{key}=auto"], base=tiny_config().model_dump(mode="json"))


def test_a_resolved_configuration_survives_its_yaml() -> None:
    config = tiny_config("optim.lr=0.00123", "data.background=[1, 2, 3]", "train.early_stopping.patience=3")
    assert ResolvedConfig.model_validate(yaml.safe_load(dump_yaml(config))) == config


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed=-1", "seed"),
        ("seed=4294967296", "seed"),
        ("optim.lr=0", "optim.lr"),
        ("train.epochs=0", "train.epochs"),
        ("train.batch_size=2.5", "train.batch_size"),
        ("train.label_smoothing=1", "train.label_smoothing"),
        ("train.early_stopping.patience=0", "train.early_stopping.patience"),
        ("train.early_stopping.monitor=accuracy", "val_accuracy"),
        ("train.early_stopping.monitor=train_loss", "val_loss"),
        ("train.epoch=3", "did you mean train.epochs"),
        ("optim.schedule=cosin", "cosine"),
        ("model.freeze=last", "last:N"),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_key(override: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(Config, None, [override])
    assert len(caught.value.problems) == 1
    assert override.partition("=")[0] in caught.value.problems[0]
    assert words in caught.value.problems[0]


def test_all_wrong_keys_are_told_at_once() -> None:
    overrides = ["train.epochs=0", "optim.lr=fast", "data.fit=crap", "trane.epochs=3"]
    with pytest.raises(ConfigError) as caught:
        load(Config, None, overrides)
    assert {problem.partition(":")[0].partition(".")[0] for problem in caught.value.problems} == {
        "train", "optim", "data", "trane"
    }  # fmt: skip


def test_whatever_can_be_monitored_is_measured_in_every_epoch() -> None:
    running = RunningMetrics(5, torch.device("cpu"))
    running.update(torch.randn(10, 5), torch.arange(10) % 5)
    assert {f"val_{name}" for name in MONITORED} <= running.row("val_").keys()
    for name in MONITORED:
        assert EarlyStoppingConfig(monitor=f"val_{name}").monitor == f"val_{name}"
