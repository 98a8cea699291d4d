"""Configuration: read from YAML and overrides, all faults at once, and back."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from foveal.config import Section, dump_yaml, known_keys, load, plain_yaml, read_yaml, validate
from foveal.errors import ConfigError
from foveal.training.config import Config, ResolvedConfig

# What the training configuration could become; so that these tests need not follow its changes.


class Head(Section):
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share."""


class Model(Section):
    name: str = "resnet18"
    """Name."""
    head: Head = Head()
    """Head."""


class Optim(Section):
    name: Literal["adamw", "sgd"] = "adamw"
    """Name."""
    lr: Annotated[float, Field(gt=0.0)] | Literal["auto"] = "auto"
    """Rate."""


class Train(Section):
    epochs: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Epochs."""
    store: Literal["auto", "on", "off"] = "auto"
    """Store."""
    patience: int | None = 5
    """Patience."""
    compiled: bool = False
    """Compile."""
    colour: tuple[int, int, int] = (1, 2, 3)
    """Colour."""
    classes: tuple[str, ...] = ()
    """Classes."""


class Small(Section):
    seed: int = Field(default=0, ge=0)
    """Seed."""
    model: Model = Model()
    """Model."""
    optim: Optim = Optim()
    """Optim."""
    train: Train = Train()
    """Train."""


def problems_of(*overrides: str, file: Path | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(Small, file, overrides)
    assert caught.value.exit_code == 2
    return list(caught.value.problems)


def write(folder: Path, text: str) -> Path:
    file = folder / "config.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_the_defaults_need_no_file() -> None:
    assert load(Small) == Small()


def test_overrides_win_over_the_file_and_the_later_over_the_earlier(tmp_path: Path) -> None:
    file = write(tmp_path, "seed: 3\ntrain:\n  epochs: 7\n  patience: 2\n")
    config = load(Small, file, ["train.epochs=8", "train.epochs=9", "model.head.dropout=0.5"])
    assert (config.seed, config.train.epochs, config.train.patience) == (3, 9, 2)
    assert config.model.head.dropout == 0.5


def test_a_base_is_taken_as_it_is_and_not_changed() -> None:
    base = {"train": {"epochs": 3}}
    assert load(Small, None, ["train.epochs=4", "optim.lr=1"], base=base).train.epochs == 4
    assert base == {"train": {"epochs": 3}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optim.lr=1e-3", 0.001),
        ("optim.lr=5.e-2", 0.05),
        ("optim.lr=.5", 0.5),
        ("optim.lr=3", 3.0),
        ("optim.lr=auto", "auto"),
        ("train.epochs=8", 8),
        ("train.epochs=1e1", 10),
        ("train.epochs=08", 8),
        ("train.store=off", "off"),
        ("train.store=on", "on"),
        ("train.patience=null", None),
        ("train.patience=", None),
        ("train.compiled=true", True),
        ("train.compiled=no", False),
        ("train.colour=[1, 2, 4]", (1, 2, 4)),
        ("train.classes=[]", ()),
        ("train.classes=[no, 007, 12:30, 2020-01-01, 7, null!]", ("no", "007", "12:30", "2020-01-01", "7", "null!")),
        ('train.classes=["a, b", "1e-3", "null"]', ("a, b", "1e-3", "null")),
        ("model.name=/data/my #1 run: a=b", "/data/my #1 run: a=b"),
        ("model.name=!!python/object/apply:os.system [id]", "!!python/object/apply:os.system [id]"),
        ("model.name='off'", "off"),
        ("model.name=2024", "2024"),
        ("model.name=nan", "nan"),
        ("model.name=<<", "<<"),
        ("model.name=[half", "[half"),
    ],
)
def test_values_mean_what_people_mean(text: str, expected: object) -> None:
    section, _, rest = text.partition(".")
    value = getattr(getattr(load(Small, None, [text]), section), rest.partition("=")[0])
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train: {store: off}", {"store": "off"}),
        ("optim:\n  lr: 1e-3", {"lr": 0.001}),
        ("train:\n  classes: [no, yes, 010, 1.5, true story]", {"classes": ("no", "yes", "010", "1.5", "true story")}),
        ("train:\n  # epochs: 3\n", {}),
        ("model:\n  head:\n", {}),
        ("# nothing\n", {}),
        ("\ufefftrain:\n  epochs: 3\n", {"epochs": 3}),
    ],
)
def test_words_in_a_file_mean_the_same(tmp_path: Path, text: str, expected: dict[str, Any]) -> None:
    config = load(Small, write(tmp_path, text)).model_dump()
    found = {**config["train"], "lr": config["optim"]["lr"]}
    assert {key: found[key] for key in expected} == expected


def test_sections_may_be_merged() -> None:
    text = "a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  x: 3\n"
    assert plain_yaml.parse(text) == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}}


def test_an_override_may_fill_a_section_that_the_file_left_empty(tmp_path: Path) -> None:
    assert load(Small, write(tmp_path, "train:\n"), ["train.epochs=2"]).train.epochs == 2


def test_all_problems_come_at_once_with_one_line_a_key(tmp_path: Path) -> None:
    """Faults of the file and of the overrides, at every depth, in one message."""
    file = write(
        tmp_path, "seed: -1\nmodel: {head: {dropout: 2}}\noptim: {name: adam, lr: quick}\ntrian: {epochs: 3}\n"
    )
    assert problems_of("train.epoch=3", "train.epochs", "seed.x=3", file=file) == [
        "--set train.epochs: expected section.key=value, as in --set train.epochs=8",
        "--set seed.x=3: seed is a value, not a section",
        "seed: expected greater than or equal to 0, and came -1",
        "model.head.dropout: expected less than 1, and came 2",
        "optim.name: expected 'adamw' or 'sgd', and came 'adam'; did you mean adamw?",
        "optim.lr: expected a valid number or 'auto', and came 'quick'",
        "train.epoch: no such key; did you mean train.epochs?",
        "trian: no such key; did you mean train?",
    ]


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("train.lr=1", "train.lr: no such key; did you mean optim.lr?"),
        ("lr=1", "lr: no such key; did you mean optim.lr?"),
        ("name=x", "name: no such key; did you mean model.name or optim.name?"),
        ("modle.head.dropout=0", "modle: no such key; did you mean model?"),
        ("train.int=3", "train.int: no such key"),
        ("qqq=1", "qqq: no such key"),
        ("train.epochs=0", "train.epochs: expected greater than or equal to 1 or 'auto', and came 0"),
        ("train.epochs=2.5", "train.epochs: expected a valid integer without a fraction or 'auto', and came 2.5"),
        ("train.epochs=many", "train.epochs: expected a valid integer or 'auto', and came 'many'"),
        ("train.epochs=null", "train.epochs: expected a valid integer or 'auto', and came None"),
        ("optim.lr=0", "optim.lr: expected greater than 0 or 'auto', and came 0"),
        ("optim.lr=.inf", "optim.lr: expected a finite number or 'auto', and came inf"),
        ("optim.lr=nan", "optim.lr: expected a finite number or 'auto', and came 'nan'"),
        ("optim.lr=autp", "optim.lr: expected a valid number or 'auto', and came 'autp'; did you mean auto?"),
        ("train=3", "train: expected a section with keys of its own, and came 3"),
        ("train.classes=cat", "train.classes: expected a list, as in [a, b], and came 'cat'"),
        ("train.colour=[1, x, 3]", "train.colour.1: expected a valid integer, and came 'x'"),
        ("train.compiled=maybe", "train.compiled: expected a valid boolean, and came 'maybe'"),
        ("=3", "--set =3: expected section.key=value, as in --set train.epochs=8"),
        ("a..b=3", "--set a..b=3: expected section.key=value, as in --set train.epochs=8"),
    ],
)
def test_one_fault_is_one_line_that_helps(override: str, problem: str) -> None:
    found = problems_of(override)
    assert [line.replace(", unable to interpret input", "") for line in found] == [problem]


def test_a_key_written_with_a_dot_is_explained(tmp_path: Path) -> None:
    found = problems_of(file=write(tmp_path, "train.epochs: 3\n1: 2\n"))
    assert found == ["train.epochs: no such key; write `epochs:` below `train:`", "1: no such key"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is not valid YAML.*line 1|line 2"),
        ("train:\n  epochs: 3\noptim: {}\ntrain: {}\n", "'train' occurs twice.*line 4"),
        ("optim: {lr: 1, lr: 2}", "'lr' occurs twice.*line 1"),
        ("train: !!python/object/apply:os.system ['touch pwned']", "is not valid YAML: could not determine"),
        ("- train\n", "must hold sections such as 'train:', and holds a list"),
        ("train", "must hold sections such as 'train:', and holds a str"),
        ("a: 'b\x00'", "is not valid YAML"),
    ],
)
def test_what_is_no_configuration_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    """Row 9: nor does a configuration run what it names."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        read_yaml(write(tmp_path, text))
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            load(Small, path)
    (tmp_path / "latin.yaml").write_bytes("model: {name: café}".encode("latin-1"))
    with pytest.raises(ConfigError, match="cannot be read"):
        load(Small, tmp_path / "latin.yaml")


