"""Progress of long work: a bar on a terminal, a line every half minute elsewhere."""

import io
import sys
import time


class Progress:
    """Shows how far a known amount of work has come, its rate and the time left.

    Args:
        title: what is being done.
        total: amount of work, in `unit`.
        unit: name of what is counted, in the plural.
        stream: where it is shown; stderr by default.
        done: amount of work that was done before.
    """

    def __init__(self, title, total, unit="images", stream=None, done=0):
        self.title, self.total, self.unit, self._before = title, total, unit, done
        self._stream = stream or sys.stderr
        self._is_terminal = self._stream.isatty()
        self._interval = 0.2 if self._is_terminal else 30.0
        self._started = self._shown = time.monotonic()

    def update(self, done, note=""):
        """Tells that `done` of `total` is done; `note` is shown behind it."""
        now = time.monotonic()
        if now - self._shown >= self._interval:
            self._shown = now
            self._show(done, now - self._started, note)

    def close(self, done=None, note=""):
        """Shows the last line, with the whole time."""
        seconds = time.monotonic() - self._started
        done = self.total if done is None else done
        start, end = ("\r\x1b[K", "\n") if self._is_terminal else ("", "\n")
        rate = (done - self._before) / max(seconds, 1e-9)
        last = f", the last {done - self._before:,}" if self._before else ""
        text = f"{self.title}: {done:,} {self.unit}{last} in {clock(seconds)} ({rate:,.0f}/s)"
        self._write(start + text + (f"  {note}" if note else "") + end)

    def _show(self, done, seconds, note):
        rate = (done - self._before) / max(seconds, 1e-9)
        left = clock(max(0.0, self.total - done) / rate) if rate else "?"
        share = done / self.total if self.total else 1.0
        text = f"{done:,}/{self.total:,} {self.unit}, {rate:,.0f}/s, {left} left"
        if self._is_terminal:
            bar = ("#" * round(20 * share)).ljust(20, ".")
            self._write(f"\r\x1b[K{self.title} [{bar}] {text}  {note}")
        else:
            self._write(f"{self.title}: {share:4.0%} {text}  {note}\n")

    def _write(self, text):
        try:
            self._stream.write(text)
            self._stream.flush()
        except BrokenPipeError:  # Nobody reads it any more, as behind `| head`: work goes on.
            self._stream = io.StringIO()


def clock(seconds):
    """A duration in seconds as 8.1 s, 3:05 or 2:03:05."""
    if seconds < 59.95:  # From here on one digit would show 60.0.
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
