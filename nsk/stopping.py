"""Stopping on request: SIGTERM and Ctrl-C, at once or where nothing is lost.

Most work may be interrupted anywhere. A loop that holds something of value asks for time within
`saving`: the first signal then only sets `StopRequest.made`, and the loop saves and raises
`Stopped`. A second signal interrupts at once.
"""

import contextlib
import signal

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(KeyboardInterrupt):
    """Work was stopped on request; everything is saved."""


class StopRequest:
    """Whether a stop was requested: `made`."""

    def __init__(self):
        self.made = False


_loop = None  # The `StopRequest` of the loop that saves, if there is one.
_signals = 0


def handle(signal_number, frame):
    """The handler of both signals."""
    global _signals
    _signals += 1
    if _loop is not None and not _loop.made:
        _loop.made = True
        return
    raise KeyboardInterrupt


def install():
    """Lets this module handle the signals; call it from the main thread."""
    for one in SIGNALS:
        signal.signal(one, handle)


def ignore():
    """Lets signals be, from now on."""
    for one in SIGNALS:
        signal.signal(one, signal.SIG_IGN)


@contextlib.contextmanager
def default_handlers():
    """Lets the system's handlers end the process: for a library's call that hears no others.

    Afterwards the handlers are those from before, although TensorFlow may have taken SIGTERM for
    itself meanwhile.
    """
    before = [(one, signal.getsignal(one)) for one in SIGNALS]
    for one in SIGNALS:
        signal.signal(one, signal.SIG_DFL)
    try:
        yield
    finally:
        for one, handler in before:
            signal.signal(one, handler)


def signals():
    """How many signals there were: a library may have made another error of a KeyboardInterrupt."""
    return _signals


@contextlib.contextmanager
def saving():
    """Yields a `StopRequest` that the loop within looks at."""
    global _loop
    outer, _loop = _loop, StopRequest()
    try:
        yield _loop
        if _loop.made:  # Since the loop looked for the last time.
            raise KeyboardInterrupt
    finally:
        _loop = outer
