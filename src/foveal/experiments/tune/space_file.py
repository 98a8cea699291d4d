"""A search space from YAML, one line a key, with all that is wrong in it said at once, before any image is read."""

import difflib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from foveal.config import Section, known_keys, validate
from foveal.config.loading import read_yaml
from foveal.errors import ConfigError
from foveal.experiments.tune.space import HEAD_KIND, HEAD_LAYERS, Dimension, Entry, Plain, SearchSpace, is_same
from foveal.files import to_json
from foveal.training.config import Config

_FIXED = {
    "seed": "it decides the split, and trials must be measured on the same images",
    "data": "it decides which images there are, and trials must be measured on the same ones",
    "split": "it decides which images are measured, and trials must be measured on the same ones",
    "audit": "it decides which images share a group, and so the split",
    "log": "it says where figures go, and not how good they are",
    "train.device": "it says where to compute, and not what",
    "train.devices": "a study trains in one process; start more workers instead",
    "train.nodes": "a study trains in one process; start more workers instead",
    "train.checkpoint_minutes": "it says how often to save, and not what",
    "train.early_stopping.monitor": "it is the figure that trials are compared by",
}
_FREE = (
    "data.image_size", "data.fit", "data.crop_fraction", "data.interpolation", "data.box_margin", "data.background",
)  # fmt: skip

Number = Annotated[float, Field(strict=False)]
Length = Annotated[int, Field(ge=0, le=64)]


class _Line(Section):
    when: dict[str, Any] = Field(default_factory=dict)
    """Keys with the value, or a list of the values, under which this one exists."""


class CategoricalLine(_Line):
    """One of some values, of any kind that the key takes."""

    type: Literal["categorical"]
    """categorical: one of some values."""
    choices: Annotated[tuple[Any, ...], Field(min_length=1)]
    """What is chosen from."""


class _Range(_Line):
    low: Number | None = None
    """Smallest value; it can be chosen."""
    high: Number | None = None
    """Largest value; it can be chosen."""
    step: Annotated[float, Field(gt=0.0)] | None = None
    """Distance between neighbours."""
    log: bool = False
    """Whether equal ratios are equally likely, as suits learning rates."""


class NumberLine(_Range):
    """A number between two others."""

    type: Literal["float", "int"]
    """float: any number of the range; int: a whole one."""

    @model_validator(mode="after")
    def _is_a_range(self) -> "NumberLine":
        _check_range(self, whole=self.type == "int")
        return self


class ListLine(_Range):
    """A list of numbers, whose length varies too."""

    type: Literal["float_list", "int_list"]
    """float_list: a list of numbers; int_list: of whole ones."""
    length: Length | tuple[Length, Length] | str | None = None
    """How many: a number, [smallest, largest], or the key of a list that it is as long as."""
    min_length: Length | None = None
    """Smallest length, the same as the first of `length`."""
    max_length: Length | None = None
    """Largest length, the same as the second of `length`."""
    choices: Annotated[tuple[float, ...], Field(min_length=1)] | None = None
    """What each place is chosen from, instead of a range."""

    @model_validator(mode="after")
    def _is_a_list(self) -> "ListLine":
        bounds = (self.min_length, self.max_length)
        if (self.length is None) == (bounds == (None, None)) or None in bounds != (None, None) == bounds:
            raise ValueError("give length: N, length: [N, M] or length: KEY, or else min_length and max_length")
        if self.length is None and None in bounds:
            raise ValueError("min_length and max_length go together")
        smallest, largest = self.bounds if not isinstance(self.bounds, str) else (0, 0)
        if smallest > largest:
            raise ValueError(f"the smallest length, {smallest}, is above the largest, {largest}")
        if self.choices is None:
            _check_range(self, whole=self.type == "int_list")
        elif any(value is not None for value in (self.low, self.high, self.step)) or self.log:
            raise ValueError("give choices, or low and high, and not both")
        elif self.type == "int_list" and any(value != int(value) for value in self.choices):
            raise ValueError("the choices of an int_list are whole numbers")
        return self

    @property
    def bounds(self) -> tuple[int, int] | str:
        """Smallest and largest length, or the list that it is as long as."""
        if self.length is None:
            return (self.min_length or 0, self.max_length or 0)
        return self.length if isinstance(self.length, str | tuple) else (self.length, self.length)


_LINES: dict[str, type[_Line]] = {
    "categorical": CategoricalLine,
    "float": NumberLine,
    "int": NumberLine,
    "float_list": ListLine,
    "int_list": ListLine,
}


def _check_range(line: _Range, *, whole: bool) -> None:
    low, high = line.low, line.high
    if low is None or high is None:
        raise ValueError("a range needs low and high")
    if low > high:
        raise ValueError(f"low, {low:g}, is above high, {high:g}")
    if line.log and low <= 0:
        raise ValueError(f"log=true needs a low above 0, and came {low:g}")
    if line.log and line.step is not None:
        raise ValueError("log and step do not go together: give choices")
    if whole and any(value != int(value) for value in (low, high, line.step or 1)):
        raise ValueError("low, high and step of whole numbers are whole numbers")
    if line.step is not None and not math.isclose((high - low) / line.step, round((high - low) / line.step)):
        raise ValueError(f"no number of steps of {line.step:g} leads from {low:g} to {high:g}")


