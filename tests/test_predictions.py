"""What goes into a prediction and the table that comes out."""

import csv
import io
import json
import math
import os
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from foveal.errors import ConfigError, DataError, FovealError
from foveal.files import plain_cell
from foveal.prediction import Prediction
from foveal.predictions import PARQUET_ROWS, expand_inputs, open_table, table_format

CLASSES = ("=HYPERLINK(1)", 'b,"c"', "7")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Names of every odd kind, in the working folder."""
    names = [
        "10.png",
        "2.png",
        "a/1.png",
        "a/b/c.jpg",
        "[1].png",
        "what?.png",
        "-x.png",
        "new\nline.png",
        ".hidden.png",
    ]
    for name in [*names, ".git/x.png", "a/.cache/x.png", "é.png"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / os.fsdecode(b"caf\xe9.png")).touch()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def expand(*inputs: str, stdin: IO[str] | None = None) -> list[str]:
    return list(expand_inputs(inputs, stdin))


def test_files_are_taken_as_they_are_also_those_that_are_not_there(folder: Path) -> None:
    names = ["2.png", "./2.png", "missing.png", "-x.png", "new\nline.png", "a\0b", "2.png", "a//1.png", ""]
    assert expand(*names) == names


def test_a_folder_is_walked_in_natural_order_without_hidden_entries(folder: Path) -> None:
    assert expand("a") == ["a/1.png", "a/b/c.jpg"]
    top = [name for name in expand(".") if name.count("/") == 1]
    assert top.index("./2.png") < top.index("./10.png")
    assert set(expand(".")) == {
        *("./2.png", "./10.png", "./[1].png", "./what?.png", "./-x.png", "./new\nline.png", "./é.png"),
        *("./caf\udce9.png", "./a/1.png", "./a/b/c.jpg"),
    }
    assert expand(".git") == [".git/x.png"], "asked for by name"


def test_patterns_find_files_and_names_with_signs_are_themselves(folder: Path) -> None:
    assert expand("[0-9]*.png") == ["2.png", "10.png"]
    assert expand("**/*.jpg") == ["a/b/c.jpg"]
    assert expand("[1].png", "what?.png") == ["[1].png", "what?.png"]
    assert expand("*") == [name for name in expand("*") if Path(name).is_file()], "no folders"


def test_the_order_of_the_inputs_is_kept(folder: Path) -> None:
    assert expand("a/b", "2.png", "1*.png", "a/1.png") == ["a/b/c.jpg", "2.png", "10.png", "a/1.png"]


@pytest.mark.parametrize("given", ["empty", "*.tif", "nowhere/*.png", "emp*"])
def test_what_holds_no_file_is_told(folder: Path, given: str) -> None:
    with pytest.raises(DataError, match=r"holds no files|No file matches") as caught:
        expand("2.png", given)
    assert "hidden" in caught.value.fix


def test_a_list_on_stdin_is_read_line_by_line_whatever_its_bytes(folder: Path) -> None:
    content = b"2.png\r\n\n  spaced .png \n*.png\ncaf\xe9.png\n-\nlast.png"
    wanted = ["2.png", "  spaced .png ", "*.png", "caf\udce9.png", "-", "last.png"]
    assert expand("-", "10.png", stdin=io.TextIOWrapper(io.BytesIO(content), encoding="utf-8")) == [*wanted, "10.png"]
    assert expand("-", stdin=io.StringIO("a.png\nb.png\n")) == ["a.png", "b.png"]
    assert expand("./-") == ["./-"], "a file of that name"
    assert expand("-") == []


def test_inputs_are_found_one_by_one(folder: Path) -> None:
    def endless() -> io.TextIOWrapper:
        class Endless(io.RawIOBase):
            def readable(self) -> bool:
                return True

            def readinto(self, buffer: bytearray) -> int:
                buffer[:6] = b"2.png\n"
                return 6

        return io.TextIOWrapper(io.BufferedReader(Endless(), 6))

    paths = expand_inputs(["-"], endless())
    assert [next(paths) for _ in range(1000)] == ["2.png"] * 1000


def test_a_folder_that_cannot_be_listed_is_not_passed_over(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a stand-in, for the super user may list everything."""
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith(("a/b", "empty")):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert expand("a") == ["a/1.png", "a/b"]
    assert expand("empty") == ["empty"]


