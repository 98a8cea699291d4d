"""Writes docs/configuration.md from the configuration models, so that the page cannot differ from the code."""

import json
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from foveal.config import known_keys, project
from foveal.training.config import Config

PAGE = Path(__file__).parent / "configuration.md"

_HEAD = """\
# Configuration

<!-- Written by docs/generate.py from the models in the code. Do not edit it: change the model and run `make docs`. -->

A configuration is one YAML file of sections, and any number of `--set section.key=value` on top of it, applied in
order. Both are optional: every key has a default. All mistakes are reported at once, one line a key, with the nearest
key that exists; the exit code is then 2.

```yaml
# recipe.yaml
data:
  image_size: 96
model:
  name: resnet18
  weights: none
train:
  epochs: 8
```

```bash
foveal train photos --out runs/first --config recipe.yaml --set train.batch_size=64
```

`--seed N` is short for `--set seed=N`, and `--device NAME` for `--set train.device=NAME`. The value behind `=` is read
as YAML: `--set data.background=[0,0,0]`, `--set data.columns.label=kind`, `--set train.early_stopping.patience=5`.

One file serves a whole project: every verb with `--config` takes the sections of all verbs, checks each key of them,
and reads its own: `foveal serve` the section `serve`, `foveal export` all but that, the others all but `export` and
`serve`. `--set` takes only what the verb reads: what is typed for one verb is meant for it, and would otherwise change
nothing without a word.

Where the default is `auto`, the value is found out from the data, the model and the machine, before the run begins.
`foveal train DATA --dry-run` prints what comes out; `config.yaml` of the run folder holds it, without any `auto` left.
The environment variables that foveal reads are in [data.md](data.md#the-store).
"""

_WHOLES: tuple[type[BaseModel], ...] = tuple(reader.model() for reader in project.READERS)
"""The training's, and those of verbs that have a section of their own."""

_INTRODUCTIONS = {
    "data.columns": "Names of a table's columns, where they are not the standard ones.",
}
_SECTIONS_OF_TRAINING = {key.rpartition(".")[0] for key, _ in known_keys(Config)}


def render() -> str:
    """The whole page."""
    sections: dict[str, list[tuple[str, FieldInfo]]] = {}
    for whole in _WHOLES:
        for key, field in known_keys(whole):
            if whole is Config or _section(key) not in _SECTIONS_OF_TRAINING:
                sections.setdefault(_section(key), []).append((key, field))
    parts = [_HEAD]
    for name, fields in sections.items():
        title = f"`{name}`" if name else "The root"
        parts.append(f"## {title}\n\n{_introduction(name)}\n\n{_table(fields)}\n")
    return "\n".join(parts)


def type_in_words(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """What a value may be, such as "integer from 1" or "`crop`, `pad`, `squash`"."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_in_words(arguments[0], [*_constraints(arguments[1:]), *metadata])
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin in (Union, types.UnionType):
        words = list(dict.fromkeys(type_in_words(part, metadata) for part in arguments if part is not type(None)))
        return " or ".join(words + ["nothing"] * (type(None) in arguments))
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"list of {type_in_words(arguments[0])}s"
        return f"list of {len(arguments)}: {type_in_words(arguments[0])}"
    if origin is dict:
        return f"mapping of {type_in_words(arguments[0])} to {type_in_words(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "operation"
    name = {bool: "true or false", int: "integer", float: "number", str: "text"}[annotation]
    return f"{name} {_range(metadata)}".rstrip()


def _constraints(metadata: Sequence[Any]) -> Iterator[Any]:
    for item in metadata:
        yield from item.metadata if isinstance(item, FieldInfo) else [item]


def _range(metadata: Sequence[Any]) -> str:
    words = []
    for item in metadata:
        match item:
            case annotated_types.Ge(ge=bound):
                words.append(f"from {bound}")
            case annotated_types.Gt(gt=bound):
                words.append(f"above {bound}")
            case annotated_types.Le(le=bound):
                words.append(f"to {bound}")
            case annotated_types.Lt(lt=bound):
                words.append(f"below {bound}")
    return " ".join(words)


def _section(key: str) -> str:
    return key.rpartition(".")[0]


def _introduction(section: str) -> str:
    """What the code says of a section: the description of the field that holds it."""
    if not section:
        return "Above all sections."
    model: type[BaseModel] = next(whole for whole in _WHOLES if section.partition(".")[0] in whole.model_fields)
    text = ""
    for name in section.split("."):
        field = model.model_fields[name]
        text, inner = field.description or "", field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            model = inner
    return _INTRODUCTIONS.get(section, text)


def _table(fields: Sequence[tuple[str, FieldInfo]]) -> str:
    rows = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for key, field in fields:
        words = type_in_words(field.annotation, field.metadata)
        rows.append(
            f"| `{key}` | {words} | {_default(field.get_default(call_default_factory=True))} | "
            f"{' '.join((field.description or '').split())} |"
        )
    return "\n".join(rows)


def _default(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, tuple):
        value = list(value)
    return f"`{value}`" if isinstance(value, str) else f"`{json.dumps(value)}`"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
