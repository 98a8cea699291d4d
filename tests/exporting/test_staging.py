"""A folder appears whole or not at all, and what stood there before stands until then."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from foveal.errors import ArtifactError
from foveal.exporting.staging import check_target, staged


def write(folder: Path, text: str) -> None:
    (folder / "model.onnx").write_text(text)
    (folder / "parity.json").write_text("{}")


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    out = tmp_path / "a b" / "out [1]*"
    for text in ("first", "second"):
        with staged(out) as folder:
            write(folder, text)
            (folder.parent / "scratch").mkdir()
            assert not out.exists() or (out / "model.onnx").read_text() == "first"
    assert (out / "model.onnx").read_text() == "second"
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def interrupted(out: Path) -> None:
    with staged(out) as folder:
        write(folder, "half")
        raise KeyboardInterrupt


def test_a_failure_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        interrupted(out)
    assert not list(tmp_path.iterdir())
    with staged(out) as folder:
        write(folder, "whole")
    with pytest.raises(KeyboardInterrupt):
        interrupted(out)
    assert (out / "model.onnx").read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_killed_process_left_is_removed_by_the_next_and_what_is_worked_on_is_not(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from foveal.exporting.staging import staged\n"
        "with staged(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'model.onnx').write_text('half'); print('ready', flush=True); time.sleep(60)\n"
    )
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", script, str(out)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with staged(out) as folder:  # beside it, while it works
            write(folder, "mine")
        assert len(list(tmp_path.glob(".out.*.partial"))) == 1
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert (out / "model.onnx").read_text() == "mine"
    with staged(out) as folder:
        write(folder, "again")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_export_that_was_put_aside_when_the_process_was_killed_comes_back(tmp_path: Path) -> None:
    left = tmp_path / ".out.0123456789ab.partial"
    (left / "old").mkdir(parents=True)
    write(left / "old", "good")
    out = tmp_path / "out"
    with pytest.raises(RuntimeError), staged(out):
        raise RuntimeError
    assert (out / "model.onnx").read_text() == "good"
    assert not left.exists()


def test_only_an_export_is_replaced_and_only_when_asked(tmp_path: Path) -> None:
    out = tmp_path / "out"
    check_target(out, force=False)
    out.mkdir()
    check_target(out, force=False)
    write(out, "x")
    with pytest.raises(ArtifactError, match="holds an export already"):
        check_target(out, force=False)
    check_target(out, force=True)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"notes\.txt"):
        check_target(out, force=True)
    other = tmp_path / "other"
    other.mkdir()
    (other / "README.md").write_text("mine")
    with pytest.raises(ArtifactError, match=r"README\.md"):
        check_target(other, force=True)
    with pytest.raises(ArtifactError, match="no folder"):
        check_target(other / "README.md", force=True)


def test_a_link_keeps_leading_where_it_led(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with staged(tmp_path / "link") as folder:
        write(folder, "x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "model.onnx").read_text() == "x"
