"""`foveal probe` end to end: what is written can be used by the other verbs."""

import html
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import foveal
from foveal.cli import app
from foveal.errors import ArtifactError, ConfigError, MissingExtraError
from foveal.inference import Predictor
from foveal.model.bundle import read_bundle
from small_runs import quicken_plots

SETTINGS = ["model.name=test_resnet", "model.weights=none", "train.device=cpu", "data.image_size=32"]
_made: dict[str, Path] = {}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken_plots(monkeypatch)


@pytest.fixture
def images(make_images: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    if "images" not in _made:
        _made["images"] = make_images(tmp_path_factory.mktemp("probe") / "images", num_per_class=16)
    return _made["images"]


@pytest.fixture
def probes(images: Path) -> dict[str, Path]:
    """A finished probe for each of two heads, one that is a layer and one that is none."""
    for head in ("logistic", "knn"):
        if head not in _made:
            _made[head] = foveal.probe(images, images.parent / head, heads=[head], overrides=SETTINGS).folder
    return {head: _made[head] for head in ("logistic", "knn")}


@pytest.mark.parametrize("head", ["logistic", "knn"])
def test_the_winner_is_a_model_like_any_other(head: str, probes: dict[str, Path], images: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(probes[head], tmp_path / "a copy"))
    run = out / "runs" / f"test_resnet-32px-{head}"
    assert (run / "report.html").is_file()
    assert not list(out.rglob("*.pkl"))
    files = sorted(images.glob("*/*"))[:6]
    by_experiment, by_run = Predictor(out)(files), Predictor(run)(files)
    assert [each.predicted for each in by_experiment] == [each.predicted for each in by_run]
    measured = foveal.evaluate(run, split="val")
    row = json.loads((out / "summary.json").read_text())["rows"][0]
    assert measured.metrics.accuracy == row["val_accuracy"]
    assert measured.metrics.log_loss == pytest.approx(row["val_log_loss"], abs=1e-6)
    elsewhere = foveal.evaluate(out, images, out=tmp_path / "elsewhere")
    assert elsewhere.metrics.num_images == 48
    assert (read_bundle(out).spec.architecture.classical is None) == (head == "logistic")


def test_a_linear_winner_is_where_a_fine_tuning_can_begin(
    probes: dict[str, Path], images: Path, tmp_path: Path
) -> None:
    settings = [*SETTINGS, f"model.weights={probes['logistic']}", "train.epochs=1", "optim.lr=1e-12"]
    trained = foveal.train(images, tmp_path / "run", overrides=[*settings, "augment.policy=none", "model.freeze=all"])
    row = json.loads((probes["logistic"] / "summary.json").read_text())["rows"][0]
    assert trained.metrics["test"].accuracy == row["test_accuracy"]  # its head was taken over as well


def test_a_backbone_can_come_from_a_probe(probes: dict[str, Path], images: Path, tmp_path: Path) -> None:
    """Of a bundle that has neighbours for a head, the backbone; and its name where none is given."""
    found = foveal.probe(images, tmp_path / "out", heads=["logistic"], overrides=[
        f"model.weights={probes['knn']}", "train.device=cpu", "data.image_size=32"])  # fmt: skip
    first = json.loads((probes["logistic"] / "summary.json").read_text())["rows"][0]
    assert found.best["backbone"] == "test_resnet"
    np.testing.assert_allclose(found.best["val_log_loss"], first["val_log_loss"], atol=1e-4)


def test_the_same_again_is_done_and_another_is_refused(probes: dict[str, Path], images: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(probes["knn"], tmp_path / "out"))
    before = (out / "summary.json").stat().st_mtime_ns
    again = foveal.probe(images, out, heads=["knn"], overrides=SETTINGS)
    assert again.winner == "test_resnet-32px-knn"
    assert (out / "summary.json").stat().st_mtime_ns == before
    with pytest.raises(ConfigError, match="begun with other settings"):
        foveal.probe(images, out, heads=["logistic"], overrides=SETTINGS)
    anew = foveal.probe(images, out, heads=["logistic"], overrides=SETTINGS, force=True)
    assert anew.winner == "test_resnet-32px-logistic"
    assert [path.name for path in (out / "runs").iterdir()] == ["test_resnet-32px-logistic"]


def test_what_is_wrong_is_said_at_once_and_before_any_work(images: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        foveal.probe(
            images, tmp_path / "out", backbone=["resnet18", "resnet34"], sizes=[4], heads=["naive"],
            overrides=["model.weights=somewhere"],
        )  # fmt: skip
    assert len(error.value.problems) == 3
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="lies in DATA"):
        foveal.probe(images, images / "out", overrides=SETTINGS)
    with pytest.raises(ArtifactError, match="pretrained"):
        foveal.probe(images, tmp_path / "out", backbone="resnet18")
    assert not (tmp_path / "out" / "manifest.parquet").exists()


def test_boosting_is_left_out_with_a_sentence_where_it_is_not_installed(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    real = importlib.util.find_spec
    without = lambda name, *rest: None if name == "xgboost" else real(name, *rest)  # noqa: E731
    monkeypatch.setattr("foveal.api.probe.find_spec", without)
    monkeypatch.setattr("foveal.extras.find_spec", without)
    from foveal.api.probe import plan_probe

    planned = plan_probe(images, tmp_path, overrides=SETTINGS)
    assert "xgboost" not in planned.heads
    assert "foveal[boost]" in planned.skipped[0]
    with pytest.raises(MissingExtraError, match="xgboost"):
        plan_probe(images, tmp_path, heads=["xgboost"], overrides=SETTINGS)


def test_the_command_line(images: Path, tmp_path: Path) -> None:
    flags = [word for setting in SETTINGS for word in ("--set", setting)]
    base = ["probe", str(images), "--sizes", "32", "--heads", "knn, logistic", "--out", str(tmp_path / "out"), *flags]
    shown = CliRunner().invoke(app, [*base, "--dry-run"])
    assert shown.exit_code == 0, shown.output
    assert "32 px" in shown.output
    assert not (tmp_path / "out").exists()
    done = CliRunner().invoke(app, [*base, "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert {row["head"] for row in result["rows"]} == {"knn", "logistic"}
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "is the best on validation" in page
    assert "<script" not in page
    wrong = CliRunner().invoke(app, ["probe", str(images), "--sizes", "big"])
    assert wrong.exit_code == 2


def test_the_training_to_type_next_has_the_same_images_in_the_same_splits(images: Path, tmp_path: Path) -> None:
    base = ["probe", str(images), "--heads", "knn", "--out", str(tmp_path / "a probe"), "--seed", "3"]
    flags = [word for setting in [*SETTINGS, "data.val_fraction=0.2"] for word in ("--set", setting)]
    done = CliRunner().invoke(app, [*base, *flags])
    assert done.exit_code == 0, done.output
    (line,) = (line for line in done.stdout.splitlines() if "foveal train" in line)
    page = (tmp_path / "a probe" / "report.html").read_text(encoding="utf-8")
    assert line.strip() in html.unescape(page)
    words = shlex.split(line)
    assert words[:3] == ["foveal", "train", str(images)]
    assert {"seed=3", "data.val_fraction=0.2", "model.name=test_resnet"} <= set(words)
    words[words.index("--out") + 1] = str(tmp_path / "run")
    trained = CliRunner().invoke(app, [*words[1:], "--set", "train.epochs=1"])
    assert trained.exit_code == 0, trained.output
    compared = foveal.compare([tmp_path / "a probe", tmp_path / "run"], out=tmp_path / "c", timing=False).comparison
    assert len(compared.pairs) == 1  # of different images it would have been refused


def test_a_training_ends_with_the_probe_that_it_has_to_beat(images: Path, tmp_path: Path) -> None:
    flags = [word for setting in [*SETTINGS, "train.epochs=1"] for word in ("--set", setting)]
    done = CliRunner().invoke(app, ["train", str(images), "--out", str(tmp_path / "run"), *flags, "--seed", "3"])
    assert done.exit_code == 0, done.output
    (hint,) = (line for line in done.stdout.partition("Try next:")[2].splitlines() if "foveal probe" in line)
    assert hint.endswith("# the cheap baseline that fine-tuning has to beat")
    words = shlex.split(hint, comments=True)
    words[words.index("--out") + 1] = str(tmp_path / "probe")
    probed = CliRunner().invoke(app, [*words[1:], "--heads", "knn", "--json"])
    assert probed.exit_code == 0, probed.output
    row = json.loads(probed.stdout)["rows"][0]
    trained = foveal.evaluate(tmp_path / "run", split="test").metrics
    assert row["num_images"] == trained.num_images  # the same split
    assert row["majority_baseline_accuracy"] == trained.majority_baseline_accuracy