def test_required_sections_that_are_missing_are_named() -> None:
    with pytest.raises(ConfigError) as caught:
        validate(ResolvedConfig, {"data": None, "optim": {}}, origin="here")
    assert {"data: is required", "optim.lr: is required", "train: is required"} <= set(caught.value.problems)


def test_every_key_is_known_with_its_description() -> None:
    keys = dict(known_keys(Small))
    assert list(keys)[:4] == ["seed", "model.name", "model.head.dropout", "optim.name"]
    assert keys["model.head.dropout"].description == "Share."


texts = st.one_of(
    st.sampled_from(
        ["off", "no", "1e-3", "1e5", "007", "null", "~", "2020-01-01", "12:30", "=", "<<", "", " a ", "a\nb", ".inf"]
    ),
    st.text(st.characters(codec="utf-8", exclude_characters="\x85\u2028\u2029"), max_size=12),
)


@given(
    texts,
    st.lists(texts, max_size=3),
    st.one_of(st.just("auto"), st.floats(min_value=1e-30, max_value=1e30)),
    st.sampled_from(["on", "off", "auto"]),
    st.one_of(st.none(), st.integers()),
)
def test_what_is_written_reads_back_equal(
    name: str, classes: list[str], lr: Any, store: Any, patience: int | None
) -> None:
    config = Small(
        model=Model(name=name),
        optim=Optim(lr=lr),
        train=Train(store=store, patience=patience, classes=tuple(classes)),
    )
    written = dump_yaml(config)
    assert validate(Small, plain_yaml.parse(written), origin="") == config
    # Other programs, which follow YAML 1.1, read it in the same way.
    plain = yaml.safe_load(written)
    assert (plain["model"]["name"], plain["train"]["classes"], plain["train"]["store"]) == (name, classes, store)


