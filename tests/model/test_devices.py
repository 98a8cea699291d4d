"""The device that tensors live on."""

import pytest
import torch

from foveal.errors import ConfigError
from foveal.model.devices import choose_device


def pretend(monkeypatch: pytest.MonkeyPatch, *, cuda: bool, mps: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "chosen"),
    [(False, False, "cpu"), (True, False, "cuda"), (False, True, "mps"), (True, True, "cuda")],
)
def test_auto_takes_a_gpu_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, *, cuda: bool, mps: bool, chosen: str
) -> None:
    pretend(monkeypatch, cuda=cuda, mps=mps)
    assert choose_device() == torch.device(chosen)
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_refused_and_those_there_are_named(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    pretend(monkeypatch, cuda=False, mps=False)
    with pytest.raises(ConfigError, match=f"--device {name}: there is none on this machine") as caught:
        choose_device(name)
    assert caught.value.fix == "choose one of: auto, cpu."


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(ConfigError, match="--device gpu: expected auto, cpu, cuda or mps"):
        choose_device("gpu")