def read_space(file: Path, base: Config) -> SearchSpace:
    """Read a search space and try every choice and both ends of every range with the configuration around it.

    Args:
        file: YAML with a line a key, as `optim.lr: {type: float, low: 1e-4, high: 1e-2, log: true}`.
        base: the configuration that holds for all that the space does not name.

    Raises:
        ConfigError: with a line for each thing that is wrong.
    """
    return make_space(read_yaml(file), base, origin=str(file))


def make_space(lines: Mapping[str, Any], base: Config, *, origin: str = "the space") -> SearchSpace:
    """The same from plain values.

    Raises:
        ConfigError: with a line for each thing that is wrong.
    """
    if not lines:
        raise _all_wrong(["it names no key"], origin)
    problems: list[str] = []
    entries: dict[str, Entry] = {}
    for key, line in lines.items():
        if found := _wrong_key(str(key), line):
            problems.append(found)
            continue
        try:
            entries[key] = _entry(key, line)
        except ConfigError as error:
            problems += error.problems
    for entry in list(entries.values()):
        if found_here := _wrong_conditions(entry, entries, lines, base):
            problems += found_here
            del entries[entry.key]
    ordered, circle = _in_order(entries)
    if circle:
        problems.append(f"{', '.join(circle)}: each waits for another of them to be decided")
    # What waits for a line that is wrong cannot be judged before that one is mended.
    judged: list[Entry] = []
    for entry in ordered:
        if all(key not in lines or key in {each.key for each in judged} for key in _needs(entry, follows=False)):
            judged.append(entry)
    problems += _wrong_values(SearchSpace(tuple(judged), base))
    if problems:
        raise _all_wrong(problems, origin)
    return SearchSpace(ordered, base)


def _wrong_key(key: str, line: Any) -> str:
    """What is wrong with a key or with the kind of its line; empty where nothing is."""
    known = [name for name, _ in known_keys(Config)]
    if key not in known:
        if isinstance(line, Mapping) and "type" not in line and any(name.startswith(f"{key}.") for name in known):
            return f"{key}: is a section; write each key whole, as `{_first_below(key, known)}: {{type: ...}}`"
        if any(name.startswith(f"{key}.") for name in known):
            return f"{key}: is a section, not a key; did you mean {_first_below(key, known)}?"
        return _unknown(key)
    for fixed, reason in _FIXED.items():
        if (key == fixed or key.startswith(f"{fixed}.")) and key not in _FREE:
            return f"{key}: cannot be varied: {reason}"
    if not isinstance(line, Mapping):
        return f"{key}: expected a line such as {{type: categorical, choices: [...]}}, and came {line!r}"
    kind = line.get("type")
    if kind not in _LINES:
        near = difflib.get_close_matches(str(kind), _LINES, n=1)
        came = "and none came" if kind is None else f"and came {kind!r}"
        return f"{key}.type: expected {', '.join(_LINES)}, {came}{f'; did you mean {near[0]}?' if near else ''}"
    return ""


def _unknown(key: str) -> str:
    """The words of the configuration for a key that it does not know, with what may have been meant."""
    tree: dict[str, Any] = {}
    node = tree
    *sections, last = key.split(".")
    for section in sections:
        node = node.setdefault(section, {})
    node[last] = None
    try:
        validate(Config, tree, origin="the space")
    except ConfigError as error:
        return error.problems[0]
    return f"{key}: no such key"


def _first_below(section: str, known: Sequence[str]) -> str:
    return next(name for name in known if name.startswith(f"{section}."))


def _entry(key: str, spec: Mapping[str, Any]) -> Entry:
    """One line as an entry.

    Raises:
        ConfigError: its problems, each with the key before it.
    """
    try:
        line = validate(_LINES[spec["type"]], spec, origin=key)
    except ConfigError as error:
        problems = [f"{key}.{each}".replace(f"{key}.(root)", key) for each in error.problems]
        raise ConfigError(error.message, problems=problems) from error
    when = {name: tuple(value) if isinstance(value, list) else (value,) for name, value in line.when.items()}
    meanings: dict[Plain, Any] = {}
    if isinstance(line, CategoricalLine):
        # Python's 1, 1.0 and true are the same key.
        meanings = {_plain(choice): choice for choice in line.choices}
        if len(meanings) < len(line.choices):
            raise ConfigError(f"{key} repeats a choice.", problems=[f"{key}.choices: a choice occurs twice"])
        return Entry(key, Dimension(key, "categorical", choices=tuple(meanings)), None, when, meanings, spec)
    if isinstance(line, ListLine):
        return Entry(key, _element(key, line), line.bounds, when, meanings, spec)
    whole = isinstance(line, NumberLine) and line.type == "int"
    return Entry(key, _number(key, line, whole=whole), None, when, meanings, spec)


def _element(key: str, line: ListLine) -> Dimension:
    whole = line.type == "int_list"
    if line.choices is not None:
        choices = tuple(int(value) if whole else value for value in line.choices)
        return Dimension(key, "categorical", choices=choices)
    return _number(key, line, whole=whole)


