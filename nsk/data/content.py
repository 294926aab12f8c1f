"""Identity of files by their names and content, wherever and whenever they were copied."""

import concurrent.futures
import dataclasses
import hashlib
import itertools
import json
import os
import stat
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nsk.hashing import sha256_of_file
from nsk.progress import Progress
from nsk.store.files import atomic_write, num_cores

FILES_PER_TASK = 32
MAX_REMEMBERED = 100
# A file that was changed twice within the resolution of its times looks unchanged.
SETTLED_NANOSECONDS = 2 * 10**9


@dataclasses.dataclass(frozen=True)
class ContentDigests:
    """Describes files by their content.

    Every file is read, so digests are remembered: files with unchanged inodes, sizes and times are
    not read again.

    Attributes:
        memory: JSON file of the digests that were computed before; None: nothing is remembered.
    """

    memory: Path | None = None

    def describe(
        self,
        files: Mapping[str, Path],
        unread: Iterable[str] = (),
        max_bytes: int | None = None,
    ) -> dict[str, Any]:
        """Describes files independently of where they are and when they were written.

        Args:
            files: paths by the names that the files are known by.
            unread: names of files whose content does not matter.
            max_bytes: of larger files only the size matters; None: files of all sizes are read.

        Returns:
            dict of `files`, how many there are, and `sha256`, in hexadecimal, of all names and
            contents. A file that cannot be opened has no content.
        """
        names, others = sorted(files), sorted(unread)
        started = time.time_ns()
        state, newest = _state(names, files, others, max_bytes)
        remembered = self._read()
        if state not in remembered:
            remembered[state] = _digest(names, files, others, max_bytes)
            if newest < started - SETTLED_NANOSECONDS:
                self._write(remembered)
        return {"files": len(names) + len(others), "sha256": remembered[state]}

    def _read(self):
        try:
            remembered = json.loads(self.memory.read_text()) if self.memory else {}
            return remembered if isinstance(remembered, dict) else {}
        except (OSError, ValueError):
            return {}

    def _write(self, remembered):
        if self.memory is None:
            return
        latest = list(remembered.items())[-MAX_REMEMBERED:]
        with atomic_write(self.memory) as unfinished:
            unfinished.write_text(json.dumps(dict(latest), indent=1) + "\n")


def _state(names, files, others, max_bytes):
    """Digest of names, inodes, sizes and times, and the latest of the times in nanoseconds.

    It says which files are larger than `max_bytes`, since their content does not matter.
    """
    digest, newest = hashlib.sha256(), 0
    for name in names:
        try:
            status = os.stat(files[name])
            times = (status.st_mtime_ns, status.st_ctime_ns)
            newest = max(newest, *times)
            found = (status.st_dev, status.st_ino, status.st_size, *times)
            if max_bytes is not None and status.st_size > max_bytes:
                found += ("large",)
        except OSError as error:  # Of a broken link, for instance.
            found = (error.errno,)
        _update(digest, name, " ".join(map(str, found)))
    for name in others:
        _update(digest, name, "")
    return digest.hexdigest(), newest


def _digest(names, files, others, max_bytes):
    """SHA-256 of names and contents."""
    digest = hashlib.sha256()
    progress, done = Progress("content of files", len(names), "files", early=True), 0
    with concurrent.futures.ThreadPoolExecutor(num_cores()) as pool:
        # Few tasks at a time: names of millions of files are long.
        for group in _batched(names, FILES_PER_TASK * num_cores()):
            tasks = _batched(group, FILES_PER_TASK)
            contents = pool.map(
                lambda task: [_content(files[name], max_bytes) for name in task], tasks
            )
            for name, content in zip(group, itertools.chain.from_iterable(contents), strict=True):
                _update(digest, name, content)
                done += 1
                progress.update(done)
    if progress.is_shown:
        progress.close()
    for name in others:
        _update(digest, name, "")
    return digest.hexdigest()


def _batched(names, size):
    return (names[start : start + size] for start in range(0, len(names), size))


def _content(path, max_bytes):
    """SHA-256 of a file; why it has none."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # Opening a pipe would block.
            return "not a file"
        if max_bytes is not None and status.st_size > max_bytes:
            return f"{status.st_size} bytes"
        return sha256_of_file(path)
    except OSError as error:
        return str(error.errno)


def _update(digest, name, text):
    digest.update(os.fsencode(name) + f"\0{text}\n".encode())
