"""Search spaces: what a line means, which keys exist where, and that all faults of a space are said at once."""

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.config import plain_yaml
from foveal.errors import ConfigError
from foveal.experiments.tune.space import Dimension, SearchSpace
from foveal.experiments.tune.space_file import make_space, read_space
from foveal.experiments.tune.trials import shuffled_grid
from foveal.training.config import Config, read_config

ROOT = Path(__file__).parent.parent.parent


def space(text: str, *overrides: str) -> SearchSpace:
    return make_space(plain_yaml.parse(text), read_config(None, overrides))


def problems(text: str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        space(text, *overrides)
    return list(caught.value.problems)


def test_the_grid_of_the_docs_has_six_points_each_once() -> None:
    grid = read_space(ROOT / "examples" / "tune_grid.yaml", Config()).grid()
    found = [(point.values["optim.lr"], point.values["model.head.dropout"]) for point in grid]
    assert found == list(itertools.product([1e-3, 1e-4, 1e-5], [0.3, 0.5]))


def test_a_shuffled_grid_is_the_same_set_and_the_same_order_for_the_same_seed() -> None:
    made = read_space(ROOT / "examples" / "tune_grid.yaml", Config())
    orders = [[tuple(point.values.values()) for point in shuffled_grid(made, seed)] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])


def test_a_grid_walks_steps_lists_and_conditions() -> None:
    grid = space(
        """
        model.head.layers: {type: int_list, length: [0, 2], choices: [8, 16]}
        model.head.dropout: {type: float_list, length: model.head.layers, low: 0.0, high: 0.4, step: 0.4}
        optim.name: {type: categorical, choices: [adamw, sgd]}
        optim.momentum: {type: float, low: 0.8, high: 0.9, step: 0.1, when: {optim.name: [sgd]}}
        """
    ).grid()
    # Heads: none, 2 widths x 2 dropouts, 4 x 4; optimisers: adamw, sgd with two momenta.
    assert len(grid) == (1 + 4 + 16) * 3
    assert len({str(sorted(point.values.items(), key=str)) for point in grid}) == len(grid)
    for point in grid:
        assert ("optim.momentum" in point.values) == (point.values["optim.name"] == "sgd")
        layers = point.values["model.head.layers"]
        assert point.values["model.head.kind"] == ("dense" if layers else "linear")
        assert len(point.values.get("model.head.dropout", [])) == len(layers)


def test_points_of_a_grid_that_are_no_configuration_are_left_out() -> None:
    text = """
        train.sampling: {type: categorical, choices: [natural, balanced]}
        train.class_weights: {type: categorical, choices: [none, balanced]}
        """
    made = space(text)
    assert (len(made.grid()), len(shuffled_grid(made, 0))) == (4, 3)


def test_a_range_without_steps_has_no_grid() -> None:
    made = space(
        "optim.lr: {type: float, low: 1e-4, high: 1e-2, log: true}\ntrain.ema: {type: float, low: 0.9, high: 0.99}"
    )
    with pytest.raises(ConfigError) as caught:
        made.grid()
    assert [problem.partition(":")[0] for problem in caught.value.problems] == ["optim.lr", "train.ema"]


def test_steps_of_a_tenth_are_tenths() -> None:
    (dimension,) = space("model.head.dropout: {type: float, low: 0.1, high: 0.7, step: 0.1}").dimensions()
    assert dimension.values() == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)


def test_every_fault_of_a_space_is_said_at_once() -> None:
    found = problems(
        """
        optim.lrr: {type: float, low: 1, high: 2}
        optim.weight_decay: {type: float, low: -1, high: 0.1}
        model.head: {dropout: {type: float}}
        train.epochs: {type: nit, low: 1, high: 2}
        seed: {type: int, low: 0, high: 4}
        optim.momentum: {type: float, low: 0.9, high: 0.99, when: {optim.name: sgd}}
        train.batch_size: {type: int, low: 8, hgh: 64}
        optim.lr: {type: float, low: 0, high: 1, log: true}
        train.sampling: {type: categorical, choices: [natural, balnced]}
        optim.beta1: {type: float, low: 0.8, high: 0.9, when: {optim.nmae: adamw}}
        data.val_fraction: {type: float, low: 0.1, high: 0.2}
        train.ema: 0.99
        model.head.layers: {type: int_list, low: 1, high: 4}
        """
    )
    text = "\n".join(found)
    for expected in (
        "optim.lrr: no such key; did you mean optim.lr?",
        "optim.weight_decay: expected greater than or equal to 0",
        "model.head: is a section; write each key whole",
        "train.epochs.type: expected categorical",
        "did you mean int?",
        "seed: cannot be varied: it decides the split",
        "optim.momentum.when: optim.name=sgd never holds",
        "train.batch_size.hgh: no such key; did you mean high?",
        "optim.lr: log=true needs a low above 0",
        "'balnced'; did you mean balanced?",
        "optim.beta1.when: optim.nmae: no such key; did you mean optim.name?",
        "data.val_fraction: cannot be varied",
        "train.ema: expected a line such as",
        "model.head.layers: give length: N",
    ):
        assert expected in text, expected
    assert len(found) == 13


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train.epochs: {type: int, low: 9, high: 3}", "low, 9, is above high, 3"),
        ("train.epochs: {type: int, low: 1.5, high: 3}", "whole numbers"),
        ("train.epochs: {type: int, low: 1, high: 4, step: 2}", "no number of steps"),
        ("train.epochs: {type: categorical, choices: []}", "choices"),
        ("train.epochs: {type: categorical, choices: [3, 3]}", "occurs twice"),
        ("optim.lr: {type: float, low: 0.1, high: 0.3, step: 0.1, log: true}", "log and step"),
        ("model.head.dropout: {type: float_list, length: optim.lr, low: 0, high: 0.5}", "optim.lr is no list"),
        ("model.head.layers: {type: int_list, length: [3, 1], low: 4, high: 8}", "smallest length, 3, is above"),
        ("train.ema: {type: float, low: 0.9, high: 0.99, when: {train.ema: 0.9}}", "cannot wait for itself"),
        (
            "optim.lr: {type: float, low: 0.1, high: 1, when: {train.epochs: 3}}\n"
            "train.epochs: {type: categorical, choices: [3], when: {optim.lr: 0.1}}",
            "each waits for another",
        ),
        ("model.head.kind: {type: categorical, choices: [linear, dense]}", "layers and kind=dense go together"),
    ],
)
def test_a_fault_is_named(text: str, expected: str) -> None:
    assert any(expected in problem for problem in problems(text)), problems(text)


