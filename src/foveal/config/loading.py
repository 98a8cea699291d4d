"""From a YAML file and `--set` overrides to a validated configuration, all errors at once."""

import copy
import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from foveal.config import plain_yaml, project
from foveal.errors import ConfigError

ModelT = TypeVar("ModelT", bound=BaseModel)
Tree = dict[str, Any]

# Where these happen, every part of the place is a key that the user wrote.
_KEY_ERRORS = {"extra_forbidden", "invalid_key"}


def load(
    model: type[ModelT],
    file: Path | None = None,
    overrides: Sequence[str] = (),
    *,
    base: Mapping[str, Any] | None = None,
    is_shared: bool = False,
) -> ModelT:
    """Read a configuration.

    Args:
        model: the root model to validate against.
        file: a YAML file, or None for the defaults alone.
        base: what to start from instead of a file, as plain values.
        overrides: `section.key=value` texts, applied in order on top of the file; the value is read as YAML.
        is_shared: whether file or base may hold sections that only other verbs read, so that one file serves a whole
            project. They are checked like the others, and left out. An override of one is an error: whoever types it
            means the verb at hand, where it would change nothing.

    Raises:
        ConfigError: with one problem a key, for every key that is unknown or has a wrong value.
    """
    tree = read_yaml(file) if file is not None else copy.deepcopy(dict(base or {}))
    problems = _take_out_others(model, tree) if is_shared else []
    for text in overrides:
        problem = (_read_elsewhere(model, text) if is_shared else None) or _override(tree, text)
        problems += [problem] if problem else []
    origin = str(file) if file else "the command line"
    return validate(model, tree, origin=origin, earlier_problems=problems, is_shared=is_shared)


