"""What a training takes: the peak since its start, of children too, and advice that fits the figures."""

import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
import torch

from foveal.config import load
from foveal.training import resources
from foveal.training.config import Config, ResolvedConfig
from foveal.training.resolve import Facts, resolve

CPU = torch.device("cpu")


def config(*overrides: str) -> ResolvedConfig:
    base = ("model.name=test_resnet", "model.weights=none", "data.image_size=32", "train.device=cpu")
    return resolve(load(Config, None, (*base, "train.precision=fp32", *overrides)), Facts("folder", 900, 1000, 32, 1.0))


def test_the_peak_is_that_of_what_was_held_for_a_moment() -> None:
    watched = resources.Resources(CPU)
    before = watched.peak_ram_mib()
    assert before is not None
    assert before > 50.0
    held = np.ones(400 << 17)  # 400 MiB, and gone before anybody samples
    assert held.sum() > 0
    if sys.platform.startswith("linux"):
        watched.sample()
    del held
    after = watched.peak_ram_mib()
    assert after is not None
    assert after >= before + 300.0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells of children")
def test_memory_of_child_processes_counts() -> None:
    watched = resources.Resources(CPU)
    before = resources.resident_bytes()
    code = "held = bytearray(300 << 20); print('held', flush=True); import time; time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        now = resources.resident_bytes()
        watched.sample()
    finally:
        child.kill()
        child.communicate()
    assert before is not None
    assert now is not None
    assert now - before > 250 << 20
    assert watched.to_dict()["peak_ram_mib"] > before / resources.MIB + 250.0


def test_the_share_of_waiting_is_of_all_steps_and_looking_is_cheap() -> None:
    watched = resources.Resources(CPU)
    start = time.thread_time()
    for _ in range(2000):
        watched.step(waited_seconds=0.25, seconds=1.0)
    assert time.thread_time() - start < 0.5
    found = watched.to_dict()
    assert found["data_wait_share"] == 0.25
    assert found["peak_gpu_mib"] is None
    assert found["gpu_mib"] is None
    assert found["ram_mib"] > found["peak_ram_mib"]
    assert resources.Resources(CPU).to_dict()["data_wait_share"] is None


def usage(**figures: Any) -> dict[str, Any]:
    calm = {"data_wait_share": 0.02, "peak_ram_mib": 900.0, "ram_mib": 8000.0, "peak_gpu_mib": None, "gpu_mib": None}
    return {**calm, **figures}


def test_nothing_is_advised_where_all_is_well() -> None:
    assert resources.advice(usage(), config(), num_train=900) == []
    assert resources.advice(usage(peak_gpu_mib=6000.0, gpu_mib=8000.0), config(), num_train=900) == []
    assert resources.advice(dict.fromkeys(usage()), config(), num_train=900) == []


def test_waiting_is_mended_by_workers_by_the_store_or_by_a_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "num_cpus", lambda: 8)
    waits = usage(data_wait_share=0.18)
    (few,) = resources.advice(waits, config("data.store=off", "data.num_workers=2"), num_train=900)
    assert few.startswith("18% of the time")
    assert "raise data.num_workers (it is 2)" in few
    assert "data.store=on" in few
    (many,) = resources.advice(waits, config("data.store=off", "data.num_workers=8"), num_train=900)
    assert "num_workers" not in many
    assert "data.store=on" in many
    (stored,) = resources.advice(waits, config("data.store=on", "data.num_workers=8"), num_train=900)
    assert "data.store" not in stored
    assert "FOVEAL_CACHE_DIR" in stored


def test_memory_says_whether_the_batch_may_grow_or_should_shrink() -> None:
    roomy = usage(peak_gpu_mib=2400.0, gpu_mib=8000.0)
    (larger,) = resources.advice(roomy, config("train.batch_size=64"), num_train=900)
    assert "peaked at 30%" in larger
    assert "(128, say" in larger
    # A batch cannot be larger than all there is.
    assert resources.advice(roomy, config("train.batch_size=64"), num_train=100) == []
    (tight,) = resources.advice(usage(peak_gpu_mib=7900.0, gpu_mib=8000.0), config(), num_train=900)
    assert "smaller train.batch_size" in tight
    (full,) = resources.advice(usage(peak_ram_mib=7600.0), config(), num_train=900)
    assert "7.4 of 7.8 GiB" in full
