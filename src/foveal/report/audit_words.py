"""An audit in words: the verdict, what the terminal shows, and what to type next."""

import shlex
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveal.auditing.findings import SEVERITIES, Severity
from foveal.auditing.ordering import listed
from foveal.evaluation.drawing import displayed, split_name
from foveal.report.audit_summary import Summary, Told
from foveal.report.numbers import counted, percent

WIDTH = 110
"""Columns of a terminal that a line may take."""
MAX_TERMINAL_FINDINGS = 10
_MAX_LINES_A_FINDING = 2

REPAIR_WORDS: Mapping[str, str] = {
    "quarantine": "foveal clean sets them aside, with the reason.",
    "keep_one": "foveal clean keeps one of each set.",
    "regroup": "foveal clean puts them into one group, so that no split parts them.",
    "move": "foveal clean moves the copies to one side of the split.",
    "relabel": "foveal clean takes the labels that you confirm in a CSV file.",
    "merge_classes": "foveal clean merges the classes.",
    "none": "foveal clean leaves them as they are.",
}
"""What `clean` would do, for people."""


@dataclass(frozen=True)
class Verdict:
    """The first sentence: a number, what it counts, and the other findings beside it."""

    figure: str
    text: str
    beside: str
    is_blocking: bool


@dataclass(frozen=True)
class Step:
    """A command to type, and what it is for."""

    reason: str
    command: str


def verdict(summary: Summary) -> Verdict:
    """Whether the data can be trained on, and how much was found."""
    num = {severity: len(summary.told_of(severity)) for severity in SEVERITIES}
    is_blocking = summary.is_blocking or num["blocking"] > 0
    if is_blocking:
        many = max(num["blocking"], 1)
        text = f"{'problem' if many == 1 else 'problems'} to mend before a result on this data can be trusted"
        figure = f"{many:,}"
    elif num["warning"]:
        worth = counted(num["warning"], "thing is", "things are")
        figure, text = "0", f"problems in the way of training; {worth} worth a look first"
    else:
        figure, text = "0", "problems found by the checks that were made"
    return Verdict(figure, text, _beside(summary, num), is_blocking)


def _beside(summary: Summary, num: Mapping[Severity, int]) -> str:
    total = sum(told.num for told in summary.findings)
    if not summary.findings:
        return ""
    parts = [
        f"{num['blocking']:,} blocking" if num["blocking"] else "",
        counted(num["warning"], "warning") if num["warning"] else "",
        counted(num["note"], "note") if num["note"] else "",
    ]
    kinds = counted(len(summary.findings), "kind")
    return f"{counted(total, 'finding')} of {kinds}: {listed([part for part in parts if part])}."


def next_steps(summary: Summary, folder: Path) -> list[Step]:
    """What to type now, the first thing first.

    Args:
        summary: of the audit.
        folder: where the audit lies.
    """
    data, audit = _argument(summary.data or "DATA"), _argument(str(folder))
    if any(told.repair != "none" for told in summary.findings):
        cleaned = _argument(str(folder / "clean.parquet"))
        return [
            Step(
                "Write a manifest in which these faults are mended. No image is touched.",
                f"foveal clean {audit} --out {cleaned}",
            ),
            Step("Train on it.", f"foveal train {cleaned} --out run"),
        ]
    if summary.is_blocking or summary.told_of("blocking"):
        return [
            Step("Mend what blocks by hand, then look again.", summary.command or f"foveal audit {data} --out {audit}")
        ]
    return [Step("Train on the data as they are.", f"foveal train {data} --out run")]


def leakage_sentences(summary: Summary) -> list[str]:
    """For each split but training: how many of its images have a copy in training."""
    sentences = []
    for split, leak in summary.leakage.items():
        found, where = leak.num_with_siblings_in_train, split_name(split)
        if not found:
            sentences.append(
                f"No copy of a training image was found among {counted(leak.num_images, f'{where} image')}."
            )
            continue
        of = f"{found:,} of {counted(leak.num_images, f'{where} image')} ({percent(leak.leaked)})"
        sentences.append(f"{of} {'has' if found == 1 else 'have'} a copy in training.")
    return sentences


def terminal_lines(summary: Mapping[str, Any]) -> list[str]:
    """The ten findings that matter as a table of plain text, and one line on what was not checked.

    Args:
        summary: what summary.json holds.

    Raises:
        ArtifactError: a value is of the wrong kind.
    """
    checked = Summary.of(dict(summary))
    told = checked.findings
    lines = [] if told else ["Nothing was found by the checks that were made."]
    width = max([len(f"{each.num:,}") for each in told[:MAX_TERMINAL_FINDINGS]], default=1)
    for each in told[:MAX_TERMINAL_FINDINGS]:
        head = f"{each.severity:<8}  {each.num:>{width},}  "
        rows = _wrapped(_sentence(each), WIDTH - len(head), _MAX_LINES_A_FINDING)
        lines += [head + rows[0], *(" " * len(head) + row for row in rows[1:])]
    if len(told) > MAX_TERMINAL_FINDINGS:
        rest = counted(len(told) - MAX_TERMINAL_FINDINGS, "other kind")
        lines.append(f"... and findings of {rest}; the page and findings.csv have them all.")
    skipped = [displayed(check.check.replace("_", " ")) for check in checked.checks if check.status == "skipped"]
    if skipped:
        lines += _wrapped(
            f"Not checked: {', '.join(skipped)}. The page says why.", WIDTH, 1, tail=" ...; see the page."
        )
    return lines


def _sentence(told: Told) -> str:
    return displayed(" ".join(told.sentence.split())) or displayed(f"{told.kind.title}.")


def _wrapped(text: str, width: int, max_lines: int, *, tail: str = " ...") -> list[str]:
    """Lines of at most `width` columns, broken at spaces where there are any; `tail` where some was left out."""
    lines: list[str] = []
    rest = text
    while rest and len(lines) < max_lines:
        if columns(rest) <= width:
            return [*lines, rest]
        is_last = len(lines) == max_lines - 1
        fitting = _fitting(rest, width - (len(tail) if is_last else 0))
        cut = rest.rfind(" ", 0, fitting + 1)
        cut = cut if cut > fitting // 2 else fitting
        lines.append(rest[:cut].rstrip() + (tail if is_last else ""))
        rest = rest[cut:].lstrip()
    return lines or [""]


def columns(text: str) -> int:
    """How many columns of a terminal a text takes: wide letters two, combining marks none."""
    return sum(_columns_of(sign) for sign in text)


def _columns_of(sign: str) -> int:
    if unicodedata.combining(sign):
        return 0
    return 2 if unicodedata.east_asian_width(sign) in "WF" else 1


def _fitting(text: str, width: int) -> int:
    """How many characters of the text fit into so many columns."""
    taken = 0
    for at, sign in enumerate(text):
        taken += _columns_of(sign)
        if taken > width:
            return at
    return len(text)


def _argument(text: str) -> str:
    """A path as one types it; one that starts like a flag gets a folder in front."""
    return shlex.quote(f"./{text}" if text.startswith("-") else text)
