"""Networks that are taught once for all tests of explanations."""

from collections.abc import Callable

import pytest
from taught_networks import taught

from foveal.model.build import Classifier


@pytest.fixture(scope="session")
def make_taught() -> Callable[[str], Classifier]:
    made: dict[str, Classifier] = {}

    def make(name: str) -> Classifier:
        if name not in made:
            made[name] = taught(name, seed=1)
        return made[name]

    return make
