"""Every verb in one go, as a person would type them, on images that were never seen before."""

import csv
import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import foveal
from foveal.cli import app
from foveal.data.manifest import Manifest
from foveal.metrics import SplitMetrics
from small_runs import CLASSES, columns_of, flags


def typed(line: str, *more: str) -> str:
    """Run a command line as typed; it must end well and say what to type next."""
    words = shlex.split(line)
    assert words[0] == "foveal"
    result = CliRunner().invoke(app, [*words[1:], *more])
    assert result.exit_code == 0, result.stderr
    assert "Next:" in result.stdout or "--json" in words
    return result.stdout


def test_from_a_folder_of_images_to_a_classifier_in_use(
    tmp_path: Path, make_images: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, no_network: list[object]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_images(Path("photos"), CLASSES, num_per_class=40)
    Path("photos/10/broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 half a picture")
    recipe = shlex.join(flags("train.epochs=8", "optim.lr=0.01"))

    plan = typed(f"foveal train photos --dry-run {recipe}")
    assert re.search(r"images +\d+ train", plan)
    assert not Path("runs").exists()

    shown = typed(f"foveal train photos --out runs/first --seed 1 {recipe}")
    run = Path("runs/first")
    test = SplitMetrics.read(run / "evaluation/test/metrics.json")
    assert f"Test: {test.sentence()}; macro F1 " in shown
    assert test.accuracy is not None
    assert test.majority_baseline_accuracy is not None
    assert test.accuracy > test.majority_baseline_accuracy + 0.25  # it did learn the shapes
    report = (run / "report.html").read_text(encoding="utf-8")
    for words in (f"on {test.num_images} test images", "10/broken.jpg", "Content-Security-Policy", "<svg"):
        assert words in report
    assert not re.search(r"<script|https?://(?!www\.w3\.org)", report)

    # Measured again: the same number, and a second look.
    again = json.loads(typed("foveal evaluate runs/first --json"))
    assert again["num_looks"] == 2
    assert again["metrics"]["accuracy"] == test.accuracy
    assert "looked at 3 times" in typed("foveal evaluate runs/first")

    # The bundle alone, somewhere else, on images from elsewhere.
    shutil.copytree(run / "bundle", "shipped")
    make_images(Path("elsewhere"), CLASSES[::-1][:2], num_per_class=6, seed=77)
    shown = typed("foveal evaluate shipped elsewhere --out e --split val")
    assert "on 12 val images" in shown
    assert columns_of(Path("e/predictions.parquet"))["label"].tolist() == ["10"] * 6 + ["b"] * 6

    # Predicted three ways.
    manifest = Manifest.read(run / "manifest.parquet")
    files = [str(manifest.absolute_paths()[row]) for row in manifest.of_split("test").tolist()]
    typed("foveal predict runs/first photos --out p.csv")
    with Path("p.csv").open(newline="") as stream:
        rows = {str(Path(row["path"]).absolute()): row for row in csv.DictReader(stream)}
    assert len(rows) == 121
    assert [row["status"] for row in rows.values()].count("failed") == 1
    typed("foveal predict shipped --out p.parquet", *files)
    table = columns_of(Path("p.parquet"))
    evaluated = columns_of(run / "evaluation/test/predictions.parquet")
    predictor = foveal.Predictor("shipped")
    for number, file in enumerate(files):
        said = predictor(file)
        assert not isinstance(said, list)
        expected = np.array([evaluated[f"p_{name}"][number] for name in CLASSES])
        assert said.probabilities == pytest.approx(expected, abs=1e-6)
        assert [table[f"p_{name}"][number] for name in CLASSES] == pytest.approx(expected, abs=1e-6)
        assert [float(rows[file][f"p_{name}"]) for name in CLASSES] == pytest.approx(expected, abs=1e-5)  # six digits

    # On from here: another training that starts from this one.
    tuned = shlex.join(flags("train.epochs=1", "model.weights=runs/first"))
    second = json.loads(typed(f"foveal train photos --out runs/second --json {tuned}"))
    assert second["metrics"]["val"]["accuracy"] > 0.5
    assert json.loads(Path("runs/second/bundle/bundle.json").read_text())["weights"]["source"] == "runs/first"
    assert "test_resnet" in typed("foveal models 'test_resnet*'")
    assert no_network == []
