"""`evaluate --tta` and `--corrupt`: beside the plain figure, which stays what it is."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import foveal
from foveal.api.evaluate import evaluate, plan_evaluation
from foveal.api.predict import plan_prediction, predict
from foveal.data.manifest import Manifest
from foveal.errors import ConfigError
from foveal.evaluation.robustness import Robustness
from foveal.evaluation.tta import TtaGain
from foveal.experiments.run_files import files_of
from foveal.metrics import SplitMetrics, compare_paired
from foveal.pixels.corruptions import corrupt
from foveal.pixels.policy import decode
from foveal.run_folder import RunFolder
from small_runs import CLASSES, columns_of, copy_of

MakeImages = Callable[..., Path]


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return copy_of(trained, tmp_path / "run")


def probabilities_of(table: Path) -> np.ndarray:
    columns = columns_of(table)
    return np.stack([columns[f"p_{name}"] for name in CLASSES], axis=1)


def test_images(run: Path) -> list[Path]:
    manifest = Manifest.read(run / "manifest.parquet")
    return [manifest.absolute_paths()[row] for row in manifest.of_split("test").tolist()]


test_images.__test__ = False  # type: ignore[attr-defined]


def test_the_plain_figure_stays_and_the_other_lies_beside_it(run: Path) -> None:
    before = SplitMetrics.read(run / "evaluation" / "test" / "metrics.json")
    found = evaluate(run, tta="flip")
    assert found.metrics.model_copy(update={"latency_ms": before.latency_ms}) == before
    assert found.folder == run / "evaluation" / "test"
    beside = run / "evaluation" / "test-tta-flip"
    assert found.tta_folder == beside
    # By hand: each file as it is and mirrored, and the mean of what is said of both.
    plain = foveal.Predictor(run)
    pixels = [decode(path, plain.members[0].policy).pixels for path in test_images(run)]
    both = [np.stack([each.probabilities for each in plain(views)]) for views in (pixels, [p[:, ::-1] for p in pixels])]
    augmented = probabilities_of(beside / "predictions.parquet")
    assert np.abs(augmented - np.mean(both, axis=0)).max() < 1e-6
    gain = found.tta
    assert gain is not None
    assert TtaGain.read(beside / "tta.json") == gain
    labels = np.array([CLASSES.index(name) for name in columns_of(beside / "predictions.parquet")["label"]])
    paired = compare_paired(labels, both[0], augmented, seed=7)
    assert gain.gain == pytest.approx(paired.differences, abs=1e-6)
    assert (gain.num_views, gain.num_images, gain.verdict) == (2, len(labels), paired.verdict)
    assert gain.sentence.endswith("times as long.")
    assert 1.0 < gain.cost.ratio < 8.0
    assert gain.cost.tta_latency_ms is not None
    metrics = SplitMetrics.read(beside / "metrics.json")
    assert metrics.accuracy == pytest.approx((augmented.argmax(axis=1) == labels).mean())
    # One look, whatever was measured of it; and the page says what it says.
    assert found.num_looks == 2
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Test-time augmentation</h2>" in page
    assert gain.sentence in page


def test_prediction_and_evaluation_say_the_same_with_it(run: Path, tmp_path: Path) -> None:
    evaluate(run, tta="crops5")
    evaluated = probabilities_of(run / "evaluation" / "test-tta-crops5" / "predictions.parquet")
    predict(run, test_images(run), out=tmp_path / "p.parquet", tta="crops5", batch_size=5)
    assert np.abs(probabilities_of(tmp_path / "p.parquet") - evaluated).max() < 1e-6
    predict(run, test_images(run), out=tmp_path / "plain.parquet")
    assert np.abs(probabilities_of(tmp_path / "plain.parquet") - evaluated).max() > 1e-4


def test_corrupted_images_are_the_ones_that_a_file_of_them_would_be(run: Path) -> None:
    found = evaluate(run, corrupt="darker,noise")
    robustness = found.robustness
    assert robustness is not None
    assert found.robustness_folder == found.folder
    assert Robustness.read(found.folder / "robustness.json") == robustness
    assert robustness.clean.accuracy == found.metrics.accuracy
    assert robustness.clean.interval == pytest.approx(found.metrics.confidence_intervals["accuracy"])
    predictor = foveal.Predictor(run)
    pixels = [decode(path, predictor.members[0].policy).pixels for path in test_images(run)]
    labels = columns_of(found.folder / "predictions.parquet")["label"]
    for curve in robustness.curves:
        if curve.name == "darker":  # of every pixel alone, so it may as well come before the scaling
            for at in curve.by_strength[:3]:
                said = predictor([corrupt(image, "darker", at.strength) for image in pixels])
                right = np.mean([each.predicted == label for each, label in zip(said, labels, strict=True)])
                assert at.accuracy == pytest.approx(right, abs=1.5 / len(labels))
    assert [curve.name for curve in robustness.curves] == ["noise", "darker"]
    page = (run / "report.html").read_text(encoding="utf-8")
    assert robustness.sentence.replace(">", "&gt;") in page
    assert page.count('alt="noise at strength') == 6
    assert found.num_looks == 2
    assert [path.name for path in (found.folder / "plots").glob("rob*")] == ["robustness.svg"]


def test_corruptions_go_through_the_views_that_are_asked_for(run: Path) -> None:
    both = evaluate(run, tta="dihedral", corrupt="contrast")
    assert both.robustness is not None
    assert both.robustness.tta == "dihedral"
    assert both.robustness_folder == both.tta_folder == run / "evaluation" / "test-tta-dihedral"
    assert not (run / "evaluation" / "test" / "robustness.json").exists()
    assert both.robustness.clean.accuracy == SplitMetrics.read(both.robustness_folder / "metrics.json").accuracy
    described = json.loads(json.dumps(both.to_dict()))
    assert described["tta"]["tta"] == "dihedral"
    assert described["robustness"]["curves"][0]["name"] == "contrast"
    assert "dihedral" in both._repr_html_()


def test_other_data_has_all_of_it_in_one_folder(run: Path, tmp_path: Path, make_images: MakeImages) -> None:
    data = make_images(tmp_path / "other images", CLASSES, num_per_class=4, seed=9)
    out = tmp_path / "e f"
    found = evaluate(run / "bundle", data, out=out, tta="03", corrupt="resize")
    assert found.tta is not None
    assert (found.tta.tta, found.tta.num_views) == ("3", 3)
    assert found.tta_folder == out / "tta-3"
    assert (out / "tta-3" / "robustness.json").is_file()
    assert (out / "metrics.json").is_file()
    assert found.num_looks == 0


def test_starting_anew_leaves_nothing_of_it(run: Path) -> None:
    evaluate(run, tta="flip", corrupt="blur")
    evaluate(run, corrupt="blur")
    known = set(files_of(RunFolder(run)))
    written = {path for path in (run / "evaluation").rglob("*") if path.is_file()}
    assert len(written) > 30
    assert written - known == set()


def test_what_there_is_not_is_refused_before_anything_is_read(run: Path, tmp_path: Path) -> None:
    for wrong in ({"tta": "flop"}, {"corrupt": "fog"}, {"corrupt": ""}):
        with pytest.raises(ConfigError, match=r"flop|fog|no such corruption"):
            evaluate(run, **wrong)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=r"flop|fog|no such corruption"):
            plan_evaluation(run, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="flop"):
        predict(run, ["x.png"], tta="flop", out=tmp_path / "p.csv")
    assert len(json.loads((run / "evaluation" / "looks.json").read_text())["test"]) == 1
    assert not (tmp_path / "p.csv").exists()


def test_a_plan_says_how_often_each_image_would_be_seen(run: Path) -> None:
    assert plan_evaluation(run).num_passes == 1
    assert plan_evaluation(run, tta="1").num_passes == 1
    planned = plan_evaluation(run, tta="flip", corrupt="noise,brightness")
    assert planned.num_passes == 1 + 2 + 2 * 5 * 3
    assert "each seen 33 times" in str(planned)
    assert "2 views each" in str(plan_prediction(run, test_images(run), tta="flip"))
