import re
from pathlib import Path
from typing import get_args

import pytest
import yaml

from foveal.auditing.findings import REPAIRS
from foveal.auditing.kinds import KINDS
from foveal.auditing.repair_policy import REPAIRABLE, RepairPolicy, default_repair, policy_yaml, read_policy
from foveal.errors import ConfigError

PAGE = Path(__file__).parents[2] / "docs" / "cleaning.md"


def test_the_defaults_are_repairs_an_audit_may_offer() -> None:
    assert set(map(default_repair, KINDS)) <= set(REPAIRS)
    assert {kind: default_repair(kind) for kind in KINDS if default_repair(kind) != "none"} == {
        "unreadable": "quarantine", "corrupt_jpeg": "quarantine", "blank": "quarantine",
        "label_conflict": "quarantine", "class_names_alike": "merge_classes", "exact_duplicate": "keep_one",
        "near_duplicate": "regroup", "copy_by_name": "regroup", "leak": "move",
    }  # fmt: skip


@pytest.mark.parametrize(
    "policy", [RepairPolicy(), RepairPolicy(leak="none", blank="drop", new_classes=("a: b\n# c", "=1", "no", "7"))]
)
def test_what_is_written_reads_back_equal_and_explains_every_key(policy: RepairPolicy, tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(policy_yaml(policy, "", 'Applied to "x\\ny"'), encoding="utf-8")
    assert read_policy(file) == policy
    text = file.read_text(encoding="utf-8")
    for name, field in RepairPolicy.model_fields.items():
        above = text[: text.index(f"\n{name}:")].rpartition("\n\n")[2]
        assert " ".join((field.description or "").split()[:4]) in above
    assert set(yaml.safe_load(text)) == set(RepairPolicy.model_fields)


def test_all_faults_are_told_at_once() -> None:
    faulty = {
        "blank": "keep_one", "leek": "move", "shortcut": "drop", "wrong_label": "relabel", "leak": "quarantine",
        "near_duplicate": "regruop", "move_to": "balance",
    }  # fmt: skip
    with pytest.raises(ConfigError, match="The policy from the command line has 7 problems") as caught:
        read_policy(faulty, ["tiny=dorp"])
    problems = "\n".join(caught.value.problems)
    for words in (
        "blank: expected 'none', 'quarantine' or 'drop', and came 'keep_one'", "leek: no such key; did you mean leak?",
        "shortcut: clean has no repair for such findings", "wrong_label: labels are changed only by a file",
        "did you mean regroup?", "tiny: expected", "did you mean drop?", "move_to: balance draws a side",
    ):  # fmt: skip
        assert words in problems
    assert "--write-policy" in caught.value.fix
    assert caught.value.exit_code == 2
    with pytest.raises(ConfigError, match="cannot be read"):
        read_policy("nowhere.yaml")


def test_overrides_come_on_top() -> None:
    base = RepairPolicy(blank="drop")
    assert read_policy(base, ["tiny=quarantine"]) == RepairPolicy(blank="drop", tiny="quarantine")
    assert read_policy(None, ["new_classes=[owl]"]).new_classes == ("owl",)
    assert read_policy(base) is base


def test_the_page_has_every_kind_with_its_actions_and_default() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    for name in (*REPAIRABLE, "move_to"):
        field = RepairPolicy.model_fields[name]
        default, choices = rows[name].split(" | ")[:2]
        assert default == f"`{field.default}`"
        assert choices == ", ".join(f"`{choice}`" for choice in get_args(field.annotation))
    assert set(KINDS) - set(REPAIRABLE) <= set(re.findall(r"`(\w+)`", PAGE.read_text(encoding="utf-8")))