def read_yaml(file: Path) -> Tree:
    """Read one YAML mapping with the safe loader.

    Raises:
        ConfigError: the file is missing, is not YAML, names a key twice, or is not a mapping.
    """
    try:
        tree = plain_yaml.parse(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The configuration {file} cannot be read: {error}.", fix="check the path.") from error
    except plain_yaml.YamlError as error:
        raise ConfigError(f"{file} is not valid YAML: {error}", fix="mend the line that is named.") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{file} must hold sections such as 'train:', and holds a {type(tree).__name__}.")
    return tree


def validate(
    model: type[ModelT],
    tree: Mapping[str, Any],
    *,
    origin: str,
    earlier_problems: Sequence[str] = (),
    is_shared: bool = False,
) -> ModelT:
    """Validate a tree of plain values, reporting every problem at once with the nearest known key.

    Args:
        model: the root model.
        tree: what was read.
        origin: where it came from, for the message.
        earlier_problems: what is wrong with it already.
        is_shared: whether a key that is unknown may have been meant for a section of another verb.

    Raises:
        ConfigError: anything does not fit `model`, or `earlier_problems` is not empty.
    """
    problems = list(earlier_problems)
    try:
        config = model.model_validate(_without_empty_sections(model, tree))
    except ValidationError as error:
        problems += _explain_all(model, error, _other_keys(model) if is_shared else ())
        raise _all_wrong(problems, origin) from error
    if problems:
        raise _all_wrong(problems, origin)
    return config


def dump_yaml(config: BaseModel) -> str:
    """The configuration as YAML, in the order of its fields, that `load` reads back equal."""
    return plain_yaml.dump(config.model_dump(mode="json"))


def known_keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every dotted key that ends in a value, with its field, in the order of declaration."""
    for name, field in model.model_fields.items():
        inner = _section_of(field)
        if inner is None:
            yield prefix + name, field
        else:
            yield from known_keys(inner, f"{prefix}{name}.")


def _section_of(field: FieldInfo) -> type[BaseModel] | None:
    for candidate in (field.annotation, *get_args(field.annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _override(tree: Tree, text: str) -> str | None:
    """Apply `a.b=value` to the tree; returns the problem, if there is one."""
    key, sign, value = text.partition("=")
    if not sign or not all(key.split(".")):
        return f"--set {text}: expected section.key=value, as in --set train.epochs=8"
    node = tree
    *sections, last = key.split(".")
    for section in sections:
        if node.get(section) is None:  # also a section of the file with nothing below it
            node[section] = {}
        below = node[section]
        if not isinstance(below, dict):
            return f"--set {text}: {section} is a value, not a section"
        node = below
    node[last] = plain_yaml.parse_value(value)
    return None


def _take_out_others(model: type[BaseModel], tree: Tree) -> list[str]:
    """Take the sections that only other verbs read out of a tree; returns what is wrong with them."""
    problems: list[str] = []
    for section in [key for key in tree if key not in model.model_fields]:
        if (reader := project.reader_of(section)) is None:
            continue  # it is nobody's, which validating tells
        root = reader.model()
        try:
            root.model_validate(_without_empty_sections(root, {section: tree.pop(section)}))
        except ValidationError as error:
            problems += _explain_all(root, error, ())
    return problems


def _read_elsewhere(model: type[BaseModel], text: str) -> str | None:
    """What is wrong with an override of a section that only other verbs read."""
    section = text.partition("=")[0].partition(".")[0]
    if section in model.model_fields or (reader := project.reader_of(section)) is None:
        return None
    return f"--set {text}: {section} is read by {reader.verbs} alone, and would change nothing here"


def _other_keys(model: type[BaseModel]) -> list[str]:
    """Every dotted key that only other verbs read."""
    others = dict(project.other_sections(model))
    return [
        key
        for root in dict.fromkeys(others.values())
        for key, _ in known_keys(root)
        if others.get(key.partition(".")[0]) is root
    ]


def _without_empty_sections(model: type[BaseModel], tree: Mapping[str, Any]) -> Tree:
    """Drop `train:` with nothing below it, as is left where all its keys are commented out."""
    kept: Tree = {}
    for key, value in tree.items():
        field = model.model_fields.get(key)
        inner = _section_of(field) if field else None
        if inner is None:
            kept[key] = value
        elif value is not None:
            kept[key] = _without_empty_sections(inner, value) if isinstance(value, Mapping) else value
    return kept


def _all_wrong(problems: Sequence[str], origin: str) -> ConfigError:
    count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
    return ConfigError(
        f"The configuration from {origin} has {count}.",
        problems=problems,
        fix="see docs/configuration.md for every key, its meaning and its unit.",
    )


def _explain_all(model: type[BaseModel], error: ValidationError, other_keys: Sequence[str]) -> list[str]:
    """One line a dotted key: a field that may be one of several types is one problem, not one a type."""
    branches: dict[str, list[Mapping[str, Any]]] = {}
    for detail in error.errors():
        parts = [str(part) for part in detail["loc"]]
        if detail["type"] not in _KEY_ERRORS:
            parts = [part for part in parts if not _is_type_tag(part)]
        branches.setdefault(".".join(parts) or "(root)", []).append(detail)
    keys = [key for key, _ in known_keys(model)]
    return [_explain(keys, other_keys, dotted, details) for dotted, details in branches.items()]


def _explain(keys: Sequence[str], other_keys: Sequence[str], dotted: str, details: Sequence[Mapping[str, Any]]) -> str:
    kind = details[0]["type"]
    if kind in _KEY_ERRORS:
        return f"{dotted}: no such key{_nearest(keys, other_keys, dotted)}"
    if kind == "missing":
        return f"{dotted}: is required"
    if kind == "value_error":
        return f"{dotted}: {str(details[0]['msg']).removeprefix('Value error, ')}"
    came = details[0].get("input")
    problem = f"{dotted}: expected {' or '.join(_expected(detail) for detail in details)}"
    if not isinstance(came, dict):
        problem += f", and came {came!r}"
    choices = [choice for detail in details for choice in _choices(detail)]
    if isinstance(came, str) and (near_choice := difflib.get_close_matches(came, choices, n=1, cutoff=0.6)):
        problem += f"; did you mean {near_choice[0]}?"
    return problem


def _nearest(keys: Sequence[str], other_keys: Sequence[str], dotted: str) -> str:
    """What may have been meant: the same name elsewhere, else a name in the same section that looks alike."""
    every = [*keys, *other_keys]
    section, _, name = dotted.rpartition(".")
    if dotted in every:  # written as one word in a file
        return f"; write `{name}:` below `{section}:`"
    # Within a section of this verb's, no key of another verb's was meant.
    near = [key for key in (keys if section else every) if key.rpartition(".")[2] == name]
    if not near:
        sections = {key[:place] for key in every for place, letter in enumerate(key) if letter == "."}
        beside = {key.rpartition(".")[2]: key for key in [*every, *sections] if key.rpartition(".")[0] == section}
        near = [beside[match] for match in difflib.get_close_matches(name, beside, n=1, cutoff=0.6)]
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _expected(detail: Mapping[str, Any]) -> str:
    kind = detail["type"]
    if kind in {"model_type", "model_attributes_type"}:
        return "a section with keys of its own"
    if kind in {"tuple_type", "list_type"}:
        return "a list, as in [a, b]"
    # Pydantic goes on to say why a text cannot be parsed, which the value itself shows.
    words = str(detail["msg"]).removeprefix("Input should be ").partition(", unable to")[0]
    return words.partition(", got a number")[0] + (" without a fraction" if kind == "int_from_float" else "")


def _is_type_tag(part: str) -> bool:
    """Whether a location part is pydantic's name for a branch of a union, which no user wrote."""
    return part in {"int", "float", "str", "bool"} or part.startswith(
        ("literal[", "constrained-", "list[", "tuple[", "function-")
    )


def _choices(detail: Mapping[str, Any]) -> list[str]:
    expected = str(detail.get("ctx", {}).get("expected", ""))
    return [part.strip(" '") for part in expected.replace(" or ", ",").split(",") if part.strip()]
