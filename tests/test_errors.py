"""Errors, and how a stop is told on."""

import signal

from foveal.errors import InterruptedRunError


def test_a_stop_in_other_words_is_the_same_stop() -> None:
    stopped = InterruptedRunError("Stopped in epoch 3.", signal_number=signal.SIGTERM, fix="foveal train --resume")
    assert str(stopped.reworded(fix="again")) == "Stopped in epoch 3.\nWhat to do: again"
    assert stopped.reworded(fix="again").exit_code == 143
    told = stopped.reworded(message=f"fold 2: {stopped.message}", fix="again")
    assert (told.message, told.exit_code) == ("fold 2: Stopped in epoch 3.", 143)
