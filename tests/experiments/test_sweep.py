"""Sweeps: what is gone through, that nothing is done twice, and that validation alone chooses."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from foveal.api.sweep import plan_sweep, sweep
from foveal.data.manifest import Manifest
from foveal.errors import ConfigError, DataError
from foveal.experiments.extend.cost import Answers
from foveal.experiments.sweep.axes import Point, axes_of, folder_names, parse_axis, parse_seeds, points_of
from foveal.experiments.sweep.result import Trained, Value
from foveal.experiments.sweep.sweeping import compare_values, rows_with
from foveal.metrics import SplitMetrics
from foveal.progress import Silence
from foveal.run_folder import RunFolder
from foveal.training.config import Config
from small_runs import TINY, columns_of

MakeImages = Callable[..., Path]
QUICK = [*TINY, "train.epochs=1", "seed=5"]


class KilledError(BaseException):
    """What no code of foveal catches."""


class Killer(Silence):
    """Keeps what is said, and ends everything at the first line that begins so."""

    def __init__(self, beginning: str = "nothing at all") -> None:
        self.beginning, self.lines = beginning, list[str]()

    def say(self, text: str) -> None:
        self.lines.append(text)
        if text.startswith(self.beginning):
            raise KilledError(text)


def test_values_are_read_as_set_reads_them_and_lists_stand_in_brackets() -> None:
    assert parse_axis("optim.lr=1e-4,0.001").values == (1e-4, 0.001)
    assert parse_axis("model.head.layers=[512],[256,128]").values == ([512], [256, 128])
    assert parse_axis("model.name=resnet18,convnext_tiny").values == ("resnet18", "convnext_tiny")
    assert parse_axis("train.ema=null,0.99").values == (None, 0.99)
    assert parse_axis("train_images=100, 300,all").values == (100, 300, "all")
    assert parse_seeds("0, 3,1") == (0, 3, 1)
    for wrong in ("optim.lr", "optim.lr=", "=1,2"):
        with pytest.raises(ConfigError, match=r"expected section\.key"):
            parse_axis(wrong)
    for wrong in ("a", "1,1", "-1", ""):
        with pytest.raises(ConfigError, match="--seeds"):
            parse_seeds(wrong)


def test_all_that_is_wrong_with_a_sweep_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as refused:
        axes_of(["seed=1,2", "data.val_fraction=0.1,0.2", "optim.lr=1,1.0", "train_images=0,many", "split.folds=2,3"])
    told = "\n".join(refused.value.problems)
    for part in ("--seeds", "keeps one split", "1 is given twice", "came 0, many", "changes nothing about a training"):
        assert part in told
    with pytest.raises(ConfigError) as unknown:
        points_of(axes_of({"train.epoch": [1], "train.batch_size": [8, -1], "optim.name": ["adamw"]}), Config())
    assert "train.epoch: no such key; did you mean train.epochs?" in unknown.value.problems
    assert any(problem.startswith("train.batch_size") for problem in unknown.value.problems)
    assert axes_of("optim.lr=1,2") == axes_of({"optim.lr": [1, 2]})
    assert axes_of({"optim.lr": 0.1, "model.name": "resnet18"})[1].values == ("resnet18",)
    with pytest.raises(ConfigError) as empty:
        axes_of({"optim.lr": []})
    assert empty.value.problems == ("optim.lr: has no value to train with",)
    with pytest.raises(ConfigError) as no_net:  # before the first of the trainings, not at the second
        points_of(axes_of(["model.name=small_cnn,nosuchnet", "optim.lr=1,fast"]), Config())
    assert len(no_net.value.problems) >= 2
    assert "'nosuchnet' is not a model" in no_net.value.problems[0]


def test_every_combination_comes_once_under_a_name_of_its_own() -> None:
    axes = axes_of({"optim.lr": [0.001, 0.01], "model.head.layers": [[8], [8, 4]], "train_images": [10, "all"]})
    base = Config.model_validate({"model": {"head": {"kind": "dense", "layers": [4]}}, "optim": {"name": "sgd"}})
    points = points_of(axes, base)
    assert len(points) == 8
    assert [point.config.optim.lr for point in points] == [0.001] * 4 + [0.01] * 4
    assert {point.config.model.head.layers for point in points} == {(8,), (8, 4)}
    assert all(point.config.optim.name == "sgd" and point.config.model.head.kind == "dense" for point in points)
    assert [point.num_train for point in points[:2]] == [10, None]
    names = folder_names(points, (0, 1))
    assert len(set(names.values())) == 16
    assert names[0, 1] == "lr-0.001--layers-_8_--train_images-10--seed-1"


def test_learning_curve_subsets_are_nested_stratified_and_leave_val_and_test_alone() -> None:
    labels = ["a"] * 120 + ["b"] * 60 + ["c"] * 20
    splits = [("train", "train", "train", "val", "test")[number % 5] for number in range(200)]
    manifest = Manifest.build(Path("/x"), path=[f"{n}.png" for n in range(200)], label=labels, split=splits)
    held_out = set(manifest.of_split("val").tolist()) | set(manifest.of_split("test").tolist())
    drawn = []
    for size in (20, 40, 80):
        rows = rows_with(manifest, size, seed=1)
        assert rows is not None
        assert held_out <= set(rows.tolist())
        chosen = set(rows.tolist()) - held_out
        assert chosen <= set(manifest.of_split("train").tolist())
        counts = [sum(labels[row] == name for row in chosen) for name in "abc"]
        assert counts == [6 * size // 10, 3 * size // 10, size // 10]
        drawn.append(chosen)
    assert drawn[0] < drawn[1] < drawn[2]
    assert set(rows_with(manifest, 20, seed=2).tolist()) - held_out != drawn[0]  # type: ignore[union-attr]
    assert rows_with(manifest, 120, seed=1) is None
    with pytest.raises(DataError, match="at least 3"):
        rows_with(manifest, 2, seed=1)


def test_a_killed_sweep_goes_on_and_does_nothing_twice(make_images: MakeImages, tmp_path: Path) -> None:
    images, out = make_images(tmp_path / "some images", num_per_class=14), tmp_path / "swept here"
    wish = {"sweep": ["optim.lr=1e-5,0.01"], "seeds": (0, 1), "overrides": QUICK}
    with pytest.raises(KilledError):
        sweep(images, out, **wish, progress=Killer("Run 3 of 4: optim.lr=0.01, seed 0."))  # type: ignore[arg-type]
    assert sorted(path.name for path in (out / "runs").iterdir()) == ["lr-1e-05--seed-0", "lr-1e-05--seed-1"]
    times = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*.safetensors")}
    done = sweep(images, out, **wish, progress=Killer())  # type: ignore[arg-type]
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    assert len(done.rows) == 4
    decoded = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines() if '"decode"' in line]
    assert [event["num_decoded"] for event in decoded] == [42, 0]
    _check_figures(done.rows, done.values, out)
    best = max(done.values, key=lambda row: row["mean"]["val_macro_f1"])
    if best["mean"]["val_macro_f1"] != min(row["mean"]["val_macro_f1"] for row in done.values):
        assert done.best == best["value"]
    assert done.sentences[0].startswith("Best by validation: optim.lr=")
    lr = done.best["optim.lr"]
    assert f"It is the {'largest' if lr == 0.01 else 'smallest'} optim.lr of the sweep" in done.sentences[-2]
    assert "each of the 4 runs was measured on the test split, which is counted as a look" in done.sentences[-1]
    looks = json.loads((out / "runs" / "lr-0.01--seed-1" / "evaluation" / "looks.json").read_text())
    assert len(looks["test"]) == 1
    # With a further value, the same folder goes on; the split and the other runs stay.
    more = sweep(images, out, **{**wish, "sweep": ["optim.lr=1e-5,0.01,0.1"]})  # type: ignore[arg-type]
    assert len(more.rows) == 6
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())
    with pytest.raises(ConfigError, match="begun with other settings"):
        sweep(images, out, **{**wish, "overrides": [*QUICK, "train.epochs=2"]})  # type: ignore[arg-type]


def _check_figures(rows: list[dict], values: list[dict], out: Path) -> None:  # type: ignore[type-arg]
    """The summary says what the runs' own files say, and all of them have one split."""
    manifests = [Manifest.read(path / "manifest.parquet") for path in sorted((out / "runs").iterdir())]
    assert len({manifest.fingerprint() for manifest in manifests}) == 1
    for row in rows:
        test = SplitMetrics.read(out / row["run"] / "evaluation" / "test" / "metrics.json")
        val = columns_of(out / row["run"] / "evaluation" / "val" / "predictions.parquet")
        assert row["accuracy"] == pytest.approx(test.accuracy)
        assert row["val_accuracy"] == pytest.approx(np.mean(val["label"] == val["predicted"]))
        assert row["train_seconds"] > 0
    for value in values:
        own = [row for row in rows if row["value"] == value["value"]]
        assert value["mean"]["accuracy"] == pytest.approx(np.mean([row["accuracy"] for row in own]))
        assert value["std"]["accuracy"] == pytest.approx(np.std([row["accuracy"] for row in own], ddof=1))


