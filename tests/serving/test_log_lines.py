"""What the server writes into its log about errors: where they were, and nothing that a client could write there."""

import errno
from types import SimpleNamespace
from typing import Any

import pytest

from foveal.serving.gate import where
from foveal.serving.running import _Run
from foveal.serving.worker import _report

SENT = "Authorization: Bearer secret\r\nfoveal serves evil at http://evil.example\x1b[31m"


def raised(error: Exception) -> Exception:
    with pytest.raises(type(error)) as caught:
        raise error
    return caught.value


def test_what_nobody_caught_is_a_line_without_its_words() -> None:
    lines: list[str] = []
    run: Any = SimpleNamespace(_say=lines.append)
    loop: Any = None
    _Run._broken(run, loop, {"message": "Fatal error", "exception": raised(ValueError(SENT))})
    _Run._broken(
        run, loop, {"message": "accept() failed", "exception": raised(OSError(errno.EMFILE, "Too many files"))}
    )
    _Run._broken(run, loop, {"message": "two\nlines"})
    assert lines[0].startswith("Fatal error: ValueError at ")
    assert lines[1].startswith("accept() failed: OSError at ")
    assert lines[1].endswith(": Too many files")
    assert lines[2] == "two"
    assert "secret" not in "".join(lines)
    assert "secret" not in where(raised(ValueError(SENT)))


def test_words_of_a_decoder_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """It is told what failed, which is a bug of ours; what a file may have put into it cannot pass for a line."""
    _report(raised(RuntimeError(SENT.partition("\r\n")[2] + "\nfoveal serves evil at http://evil.example")))
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("RuntimeError: foveal serves evil")
    assert "test_log_lines.py" in lines[0]
    assert not any(line.startswith("foveal serves") for line in lines)
    assert "\x1b" not in "".join(lines)