@pytest.mark.parametrize(
    ("out", "wanted", "expected"),
    [
        (None, None, "csv"),
        ("p.csv", None, "csv"),
        ("p.CSV", None, "csv"),
        ("p.jsonl", None, "jsonl"),
        ("p.ndjson", None, "jsonl"),
        ("p.parquet", None, "parquet"),
        ("p.txt", "jsonl", "jsonl"),
        ("p.csv", "parquet", "parquet"),
        (None, "jsonl", "jsonl"),
    ],
)
def test_the_format_is_what_was_said_or_what_the_ending_says(
    out: str | None, wanted: str | None, expected: str
) -> None:
    assert table_format(Path(out) if out else None, wanted) == expected


@pytest.mark.parametrize(
    ("out", "wanted", "message"),
    [("p.txt", None, "the ending says no format"), ("p", None, "the ending says"), (None, "parquet", "the terminal"),
     ("p.csv", "xlsx", "expected csv, jsonl or parquet")],
)  # fmt: skip
def test_a_format_that_cannot_be_is_refused(out: str | None, wanted: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        table_format(Path(out) if out else None, wanted)


def good(path: str, *probabilities: float) -> Prediction:
    top = int(np.argmax(probabilities))
    return Prediction(path, "ok", "", CLASSES[top], probabilities[top], np.array(probabilities))


def bad(path: str, reason: str) -> Prediction:
    return Prediction(path, "failed", reason, "", math.nan, np.full(3, math.nan))


ODD = ["=cmd|' /C calc'!A1.png", 'a\nb,"c".png', "caf\udce9.png", "-1.png", "@x", "'quoted.png", "é.png", ""]
ROWS = [
    *(good(path, 0.125, 0.5, 0.375) for path in ODD),
    bad("+x.png", "=the reason"),
    good("last.png", 1.0, 0.0, 1e-9),
]
COLUMNS = ["path", "status", "reason", "predicted", "probability", *(f"p_{name}" for name in CLASSES)]


def write(out: Path | None, kind: str, rows: Sequence[Prediction] = ROWS, stdout: IO[str] | None = None) -> None:
    with open_table(out, kind, CLASSES, stdout or io.StringIO()) as table:  # type: ignore[arg-type]
        for row in rows:
            table.add(row)


def test_csv_can_be_read_back_and_runs_in_no_spreadsheet(tmp_path: Path) -> None:
    """Row 40."""
    write(tmp_path / "t.csv", "csv")
    with (tmp_path / "t.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
        head, *rows = csv.reader(stream)
    assert head == ["path", "status", "reason", "predicted", "probability", "p_=HYPERLINK(1)", 'p_b,"c"', "p_7"]
    for cell in (cell for row in [head, *rows] for cell in row):
        assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    assert [plain_cell(row[0]) for row in rows] == [*ODD, "+x.png", "last.png"]
    assert [plain_cell(row[3]) for row in rows] == [*['b,"c"'] * 8, "", "=HYPERLINK(1)"]
    assert rows[0][4:] == ["0.5", "0.125", "0.5", "0.375"]
    assert rows[8] == ["'+x.png", "failed", "'=the reason", "", "", "", "", ""]
    assert [float(cell) for cell in rows[9][4:]] == [1.0, 1.0, 0.0, 1e-9]


def test_json_lines_are_valid_utf8_json_one_a_line(tmp_path: Path) -> None:
    write(tmp_path / "t.jsonl", "jsonl")
    content = (tmp_path / "t.jsonl").read_bytes().decode("utf-8")
    rows = [json.loads(line) for line in content.splitlines()]
    assert [row["path"] for row in rows] == [*ODD, "+x.png", "last.png"]
    assert all(list(row) == COLUMNS for row in rows)
    assert rows[8] == {**dict.fromkeys(COLUMNS), "path": "+x.png", "status": "failed", "reason": "=the reason"}
    assert rows[9]["p_7"] == 1e-9
    assert "é.png" in content


def test_parquet_is_typed_with_nulls_where_nothing_is_known(tmp_path: Path) -> None:
    write(tmp_path / "t.parquet", "parquet")
    table = parquet.read_table(tmp_path / "t.parquet")
    assert table.schema.names == COLUMNS
    assert table.schema.types == [pa.string()] * 4 + [pa.float64()] * 4
    assert table["path"].to_pylist() == [path.replace("\udce9", "\N{REPLACEMENT CHARACTER}") for path in ODD] + [
        "+x.png",
        "last.png",
    ]
    for name in ("predicted", "probability", *COLUMNS[5:]):
        assert [value is None for value in table[name].to_pylist()] == [False] * 8 + [True, False]
    assert table["probability"].to_pylist()[0] == 0.5


def test_parquet_goes_to_disk_in_pieces(tmp_path: Path) -> None:
    num_rows = 2 * PARQUET_ROWS + 5
    write(tmp_path / "t.parquet", "parquet", [good(str(i), 0.5, 0.25, 0.25) for i in range(num_rows)])
    file = parquet.ParquetFile(tmp_path / "t.parquet")
    assert file.num_row_groups == 3
    assert file.read()["path"].to_pylist() == [str(i) for i in range(num_rows)]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_table_without_rows_has_its_columns(tmp_path: Path, kind: str) -> None:
    write(tmp_path / "t", kind, [])
    content = (tmp_path / "t").read_bytes()
    assert content.count(b"\n") == {"csv": 1, "jsonl": 0}.get(kind, content.count(b"\n"))
    if kind == "parquet":
        assert parquet.read_table(tmp_path / "t").schema.names == COLUMNS


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_table_appears_only_when_it_is_whole(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "t"
    out.write_text("what was there before")

    def fail() -> None:
        with open_table(out, kind, CLASSES, io.StringIO()) as table:  # type: ignore[arg-type]
            for row in ROWS:
                table.add(row)
            assert out.read_text() == "what was there before"
            raise DataError("the list ends badly")

    with pytest.raises(DataError, match="ends badly"):
        fail()
    assert out.read_text() == "what was there before"
    assert os.listdir(tmp_path) == ["t"]


def test_a_table_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FovealError, match="could not be written"):
        write(tmp_path / "file" / "t.csv", "csv")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_full_disk_is_told_and_leaves_what_was_there(tmp_path: Path, kind: str) -> None:
    """The limit on file sizes makes the kernel refuse to write on, as a full disk does."""
    out = tmp_path / "t"
    out.write_text("what was there before")
    rows = [good(os.urandom(40).hex(), 0.5, 0.25, 0.25)] * 2 + [good(os.urandom(40).hex(), 0.5, 0, 0.5)] * 8_000
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, before[1]))
    try:
        with pytest.raises(FovealError, match=r"t could not be written: File too large"):
            write(out, kind, rows)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert out.read_text() == "what was there before"
    assert os.listdir(tmp_path) == ["t"]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_stdout_gets_the_same_bytes_whatever_its_encoding(tmp_path: Path, kind: str) -> None:
    write(tmp_path / "t", kind)
    raw = io.BytesIO()
    stdout = io.TextIOWrapper(raw, encoding="ascii")
    stdout.write("before\n")
    write(None, kind, stdout=stdout)
    stdout.write("after\n")
    stdout.flush()
    assert raw.getvalue() == b"before\n" + (tmp_path / "t").read_bytes() + b"after\n"
    text = io.StringIO(newline="")
    write(None, kind, stdout=text)
    assert text.getvalue().encode("utf-8", errors="surrogateescape") == (tmp_path / "t").read_bytes()
