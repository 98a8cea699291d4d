"""YAML without its surprises.

PyYAML follows YAML 1.1, where `off` and `no` are false, `1e-3` is text, `010` is eight, `12:30` is 750, dates are
objects, and a key that is written twice silently wins over the first. Here plain words are read as in the core schema
of YAML 1.2: only true and false are truth values, every way to write a decimal number is a number, and all else is
text. A key that occurs twice is an error.
"""

import re
from collections.abc import Hashable
from typing import Any

import yaml

YamlError = yaml.YAMLError

_TAG = "tag:yaml.org,2002:"
# A number with leading zeros is a name such as 007.
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)$")
_FLOAT = re.compile(
    r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*(?:[eE][-+]?[0-9]+)?|[eE][-+]?[0-9]+)|\.[0-9]+(?:[eE][-+]?[0-9]+)?"
    r"|\.inf|\.Inf|\.INF)$|\.(?:nan|NaN|NAN)$"
)
_NUMBER_STARTS = list("-+.0123456789")


class _Loader(yaml.SafeLoader):
    """Names no classes and runs nothing, like the loader it is made of."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  declared so by PyYAML

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            if key_node.tag == f"{_TAG}merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable):
                if key in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key!r} occurs twice", key_node.start_mark)
                seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 or this loader would not read as text."""


_Loader.add_implicit_resolver(f"{_TAG}null", re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_Loader.add_implicit_resolver(f"{_TAG}bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(f"{_TAG}int", _INTEGER, _NUMBER_STARTS)
_Loader.add_implicit_resolver(f"{_TAG}float", _FLOAT, _NUMBER_STARTS)
_Loader.add_implicit_resolver(f"{_TAG}merge", re.compile(r"<<$"), ["<"])
_Dumper.add_implicit_resolver(f"{_TAG}float", _FLOAT, _NUMBER_STARTS)


def parse(text: str) -> Any:
    """Read a YAML document.

    Raises:
        YamlError: it is none, holds a tag that is not plain, or a key twice.
    """
    return yaml.load(text, Loader=_Loader)  # noqa: S506  _Loader is a SafeLoader


def parse_value(text: str) -> Any:
    """Read the value of an override: a number, truth value or null, a list or mapping in brackets, else text.

    What is not in brackets or quotes is taken whole: a path may hold `: ` and ` #`.
    """
    text = text.strip()
    if text.startswith(("[", "{", '"', "'")):
        try:
            return parse(text)
        except YamlError:
            return text
    loader = _Loader("")
    try:
        tag = loader.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
        return text if tag == f"{_TAG}merge" else loader.construct_object(yaml.ScalarNode(tag, text))
    finally:
        loader.dispose()


def dump(value: Any) -> str:
    """Plain values as YAML that `parse` reads back equal, and YAML 1.1 too."""
    written: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return written
