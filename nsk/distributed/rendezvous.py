"""How several workers make one run: the chief leads, all make the same stages in the same order.

What they tell each other goes through `nsk.distributed.workers`; what they make goes through the
workdir, a folder of a file system that they share.
"""

import hashlib
import json
import secrets
import time

from absl import logging

from nsk.errors import UserError
from nsk.store import folders as stage
from nsk.store.files import written_whole

LOOKS = 0.2  # Seconds between two looks at what others have written.
TOLD_EVERY = 10.0  # Seconds.

SHOWN_WITHIN = 90.0  # Seconds; NFS remembers for a minute by default what is in a folder.


def led(workers, path, run, build, join):
    """One stage, made by the chief of several workers; every worker gets the same `Stage`.

    Args:
        workers: `Workers`, more than one.
        path: the stage's folder.
        run: function of `build` that makes the stage or finds it finished.
        build: function of the folder to fill that returns the counts.
        join: function of the same folder, what the other workers do meanwhile; None: they wait.

    Raises:
        CannotTeachError: one of the workers has met one.
        UserError: workers see different data.
    """
    fingerprint = int(path.name.rpartition("-")[2], 16)
    made = None
    with workers.failing_together():
        if workers.is_chief:
            begun = []

            def begin_and_build(folder):
                begun.append(True)
                workers.told_by_chief(True, fingerprint)
                return build(folder)

            made = run(begin_and_build)
            if not begun:
                workers.told_by_chief(False, fingerprint)
        else:
            begun, chiefs = workers.told_by_chief(False, 0)
            if chiefs != fingerprint:
                raise UserError(
                    f"Worker {workers.index} sees other data than worker 0 ({path.name} is not the "
                    "same stage): give all workers the same data."
                )
            if begun and join:
                with stage.naming_disk_errors(path.parent):
                    join(stage.partial_of(path))
    return made or _load_when_there(path)


def meet(workdir, index, count, flags):
    """Returns when all workers of a run have begun; a stop is heeded meanwhile.

    TensorFlow's own waiting can neither be interrupted nor says who is missing. Each worker writes
    a file into the workdir with a number that it has drawn and the numbers that it has read from
    the others: whoever names the number of this process has been alive since it began.

    Args:
        workdir: `pathlib.Path`, a folder of a file system that all workers share.
        index, count: ints, which of how many this worker is.
        flags: what must be the same for all: a string.

    Raises:
        UserError: another worker was given other flags.
    """
    try:
        _wait_for_all(workdir, index, count, hashlib.sha256(flags.encode()).hexdigest())
    except KeyboardInterrupt:  # After other flags it stays, for the others to see them.
        part(workdir, index, count)
        raise


def _wait_for_all(workdir, index, count, digest):
    """`meet` with a digest of the flags; what it has written stays."""
    mine, seen = secrets.token_hex(8), {}
    paths = [_card(workdir, number, count) for number in range(count)]
    next_told = time.monotonic() + TOLD_EVERY
    while True:
        content = json.dumps({"number": mine, "seen": seen, "flags": digest})
        with written_whole(paths[index]) as unfinished:
            unfinished.write_text(content)
        others = {n: _read(path) for n, path in enumerate(paths) if n != index}
        present = {n for n, one in others.items() if one and one["seen"].get(str(index)) == mine}
        for number in sorted(present):
            # Once that one has been told that it was seen: else it would wait for this one.
            told = seen.get(str(number)) == others[number]["number"]
            if told and others[number]["flags"] != digest:
                raise UserError(
                    f"Worker {index} was given other flags than worker {number}: start all workers "
                    "with the same flags."
                )
        now_seen = {str(n): one["number"] for n, one in others.items() if one}
        if now_seen == seen and len(present) == count - 1:
            return
        seen = now_seen
        if time.monotonic() > next_told:
            next_told = time.monotonic() + TOLD_EVERY
            missing = ", ".join(str(n) for n in others if n not in present)
            logging.info(
                "Worker %d waits for worker %s: is it started, with the same --workdir, and is %s "
                "on a file system that all of them share?",
                index,
                missing,
                workdir,
            )
        time.sleep(LOOKS)


def part(workdir, index, count):
    """Removes what `meet` has written, once all have met."""
    _card(workdir, index, count).unlink(missing_ok=True)


def _card(workdir, index, count):
    return workdir / f"worker-{index}-of-{count}.json"


def _read(path):
    """What another worker has written; None where there is nothing that is whole."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if {"number", "seen", "flags"} <= content.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _load_when_there(path):
    """A finished `Stage` of another machine: shared file systems may show it late."""
    deadline = time.monotonic() + SHOWN_WITHIN
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(LOOKS)
    return stage.load(path)
