"""The order in which contestants are timed, so that whatever else the machine does hits all of them alike."""

from collections.abc import Sequence
from typing import TypeVar

Side = TypeVar("Side")


def in_turns(sides: Sequence[Side], number: int) -> list[Side]:
    """All of them, beginning one further in every round: who comes first pays for what the one before left behind.

    Args:
        sides: who takes turns; at least one.
        number: of the round.
    """
    start = number % len(sides)
    return [*sides[start:], *sides[:start]]
