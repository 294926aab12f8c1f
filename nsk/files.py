"""Files that are there whole or not at all."""

import contextlib
import os
import secrets
from pathlib import Path

UNFINISHED = ".unfinished"


@contextlib.contextmanager
def written_whole(path):
    """Yields the path to write to; the file gets its name when it is on disk.

    Whoever is stopped midway leaves a file whose name ends with `.unfinished`. Several processes,
    on several machines, may write one file at the same time: the last one's stays.
    """
    path = Path(path)
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(4)}{UNFINISHED}")
    try:
        yield unfinished
        with open(unfinished, "rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def first_written(path, content):
    """The bytes of a file that is written once, by the first of several processes.

    Args:
        path: path of the file.
        content: bytes to write where it is not there yet.
    """
    path = Path(path)
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(4)}{UNFINISHED}")
    try:
        with open(unfinished, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path.read_bytes()


def remove_unfinished(folder):
    """Removes what stopped processes have left in a folder and below."""
    for path in Path(folder).rglob(f"*{UNFINISHED}"):
        path.unlink(missing_ok=True)


def num_cores():
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()
