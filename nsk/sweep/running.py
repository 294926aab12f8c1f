"""Runs the cells of a sweep, each in a process of its own; several sweeps may share the work."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from absl import logging

from nsk.errors import UserError
from nsk.store.disk_errors import make_folder
from nsk.store.files import LOCK, atomic_write
from nsk.store.locks import is_locked, try_lock
from nsk.sweep.flagfiles import flagfile_text
from nsk.sweep.grid import Cell
from nsk.units import format_duration

FLAGS, SUMMARY, LOG, FAILURE = "run.flags", "summary.json", "log.txt", "failure.txt"
POLL_SECONDS = 1.0
DONE, STOPPED = 0, 75  # Exit codes of a run; see `nsk.main`.
# Settings of the sweep itself, and those that every run gets on its command line.
NOT_OF_A_RUN = ("workdir", "run_name", "wait_for_locks", "grid", "seeds", "budget_hours")

# Runs a cell in a workdir, at most for some seconds, and returns its exit code; its lock is held
# as long as the given file is open.
Launch = Callable[[Cell, Path, float, IO], int]


@dataclasses.dataclass(frozen=True)
class Progress:
    """What became of the cells.

    Attributes:
        finished: cells with results.
        failed: {cell: the last line of its log}.
        remaining: cells that were not run, since the time was over.
    """

    finished: list[Cell]
    failed: dict[str, str]
    remaining: list[Cell]


def run_cells(
    cells: Sequence[Cell], workdir: Path, budget_seconds: float = 0.0, launch: Launch | None = None
) -> None:
    """Runs all cells that are not finished.

    Other processes may run cells of the same workdir at the same time: each cell is run by one.
    A cell that fails does not stop the others. It is run again by the next call.

    Args:
        cells: the cells, in the order in which they are run.
        workdir: the folder that they share.
        budget_seconds: time after which the run in progress is stopped and no other is started;
            0: no limit.
        launch: runs a cell; None: `launch_process`.

    Raises:
        KeyboardInterrupt: a stop was requested; the run in progress was stopped, too.
    """
    sweep = _Sweep(cells, Path(workdir), budget_seconds, launch or launch_process)
    for cell in cells:
        prepare(cell, sweep.workdir)
    while sweep.run_next():
        pass


class _Sweep:
    """The cells and their states. Arguments as for `run_cells`."""

    def __init__(self, cells, workdir, budget_seconds, launch):
        self.cells, self.workdir, self._launch = cells, workdir, launch
        self._started = time.time()
        self._deadline = self._started + budget_seconds if budget_seconds else float("inf")
        self._seconds = []  # Of each cell that was run here.
        self._is_waiting = False

    def run_next(self) -> bool:
        """Runs a cell, or waits for other processes; returns False if nothing is left to do."""
        open_cells = [cell for cell in self.cells if self._is_open(cell)]
        if not open_cells or time.time() >= self._deadline:
            return False
        for cell in self._preferred(open_cells):
            with try_lock(self._lock_path(cell)) as lock:
                if lock and self._is_open(cell):
                    return self._run(cell, lock)
        self._wait(open_cells)
        return True

    def _wait(self, cells):
        """Waits for a second while other processes run all that is left."""
        if not self._is_waiting:
            logging.info("Waiting for other processes, which run the %d cells left", len(cells))
        self._is_waiting = True
        time.sleep(POLL_SECONDS)

    def _is_open(self, cell):
        """Whether a cell is to be run: neither finished, nor failed since this call started."""
        folder = self.workdir / cell.run_name
        failure = folder / FAILURE
        failed = failure.exists() and failure.stat().st_mtime >= self._started
        return not (folder / SUMMARY).exists() and not failed

    def _preferred(self, cells):
        """Cells with seeds that no other process works at come first: they share no stage."""
        busy = {cell.seed for cell in cells if is_locked(self._lock_path(cell))}
        return sorted(cells, key=lambda cell: cell.seed in busy)

    def _lock_path(self, cell):
        folder = self.workdir / cell.run_name
        return folder.with_name(folder.name + LOCK)

    def _run(self, cell, lock):
        """Runs a cell; returns whether to go on."""
        folder, started = self.workdir / cell.run_name, time.time()
        (folder / FAILURE).unlink(missing_ok=True)
        logging.info("%s: started, log in %s", cell.title, folder / LOG)
        code = self._launch(cell, self.workdir, self._deadline - started, lock)
        seconds = time.time() - started
        if code == STOPPED and time.time() >= self._deadline:
            return False
        if code == DONE and (folder / SUMMARY).exists():
            self._seconds.append(seconds)
            logging.info("%s: %s", cell.title, self._describe(folder, seconds))
            return True
        line = _last_line(folder / LOG) or f"it ended with exit code {code}"
        (folder / FAILURE).write_text(f"{line}\n", encoding="utf-8")
        logging.warning("%s: failed: %s", cell.title, line)
        return True

    def _describe(self, folder, seconds):
        """What a run has found, and how many are left."""
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        last = summary["generations"][-1]
        left = sum(map(self._is_open, self.cells))
        text = f"done in {format_duration(seconds)}, dev {last['dev']['accuracy']:.2%}"
        if left:
            mean = sum(self._seconds) / len(self._seconds)
            text += f"; {left} of {len(self.cells)} left, about {format_duration(left * mean)}"
        return text


def find_progress(cells: Sequence[Cell], workdir: Path) -> Progress:
    """What became of the cells so far."""
    finished, failed, remaining = [], {}, []
    for cell in cells:
        folder = workdir / cell.run_name
        if (folder / SUMMARY).exists():
            finished.append(cell)
        elif (folder / FAILURE).exists():
            failed[cell.title] = (folder / FAILURE).read_text(encoding="utf-8").strip()
        else:
            remaining.append(cell)
    return Progress(finished, failed, remaining)


def prepare(cell: Cell, workdir: Path) -> None:
    """Writes the flags of a cell; results of other flags under its name are removed.

    Raises:
        UserError: the folder cannot be written to.
    """
    folder = workdir / cell.run_name
    make_folder(folder)
    text = flagfile_text(cell.values, without=NOT_OF_A_RUN)
    path = folder / FLAGS
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    for name in (SUMMARY, FAILURE):
        (folder / name).unlink(missing_ok=True)
    with atomic_write(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def command_of(cell: Cell, workdir: Path) -> list[str]:
    """The arguments of the run of a cell, after `python -m nsk.main`."""
    flags = workdir / cell.run_name / FLAGS
    return ["run", f"--flagfile={flags}", f"--workdir={workdir}", f"--run_name={cell.run_name}"]


def launch_process(cell: Cell, workdir: Path, seconds: float, lock: IO) -> int:
    """Runs a cell in a process of its own, so that a crash ends this cell alone.

    Args:
        cell: the cell, prepared.
        workdir: the folder that the cells share.
        seconds: time after which the process is asked to stop.
        lock: the file with the cell's lock, which the process keeps if this one is killed.

    Returns:
        Its exit code.

    Raises:
        KeyboardInterrupt: a stop was requested here; the process has stopped, too.
    """
    arguments = [*command_of(cell, workdir), "--wait_for_locks"]
    with open(workdir / cell.run_name / LOG, "wb") as log:
        # A session of its own: Ctrl-C in the terminal reaches this process alone, which passes it
        # on once. A second signal would end the run without a checkpoint.
        process = subprocess.Popen(
            [sys.executable, "-m", "nsk.main", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=[lock.fileno()],
        )
        try:
            return process.wait(None if seconds == float("inf") else max(0.0, seconds))
        except (subprocess.TimeoutExpired, KeyboardInterrupt) as error:
            process.send_signal(signal.SIGTERM)
            code = process.wait()
            if isinstance(error, KeyboardInterrupt):
                raise
            return code


def _last_line(path):
    """The last line of a log with text, without the name of the program."""
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - 10_000))
        lines = file.read().decode(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "").removeprefix(
        "nsk: "
    )


def read_summary(cell: Cell, workdir: Path) -> dict[str, Any]:
    """The summary of a finished cell; UserError if it cannot be read."""
    path = workdir / cell.run_name / SUMMARY
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): delete it and run the same sweep again."
        ) from None
