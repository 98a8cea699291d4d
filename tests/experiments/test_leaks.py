"""Training takes part: copies across splits are told, left out or refused, and no drawn split ever parts them."""

import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import foveal
from foveal.auditing.leak_policy import LEFT_OUT
from foveal.cli import app
from foveal.data.manifest import Manifest
from foveal.errors import DataError, InterruptedRunError
from foveal.files import sha256_file
from foveal.training import fit
from small_runs import TINY, columns_of, events, flags
from textured import COPIES, encoded, pictures

COPIED = {
    "test/cat/exact.jpg": 0,
    "test/dog/mirrored.jpg": 1,
    "test/dog/resized.jpg": 2,
    "val/cat/turned by 90°.jpg": 3,
}
"""Planted copies, and of which of the training images below they are."""
NUM = {"train": 12, "val": 5, "test": 6}
PLAIN = (*TINY, "train.epochs=1")

_made: dict[str, Path] = {}


def planted(root: Path) -> Path:
    """Two classes in given splits; test/cat has the bytes of a training image, the others other views of one."""
    images, rng = iter(pictures(60, seed=8, side_px=64)), np.random.default_rng(0)
    originals: dict[str, list[Image.Image]] = {"cat": [], "dog": []}
    for split, number in NUM.items():
        for label, kept in originals.items():
            (root / split / label).mkdir(parents=True)
            for at in range(number):
                image = next(images)
                kept += [image] if split == "train" else []
                (root / split / label / f"{at}.jpg").write_bytes(encoded(image))
    for path, at in COPIED.items():
        label, kind = Path(path).parent.name, Path(path).stem
        if kind == "exact":
            (root / path).write_bytes((root / "train" / label / f"{at}.jpg").read_bytes())
        else:
            (root / path).write_bytes(encoded(COPIES[kind](originals[label][at], rng)))
    return root


@pytest.fixture
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if "data" not in _made:
        _made["data"] = planted(tmp_path_factory.mktemp("planted") / "data")
    return _made["data"]


def trained(data: Path, name: str, *overrides: str) -> Path:
    """A run with these settings, made once."""
    if name not in _made:
        _made[name] = foveal.train(data, data.parent / name, overrides=[*PLAIN, *overrides]).run
    return _made[name]


def metrics(run: Path, split: str = "test") -> dict[str, Any]:
    return json.loads((run / "evaluation" / split / "metrics.json").read_text(encoding="utf-8"))


def groups(run: Path) -> dict[str, str | None]:
    manifest = Manifest.read(run / "manifest.parquet")
    return dict(zip(manifest.column("path"), manifest.column("group"), strict=True))


def test_reported_leaks_are_told_counted_and_in_the_report(data: Path) -> None:
    run = trained(data, "reported")
    told = [event["message"] for event in events(run, "leaks")]
    assert len(told) == 1
    assert "1 of 11 in val, 3 of 15 in test" in told[0]
    found = metrics(run)
    assert found["num_images"] == 15
    assert found["leakage"]["num_test_images_with_siblings_in_train"] == 3
    assert metrics(run, "val")["leakage"]["num_test_images_with_siblings_in_train"] == 1
    rows = columns_of(run / "evaluation" / "test" / "predictions.parquet")
    is_right = rows["predicted"] == rows["label"]
    leaked = np.isin(rows["path"], list(COPIED))
    assert leaked.sum() == 3
    assert found["accuracy"] == pytest.approx(is_right.mean())
    assert found["leakage"]["accuracy_without_them"] == pytest.approx(is_right[~leaked].mean())
    by_path = groups(run)
    for path, at in COPIED.items():
        assert by_path[path] is not None
        assert by_path[path] == by_path[f"train/{Path(path).parent.name}/{at}.jpg"]
    assert len({group for group in by_path.values() if group}) == len(COPIED)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "3 test images are copies of training images or of their groups" in page
    assert "were searched for, too" in page


def test_dropped_leaks_leave_test_whole_and_without_siblings(data: Path) -> None:
    run = trained(data, "dropped", "data.leaks=drop")
    manifest = Manifest.read(run / "manifest.parquet")
    reasons = {
        path: reason for path, reason in zip(manifest.column("path"), manifest.column("reason"), strict=True) if reason
    }
    assert reasons == {
        f"train/{Path(path).parent.name}/{at}.jpg": f"{LEFT_OUT} {path.split('/')[0]}" for path, at in COPIED.items()
    }
    assert (manifest.column("status") == "quarantined").sum() == len(COPIED)
    found = metrics(run)
    assert (found["num_images"], len(manifest.of_split("train")), len(manifest.of_split("val"))) == (15, 20, 11)
    assert found["leakage"]["num_test_images_with_siblings_in_train"] == 0
    assert found["leakage"]["accuracy_without_them"] == found["accuracy"]
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "No test image has a copy in training: 4 images were left out" in page