def test_a_key_may_wait_for_what_the_configuration_says() -> None:
    text = "optim.momentum: {type: float, low: 0.8, high: 0.9, when: {optim.name: sgd}}"
    (dimension,) = space(text, "optim.name=sgd").dimensions()
    assert dimension.name == "optim.momentum"
    assert problems(text)


def test_numbers_that_yaml_reads_as_text_are_numbers() -> None:
    # PyYAML's own loader takes 1e-4 for text, and so may whoever gives a mapping.
    lines = yaml.safe_load("optim.lr: {type: float, low: 1e-4, high: 1e-2, log: true}")
    assert lines["optim.lr"]["low"] == "1e-4"
    (dimension,) = make_space(lines, Config()).dimensions()
    assert (dimension.low, dimension.high) == (1e-4, 1e-2)


def test_choices_may_be_lists() -> None:
    made = space("model.head.layers: {type: categorical, choices: [[], [64], [128, 64]]}")
    assert [point.values["model.head.layers"] for point in made.grid()] == [[], [64], [128, 64]]
    configs = [made.configure(point.values, origin="here") for point in made.grid()]
    assert [config.model.head.kind for config in configs] == ["linear", "dense", "dense"]


KEYS = {
    "optim.lr": st.sampled_from(
        [
            {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
            {"type": "categorical", "choices": [1e-3, 1e-4]},
        ]
    ),
    "optim.name": st.just({"type": "categorical", "choices": ["adamw", "sgd"]}),
    "optim.momentum": st.just({"type": "float", "low": 0.5, "high": 0.9, "when": {"optim.name": "sgd"}}),
    "train.batch_size": st.sampled_from([{"type": "int", "low": 8, "high": 64, "step": 8}]),
    "model.head.layers": st.sampled_from(
        [
            {"type": "int_list", "length": [0, 3], "low": 4, "high": 64, "log": True},
            {"type": "int_list", "min_length": 1, "max_length": 2, "choices": [8, 16]},
        ]
    ),
    "model.head.dropout": st.sampled_from(
        [
            {"type": "float", "low": 0.0, "high": 0.5},
            {"type": "float_list", "length": "model.head.layers", "low": 0.0, "high": 0.5},
        ]
    ),
    "model.head.batch_norm": st.just(
        {"type": "categorical", "choices": [True, False], "when": {"model.head.kind": "dense"}}
    ),
}


@settings(max_examples=60, deadline=None)
@given(data=st.data(), keys=st.permutations(sorted(KEYS)))
def test_whatever_is_drawn_is_a_configuration_and_can_be_drawn_again(data: st.DataObject, keys: list[str]) -> None:
    """In any order of the lines, with any choices: the values hold in the configuration, and the names in the space."""
    lines = {key: data.draw(KEYS[key]) for key in keys}
    made = make_space(lines, read_config(None, ["model.name=small_cnn"]))

    def choose(dimension: Dimension) -> Any:
        if dimension.kind == "categorical":
            return data.draw(st.sampled_from(dimension.choices))
        if dimension.is_countable():
            return data.draw(st.sampled_from(dimension.values()))
        return data.draw(st.floats(dimension.low, dimension.high))

    drawn = made.draw(choose)
    config = made.configure(drawn.values, origin="here").model_dump(mode="json")
    for key, value in drawn.values.items():
        node = config
        for part in key.split("."):
            node = node[part]
        assert node == value
    assert ("optim.momentum" in drawn.values) == (drawn.values["optim.name"] == "sgd")
    assert ("model.head.batch_norm" in drawn.values) == (drawn.values["model.head.kind"] == "dense")
    known = {dimension.name: dimension for dimension in made.dimensions()}
    assert all(known[dimension.name] == dimension for dimension in drawn.dimensions)
    assert made.draw(lambda dimension: drawn.parameters[dimension.name]) == drawn
    assert make_space(made.to_dict(), made.base).draw(lambda dimension: drawn.parameters[dimension.name]).values == (
        drawn.values
    )


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("tune_*.yaml")), ids=lambda file: file.name)
def test_the_examples_are_spaces(file: Path) -> None:
    assert read_space(file, Config()).dimensions()


def test_the_spaces_of_the_page_are_spaces() -> None:
    blocks = re.findall(r"^```yml\n(.*?)^```$", (ROOT / "docs" / "tune.md").read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        assert space(block).dimensions()
