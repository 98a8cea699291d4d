"""What a sweep goes through: keys with their values, and every combination of them as a configuration."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from foveal.config import known_keys, load
from foveal.config.plain_yaml import parse_value
from foveal.errors import ConfigError
from foveal.model.zoo import check_name
from foveal.training.config import Config

TRAIN_IMAGES = "train_images"
"""The one key that is no configuration: how many of the training images are used."""
ALL = "all"
MAX_RUNS = 1000

_PIXELS = {
    *("image_size", "fit", "crop_fraction", "interpolation", "background", "box_margin"),
    *("num_workers", "store", "store_cap_gib"),
}
_WHOLE = ("split", "audit", "log")
_UNSAFE = re.compile(r"[^A-Za-z0-9._+-]+")
_LONGEST_NAME = 120


@dataclass(frozen=True)
class Axis:
    """A key and the values that it takes in turn.

    Attributes:
        key: dotted, as of --set; or `train_images`.
        values: plain values.
    """

    key: str
    values: tuple[Any, ...]

    @property
    def label(self) -> str:
        """The key for a person."""
        return "training images" if self.key == TRAIN_IMAGES else self.key


@dataclass(frozen=True)
class Point:
    """One value of every key.

    Attributes:
        values: by key, in the order of the axes.
        config: with these values; the seed is each run's own.
        num_train: how many training images are used; None for all.
    """

    values: Mapping[str, Any]
    config: Config
    num_train: int | None

    @property
    def name(self) -> str:
        """What it is called in tables, such as `optim.lr=0.001, train.batch_size=32`."""
        return ", ".join(f"{key}={shown_value(value)}" for key, value in self.values.items())


def parse_axis(text: str) -> Axis:
    """Read `key=a,b,c`; each value as --set reads it, lists in brackets.

    Raises:
        ConfigError: it is nothing of the kind, or names a value twice.
    """
    key, sign, rest = text.partition("=")
    values = tuple(parse_value(part) for part in _parts(rest)) if sign else ()
    if not values or not all(key.split(".")):
        raise ConfigError(
            f"--sweep {text}: expected section.key=value,value, as in --sweep optim.lr=1e-4,1e-3",
            fix="lists go in brackets: --sweep model.head.layers=[512],[256,128]",
        )
    return Axis(key.strip(), values)


def axes_of(sweep: Sequence[str] | Mapping[str, Sequence[Any]]) -> list[Axis]:
    """The axes of texts such as `optim.lr=1e-4,1e-3`, or of a mapping of keys to values.

    Raises:
        ConfigError: a text cannot be read, a key comes twice or decides of the split, or a value comes twice; all
            problems at once.
    """
    if isinstance(sweep, Mapping):
        axes = [Axis(key, tuple(each) if isinstance(each, Iterable) and not isinstance(each, str) else (each,))
                for key, each in sweep.items()]  # fmt: skip
    else:
        axes = [parse_axis(text) for text in ((sweep,) if isinstance(sweep, str) else sweep)]
    problems = [problem for axis in axes if (problem := _fault_of(axis))]
    keys = [axis.key for axis in axes]
    problems += [f"{key}: is swept twice; give all of its values at once" for key in set(keys) if keys.count(key) > 1]
    if problems or not axes:
        raise ConfigError(
            "The sweep cannot be made." if axes else "The sweep names no key.",
            problems=problems,
            fix="as in --sweep optim.lr=1e-4,1e-3 --sweep train.batch_size=32,64; train_images=100,300 sweeps over the "
            "number of training images, and --seeds 0,1,2 repeats it all.",
        )
    return axes


def points_of(axes: Sequence[Axis], base: Config) -> list[Point]:
    """Every combination, the last key's values changing first.

    Args:
        axes: what is swept.
        base: everything else.

    Raises:
        ConfigError: a key or a value does not exist; all problems at once.
    """
    tree = base.model_dump(mode="json", exclude_unset=True)
    problems: dict[str, None] = {}
    for axis in axes:
        # One at a time, so that a wrong value is told once and not in each combination.
        for value in axis.values if axis.key != TRAIN_IMAGES else ():
            try:
                config = load(Config, None, (), base=_with(tree, {axis.key: value}))
                for name in config.model.names if axis.key == "model.name" else ():
                    check_name(name)
            except ConfigError as error:
                problems |= dict.fromkeys(error.problems or (error.message,))
    num = 1
    for axis in axes:
        num *= len(axis.values)
    if num > MAX_RUNS:
        problems[f"{num:,} combinations, and at most {MAX_RUNS:,} are made"] = None
    if problems:
        raise ConfigError("The sweep cannot be made.", problems=list(problems), fix="see docs/configuration.md.")
    return [_point(values, tree) for values in _combinations(axes)]


def shown_value(value: Any) -> str:
    """A value as a person writes it."""
    if isinstance(value, bool) or value is None:
        return str(value).lower() if value is not None else "null"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(shown_value(each) for each in value) + "]"
    return str(value)


def folder_names(points: Sequence[Point], seeds: Sequence[int]) -> dict[tuple[int, int], str]:
    """A name for the folder of each run, by the number of its point and its seed; the same ones every time."""
    names: dict[tuple[int, int], str] = {}
    taken: set[str] = set()
    for number, point in enumerate(points):
        parts = [f"{key.rpartition('.')[2]}={shown_value(value)}" for key, value in point.values.items()]
        plain = _UNSAFE.sub("_", "--".join(part.replace("=", "-", 1) for part in parts))[:_LONGEST_NAME].strip("._")
        for seed in seeds:
            name = f"{plain or 'run'}--seed-{seed}"
            if name.casefold() in taken:
                name = f"{plain}--{number}--seed-{seed}"
            taken.add(name.casefold())
            names[number, seed] = name
    return names


def _combinations(axes: Sequence[Axis]) -> Iterator[dict[str, Any]]:
    for values in product(*(axis.values for axis in axes)):
        yield dict(zip((axis.key for axis in axes), values, strict=True))


def _point(values: Mapping[str, Any], tree: Mapping[str, Any]) -> Point:
    num_train = values.get(TRAIN_IMAGES)
    settings = {key: value for key, value in values.items() if key != TRAIN_IMAGES}
    try:
        config = load(Config, None, (), base=_with(tree, settings))
    except ConfigError as error:
        told = ", ".join(f"{key}={shown_value(value)}" for key, value in values.items())
        raise ConfigError(f"With {told}: {error.message}", problems=error.problems, fix=error.fix) from error
    return Point(dict(values), config, None if num_train in (None, ALL) else num_train)


def _with(tree: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The tree with some dotted keys replaced; what lies beside them is shared."""
    changed = dict(tree)
    for key, value in settings.items():
        *sections, last = key.split(".")
        node = changed
        for section in sections:
            below = node.get(section)
            if below is not None and not isinstance(below, Mapping):
                raise ConfigError(f"{key}: {section} is a value, not a section")
            node[section] = dict(below or {})
            node = node[section]
        node[last] = value
    return changed


