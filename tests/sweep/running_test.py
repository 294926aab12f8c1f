"""Running the cells of a sweep: reuse, failures, budget, several processes, kills."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nsk.errors import UserError
from nsk.store.locks import try_lock
from nsk.sweep import running
from nsk.sweep.grid import Cell
from nsk.sweep.running import find_progress, launch_process, prepare, read_summary, run_cells

ROOT = Path(__file__).parents[2]
BASE = {"train_images": ["1000"]}


def make_cells(names=("a", "b"), seeds=(0, 1), **values):
    return [
        Cell(name, seed, {**BASE, "seed": seed, "temperature": 1.0 + number, **values})
        for seed in seeds
        for number, name in enumerate(names)
    ]


def finish(cell, workdir):
    folder = workdir / cell.run_name
    summary = {"generations": [{"dev": {"accuracy": 0.5}}], "pid": os.getpid()}
    (folder / running.SUMMARY).write_text(json.dumps(summary))


class Launcher:
    """Runs cells by noting their titles; those that fail say why in their logs."""

    def __init__(self, failing=()):
        self.titles, self.failing = [], failing

    def __call__(self, cell, workdir, seconds, lock):
        self.titles.append(cell.title)
        log = workdir / cell.run_name / running.LOG
        log.write_text("")
        if cell.title in self.failing:
            log.write_text("10:00:00 something\nnsk: it is broken: mend it.\n\n")
            return 2
        finish(cell, workdir)
        return 0


def test_each_cell_is_run_once_in_order(tmp_path):
    cells, launch = make_cells(), Launcher()
    run_cells(cells, tmp_path, launch=launch)
    assert launch.titles == ["a, seed 0", "b, seed 0", "a, seed 1", "b, seed 1"]
    run_cells(cells, tmp_path, launch=launch)
    assert len(launch.titles) == 4
    assert find_progress(cells, tmp_path).finished == cells
    assert read_summary(cells[0], tmp_path)["pid"] == os.getpid()
    flags = (tmp_path / "cells/b/seed-1/run.flags").read_text()
    assert flags.splitlines() == ["--seed=1", "--train_images=1000", "--temperature=2.0"]


def test_a_cell_with_other_flags_is_run_again(tmp_path):
    run_cells(make_cells(), tmp_path, launch=Launcher())
    launch = Launcher()
    run_cells(make_cells(seeds=(0,), dropout_rate=["0.2"]), tmp_path, launch=launch)
    assert launch.titles == ["a, seed 0", "b, seed 0"]


def test_a_failed_cell_is_listed_and_tried_again_by_the_next_call(tmp_path):
    cells, launch = make_cells(), Launcher(failing=["b, seed 0"])
    run_cells(cells, tmp_path, launch=launch)
    assert launch.titles == ["a, seed 0", "b, seed 0", "a, seed 1", "b, seed 1"]
    progress = find_progress(cells, tmp_path)
    assert progress.failed == {"b, seed 0": "it is broken: mend it."}
    assert len(progress.finished) == 3 and not progress.remaining
    launch = Launcher()
    run_cells(cells, tmp_path, launch=launch)
    assert launch.titles == ["b, seed 0"]
    assert not find_progress(cells, tmp_path).failed


def test_a_crash_without_a_word_is_a_failure(tmp_path):
    def launch(cell, workdir, seconds, lock):
        (workdir / cell.run_name / running.LOG).write_bytes(b"")
        return -11

    cells = make_cells(("a",), (0,))
    run_cells(cells, tmp_path, launch=launch)
    assert find_progress(cells, tmp_path).failed == {"a, seed 0": "it ended with exit code -11"}


def test_the_budget_stops_the_run_in_progress(tmp_path):
    given = []

    def launch(cell, workdir, seconds, lock):
        given.append(seconds)
        (workdir / cell.run_name / running.LOG).write_text("stopped")
        if cell.seed:
            time.sleep(seconds)
            return running.STOPPED
        finish(cell, workdir)
        return 0

    cells = make_cells(("a",), (0, 1, 2))
    run_cells(cells, tmp_path, 0.5, launch)
    assert len(given) == 2 and given[1] < given[0] <= 0.5
    progress = find_progress(cells, tmp_path)
    assert progress.finished == cells[:1] and progress.remaining == cells[1:]
    assert not progress.failed


def start_process(function, workdir):
    """Calls a function of this module with a folder, in a new process.

    Not a fork: the threads that libraries have started in this process would not survive it.
    """
    program = f"from tests.sweep import running_test; running_test.{function}({str(workdir)!r})"
    return subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)


def run_slowly(workdir):
    """Runs six cells, and notes their titles in a file."""

    def launch(cell, folder, seconds, lock):
        time.sleep(0.1)
        with open(folder / "titles.txt", "a") as file:
            file.write(f"{cell.title}\n")
        (folder / cell.run_name / running.LOG).write_text("")
        finish(cell, folder)
        return 0

    running.POLL_SECONDS = 0.05
    run_cells(make_cells(("a", "b", "c")), Path(workdir), launch=launch)


def test_two_processes_share_the_cells(tmp_path):
    """Each is run once, and both processes return when all are finished."""
    processes = [start_process("run_slowly", tmp_path) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    cells = make_cells(("a", "b", "c"))
    titles = (tmp_path / "titles.txt").read_text().splitlines()
    assert sorted(titles) == sorted(cell.title for cell in cells)
    assert find_progress(cells, tmp_path).finished == cells


def test_cells_of_a_seed_that_nobody_works_at_come_first(tmp_path):
    cells, launch = make_cells(), Launcher()
    for cell in cells:
        prepare(cell, tmp_path)
    other = tmp_path / "cells/a/seed-0.lock"
    with try_lock(other) as held:
        assert held

        def launch_and_stop(cell, *arguments):
            launch(cell, *arguments)
            return finish(cells[0], tmp_path) or 0

        run_cells(cells, tmp_path, launch=launch_and_stop)
    assert launch.titles == ["a, seed 1", "b, seed 0", "b, seed 1"]


def launch_and_wait(workdir):
    """Launches a cell whose process writes its number into a file and then does nothing."""
    program = (
        "import os, pathlib, sys, time;"
        "flags = pathlib.Path(sys.argv[1].split('=')[1]);"
        "new = flags.with_name('new');"
        "new.write_text(str(os.getpid()));"
        "new.rename(flags.with_name('pid'));"
        "time.sleep(60)"
    )
    popen = subprocess.Popen

    def start(command, **options):
        assert command[1:4] == ["-m", "nsk.main", "run"] and command[-1] == "--wait_for_locks"
        return popen([sys.executable, "-c", program, *command[4:]], **options)

    running.subprocess.Popen = start
    (cell,) = make_cells(("a",), (0,))
    prepare(cell, Path(workdir))
    with try_lock(Path(workdir) / "cells/a/seed-0.lock") as lock:
        launch_process(cell, Path(workdir), float("inf"), lock)


def test_the_process_of_a_cell_keeps_its_lock(tmp_path):
    """So a killed sweep that is started again waits for a run that it left behind."""
    path, pid = tmp_path / "cells/a/seed-0.lock", tmp_path / "cells/a/seed-0/pid"
    sweep = start_process("launch_and_wait", tmp_path)
    while not pid.exists():
        assert sweep.poll() is None
        time.sleep(0.02)
    sweep.kill()
    sweep.wait()
    with try_lock(path) as lock:
        assert lock is None
    os.kill(int(pid.read_text()), signal.SIGKILL)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with try_lock(path) as lock:
            if lock:
                break
    assert lock is not None


def test_a_process_is_asked_to_stop_when_the_time_is_over(tmp_path, monkeypatch):
    program = "import signal, time; signal.signal(15, lambda *_: exit(75)); time.sleep(60)"
    popen = subprocess.Popen
    monkeypatch.setattr(
        running.subprocess,
        "Popen",
        lambda command, **options: popen([sys.executable, "-c", program], **options),
    )
    (cell,) = make_cells(("a",), (0,))
    prepare(cell, tmp_path)
    with try_lock(tmp_path / "lock") as lock:
        assert launch_process(cell, tmp_path, 1.0, lock) == running.STOPPED


def test_a_damaged_summary_is_named(tmp_path):
    (cell,) = make_cells(("a",), (0,))
    prepare(cell, tmp_path)
    (tmp_path / cell.run_name / running.SUMMARY).write_text("{")
    with pytest.raises(UserError, match=r"summary\.json cannot be read .* delete it and run"):
        read_summary(cell, tmp_path)
