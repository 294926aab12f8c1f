"""The rendezvous of several workers, before TensorFlow connects them.

While TensorFlow waits for workers, it cannot be interrupted and does not report which are missing.
So each worker first writes a presence file into the workdir, with a random number of its own and
the numbers that it has read from the others: if a worker's file contains the number of this
process, it has been alive since this process started.
"""

import json
import secrets
import time
from pathlib import Path

from absl import logging

from nsk.errors import UserError, list_names
from nsk.hashing import sha256_of_bytes
from nsk.store.files import atomic_write

POLL_SECONDS = 0.2
LOG_EVERY_SECONDS = 10.0


def wait_for_workers(workdir: Path, index: int, count: int, flags: str) -> None:
    """Returns when all workers of a run have started; signals are handled meanwhile.

    Args:
        workdir: a folder of a file system that all workers share.
        index: index of this worker, 0 to `count` - 1.
        count: number of workers.
        flags: text that must be the same for all workers.

    Raises:
        UserError: another worker was given other flags.
    """
    try:
        _poll(workdir, index, count, sha256_of_bytes(flags.encode()))
    except KeyboardInterrupt:  # After an error about flags the file stays, for others to read.
        remove_presence_file(workdir, index, count)
        raise


def remove_presence_file(workdir: Path, index: int, count: int) -> None:
    """Removes the file of `wait_for_workers`, once all workers are connected."""
    _presence_path(workdir, index, count).unlink(missing_ok=True)


def _poll(workdir, index, count, digest):
    """Exchanges presence files until every worker has seen every other."""
    own_number, seen = secrets.token_hex(8), {}
    paths = [_presence_path(workdir, number, count) for number in range(count)]
    next_log = time.monotonic() + LOG_EVERY_SECONDS
    while True:
        content = json.dumps({"number": own_number, "seen": seen, "flags": digest})
        with atomic_write(paths[index]) as unfinished:
            unfinished.write_text(content)
        others = {number: _read(path) for number, path in enumerate(paths) if number != index}
        present = {
            number
            for number, presence in others.items()
            if presence and presence["seen"].get(str(index)) == own_number
        }
        for number in sorted(present):
            # Only once that worker can read that it was seen: it would wait for this one otherwise.
            was_shown = seen.get(str(number)) == others[number]["number"]
            if was_shown and others[number]["flags"] != digest:
                raise UserError(
                    f"Worker {index} was given other flags than worker {number}: start all workers "
                    "with the same flags."
                )
        now_seen = {
            str(number): presence["number"] for number, presence in others.items() if presence
        }
        if now_seen == seen and len(present) == count - 1:
            return
        seen = now_seen
        if time.monotonic() > next_log:
            next_log = time.monotonic() + LOG_EVERY_SECONDS
            missing = list_names([str(number) for number in others if number not in present])
            logging.info(
                "Worker %d waits for worker %s: is it started, with the same --workdir, and is %s "
                "on a file system that all of them share?",
                index,
                missing,
                workdir,
            )
        time.sleep(POLL_SECONDS)


def _presence_path(workdir, index, count):
    return workdir / f"worker-{index}-of-{count}.json"


def _read(path):
    """The content of another worker's file; None if there is no complete file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if {"number", "seen", "flags"} <= content.keys() else None
    except (OSError, ValueError, AttributeError):
        return None
