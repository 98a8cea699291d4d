"""Timing engines in processes of their own: what a figure may rest on, and whose memory and threads it is."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from foveal.errors import DataError, FovealError
from foveal.evaluation.engine_process import peak_bytes
from foveal.evaluation.latency import (
    BenchImages,
    BenchPlan,
    EngineProcess,
    EngineSource,
    measure_engines,
)
from foveal.evaluation.latency_figures import LEAST_SAMPLES, Percentiles


@pytest.fixture(scope="module")
def export(_bundle_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the other tests as ONNX; its process starts at once, for it imports no torch."""
    from foveal.exporting.on_the_way import exported_of
    from foveal.progress import Silence

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOVEAL_CACHE_DIR", str(tmp_path_factory.mktemp("exports")))
        return exported_of(_bundle_template, Silence())


NOISE = BenchImages("noise", ({"noise": 40},), is_noise=True)


def test_a_percentile_needs_so_many_images_that_the_slowest_is_likely_above_it() -> None:
    for name, share in (("p95", 0.95), ("p99", 0.99)):
        assert 1 - share ** LEAST_SAMPLES[name] >= 0.95
        assert 1 - share ** (LEAST_SAMPLES[name] - 1) < 0.95
    seconds = np.random.default_rng(0).exponential(0.01, 298).tolist()
    found = Percentiles.of(seconds)
    assert found.p50 == pytest.approx(1000 * np.percentile(seconds, 50))
    assert found.p95 == pytest.approx(1000 * np.percentile(seconds, 95))
    assert found.p99 is None
    assert found.undefined == {"p99": "298 times were taken, and 299 are needed"}
    assert Percentiles.of([*seconds, 0.0]).p99 is not None


def test_a_process_is_timed_from_within_and_is_gone_afterwards(export: Path, tmp_path: Path) -> None:
    file = tmp_path / "an image.png"
    from PIL import Image

    Image.fromarray(np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), dtype=np.uint8)).save(file)
    images = BenchImages("files", ({"path": str(file)}, {"path": str(file), "box": (0, 0, 40, 40), "margin": 0.1}))
    with EngineProcess(EngineSource("onnx_fp32", export), 1, "cpu", images) as engine:
        pid = engine._process.pid
        assert engine.load_seconds > 0
        assert engine.ask("prepare", num_kept=4) == {"failed": {}}
        started = time.perf_counter()
        said = engine.ask("one", number=0)
        around = time.perf_counter() - started
        assert 0.01 < said["decode"] < around  # 2,250,000 pixels of PNG take their time
        assert 0 < said["network"] < around
        assert engine.ask("batch", size=6)["seconds"] > 0
        threads = int(Path(f"/proc/{pid}/status").read_text().split("Threads:")[1].split()[0])
        assert threads < 20
        assert engine.ask("memory")["peak_bytes"] > 30 << 20
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="another system counts it otherwise")
def test_the_memory_of_a_process_is_not_that_of_the_one_that_started_it() -> None:
    import subprocess

    held = np.ones(300 << 17)  # 300 MiB
    code = "from foveal.evaluation.engine_process import peak_bytes; print(peak_bytes())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    own = peak_bytes()
    assert own is not None
    assert own > held.nbytes
    assert int(done.stdout) < own - (150 << 20)


def test_the_process_of_an_export_imports_no_torch() -> None:
    import subprocess

    code = (
        "import sys; import foveal.evaluation.engine_process, foveal.exported.engine; "
        "print(sorted({'torch', 'timm', 'onnx', 'pyarrow', 'sklearn', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_engines_are_timed_by_turns_and_one_that_fails_is_named(tiny_bundle: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    plan = BenchPlan((1, 4), (1,), 60, 60.0, "cpu")
    sources = [EngineSource("torch", tiny_bundle), EngineSource("onnx_fp32", broken)]
    steps: list[str] = []
    figures = measure_engines(sources, NOISE, plan, advance=steps.append)
    (torch,) = figures.engines
    assert (torch.engine, torch.num_threads) == ("torch", 1)
    assert "onnx_fp32" in figures.missing
    assert torch.network_ms.num_samples == 60
    assert torch.network_ms.p50 is not None
    assert torch.network_ms.p95 is not None
    assert torch.network_ms.p50 <= torch.network_ms.p95
    assert torch.network_ms.p99 is None
    assert torch.whole_ms is None  # noise has no file
    assert [rate.batch_size for rate in torch.rates] == [1, 4]
    assert all(0 < rate.low <= rate.images_per_second <= rate.high for rate in torch.rates)
    assert steps.count("one by one") == 61


def test_the_time_that_is_given_ends_it(export: Path) -> None:
    plan = BenchPlan((1,), (1,), 100_000, 0.2, "cpu")
    figures = measure_engines([EngineSource("onnx_fp32", export)], NOISE, plan)
    times = figures.engines[0].network_ms
    assert LEAST_SAMPLES["p50"] <= times.num_samples < 5000


def test_images_that_cannot_be_read_are_left_out_and_none_is_refused(
    export: Path, tmp_path: Path, make_images: Callable[..., Path]
) -> None:
    good = next(make_images(tmp_path / "images", num_per_class=1).rglob("*.png"))
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8no")
    plan = BenchPlan((1,), (1,), 6, 5.0, "cpu")
    requests = tuple({"path": str(path)} for path in (tmp_path / "bad.jpg", good, tmp_path / "gone.png"))
    sources = [EngineSource("onnx_fp32", export)]
    figures = measure_engines(sources, BenchImages("files", requests), plan)
    assert figures.num_images == 1
    assert figures.engines[0].whole_ms is not None
    with pytest.raises(DataError, match="None of the images"):
        measure_engines(sources, BenchImages("files", (requests[0], requests[2])), plan)


def test_nothing_to_measure_is_an_error_with_every_reason(tmp_path: Path) -> None:
    with pytest.raises(FovealError, match="No engine") as failed:
        measure_engines([EngineSource("onnx_fp32", tmp_path)], NOISE, BenchPlan((1,), (1,), 6, 1.0, "cpu"))
    assert any("no exported model" in problem for problem in failed.value.problems)
