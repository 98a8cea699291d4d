"""Cross-validation: every number comes from a model that did not see the image, and the vote is that of the bundle."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score
from typer.testing import CliRunner

import foveal
from foveal.cli import app
from foveal.data.manifest import Manifest
from foveal.errors import ArtifactError, ConfigError
from foveal.experiments.crossval.folds import NOT_A_MEAN_OF
from foveal.experiments.crossval.vote import mean_interval
from foveal.inference import Predictor
from foveal.run_folder import ExperimentFolder
from small_runs import CLASSES, TINY, columns_of, events

OVERRIDES = (*TINY, "train.epochs=3", "train.batch_size=4", "seed=4", "data.test_fraction=0.25")
NUM_FOLDS = 3

_made: dict[str, Path] = {}


@pytest.fixture
def done(make_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> ExperimentFolder:
    """A cross-validation of three folds; made once, so look but do not touch."""
    if not _made:
        folder = tmp_path_factory.mktemp("cross validation")
        _made["images"] = make_images(folder / "images", CLASSES, num_per_class=16)
        _made["folder"] = folder / "cv"
        foveal.crossval(_made["images"], _made["folder"], folds=NUM_FOLDS, overrides=OVERRIDES)
    return ExperimentFolder(_made["folder"])


def said_by(bundle: Path, manifest: Manifest, rows: np.ndarray) -> np.ndarray:
    paths = manifest.absolute_paths()
    found = Predictor(bundle, device="cpu")([paths[row] for row in rows])
    assert isinstance(found, list)
    return np.stack([prediction.probabilities for prediction in found])


def test_each_image_is_predicted_by_the_model_that_did_not_see_it(done: ExperimentFolder) -> None:
    manifest = Manifest.read(done.manifest)
    rest = manifest.of_split("train")
    table = columns_of(done.path / "out_of_fold.parquet")
    assert table["sample_id"].tolist() == manifest.column("sample_id")[rest].tolist()
    assert (table["fold"] == manifest.column("fold")[rest] + 1).all()
    said = np.stack([table[f"p_{name}"] for name in CLASSES], axis=1)
    for fold in range(1, NUM_FOLDS + 1):
        of_fold = table["fold"] == fold
        expected = said_by(done.run(f"fold-{fold}").bundle, manifest, rest[of_fold])
        np.testing.assert_allclose(said[of_fold], expected, atol=1e-4)
    metrics = json.loads((done.path / "evaluation" / "out_of_fold" / "metrics.json").read_text())
    predicted = np.array(CLASSES)[said.argmax(axis=1)]
    assert metrics["num_images"] == len(rest)
    assert metrics["accuracy"] == pytest.approx(accuracy_score(table["label"], predicted))
    assert metrics["accuracy"] > 0.4, "they learn something, so that there is something to vote on"
    assert metrics["macro_f1"] == pytest.approx(f1_score(table["label"], predicted, average="macro"))
    assert "log_loss" in metrics["confidence_intervals"]


def test_no_fold_knows_the_test_or_its_held_out_images(done: ExperimentFolder) -> None:
    whole = Manifest.read(done.manifest)
    aside = set(whole.column("sample_id")[whole.of_split("test")])
    assert len(aside) == 12
    held: list[str] = []
    for fold in range(1, NUM_FOLDS + 1):
        run = Manifest.read(done.run(f"fold-{fold}").manifest)
        assert not aside & set(run.column("sample_id"))
        parts = [set(run.column("sha256")[run.of_split(name)]) for name in ("train", "val", "test")]
        assert not parts[0] & parts[1]
        assert not (parts[0] | parts[1]) & parts[2]
        held += run.column("sample_id")[run.of_split("test")].tolist()
    assert sorted(held) == sorted(whole.column("sample_id")[whole.of_split("train")])


def test_the_summary_has_a_row_a_fold_with_mean_and_standard_deviation(done: ExperimentFolder) -> None:
    summary = json.loads(done.summary.read_text())
    assert [row["name"] for row in summary["rows"]] == ["fold-1", "fold-2", "fold-3"]
    for row in summary["rows"]:
        own = json.loads((done.path / row["run"] / "evaluation" / "test" / "metrics.json").read_text())
        assert {key: row[key] for key in own} == own
        assert row["train_seconds"] > 0
    for key in ("accuracy", "macro_f1", "log_loss", "kept_aside_accuracy"):
        values = [row[key] for row in summary["rows"]]
        assert summary["mean"][key] == pytest.approx(np.mean(values))
        assert summary["std"][key] == pytest.approx(np.std(values, ddof=1))
    assert not NOT_A_MEAN_OF & summary["mean"].keys()
    assert "± " in summary["sentences"][0]
    assert "no interval" in summary["sentences"][-1]


def test_the_folds_vote_on_the_test_as_their_bundle_says(done: ExperimentFolder) -> None:
    manifest, summary = Manifest.read(done.manifest), json.loads(done.summary.read_text())
    rows = manifest.of_split("test")
    labels = manifest.label_ids()[rows]
    by_fold = np.stack([said_by(done.run(f"fold-{k}").bundle, manifest, rows) for k in (1, 2, 3)])
    soft = by_fold.mean(axis=0)
    np.testing.assert_allclose(said_by(done.path, manifest, rows), soft, atol=1e-4)
    votes = np.eye(3)[by_fold.argmax(axis=2)].sum(axis=0) + soft
    vote = summary["fold_vote"]
    assert vote["soft"]["accuracy"] == pytest.approx((soft.argmax(axis=1) == labels).mean())
    assert vote["majority"]["accuracy"] == pytest.approx((votes.argmax(axis=1) == labels).mean())
    for kind in ("soft", "majority"):
        written = json.loads((done.path / "evaluation" / f"test-{kind}" / "metrics.json").read_text())
        assert written == vote[kind]
    singles = (by_fold.argmax(axis=2) == labels).mean(axis=1)
    assert [row["kept_aside_accuracy"] for row in summary["rows"]] == pytest.approx(singles)
    gain = vote["soft_less_mean_of_singles"]
    assert gain["accuracy"] == pytest.approx(vote["soft"]["accuracy"] - singles.mean())
    best = max(summary["rows"], key=lambda row: (row["val_accuracy"], -row["val_log_loss"]))["name"]
    assert vote["best_single"] == best
    compared = vote["soft_against_best_single"]
    assert compared["second"]["accuracy"] == pytest.approx(vote["soft"]["accuracy"])
    assert compared["first"]["accuracy"] == pytest.approx(singles[int(best[-1]) - 1])
    looks = json.loads((done.path / "evaluation" / "looks.json").read_text())
    assert [look["verb"] for look in looks["test"]] == ["crossval"]


def test_nothing_is_decoded_twice_and_the_page_stands_by_itself(done: ExperimentFolder) -> None:
    (decoded,) = events(done.path, "decode")
    assert decoded["num_decoded"] == 48
    assert all(not events(done.run(f"fold-{k}").path, "decode") for k in (1, 2, 3))
    page = done.report.read_text()
    for words in ("Each fold", "fold-3", "Out of fold", "Soft vote", "Each class, out of fold", "Time"):
        assert words in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_the_same_again_does_nothing_and_other_settings_are_refused(done: ExperimentFolder) -> None:
    before, looks = done.summary.read_bytes(), (done.path / "evaluation" / "looks.json").read_bytes()
    again = foveal.crossval(_made["images"], done.path, folds=NUM_FOLDS, overrides=OVERRIDES)
    assert done.summary.read_bytes() == before
    assert (done.path / "evaluation" / "looks.json").read_bytes() == looks
    assert again.to_dict()["rows"] == json.loads(before)["rows"]
    assert "fold-2" in again._repr_html_()
    with pytest.raises(ConfigError, match="begun with other settings") as caught:
        foveal.crossval(_made["images"], done.path, folds=4, overrides=[*OVERRIDES, "optim.lr=0.02"])
    assert {problem.partition(":")[0] for problem in caught.value.problems} == {"folds", "config.optim.lr"}
    with pytest.raises(ConfigError, match="lies in DATA"):
        foveal.crossval(_made["images"], _made["images"] / "cv", overrides=OVERRIDES)
    with pytest.raises(ConfigError, match="at least two folds") as caught:
        foveal.crossval(_made["images"], done.path, folds=1, repeats=0)
    assert len(caught.value.problems) == 2


def test_the_command_repeats_and_needs_no_test(
    make_images: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = make_images(tmp_path / "images", ("a", "b"), num_per_class=8)
    monkeypatch.chdir(tmp_path)
    overrides = [*TINY, "train.epochs=1", "split.test_fraction=0"]
    command = ["crossval", str(images), "--folds", "2", "--repeats", "2", "--out", "cv"]
    command += [word for each in overrides for word in ("--set", each)]
    planned = CliRunner().invoke(app, [*command, "--dry-run"])
    assert planned.exit_code == 0
    assert "repeat-2-fold-2" in planned.stdout
    assert "no test is kept aside" in planned.stdout
    assert not (tmp_path / "cv").exists()
    found = CliRunner().invoke(app, [*command, "--json"])
    assert found.exit_code == 0, found.output
    result: dict[str, Any] = json.loads(found.stdout)
    assert [row["name"] for row in result["rows"]] == [f"repeat-{r}-fold-{k}" for r in (1, 2) for k in (1, 2)]
    assert result["fold_vote"] is None
    assert any("No test split was kept aside" in sentence for sentence in result["sentences"])
    table = columns_of(Path("cv/out_of_fold.parquet"))
    assert len(table["repeat"]) == 32
    assert sorted(zip(table["sample_id"], table["repeat"], strict=True))[1][1] == 2
    assert result["out_of_fold"]["num_images"] == 32
    assert Predictor("cv", device="cpu").bundle.spec.metrics == {}
    assert "repeat-2-fold-1" in Path("cv/report.html").read_text()


def test_a_cross_validation_that_has_not_ended_is_no_model(done: ExperimentFolder, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    begun.mkdir()
    (begun / "experiment.json").write_bytes(done.settings.read_bytes())
    with pytest.raises(ArtifactError, match="foveal crossval, which has not come to its end"):
        foveal.predict(begun, ["x.png"], device="cpu")


def test_an_interval_of_a_mean_is_that_of_a_long_bootstrap() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)
    values = rng.normal(0.1, 1.0, 200) + labels
    found = mean_interval(values, labels, None, seed=1)
    assert found is not None
    drawn = [
        np.concatenate([rng.choice(values[labels == c], (labels == c).sum()) for c in range(3)]).mean()
        for _ in range(4000)
    ]
    assert found == pytest.approx(tuple(np.quantile(drawn, (0.025, 0.975))), abs=0.02)
    groups = np.repeat(np.arange(20), 10)
    clustered = np.repeat(rng.normal(0, 1, 20), 10)
    wide, narrow = (mean_interval(clustered, labels, each, seed=1) for each in (groups, None))
    assert wide is not None
    assert narrow is not None
    assert np.ptp(wide) > 2 * np.ptp(narrow)
    assert mean_interval(values, labels, np.zeros(200, dtype=np.int64), seed=1) is None
    assert mean_interval(np.zeros(200), labels, None, seed=1) is None
