"""A head that is given further classes: what it knew it still says, bit by bit where that can be."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from foveal.errors import ConfigError
from foveal.model.build import Architecture, Classifier, build
from foveal.model.bundle import read_bundle, write_bundle
from foveal.model.config import HeadConfig
from foveal.model.grow import NEW_ROW_STD, can_grow, check_growable, grown_tensors
from foveal.model.weights import load_weights

OLD = ("2", "10", "b")
ALL = ("1", "2", "5", "10", "a", "b")
PLACES = [1, 3, 5]

PLAIN = HeadConfig()
DENSE = HeadConfig(kind="dense", layers=(6,), batch_norm=True)


def network(name: str | tuple[str, ...], names: Sequence[str], head: HeadConfig, seed: int) -> Classifier:
    torch.manual_seed(seed)
    made = build(Architecture(name=name, num_classes=len(names), image_size=32, head=head))
    return made.eval()


def bundle_of(classifier: Classifier, folder: Path, **changes: object) -> Path:
    architecture = classifier.architecture
    spec = {
        "architecture": {**architecture.spec(), **changes},
        "class_names": OLD,
        "preprocessing": {
            **{"policy_version": 1, "max_pixels": 120_000_000, "size_px": 32, "store_px": 34, "fit": "crop"},
            **{"interpolation": "bicubic", "background": (255, 255, 255)},
            **{"mean": architecture.mean, "std": architecture.std},
        },
        "temperature": 1.0,
        "training_data": {"fingerprint": "0" * 64, "num_images": {"train": 24}},
        "weights": {"source": "none", "licence": "none"},
    }
    return write_bundle(folder, spec, classifier.net.state_dict()).path


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("test_resnet", PLAIN),
        ("test_resnet", DENSE),
        ("test_vit", PLAIN),
        (("test_resnet", "small_cnn"), PLAIN),
        (("test_resnet", "test_resnet"), DENSE),
    ],
)
def test_old_classes_are_said_as_before_and_new_ones_next_to_nothing(
    tmp_path: Path, name: str | tuple[str, ...], head: HeadConfig
) -> None:
    """From a bundle by the way that training takes, old rows moved apart by names that come between them."""
    old = network(name, OLD, head, seed=1)
    path = bundle_of(old, tmp_path / "bundle")
    larger = network(name, ALL, head, seed=2)
    origin = load_weights(larger, name, str(path), class_names=ALL)
    assert origin.not_loaded == () == origin.left_over
    assert "Its 3 classes are among these 6: their rows of the last layer are kept, and 3 new ones" in origin.note
    before, after = old.net.state_dict(), larger.net.state_dict()
    of_classes = larger.class_tensors()
    assert all(torch.equal(after[key], before[key]) for key in after if key not in of_classes)
    for key in of_classes:
        assert torch.equal(after[key][PLACES], before[key])
        new = after[key][[0, 2, 4]]
        if new.dim() == 1:
            assert (new == 0).all()
        else:
            assert 0 < new.abs().mean() < 2 * NEW_ROW_STD
            assert not torch.equal(new[0], new[1])
    pixels = torch.rand(5, 3, 32, 32)
    with torch.no_grad():
        said, was = larger.eval()(pixels), old(pixels)
    # More rows may be added up in another order; the rows themselves are the same bits.
    assert torch.allclose(said[:, PLACES], was, atol=1e-6, rtol=1e-5)
    assert torch.equal(said[:, PLACES].argmax(dim=1), was.argmax(dim=1))


def test_the_new_rows_depend_on_the_seed_alone() -> None:
    old = network("test_resnet", OLD, PLAIN, seed=1)
    drawn = []
    for seed in (3, 3, 4):
        larger = network("test_resnet", ALL, PLAIN, seed=seed)
        drawn.append(grown_tensors(larger, old.net.state_dict(), OLD, ALL)["fc.weight"])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_only_what_has_more_classes_and_the_same_layers_is_grown() -> None:
    assert can_grow(OLD, ALL)
    assert not can_grow(OLD, OLD)
    assert not can_grow(OLD, ("10", "2", "b"))
    assert not can_grow(OLD, ("2", "10", "c", "d"))
    old, dense = network("test_resnet", OLD, PLAIN, seed=1), network("test_resnet", ALL, DENSE, seed=1)
    assert grown_tensors(dense, old.net.state_dict(), OLD, ALL) == {}


def test_a_head_of_neighbours_is_refused_before_any_work(tmp_path: Path) -> None:
    classical = {"kind": "neighbours", "num_references": 4, "num_neighbours": 1}
    path = bundle_of(network("test_resnet", OLD, PLAIN, seed=1), tmp_path / "bundle", classical=classical)
    with pytest.raises(ConfigError, match="neighbours, which cannot be trained further"):
        check_growable(read_bundle(path), ALL)
