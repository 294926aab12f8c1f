import io
from types import SimpleNamespace

import pytest

from nsk import progress
from nsk.progress import Progress, clock


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def time_of_test(monkeypatch):
    """A clock that the test sets: a list whose only entry is the time in seconds."""
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
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_outside_a_terminal_there_is_a_line_every_half_minute(time_of_test):
    stream = io.StringIO()
    shown = Progress("scoring", 10_000, stream=stream)
    for done in range(100, 6100, 100):  # 60 updates, one a second.
        time_of_test[0] += 1
        shown.update(done)
    lines = stream.getvalue().splitlines()
    assert [line.rstrip() for line in lines] == [
        "scoring:  30% 3,000/10,000 images, 100/s, 1:10 left",
        "scoring:  60% 6,000/10,000 images, 100/s, 40.0 s left",
    ]
    assert "\r" not in stream.getvalue() and "\x1b" not in stream.getvalue()


def test_the_last_line_has_the_whole_time_and_the_note(time_of_test):
    stream = io.StringIO()
    shown = Progress("training", 500, unit="steps", stream=stream)
    time_of_test[0] += 10
    shown.close(note="dev accuracy 90%")
    assert stream.getvalue() == "training: 500 steps in 10.0 s (50/s)  dev accuracy 90%\n"


def test_work_that_went_on_has_the_rate_of_what_is_new(time_of_test):
    stream = io.StringIO()
    shown = Progress("training", 500, done=400, stream=stream)
    time_of_test[0] += 10
    shown.close()
    assert stream.getvalue() == "training: 500 images, the last 100 in 10.0 s (10/s)\n"


def test_work_that_ended_early_says_how_much_was_done(time_of_test):
    stream = io.StringIO()
    shown = Progress("training", 500, stream=stream)
    time_of_test[0] += 10
    shown.close(done=0)
    assert stream.getvalue().startswith("training: 0 images in 10.0 s")


def test_on_a_terminal_one_line_is_drawn_over_and_over(time_of_test):
    stream = Terminal()
    shown = Progress("writing", 200, stream=stream)
    for done in (50, 100):
        time_of_test[0] += 0.5
        shown.update(done, "note")
    shown.update(101)  # At the same moment: not worth drawing.
    time_of_test[0] += 0.5
    shown.close()
    drawn = stream.getvalue().split("\r\x1b[K")
    assert drawn == [
        "",
        "writing [#####...............] 50/200 images, 100/s, 1.5 s left  note",
        "writing [##########..........] 100/200 images, 100/s, 1.0 s left  note",
        "writing: 200 images in 1.5 s (133/s)\n",
    ]


@pytest.mark.parametrize(("done", "total"), [(0, 0), (0, 5), (7, 0), (7, 5)])
def test_odd_amounts_are_shown_without_an_error(time_of_test, done, total):
    stream = Terminal()
    shown = Progress("odd", total, stream=stream)
    time_of_test[0] += 1
    shown.update(done)
    shown.close(done)
    assert "-" not in stream.getvalue()


def test_progress_goes_to_stderr(capsys):
    Progress("scoring", 1).close()
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("scoring: 1 images in ")
