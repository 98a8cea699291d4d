"""`models`: names, sizes, licences, and what is at hand."""

import json
import os
from pathlib import Path

import pytest
import timm
from typer.testing import CliRunner

import foveal
from foveal.api import models as module
from foveal.cli import app
from foveal.errors import ConfigError
from foveal.files import natural_key


def test_names_come_with_their_weights_and_what_is_known_of_them() -> None:
    found = foveal.models("test_resnet*")
    assert [entry.name for entry in found] == ["test_resnet.r160_in1k"]
    net = timm.create_model("test_resnet")
    assert found[0].num_parameters == sum(p.numel() for p in net.parameters())
    assert found[0].image_size == 160
    assert found[0].licence == timm.models.get_pretrained_cfg("test_resnet").license
    assert not found[0].cached
    assert found.to_dict()["models"][0]["name"] == "test_resnet.r160_in1k"
    assert "<td>test_resnet.r160_in1k</td>" in found._repr_html_()


def test_a_pattern_may_ask_for_tags_and_names_are_in_natural_order() -> None:
    tagged = foveal.models("test_*.r160_in1k")
    assert len(tagged) > 5
    assert all(entry.name.endswith(".r160_in1k") for entry in tagged)
    names = [entry.name for entry in foveal.models("test_vit*")]
    architectures = [name.partition(".")[0] for name in names]
    assert architectures == ["test_vit", "test_vit2", "test_vit3", "test_vit4", "test_vit_relpos"]
    numbered = [entry.name.partition(".")[0] for entry in foveal.models("resnet[13]*")]
    assert numbered == sorted(numbered, key=natural_key)
    assert {"cc-by-nc-4.0", "apache-2.0"} <= {entry.licence for entry in foveal.models("resnet18*")}


def test_an_architecture_without_weights_is_listed_too() -> None:
    without = next(n for n in timm.list_models() if not timm.list_models(f"{n}.*", pretrained=True) and len(n) < 12)
    (entry,) = foveal.models(without)
    assert (entry.name, entry.licence, entry.cached) == (without, "", False)


def test_what_timm_lacks_is_listed_with_the_rest() -> None:
    (alexnet,) = foveal.models("alexnet")
    assert (alexnet.name, alexnet.num_parameters, alexnet.image_size) == ("alexnet.tv_in1k", 61_100_840, 224)
    assert (alexnet.licence, alexnet.cached) == ("bsd-3-clause", False)
    (small,) = foveal.models("small_cnn")
    assert (small.name, small.licence, small.cached) == ("small_cnn", "", False)
    assert {"alexnet.tv_in1k"} == {entry.name for entry in foveal.models("alex*")}


def test_parameters_are_counted_once_and_a_damaged_memory_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    first = foveal.models("test_vit*")
    memory = next(Path(os.environ["FOVEAL_CACHE_DIR"]).glob("parameters-timm-*.json"))
    assert json.loads(memory.read_text())["test_vit"] == first[0].num_parameters
    with monkeypatch.context() as patch:
        patch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("was counted again"))
        assert foveal.models("test_vit*") == first
    for content in ("[1, 2]", '{"test_vit"', ""):
        memory.write_text(content)
        assert foveal.models("test_vit*") == first


def test_what_was_counted_before_ctrl_c_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = timm.create_model

    def interrupted(name: str, **kwargs: object) -> object:
        if name == "test_vit3":
            raise KeyboardInterrupt
        return whole(name, **kwargs)

    monkeypatch.setattr(timm, "create_model", interrupted)
    with pytest.raises(KeyboardInterrupt):
        foveal.models("test_vit*")
    memory = next(Path(os.environ["FOVEAL_CACHE_DIR"]).glob("parameters-timm-*.json"))
    assert set(json.loads(memory.read_text())) == {"test_vit", "test_vit2"}


def test_nothing_that_matches_is_said() -> None:
    with pytest.raises(ConfigError, match="'nonsense"):
        module.models("nonsense*")
    with pytest.raises(ConfigError, match=r"Near: .*resnet18"):
        module.models("resnt18")


def test_where_there_are_no_weights_none_are_missed() -> None:
    said = CliRunner().invoke(app, ["models", "small_cnn"])
    assert said.stdout.splitlines()[1].split()[-2:] == ["-", "-"]