def _values(tree: object) -> list[object]:
    return [leaf for value in tree.values() for leaf in _values(value)] if isinstance(tree, dict) else [tree]


@pytest.mark.parametrize("size", [20, 500, 3_000_000])
@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["model.weights=none"],
        ["optim.name=sgd", "data.fit=pad"],
        ["data.image_size=64", "train.batch_size=8", "train.epochs=3", "optim.lr=1e-3", "train.precision=fp32"],
        ["data.store=off", "data.crop_fraction=1", "data.interpolation=lanczos", "data.num_workers=3"],
        ["data.store_cap_gib=1e-3"],
    ],
)
def test_nothing_is_left_to_find_out_once_it_is_resolved(tmp_path: Path, overrides: list[str], size: int) -> None:
    from foveal.training.resolve import Facts, resolve

    facts = Facts("folder", num_train=size, num_samples=2 * size, median_side_px=48, median_aspect=1.5)
    config = load(Config, None, ["model.name=test_efficientnet", "train.device=cpu", *overrides])
    resolved = resolve(config, facts)
    assert "auto" not in _values(resolved.model_dump())
    assert load(ResolvedConfig, write(tmp_path, dump_yaml(resolved))) == resolved
    asked = {text.partition("=")[0] for text in overrides}
    wished, done = config.model_dump(), resolved.model_dump()
    for section, key in (name.split(".") for name in asked):
        assert done[section][key] == wished[section][key], "what was asked for is what is done"
