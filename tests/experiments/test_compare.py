"""`foveal compare`: its written figures against scikit-learn and statsmodels, and what it may and may not compare."""

import csv
import json
import shutil
from collections.abc import Callable
from html import unescape
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import pytest
from sklearn.metrics import accuracy_score, f1_score, log_loss, precision_score, recall_score
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from foveal.api.compare import compare, plan_comparison
from foveal.api.train import train
from foveal.data.manifest import Manifest
from foveal.errors import ArtifactError, ConfigError, DataError
from foveal.evaluation.drawing import draw_svg
from foveal.experiments.compare.models import find_models
from foveal.experiments.compare.result import MAIN_COLUMNS
from foveal.files import read_json, write_json
from foveal.metrics import SplitMetrics
from foveal.model.bundle import read_bundle
from foveal.model.ensemble_bundle import write_ensemble
from small_runs import TINY, copy_of

Runs = dict[str, Path]
SPLIT = ("data.val_fraction=0.2", "data.test_fraction=0.4")
"""Of 90 images, so that enough are left to tell models apart."""


@pytest.fixture(scope="session")
def _made(make_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs on one manifest: two that differ by their seed, one of another network, and one that learnt nothing."""
    with pytest.MonkeyPatch.context() as patch:
        empty = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"></svg>'
        for module in ("foveal.evaluation.plots", "foveal.report.figures"):
            patch.setattr(f"{module}.draw_svg", lambda *_, **__: empty)
        folder = tmp_path_factory.mktemp("compared")
        images = make_images(folder / "images", ("2", "10", "b"), num_per_class=30)
        settings = {
            "first": ["seed=1"],
            "other seed": ["seed=2"],
            "other net": ["seed=1", "model.name=test_vit", "data.image_size=32"],
            "poor": ["seed=1", "train.epochs=1", "optim.lr=1e-6"],
        }
        data: Path = images
        for name, changes in settings.items():
            done = train(data, folder / name, overrides=[*TINY, *SPLIT, "train.epochs=5", *changes])
            data = done.run / "manifest.parquet"
        return {name: folder / name for name in settings}


@pytest.fixture
def runs(_made: Runs, tmp_path: Path) -> Runs:
    """Copies of these, a test's own to change."""
    return {name: copy_of(run, tmp_path / "runs" / name) for name, run in _made.items()}


@pytest.fixture(autouse=True)
def _quick_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foveal.experiments.compare.costs.MAX_ROUNDS", 10)


@pytest.fixture
def _drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foveal.evaluation.plots.draw_svg", draw_svg)


def predictions(run: Path, split: str = "test") -> tuple[np.ndarray, np.ndarray, list[str]]:
    """True labels by number, probabilities, and classes, in the order of the sample ids."""
    table = parquet.read_table(run / "evaluation" / split / "predictions.parquet").sort_by("sample_id")
    names = [name.removeprefix("p_") for name in table.column_names if name.startswith("p_")]
    rows = np.stack([table[f"p_{name}"].to_numpy() for name in names], axis=1)
    return np.array([names.index(label) for label in table["label"].to_pylist()]), rows, names


def test_the_written_figures_are_those_of_scikit_learn_and_statsmodels(runs: Runs, tmp_path: Path) -> None:
    looks = {name: (run / "evaluation" / "looks.json").read_bytes() for name, run in runs.items()}
    done = compare([*runs.values()], out=tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    rows = {row["name"]: row for row in summary["rows"]}
    assert list(rows) == list(runs)
    right = {}
    for name, run in runs.items():
        labels, probabilities, names = predictions(run)
        guess, row = probabilities.argmax(axis=1), rows[name]
        right[name] = guess == labels
        assert row["accuracy"] == pytest.approx(accuracy_score(labels, guess))
        assert row["macro_f1"] == pytest.approx(f1_score(labels, guess, average="macro"))
        assert row["macro_precision"] == pytest.approx(precision_score(labels, guess, average="macro", zero_division=0))
        assert row["macro_recall"] == pytest.approx(recall_score(labels, guess, average="macro"))
        assert row["log_loss"] == pytest.approx(log_loss(labels, probabilities, labels=range(len(names))))
        assert (row["num_right"], row["num_wrong"]) == (right[name].sum(), (~right[name]).sum())
        for split in ("train", "val", "test"):
            metrics = SplitMetrics.read(run / "evaluation" / split / "metrics.json")
            assert (row[f"{split}_loss"], row[f"{split}_accuracy"]) == (metrics.log_loss, metrics.accuracy)
        timings = read_json(run / "timings.json")
        assert row["train_wall_seconds"] == timings["train"]["wall_seconds"]
        assert row["total_cpu_seconds"] == pytest.approx(sum(stage["cpu_seconds"] for stage in timings.values()))
        told = (run / "model.txt").read_text()
        assert f"{row['num_parameters']:,}" in told
        assert f"{row['num_macs']:,} for one image" in told
        files = sum(path.stat().st_size for path in (run / "bundle").iterdir())
        assert row["bundle_mib"] == pytest.approx(files / 2**20, abs=1e-3)
    found = summary["comparisons"]
    expected = [pair for pair in combinations(runs, 2) if pair != ("first", "other seed")]  # these repeat each other
    assert [(each["first"], each["second"]) for each in found] == expected
    p_values = []
    for (first, second), each in zip(expected, found, strict=True):
        a, b = int((right[first] & ~right[second]).sum()), int((right[second] & ~right[first]).sum())
        both, neither = int((right[first] & right[second]).sum()), int((~right[first] & ~right[second]).sum())
        assert (each["only_first_right"], each["only_second_right"]) == (a, b)
        assert (each["both_right"], each["neither_right"]) == (both, neither)
        p_values.append(mcnemar([[both, a], [b, neither]], exact=a + b < 25, correction=True).pvalue)
        assert each["mcnemar_p"] == pytest.approx(p_values[-1], abs=1e-12)
        assert each["differences"]["accuracy"] == pytest.approx(right[second].mean() - right[first].mean())
        low, high = each["intervals"]["accuracy"]
        decided = each["adjusted_p"] < 0.05 and not low <= 0 <= high
        assert each["verdict"] == ("undecided" if not decided else "better" if b > a else "worse")
    np.testing.assert_allclose([each["adjusted_p"] for each in found], multipletests(p_values, method="holm")[1])
    assert {each["verdict"] for each in found} == {"undecided", "worse"}
    assert any(
        "poor" in sentence and " is better than poor: " in sentence for sentence in (e["sentence"] for e in found)
    )
    assert looks == {name: (run / "evaluation" / "looks.json").read_bytes() for name, run in runs.items()}
    assert summary["notes"][0].startswith("All predictions are those of earlier evaluations")
    assert done.to_dict()["comparisons"] == found
    assert "cannot be told apart" in done._repr_html_()


def test_repeated_runs_are_recognised_by_their_configuration(runs: Runs, tmp_path: Path) -> None:
    entries = find_models([*runs.values()])
    assert entries[0].group == entries[1].group != ""
    assert entries[2].group == entries[3].group == ""
    done = compare([*runs.values()], out=tmp_path / "out", timing=False)
    (group,) = read_json(tmp_path / "out" / "summary.json")["repeated"]
    assert group["members"] == ["first", "other seed"]
    for key in ("accuracy", "macro_f1", "log_loss", "train_wall_seconds"):
        values = [row[key] for row in done.comparison.rows[:2]]
        assert group["mean"][key] == pytest.approx(np.mean(values))
        assert group["std"][key] == pytest.approx(np.std(values, ddof=1))
    assert "test_resnet: mean of 2 seeds" in done.report.read_text()


def test_costs_are_measured_now_and_the_front_holds_what_nothing_beats(runs: Runs, tmp_path: Path) -> None:
    done = compare([*runs.values()], out=tmp_path / "out", device="cpu")
    rows = done.comparison.rows
    for row in rows:
        assert 0 < row["network_cpu_p50_ms"] <= row["network_cpu_p95_ms"]
        assert row["network_cpu_p50_ms"] < row["latency_cpu_p95_ms"]
        assert row["latency_ms"] == {"p50": pytest.approx(row["latency_cpu_p50_ms"], abs=1e-3),
                                     "p95": pytest.approx(row["latency_cpu_p95_ms"], abs=1e-3)}  # fmt: skip
        assert row["images_per_second_cpu"] > 0
        assert row["latency_gpu_p50_ms"] is None
        assert "GPU" in row["undefined"]["latency_gpu_p50_ms"]
    for row in rows:
        beaten = any(
            other["accuracy"] >= row["accuracy"]
            and other["latency_cpu_p50_ms"] <= row["latency_cpu_p50_ms"]
            and (other["accuracy"], -other["latency_cpu_p50_ms"]) != (row["accuracy"], -row["latency_cpu_p50_ms"])
            for other in rows
        )
        assert (row["name"] in done.comparison.front) == (not beaten)
    with (tmp_path / "out" / "models.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    assert tuple(table[0]) == MAIN_COLUMNS
    assert [float(cells["accuracy"]) for cells in table] == [row["accuracy"] for row in rows]
    assert float(table[0]["accuracy_low"]) == rows[0]["confidence_intervals"]["accuracy"][0]
    assert table[0]["latency_gpu_p50_ms"] == ""
    assert {each["name"] for each in read_json(tmp_path / "out" / "summary.json")["rows"]} == set(runs)
    untimed = compare([*runs.values()], out=tmp_path / "untimed", timing=False)
    assert untimed.comparison.rows[0]["network_cpu_p50_ms"] is None
    assert untimed.comparison.front == []
    assert "Nothing was timed" in untimed.report.read_text()


def test_a_split_without_predictions_is_evaluated_once_and_counted_once(runs: Runs, tmp_path: Path) -> None:
    before = predictions(runs["first"])[1]
    shutil.rmtree(runs["first"] / "evaluation" / "test")
    kept = SplitMetrics.read(runs["poor"] / "evaluation" / "test" / "metrics.json")
    chosen = [runs["first"], runs["poor"]]
    plan = plan_comparison(chosen, out=tmp_path / "out")
    assert (plan.to_evaluate, plan.counted_looks) == (["first"], ["first"])
    assert not (tmp_path / "out").exists()
    for _ in range(2):  # the second time, nothing is looked at again
        done = compare(chosen, out=tmp_path / "out", timing=False)
        looks = read_json(runs["first"] / "evaluation" / "looks.json")["test"]
        assert [look["verb"] for look in looks] == ["train", "compare"]
        assert "Evaluated now" in done.comparison.notes[0]
        assert "first (look 2)" in done.comparison.notes[0]
    table = parquet.read_table(tmp_path / "out" / "evaluation" / "first" / "test" / "predictions.parquet")
    after = np.stack([table.sort_by("sample_id")[f"p_{name}"].to_numpy() for name in ("2", "10", "b")], axis=1)
    np.testing.assert_allclose(after, before, atol=1e-5)
    assert not (runs["first"] / "evaluation" / "test").exists()
    assert done.comparison.metrics["poor"] == kept


def test_different_test_images_are_refused_unless_data_is_given(
    runs: Runs, make_images: Callable[..., Path], tmp_path: Path
) -> None:
    images = Manifest.read(runs["first"] / "manifest.parquet").images_root
    train(images, tmp_path / "apart", overrides=[*TINY, *SPLIT, "seed=5", "train.epochs=1"])
    chosen = [runs["first"], tmp_path / "apart"]
    with pytest.raises(DataError, match="different images") as caught:
        compare(chosen, out=tmp_path / "out", timing=False)
    (problem,) = caught.value.problems
    assert "first on 36 images, apart on 36" in problem
    assert "--data" in caught.value.fix
    assert "foveal split" in caught.value.fix
    new = make_images(tmp_path / "new images", ("2", "10", "b"), num_per_class=8, seed=99)
    done = compare(chosen, data=new, out=tmp_path / "on new")
    assert done.comparison.metrics["first"].num_images == len(done.comparison.aligned) == 24
    assert (
        done.comparison.rows[0]["test_accuracy"]
        == SplitMetrics.read(runs["first"] / "evaluation/test/metrics.json").accuracy
    )
    looks = read_json(runs["first"] / "evaluation" / "looks.json")["test"]
    assert [look["verb"] for look in looks] == ["train"]  # other images are no look at the run's own


def test_on_data_pairs_are_tested_on_what_neither_was_trained_on(runs: Runs, tmp_path: Path) -> None:
    manifest = Manifest.read(runs["first"] / "manifest.parquet")
    done = compare([runs["first"], runs["poor"]], data=manifest.images_root, out=tmp_path / "out", timing=False)
    unseen = len(manifest) - len(manifest.of_split("train"))
    (pair,) = done.comparison.pairs
    assert done.comparison.rows[0]["num_images"] == len(manifest) == 90
    assert pair.paired.num_images == unseen
    told = " ".join(done.comparison.notes)
    assert f"first was trained on {90 - unseen} of these 90 images" in told
    assert f"tested on {unseen} of 90 images" in told
    leakage = done.comparison.metrics["first"].leakage
    assert leakage is not None
    assert leakage.num_test_images_with_siblings_in_train == 90 - unseen
    seen = compare(
        [runs["first"], runs["poor"]],
        data=runs["first"] / "manifest.parquet",
        split="train",
        out=tmp_path / "seen",
        timing=False,
    )
    assert seen.comparison.pairs == []
    assert "not tested" in " ".join(seen.comparison.notes)


def test_bundles_and_votes_by_themselves_take_the_images_of_the_runs_they_are_of(runs: Runs, tmp_path: Path) -> None:
    members = [read_bundle(runs[name] / "bundle") for name in ("first", "other net")]
    vote = write_ensemble(tmp_path / "vote", members, ["a", "b"], vote="soft", weights=[0.5, 0.5])
    alone = Path(shutil.copytree(runs["other seed"] / "bundle", tmp_path / "alone"))
    done = compare([runs["first"], runs["other net"], vote.path, alone], out=tmp_path / "out", timing=False)
    rows = {row["name"]: row for row in done.comparison.rows}
    assert [row["kind"] for row in rows.values()] == ["run", "run", "ensemble", "bundle"]
    assert rows["vote"]["num_parameters"] == rows["first"]["num_parameters"] + rows["other net"]["num_parameters"]
    assert rows["vote"]["num_macs"] == rows["first"]["num_macs"] + rows["other net"]["num_macs"]
    assert rows["vote"]["architecture"] == "vote of test_resnet, test_vit"
    labels, one, _ = predictions(runs["first"])
    mean = (one + predictions(runs["other net"])[1]) / 2
    assert rows["vote"]["accuracy"] == pytest.approx((mean.argmax(axis=1) == labels).mean())
    assert rows["alone"]["accuracy"] == SplitMetrics.read(runs["other seed"] / "evaluation/test/metrics.json").accuracy
    assert rows["alone"]["train_wall_seconds"] is None
    assert (
        "timing" in rows["alone"]["undefined"]["train_wall_seconds"]
        or "times" in rows["alone"]["undefined"]["train_wall_seconds"]
    )
    with pytest.raises(DataError, match="brings no images") as caught:
        compare([alone], out=tmp_path / "none", timing=False)
    assert str(alone) in caught.value.problems[0]


def test_experiments_stand_for_what_they_chose_or_made(runs: Runs, tmp_path: Path) -> None:
    chosen = tmp_path / "probe"
    copy_of(runs["poor"], chosen / "runs" / "knn")
    copy_of(runs["other seed"], chosen / "runs" / "logistic")
    shutil.copytree(runs["other seed"] / "bundle", chosen / "bundle")
    write_json(chosen / "experiment.json", {"verb": "probe"})
    with pytest.raises(ArtifactError, match="Not everything") as caught:
        find_models([chosen])
    assert "has not come to its end" in caught.value.problems[0]
    write_json(chosen / "summary.json", {"verb": "probe", "rows": []})
    write_json(chosen / "timings.json", {"features": {"wall_seconds": 3.0, "cpu_seconds": 6.0}})
    folds = tmp_path / "five folds"
    bundles = []
    for number, name in enumerate(("first", "other seed")):
        bundles.append(read_bundle(copy_of(runs[name], folds / "runs" / f"fold-{number}") / "bundle"))
    write_ensemble(folds / "bundle", bundles, ["fold-0", "fold-1"], vote="soft", weights=[0.5, 0.5])
    shutil.copy(runs["first"] / "manifest.parquet", folds / "manifest.parquet")
    write_json(folds / "experiment.json", {"verb": "crossval"})
    rows = [{"name": f"fold-{n}", "accuracy": 0.9, "kept_aside_accuracy": value} for n, value in enumerate((0.8, 0.9))]
    write_json(folds / "summary.json", {"verb": "crossval", "rows": rows})
    done = compare([runs["poor"], chosen, folds], out=tmp_path / "out", timing=False)
    by_name = {row["name"]: row for row in done.comparison.rows}
    assert [row["kind"] for row in by_name.values()] == ["run", "probe", "crossval"]
    kept = SplitMetrics.read(runs["other seed"] / "evaluation" / "test" / "metrics.json")
    assert by_name["probe"]["accuracy"] == kept.accuracy
    assert (
        by_name["probe"]["train_wall_seconds"]
        == read_json(runs["other seed"] / "timings.json")["train"]["wall_seconds"]
    )
    assert (by_name["probe"]["total_wall_seconds"], by_name["probe"]["total_cpu_seconds"]) == (3.0, 6.0)
    walls = [read_json(runs[name] / "timings.json")["train"]["wall_seconds"] for name in ("first", "other seed")]
    assert by_name["five folds"]["train_wall_seconds"] == pytest.approx(sum(walls), abs=1e-3)
    (repeated,) = done.comparison.repeated
    assert repeated.members == ("fold-0", "fold-1")
    assert repeated.mean["accuracy"] == pytest.approx(0.85)
    assert repeated.std["accuracy"] == pytest.approx(0.1 / np.sqrt(2))
    assert read_json(folds / "evaluation" / "looks.json")["test"][-1]["verb"] == "compare"


def test_names_are_as_short_as_they_can_be_and_faults_come_all_at_once(runs: Runs, tmp_path: Path) -> None:
    same = copy_of(runs["poor"], tmp_path / "elsewhere" / "first")
    names = [entry.name for entry in find_models([runs["first"], same, runs["other net"] / "bundle"])]
    assert names == ["runs/first", "elsewhere/first", "other net"]
    shutil.rmtree(runs["other seed"] / "bundle")
    (tmp_path / "empty").mkdir()
    broken = copy_of(runs["poor"], tmp_path / "broken")
    weights = broken / "bundle" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    export = tmp_path / "export" / "model.onnx"
    export.parent.mkdir()
    export.write_bytes(b"x")
    wrong = [runs["first"], runs["first"] / "bundle", runs["other seed"], tmp_path / "empty", tmp_path / "gone", broken,
             export.parent]  # fmt: skip
    with pytest.raises(ArtifactError, match="Not everything that was named") as caught:
        compare(wrong, out=tmp_path / "out")
    text = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 6
    for word in ("was named before", "an exported model", "has not come to its end", "no such folder", "sha256"):
        assert word in text, word
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="at least one"):
        compare([], out=tmp_path / "out")
    with pytest.raises(ConfigError, match="expected one of train, val, test"):
        compare([runs["first"]], split="tset", out=tmp_path / "out")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="how --data is read"):
        compare([runs["first"]], overrides=["data.columns.label=x"], out=tmp_path / "out")


def test_another_comparison_in_the_folder_is_refused(runs: Runs, tmp_path: Path) -> None:
    compare([runs["first"], runs["poor"]], out=tmp_path / "out", timing=False)
    with pytest.raises(ConfigError, match="other settings"):
        compare([runs["first"], runs["other net"]], out=tmp_path / "out", timing=False)
    done = compare([runs["first"]], out=tmp_path / "out", timing=False, force=True)
    assert done.comparison.pairs == []
    assert done.comparison.headline.startswith("first: ")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="holds no experiment"):
        compare([runs["first"]], out=tmp_path / "mine", timing=False, force=True)


