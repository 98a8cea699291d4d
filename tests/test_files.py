"""Durable writes, natural order, and cells that no spreadsheet runs."""

import csv
import errno
import hashlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveal import files
from foveal.errors import FovealError
from foveal.files import (
    Utf8Lines,
    atomic_writer,
    fsync_folder,
    natural_key,
    neutral_cell,
    plain_cell,
    read_json,
    sha256_bytes,
    sha256_file,
    to_json,
    write_csv,
    write_json,
    write_text,
)


@pytest.mark.parametrize(
    "ordered",
    [
        ["2", "10", "11"],
        ["cat", "cat2", "cat10", "cats"],
        ["a1b2", "a1b10", "a02b1", "a2b2"],
        ["Img 9", "img 10", "IMG 11"],
        ["", "0", "A", "a", "ä"],
        ["x" + "1" * 5_000, "x2" + "0" * 5_000],
    ],
)
def test_natural_order(ordered: list[str]) -> None:
    ordered_backwards = ordered[::-1]
    assert sorted(ordered_backwards, key=natural_key) == ordered


@given(st.text(), st.text())
def test_natural_order_is_total(one: str, other: str) -> None:
    assert (natural_key(one) == natural_key(other)) == (one == other)
    assert natural_key(one) < natural_key(other) or natural_key(other) <= natural_key(one)


def test_hashes_are_those_of_the_standard() -> None:
    assert sha256_bytes(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_file_is_hashed_whole(tmp_path: Path) -> None:
    content = os.urandom(3 << 20)
    (tmp_path / "f").write_bytes(content)
    assert sha256_file(tmp_path / "f") == hashlib.sha256(content).hexdigest()


def test_the_new_file_appears_at_once_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "f"
    write_text(path, "old")
    with atomic_writer(path) as stream:
        stream.write(b"half")
        stream.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "half"
    assert os.listdir(path.parent) == ["f"]


def test_a_failure_while_writing_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), atomic_writer(path) as stream:
        stream.write(b"half" * (1 // 0))
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["f"]


def test_a_full_disk_is_told_and_leaves_what_was_there(tmp_path: Path) -> None:
    """Row 4. The limit on file sizes makes the kernel refuse to write on, as a full disk does."""
    path = tmp_path / "f"
    write_text(path, "old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(FovealError, match="f could not be written: File too large") as caught:
            write_text(path, "x" * 200_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "free some space" in caught.value.fix
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["f"]


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FovealError, match=r"below could not be written: (File exists|Not a directory)"):
        write_text(tmp_path / "file" / "below", "x")


def test_a_fault_of_something_else_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="an image"), atomic_writer(tmp_path / "f"):
        raise FileNotFoundError(errno.ENOENT, "No such file", "an image")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_the_umask_decides_who_may_read(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_text(tmp_path / "f", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "f").stat().st_mode & 0o777 == mode


def test_a_reader_sees_one_whole_file_or_the_other_never_a_part(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_text(path, "a" * 1_000_000)
    writer = threading.Thread(target=lambda: [write_text(path, letter * 1_000_000) for letter in "bcdefghijk" * 3])
    writer.start()
    while writer.is_alive():
        text = path.read_text()
        assert (len(text), len(set(text))) == (1_000_000, 1)
    writer.join()


def test_a_killed_writer_never_leaves_a_torn_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    code = (
        "import sys; from pathlib import Path; from foveal.files import write_text\n"
        "for i in range(10**9):\n"
        "    write_text(Path(sys.argv[1]), chr(97 + i % 26) * 400_000)\n"
        "    print(i, flush=True)"
    )
    for num_written in (1, 2, 5, 9):
        with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout
            for _ in range(num_written):
                writer.stdout.readline()
            writer.send_signal(signal.SIGKILL)
        text = path.read_text()
        assert len(text) == 400_000
        assert len(set(text)) == 1


@pytest.mark.parametrize(("code", "is_tolerated"), [(errno.EINVAL, True), (errno.EIO, False)])
def test_only_a_disk_that_cannot_flush_folders_is_excused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, is_tolerated: bool
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.os, "fsync", fail)
    if is_tolerated:
        fsync_folder(tmp_path)
    else:
        with pytest.raises(OSError, match="Input/output"):
            fsync_folder(tmp_path)


def test_json_round_trip_with_what_numpy_and_odd_names_bring(tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9\n\"=1'.png")
    value = {
        "path": Path(odd),
        "count": np.int64(3),
        "share": np.float32(0.5),
        "flag": np.bool_(True),
        "ü": [None, odd],
    }
    write_json(tmp_path / "v.json", value)
    raw = (tmp_path / "v.json").read_bytes()
    assert "ü" in raw.decode("utf-8"), "letters stay readable, and the file is valid UTF-8"
    assert read_json(tmp_path / "v.json") == {"path": odd, "count": 3, "share": 0.5, "flag": True, "ü": [None, odd]}


@given(st.text(st.characters(exclude_categories=[])))
def test_any_text_survives_json(text: str) -> None:
    written = to_json({"text": text})
    assert json.loads(written.encode("utf-8")) == {"text": text}
    assert "\n" not in written


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.float32("nan"), object(), {1, 2}])
def test_json_refuses_what_it_has_no_word_for(tmp_path: Path, value: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        write_json(tmp_path / "v.json", {"value": value})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b'{"a": ', "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 200_000, "is not JSON"),
    ],
)
def test_what_is_no_json_is_told(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "v.json").write_bytes(content)
    with pytest.raises(FovealError, match=message):
        read_json(tmp_path / "v.json")


def test_a_missing_or_unreadable_json_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(FovealError, match="does not exist"):
        read_json(tmp_path / "v.json")
    with pytest.raises(FovealError, match="cannot be read: Is a directory"):
        read_json(tmp_path)


FORMULAS = ["=HYPERLINK(1)", "+1", "-1+2", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1", "－2"]


@pytest.mark.parametrize("text", FORMULAS)
def test_formulas_are_neutralised(text: str) -> None:
    """Row 40."""
    assert neutral_cell(text) == "'" + text


@given(st.one_of(st.text(), st.sampled_from([*FORMULAS, "'", "''=", "'=x"])))
def test_neutral_cells_can_be_read_back(text: str) -> None:
    cell = neutral_cell(text)
    assert plain_cell(cell) == text
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠"))


def test_what_is_no_text_is_left_alone() -> None:
    assert [neutral_cell(value) for value in (-1, -0.5, None, True)] == [-1, -0.5, None, True]
    assert plain_cell("'tis") == "'tis"


def test_a_csv_table_reads_back(tmp_path: Path) -> None:
    odd = os.fsdecode(b'caf\xe9,\n"q".png')
    rows = [["=cmd", odd, -1.5], ["-", "", 2]]
    write_csv(tmp_path / "t.csv", ["+a", "b", "c"], rows)
    with (tmp_path / "t.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
        assert list(csv.reader(stream)) == [["'+a", "b", "c"], ["'=cmd", odd, "-1.5"], ["'-", "", "2"]]


def test_bytes_of_a_name_that_are_no_utf8_come_out_as_they_were() -> None:
    stream = io.BytesIO()
    Utf8Lines(stream).write(os.fsdecode(b"caf\xe9"))
    assert stream.getvalue() == b"caf\xe9"
