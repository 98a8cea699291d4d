"""What a verb says when it is stopped."""

import pytest
import typer

from foveal.cli.shell import verb
from foveal.errors import ArtifactError, InterruptedRunError


@pytest.mark.parametrize(
    ("goes_on", "told"), [(True, "the same command goes on where it stopped"), (False, "stopped.")]
)
def test_ctrl_c_says_how_to_go_on(goes_on: bool, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, verb(False, goes_on=goes_on):
        raise KeyboardInterrupt
    assert ended.value.exit_code == 130
    assert told in capsys.readouterr().err


def test_what_ctrl_c_makes_of_an_import_is_still_ctrl_c(capsys: pytest.CaptureFixture[str]) -> None:
    """Python wraps any exception in a class body's __set_name__, which whoever imports takes for a broken library."""
    wrapped = RuntimeError("Error calling __set_name__")
    wrapped.__cause__ = KeyboardInterrupt()
    with pytest.raises(typer.Exit) as ended, verb(False, goes_on=True):
        raise ArtifactError("The network cannot be built.") from wrapped
    assert ended.value.exit_code == 130
    assert "stopped" in capsys.readouterr().err


def test_a_run_that_saved_says_so_itself(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit), verb(False):
        raise InterruptedRunError("Stopped at epoch 3.", signal_number=2, fix="resume.") from KeyboardInterrupt()
    assert "Stopped at epoch 3." in capsys.readouterr().err
