"""From a YAML file and `--set` overrides to a validated configuration, all errors at once."""

import copy
import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from foveal.errors import ConfigError

ModelT = TypeVar("ModelT", bound=BaseModel)
Tree = dict[str, Any]


def load(
    model: type[ModelT],
    file: Path | None = None,
    overrides: Sequence[str] = (),
    *,
    base: Mapping[str, Any] | None = None,
) -> ModelT:
    """Read a configuration.

    Args:
        model: the root model to validate against.
        file: a YAML file, or None for the defaults alone.
        base: what to start from instead of a file, as plain values.
        overrides: `section.key=value` texts, applied in order on top of the file; the value is read as YAML.

    Raises:
        ConfigError: with one problem a key, for every key that is unknown or has a wrong value.
    """
    tree = read_yaml(file) if file is not None else copy.deepcopy(dict(base or {}))
    problems = [problem for text in overrides if (problem := _override(tree, text))]
    return validate(model, tree, origin=str(file) if file else "the command line", earlier_problems=problems)


def read_yaml(file: Path) -> Tree:
    """Read one YAML mapping with the safe loader.

    Raises:
        ConfigError: the file is missing, is not YAML, or is not a mapping.
    """
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The configuration {file} cannot be read: {error}.", fix="check the path.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is not valid YAML: {error}", fix="mend the line that is named.") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{file} must hold sections such as 'train:', and holds a {type(tree).__name__}.")
    return tree


def validate(
    model: type[ModelT], tree: Mapping[str, Any], *, origin: str, earlier_problems: Sequence[str] = ()
) -> ModelT:
    """Validate a tree of plain values, reporting every problem at once with the nearest known key.

    Raises:
        ConfigError: anything does not fit `model`, or `earlier_problems` is not empty.
    """
    problems = list(earlier_problems)
    try:
        config = model.model_validate(tree)
    except ValidationError as error:
        problems += _explain_all(model, error)
        raise _all_wrong(problems, origin) from error
    if problems:
        raise _all_wrong(problems, origin)
    return config


def dump_yaml(config: BaseModel) -> str:
    """The configuration as YAML, in the order of its fields, that `load` reads back equal."""
    text: str = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)
    return text


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
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        parsed = value
    # YAML 1.1 reads 1e-3 as text for want of a dot; people mean the number.
    if isinstance(parsed, str):
        parsed = _number(parsed)
    node = tree
    *sections, last = key.split(".")
    for section in sections:
        below = node.setdefault(section, {})
        if not isinstance(below, dict):
            return f"--set {text}: {section} is a value, not a section"
        node = below
    node[last] = parsed
    return None


def _number(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def _all_wrong(problems: Sequence[str], origin: str) -> ConfigError:
    count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
    return ConfigError(
        f"The configuration from {origin} has {count}.",
        problems=problems,
        fix="see docs/configuration.md for every key, its meaning and its unit.",
    )


def _explain_all(model: type[BaseModel], error: ValidationError) -> list[str]:
    """One line a dotted key: a field that may be one of several types is one problem, not one a type."""
    branches: dict[str, list[Mapping[str, Any]]] = {}
    for detail in error.errors():
        path = [str(part) for part in detail["loc"] if not _is_type_tag(str(part))]
        branches.setdefault(".".join(path) or "(root)", []).append(detail)
    return [_explain(model, dotted, details) for dotted, details in branches.items()]


def _explain(model: type[BaseModel], dotted: str, details: Sequence[Mapping[str, Any]]) -> str:
    if details[0]["type"] == "extra_forbidden":
        keys = [key for key, _ in known_keys(model)]
        near = difflib.get_close_matches(dotted, keys, n=1, cutoff=0.6) or [
            key for key in keys if key.rpartition(".")[2] == dotted.rpartition(".")[2]
        ]
        return f"{dotted}: no such key" + (f"; did you mean {near[0]}?" if near else "")
    if details[0]["type"] == "missing":
        return f"{dotted}: is required"
    messages = [str(detail["msg"]).removeprefix("Input should be ") for detail in details]
    if details[0]["type"] == "value_error":
        return f"{dotted}: {messages[0].removeprefix('Value error, ')}"
    came = details[0].get("input")
    problem = f"{dotted}: expected {' or '.join(messages)}"
    if not isinstance(came, dict):
        problem += f", and came {came!r}"
    choices = [choice for detail in details for choice in _choices(detail)]
    if isinstance(came, str) and (near_choice := difflib.get_close_matches(came, choices, n=1, cutoff=0.6)):
        problem += f"; did you mean {near_choice[0]}?"
    return problem


def _is_type_tag(part: str) -> bool:
    """Whether a location part is pydantic's name for a branch of a union, which no user wrote."""
    return part in {"int", "float", "str", "bool"} or part.startswith(
        ("literal[", "constrained-", "list[", "function-")
    )


def _choices(detail: Mapping[str, Any]) -> list[str]:
    expected = str(detail.get("ctx", {}).get("expected", ""))
    return [part.strip(" '") for part in expected.replace(" or ", ",").split(",") if part.strip()]
