"""`foveal bench`: which engines there are, what they are timed on, and what a person and a program read of it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from foveal.api.bench import bench, plan_bench
from foveal.cli import app
from foveal.errors import ArtifactError, ConfigError, DataError
from foveal.exporting.on_the_way import exported_of
from foveal.machine import num_cpus
from foveal.progress import Silence
from small_runs import small_run


@pytest.fixture
def trained(make_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; look but do not touch."""
    return small_run(make_images, tmp_path_factory)


def test_a_run_is_timed_with_every_engine_on_its_own_test_images(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    done = bench(trained, batch_sizes=(1, 3), threads=(1,), samples=8, seconds=5, out=out)
    assert [each.engine for each in done.figures.engines] == ["torch", "torch_channels_last", "onnx_fp32"]
    assert done.figures.missing == {}
    assert "own test images" in done.figures.images
    torch, _, onnx = done.figures.engines
    assert onnx.peak_mib is not None
    assert torch.peak_mib is not None
    assert onnx.peak_mib < torch.peak_mib / 2  # no torch in its process
    assert all(each.whole_ms is not None and each.whole_ms.p50 for each in done.figures.engines)
    assert json.loads(out.read_text()) == json.loads(json.dumps(done.to_dict()))
    head, *rows = done.table()
    assert len(rows) == 3
    assert all(len(row) == len(head) for row in rows)
    assert "8" in next(line for line in done.sentences() if "too few" in line)
    assert "<table>" in done._repr_html_()


def test_an_export_is_timed_by_itself_and_on_the_images_given(trained: Path, tmp_path: Path) -> None:
    export = Path(shutil.copytree(exported_of(trained, Silence()), tmp_path / "an export"))
    planned = plan_bench(export)
    assert [source.name for source in planned.sources] == ["onnx_fp32"]
    assert planned.images.is_noise
    assert planned.plan.thread_counts == tuple(sorted({1, num_cpus()}))
    images = trained.parent / "images"
    words = ["bench", str(export), str(images), "--threads", "1", "--samples", "6", "--batch-sizes", "2", "--json"]
    said = CliRunner().invoke(app, words)
    assert said.exit_code == 0, said.output
    content = json.loads(said.stdout)
    assert content["images"] == "64 of 90 images given"
    assert content["num_images"] == 64
    assert [each["engine"] for each in content["engines"]] == ["onnx_fp32"]
    beside = plan_bench(trained, exports=[export], engines=["onnx"])
    assert [source.model for source in beside.sources] == [export / "model.onnx"]


def test_what_makes_no_sense_is_refused_all_at_once(trained: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        plan_bench(trained, engines=["tensorrt"], batch_sizes=(0, 8), threads=(-1,), samples=0, seconds=0)
    assert len(refused.value.problems) == 5
    with pytest.raises(ConfigError, match="same classes"):
        plan_bench(tiny_bundle, exports=[exported_of(trained, Silence())])
    with pytest.raises(ConfigError, match="onnx_int8") as missing:
        plan_bench(trained, engines=["onnx_int8"])
    assert missing.value.problems
    with pytest.raises(ArtifactError):
        plan_bench(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError):
        plan_bench(tiny_bundle, [tmp_path / "empty"])
    with pytest.raises(ArtifactError, match="there is no such file or folder"):
        plan_bench(tiny_bundle, exports=[tmp_path / "gone"])
    said = CliRunner().invoke(app, ["bench", str(tiny_bundle), "--batch-sizes", "1,x"])
    assert said.exit_code == 2
    assert "--batch-sizes" in said.stderr


def test_files_that_cannot_be_read_are_counted_and_named(trained: Path, tmp_path: Path) -> None:
    export, gone = exported_of(trained, Silence()), tmp_path / "gone.png"
    good = next((trained.parent / "images").rglob("*.png"))
    done = bench(export, [good, gone], batch_sizes=(1,), threads=(1,), samples=6, seconds=2)
    assert any("2 images given, of which 1 cannot be read" in line for line in done.sentences())
    with pytest.raises(DataError) as refused:
        bench(export, [gone], batch_sizes=(1,), threads=(1,), samples=6, seconds=2)
    assert refused.value.problems == (f"{gone}: no such file",)


def test_a_dry_run_says_what_would_be_timed_and_exports_nothing(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOVEAL_CACHE_DIR", str(tmp_path / "untouched"))
    said = CliRunner().invoke(app, ["bench", str(trained), "--dry-run", "--threads", "1,2", "--engine", "onnx"])
    assert said.exit_code == 0, said.output
    assert "ONNX fp32" in said.stdout
    assert "own test images" in said.stdout
    assert said.stdout.splitlines()[-1].strip().startswith("foveal bench")
    assert not (tmp_path / "untouched").exists()
