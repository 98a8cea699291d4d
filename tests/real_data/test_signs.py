"""Hand signs for the ten digits: a short training on a part of them tells them apart."""

import csv
from pathlib import Path

import pytest

import foveal
from foveal.data.manifest import Manifest
from foveal.metrics import wilson_interval

NUM_PER_CLASS = 80

pytestmark = pytest.mark.real_data


def test_a_few_epochs_on_a_part_of_the_signs(real_data: Path, tmp_path: Path) -> None:
    root = real_data / "sign_digits"
    table = tmp_path / "signs.csv"
    with table.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "label"])
        for folder in sorted(path for path in root.iterdir() if path.is_dir()):
            for file in sorted(folder.iterdir())[:NUM_PER_CLASS]:
                writer.writerow([str(file.relative_to(root)), folder.name])
    recipe = ["model.name=resnet18", "model.weights=none", "data.image_size=48", "train.epochs=5"]
    recipe += ["train.batch_size=32", "train.precision=fp32", f"data.images_root={root}"]
    result = foveal.train(table, tmp_path / "run", overrides=recipe)
    test = result.metrics["test"]
    assert test.class_names == tuple(str(digit) for digit in range(10))
    assert test.num_images == 10 * round(0.15 * NUM_PER_CLASS)
    assert test.majority_baseline_accuracy == pytest.approx(0.1)
    assert test.accuracy is not None
    # Seeds 0, 1 and 2 gave 0.87, 0.81 and 0.87.
    assert test.accuracy > 0.7
    low, high = test.confidence_intervals["accuracy"]
    assert low <= test.accuracy <= high
    wilson = wilson_interval(test.accuracy * test.num_images, test.num_images)
    assert high - low == pytest.approx(wilson[1] - wilson[0], abs=0.06)
    manifest = Manifest.read(result.run / "manifest.parquet")
    shas = {split: set(manifest.column("sha256")[manifest.of_split(split)]) for split in ("train", "val", "test")}
    assert shas["train"].isdisjoint(shas["val"] | shas["test"])
    assert shas["val"].isdisjoint(shas["test"])
    assert foveal.predict(result.run, [root / "7"], out=tmp_path / "p.csv").num_failed == 0
