import os
import signal

import pytest

from nsk import stopping


@pytest.fixture(autouse=True)
def handlers():
    kept = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}
    stopping.install()
    yield
    for one, handler in kept.items():
        signal.signal(one, handler)


def send(signal_number):
    os.kill(os.getpid(), signal_number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_interrupts_at_once(number):
    with pytest.raises(KeyboardInterrupt):
        send(number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_loop_that_saves_is_asked_first_and_interrupted_by_a_second_signal(number):
    with pytest.raises(stopping.Stopped), stopping.saving() as stop:
        assert not stop.made
        send(number)
        assert stop.made
        with pytest.raises(KeyboardInterrupt):
            send(number)
        raise stopping.Stopped


def test_a_request_that_the_loop_has_not_seen_interrupts_after_it():
    with pytest.raises(KeyboardInterrupt) as caught, stopping.saving():
        send(signal.SIGTERM)
    assert caught.type is KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):  # And no loop is asked any more.
        send(signal.SIGTERM)


def test_signals_are_counted():
    before = stopping.signals()
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), stopping.saving():
        send(signal.SIGINT)
    assert stopping.signals() == before + 2


def test_afterwards_a_signal_interrupts_again():
    with pytest.raises(stopping.Stopped), stopping.saving() as stop:
        send(signal.SIGTERM)
        assert stop.made
        raise stopping.Stopped
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGTERM)
