"""The policy of repairs: what `clean` does about each kind of finding, as a YAML file that a person can edit."""

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import ValidationInfo, field_validator

from foveal.auditing.findings import Repair
from foveal.auditing.kinds import KINDS
from foveal.config import Section, load
from foveal.config.plain_yaml import dump
from foveal.errors import ConfigError

SampleAction = Literal["none", "quarantine", "drop"]
CopyAction = Literal["none", "keep_one", "regroup"]
LeakAction = Literal["none", "move", "quarantine"]
ClassAction = Literal["none", "merge_classes"]
Action = Literal["none", "quarantine", "drop", "keep_one", "regroup", "move", "merge_classes"]
MoveTo = Literal["auto", "train", "test", "largest", "balance"]

_ONLY_BY_REVIEW = "labels are changed only by a file that a person has reviewed: --relabel REVIEWED.csv"
_HEAD = """\
What `foveal clean` does about each kind of finding of an audit; docs/cleaning.md says more.
  none           nothing
  quarantine     the row stays in the manifest with its reason, and is used no more
  drop           the row leaves the manifest
  keep_one       one of a set of copies stays, the others are quarantined
  regroup        copies get one group, which no later split or fold cuts
  move           copies that lie in several splits go to one of them
  merge_classes  the classes become one, under the name that has more images
"""


class RepairPolicy(Section):
    """One action for each kind of finding that has a repair, and how the repairs choose."""

    unreadable: SampleAction = "quarantine"
    """Files that cannot be used; the audit's own manifest has them in quarantine already."""
    corrupt_jpeg: SampleAction = "quarantine"
    """JPEG files that decode to garbage in part."""
    blank: SampleAction = "quarantine"
    """Pictures with nothing in them."""
    label_conflict: SampleAction = "quarantine"
    """One picture under two labels: all of its copies, but for those whose label a reviewed file states."""
    wrong_label: SampleAction = "none"
    """Labels that are probably wrong; a reviewed file changes labels, and what it states is kept."""
    off_domain: SampleAction = "none"
    """Pictures that are far from all others."""
    tiny: SampleAction = "none"
    """Tiny pictures."""
    blurred: SampleAction = "none"
    """Blurred pictures."""
    dark: SampleAction = "none"
    """Dark pictures."""
    overexposed: SampleAction = "none"
    """Overexposed pictures."""
    odd_aspect: SampleAction = "none"
    """Pictures much longer than wide, or the reverse."""
    binarised: SampleAction = "none"
    """Pictures of a few values only, such as masks."""
    odd_channels: SampleAction = "none"
    """Grey pictures among colour ones, or the reverse."""
    animated: SampleAction = "none"
    """Animations and files of several pages, of which the first frame is used."""
    class_names_alike: ClassAction = "merge_classes"
    """Class names that differ only by case or spaces."""
    exact_duplicate: CopyAction = "keep_one"
    """The same bytes more than once: the copy in test stays before that in val, and that before one in train."""
    near_duplicate: CopyAction = "regroup"
    """Copies that were resized, turned, recoloured or cut; keep_one keeps the largest, of these the shortest path."""
    copy_by_name: CopyAction = "regroup"
    """Augmented copies by their name."""
    leak: LeakAction = "move"
    """Copies in several splits; quarantine takes those out that lie on the other sides."""
    move_to: MoveTo = "auto"
    """Which split gets all copies. train: train if one lies there, else val. test: test if one lies there, else val.
    largest: where most of them lie. balance: drawn by class, so that each split gets back about as many images as it
    gives. auto: train, but for copies of a class of which a split would lose more than half; these as by balance.
    Where the copies are quarantined, auto is test."""
    new_classes: tuple[str, ...] = ()
    """Class names that a reviewed file may bring in; any other unknown name is refused as a slip of the pen."""

    @field_validator("wrong_label", mode="before")
    @classmethod
    def _not_by_machine(cls, value: Any) -> Any:
        if value == "relabel":
            raise ValueError(_ONLY_BY_REVIEW)
        return value

    @field_validator("move_to")
    @classmethod
    def _draws_need_moves(cls, value: MoveTo, info: ValidationInfo) -> MoveTo:
        if value == "balance" and info.data.get("leak") == "quarantine":
            raise ValueError("balance draws a side for the copies to move to, which leak: quarantine does not do")
        return value

    def action(self, kind: str) -> Action:
        """What is done about findings of a kind; none where only a person can decide."""
        return getattr(self, kind) if kind in REPAIRABLE else "none"

    def kinds_with(self, *actions: Action) -> list[str]:
        """The kinds of findings that get one of these actions, in the order of the policy."""
        return [kind for kind in REPAIRABLE if getattr(self, kind) in actions]


REPAIRABLE: tuple[str, ...] = tuple(name for name in RepairPolicy.model_fields if name in KINDS)
"""The kinds of findings that `clean` can do something about, in the order of the policy."""


def default_repair(kind: str) -> Repair:
    """What `clean` does about findings of this kind where no policy says otherwise."""
    action = RepairPolicy().action(kind)
    return "none" if action == "drop" else action


def read_policy(
    policy: RepairPolicy | Mapping[str, Any] | str | PathLike[str] | None, overrides: Sequence[str] = ()
) -> RepairPolicy:
    """A policy from a YAML file, a mapping or the defaults, with `key=value` overrides on top.

    Raises:
        ConfigError: it names kinds or actions that do not exist or do not go together; all at once.
    """
    try:
        if isinstance(policy, RepairPolicy):
            return load(RepairPolicy, None, overrides, base=policy.model_dump()) if overrides else policy
        if policy is None or isinstance(policy, Mapping):
            return load(RepairPolicy, None, overrides, base=policy)
        return load(RepairPolicy, Path(policy), overrides)
    except ConfigError as error:
        if not error.problems:
            raise
        raise ConfigError(
            error.message.replace("The configuration", "The policy", 1),
            problems=[_explained(problem) for problem in error.problems],
            fix="see every key and its meaning in what this writes: foveal clean --write-policy policy.yaml",
        ) from error


def _explained(problem: str) -> str:
    key = problem.partition(":")[0]
    if key in KINDS and key not in REPAIRABLE:
        return f"{key}: clean has no repair for such findings; only a person can decide"
    return problem


def policy_yaml(policy: RepairPolicy, *origin: str) -> str:
    """The policy as YAML with a comment above each key, that `read_policy` reads back equal.

    Args:
        policy: what to write.
        *origin: further lines for the head, such as what it was applied to.
    """
    lines = [f"# {line}".rstrip() for line in [*_HEAD.splitlines(), *origin]]
    for name, field in RepairPolicy.model_fields.items():
        described = [f"# {line.strip()}" for line in (field.description or "").splitlines()]
        choices = get_args(field.annotation)
        if ... not in choices:
            described.append(f"# One of: {', '.join(choices)}.")
        lines += ["", *described, dump({name: policy.model_dump(mode="json")[name]}).rstrip("\n")]
    return "\n".join(lines) + "\n"
