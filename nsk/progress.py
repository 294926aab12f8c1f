"""Progress of long work: a bar on a terminal, a line every half minute elsewhere."""

import io
import sys
import time
from typing import TextIO

from nsk.units import format_duration

TERMINAL_INTERVAL_SECONDS = 0.2
LOG_INTERVAL_SECONDS = 30.0
EARLY_SECONDS = 1.0  # Until the first line of `early` work.


class Progress:
    """Shows how much work is done, its rate and, if its amount is known, the time left.

    Attributes:
        is_shown: whether anything was shown yet.

    Args:
        title: what is being done, such as `gen1/student`.
        total: amount of work, in `unit`; None if it is not known.
        unit: name of what is counted, in the plural.
        stream: where progress is written; None: stderr.
        done: amount of work that an earlier process has done, which does not count for the rate.
        early: whether the first line is written after a second, not half a minute.
    """

    def __init__(
        self,
        title: str,
        total: int | None,
        unit: str = "images",
        stream: TextIO | None = None,
        done: int = 0,
        early: bool = False,
    ):
        self.title, self.total, self.unit, self._initially_done = title, total, unit, done
        self._stream = stream or sys.stderr
        self._is_terminal = self._stream.isatty()
        self._interval = TERMINAL_INTERVAL_SECONDS if self._is_terminal else LOG_INTERVAL_SECONDS
        self._started = time.monotonic()
        first = EARLY_SECONDS if early else self._interval
        self._next_shown = self._started + min(first, self._interval)
        self.is_shown = False

    def update(self, done: int, note: str = "") -> None:
        """Shows that `done` of `total` is done, followed by `note`; skipped if called too soon."""
        now = time.monotonic()
        if now >= self._next_shown:
            self._next_shown = now + self._interval
            self._show(done, now - self._started, note)

    def close(self, done: int | None = None, note: str = "") -> None:
        """Shows the final line with the total time; `done` is `total` if it is not given."""
        seconds = time.monotonic() - self._started
        done = (self.total or 0) if done is None else done
        start, end = ("\r\x1b[K", "\n") if self._is_terminal else ("", "\n")
        new = done - self._initially_done
        resumed = f", {new:,} since resuming," if self._initially_done else ""
        rate = new / max(seconds, 1e-9)
        text = (
            f"{self.title}: {done:,} {self.unit}{resumed} in {format_duration(seconds)} "
            f"({rate:,.0f}/s)"
        )
        self._write(start + text + (f"  {note}" if note else "") + end)

    def _show(self, done, seconds, note):
        rate = (done - self._initially_done) / max(seconds, 1e-9)
        start, end = ("\r\x1b[K", "") if self._is_terminal else ("", "\n")
        if self.total is None:
            text = f"{self.title}: {done:,} {self.unit}, {rate:,.0f}/s"
        else:
            left = format_duration(max(0.0, self.total - done) / rate) if rate else "?"
            fraction = done / self.total if self.total else 1.0
            bar = ("#" * round(20 * fraction)).ljust(20, ".")
            share = f" [{bar}]" if self._is_terminal else f": {fraction:4.0%}"
            text = (
                f"{self.title}{share} {done:,}/{self.total:,} {self.unit}, {rate:,.0f}/s, "
                f"{left} left"
            )
        self._write(f"{start}{text}  {note}{end}")

    def _write(self, text):
        self.is_shown = True
        try:
            self._stream.write(text)
            self._stream.flush()
        except BrokenPipeError:  # The reader has exited, as in `| head`: the work continues.
            self._stream = io.StringIO()
