"""The bundle of several networks: written whole, read as it was written, and nothing else is read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from foveal.errors import ArtifactError
from foveal.files import sha256_file
from foveal.model import ensemble_bundle
from foveal.model.build import Architecture, build
from foveal.model.bundle import Bundle, EnsembleBundle, open_bundle, read_bundle, update_bundle, write_bundle
from foveal.model.bundle_spec import EnsembleSpec
from foveal.model.config import ClassicalHeadConfig
from foveal.model.ensemble_bundle import reordered_state, write_ensemble, write_single

Tree = dict[str, Any]
NAMES = ("discs", "squares", "stripes")


def another(bundle: Bundle, folder: Path, *, seed: int = 1, **changes: Any) -> Bundle:
    """A bundle of another network, with random weights that tell images apart."""
    torch.manual_seed(seed)
    spec = bundle.spec.model_dump(exclude={"format_version", "foveal_version", "files"})
    name, size = changes.pop("name", "test_resnet"), changes.pop("size_px", 48)
    classifier = build(Architecture(name=name, num_classes=len(changes.get("class_names", NAMES)), image_size=size))
    state = {
        key: 8 * value if key.endswith("fc.weight") else value for key, value in classifier.net.state_dict().items()
    }
    spec |= {"architecture": classifier.architecture.spec(), **changes}
    spec["preprocessing"] |= {"size_px": size, "store_px": size + 4}
    return write_bundle(folder, spec, state)


@pytest.fixture
def both(tiny_bundle: Path, tmp_path: Path) -> EnsembleBundle:
    """An ensemble of two architectures and sizes."""
    first = read_bundle(tiny_bundle)
    second = another(first, tmp_path / "second", temperature=0.7)
    return write_ensemble(tmp_path / "both", [first, second], ["a", "b"], vote="weighted", weights=[0.25, 0.75])


def edit(folder: Path, change: Callable[[Tree], object]) -> None:
    file = folder / "bundle.json"
    tree = json.loads(file.read_text())
    change(tree)
    file.write_text(json.dumps(tree))


def rehash(folder: Path) -> None:
    """As someone would do who forges a bundle."""

    def change(tree: Tree) -> None:
        tree["files"] = {name: sha256_file(folder / name) for name in tree["files"]}

    edit(folder, change)


def test_a_round_trip(both: EnsembleBundle, tiny_bundle: Path) -> None:
    read = open_bundle(both.path)
    assert isinstance(read, EnsembleBundle)
    assert read == both
    assert [member.name for member in read.spec.members] == ["a", "b"]
    assert [member.weight for member in read.spec.members] == [0.25, 0.75]
    assert [member.spec.temperature for member in read.members] == [1.5, 0.7]
    assert read.members[0].state().keys() == read_bundle(tiny_bundle).state().keys()
    files = sorted(str(file.relative_to(both.path)) for file in both.path.rglob("*") if file.is_file())
    assert files == [
        "bundle.json",
        *(f"members/{at}/{name}" for at in (0, 1) for name in ("bundle.json", "model.safetensors")),
    ]
    update_bundle(both.path, temperature=0.5, metrics={"test": {"accuracy": [1.0, None]}})
    assert open_bundle(both.path).spec.temperature == 0.5


def test_one_network_is_not_several(both: EnsembleBundle) -> None:
    with pytest.raises(ArtifactError, match="is an ensemble, and one network is wanted here") as caught:
        read_bundle(both.path)
    assert str(both.path / "members/0") in caught.value.fix


HOSTILE: dict[str, Callable[[Tree], object]] = {
    "files": lambda t: t["files"].update({"members/2/bundle.json": "0" * 64}),
    "files ": lambda t: t["files"].update({"members/../../secret": "0" * 64}),
    "files  ": lambda t: t["files"].pop("members/1/bundle.json"),
    "members": lambda t: t.update(members=t["members"][:1]),
    "members.0.weight": lambda t: t["members"][0].update(weight=-0.1),
    "members.0.path": lambda t: t["members"][0].update(path="../../other"),
    "members ": lambda t: t["members"][0].update(weight=0.5),
    "vote": lambda t: t.update(vote="os.system"),
    "architecture": lambda t: t.update(architecture={"name": "resnet18"}),
    "temperature": lambda t: t.update(temperature=0.0),
}


@pytest.mark.parametrize("fault", HOSTILE)
def test_whatever_is_not_in_the_schema_is_refused(both: EnsembleBundle, fault: str) -> None:
    edit(both.path, HOSTILE[fault])
    with pytest.raises(ArtifactError, match="does not follow the schema of a bundle") as caught:
        open_bundle(both.path)
    assert any(fault.strip() in problem for problem in caught.value.problems)


@pytest.mark.parametrize("name", ["members/0/bundle.json", "members/1/model.safetensors"])
def test_every_file_has_its_hash(both: EnsembleBundle, name: str) -> None:
    content = bytearray((both.path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (both.path / name).write_bytes(content)
    with pytest.raises(ArtifactError, match="is not the file that was written"):
        open_bundle(both.path)
    (both.path / name).unlink()
    with pytest.raises(ArtifactError, match="lacks members"):
        open_bundle(both.path)


def test_members_cannot_be_swapped(both: EnsembleBundle) -> None:
    first, second = both.path / "members" / "0", both.path / "members" / "1"
    first.rename(both.path / "aside")
    second.rename(first)
    (both.path / "aside").rename(second)
    with pytest.raises(ArtifactError, match="is not the file that was written"):
        open_bundle(both.path)


def test_a_forged_member_is_read_by_its_own_schema(both: EnsembleBundle) -> None:
    member = both.path / "members" / "1"
    edit(member, lambda tree: tree.update(hook="os.system"))
    rehash(both.path)
    with pytest.raises(ArtifactError, match=r"members/1/bundle\.json does not follow the schema"):
        open_bundle(both.path)
    edit(member, lambda tree: (tree.pop("hook"), tree.update(class_names=["stripes", "squares", "discs"])))
    rehash(both.path)
    with pytest.raises(ArtifactError, match="do not know the same classes in the same order"):
        open_bundle(both.path)


def test_ensembles_do_not_nest(both: EnsembleBundle, tmp_path: Path) -> None:
    outer = Path(shutil.copytree(both.path, tmp_path / "outer"))
    shutil.rmtree(outer / "members" / "1")
    shutil.copytree(both.path, outer / "members" / "1")
    shutil.copy(outer / "members" / "0" / "model.safetensors", outer / "members" / "1" / "model.safetensors")
    rehash(outer)
    with pytest.raises(ArtifactError, match=r"A member of the ensemble .* is an ensemble itself"):
        open_bundle(outer)


def test_weights_are_shares(both: EnsembleBundle) -> None:
    tree = both.spec.model_dump()
    with pytest.raises(ValidationError, match="add up to 1"):
        EnsembleSpec.model_validate({**tree, "members": ({"name": "a", "weight": 0.5}, {"name": "b", "weight": 0.6})})


def test_classes_in_another_order_are_put_into_the_first_ones(tiny_bundle: Path, tmp_path: Path) -> None:
    first = read_bundle(tiny_bundle)
    turned = ("stripes", "discs", "squares")
    pixels = torch.rand(6, 3, 48, 48)
    for at, name in enumerate(("test_resnet", "small_cnn", "test_vit")):
        size = 160 if name == "test_vit" else 48
        other = another(first, tmp_path / name, name=name, size_px=size, class_names=turned)
        written = write_ensemble(tmp_path / f"e{at}", [first, other], ["a", "b"], vote="soft", weights=[0.5, 0.5])
        assert written.members[1].spec.class_names == NAMES
        images = torch.nn.functional.interpolate(pixels, size=size)
        with torch.inference_mode():
            before, after = other.build()(images), written.members[1].build()(images)
        np.testing.assert_allclose(after, before[:, [1, 2, 0]], atol=1e-5)
        assert float((after - before).abs().max()) > 1e-3
    single = write_single(tmp_path / "single", other, NAMES)
    assert single.spec.class_names == NAMES
    assert open_bundle(tmp_path / "single") == single


def test_outputs_that_cannot_be_reordered_are_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = read_bundle(tiny_bundle)
    assert reordered_state(bundle, NAMES[::-1]).keys() == bundle.state().keys()
    config = ClassicalHeadConfig(kind="neighbours", num_neighbours=1, num_references=6)
    classifier = build(Architecture(name="small_cnn", num_classes=3, image_size=32, classical=config))
    spec = bundle.spec.model_dump(exclude={"format_version", "foveal_version", "files"})
    spec["architecture"] = classifier.architecture.spec()
    neighbours = write_bundle(tmp_path / "neighbours", spec, classifier.net.state_dict())
    with pytest.raises(ArtifactError, match="its last layer is no plain linear one"):
        reordered_state(neighbours, NAMES[::-1])


def test_an_earlier_bundle_is_replaced_whole_or_not_at_all(
    both: EnsembleBundle, tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, folder = read_bundle(tiny_bundle), both.path
    third = another(first, tmp_path / "third", name="small_cnn", seed=5)
    original = ensemble_bundle.write_json

    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    for what in ("write_json", "sha256_file", "_put_in_place", "_copy"):
        monkeypatch.setattr(ensemble_bundle, what, kill)
        with pytest.raises(Killed):
            write_ensemble(folder, [first, third], ["x", "y"], vote="soft", weights=[0.5, 0.5])
        monkeypatch.undo()
        assert open_bundle(folder) == both
        assert sorted(path.name for path in folder.iterdir()) == ["bundle.json", "members"]
    assert ensemble_bundle.write_json is original
    # What a kill leaves beside it is swept by the next one.
    for name in (".both.0123.partial", ".both.0123.old"):
        shutil.copytree(folder, folder.parent / name)
    written = write_ensemble(folder, [first, third], ["x", "y"], vote="soft", weights=[0.5, 0.5])
    assert open_bundle(folder) == written
    assert not list(folder.parent.glob(".both.*"))


def test_files_of_others_are_not_written_over(both: EnsembleBundle) -> None:
    (both.path / "thesis.tex").write_text("years of work")
    with pytest.raises(ArtifactError, match=r"holds files that are no bundle's: thesis\.tex"):
        write_ensemble(both.path, both.members, ["a", "b"], vote="soft", weights=[0.5, 0.5])
    assert open_bundle(both.path) == both


def test_licences_and_data_of_all_members_are_kept(tiny_bundle: Path, tmp_path: Path) -> None:
    first = read_bundle(tiny_bundle)
    licence = {"source": "pretrained", "tag": "t", "licence": "cc-by-nc-4.0"}
    data = {"fingerprint": "1" * 64, "num_images": {"train": 10}}
    other = another(first, tmp_path / "other", weights=licence, training_data=data)
    spec = write_ensemble(tmp_path / "e", [first, other], ["a", "b"], vote="soft", weights=[0.5, 0.5]).spec
    assert "cc-by-nc-4.0" in spec.weights.licence
    assert first.spec.weights.licence in spec.weights.licence
    assert spec.training_data.fingerprint not in {"0" * 64, "1" * 64}
    same = write_ensemble(tmp_path / "s", [first, first], ["a", "b"], vote="soft", weights=[0.5, 0.5]).spec
    assert same.training_data == first.spec.training_data
