"""`foveal explain` as people use it: the folder that it leaves, on the command line and from Python."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import foveal
from foveal.cli import app
from foveal.data.manifest import Manifest
from foveal.errors import ArtifactError, ConfigError
from foveal.inference import Predictor
from small_runs import copy_of, small_run


@pytest.fixture(scope="module")
def run(make_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(make_images, tmp_path_factory)


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "explanations.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_the_folder_holds_what_is_promised(run: Path, tmp_path: Path) -> None:
    images = tmp_path / "my photos"
    for place in ("a", "b"):
        (images / place).mkdir(parents=True)
        picture = np.random.default_rng(len(place)).integers(0, 255, (40, 70, 3), dtype=np.uint8)
        Image.fromarray(picture).save(images / place / "=same name <i>.png")
    (images / "b" / "broken.jpg").write_bytes(b"no image")
    out = tmp_path / "heat maps"
    done = foveal.explain(run, [images, tmp_path / "gone.png"], out=out)
    assert (done.num_ok, done.num_failed) == (2, 2)
    rows = rows_of(out)
    assert [row["status"] for row in rows] == ["ok", "ok", "failed", "failed"]
    assert rows[3]["reason"] == "no such file"
    assert rows[0]["map"] != rows[1]["map"]
    said = Predictor(run)([row["path"] for row in rows[:2]])
    assert isinstance(said, list)
    for row, prediction in zip(rows, said, strict=False):
        assert row["predicted"] == row["explained"] == prediction.predicted
        assert float(row["probability"]) == pytest.approx(prediction.probability, abs=1e-6)
        assert (row["method"], row["layer"]) == ("hirescam", "layer2")
        assert 0 <= float(row["peak_x"]) <= 70
        assert 0 <= float(row["peak_y"]) <= 40
        with np.load(out / row["map"], allow_pickle=False) as arrays:
            assert arrays["map"].dtype == arrays["raw"].dtype == np.float32
            assert arrays["map"].shape == (40, 70)
            assert arrays["size"].tolist() == [40, 70]
            left, top, right, bottom = arrays["seen"]
            assert (top, bottom) == pytest.approx((20 * 2 / 34, 40 - 20 * 2 / 34))
            assert 10 < left < right < 60
        with Image.open(out / row["overlay"]) as overlay:
            assert overlay.size == (70, 40)
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.width >= 720
    page = (out / "index.html").read_text(encoding="utf-8")
    assert "What a map does not prove" in page
    assert "&lt;i&gt;" in page
    assert "<i>.png" not in page
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", page)
    assert done.check is not None
    assert done.check.sentence in page.replace("&#39;", "'")
    assert "data:image/png" in done._repr_html_()
    assert json.loads((out / "summary.json").read_text())["check"]["num_images"] == 2


def test_limit_class_and_a_second_time(run: Path, tmp_path: Path) -> None:
    images, out = run.parent / "images", tmp_path / "out"
    words = [
        "explain",
        str(run),
        str(images),
        "--out",
        str(out),
        "--limit",
        "3",
        "--class",
        "10",
        "--no-check",
        "--json",
    ]
    first = CliRunner().invoke(app, words)
    assert first.exit_code == 0, first.stderr
    told = json.loads(first.stdout)
    assert told["remarks"] == ["The first 3 of 90 inputs were explained; --limit raises it."]
    assert told["check"] is None
    assert {row["explained"] for row in rows_of(out)} == {"10"}
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 1
    assert "holds heatmaps already" in again.stderr
    stray = out / "maps" / "0009-old.npz"
    stray.write_bytes(b"")
    (out / "maps" / "mine.txt").write_text("keep")
    said = CliRunner().invoke(app, [*words[:-1], "--force"])
    assert said.exit_code == 0
    beside = f"foveal explain {run} {images} --out {out}-gradcam --method gradcam --class 10 --limit 3 --no-check"
    assert said.stdout.splitlines()[-1].strip() == beside  # as much as was asked for, by another method
    assert not stray.exists()
    assert (out / "maps" / "mine.txt").exists()


def test_what_is_refused(run: Path, tmp_path: Path) -> None:
    images = run.parent / "images"
    with pytest.raises(ConfigError, match="There is no class 'x'"):
        foveal.explain(run, [images], out=tmp_path / "o", class_name="x")
    with pytest.raises(ConfigError, match="expected auto, gradcam"):
        foveal.explain(run, [images], out=tmp_path / "o", method="lime")
    with pytest.raises(ConfigError, match="lies in the input"):
        foveal.explain(run, [images], out=images / "heat")
    with pytest.raises(ConfigError, match="at least 1"):
        foveal.explain(run, [images], out=tmp_path / "o", limit=0)
    assert not (tmp_path / "o").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"not empty, and holds no result of foveal explain: thesis\.txt"):
        foveal.explain(run, [images], out=tmp_path / "full", force=True)


def test_nothing_but_bad_files_is_a_failure_with_a_table(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["explain", str(run), str(tmp_path / "gone.png"), "--out", str(out)])
    assert done.exit_code == 1
    assert f"failed: {tmp_path / 'gone.png'}: no such file" in done.stdout
    assert "Next:" not in done.stdout  # no other method would help
    assert rows_of(out)[0]["reason"] == "no such file"
    assert (out / "index.html").is_file()
    assert not (out / "contact_sheet.png").exists()


def test_heat_inside_the_boxes_of_the_manifest(run: Path, tmp_path: Path) -> None:
    mine = copy_of(run, tmp_path / "boxed")
    manifest = Manifest.read(mine / "manifest.parquet")
    number = len(manifest)
    boxes = {"xmin": [0] * number, "ymin": [0] * number, "xmax": [16] * number, "ymax": [32] * number}
    manifest.with_columns(**boxes).write(mine / "manifest.parquet")
    path = manifest.absolute_paths()[0]
    done = foveal.explain(mine, [path], out=tmp_path / "out", check=False)
    (image,) = done.images
    with np.load(tmp_path / "out" / image.map) as arrays:
        heat = arrays["map"]
    assert heat.shape == (32, 32)
    assert image.heat_inside_boxes == pytest.approx(heat[:, :16].sum() / heat.sum(), abs=1e-6)
    assert "trained on boxes" in done.remarks[0]


def test_dry_run_writes_nothing(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = CliRunner().invoke(
        app, ["explain", str(run), str(run.parent / "images"), "--out", str(out), "--method", "eigencam", "--dry-run"]
    )
    assert done.exit_code == 0
    assert "Eigen-CAM at layer2" in done.stdout
    assert "90 files, of which 90 would be explained" in done.stdout
    assert "--method eigencam" in done.stdout
    assert not out.exists()
