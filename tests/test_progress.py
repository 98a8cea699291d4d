"""What a person sees while it works: on stderr alone."""

import pytest

from foveal.progress import Progress, Silence, Terminal


def work(progress: Progress, total: int) -> None:
    progress.say("a line with [bold]brackets[/bold] and a path/[x].jpg")
    with progress.bar("Decoding [1]", total, "files") as bar:
        for _ in range(3):
            bar.advance(note="epoch [1/2]")
        bar.advance(2)


@pytest.mark.parametrize("total", [0, 5])
def test_lines_go_to_stderr_as_they_are_and_nothing_to_stdout(capsys: pytest.CaptureFixture[str], total: int) -> None:
    work(Terminal(), total)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "a line with [bold]brackets[/bold] and a path/[x].jpg" in shown.err


@pytest.mark.parametrize(("total", "count"), [(5, "5/5"), (0, "5/?")])
def test_the_bar_counts_and_shows_brackets(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, total: int, count: str
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "140")
    work(Terminal(), total)
    shown = capsys.readouterr().err
    assert count in shown
    assert "Decoding [1]" in shown
    assert "epoch [1/2]" in shown


def test_silence_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    work(Silence(), 5)
    assert capsys.readouterr() == ("", "")
