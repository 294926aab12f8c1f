"""A folder for the temporary files of this process, which libraries do not delete themselves.

TensorFlow writes a module for every function that it converts to a graph, and deletes them only
when Python's interpreter shuts down, which a process with many threads does not wait for.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

PREFIX, LOCK, NEW_LOCK = "nsk-", "lock", "lock.new"
SETTLED_SECONDS = 3600  # Far longer than a process takes to lock its folder.

_folder = None
_lock = None  # Held while the process lives: the kernel releases it in any case.


def use_private_folder() -> Path:
    """Creates the folder, and deletes those that killed processes have left.

    All modules that use `tempfile` write there from now on. Keras' configuration is written there,
    too, unless the user has one.

    Returns:
        The folder, in that of the system.
    """
    global _folder, _lock
    system = Path(tempfile.gettempdir())
    _delete_abandoned(system)
    _folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=system))
    unlocked = _folder / NEW_LOCK  # Others delete a folder with a lock that nobody holds.
    _lock = open(unlocked, "w")  # noqa: SIM115 (open while the process lives)
    fcntl.flock(_lock, fcntl.LOCK_EX)
    unlocked.rename(_folder / LOCK)
    tempfile.tempdir = str(_folder)
    if not (Path.home() / ".keras" / "keras.json").exists():
        os.environ.setdefault("KERAS_HOME", str(_folder / "keras"))
    return _folder


def delete() -> None:
    """Deletes the folder."""
    if _folder is not None:
        shutil.rmtree(_folder, ignore_errors=True)


def _delete_abandoned(system):
    """Deletes the folders whose processes have ended."""
    locks = [path for name in (LOCK, NEW_LOCK) for path in system.glob(f"{PREFIX}*/{name}")]
    for lock_path in locks:
        with contextlib.suppress(OSError), open(lock_path) as lock:  # Of others, or locked.
            seconds = time.time() - os.fstat(lock.fileno()).st_mtime
            if lock_path.name == NEW_LOCK and seconds < SETTLED_SECONDS:
                continue  # Its process may be about to lock it.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock_path.parent, ignore_errors=True)
