"""Files that are there whole or not at all."""

import contextlib
import os
from pathlib import Path

UNFINISHED = ".unfinished"


@contextlib.contextmanager
def written_whole(path):
    """Yields the path to write to; the file gets its name when it is on disk.

    Whoever is stopped midway leaves a file whose name ends with `.unfinished` and a process id.
    """
    path = Path(path)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}{UNFINISHED}")
    try:
        yield unfinished
        with open(unfinished, "rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def remove_unfinished(folder):
    """Removes what stopped processes have left in a folder and below."""
    for path in Path(folder).rglob(f"*{UNFINISHED}"):
        path.unlink(missing_ok=True)


def num_cores():
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()