def _fault_of(axis: Axis) -> str:
    section, _, name = axis.key.partition(".")
    if not axis.values:
        return f"{axis.key}: has no value to train with"
    texts = [shown_value(value) for value in axis.values]
    if len(set(texts)) < len(texts):
        return f"{axis.key}: {next(text for text in texts if texts.count(text) > 1)} is given twice"
    if axis.key == TRAIN_IMAGES:
        wrong = [
            text
            for text, value in zip(texts, axis.values, strict=True)
            if value != ALL and (not isinstance(value, int) or isinstance(value, bool) or value < 2)
        ]
        return (
            f"{TRAIN_IMAGES}: expected whole numbers from 2 on, or {ALL}, and came {', '.join(wrong)}" if wrong else ""
        )
    if axis.key == "seed":
        return "seed: is given by --seeds, which repeats every value with each of them"
    if axis.key in {key for key, _ in known_keys(Config)}:
        if section in _WHOLE:
            return f"{axis.key}: changes nothing about a training; a sweep has one set of images and one split"
        if section == "data" and name not in _PIXELS:
            return f"{axis.key}: decides which images are where, and a sweep keeps one split for all of its runs"
    return ""


def _parts(text: str) -> list[str]:
    """The text cut at commas that stand outside of brackets and quotes."""
    parts, depth, quote, start = [], 0, "", 0
    for place, sign in enumerate(text):
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "\"'":
            quote = sign
        elif sign in "[{":
            depth += 1
        elif sign in "]}":
            depth -= 1
        elif sign == "," and depth == 0:
            parts.append(text[start:place])
            start = place + 1
    parts.append(text[start:])
    return [part.strip() for part in parts if part.strip()]


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read `0,1,2`.

    Raises:
        ConfigError: a part is no whole number from 0 on, or comes twice.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) < 2**32 for part in parts) or len(set(parts)) < len(
        parts
    ):
        raise ConfigError(f"--seeds {text}: expected different whole numbers, as in --seeds 0,1,2.")
    return tuple(int(part) for part in parts)
