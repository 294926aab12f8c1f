"""Workers wait for each other by files in the workdir, before TensorFlow connects them."""

import concurrent.futures
import json
import logging
import re
import time

import pytest

from nsk.distributed import rendezvous
from nsk.distributed.rendezvous import remove_presence_file, wait_for_workers
from nsk.errors import UserError

TIMEOUT_SECONDS = 60


@pytest.fixture(autouse=True)
def short_polls(monkeypatch):
    monkeypatch.setattr(rendezvous, "POLL_SECONDS", 0.01)


def start_threads(workdir, flags):
    """Futures of `wait_for_workers` of workers with the given flags, each in a thread."""
    pool = concurrent.futures.ThreadPoolExecutor(len(flags))
    return [
        pool.submit(wait_for_workers, workdir, index, len(flags), text)
        for index, text in enumerate(flags)
    ]


def presence_files(workdir):
    return sorted(path.name for path in workdir.glob("worker-*"))


def test_all_workers_return_when_the_last_one_has_started(tmp_path):
    for future in start_threads(tmp_path, ["--seed=1"] * 3):
        future.result(TIMEOUT_SECONDS)
    names = [f"worker-{index}-of-3.json" for index in range(3)]
    assert presence_files(tmp_path) == names
    for index in range(3):
        remove_presence_file(tmp_path, index, 3)
        remove_presence_file(tmp_path, index, 3)  # Also if there is none.
    assert presence_files(tmp_path) == []


def test_a_single_worker_does_not_wait(tmp_path):
    wait_for_workers(tmp_path, 0, 1, "")


def test_workers_with_other_flags_are_all_refused(tmp_path):
    futures = start_threads(tmp_path, ["--seed=1", "--seed=1", "--seed=2"])
    messages = [str(future.exception(TIMEOUT_SECONDS)) for future in futures]
    assert all(isinstance(future.exception(), UserError) for future in futures)
    for (index, message), other in zip(enumerate(messages), ("2", "2", "[01]"), strict=True):
        expected = f"Worker {index} was given other flags than worker {other}: start all workers"
        assert re.match(expected, message), message
    # The files stay, so that every worker can read the other flags.
    assert len(presence_files(tmp_path)) == 3


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", json.dumps({"number": "old", "seen": {"0": "older"}, "flags": "x"})],
)
def test_files_of_earlier_processes_are_not_workers(tmp_path, monkeypatch, caplog, content):
    """A file counts only if it holds the number of the process that reads it."""
    monkeypatch.setattr(rendezvous, "LOG_EVERY_SECONDS", 0.0)
    (tmp_path / "worker-1-of-2.json").write_text(content)
    caplog.set_level(logging.INFO, "absl")
    pool = concurrent.futures.ThreadPoolExecutor(1)
    first = pool.submit(wait_for_workers, tmp_path, 0, 2, "")
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while "Worker 0 waits for worker 1: is it started" not in caplog.text:
        assert time.monotonic() < deadline and not first.done()
        time.sleep(0.01)
    wait_for_workers(tmp_path, 1, 2, "")
    first.result(TIMEOUT_SECONDS)


def test_a_stopped_worker_removes_its_file(tmp_path, monkeypatch):
    def stop(seconds):
        assert presence_files(tmp_path) == ["worker-0-of-2.json"]
        raise KeyboardInterrupt

    monkeypatch.setattr(rendezvous.time, "sleep", stop)
    with pytest.raises(KeyboardInterrupt):
        wait_for_workers(tmp_path, 0, 2, "")
    assert presence_files(tmp_path) == []
