"""Data that many trainings share: read and decoded once, and each run of an experiment begun once."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from foveal.config import load
from foveal.errors import ConfigError, DataError, FovealError
from foveal.experiments.shared_data import SharedData, runs_in
from foveal.experiments.sub_run import train_in
from foveal.experiments.summary import mean_and_std, metrics_row
from foveal.metrics import SplitMetrics
from foveal.progress import Silence
from foveal.run_folder import ExperimentFolder
from foveal.training.config import Config
from small_runs import TINY, events

MakeImages = Callable[..., Path]


def tiny(*overrides: str) -> Config:
    return load(Config, None, (*TINY, "train.epochs=1", *overrides))


@pytest.fixture
def folder(tmp_path: Path) -> ExperimentFolder:
    made = ExperimentFolder(tmp_path / "experiment")
    made.prepare()
    return made


@pytest.fixture
def images(make_images: MakeImages, tmp_path: Path) -> Path:
    return make_images(tmp_path / "images", ("a", "b"), num_per_class=20)


def test_nothing_is_decoded_twice(images: Path, folder: ExperimentFolder) -> None:
    shared = SharedData.prepare(images, tiny(), folder, Silence())
    for config in (tiny("optim.lr=0.02"), tiny("seed=3"), tiny("train.epochs=2")):
        settled = shared.settled(config)
        assert settled.source is shared.settled(tiny()).source
        assert settled.manifest is shared.manifest
    larger = shared.settled(tiny("data.image_size=48"))
    assert larger.source[0].shape[0] > shared.settled(tiny()).source[0].shape[0]
    SharedData.prepare(images, tiny(), folder, Silence())
    decoded = [event["num_decoded"] for event in events(folder.path, "decode")]
    assert decoded == [40, 0]


def test_the_split_stays_when_data_are_taken_up_again(
    images: Path, folder: ExperimentFolder, make_images: MakeImages
) -> None:
    before = SharedData.prepare(images, tiny(), folder, Silence()).manifest
    make_images(images / "c", ("d",), num_per_class=3)  # new files, which are of no concern any more
    again = SharedData.prepare(images, tiny(), folder, Silence()).manifest
    assert again.column("path").tolist() == before.column("path").tolist()
    assert again.column("split").tolist() == before.column("split").tolist()
    victim = next(path for path in sorted((images / "a").iterdir()))
    victim.write_bytes(b"no image")
    with pytest.raises(DataError, match="1 of 40 samples have changed"):
        SharedData.prepare(images, tiny(), folder, Silence())


def test_rows_are_renumbered_with_their_pixels(images: Path, folder: ExperimentFolder) -> None:
    shared = SharedData.prepare(images, tiny(), folder, Silence())
    rows = shared.manifest.of_split("train")[::-2].copy()
    settled = shared.settled(tiny(), rows=rows)
    assert len(settled.manifest) == len(rows) == len(settled.source)
    assert settled.manifest.column("path").tolist() == shared.manifest.column("path")[rows].tolist()
    whole = shared.settled(tiny()).source
    assert all(np.array_equal(settled.source[number], whole[row]) for number, row in enumerate(rows.tolist()))


def test_a_run_is_done_once_and_gone_on_with(images: Path, folder: ExperimentFolder) -> None:
    shared = SharedData.prepare(images, tiny(), folder, Silence())
    run, settled = folder.run("first"), shared.settled(tiny("train.epochs=3"))
    seen: list[int] = []

    def ended(row: object) -> None:
        assert isinstance(row, dict)
        seen.append(row["epoch"])
        if row["epoch"] == 2 and len(seen) == 2:
            raise FovealError("enough for now")

    with pytest.raises(FovealError, match="enough for now"):
        train_in(run, settled, Silence(), splits=("val",), after_epoch=ended)
    outcome = train_in(run, settled, Silence(), splits=("val",), after_epoch=ended)
    assert seen == [1, 2, 3]
    assert outcome.metrics.keys() == {"val"}
    assert "test" not in json.loads(run.looks.read_text())
    stamp = run.metrics.stat().st_mtime_ns
    assert train_in(run, settled, Silence(), splits=("val",)).metrics == outcome.metrics
    assert run.metrics.stat().st_mtime_ns == stamp
    with pytest.raises(ConfigError, match="begun with another configuration"):
        train_in(run, shared.settled(tiny("optim.lr=0.5")), Silence(), splits=("val",))
    assert runs_in(folder.path) == [run.path]


def test_means_are_over_all_rows_or_none(trained: Path) -> None:
    metrics = SplitMetrics.read(trained / "evaluation" / "test" / "metrics.json")
    rows = [metrics_row("a", metrics, seconds=1.0), metrics_row("b", metrics, seconds=4.0)]
    rows[1]["accuracy"] = 0.25
    rows[1]["macro_f1"] = None
    mean, std = mean_and_std(rows)
    assert mean["accuracy"] == pytest.approx((rows[0]["accuracy"] + 0.25) / 2)
    assert std["seconds"] == pytest.approx(np.std([1.0, 4.0], ddof=1))
    assert mean["macro_f1"] is None
    assert "name" not in mean
    assert "confusion_matrix" not in mean
    assert mean_and_std(rows[:1])[1]["accuracy"] is None
    assert mean_and_std([]) == ({}, {})
