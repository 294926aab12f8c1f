"""Errors of the disk as one line that names the file and the remedy."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from nsk.errors import UserError

# Errors of a disk that is full, read-only, broken or not writable; all others are bugs.
REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EROFS: "change its permissions, or give another --workdir",
    errno.EACCES: "change its permissions",
    errno.EPERM: "change its permissions",
    errno.EIO: "check the disk",
}


@contextlib.contextmanager
def naming_disk_errors(folder: Path) -> Iterator[None]:
    """Turns errors of the disk into a UserError that names the file, or else the folder."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        disk_error = _find_disk_error(error)
        if disk_error is None:
            raise
        code, file = disk_error
        raise UserError(
            f"Cannot write {file or f'a file below {folder}'} ({os.strerror(code)}): "
            f"{REMEDIES[code]}, and run again; finished stages are kept."
        ) from error


def _find_disk_error(error):
    """(code, file or None) of an error of the disk; None for any other error.

    TensorFlow's errors are not OSErrors: their messages end with "FILE; MESSAGE OF THE SYSTEM".
    """
    for candidate in filter(None, (error.__cause__, error)):
        if isinstance(candidate, OSError):
            # Permissions may be missing for other things than files.
            concerns_files = candidate.filename or candidate.errno not in (
                errno.EACCES,
                errno.EPERM,
            )
            if candidate.errno in REMEDIES and concerns_files:
                return candidate.errno, candidate.filename
        elif type(candidate).__module__.startswith("tensorflow."):
            for code in REMEDIES:
                match = re.search(rf"([^;{{}}]*); {re.escape(os.strerror(code))}", str(candidate))
                if match:
                    return code, match[1].strip()
    return None


def make_folder(path: Path, flag: str = "workdir") -> None:
    """Creates a folder if needed.

    Args:
        path: the folder.
        flag: name of the setting that the folder comes from, for the message.

    Raises:
        UserError: the folder cannot be created or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"Cannot create the folder {path} ({error.strerror}): give another --{flag}."
        ) from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(
            f"Cannot write to the folder {path}: change its permissions, or give another --{flag}."
        )
