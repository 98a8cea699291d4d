"""Weights to start from: found, or said at once why not; and never by running what a file brings along."""

import pickle
import shutil
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file

from foveal.errors import ArtifactError
from foveal.model import weights as weights_module
from foveal.model.build import Architecture, Classifier, build
from foveal.model.bundle import read_bundle
from foveal.model.config import HeadConfig
from foveal.model.tensors import read_tensors
from foveal.model.weights import WeightsOrigin, _fill, load_weights, weights_cached

NAME = "test_efficientnet"


@pytest.fixture
def classifier() -> Classifier:
    """Of five classes, where the tiny bundle has three."""
    torch.manual_seed(1)
    return build(Architecture(name=NAME, num_classes=5, image_size=32))


@pytest.fixture
def state(tiny_bundle: Path) -> dict[str, torch.Tensor]:
    return read_bundle(tiny_bundle).state()


def snapshot(classifier: Classifier) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in classifier.net.state_dict().items()}


def check_filled(classifier: Classifier, state: dict[str, torch.Tensor], before: dict[str, torch.Tensor]) -> None:
    """All of `state` was taken over but the head, which kept its random start."""
    for name, tensor in classifier.net.state_dict().items():
        assert torch.equal(tensor, before[name] if name.startswith("classifier.") else state[name]), name


def test_none_leaves_the_random_start(classifier: Classifier) -> None:
    before = snapshot(classifier)
    origin = load_weights(classifier, NAME, "none")
    assert all(torch.equal(tensor, before[name]) for name, tensor in classifier.net.state_dict().items())
    assert (origin.source, origin.num_loaded) == ("none", 0)
    assert origin.sentence() == "Weights: random start (model.weights=none)."


def test_without_cache_and_with_the_hub_switched_off_it_is_said_at_once(
    classifier: Classifier, no_network: list[object]
) -> None:
    from huggingface_hub.constants import HF_HUB_CACHE

    start = time.perf_counter()
    with pytest.raises(ArtifactError) as caught:
        load_weights(classifier, NAME, "pretrained")
    assert time.perf_counter() - start < 5.0
    assert no_network == []
    assert f"weights of {NAME}.r160_in1k are not in the local cache ({HF_HUB_CACHE})" in caught.value.message
    assert "HF_HUB_OFFLINE is set" in caught.value.message
    for way_out in ("model.weights=none", "model.weights=PATH", f"copy {HF_HUB_CACHE} from a machine"):
        assert way_out in caught.value.fix