def test_refused_leaks_end_it_before_any_training(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = CliRunner().invoke(app, ["train", str(data), "--out", str(out), *flags("data.leaks=error")])
    assert (done.exit_code, done.stdout) == (1, "")
    assert "Traceback" not in done.stderr
    told = " ".join(done.stderr.split())
    assert "1 of 11 in val, 3 of 15 in test" in told
    for path in COPIED:
        assert path in told
    assert "data.leaks=drop" in told
    assert not (out / "config.yaml").exists()
    assert not (out / "metrics.csv").exists()
    assert not list(out.glob("checkpoints/*.ckpt"))


def test_a_split_that_is_drawn_keeps_copies_on_one_side(tmp_path: Path) -> None:
    rng, root = np.random.default_rng(1), tmp_path / "data"
    images, kinds = pictures(30, seed=9, side_px=64), list(COPIES)
    family: dict[str, int] = {}
    for at, image in enumerate(images):
        label = "cat" if at % 2 else "dog"
        (root / label).mkdir(parents=True, exist_ok=True)
        for number, kind in enumerate(["", *(kinds[(3 * at + each) % len(kinds)] for each in range(at % 3))]):
            name = f"{rng.integers(1 << 40):x}.jpg"  # a name that tells nothing
            (root / label / name).write_bytes(encoded(COPIES[kind](image, rng) if number else image))
            family[f"{label}/{name}"] = at
    run = foveal.train(root, tmp_path / "run", overrides=[*PLAIN, "seed=3", "data.leaks=error"]).run
    manifest = Manifest.read(run / "manifest.parquet")
    sides: dict[int, set[tuple[str, str | None]]] = {}
    for path, split, group in zip(*(manifest.column(name) for name in ("path", "split", "group")), strict=True):
        sides.setdefault(family[path], set()).add((split, group))
    assert all(len(found) == 1 for found in sides.values()), sides
    assert len({next(iter(found))[0] for found in sides.values()}) == 3
    has_group = [at for at, found in sides.items() if next(iter(found))[1] is not None]
    assert has_group == [at for at in sides if at % 3]
    assert metrics(run)["leakage"]["num_test_images_with_siblings_in_train"] == 0
    assert events(run, "leaks") == []


def test_where_near_duplicates_are_not_searched_only_the_same_bytes_count(data: Path) -> None:
    run = trained(data, "by bytes", "audit.near_duplicates=false")
    assert metrics(run)["leakage"]["num_test_images_with_siblings_in_train"] == 1
    assert metrics(run, "val")["leakage"]["num_test_images_with_siblings_in_train"] == 0
    assert "were not searched for" in (run / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["reported", "dropped"])
def test_an_interrupted_run_goes_on_to_the_same_weights(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    policy = {"reported": "data.leaks=report", "dropped": "data.leaks=drop"}[name]
    whole, out = trained(data, name, policy), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(fit._Loop, "train_step", interrupting(fit._Loop.train_step))
        with pytest.raises(InterruptedRunError):
            foveal.train(data, out, overrides=[*PLAIN, policy])
    before = (out / "manifest.parquet").read_bytes()
    done = foveal.train(out=out, resume=True)
    assert (out / "manifest.parquet").read_bytes() == before
    assert Manifest.read(out / "manifest.parquet").table.equals(Manifest.read(whole / "manifest.parquet").table)
    names = ("bundle/model.safetensors", "evaluation/test/predictions.parquet")
    assert [sha256_file(out / each) for each in names] == [sha256_file(whole / each) for each in names]
    assert metrics(out)["leakage"] == metrics(whole)["leakage"]
    assert done.metrics["test"].leakage is not None
    assert len(events(out, "leaks")) == 1


def interrupting(step: Callable[..., Any]) -> Callable[..., Any]:
    """The step, with Ctrl-C after the first."""
    done: list[int] = []

    def called(*args: Any, **more: Any) -> Any:
        result = step(*args, **more)
        if not done:
            done.append(1)
            os.kill(os.getpid(), signal.SIGINT)
        return result

    return called


def test_a_drop_that_would_empty_a_class_is_refused(tmp_path: Path) -> None:
    images = pictures(16, seed=3, side_px=64)
    rows: Sequence[tuple[str, int]] = [
        *((f"train/cat/{at}", at) for at in range(3)),
        *((f"test/cat/{at}", at) for at in range(3)),
        *((f"train/dog/{at}", at) for at in range(3, 8)),
        *((f"test/dog/{at}", at) for at in range(8, 11)),
        *((f"val/{label}/{at}", at) for at in range(11, 16) for label in ("cat", "dog") if at % 2 == (label == "cat")),
    ]
    for path, at in rows:
        file = tmp_path / "data" / f"{path}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        copy = COPIES["mirrored"](images[at], np.random.default_rng(0)) if path.startswith("test/cat") else images[at]
        file.write_bytes(encoded(copy))
    with pytest.raises(DataError, match="leaves nothing of some classes") as caught:
        foveal.train(tmp_path / "data", tmp_path / "run", overrides=[*PLAIN, "data.leaks=drop"])
    assert caught.value.problems == ("class 'cat' in train: 0 of 3",)
    assert not (tmp_path / "run" / "config.yaml").exists()