@pytest.mark.usefixtures("_drawn")
def test_the_page_shows_what_was_found(runs: Runs, tmp_path: Path) -> None:
    done = compare([runs["first"], runs["other net"], runs["poor"]], out=tmp_path / "out")
    page = done.report.read_text()
    for pair in done.comparison.pairs:
        assert pair.sentence in unescape(page)
    aligned = done.comparison.aligned
    said = np.stack([aligned.probabilities[name].argmax(axis=1) for name in done.comparison.names])
    number = int((said != said[0]).any(axis=0).sum())
    assert f"do not all say the same of {number} of {len(aligned)} images" in page
    assert page.count("<figure") >= min(number, 24)
    assert page.count("Confusion matrix of") == 3
    assert (tmp_path / "out" / "plots" / "quality_against_latency.svg").is_file()
    assert '<th scope="col">McNemar p</th>' in page


def test_python_refuses_labels_that_differ(runs: Runs, tmp_path: Path) -> None:
    changed = runs["poor"]
    manifest = Manifest.read(changed / "manifest.parquet")
    labels = manifest.column("label")
    row = manifest.of_split("test")[0]
    labels = labels.copy()
    labels[row] = "10" if labels[row] != "10" else "2"
    manifest.with_columns(label=labels).write(changed / "manifest.parquet")
    with pytest.raises(DataError, match="one label for one model and another") as caught:
        compare([runs["first"], changed], out=tmp_path / "out", timing=False)
    assert "10" in caught.value.problems[0]


def test_the_command_prints_the_table_the_sentences_and_json(runs: Runs, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from foveal.cli import app

    words = ["compare", str(runs["first"]), str(runs["poor"]), "--out", str(tmp_path / "out folder"), "--no-timing"]
    dry = CliRunner().invoke(app, [*words, "--dry-run"])
    assert (dry.exit_code, (tmp_path / "out folder").exists()) == (0, False), dry.output
    assert "all predictions lie ready" in dry.stdout
    ran = CliRunner().invoke(app, words)
    assert ran.exit_code == 0, ran.output
    assert "first is better than poor: " in ran.stdout
    table = [line.split() for line in ran.stdout.splitlines() if line.startswith(("first  ", "poor  "))]
    kept = [SplitMetrics.read(runs[name] / "evaluation/test/metrics.json") for name in ("first", "poor")]
    assert [float(cells[1]) for cells in table] == [round(metrics.accuracy, 2) for metrics in kept]
    assert f"foveal compare {runs['first']} {runs['poor']} --split val" in ran.stdout
    told = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert told["comparisons"] == read_json(tmp_path / "out folder" / "summary.json")["comparisons"]
    assert told["rows"][0]["accuracy"] == kept[0].accuracy
