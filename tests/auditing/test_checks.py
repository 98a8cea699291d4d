"""All checks together: what they tell of a data set, in which order, and in what time."""

import time
from pathlib import Path

import numpy as np
import pytest
from made_facts import made_facts, made_pairs

from foveal.auditing.checks import Known, run_checks
from foveal.auditing.config import AuditConfig
from foveal.auditing.duplicates import group_copies
from foveal.auditing.findings import SEVERITIES, FindingsTable
from foveal.auditing.kinds import KINDS
from foveal.auditing.ordering import ranked
from foveal.data.manifest import Manifest


def known_of(num: int, *pairs: tuple[int, int, float]) -> Known:
    """Three classes in three splits, among them pairs that are copies."""
    manifest = Manifest.build(
        Path("/data"),
        path=[f"{number}.jpg" for number in range(num)],
        label=[f"c{number % 3}" for number in range(num)],
        split=[("train", "train", "train", "val", "test")[number // 3 % 5] for number in range(num)],
        mode=["RGB"] * num,
        sha256=[f"{number:064d}" for number in range(num)],
    )
    made = made_pairs(*pairs)
    return Known(manifest, made_facts(num), group_copies(num, made), made)


def test_sound_data_has_no_findings() -> None:
    outcome = run_checks(known_of(600), AuditConfig())
    assert outcome.findings == []
    assert outcome.originals.total == 600
    assert outcome.leakage["test"]["share"] == 0.0
    assert {each.check for each in outcome.checked} <= set(KINDS)


def test_what_matters_is_on_top_and_says_how_much() -> None:
    # Test is rows 12, 13, 14 of each 15, so every third of them is of one class.
    leaked = [(12 + 15 * number, 15 * number, 0.9) for number in range(12)]
    known = known_of(600, *leaked, (1, 3, 0.9))
    known.facts.measures[2, 1] = 0.001
    outcome = run_checks(known, AuditConfig())
    entries = ranked(outcome.findings, known.manifest)
    assert [(each["severity"], each["finding"], each["num"], each["repair"]) for each in entries] == [
        ("blocking", "leak", 12, "move"),
        ("blocking", "label_conflict", 1, "quarantine"),
        ("warning", "blank", 1, "quarantine"),
        ("warning", "near_duplicate", 13, "regroup"),
    ]
    assert entries[0]["sentence"] == (
        "12 of 120 test images (10.0 %) have a copy or sibling in training; worst in class 'c0' (12 of 40)."
    )
    assert entries[1]["sentence"] == "1 image is also filed under another class: 'c0' and 'c1'."
    assert entries[2]["sentence"] == "1 image (0.2 %) is blank."
    assert "26 images (4.3 %) are copies of one another" in entries[3]["sentence"]
    table = FindingsTable.of(outcome.findings, known.manifest)
    severities = [SEVERITIES.index(each) for each in table.columns["severity"]]
    assert severities == sorted(severities)
    assert len(table) == 27


def test_searches_that_are_turned_off_say_so() -> None:
    config = AuditConfig(near_duplicates=False, copies_by_name=False)
    skipped = {each.check: each.skipped for each in run_checks(known_of(60), config).checked if each.skipped}
    assert skipped == {
        "near_duplicate": "audit.near_duplicates is false.",
        "copy_by_name": "audit.copies_by_name is false.",
    }


@pytest.mark.parametrize("num", [0, 1, 2])
def test_next_to_nothing_is_no_reason_to_fail(num: int) -> None:
    outcome = run_checks(known_of(num), AuditConfig())
    assert len(outcome.components) == len(outcome.names) == num
    ranked(outcome.findings, known_of(num).manifest)


def test_every_row_may_be_in_quarantine() -> None:
    known = known_of(9)
    broken = known.manifest.with_columns(status=["quarantined"] * 9, reason=["the file is empty"] * 9)
    known.facts.is_known[:] = False
    outcome = run_checks(Known(broken, known.facts, known.clusters, known.pairs, ["c9"]), AuditConfig())
    sentences = {each["finding"]: each["sentence"] for each in ranked(outcome.findings, broken)}
    assert sentences["unreadable"] == "9 of 9 samples cannot be used: the file is empty (9)."
    assert sentences["empty_class"] == "4 classes have no usable image: 'c0', 'c1', 'c2' and 1 more."


def test_ten_thousand_samples_take_a_second() -> None:
    pytest.importorskip("sklearn.tree")
    rng = np.random.default_rng(0)
    pairs = [(number, number + 1, float(rng.uniform(0.7, 0.99))) for number in range(0, 4000, 2)]
    known = known_of(10_000, *pairs)
    begun = time.process_time()
    outcome = run_checks(known, AuditConfig())
    ranked(outcome.findings, known.manifest)
    assert time.process_time() - begun < 4  # 0.6 s on an idle core
