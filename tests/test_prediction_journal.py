"""A prediction that was stopped goes on: nothing is said twice, and nothing that no longer holds is kept."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from foveal.errors import ArtifactError, FovealError
from foveal.prediction import Prediction
from foveal.prediction_journal import journal_of, open_journal

NAMES = ("Käfer", "b")
KEY = {"model": "1", "tta": "none", "class_names": "Käfer, " + os.fsdecode(b"caf\xe9")}


class Counted:
    """Says of each path something of its own, and which paths it was asked about."""

    def __init__(self, stop_after: int = 1_000) -> None:
        self.asked: list[str] = []
        self._stop_after = stop_after

    def __call__(self, paths: Iterable[str]) -> Iterator[Prediction]:
        for path in paths:
            if len(self.asked) == self._stop_after:
                raise KeyboardInterrupt
            self.asked.append(path)
            if not Path(path).exists():
                yield Prediction(path, "failed", "no such file", "", float("nan"), np.full(2, np.nan))
            else:
                share = (hash(path) % 1000) / 999.0 / 3.0
                yield Prediction(path, "ok", "", "b", 1.0 - share, np.array([share, 1.0 - share]))


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    names = ["1.png", "it's a name.png", "new\nline.png", os.fsdecode(b"caf\xe9.png"), "missing.png", "6.png", "7.png"]
    for name in names:
        if name != "missing.png":
            (tmp_path / name).write_bytes(os.fsencode(name))
    return [str(tmp_path / name) for name in names]


def said(table: Path, paths: list[str], counted: Counted, key: dict[str, str] = KEY, **how: bool) -> list[Prediction]:
    with open_journal(table, key, NAMES, fresh=how.get("fresh", False)) as journal:
        return list(journal.resumed(paths, counted))


def stopped(table: Path, paths: list[str], num_done: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        said(table, paths, Counted(num_done))
    assert journal_of(table).is_file()


def same(one: list[Prediction], two: list[Prediction]) -> bool:
    return len(one) == len(two) and all(
        (a.path, a.status, a.reason, a.predicted) == (b.path, b.status, b.reason, b.predicted)
        and np.array_equal(a.probabilities, b.probabilities, equal_nan=True)
        and np.array_equal(a.probability, b.probability, equal_nan=True)
        for a, b in zip(one, two, strict=True)
    )


def test_what_was_said_is_kept_to_the_last_bit_and_the_rest_is_said_anew(tmp_path: Path, paths: list[str]) -> None:
    table = tmp_path / "p.csv"
    whole = said(table, paths, Counted())
    assert not journal_of(table).exists()
    for num_done in range(len(paths)):
        stopped(table, paths, num_done)
        counted = Counted()
        assert same(said(table, paths, counted), whole)
        assert counted.asked == paths[num_done:]


def test_it_can_be_stopped_again_and_again(tmp_path: Path, paths: list[str]) -> None:
    table = tmp_path / "p.csv"
    for _ in range(3):
        stopped(table, paths, 2)
    counted = Counted()
    said(table, paths, counted)
    assert counted.asked == paths[6:]


def test_what_no_longer_holds_is_not_kept(tmp_path: Path, paths: list[str]) -> None:
    table = tmp_path / "p.csv"
    stopped(table, paths, 6)
    Path(paths[1]).write_bytes(b"another picture")
    counted = Counted()
    said(table, paths, counted)
    assert counted.asked == paths[1:]
    stopped(table, paths, 6)
    Path(paths[4]).write_bytes(b"it is there now")
    counted = Counted()
    assert said(table, paths, counted)[4].status == "ok"
    assert counted.asked == paths[4:]
    for changes in ({"key": {**KEY, "model": "2"}}, {"fresh": True}, {"paths": [*reversed(paths)]}):
        stopped(table, paths, 3)
        counted = Counted()
        wanted: list[str] = changes.pop("paths", paths)  # type: ignore[assignment]
        said(table, wanted, counted, **changes)  # type: ignore[arg-type]
        assert counted.asked == wanted


@pytest.mark.parametrize("damage", [b'["/x/1.png", 5', b"\xff\xfe\n", b"[]\n", b"null\n", b'{"a": 1}\n'])
def test_a_torn_or_foreign_line_ends_what_is_kept(tmp_path: Path, paths: list[str], damage: bytes) -> None:
    table = tmp_path / "p.csv"
    whole = said(table, paths, Counted())
    stopped(table, paths, 2)
    with journal_of(table).open("ab") as stream:
        stream.write(damage)
    counted = Counted()
    assert same(said(table, paths, counted), whole)
    assert counted.asked == paths[2:]


def test_one_table_is_made_by_one_process(tmp_path: Path) -> None:
    with (
        open_journal(tmp_path / "p.csv", KEY, NAMES, fresh=False),
        pytest.raises(ArtifactError, match="Another process"),
        open_journal(tmp_path / "p.csv", KEY, NAMES, fresh=False),
    ):
        pass
    (tmp_path / "file").touch()
    with (
        pytest.raises(FovealError, match="cannot be written"),
        open_journal(tmp_path / "file" / "p.csv", KEY, NAMES, fresh=False),
    ):
        pass
