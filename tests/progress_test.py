"""The progress bar on a terminal, the lines elsewhere, and the format of durations."""

import io
from types import SimpleNamespace

import pytest

from nsk import progress
from nsk.progress import Progress
from nsk.units import format_duration


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def fake_clock(monkeypatch):
    """A clock that the test sets: a list with the time in seconds."""
    now = [1000.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (8.14, "8.1 s"),
        (59.94, "59.9 s"),
        (59.96, "1:00"),
        (60, "1:00"),
        (185.4, "3:05"),
        (3599.4, "59:59"),
        (3599.6, "1:00:00"),
        (7385, "2:03:05"),
        (360000, "100:00:00"),
    ],
)
def test_format_duration(seconds, text):
    assert format_duration(seconds) == text


def test_a_line_every_half_minute_outside_a_terminal(fake_clock):
    stream = io.StringIO()
    bar = Progress("scoring", 10_000, stream=stream)
    for done in range(100, 6100, 100):  # 60 updates, one per second.
        fake_clock[0] += 1
        bar.update(done)
    lines = stream.getvalue().splitlines()
    assert [line.rstrip() for line in lines] == [
        "scoring:  30% 3,000/10,000 images, 100/s, 1:10 left",
        "scoring:  60% 6,000/10,000 images, 100/s, 40.0 s left",
    ]
    assert "\r" not in stream.getvalue() and "\x1b" not in stream.getvalue()


def test_early_work_has_a_line_after_a_second(fake_clock):
    stream = io.StringIO()
    bar = Progress("reading", 1000, stream=stream, early=True)
    for done in range(10, 330, 5):  # 64 updates, two per second.
        fake_clock[0] += 0.5
        bar.update(done)
    assert [line.rstrip() for line in stream.getvalue().splitlines()] == [
        "reading:   2% 15/1,000 images, 15/s, 1:06 left",
        "reading:  32% 315/1,000 images, 10/s, 1:07 left",
    ]


def test_without_a_total_the_count_and_the_rate_are_shown(fake_clock):
    for stream, start, end in ((io.StringIO(), "", "\n"), (Terminal(), "\r\x1b[K", "")):
        bar = Progress("reading", None, stream=stream, early=True)
        assert not bar.is_shown
        fake_clock[0] += 2
        bar.update(3000)
        assert bar.is_shown
        assert stream.getvalue() == f"{start}reading: 3,000 images, 1,500/s  {end}"
        bar.close(4000)
        assert "reading: 4,000 images in 2.0 s (2,000/s)" in stream.getvalue()


def test_the_final_line_has_the_total_time_and_the_note(fake_clock):
    stream = io.StringIO()
    bar = Progress("training", 500, unit="steps", stream=stream)
    fake_clock[0] += 10
    bar.close(note="dev accuracy 90%")
    assert stream.getvalue() == "training: 500 steps in 10.0 s (50/s)  dev accuracy 90%\n"


def test_resumed_work_shows_the_rate_since_resuming(fake_clock):
    stream = io.StringIO()
    bar = Progress("training", 500, done=400, stream=stream)
    fake_clock[0] += 10
    bar.close()
    assert stream.getvalue() == "training: 500 images, 100 since resuming, in 10.0 s (10/s)\n"


def test_work_that_ends_early_shows_how_much_was_done(fake_clock):
    stream = io.StringIO()
    bar = Progress("training", 500, stream=stream)
    fake_clock[0] += 10
    bar.close(done=0)
    assert stream.getvalue().startswith("training: 0 images in 10.0 s")


def test_a_terminal_shows_a_single_line_that_is_redrawn(fake_clock):
    stream = Terminal()
    bar = Progress("writing", 200, stream=stream)
    for done in (50, 100):
        fake_clock[0] += 0.5
        bar.update(done, "note")
    bar.update(101)  # At the same time: not drawn.
    fake_clock[0] += 0.5
    bar.close()
    drawn = stream.getvalue().split("\r\x1b[K")
    assert drawn == [
        "",
        "writing [#####...............] 50/200 images, 100/s, 1.5 s left  note",
        "writing [##########..........] 100/200 images, 100/s, 1.0 s left  note",
        "writing: 200 images in 1.5 s (133/s)\n",
    ]


@pytest.mark.parametrize(("done", "total"), [(0, 0), (0, 5), (7, 0), (7, 5)])
def test_unusual_amounts_raise_no_error(fake_clock, done, total):
    stream = Terminal()
    bar = Progress("scoring", total, stream=stream)
    fake_clock[0] += 1
    bar.update(done)
    bar.close(done)
    assert "-" not in stream.getvalue()


def test_progress_is_written_to_stderr(capsys):
    Progress("scoring", 1).close()
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("scoring: 1 images in ")
