"""Blood cells cut from boxed photographs: no photograph on two sides, and macro F1 beside a flattering accuracy."""

import csv
from pathlib import Path

import pytest

import foveal
from foveal.data.manifest import Manifest

NUM_PHOTOGRAPHS = 110

pytestmark = pytest.mark.real_data


def test_cells_of_one_photograph_stay_together(real_data: Path, tmp_path: Path) -> None:
    root = real_data / "bccd"
    with (root / "boxes.csv").open(newline="") as stream:
        header, *rows = list(csv.reader(stream))
    photographs = sorted({row[0] for row in rows})[:NUM_PHOTOGRAPHS]
    table = tmp_path / "boxes.csv"
    with table.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerows([header, *(row for row in rows if row[0] in set(photographs))])
    recipe = ["data.columns.path=filename", "data.columns.label=cell_type", f"data.images_root={root / 'images'}"]
    recipe += ["model.name=resnet18", "model.weights=none", "data.image_size=32", "train.epochs=5"]
    result = foveal.train(table, tmp_path / "run", overrides=[*recipe, "train.precision=fp32"])

    manifest = Manifest.read(result.run / "manifest.parquet")
    usable = manifest.usable()
    sides: dict[str, set[str]] = {}
    for path, split in zip(manifest.column("path")[usable], manifest.column("split")[usable], strict=True):
        sides.setdefault(path, set()).add(split)
    assert len(sides) == NUM_PHOTOGRAPHS
    assert [path for path, found in sides.items() if len(found) > 1] == []

    test = result.metrics["test"]
    assert test.class_names == ("Platelets", "RBC", "WBC")
    assert test.majority_baseline_accuracy == pytest.approx(0.85, abs=0.04)
    assert test.accuracy is not None
    assert test.macro_f1 is not None
    assert test.accuracy > test.majority_baseline_accuracy + 0.03
    assert test.macro_f1 > 0.6  # who always says RBC gets 0.31
    assert test.leakage is not None
    assert test.leakage.num_test_images_with_siblings_in_train == 0
    page = result.report.read_text(encoding="utf-8")
    for figure in (test.accuracy, test.macro_f1, test.majority_baseline_accuracy):
        assert f"{figure:.2f}" in page
    # Cells are grouped by photograph, so the interval is wider than for as many images that stand alone.
    assert test.confidence_intervals["macro_f1"][0] < test.macro_f1
