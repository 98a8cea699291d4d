"""The `augment` section: what it takes, and what it says of what it does not take."""

from pathlib import Path
from typing import Any

import pytest

from foveal.config import dump_yaml, load
from foveal.data.augment_config import AugmentConfig
from foveal.data.augment_operations_config import OPERATIONS, Rotate
from foveal.errors import ConfigError
from foveal.training.config import Config, read_config

EXAMPLES = [
    path
    for path in sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
    if not path.name.startswith("tune_")
]


def problems(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read_config(None, overrides)
    return list(caught.value.problems)


def test_every_problem_of_a_list_is_told_at_once_with_its_place_and_what_was_meant() -> None:
    items = [
        "{name: rotat, degrees: 12}",
        "{name: rotate, degree: 3, probability: 2}",
        "grey",
        "{probability: 1}",
        "{name: zoom, factor: [2, 1]}",
        "{name: zoom, factor: 3}",
        "{name: gaussian_blur, kernel_px: [4, 5]}",
        "{name: gain}",
        "{name: '{0}'}",
    ]
    told = problems(f"augment.operations=[{', '.join(items)}]", "train.epoch=3")
    expected = [
        "augment.operations.0: no such operation 'rotat'; did you mean rotate?",
        "augment.operations.1.probability: expected less than or equal to 1, and came 2",
        "augment.operations.1.degree: no such key; did you mean degrees?",
        "augment.operations.2: expected an operation such as",
        "augment.operations.3: name is required: one of horizontal_flip, ",
        "augment.operations.4: factor: the least comes first, and came [2.0, 1.0]",
        "augment.operations.5.factor: expected a list of two, as in [a, b], and came 3",
        "augment.operations.6: kernel_px: a kernel has an odd number of pixels, and came 4",
        "augment.operations.8: no such operation '{0}'; there are horizontal_flip, ",
        "train.epoch: no such key; did you mean train.epochs?",
    ]
    assert len(told) == len(expected)
    assert [line for line in expected if not any(each.startswith(line) for each in told)] == []
    assert problems("augment.operations=3") == ["augment.operations: expected a list, as in [a, b], and came 3"]


@pytest.mark.parametrize("instead", ["augment.operations=[{name: grey}]", "augment.albumentations=p.yaml"])
def test_a_list_or_pipeline_stands_alone(instead: str) -> None:
    assert read_config(None, [instead]).augment.policy == "none"
    assert read_config(None, [instead, "augment.policy=none"]).augment.policy == "none"
    (told,) = problems(instead, "augment.policy=light", "augment.vertical_flip=0.5", "augment.horizontal_flip=0.1")
    assert "policy: leave it out" in told
    assert "vertical_flip: put the flip into" in told
    assert "horizontal_flip: put the flip into" in told
    both = problems("augment.operations=[{name: grey}]", "augment.albumentations=p.yaml")
    assert both == ["augment: operations and albumentations: give one of the two"]


def test_what_is_written_is_read_back_equal(tmp_path: Path) -> None:
    config = Config(augment=AugmentConfig(operations=(*(model() for model in OPERATIONS.values()), Rotate(degrees=3))))
    (tmp_path / "c.yaml").write_text(dump_yaml(config), encoding="utf-8")
    assert load(Config, tmp_path / "c.yaml") == config
    assert read_config(config) == config, "also where Python code left the names to their defaults"
    assert Config.model_validate(config.model_dump()) == config


@pytest.mark.parametrize(("keys", "title", "is_off", "random_window"), [
    ({"policy": "none"}, "none", True, False),
    ({"policy": "none", "horizontal_flip": 0.5}, "none", False, False),
    ({}, "light", False, True),
    ({"policy": "augmix"}, "augmix", False, True),
    ({"operations": [{"name": "grey"}]}, "operations", False, False),
    ({"operations": [{"name": "grey"}, {"name": "resized_crop"}]}, "operations", False, True),
    ({"albumentations": "p.yaml"}, "albumentations", False, False),
])  # fmt: skip
def test_what_follows_from_the_keys(keys: dict[str, Any], title: str, is_off: bool, random_window: bool) -> None:
    config = AugmentConfig.model_validate(keys)
    assert (config.title, config.is_off, config.random_window) == (title, is_off, random_window)


def test_what_stands_beyond_the_edge_is_the_policys_where_nobody_says() -> None:
    fills = {policy: AugmentConfig(policy=policy).filled_with for policy in ("light", "none", "randaugment", "augmix")}
    assert fills == {"light": "reflect", "none": "reflect", "randaugment": "grey", "augmix": "grey"}
    assert AugmentConfig(policy="augmix", fill="black").filled_with == "black"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_a_configuration(example: Path) -> None:
    assert read_config(example).model_fields_set


def test_the_car_models_list_is_exactly_that_of_the_project() -> None:
    operations = read_config(EXAMPLES[0].parent / "car_models.yaml").augment.operations
    assert [each.model_dump() for each in operations] == [
        {"name": "horizontal_flip", "probability": 0.5},
        {"name": "brightness_contrast", "probability": 0.2, "brightness": 0.2, "contrast": 0.2},
        {"name": "rotate", "probability": 0.5, "degrees": 12.0},
        {"name": "shift_scale_rotate", "probability": 0.2, "shift": 0.05, "scale": 0.05, "degrees": 4.0},
        {"name": "gaussian_blur", "probability": 0.6, "kernel_px": (3, 5), "sigma_px": None},
        {"name": "hue_saturation_value", "probability": 0.3, "hue": 10.0, "saturation": 20.0, "value": 10.0},
        {"name": "grid_distortion", "probability": 0.2, "num_steps": 5, "limit": 0.2},
    ]


def test_the_page_has_every_operation_with_its_keys_and_defaults() -> None:
    page = (Path(__file__).parents[2] / "docs" / "augmentation.md").read_text(encoding="utf-8")
    rows = {line.split("|")[1].strip(" `"): line for line in page.splitlines() if line.startswith("| `")}
    for name, model in OPERATIONS.items():
        for key, field in model.model_fields.items():
            if key in {"name", "probability"}:
                continue
            value = field.default
            words = f"[{', '.join(f'{each:.3g}' for each in value)}]" if isinstance(value, tuple) else f"{value:g}" if (
                value is not None
            ) else "nothing"  # fmt: skip
            assert f"`{key}` {words}" in rows[name], f"{name}: `{key}` {words}"
