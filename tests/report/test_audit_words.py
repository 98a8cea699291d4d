"""What the terminal shows of an audit, and what to type next."""

from pathlib import Path
from typing import Any

import pytest

from foveal.errors import ArtifactError
from foveal.report.audit_summary import Summary
from foveal.report.audit_words import columns, leakage_sentences, next_steps, terminal_lines, verdict


def told(finding: str = "leak", severity: str = "blocking", **more: Any) -> dict[str, Any]:
    return {"finding": finding, "severity": severity, "num": 3, "repair": "none", "sentence": "Three pairs."} | more


def steps(**summary: Any) -> list[str]:
    return [step.command for step in next_steps(Summary.of(summary), Path("my audit"))]


def test_the_terminal_shows_ten_findings_and_what_was_not_checked() -> None:
    findings = [told(num=10**at, sentence=f"Sentence {at}.") for at in range(14)]
    checks = [{"check": "off_domain", "status": "skipped"}, {"check": "files", "status": "done"}]
    lines = terminal_lines({"findings": findings, "checks": checks})
    assert len(lines) == 12
    assert lines[0] == "blocking              1  Sentence 0."
    assert lines[9] == "blocking  1,000,000,000  Sentence 9."
    assert lines[10] == "... and findings of 4 other kinds; the page and findings.csv have them all."
    assert lines[11] == "Not checked: off domain. The page says why."


@pytest.mark.parametrize("word", ["word ", "x" * 400, "漢字" * 200, "e\u0301" * 300, "a\nb\t\x1b[31m\u202e "])
def test_no_line_is_wider_than_the_terminal_or_more_than_text(word: str) -> None:
    checks = [{"check": word * 9, "status": "skipped"}] * 9
    lines = terminal_lines({"findings": [told(sentence=word * 50)] * 3, "checks": checks})
    assert all(columns(line) <= 110 for line in lines)
    assert all(line.isprintable() for line in lines)
    assert len(lines) == 7
    assert lines[1].endswith(" ...")
    assert lines[1].startswith(" " * 13), "the second line of a sentence stands below its first"
    assert columns("漢e\u0301a") == 4


def test_nothing_found_is_said() -> None:
    assert terminal_lines({}) == ["Nothing was found by the checks that were made."]
    assert terminal_lines({"findings": [told(sentence="")]}) == ["blocking  3  Leakage across splits."]
    with pytest.raises(ArtifactError, match="no summary of an audit"):
        terminal_lines({"findings": [told(severity="bad")]})


def test_the_verdict_counts_what_blocks() -> None:
    some = verdict(Summary.of({"findings": [told(), told("blurred", "note"), told("dark", "note")]}))
    assert (some.figure, some.is_blocking) == ("1", True)
    assert some.text == "problem to mend before a result on this data can be trusted"
    assert some.beside == "9 findings of 3 kinds: 1 blocking and 2 notes."
    worth = verdict(Summary.of({"findings": [told("tiny", "warning")]}))
    assert worth.text == "problems in the way of training; 1 thing is worth a look first"
    assert not worth.is_blocking
    assert verdict(Summary.of({"is_blocking": True})).figure == "1"


def test_the_next_command_is_one_that_helps() -> None:
    clean = [
        "foveal clean 'my audit' --out 'my audit/clean.parquet'",
        "foveal train 'my audit/clean.parquet' --out run",
    ]
    assert steps(findings=[told(repair="move")]) == clean
    assert steps(data="-data", findings=[told()]) == ["foveal audit ./-data --out 'my audit'"]
    assert steps(data="d", command="foveal audit d --deep", findings=[told()]) == ["foveal audit d --deep"]
    assert steps(data="d", findings=[told("dark", "note")]) == ["foveal train d --out run"]


def test_leakage_in_words() -> None:
    leakage = {
        "val": {"num_images": 10, "num_with_siblings_in_train": 0},
        "test": {"num_images": 1000, "num_with_siblings_in_train": 1},
    }
    none, one = leakage_sentences(Summary.of({"leakage": leakage}))
    assert none == "No copy of a training image was found among 10 validation images."
    assert one == "1 of 1,000 test images (<1\N{NO-BREAK SPACE}%) has a copy in training."
