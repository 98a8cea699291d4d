import json

import numpy as np
import pytest
from pydantic import ValidationError

from foveal.errors import ArtifactError, FovealError
from foveal.metrics import SplitMetrics, shown, summarise


@pytest.fixture(scope="module")
def metrics():
    generator = np.random.default_rng(0)
    labels = np.arange(315) % 10
    logits = generator.normal(size=(315, 10)) + 4 * np.eye(10)[labels]
    names = ["<b>zero</b>", *"123456789"]
    return summarise(labels, logits, class_names=names, split="test", majority_class=2, num_resamples=200)


def test_sentence(metrics):
    low, high = metrics.confidence_intervals["accuracy"]
    assert metrics.sentence() == (
        f"{metrics.accuracy:.2f} [{low:.2f}, {high:.2f}] on 315 test images; guessing the largest class gives 0.10"
    )


def test_sentence_of_one_image():
    one = summarise(np.array([1]), np.array([[0.0, 1.0]]), class_names=["a", "b"], split="val", majority_class=0)
    assert one.sentence() == "1.00 [0.21, 1.00] on 1 val image; guessing the largest class gives 0.00"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.956, "0.96"), (1.0, "1.00"), (0.9968, "0.997"), (0.99999, "0.9999"), (0.0, "0.00"), (0.0004, "0.0004"),
     (0.00001, "1e-05"), (None, "undefined"), (-0.25, "-0.25"), (36.04, "36.04")],
)  # fmt: skip
def test_nearly_is_never_shown_as_certain(value, text):
    assert shown(value) == text


def test_table_is_escaped(metrics):
    page = metrics._repr_html_()
    assert "315 images, 10 classes" in page
    assert f"{metrics.accuracy:.2f} [" in page
    hostile = metrics.model_copy(update={"split": "<script>", "undefined": {"quadratic_weighted_kappa": "<i>why"}})
    page = hostile._repr_html_()
    assert "<script>" not in page
    assert "&lt;i&gt;why" in page


def test_is_frozen_and_closed(metrics):
    with pytest.raises(ValidationError, match="frozen"):
        metrics.accuracy = 1.0
    with pytest.raises(ValidationError, match="extra"):
        SplitMetrics.model_validate(metrics.model_dump() | {"score": 1.0})


def test_latency_is_added_with_its_reason_taken_away(metrics, tmp_path):
    timed = metrics.with_latency(4.5, 9.0)
    assert timed.latency_ms.p95 == 9.0
    assert "latency_ms" not in timed.undefined
    assert metrics.latency_ms is None
    timed.write(tmp_path / "metrics.json")
    assert SplitMetrics.read(tmp_path / "metrics.json") == timed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"accuracy": float("nan")}, "finite"),
        ({"accuracy": 1.2}, "less than or equal to 1"),
        ({"undefined": {}}, "no reason for the null of"),
        ({"confusion_matrix": [[315]]}, "expected 10 rows of 10"),
        ({"num_images": 314}, "add up to num_images"),
        ({"confidence_intervals": {"accuracy": [0.9, 0.8]}}, "confidence_intervals.accuracy"),
        ({"class_names": list("abcdefghij")}, "in that order"),
    ],
)
def test_nonsense_is_refused(metrics, change, words):
    with pytest.raises(ValidationError, match=words):
        SplitMetrics.model_validate(metrics.model_dump() | change)


def test_a_damaged_file_is_told_with_all_its_faults(metrics, tmp_path):
    path = tmp_path / "metrics.json"
    content = metrics.model_dump(mode="json") | {"accuracy": "high", "score": 1}
    del content["brier"]
    path.write_text(json.dumps(content))
    with pytest.raises(ArtifactError) as caught:
        SplitMetrics.read(path)
    text = str(caught.value)
    for key in ("accuracy", "score", "brier"):
        assert key in text
    assert str(path) in text
    with pytest.raises(FovealError, match="does not exist"):
        SplitMetrics.read(tmp_path / "none.json")
