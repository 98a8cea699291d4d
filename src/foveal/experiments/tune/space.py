"""What a study may vary: keys of the configuration, the values each may take, and under which conditions.

A space is drawn key by key, in an order in which whatever decides a key comes before it. Who decides the values is
another's matter: a sampler of Optuna, the walk over a grid, or a check that tries the ends of every range.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from foveal.config import validate
from foveal.errors import ConfigError
from foveal.files import to_json
from foveal.training.config import Config

HEAD_KIND, HEAD_LAYERS = "model.head.kind", "model.head.layers"
LARGEST_GRID = 100_000
_LONGEST, _SHORTEST = object(), object()

Plain = str | int | float | bool | None


@dataclass(frozen=True)
class Dimension:
    """One value to be chosen.

    Attributes:
        name: of the parameter: a key, or `KEY.length` and `KEY[0]` where a list is drawn.
        kind: what is chosen from.
        low: smallest value, of a number.
        high: largest value, of a number; it can be chosen too.
        step: distance between neighbours; None for any number in between.
        log: whether equal ratios are equally likely.
        choices: of a category, each by the plain value that the study keeps.
    """

    name: str
    kind: Literal["categorical", "float", "int"]
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    log: bool = False
    choices: tuple[Plain, ...] = ()

    @property
    def key(self) -> str:
        """The key of the configuration that it belongs to."""
        return self.name.partition("[")[0].removesuffix(".length")

    def holds(self, value: Any) -> bool:
        """Whether a number lies in the range."""
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and self.low <= value <= self.high and (not self.is_countable() or value in self.values())

    def ends(self) -> tuple[Plain, ...]:
        """What is to be tried to know that all of it is allowed: every choice, or the smallest and the largest."""
        if self.kind == "categorical":
            return self.choices
        return tuple(dict.fromkeys((self._number(self.low), self._number(self.high))))

    def is_countable(self) -> bool:
        """Whether it has as many values as one can list."""
        return self.kind != "float" or self.step is not None or self.low == self.high

    def values(self) -> tuple[Plain, ...]:
        """All that can be chosen, where `is_countable`."""
        if self.kind == "categorical":
            return self.choices
        if self.step is None or self.low == self.high:
            return (self._number(self.low),)
        num_steps = int((self.high - self.low) / self.step + 1e-9)
        # Through text: the third step of 0.1 is 0.3, and not 0.30000000000000004.
        return tuple(self._number(float(f"{self.low + i * self.step:.12g}")) for i in range(num_steps + 1))

    def _number(self, value: float) -> int | float:
        return int(value) if self.kind == "int" else float(value)


@dataclass(frozen=True)
class Entry:
    """One line of a space.

    Attributes:
        key: of the configuration.
        element: what is chosen; for a list, each of its places.
        num_elements: smallest and largest length of a list; the key of another list that it is as long as; None for a
            single value.
        when: keys with the values under which this one exists.
        meanings: what the choices of a category stand for in the configuration, by the plain value kept.
        spec: the line as it was written.
    """

    key: str
    element: Dimension
    num_elements: tuple[int, int] | str | None
    when: Mapping[str, tuple[Any, ...]]
    meanings: Mapping[Plain, Any]
    spec: Mapping[str, Any]


class Chooser(Protocol):
    """Whoever decides."""

    def __call__(self, dimension: Dimension) -> Plain:
        """One of the values of a dimension."""


@dataclass(frozen=True)
class Drawn:
    """One point of a space.

    Attributes:
        values: of the keys that exist there, as a configuration takes them.
        parameters: what was chosen, by the names of the dimensions, in the order of choosing.
        dimensions: what it was chosen from, in the same order.
    """

    values: Mapping[str, Any]
    parameters: Mapping[str, Plain]
    dimensions: tuple[Dimension, ...]


@dataclass(frozen=True)
class Reached:
    """A point at which a line takes one of its ends."""

    entry: Entry
    end: Plain
    drawn: Drawn


@dataclass(frozen=True)
class SearchSpace:
    """A space over the keys of one configuration.

    Attributes:
        entries: in an order in which what decides comes before what is decided.
        base: the configuration around it.
    """

    entries: tuple[Entry, ...]
    base: Config

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that vary."""
        return tuple(entry.key for entry in self.entries)

    @property
    def follows_layers(self) -> bool:
        """Whether the kind of the head is not stated, and so follows from whether it has layers."""
        return HEAD_LAYERS in self.keys and HEAD_KIND not in self.keys

    def to_dict(self) -> dict[str, Any]:
        """The lines as they were written, by key, sorted."""
        return {entry.key: dict(entry.spec) for entry in sorted(self.entries, key=lambda entry: entry.key)}

    def draw(self, choose: Chooser) -> Drawn:
        """One point, chosen by `choose`."""
        parameters: dict[str, Plain] = {}
        values: dict[str, Any] = {}
        dimensions: list[Dimension] = []

        def ask(dimension: Dimension) -> Plain:
            dimensions.append(dimension)
            parameters[dimension.name] = choose(dimension)
            return parameters[dimension.name]

        for entry in self.entries:
            if not all(self.effective(key, values) in allowed for key, allowed in entry.when.items()):
                continue
            if entry.num_elements is None:
                chosen = ask(entry.element)
                values[entry.key] = entry.meanings.get(chosen, chosen)
            else:
                elements = [
                    ask(_at(entry, place)) for place in range(self._length(entry, entry.num_elements, values, ask))
                ]
                # As long as a list that is empty here: nothing is left to be said.
                if elements or not isinstance(entry.num_elements, str):
                    values[entry.key] = [entry.meanings.get(chosen, chosen) for chosen in elements]
            if self.follows_layers and entry.key == HEAD_LAYERS:
                values[HEAD_KIND] = "dense" if values[HEAD_LAYERS] else "linear"
        return Drawn(values, parameters, tuple(dimensions))

    def effective(self, key: str, values: Mapping[str, Any]) -> Any:
        """The value of a key at a point: the one drawn, or that of the configuration around the space."""
        if key in values:
            return _Comparable(values[key])
        node: Any = self.base.model_dump(mode="json")
        for part in key.split("."):
            node = node[part]
        return _Comparable(node)

    def _length(
        self,
        entry: Entry,
        num_elements: tuple[int, int] | str,
        values: Mapping[str, Any],
        ask: Callable[[Dimension], Plain],
    ) -> int:
        if isinstance(num_elements, str):
            return len(self.effective(num_elements, values).value)
        low, high = num_elements
        if low == high:
            return low
        return int(ask(Dimension(f"{entry.key}.length", "int", low, high, step=1.0)) or 0)

    def dimensions(self) -> tuple[Dimension, ...]:
        """All that can be chosen, wherever it exists, in the order of the entries."""
        found = {dimension.name: dimension for reached in self.extremes() for dimension in reached.drawn.dimensions}
        place = {key: number for number, key in enumerate(self.keys)}
        return tuple(sorted(found.values(), key=lambda dimension: place[dimension.key]))

    def extremes(self) -> Iterator["Reached"]:
        """Points at which each line takes each of its ends, every choice and every length among them.

        All that leads there is chosen so that the line exists, and all else takes its first value.
        """
        for entry in self.entries:
            lengths: tuple[int | None, ...] = (None,)
            if isinstance(entry.num_elements, tuple):
                lengths = tuple(dict.fromkeys(entry.num_elements))
            wanted = self._wanted(entry)
            for length, end in itertools.product(lengths, entry.element.ends()):
                yield Reached(entry, end, self.draw(_Aim(entry, length, end, wanted)))

    def _wanted(self, entry: Entry) -> dict[str, tuple[Any, ...]]:
        """What the keys before a line must be for it to exist; a list that it is as long as is at its longest."""
        wanted: dict[str, tuple[Any, ...]] = {}
        waiting = [entry]
        while waiting:
            each = waiting.pop()
            needs = dict(each.when)
            if isinstance(each.num_elements, str):
                needs.setdefault(each.num_elements, (_LONGEST,))
            if self.follows_layers and HEAD_KIND in needs:
                needs[HEAD_LAYERS] = (_LONGEST,) if "dense" in needs[HEAD_KIND] else (_SHORTEST,)
            for key, allowed in needs.items():
                wanted.setdefault(key, allowed)
            waiting += [other for other in self.entries if other.key in needs and other is not each]
        return wanted

    def grid(self) -> list[Drawn]:
        """Every point, in the order of the lines.

        Raises:
            ConfigError: a range has no step, or there are more points than anybody waits for.
        """
        points: list[Drawn] = []
        stack: list[tuple[Plain, ...]] = [()]
        endless: dict[str, None] = {}
        while stack:
            prefix = stack.pop()
            walk = _Walk(prefix)
            try:
                points.append(self.draw(walk))
            except _Fork as fork:
                if not fork.dimension.is_countable():
                    endless[fork.dimension.name] = None
                    stack.append((*prefix, fork.dimension.ends()[0]))
                else:
                    stack.extend((*prefix, value) for value in reversed(fork.dimension.values()))
            if len(points) + len(stack) > LARGEST_GRID:
                raise ConfigError(
                    f"The grid has more than {LARGEST_GRID:,} points.",
                    fix="give fewer choices or larger steps, or take --sampler tpe or random.",
                )
        if endless:
            raise ConfigError(
                "A grid needs to know every value.",
                problems=[f"{name}: a range without a step has no end of them" for name in endless],
                fix="give `choices`, or a `step`, or take --sampler tpe or random.",
            )
        return points

    def configure(self, values: Mapping[str, Any], *, origin: str) -> Config:
        """The configuration at a point.

        Raises:
            ConfigError: the values do not go together.
        """
        return validate(Config, self.tree(values), origin=origin)

    def tree(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What differs from the defaults at a point, as plain values in sections."""
        tree: dict[str, Any] = self.base.model_dump(mode="json", exclude_unset=True)
        for key, value in values.items():
            *sections, last = key.split(".")
            node = tree
            for section in sections:
                node = node.setdefault(section, {})
            node[last] = value
        return tree


class _Comparable:
    """A value that is found in a tuple of values only where it is the same in a configuration too: true is not 1."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        if isinstance(other, _Comparable):
            other = other.value
        return is_same(self.value, other)

    def __hash__(self) -> int:
        return hash(to_json(self.value))


def is_same(first: Any, second: Any) -> bool:
    """Whether two plain values mean the same in a configuration."""
    if isinstance(first, bool) or isinstance(second, bool):
        return first is second
    if isinstance(first, Sequence) and isinstance(second, Sequence) and not isinstance(first, str):
        return list(first) == list(second)
    return bool(first == second)


class _Fork(Exception):  # noqa: N818  nothing went wrong
    def __init__(self, dimension: Dimension) -> None:
        super().__init__(dimension.name)
        self.dimension = dimension


class _Walk:
    """Chooses what it was told, and stops where it was told no more."""

    def __init__(self, told: tuple[Plain, ...]) -> None:
        self._told = iter(told)

    def __call__(self, dimension: Dimension) -> Plain:
        for value in self._told:
            return value
        raise _Fork(dimension)


class _Aim:
    """Chooses so that one line exists and takes a given end."""

    def __init__(self, entry: Entry, length: int | None, end: Plain, wanted: Mapping[str, tuple[Any, ...]]) -> None:
        self._entry, self._length, self._end, self._wanted = entry, length, end, wanted

    def __call__(self, dimension: Dimension) -> Plain:
        key = dimension.key
        if key == self._entry.key:
            is_length = dimension.name.endswith(".length") and dimension.name != key
            return self._length if is_length else self._end
        wanted = self._wanted.get(key, ())
        if wanted in ((_LONGEST,), (_SHORTEST,)):
            return dimension.ends()[-1 if wanted == (_LONGEST,) else 0]
        fitting = [value for value in dimension.ends() if any(is_same(value, each) for each in wanted)]
        fitting += [each for each in wanted if dimension.kind != "categorical" and dimension.holds(each)]
        return fitting[0] if fitting else dimension.ends()[0]


def _at(entry: Entry, place: int) -> Dimension:
    """The dimension of one place of a list."""
    element = entry.element
    return Dimension(
        f"{entry.key}[{place}]", element.kind, element.low, element.high, element.step, element.log, element.choices
    )
