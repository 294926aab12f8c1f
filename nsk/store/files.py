"""Atomic files: complete on disk or absent.

For every file that is written into a stage's unfinished folder (`....partial`), its SHA-256 is
recorded below `.written/` there, so that an interrupted stage resumes only with unchanged files.
"""

import concurrent.futures
import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from nsk.hashing import sha256_of_file

UNFINISHED, PARTIAL, WRITTEN = ".unfinished", ".partial", ".written"
CHECKPOINTS, LOCK = ".checkpoints", ".lock"  # Suffixes beside a stage's folder.


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a temporary path to write to, and renames it to `path` when it is on disk.

    An interrupted process leaves a file whose name ends with `.unfinished`. Several processes, on
    several machines, may write the same file at the same time: the last one wins.
    """
    path = Path(path)
    unfinished = _unfinished_path(path)
    try:
        yield unfinished
        with open(unfinished, "rb") as file:
            os.fsync(file.fileno())
        _record_digest(unfinished, path)
        os.replace(unfinished, path)
        sync_folder(path.parent)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def write_once(path: Path, content: bytes) -> bytes:
    """Writes a file unless it exists, and returns its content: the first of several writers wins.

    Args:
        path: path of the file.
        content: bytes to write if there is no such file.
    """
    path = Path(path)
    unfinished = _unfinished_path(path)
    try:
        write_synced(unfinished, content)
        _record_digest(unfinished, path)
        try:
            os.link(unfinished, path)
        except FileExistsError:
            pass
        except OSError:  # Some file systems have no hard links: there the last writer wins.
            if not path.exists():
                os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path.read_bytes()


def _unfinished_path(path):
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}{UNFINISHED}")


def _record_digest(unfinished, path):
    """Records the SHA-256 of a file before it is renamed, if it is inside a partial folder.

    The record is an empty file `.written/NAME/SHA-256`: several processes may write one file.
    """
    folder = next((parent for parent in path.parents if parent.suffix == PARTIAL), None)
    if folder is not None:
        records = folder / WRITTEN / path.relative_to(folder)
        records.mkdir(parents=True, exist_ok=True)
        (records / sha256_of_file(unfinished)).touch()


def changed_since_written(folder: Path) -> list[Path]:
    """Paths of the files in a partial folder that differ from what was written.

    Files without a recorded digest are included; files that are still being written are not.
    """
    folder = Path(folder)
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and WRITTEN not in path.relative_to(folder).parts
        and not any(part.endswith(UNFINISHED) for part in path.relative_to(folder).parts)
    )
    with concurrent.futures.ThreadPoolExecutor(num_cores()) as pool:
        digests = pool.map(sha256_of_file, paths)
        return [
            path
            for path, digest in zip(paths, digests, strict=True)
            if not (folder / WRITTEN / path.relative_to(folder) / digest).exists()
        ]


def remove_unfinished(folder: Path) -> None:
    """Removes what interrupted processes left in a folder and below: files and folders."""
    for path in list(Path(folder).rglob(f"*{UNFINISHED}")):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_synced(path: Path, content: bytes) -> None:
    """Writes a new file and flushes it to disk."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flushes a folder's entries (new files, renames) to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def num_cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()
