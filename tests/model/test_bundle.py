"""The bundle: what was written is what is read, and nothing else is read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load, save_file

from foveal.errors import ArtifactError
from foveal.files import sha256_file
from foveal.model.build import Architecture, Classifier, build
from foveal.model.bundle import ArchitectureSpec, Bundle, find_bundle, read_bundle, update_bundle, write_bundle
from foveal.model.config import HeadConfig

Tree = dict[str, Any]


def edit(folder: Path, change: Callable[[Tree], object]) -> None:
    """Change bundle.json by hand."""
    file = folder / "bundle.json"
    tree = json.loads(file.read_text())
    change(tree)
    file.write_text(json.dumps(tree))


def forge(folder: Path, state: dict[str, torch.Tensor]) -> None:
    """Put other weights into a bundle, with their right hash."""
    save_file(state, folder / "model.safetensors")
    edit(folder, lambda tree: tree["files"].update({"model.safetensors": sha256_file(folder / "model.safetensors")}))


def spec_of(bundle: Bundle) -> Tree:
    return bundle.spec.model_dump(exclude={"format_version", "foveal_version", "files"})


def test_a_round_trip_gives_the_same_logits_to_the_bit(tiny_bundle: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    classifier = build(Architecture(name="test_resnet", num_classes=3, image_size=32, mean=(0.1, 0.2, 0.3))).train()
    with torch.no_grad():
        classifier(torch.rand(8, 3, 32, 32))  # so that the running statistics are not the initial ones
    classifier.eval().to(memory_format=torch.channels_last)
    spec = spec_of(read_bundle(tiny_bundle))
    spec["architecture"]["name"] = "test_resnet"
    spec["preprocessing"]["mean"] = (0.1, 0.2, 0.3)
    written = write_bundle(tmp_path / "new" / "bundle", spec, classifier.net.state_dict())
    read = read_bundle(tmp_path / "new")
    assert read == written
    again = read.build()
    pixels = torch.rand(5, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(again(pixels), classifier(pixels))
    assert not again.training
    assert sorted(file.name for file in read.path.iterdir()) == ["bundle.json", "model.safetensors"]
    assert read.spec.foveal_version
    assert read.spec.preprocessing.geometry().store_px == 34


HEADS = {
    "test_resnet": {"attention": "cbam", "spatial_dropout": 0.3, "pool": "flatten"},
    "test_vit": {"pool": "avg", "attention": "se", "kind": "dense", "layers": (16, 8), "dropout": (0.5, 0.2)},
    "test_mambaout": {"batch_norm": True, "dropout": 0.4},
    "alexnet": {"dropout": 0.5},
    "small_cnn": {"kind": "dense", "layers": (8,), "batch_norm": True, "activation": "gelu"},
}


@pytest.mark.parametrize("name", HEADS)
def test_a_head_of_ones_own_comes_back_to_the_bit(tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    torch.manual_seed(3)
    head, size = HeadConfig(**HEADS[name]), 64
    classifier = build(Architecture(name=name, num_classes=3, image_size=size, head=head)).train()
    with torch.no_grad():
        classifier(torch.rand(4, 3, size, size))
    classifier.eval()
    spec = spec_of(read_bundle(tiny_bundle))
    spec["architecture"] = classifier.architecture.spec()
    spec["preprocessing"] |= {"size_px": size, "store_px": size}
    written = write_bundle(tmp_path / "new", spec, classifier.net.state_dict())
    assert json.loads((tmp_path / "new" / "bundle.json").read_text())["architecture"]["head"]["kind"] == head.kind
    read = read_bundle(tmp_path / "new")
    assert read == written
    assert read.spec.architecture.head == head
    again, pixels = read.build(), torch.rand(3, 3, size, size)
    with torch.inference_mode():
        assert torch.equal(again(pixels), classifier(pixels))
    assert again.architecture.head == head


def test_bundles_of_the_first_versions_load(tiny_bundle: Path) -> None:
    """They have a share of dropout beside the name, and nothing else of a head."""
    expected = read_bundle(tiny_bundle).build()
    for old in ({"library": "timm", "name": "test_efficientnet", "dropout": 0.25}, {"name": "test_efficientnet"}):
        edit(tiny_bundle, lambda tree, old=old: tree.update(architecture=old))
        bundle = read_bundle(tiny_bundle)
        assert bundle.spec.architecture.head == HeadConfig(dropout=old.get("dropout", 0.0))
        again, pixels = bundle.build(), torch.rand(2, 3, 32, 32)
        with torch.inference_mode():
            assert torch.equal(again(pixels), expected(pixels))
    update_bundle(tiny_bundle, temperature=2.0)
    assert "dropout" not in json.loads((tiny_bundle / "bundle.json").read_text())["architecture"]
    with pytest.raises(ValidationError):
        ArchitectureSpec.model_validate({"name": "resnet18", "dropout": 0.1, "head": {}})


def test_a_name_of_another_library_is_not_taken_for_ours(tiny_bundle: Path) -> None:
    edit(tiny_bundle, lambda tree: tree["architecture"].update(library="torchvision"))
    with pytest.raises(ArtifactError, match="wants test_efficientnet of torchvision, and this foveal has one of timm"):
        read_bundle(tiny_bundle).build()


def test_weights_that_share_memory_or_are_views_are_written(tiny_bundle: Path, tmp_path: Path) -> None:
    shared = torch.rand(6, 4)
    state = {"tied": shared, "again": shared, "view": shared[2:4].T, "half": shared.half(), "count": torch.tensor(3)}
    write_bundle(tmp_path / "b", spec_of(read_bundle(tiny_bundle)), state)
    found = load((tmp_path / "b" / "model.safetensors").read_bytes())
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("place", [0.0, 0.001, 0.3, 0.7, 0.999999])
def test_one_flipped_bit_is_refused(tiny_bundle: Path, place: float) -> None:
    """Row 7: both safetensors and torch.load accept it."""
    file = tiny_bundle / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= 1 << (int(place * 1000) % 8)
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match="is not the file that was written: its sha256 differs") as caught:
        read_bundle(tiny_bundle)
    assert "damaged or changed on the way" in caught.value.fix


def test_missing_files_are_told(tiny_bundle: Path, tmp_path: Path) -> None:
    (tiny_bundle / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"lacks model\.safetensors"):
        read_bundle(tiny_bundle)
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(ArtifactError, match="neither a bundle nor a run that has one") as caught:
            find_bundle(path)
        assert "foveal train --out" in caught.value.fix


def test_a_run_leads_to_its_bundle(tiny_bundle: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_bundle, run / "bundle")
    assert find_bundle(run) == find_bundle(run / "bundle") == run / "bundle"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{}", b"[" * 200_000])
def test_a_description_that_is_no_json_is_told(tiny_bundle: Path, content: bytes) -> None:
    (tiny_bundle / "bundle.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"bundle\.json is not JSON"):
        read_bundle(tiny_bundle)


@pytest.mark.parametrize("version", [0, 2, "1", None, [1]])
def test_another_format_version_is_refused_before_anything_else(tiny_bundle: Path, version: object) -> None:
    edit(tiny_bundle, lambda tree: tree.update(format_version=version, shape="of the future"))
    with pytest.raises(ArtifactError, match=r"format version .* this foveal reads 1") as caught:
        read_bundle(tiny_bundle)
    assert "foveal that wrote it" in caught.value.fix
    (tiny_bundle / "bundle.json").write_text('["a list"]')
    with pytest.raises(ArtifactError, match="format version None"):
        read_bundle(tiny_bundle)


HOSTILE: dict[str, Callable[[Tree], object]] = {
    "architecture.library": lambda t: t["architecture"].update(library="importlib"),
    "architecture.name": lambda t: t["architecture"].update(name="os.system"),
    "architecture.name ": lambda t: t["architecture"].update(name="hf-hub:evil/model"),
    "architecture.name  ": lambda t: t["architecture"].update(name="../../model"),
    "architecture.name   ": lambda t: t["architecture"].update(name="resnet18\n"),
    "architecture.factory": lambda t: t["architecture"].update(factory="os.system"),
    "architecture.kwargs": lambda t: t["architecture"].update(kwargs={"pretrained": True}),
    "architecture.dropout": lambda t: t["architecture"].pop("head") and t["architecture"].update(dropout=1.5),
    "architecture.dropout ": lambda t: t["architecture"].update(dropout=0.5),
    "architecture.head.activation": lambda t: t["architecture"]["head"].update(activation="os.system"),
    "architecture.head.code": lambda t: t["architecture"]["head"].update(code="os.system"),
    "architecture.head.layers.1": lambda t: t["architecture"]["head"].update(kind="dense", layers=[8, 10**9]),
    "__class__": lambda t: t.update(__class__="subprocess.Popen"),
    "class_names": lambda t: t.update(class_names=["a", "b", "a"]),
    "class_names ": lambda t: t.update(class_names=["a"]),
    "class_names.2": lambda t: t.update(class_names=["a", "b", {"py": "object"}]),
    "temperature": lambda t: t.update(temperature=0),
    "temperature ": lambda t: t.update(temperature=float("inf")),
    "temperature  ": lambda t: t.update(temperature=float("nan")),
    "files": lambda t: t["files"].update({"../../../etc/passwd": "0" * 64}),
    "files ": lambda t: t.update(files={"../model.safetensors": t["files"]["model.safetensors"]}),
    "files  ": lambda t: t.update(files={}),
    "preprocessing.max_pixels": lambda t: t["preprocessing"].update(max_pixels=10**12),
    "preprocessing.size_px": lambda t: t["preprocessing"].update(size_px=0),
    "preprocessing.size_px ": lambda t: t["preprocessing"].update(size_px=10**6),
    "preprocessing": lambda t: t["preprocessing"].update(store_px=16),
    "preprocessing.std.1": lambda t: t["preprocessing"].update(std=[1, 0, 1]),
    "preprocessing.background.0": lambda t: t["preprocessing"].update(background=[300, 0, 0]),
    "preprocessing.fit": lambda t: t["preprocessing"].update(fit="eval"),
    "preprocessing.hook": lambda t: t["preprocessing"].update(hook="my.module:run"),
    "weights.licence": lambda t: t["weights"].pop("licence"),
}


@pytest.mark.parametrize("fault", HOSTILE)
def test_whatever_is_not_in_the_schema_is_refused(tiny_bundle: Path, no_network: list[object], fault: str) -> None:
    """Row 9."""
    edit(tiny_bundle, HOSTILE[fault])
    with pytest.raises(ArtifactError, match="does not follow the schema of a bundle") as caught:
        read_bundle(tiny_bundle)
    named = fault.strip() if fault.strip() not in {"class_names", "files"} else ""
    assert any(problem.startswith(f"{named}:") or named in problem for problem in caught.value.problems)
    assert len(caught.value.problems) == 1
    assert "take the original" in caught.value.fix
    assert no_network == []


def test_all_faults_come_at_once(tiny_bundle: Path) -> None:
    faults = ["architecture.name", "architecture.factory", "temperature", "preprocessing.std.1", "__class__"]
    for fault in faults:
        edit(tiny_bundle, HOSTILE[fault])
    with pytest.raises(ArtifactError) as caught:
        read_bundle(tiny_bundle)
    assert {problem.partition(":")[0] for problem in caught.value.problems} == set(faults)


def test_a_bundle_of_another_pixel_policy_is_not_guessed_at(tiny_bundle: Path) -> None:
    edit(tiny_bundle, lambda tree: tree["preprocessing"].update(policy_version=99))
    with pytest.raises(ArtifactError, match="pixel policy 99, and this foveal has 1"):
        read_bundle(tiny_bundle).spec.preprocessing.policy()


def test_a_network_that_this_zoo_does_not_know_is_told(tiny_bundle: Path) -> None:
    edit(tiny_bundle, lambda tree: tree["architecture"].update(name="net_of_tomorrow"))
    with pytest.raises(ArtifactError, match="'net_of_tomorrow' is not a model of timm's zoo") as caught:
        read_bundle(tiny_bundle).build()
    assert "upgrade timm" in caught.value.fix


@pytest.mark.parametrize("harm", ["one less", "one more", "another shape", "other classes"])
def test_weights_that_do_not_fit_are_refused_however_right_their_hash(tiny_bundle: Path, harm: str) -> None:
    state = load((tiny_bundle / "model.safetensors").read_bytes())
    if harm == "one less":
        del state["classifier.bias"]
    elif harm == "one more":
        state["extra"] = torch.zeros(1)
    elif harm == "another shape":
        state["classifier.bias"] = torch.zeros(4)
    else:
        edit(tiny_bundle, lambda tree: tree.update(class_names=["a", "b"]))
    forge(tiny_bundle, state)
    with pytest.raises(ArtifactError, match="do not fit test_efficientnet"):
        read_bundle(tiny_bundle).build()


def test_a_pickle_under_the_name_of_the_weights_is_not_loaded(tiny_bundle: Path) -> None:
    torch.save(load((tiny_bundle / "model.safetensors").read_bytes()), tiny_bundle / "model.safetensors")
    edit(
        tiny_bundle,
        lambda tree: tree["files"].update({"model.safetensors": sha256_file(tiny_bundle / "model.safetensors")}),
    )
    with pytest.raises(ArtifactError, match="is not a whole safetensors file"):
        read_bundle(tiny_bundle).build()


def test_an_update_changes_what_is_named_and_leaves_the_weights(tiny_bundle: Path) -> None:
    before = read_bundle(tiny_bundle).spec
    weights = (tiny_bundle / "model.safetensors").read_bytes()
    metrics = {"val": {"accuracy": [0.5, [0.4, 0.6]], "macro_roc_auc": [None, None]}}
    update_bundle(tiny_bundle, temperature=2.25, metrics=metrics)
    after = read_bundle(tiny_bundle).spec
    assert after.temperature == 2.25
    assert json.loads((tiny_bundle / "bundle.json").read_text())["metrics"] == metrics
    assert after.model_dump(exclude={"temperature", "metrics"}) == before.model_dump(exclude={"temperature", "metrics"})
    assert (tiny_bundle / "model.safetensors").read_bytes() == weights
    for wrong in ({"temperature": -1.0}, {"temprature": 1.0}):
        with pytest.raises(ValidationError):
            update_bundle(tiny_bundle, **wrong)
    assert read_bundle(tiny_bundle).spec == after


def test_a_built_bundle_is_ready_to_predict(tiny_bundle: Path) -> None:
    classifier = read_bundle(tiny_bundle).build()
    assert isinstance(classifier, Classifier)
    assert not classifier.training
    np.testing.assert_allclose(classifier.mean.flatten(), (0.485, 0.456, 0.406))
