"""`demo`: the whole way on digits that are at hand everywhere."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import foveal
from foveal.api.demo import write_digits
from foveal.errors import FovealError


def test_the_digits_are_scikit_learns_pixel_for_pixel(tmp_path: Path) -> None:
    assert write_digits(tmp_path) == 1797
    digits = load_digits()
    files = sorted(tmp_path.rglob("*.png"), key=lambda path: path.name)
    assert len(files) == 1797
    for number in range(0, 1797, 200):
        with Image.open(files[number]) as image:
            assert np.array_equal(np.asarray(image), np.round(digits.images[number] * 255 / 16))
        assert files[number].parent.name == str(digits.target[number])


def test_the_whole_way_without_a_network(tmp_path: Path, no_network: list[object]) -> None:
    tiny = ["model.name=test_resnet", "train.epochs=1", "train.precision=fp32"]
    result = foveal.demo(tmp_path / "demo", overrides=tiny)
    assert no_network == []
    assert result.training.metrics["test"].num_images == pytest.approx(0.15 * 1797, abs=8)
    assert result.training.report.is_file()
    assert result.prediction.num_ok == 20
    assert len((tmp_path / "demo" / "predictions.csv").read_text().splitlines()) == 21
    assert result.to_dict()["images"] == str(tmp_path / "demo" / "digits")
    with pytest.raises(FovealError, match="not empty"):
        foveal.demo(tmp_path / "demo", overrides=tiny)


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file", tmp_path / "file" / "demo"):
        with pytest.raises(FovealError, match="cannot be written"):
            foveal.demo(out)
