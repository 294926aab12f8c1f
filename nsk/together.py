"""How several workers make one run: the chief leads, all make the same stages in the same order.

What they tell each other goes through `nsk.training.workers`; what they make goes through the
workdir, a folder of a file system that they share.
"""

import dataclasses
import json
import secrets
import time

from nsk import stage
from nsk.errors import UserError
from nsk.files import PARTIAL

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
                    join(path.with_name(path.name + PARTIAL))
    return made or _load_when_there(path)


def check_workers(workers, config):
    """UserError where several workers were given different flags, or a workdir of their own."""
    flags = dataclasses.asdict(config)
    del flags["run"]["workdir"]  # Its place may have another name on another machine.
    if not workers.are_told_the_same(json.dumps(flags, sort_keys=True)):
        raise UserError(
            f"Worker {workers.index} was given other flags than worker 0: start all workers with "
            "the same flags."
        )
    number = secrets.randbits(48)
    (number,) = workers.told_by_chief(number)
    mark = config.workdir / f"{number:x}.workers"
    if workers.is_chief:
        mark.touch()
    workers.wait()
    _wait_for(mark)
    if not mark.exists():
        raise UserError(
            f"Worker {workers.index} does not see in --workdir={config.run.workdir} what worker 0 "
            "writes there: give all workers one folder of a file system that they share."
        )
    workers.wait()
    if workers.is_chief:
        mark.unlink()


def _load_when_there(path):
    """A finished `Stage` of another machine: shared file systems may show it late."""
    _wait_for(path)
    return stage.load(path)


def _wait_for(path):
    """Returns when a path is there, or has not come for long."""
    deadline = time.monotonic() + SHOWN_WITHIN
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