def _number(key: str, line: Any, *, whole: bool) -> Dimension:
    step = line.step if line.step is not None or not whole else 1.0
    return Dimension(key, "int" if whole else "float", line.low or 0.0, line.high or 0.0, step, line.log)


def _plain(choice: Any) -> Plain:
    """What a study keeps of a choice: itself, or its JSON where it is a list or a mapping."""
    return choice if choice is None or isinstance(choice, str | int | float | bool) else to_json(choice)


def _wrong_conditions(entry: Entry, entries: Mapping[str, Entry], lines: Mapping[str, Any], base: Config) -> list[str]:
    known = [name for name, _ in known_keys(Config)]
    problems = []
    for key in entry.when:
        if key not in known:
            problems.append(f"{entry.key}.when: {_unknown(key)}")
        elif key == entry.key:
            problems.append(f"{entry.key}.when: a key cannot wait for itself")
        elif key in entries and entries[key].num_elements is not None:
            problems.append(f"{entry.key}.when: {key} is a list, and a list decides nothing")
    other = entry.num_elements
    if isinstance(other, str):
        if other not in known:
            problems.append(f"{entry.key}.length: {_unknown(other)}")
        elif other == entry.key or not _is_list(other, entries, lines, base):
            problems.append(f"{entry.key}.length: {other} is no list")
    return problems


def _is_list(key: str, entries: Mapping[str, Entry], lines: Mapping[str, Any], base: Config) -> bool:
    if key in entries:
        meanings = entries[key].meanings.values()
        return entries[key].num_elements is not None or (bool(meanings) and all(isinstance(m, list) for m in meanings))
    return key in lines or isinstance(SearchSpace((), base).effective(key, {}).value, list)


def _in_order(entries: Mapping[str, Entry]) -> tuple[tuple[Entry, ...], list[str]]:
    """The entries, each after those that decide it and else as they were written; and those that wait in a circle."""
    follows = HEAD_LAYERS in entries and HEAD_KIND not in entries
    waits: dict[str, set[str]] = {}
    for key, entry in entries.items():
        waits[key] = _needs(entry, follows=follows) & set(entries)
    ordered: list[Entry] = []
    while waits:
        ready = next((key for key, needs in waits.items() if not needs), None)
        if ready is None:
            return tuple(ordered), list(waits)
        del waits[ready]
        ordered.append(entries[ready])
        for needs in waits.values():
            needs.discard(ready)
    return tuple(ordered), []


def _needs(entry: Entry, *, follows: bool) -> set[str]:
    """The keys that are to be decided before an entry."""
    needs = set(entry.when) | ({entry.num_elements} if isinstance(entry.num_elements, str) else set())
    if follows and HEAD_KIND in needs and entry.key != HEAD_LAYERS:
        needs.add(HEAD_LAYERS)
    return needs


def _wrong_values(space: SearchSpace) -> list[str]:
    """What the configuration refuses of the ends and choices, and conditions that never hold."""
    problems: dict[str, None] = {}
    for reached in space.extremes():
        entry, drawn = reached.entry, reached.drawn
        if not _exists(entry, space, drawn.values):
            needs = ", ".join(f"{key}={_words(allowed)}" for key, allowed in entry.when.items())
            problems[f"{entry.key}.when: {needs} never holds, so that the key never exists"] = None
            continue
        for key, allowed in entry.when.items():
            for value in allowed:
                if (other := _of_space(space, key)) and not _can_be(other, value):
                    problems[f"{entry.key}.when: {key} is never {value!r}"] = None
        try:
            space.configure(drawn.values, origin=entry.key)
        except ConfigError as error:
            shown = to_json(drawn.values.get(entry.key))
            for problem in error.problems:
                about = problem.partition(":")[0]
                if about == entry.key or about.startswith(f"{entry.key}."):
                    problems[problem] = None
                elif about not in space.keys:  # which are judged by themselves
                    problems[f"{entry.key}={shown}: {problem}"] = None
    return list(problems)


def _exists(entry: Entry, space: SearchSpace, values: Mapping[str, Any]) -> bool:
    if entry.key in values:
        return True
    # A list that is as long as an empty one is left out of the configuration, and is there all the same.
    return isinstance(entry.num_elements, str) and all(
        space.effective(key, values) in allowed for key, allowed in entry.when.items()
    )


def _of_space(space: SearchSpace, key: str) -> Entry | None:
    return next((entry for entry in space.entries if entry.key == key), None)


def _can_be(entry: Entry, value: Any) -> bool:
    if entry.element.kind == "categorical":
        return any(is_same(entry.meanings[choice], value) for choice in entry.element.choices)
    return entry.element.holds(value)


def _words(allowed: Sequence[Any]) -> str:
    return " or ".join(str(value) for value in allowed)


def _all_wrong(problems: Sequence[str], origin: str) -> ConfigError:
    count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
    return ConfigError(
        f"The search space from {origin} has {count}.",
        problems=problems,
        fix="see docs/tune.md for the kinds of lines, and docs/configuration.md for every key.",
    )