@pytest.mark.parametrize(("rights", "verdict"), [((0.9, 0.85), "better"), ((0.95, 0.45), "undecided")])
def test_a_verdict_over_seeds_takes_the_agreement_of_each(
    rights: tuple[float, float], verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interval leaves out 0 in both cases, for it knows of other images and not of other seeds."""
    labels = ["a", "b"] * 100

    def answers(share_right: float) -> Answers:
        said = [label if at < 200 * share_right else {"a": "b", "b": "a"}[label] for at, label in enumerate(labels)]
        rows = np.array([[0.9, 0.1] if name == "a" else [0.1, 0.9] for name in said])
        return Answers([str(at) for at in range(200)], labels, ("a", "b"), rows)

    point = Point({"optim.lr": 1.0}, Config(), None)
    given = {Path(f"{value}{seed}"): answers(share) for value, shares in enumerate([(0.5, 0.5), rights])
             for seed, share in enumerate(shares)}  # fmt: skip
    monkeypatch.setattr("foveal.experiments.sweep.sweeping._answers", lambda trained: given[trained.run.path])
    values = [
        Value(point, tuple(Trained(0, seed, RunFolder(Path(f"{at}{seed}")), None, "", 1, 0.0) for seed in range(2)))
        for at in range(2)
    ]
    found = compare_values(*values, None, seed=0)
    assert found.intervals["accuracy"][0] > 0
    assert found.verdict == verdict


def test_a_learning_curve_trains_on_so_many_and_tests_on_the_same(make_images: MakeImages, tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", num_per_class=14)
    done = sweep(images, tmp_path / "curve", sweep={"train_images": [9, "all"]}, overrides=QUICK)
    runs = [tmp_path / "curve" / row["run"] for row in done.rows]
    small, whole = (Manifest.read(run / "manifest.parquet") for run in runs)
    assert [row["num_train"] for row in done.rows] == [9, len(whole.of_split("train"))]
    assert len(small.of_split("train")) == 9
    for split in ("val", "test"):
        assert (
            small.column("sample_id")[small.of_split(split)].tolist()  # type: ignore[arg-type]
            == whole.column("sample_id")[whole.of_split(split)].tolist()  # type: ignore[arg-type]
        )
    assert "training images validation accuracy changes by" in done.sentences[0]
    assert "From 9 to" in done.sentences[0]
    assert "With one seed nobody knows" in done.sentences[-1]
    assert "train_images=all" in (tmp_path / "curve" / "report.html").read_text()
    with pytest.raises(DataError, match="asks for more"):
        sweep(images, tmp_path / "much", sweep={"train_images": [9, 900]}, overrides=QUICK)


def test_seeds_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    for seeds in (["a"], [-1], [0.5], [1, 1], []):
        with pytest.raises(ConfigError, match="different whole numbers"):
            plan_sweep(tmp_path, sweep={"optim.lr": [1, 2]}, seeds=seeds)  # type: ignore[arg-type]


def test_a_plan_writes_nothing(make_images: MakeImages, tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", num_per_class=8)
    planned = plan_sweep(images, tmp_path / "out", sweep=["train.batch_size=4,8"], seeds=(1, 2), overrides=QUICK)
    assert planned.to_dict()["num_runs"] == 4
    assert planned.names == ("train.batch_size=4", "train.batch_size=8")
    assert not (tmp_path / "out").exists()
