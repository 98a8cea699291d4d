"""Which images an export is proven on: real, unchanged, of the split that proves most, and never those of int8."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveal.data.manifest import Manifest
from foveal.errors import DataError
from foveal.exporting.gate_images import GateImages, choose_images, noise_images
from foveal.files import sha256_file

CLASSES = ("discs", "squares", "stripes")


@pytest.fixture(scope="module")
def folder(make_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("gate") / "images", num_per_class=100, side_px=8)


def manifest_of(folder: Path, num_train: int = 60, num_val: int = 20, **columns: object) -> Manifest:
    """Of each class so many for train and val, the rest for test."""
    paths = [f"{name}/{at}.{'jpg' if at % 2 else 'png'}" for name in CLASSES for at in range(100)]
    splits = (["train"] * num_train + ["val"] * num_val + ["test"] * (100 - num_train - num_val)) * len(CLASSES)
    return Manifest.build(
        folder,
        path=paths,
        label=[path.partition("/")[0] for path in paths],
        split=splits,
        sha256=[sha256_file(folder / path) for path in paths],
        **columns,
    )


def chosen(manifest: Manifest, num_images: int = 500, num_calibration: int = 0, **more: object) -> GateImages:
    return choose_images(
        manifest, CLASSES, margin=0.0, num_images=num_images, num_calibration=num_calibration, seed=3, train=manifest,
        **more,
    )  # fmt: skip


def test_test_comes_first_and_others_fill_up_to_200_alone(folder: Path) -> None:
    few = chosen(manifest_of(folder))
    assert Counter(few.splits) == {"test": 60, "val": 60, "train": 80}
    assert few.learnt is not None
    assert few.learnt.sum() == 80
    many = chosen(manifest_of(folder, num_train=10, num_val=10), num_images=220)
    assert Counter(many.splits) == {"test": 220}
    first = chosen(manifest_of(folder), order=("val", "train", "test"))
    assert Counter(first.splits) == {"val": 60, "train": 140}


def test_a_draw_keeps_the_shares_of_the_classes_and_is_repeated_by_its_seed(folder: Path) -> None:
    manifest = manifest_of(folder, num_train=0, num_val=0)
    found = chosen(manifest, num_images=210)
    assert set(Counter(found.labels.tolist()).values()) <= {69, 70, 71}
    assert [each.path for each in chosen(manifest, num_images=210).samples] == [each.path for each in found.samples]


def test_calibration_takes_as_many_of_each_class_from_train_and_none_of_the_gate(folder: Path) -> None:
    found = chosen(manifest_of(folder), num_calibration=30)
    assert found.calibration_split == "train"
    assert Counter(each.path.parent.name for each in found.calibration) == dict.fromkeys(CLASSES, 10)
    assert not {each.path for each in found.calibration} & {each.path for each in found.samples}
    assert Counter(found.splits) == {"test": 60, "val": 60, "train": 80}
    alone = chosen(manifest_of(folder, num_train=0, num_val=0), num_images=500, num_calibration=128)
    assert (len(alone.calibration), len(alone), alone.calibration_split) == (128, 172, "test")
    assert not {each.path for each in alone.calibration} & {each.path for each in alone.samples}
    assert any("no training image" in note for note in alone.notes)


def test_gone_and_changed_images_are_told_and_replaced(make_images: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_images(tmp_path / "images", num_per_class=100, side_px=8)
    manifest = manifest_of(folder)
    for at in (80, 82):
        (folder / "discs" / f"{at}.png").unlink()
    Image.new("RGB", (8, 8)).save(folder / "squares" / "90.png")
    found = chosen(manifest)
    assert Counter(found.splits) == {"test": 57, "val": 60, "train": 83}
    told = " ".join(found.notes)
    assert "2 images could not be read, and were left out, such as" in told
    assert "1 image changed since the manifest was written, and was left out: " in told
    assert "90.png" in told
    for path in folder.rglob("*.*"):
        path.unlink()
    with pytest.raises(DataError, match="None of the 300 images") as raised:
        chosen(manifest)
    assert "--data DATA" in str(raised.value)


def test_three_images_are_enough_and_it_is_said(folder: Path) -> None:
    manifest = manifest_of(folder).take(np.array([0, 100, 299]))
    found = chosen(manifest)
    assert len(found) == 3
    assert "Only 3 images were there" in found.notes[0]
    small = chosen(manifest, num_calibration=128)
    assert (len(small), len(small.calibration)) == (1, 2)


def test_a_box_is_cut_from_the_upright_image(tmp_path: Path) -> None:
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[5:15, 10:20] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    columns = {name: [value] for name, value in (("xmin", 10), ("ymin", 5), ("xmax", 20), ("ymax", 15))}
    manifest = Manifest.build(tmp_path, path=["a.png"], label=["discs"], split=["test"], **columns)
    whole = choose_images(manifest, CLASSES, margin=0.0, num_images=200, num_calibration=0, seed=0).samples[0].load()
    assert isinstance(whole, np.ndarray)
    assert whole.shape == (10, 10, 3)
    assert whole.min() == 255
    wider = choose_images(manifest, CLASSES, margin=0.2, num_images=200, num_calibration=0, seed=0).samples[0].load()
    assert isinstance(wider, np.ndarray)
    assert wider.shape == (14, 14, 3)


def test_an_unknown_class_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="other classes"):
        choose_images(manifest_of(folder), CLASSES[:2], margin=0.0, num_images=200, num_calibration=0, seed=0)


def test_noise_has_many_sizes_and_values() -> None:
    made = noise_images(32)
    assert len({image.shape for image in made}) > 20
    assert all(image.dtype == np.uint8 and image.std() > 20 for image in made)
