"""Who is timed when."""

from collections import Counter

from foveal.evaluation.turns import in_turns


def test_everybody_is_once_in_every_place() -> None:
    rounds = [in_turns("abcd", number) for number in range(4)]
    assert all(sorted(sides) == ["a", "b", "c", "d"] for sides in rounds)
    assert Counter((place, side) for sides in rounds for place, side in enumerate(sides)).most_common(1)[0][1] == 1
    assert in_turns("abcd", 5) == rounds[1]
