"""summary.json: its figures, counted by hand, and in the form that the page reads."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_facts import made_facts, made_pairs

from foveal.auditing.checks import Known, run_checks
from foveal.auditing.config import AuditConfig
from foveal.auditing.duplicates import Pairs, group_copies
from foveal.auditing.summary import summarise
from foveal.data.manifest import Manifest
from foveal.report.audit_summary import Summary


def summary_of(rows: Sequence[tuple[str, str | None, str]], pairs: Pairs | None = None, **facts: Any) -> dict[str, Any]:
    """Of rows of label, split and status."""
    labels, splits, statuses = zip(*rows, strict=True) if rows else ((), (), ())
    manifest = Manifest.build(
        Path("/p"),
        path=[f"{at}.jpg" for at in range(len(rows))],
        label=labels,
        split=splits,
        status=statuses,
        reason=["the file is empty (0 bytes)" if status != "ok" else None for status in statuses],
        sha256=[f"{at:064}" for at in range(len(rows))],
        mode=["RGB"] * len(rows),
    )
    measured = made_facts(len(rows), **facts)
    measured.is_known[:] = manifest.is_usable()
    for values in (measured.width_px, measured.height_px):
        values[~measured.is_known] = np.nan
    pairs = pairs or Pairs.none()
    known = Known(manifest, measured, group_copies(len(rows), pairs), pairs)
    outcome = run_checks(known, AuditConfig())
    checks = [each.summary() for each in outcome.checked]
    return summarise(
        known, outcome, outcome.findings, checks, data="photos", data_format="folder", notes=["one"],
        seconds={"scan": 0.12345}, command="foveal audit photos",
    )  # fmt: skip


ROWS = (
    [("a", "train", "ok")] * 30 + [("b", "train", "ok")] * 25 + [("a", "test", "ok")] * 10 + [("b", "test", "ok")] * 5
)
ROWS += [("b", "test", "quarantined")] * 2


def test_the_figures_are_those_of_the_data() -> None:
    found = summary_of(ROWS, made_pairs((0, 1, 0.97), (1, 2, 0.95), (3, 55, 0.99)), width_px=np.arange(72) + 100)
    assert (found["num_samples"], found["num_usable"], found["num_quarantined"], found["num_files"]) == (72, 70, 2, 72)
    assert found["num_originals"] == 70 - 2 - 1
    assert found["splits"]["train"] == {"num_images": 55, "share": 55 / 70}
    assert "val" not in found["splits"]
    counts = {each["name"]: each for each in found["classes"]}
    assert (counts["a"]["num_images"], counts["a"]["num_originals"]) == (40, 37)
    assert (counts["b"]["num_images"], counts["b"]["num_quarantined"]) == (30, 2)
    assert counts["b"]["by_split"] == {"train": 25, "test": 5}
    test = found["leakage"]["test"]
    assert (test["num_images"], test["num_with_siblings_in_train"], test["by_class"]) == (
        15,
        1,
        {"a": [10, 1], "b": [5, 0]},
    )
    assert found["sizes"]["width_px"] == pytest.approx(
        np.quantile(np.arange(70) + 100, [0, 0.05, 0.5, 0.95, 1]), abs=1e-3
    )
    assert found["formats"] == {"JPEG": 70}
    assert found["modes"] == {"RGB": 70}
    assert found["is_blocking"] is True
    assert found["seconds"] == {"scan": 0.123}
    assert found["findings"][0]["finding"] == "leak"
    assert {each["finding"]: each["num"] for each in found["findings"]}["unreadable"] == 2


@pytest.mark.parametrize(
    "rows", [ROWS, ROWS[:1], [("a", None, "quarantined")] * 3, [("a", None, "ok"), ("b", None, "ok")]]
)
def test_it_survives_json_and_is_what_the_page_reads(rows: list[tuple[str, str | None, str]]) -> None:
    found = summary_of(rows)
    again = json.loads(json.dumps(found, allow_nan=False))
    read = Summary.of(again)
    assert read.num_samples == len(rows)
    assert read.is_blocking == any(told.severity == "blocking" for told in read.findings)
    # Nothing is written that the page does not know, and nothing that it wants is missing.
    assert set(found) == set(Summary.model_fields)
    done = {check.check for check in read.checks}
    assert {told.finding for told in read.findings} <= done
