"""The first signal asks, the second one stops."""

import os
import signal
import threading

import pytest

from foveal.training.signals import StopRequest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_the_second_goes_where_it_went_before(number: signal.Signals) -> None:
    came: list[int] = []
    before = signal.signal(number, lambda received, _: came.append(received))
    try:
        with StopRequest() as stop:
            assert stop.signal_number is None
            os.kill(os.getpid(), number)
            assert stop.signal_number == number
            assert came == []
            os.kill(os.getpid(), number)
            assert came == [number]
        os.kill(os.getpid(), number)
        assert came == [number, number]
    finally:
        signal.signal(number, before)


def test_the_second_ctrl_c_is_a_keyboard_interrupt() -> None:
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.signal_number == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_handlers_are_put_back_though_no_signal_came_and_an_error_did() -> None:
    def fail() -> None:
        with StopRequest():
            assert signal.getsignal(signal.SIGTERM) != before[1]
            raise ZeroDivisionError

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(ZeroDivisionError):
        fail()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_in_another_thread_it_leaves_the_handlers_alone() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[object] = []

    def work() -> None:
        with StopRequest() as stop:
            seen.append((signal.getsignal(signal.SIGINT), stop.signal_number))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    assert seen == [(before, None)]
