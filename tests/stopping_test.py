"""Signals stop work immediately, or after a loop has saved its state."""

import contextlib
import os
import signal

import pytest

from nsk import stopping


@pytest.fixture(autouse=True)
def handlers():
    previous = {number: signal.getsignal(number) for number in stopping.SIGNALS}
    stopping.install_handlers()
    yield
    for number, handler in previous.items():
        signal.signal(number, handler)


def send(signal_number):
    os.kill(os.getpid(), signal_number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_interrupts_immediately(number):
    with pytest.raises(KeyboardInterrupt):
        send(number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_graceful_stop_is_requested_and_a_second_signal_interrupts(number):
    with pytest.raises(stopping.Stopped), stopping.graceful_stop() as stop:
        assert not stop.requested
        send(number)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            send(number)
        raise stopping.Stopped


def test_a_request_after_the_last_poll_interrupts_after_the_loop():
    with pytest.raises(KeyboardInterrupt) as caught, stopping.graceful_stop():
        send(signal.SIGTERM)
    assert caught.type is KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):  # No loop is asked any more.
        send(signal.SIGTERM)


def test_signals_are_counted():
    before = stopping.signal_count()
    with pytest.raises(KeyboardInterrupt), stopping.graceful_stop():
        send(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGTERM)
    assert stopping.signal_count() == before + 2


def test_a_signal_interrupts_again_after_a_graceful_stop():
    with pytest.raises(stopping.Stopped), stopping.graceful_stop() as stop:
        send(signal.SIGTERM)
        assert stop.requested
        raise stopping.Stopped
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGTERM)


def test_an_interrupt_that_was_swallowed_stops_the_next_loop():
    """As inside `__del__`, whose exceptions Python ignores."""
    with contextlib.suppress(KeyboardInterrupt):
        send(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), stopping.graceful_stop():
        pytest.fail("the loop has started")
