"""Stopping on request by SIGTERM or Ctrl-C, immediately or once a loop has saved its state.

Most work can be interrupted anywhere. A loop whose state is worth saving runs within
`graceful_stop`: the first signal only sets `StopRequest.requested`, and the loop saves and raises
`Stopped`. A second signal interrupts immediately.
"""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(KeyboardInterrupt):
    """Work was stopped on request and its state is saved."""


class StopRequest:
    """Whether a stop was requested: `requested`."""

    def __init__(self):
        self.requested = False


_active_request = None  # The `StopRequest` of the loop within `graceful_stop`, if there is one.
_signal_count = 0
_interrupted = False  # Whether a KeyboardInterrupt was raised, which Python may have swallowed.


def handle_signal(signal_number: int, frame: FrameType | None) -> None:
    """Handler of both signals: sets the request of a `graceful_stop`, else interrupts."""
    global _signal_count, _interrupted
    _signal_count += 1
    if _active_request is not None and not _active_request.requested:
        _active_request.requested = True
        return
    _interrupted = True
    raise KeyboardInterrupt


def install_handlers() -> None:
    """Handles the signals in this module; call it from the main thread."""
    for signal_number in SIGNALS:
        signal.signal(signal_number, handle_signal)


def ignore_signals() -> None:
    """Ignores the signals from now on."""
    for signal_number in SIGNALS:
        signal.signal(signal_number, signal.SIG_IGN)


@contextlib.contextmanager
def default_handlers() -> Iterator[None]:
    """Within it signals end the process: for library calls that Python's handlers cannot interrupt.

    On exit the previous handlers are restored, even if TensorFlow has replaced that of SIGTERM.
    """
    previous = {signal_number: signal.getsignal(signal_number) for signal_number in SIGNALS}
    for signal_number in SIGNALS:
        signal.signal(signal_number, signal.SIG_DFL)
    try:
        yield
    finally:
        for signal_number, handler in previous.items():
            signal.signal(signal_number, handler)


def signal_count() -> int:
    """Number of signals received so far.

    It reveals a KeyboardInterrupt that a library has replaced by an error of its own.
    """
    return _signal_count


@contextlib.contextmanager
def graceful_stop() -> Iterator[StopRequest]:
    """Yields a `StopRequest` that the loop within it has to poll.

    Raises:
        KeyboardInterrupt: a stop was requested after the loop polled for the last time, or an
            earlier interrupt was swallowed: Python ignores exceptions inside `__del__`, such as
            those of TensorFlow's functions.
    """
    global _active_request
    if _interrupted:
        raise KeyboardInterrupt
    outer, _active_request = _active_request, StopRequest()
    try:
        yield _active_request
        if _active_request.requested:
            raise KeyboardInterrupt
    finally:
        _active_request = outer
