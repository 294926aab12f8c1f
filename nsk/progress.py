"""Progress of long work: a bar on a terminal, a line every half minute elsewhere."""

import io
import sys
import time
from typing import TextIO

from nsk.units import format_duration

TERMINAL_INTERVAL_SECONDS = 0.2
LOG_INTERVAL_SECONDS = 30.0


class Progress:
    """Shows how much of a known amount of work is done, its rate and the time left.

    Args:
        title: what is being done, such as `gen1/student`.
        total: amount of work, in `unit`.
        unit: name of what is counted, in the plural.
        stream: where progress is written; None: stderr.
        done: amount of work that an earlier process has done, which does not count for the rate.
    """

    def __init__(
        self,
        title: str,
        total: int,
        unit: str = "images",
        stream: TextIO | None = None,
        done: int = 0,
    ):
        self.title, self.total, self.unit, self._initially_done = title, total, unit, done
        self._stream = stream or sys.stderr
        self._is_terminal = self._stream.isatty()
        self._interval = TERMINAL_INTERVAL_SECONDS if self._is_terminal else LOG_INTERVAL_SECONDS
        self._started = self._last_shown = time.monotonic()

    def update(self, done: int, note: str = "") -> None:
        """Shows that `done` of `total` is done, followed by `note`; skipped if called too soon."""
        now = time.monotonic()
        if now - self._last_shown >= self._interval:
            self._last_shown = now
            self._show(done, now - self._started, note)

    def close(self, done: int | None = None, note: str = "") -> None:
        """Shows the final line with the total time; `done` is `total` by default."""
        seconds = time.monotonic() - self._started
        done = self.total if done is None else done
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
        left = format_duration(max(0.0, self.total - done) / rate) if rate else "?"
        fraction = done / self.total if self.total else 1.0
        text = f"{done:,}/{self.total:,} {self.unit}, {rate:,.0f}/s, {left} left"
        if self._is_terminal:
            bar = ("#" * round(20 * fraction)).ljust(20, ".")
            self._write(f"\r\x1b[K{self.title} [{bar}] {text}  {note}")
        else:
            self._write(f"{self.title}: {fraction:4.0%} {text}  {note}\n")

    def _write(self, text):
        try:
            self._stream.write(text)
            self._stream.flush()
        except BrokenPipeError:  # The reader has exited, as in `| head`: the work continues.
            self._stream = io.StringIO()
