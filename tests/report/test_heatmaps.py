"""The heatmaps of a run's worst errors in its report, and what becomes of it where they cannot be made."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from foveal.evaluation.predictions import read_predictions
from foveal.files import write_json
from foveal.metrics import SplitMetrics
from foveal.report import heatmaps
from foveal.report.heatmaps import draw_heatmaps, read_heatmaps, worst_errors
from foveal.report.page import build_report
from foveal.run_folder import RunFolder
from small_runs import copy_of, small_run


@pytest.fixture
def run(make_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> RunFolder:
    """A run whose test split has errors: the labels of its predictions are moved by one class."""
    copied = RunFolder(copy_of(small_run(make_images, tmp_path_factory), tmp_path / "run"))
    import pyarrow.parquet as parquet

    path = copied.evaluation("test") / "predictions.parquet"
    table = parquet.read_table(path)
    names = SplitMetrics.read(copied.evaluation("test") / "metrics.json").class_names
    moved = [names[(names.index(label) + 1) % len(names)] for label in table["label"].to_pylist()]
    place = table.column_names.index("label")
    parquet.write_table(table.set_column(place, table.schema.field(place), [moved]), path)
    copied.heatmaps("test").unlink(missing_ok=True)
    return copied


def test_the_report_shows_where_the_network_looked_in_its_worst_errors(run: RunFolder) -> None:
    without = build_report(run).read_text(encoding="utf-8")
    assert 'class="pair"' not in without
    draw_heatmaps(run)
    found = read_heatmaps(run, "test")
    names = SplitMetrics.read(run.evaluation("test") / "metrics.json").class_names
    said = read_predictions(run.evaluation("test") / "predictions.parquet", names)
    worst = worst_errors(said)
    assert len(worst) > 3
    assert np.all(np.diff(said.probability[worst]) <= 0)
    assert set(found.pictures) == {(said.sample_ids[at], names[said.predicted[at]]) for at in worst}
    page = build_report(run).read_text(encoding="utf-8")
    assert page.count('class="pair"') == len(worst)
    assert "for the class that it was taken for: HiRes-CAM at layer2." in page
    assert all(picture.uri in page for picture in found.pictures.values())


def test_time_bounds_their_number_and_the_report_says_so(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heatmaps, "MAX_SECONDS", 0.0)
    draw_heatmaps(run)
    found = read_heatmaps(run, "test")
    assert len(found.pictures) == 1
    assert "for the first 1 of" in found.words


def test_a_failure_is_said_and_stops_nothing(run: RunFolder) -> None:
    bundle = json.loads((run.bundle / "bundle.json").read_text())
    bundle["files"]["model.safetensors"] = "0" * 64
    write_json(run.bundle / "bundle.json", bundle)
    draw_heatmaps(run)
    page = build_report(run).read_text(encoding="utf-8")
    assert "Heatmaps of the worst errors could not be made" in page
    assert "sha256 differs" in page
    assert any('"heatmaps_failed"' in line for line in run.log.read_text().splitlines())
