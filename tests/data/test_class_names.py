import json
from pathlib import Path

import pytest

from foveal.data.class_names import exclude_option, name_classes
from foveal.data.config import DataConfig
from foveal.errors import DataError

VAN = "Ram C/V Cargo Van Minivan 2012"


def _named(tmp_path: Path, labels: list[str], content: str, name: str, **more: object) -> dict[str, str | None]:
    file = tmp_path / name
    file.write_text(content, encoding="utf-8")
    return name_classes(labels, DataConfig(class_names=str(file), **more))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("n.txt", f'\ufeffcat "the" dog\r\n{VAN}\r\n\u00e9\r\n\r\n'),
        ("n.csv", f'name,id\n"cat ""the"" dog",0\n{VAN},1\ne\u0301,2\n'),
        ("semicolon.csv", f'ClassId;SignName\n2;\u00e9\n1;{VAN}\n0;cat "the" dog\n'),
        ("list.json", json.dumps(['cat "the" dog', VAN, "e\u0301"])),
        ("dict.json", json.dumps({"0": 'cat "the" dog', "1": VAN, "2": "\u00e9", "3": "not used"})),
        ("inverse.json", json.dumps({'cat "the" dog': 0, VAN: 1, "\u00e9": 2})),
    ],
)
def test_every_form_gives_names_exactly(tmp_path: Path, name: str, content: str) -> None:
    names = _named(tmp_path, ["0", "1", "2", "1", "2.0"], content, name)
    assert names == {"0": 'cat "the" dog', "1": VAN, "2": "\u00e9", "2.0": "\u00e9"}


def test_a_list_counts_from_0_or_from_1_as_the_ids_allow(tmp_path: Path) -> None:
    text = "ant\nbee\ncow\n"
    assert _named(tmp_path, ["0", "1", "2"], text, "n.txt") == {"0": "ant", "1": "bee", "2": "cow"}
    assert _named(tmp_path, ["1", "2", "3"], text, "n.txt") == {"1": "ant", "2": "bee", "3": "cow"}
    assert _named(tmp_path, ["3", "01"], text, "n.txt") == {"3": "cow", "01": "ant"}
    with pytest.raises(DataError, match="from 0 or from 1 cannot be told"):
        _named(tmp_path, ["1", "2"], text, "n.txt")
    with pytest.raises(DataError, match="ids from 0 to 7") as caught:
        _named(tmp_path, ["0", "3", "7"], text, "n.txt")
    assert [problem.partition(" has")[0] for problem in caught.value.problems] == ["id 3", "id 7"]


def test_labels_that_are_names_already_stay(tmp_path: Path) -> None:
    assert _named(tmp_path, ["bee", "cow"], "ant\nbee\ncow\n", "n.txt") == {"bee": "bee", "cow": "cow"}
    with pytest.raises(DataError) as caught:
        _named(tmp_path, ["bee", "crow", "cow"], "ant\nbee\ncow\n", "n.txt")
    assert "label 'crow' has no name" in caught.value.problems


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("n.json", "[1, 2]", "neither a list of names"),
        ("n.json", '{"0": ["n01440764", "tench"]}', "neither a list of names"),
        ("n.json", '{"a": 0, "b": 0}', "one id to two names"),
        ("n.json", "{", "not JSON"),
        ("n.csv", "0,cat\n1,dog\n", "columns id and name"),
        ("n.csv", "id,name\n0,cat\n0,dog\n", "cannot be read"),
        ("n.csv", "id,name\n0,cat,dog\n", "cannot be read"),
        ("n.csv", "", "columns id and name"),
        ("n.txt", "\n\n", "holds no names"),
        ("n.txt", "cat\n\ndog\n", "empty name"),
        ("n.csv", "id,name\n0,crane\n1,crane\n", "one name to several ids"),
    ],
)
def test_unusable_files_are_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        _named(tmp_path, ["0", "1"], content, name)


def test_missing_and_undecodable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        name_classes(["0"], DataConfig(class_names=str(tmp_path / "none.txt")))
    (tmp_path / "latin.txt").write_bytes("Mäuse".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        name_classes(["0"], DataConfig(class_names=str(tmp_path / "latin.txt")))


def test_classes_are_left_out_by_name(tmp_path: Path) -> None:
    config = DataConfig(exclude_classes=("\u00e9",))
    assert name_classes(["e\u0301", "cat"], config) == {"e\u0301": None, "cat": "cat"}
    assert _named(tmp_path, ["0", "1"], "ant\nbee\n", "n.txt", exclude_classes=("bee",)) == {"0": "ant", "1": None}
    with pytest.raises(DataError, match="no class of this data") as caught:
        name_classes(["cat", "dog"], DataConfig(exclude_classes=("cta",)))
    assert caught.value.problems == ("'cta'; did you mean 'cat'?",)


def test_the_option_can_be_typed() -> None:
    assert exclude_option(["10", "it's", "2"]) == '--set \'data.exclude_classes=["2", "10", "it\'"\'"\'s"]\''