def test_without_network_it_is_said_within_seconds(
    classifier: Classifier, no_network: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 52."""
    monkeypatch.delenv("HF_HUB_OFFLINE")
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    start = time.perf_counter()
    with pytest.raises(ArtifactError, match=r"huggingface.co cannot be reached: .*unreachable"):
        load_weights(classifier, NAME, "pretrained")
    assert time.perf_counter() - start < 20.0  # and not minutes of trying again
    assert no_network


def test_a_hub_that_never_answers_is_not_waited_for(classifier: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking up a name may hang for minutes, whatever the timeout of the socket."""
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example:8443")
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    asked: list[object] = []
    over = threading.Event()

    def hang(*address: object, **_: object) -> None:
        asked.append(address)
        over.wait(30)
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", hang)
    monkeypatch.setattr(weights_module, "REACH_SECONDS", 0.2)
    start = time.perf_counter()
    with pytest.raises(ArtifactError, match=r"hub\.example cannot be reached: no answer within 0\.2 seconds"):
        load_weights(classifier, NAME, "pretrained")
    assert time.perf_counter() - start < 15.0
    over.set()
    assert asked == [(("hub.example", 8443),)]


def test_a_network_without_published_weights_is_told(classifier: Classifier) -> None:
    with pytest.raises(ArtifactError, match="no pretrained weights for test_coatnet") as caught:
        load_weights(classifier, "test_coatnet", "pretrained")
    assert "model.weights=none" in caught.value.fix


def test_cached_weights_fill_everything_but_the_head_without_any_network(
    classifier: Classifier, tmp_path: Path, no_network: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The zoo's own head is left out even where its number of classes happens to fit."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    published = build(Architecture(name=NAME, num_classes=1000, image_size=32)).net.state_dict()
    entry = tmp_path / "hub" / f"models--timm--{NAME}.r160_in1k"
    (entry / "refs").mkdir(parents=True)
    (entry / "refs" / "main").write_text("c0ffee")
    (entry / "snapshots" / "c0ffee").mkdir(parents=True)
    save_file(published, entry / "snapshots" / "c0ffee" / "model.safetensors")
    for num_classes in (5, 1000):
        classifier = build(Architecture(name=NAME, num_classes=num_classes, image_size=32))
        before = snapshot(classifier)
        origin = load_weights(classifier, NAME, "pretrained")
        check_filled(classifier, published, before)
        assert (origin.source, origin.tag, origin.licence) == ("pretrained", f"{NAME}.r160_in1k", "apache-2.0")
        assert origin.not_loaded == ("classifier.weight", "classifier.bias")
        assert (
            f"from {NAME}.r160_in1k, 2 kept their random start (classifier.weight, classifier.bias)"
            in origin.sentence()
        )
    assert no_network == []
    (entry / "snapshots" / "c0ffee" / "model.safetensors").write_bytes(b"\x20" + bytes(7) + b"{ cut off")
    with pytest.raises(ArtifactError, match="could not be downloaded"):
        load_weights(classifier, NAME, "pretrained")


def test_what_is_cached_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    assert not weights_cached({"hf_hub_id": "timm/x"})
    assert not weights_cached({})
    by_url = {"url": "https://example.org/a/w-1234.pth?x=1"}
    assert not weights_cached(by_url)
    (tmp_path / "torch" / "checkpoints").mkdir(parents=True)
    (tmp_path / "torch" / "checkpoints" / "w-1234.pth").touch()
    assert weights_cached(by_url)


WAYS: dict[str, Callable[[Path, dict[str, torch.Tensor]], None]] = {
    "w.safetensors": lambda path, state: save_file(state, path),
    "safetensors_by_another_name.bin": lambda path, state: save_file(state, path),
    "plain.pth": lambda path, state: torch.save(state, path),
    "old_format.pt": lambda path, state: torch.save(state, path, _use_new_zipfile_serialization=False),
    "nested.ckpt": lambda path, state: torch.save({"epoch": 3, "state_dict": state, "lr": 0.1}, path),
    "ours.ckpt": lambda path, state: torch.save({"format_version": 1, "model": state}, path),
    "parallel.pth": lambda path, state: torch.save({f"module.{k}": v for k, v in state.items()}, path),
    "lightning.ckpt": lambda path, state: torch.save({"state_dict": {f"net.{k}": v for k, v in state.items()}}, path),
    "with_more.pth": lambda path, state: torch.save({**state, "other.weight": torch.zeros(3), 7: torch.zeros(1)}, path),
}


@pytest.mark.parametrize("name", WAYS)
def test_files_of_tensors_fill_what_fits_and_the_rest_is_named(
    classifier: Classifier, state: dict[str, torch.Tensor], tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    WAYS[name](path, state)
    before = snapshot(classifier)
    origin = load_weights(classifier, NAME, str(path))
    check_filled(classifier, state, before)
    assert origin.not_loaded == ("classifier.weight", "classifier.bias")
    assert (origin.source, origin.licence, origin.num_loaded) == (str(path), "unknown", len(before) - 2)


def test_a_bundle_or_a_run_gives_its_weights_with_their_licence(
    classifier: Classifier, state: dict[str, torch.Tensor], tiny_bundle: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_bundle, run / "bundle")
    for path in (tiny_bundle, run):
        before = snapshot(classifier)
        origin = load_weights(classifier, NAME, str(path))
        check_filled(classifier, state, before)
        assert origin.licence == "none: trained from a random start"


def of_shapes(*class_names: str, **head: object) -> tuple[Classifier, dict[str, torch.Tensor], tuple[str, ...]]:
    torch.manual_seed(2)
    made = build(Architecture(name=NAME, num_classes=len(class_names), image_size=32, head=HeadConfig(**head)))
    return made, snapshot(made), class_names


def test_the_last_layer_is_kept_only_for_the_same_classes_in_the_same_order(
    state: dict[str, torch.Tensor], tiny_bundle: Path
) -> None:
    for names, same in (
        (("discs", "squares", "stripes"), True),
        (("squares", "discs", "stripes"), False),
        (("cats", "dogs", "mice"), False),
    ):
        classifier, before, class_names = of_shapes(*names)
        origin = load_weights(classifier, NAME, str(tiny_bundle), class_names=class_names)
        if same:
            assert torch.equal(classifier.net.state_dict()["classifier.weight"], state["classifier.weight"])
            assert (origin.not_loaded, origin.left_over, origin.note) == ((), (), "")
        else:
            check_filled(classifier, state, before)
            assert sorted(origin.not_loaded) == list(origin.left_over) == ["classifier.bias", "classifier.weight"]
            assert "2 kept their random start (classifier.weight, classifier.bias)" in origin.sentence()
            assert "2 of the source found no place (classifier.bias, classifier.weight)" in origin.sentence()
            assert "classes are not these in this order, so the last layer starts anew." in origin.sentence()
    classifier, _, _ = of_shapes("a", "b", "c")
    assert load_weights(classifier, NAME, str(tiny_bundle)).not_loaded == (), "nobody said which classes these are"


def test_a_file_without_class_names_says_what_became_of_its_last_layer(
    state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    save_file(state, tmp_path / "w.safetensors")
    classifier, _, names = of_shapes("a", "b", "c")
    origin = load_weights(classifier, NAME, str(tmp_path / "w.safetensors"), class_names=names)
    assert origin.not_loaded == ()
    assert "A file names no classes: its last layer was taken over" in origin.sentence()
    classifier, _, names = of_shapes("a", "b")
    origin = load_weights(classifier, NAME, str(tmp_path / "w.safetensors"), class_names=names)
    assert origin.note == ""
    assert origin.not_loaded == ("classifier.weight", "classifier.bias")


def test_a_plain_network_starts_one_with_a_head_of_its_own_and_the_other_way_round(
    state: dict[str, torch.Tensor], tiny_bundle: Path, tmp_path: Path
) -> None:
    names = ("discs", "squares", "stripes")
    composed, before, _ = of_shapes(*names, attention="se", kind="dense", layers=(8,))
    origin = load_weights(composed, NAME, str(tiny_bundle), class_names=names)
    after = composed.net.state_dict()
    inside = [key for key in after if key.startswith("backbone.")]
    assert origin.num_loaded == len(inside) == len(state) - 2
    assert all(torch.equal(after[key], state[key.removeprefix("backbone.")]) for key in inside)
    assert all(torch.equal(after[key], before[key]) for key in after if key not in inside)
    assert set(origin.not_loaded) == set(after) - set(inside)
    assert origin.left_over == ("classifier.bias", "classifier.weight")

    save_file(after, tmp_path / "composed.safetensors")
    plain, before, _ = of_shapes(*names)
    origin = load_weights(plain, NAME, str(tmp_path / "composed.safetensors"))
    check_filled(plain, state, before)
    assert set(origin.left_over) == set(after) - set(inside)

    other, _, _ = of_shapes("a", "b", attention="se", kind="dense", layers=(8,))
    origin = load_weights(other, NAME, str(tmp_path / "composed.safetensors"))
    assert origin.not_loaded == ("head.fc.weight", "head.fc.bias"), "block and dense layer are taken over too"


def test_a_head_of_ones_own_is_not_mistaken_for_the_networks() -> None:
    """convnext calls its last layer head.fc too; of the same shape, it is another."""
    shape = {"name": "test_convnext", "num_classes": 3, "image_size": 32}
    composed, plain = (build(Architecture(**shape, head=HeadConfig(batch_norm=b))) for b in (True, False))
    source = composed.net.state_dict()
    assert source["head.fc.weight"].shape == plain.net.state_dict()["head.fc.weight"].shape
    origin = _fill(plain, source, WeightsOrigin("memory", "", "", 0, ()))
    assert origin.not_loaded == ("head.fc.weight", "head.fc.bias")
    assert {"head.norm.weight", "head.fc.weight"} <= set(origin.left_over)
    assert torch.equal(plain.net.state_dict()["head.norm.weight"], source["backbone.head.norm.weight"])


def test_alexnets_weights_are_torchvisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = torchvision.models.alexnet(weights=None).state_dict()
    asked: list[dict[str, Any]] = []

    def download(url: str, **how: Any) -> dict[str, torch.Tensor]:
        asked.append({"url": url, **how})
        return dict(published)

    classifier = build(Architecture(name="alexnet", num_classes=4, image_size=64))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", download)
    monkeypatch.setattr(weights_module, "_unreachable", lambda *_: "")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    origin = load_weights(classifier, "alexnet", "pretrained")
    assert asked[0]["weights_only"]
    assert asked[0]["check_hash"]
    assert (origin.tag, origin.licence) == ("alexnet.tv_in1k", "bsd-3-clause")
    assert origin.not_loaded == ("classifier.6.weight", "classifier.6.bias")
    found = classifier.net.state_dict()
    assert all(torch.equal(found[key], published[key]) for key in found if key not in origin.not_loaded)
    with pytest.raises(ArtifactError, match="no pretrained weights for small_cnn"):
        load_weights(build(Architecture(name="small_cnn", num_classes=4, image_size=32)), "small_cnn", "pretrained")


def test_inceptions_auxiliary_head_starts_from_the_weights_that_have_one(monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = build(Architecture(name="inception_v3", num_classes=3, image_size=299))
    published = {f"AuxLogits.{key}": torch.full_like(t, 5) for key, t in classifier.auxiliary.state_dict().items()}
    fresh = classifier.auxiliary.fc.weight.clone()
    weights_module._fill_auxiliary(classifier, published)
    assert published == {}
    assert bool((classifier.auxiliary.conv1.conv.weight == 5).all())
    assert torch.equal(classifier.auxiliary.fc.weight, fresh)


def test_a_bundle_that_was_changed_is_no_source_either(classifier: Classifier, tiny_bundle: Path) -> None:
    with (tiny_bundle / "model.safetensors").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(ArtifactError, match="sha256"):
        load_weights(classifier, NAME, str(tiny_bundle))


def test_weights_of_another_network_are_refused(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file(state, tmp_path / "w.safetensors")
    other = build(Architecture(name="test_vit", num_classes=3, image_size=32))
    with pytest.raises(ArtifactError, match=r"Nothing in .*w\.safetensors fits test_vit"):
        load_weights(other, "test_vit", str(tmp_path / "w.safetensors"))


def test_a_path_where_nothing_is_is_told(classifier: Classifier, tmp_path: Path) -> None:
    for path, fault in ((tmp_path / "none.pth", "nothing there"), (tmp_path, "the folder holds no bundle")):
        with pytest.raises(ArtifactError, match=f"{path}: {fault}") as caught:
            load_weights(classifier, NAME, str(path))
        assert "pretrained, none, or the path" in caught.value.fix


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = str(mark)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (self._mark, "w")


def poisoned(path: Path, content: dict[str, Any], way: str) -> None:
    if way == "zip":
        torch.save(content, path)
    elif way == "zip, protocol 5":
        torch.save(content, path, pickle_protocol=5)
    elif way == "old":
        torch.save(content, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps(content, protocol=int(way.removeprefix("pickle "))))


@pytest.mark.parametrize("name", ["w.pth", "w.pt", "last.ckpt", "w.bin", "w.safetensors"])
@pytest.mark.parametrize("way", ["zip", "zip, protocol 5", "old", "pickle 0", "pickle 2", "pickle 5"])
def test_poisoned_files_are_refused_and_nothing_of_them_is_run(
    classifier: Classifier, state: dict[str, torch.Tensor], tmp_path: Path, name: str, way: str
) -> None:
    """Row 8: the tensors in it are whole and right, and it is refused all the same."""
    mark, path = tmp_path / "it-ran", tmp_path / name
    poisoned(path, {"state_dict": {**state, "extra": Bomb(mark)}}, way)
    before = snapshot(classifier)
    with pytest.raises(ArtifactError) as caught:
        load_weights(classifier, NAME, str(path))
    assert not mark.exists()
    assert all(torch.equal(tensor, before[key]) for key, tensor in classifier.net.state_dict().items())
    if name != "w.safetensors" and way != "pickle 0":
        assert "was refused: it holds more than tensors" in caught.value.message
        assert "convert it to .safetensors" in caught.value.fix
    if way == "zip" and name != "w.safetensors":  # that the bomb is one
        torch.load(path, weights_only=False)["state_dict"]["extra"].close()
        assert mark.exists()


def test_a_pickled_network_is_refused_as_well(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(ArtifactError, match="was refused"):
        read_tensors(tmp_path / "module.pth")


def test_any_damage_is_told_in_one_way(tmp_path: Path) -> None:
    """Torch's reader answers wrong bytes with some ten kinds of errors."""
    rng = np.random.default_rng(0)
    small = {f"layer.{number}.weight": torch.rand(4, 3) for number in range(4)}
    for name in ("w.safetensors", "plain.pth", "old_format.pt"):
        WAYS[name](tmp_path / name, small)
        whole = np.frombuffer((tmp_path / name).read_bytes(), np.uint8)
        num_refused = 0
        for _ in range(150):
            content = whole.copy()
            content[rng.integers(0, min(len(content), 1_200), 3)] = rng.integers(0, 256, 3)
            (tmp_path / name).write_bytes(content.tobytes())
            try:
                read_tensors(tmp_path / name)
            except ArtifactError:
                num_refused += 1
        assert num_refused > 50


def test_what_is_no_file_of_weights_is_told(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    whole = tmp_path / "whole.pth"
    torch.save(state, whole)
    save_file(state, tmp_path / "whole.safetensors")
    faults: dict[str, tuple[bytes, str]] = {
        "empty.pth": (b"", "not a file of weights"),
        "text.pth": (b"hello, this is a text and no pickle", "begins like neither safetensors nor"),
        "zeros.pth": (bytes(500), "begins like neither"),
        "cut.pth": (whole.read_bytes()[:-2000], "not a file of weights"),
        "other.pth": (b"PK\x03\x04" + bytes(500), "not a file of weights"),
        "empty.safetensors": (b"", "not a whole safetensors file"),
        "cut.safetensors": ((tmp_path / "whole.safetensors").read_bytes()[:-9], "not a whole safetensors file"),
        "huge.safetensors": (b"\xff" * 8 + b"{}", "not a whole safetensors file"),
    }
    for name, (content, message) in faults.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ArtifactError, match=rf"{name} .*{message}") as caught:
            read_tensors(tmp_path / name)
        assert caught.value.fix
    for name, value in {"list.pth": [torch.zeros(2)], "tensor.pth": torch.zeros(2), "numbers.pth": {"a": 1}}.items():
        torch.save(value, tmp_path / name)
        with pytest.raises(ArtifactError, match=f"{name} holds no named tensors"):
            read_tensors(tmp_path / name)
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(ArtifactError, match="begins like neither"):
        read_tensors(tmp_path / "array.npy")
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_tensors(tmp_path)
