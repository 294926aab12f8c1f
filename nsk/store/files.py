"""Files that are there whole or not at all.

What is written into a stage's unfinished folder, `....partial`, is noted with its SHA-256 in
`.written/` there, so that a stopped stage goes on with files that are still as they were written.
"""

import concurrent.futures
import contextlib
import os
import secrets
import shutil
from pathlib import Path

from nsk.hashing import sha256_of_file as sha256  # ALIAS

UNFINISHED, PARTIAL, WRITTEN = ".unfinished", ".partial", ".written"


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
        _note(unfinished, path)
        os.replace(unfinished, path)
        sync_folder(path.parent)
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
        write_synced(unfinished, content)
        _note(unfinished, path)
        try:
            os.link(unfinished, path)
        except FileExistsError:
            pass
        except OSError:  # Not every file system has links: there the last one's stays.
            if not path.exists():
                os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path.read_bytes()


def _note(unfinished, path):
    """Notes the SHA-256 of a file that is about to get its name, if that is in a partial folder.

    A note is an empty file `.written/NAME/SHA-256`: several processes may write one file.
    """
    folder = next((one for one in path.parents if one.suffix == PARTIAL), None)
    if folder is not None:
        notes = folder / WRITTEN / path.relative_to(folder)
        notes.mkdir(parents=True, exist_ok=True)
        (notes / sha256(unfinished)).touch()


def changed_since_written(folder):
    """Paths of the files in a partial folder that are not as they were written.

    Those of which nothing is noted are among them; those that are being written are not.
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
        digests = pool.map(sha256, paths)
        return [
            path
            for path, digest in zip(paths, digests, strict=True)
            if not (folder / WRITTEN / path.relative_to(folder) / digest).exists()
        ]


def remove_unfinished(folder):
    """Removes what stopped processes have left in a folder and below: files and folders."""
    for path in list(Path(folder).rglob(f"*{UNFINISHED}")):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_synced(path, content):
    """Writes bytes into a new file and brings them to disk."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder):
    """Brings a folder's entries, names and renames, to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def num_cores():
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()
