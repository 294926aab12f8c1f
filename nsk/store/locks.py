"""Locks of stage folders: each is built by one process at a time, or by workers that share it."""

import contextlib
import fcntl
import glob
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from absl import logging

from nsk.errors import UserError
from nsk.store.files import LOCK


@contextlib.contextmanager
def lock_folder(
    path: Path, suffix: str = "", shared: bool = False, wait: bool = False
) -> Iterator[IO]:
    """Locks a stage for this process; the kernel releases the lock when the process ends.

    Args:
        path: the stage's folder.
        suffix: the part of the stage that is locked; by default the whole stage.
        shared: whether other processes may hold the lock too, if they also share it.
        wait: whether to wait while another process holds the lock.

    Yields:
        The locked file.

    Raises:
        UserError: another process holds the lock, and `wait` is False.
    """
    mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    lock_path = path.with_name(f"{path.name}{suffix}{LOCK}")
    with open(lock_path, "a+", errors="replace") as lock:
        try:
            fcntl.flock(lock, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip() or "another process"
            if not wait:
                raise UserError(
                    f"{path}{suffix} is being built by {owner}: wait for it, or stop it, and run "
                    "again."
                ) from None
            logging.info("Waiting for %s%s, which is being built by %s", path, suffix, owner)
            fcntl.flock(lock, mode)
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        try:
            yield lock
        finally:
            if path.exists():  # Published: it will not be built again.
                of_workers = path.parent.glob(f"{glob.escape(path.name)}.worker-*{LOCK}")
                for unused in (lock_path, *of_workers):
                    unused.unlink(missing_ok=True)


@contextlib.contextmanager
def try_lock(path: Path) -> Iterator[IO | None]:
    """Yields the file with a lock that this process has got; None if another process holds it.

    The file is left in place. The lock is held until every process that has the file open has
    closed it, also one that has inherited it.
    """
    with open(path, "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        yield lock


def upgrade_to_exclusive(lock: IO) -> None:
    """Waits until this process alone holds a shared lock."""
    fcntl.flock(lock, fcntl.LOCK_EX)


def is_locked(lock_path: Path) -> bool:
    """Whether a process holds the lock of a file that `lock_folder` made."""
    try:
        with open(lock_path, "rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # It was removed meanwhile, or cannot be opened.
        return False
    return False
