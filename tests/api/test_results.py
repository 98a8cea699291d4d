"""What the verbs return is printable, plain for JSON, and safe in a notebook."""

import json
from pathlib import Path

from foveal.api.results import EvaluatePlan, EvaluateResult, PredictPlan, PredictResult, TrainResult
from foveal.metrics import SplitMetrics, summarise

HOSTILE = "<img src=x onerror=alert(1)>"


def metrics() -> SplitMetrics:
    return summarise([0, 1, 1], [[2.0, 1.0], [0.0, 1.0], [1.0, 0.0]], class_names=[HOSTILE, "b"], split="test")


def test_names_are_text_in_a_notebook() -> None:
    results = [
        TrainResult(Path(HOSTILE), {"test": metrics()}, 3, Path("report.html"), Path("bundle")),
        EvaluateResult(metrics(), Path("e"), None, 2),
        PredictResult(5, 1, None, {HOSTILE: 3, "b": 2}),
    ]
    for result in results:
        page = result._repr_html_()
        assert "<img" not in page
        assert "<t" in page
    assert "&lt;img" in results[0]._repr_html_()
    assert "1 failed" in results[2]._repr_html_()


def test_everything_is_plain_for_json() -> None:
    for result in (
        TrainResult(Path("run"), {"test": metrics()}, 3, Path("run/report.html"), Path("run/bundle")),
        EvaluateResult(metrics(), Path("e"), Path("run/report.html"), 2),
        EvaluatePlan(Path("run"), "val", 12, {HOSTILE: 7, "b": 5}, Path("e"), counts_as_look=True),
        PredictPlan(Path("run"), 3, (HOSTILE, "b"), "csv", None),
        PredictResult(5, 1, Path("p.csv"), {"b": 5}),
    ):
        found = json.loads(json.dumps(result.to_dict(), allow_nan=False))
        assert found


def test_plans_are_readable() -> None:
    shown = str(EvaluatePlan(Path("run"), "val", 1200, {"a": 700, "b": 500}, Path("e"), counts_as_look=True))
    assert "val, 1,200 images" in shown
    assert "a: 700, b: 500" in shown
    assert "counted as a look" in shown
    assert "stdout, jsonl" in str(PredictPlan(Path("run"), 3, ("a", "b"), "jsonl", None))
