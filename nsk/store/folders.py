"""A stage directory: fingerprint, lock, atomic publication, reuse.

A stage's folder is named after the fingerprint of its settings and of its inputs' fingerprints:

    gen1/student-3f9a1c04d2/
        stage.json      settings, inputs, counts, and bytes and SHA-256 of every file; written last
        ...             what the stage makes

A finished stage with the same fingerprint is used again; a changed setting builds beside the old
result and never over it. While it is being made the folder is called `....partial`; it gets its
name by a rename, when everything in it is on disk.
"""

import concurrent.futures
import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import time
from pathlib import Path

from absl import logging

from nsk.errors import UserError
from nsk.store.files import (
    PARTIAL,
    WRITTEN,
    changed_since_written,
    num_cores,
    remove_unfinished,
    sha256,
    sync_folder,
    written_whole,
)

FORMAT = 3
MANIFEST = "stage.json"
MOST_NAMED = 5  # Of the settings in which a stage differs from the one that is looked for.
LARGE = 2**30  # Bytes that take long enough to verify to be told of.
FOLDER_NAME = re.compile(r".+-[0-9a-f]{10}")
CURVES = "tensorboard"  # The folder of a workdir whose folders have stages' names and are none.
# What a disk says when it is full, read-only, broken or somebody else's; other errors are bugs.
DISK_ERRORS = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EROFS: "change its rights, or give another --workdir",
    errno.EACCES: "change its rights",
    errno.EPERM: "change its rights",
    errno.EIO: "look after the disk",
}


@dataclasses.dataclass(frozen=True)
class Stage:
    """A finished stage.

    Attributes:
        path: its folder.
        fingerprint: 10 hex digits that stand for its settings and inputs.
        counts: what its build function returned (numbers and names, as JSON has them).
        reused: whether it was there already.
    """

    path: Path
    fingerprint: str
    counts: dict
    reused: bool = False

    @property
    def name(self):
        """Folder and stage, as `gen1/student-3f9a1c04d2`."""
        return "/".join(self.path.parts[-2:])


def fingerprint(name, settings, inputs):
    """10 hex digits of the SHA-256 of a stage's name, settings and its inputs' fingerprints."""
    content = {
        "format": FORMAT,
        "stage": name,
        "settings": settings,
        "inputs": {role: stage.fingerprint for role, stage in inputs.items()},
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def folder_of(workdir, name, *, settings, inputs):
    """The folder of a stage when it is finished; arguments as of `run`."""
    return Path(workdir) / f"{name}-{fingerprint(name, settings, inputs)}"


def partial_of(path):
    """Where a stage is while it is being made."""
    return path.with_name(path.name + PARTIAL)


def run(workdir, name, build, *, settings, inputs, goes_on=False, worker=0, num_workers=1):
    """Returns the stage's finished folder, building it if it is not there.

    Args:
        workdir: the run's folder.
        name: folder and kind, as `gen1/student`.
        build: function that takes the folder to fill and returns the counts, a JSON-like dict; or
            None where other workers' shares are missing.
        settings: JSON-like dict of all settings that the result depends on.
        inputs: dict from role to the `Stage`s that it is made from.
        goes_on: whether `build` goes on with what a stopped process has left in the folder;
            otherwise it is empty.
        worker, num_workers: ints; several workers fill one folder at the same time, with a `build`
            that goes on, and the one that finds it complete publishes it.

    Returns:
        A `Stage`; None where `build` has returned None.

    Raises:
        UserError: another process is building the same stage, a finished one is damaged, or the
            disk refuses.
    """
    path = folder_of(workdir, name, settings=settings, inputs=inputs)
    label = path.relative_to(workdir).as_posix()
    partial = partial_of(path)
    share = f".worker-{worker}-of-{num_workers}" if num_workers > 1 else None
    with contextlib.ExitStack() as locks, naming_disk_errors(path.parent):
        if path.exists():
            return _reuse(path, label)
        make_folder(path.parent)
        lock = locks.enter_context(_lock(path, shared=num_workers > 1))
        if share:
            locks.enter_context(_lock(path, share))
        if path.exists():  # Finished by the process that held the lock before.
            return _reuse(path, label)
        if partial.exists() and not goes_on:
            shutil.rmtree(partial)
        if num_workers == 1:  # Others' files may be about to be finished.
            remove_unfinished(partial)
        partial.mkdir(exist_ok=True)
        (partial / MANIFEST).unlink(missing_ok=True)  # Of one who was stopped before the rename.
        _leave_out_changed(partial, alone=num_workers == 1)
        started = time.time()
        counts = build(partial)
        if counts is None:
            return None
        if num_workers > 1:  # Alone from here on; others may have found it complete, too.
            fcntl.flock(lock, fcntl.LOCK_EX)
            if path.exists():
                return _reuse(path, label)
            remove_unfinished(partial)
        manifest = {
            "format": FORMAT,
            "stage": name,
            "fingerprint": fingerprint(name, settings, inputs),
            "settings": settings,
            "inputs": {
                role: {"stage": stage.name, "fingerprint": stage.fingerprint}
                for role, stage in inputs.items()
            },
            "counts": counts,
            "seconds": round(time.time() - started, 1),
            "files": _sync_and_describe(partial),
        }
        _publish(partial, path, manifest)
    logging.info("%s: done in %.1f s", label, time.time() - started)
    return load(path)


def _leave_out_changed(partial, alone):
    """Removes the files that are not as a stopped process wrote them, so that they are made anew.

    Args:
        partial: the folder of a stage that goes on.
        alone: whether no other process counts on what is there; else a UserError.
    """
    for path in changed_since_written(partial):
        if not alone:
            raise UserError(
                f"{path} is damaged: stop the other workers, delete the file and run again."
            )
        logging.warning("%s is damaged: it is made anew.", path)
        path.unlink()


def _publish(partial, path, manifest):
    """Completes a folder with its manifest, and gives it its name when all of it is on disk."""
    write_json_atomically(partial / MANIFEST, {**manifest, "seal": _seal(manifest)})
    shutil.rmtree(partial / WRITTEN, ignore_errors=True)
    sync_folder(partial)
    os.rename(partial, path)
    sync_folder(path.parent)


def find(workdir, name, *, settings, inputs):
    """The finished `Stage` of these settings and inputs, as for `run`; None where there is none."""
    path = folder_of(workdir, name, settings=settings, inputs=inputs)
    return _reuse(path, path.relative_to(workdir).as_posix()) if path.exists() else None


def nearest(workdir, name, *, settings, inputs):
    """Words for how what is there of a stage's name differs from what is looked for, or "".

    Arguments as of `run`.
    """
    if partial_of(folder_of(workdir, name, settings=settings, inputs=inputs)).exists():
        return " (it has been begun)"
    others = []
    for path in Path(workdir).glob(f"{name}-*/{MANIFEST}"):
        manifest = _read_manifest(path.parent)
        differing = list(_differing(manifest["settings"], settings))
        differing += [
            f"another {role}"
            for role, one in manifest["inputs"].items()
            if role not in inputs or one["fingerprint"] != inputs[role].fingerprint
        ]
        more = f" and {len(differing) - MOST_NAMED} more" if len(differing) > MOST_NAMED else ""
        told = ", ".join(differing[:MOST_NAMED]) + more
        others.append((len(differing), f" ({path.parent.name} has {told})"))
    return min(others)[1] if others else ""


def _differing(there, wanted):
    """Words for each setting that is there with another value than wanted, in dicts of dicts."""
    for key, value in there.items():
        other = wanted.get(key)
        if isinstance(value, dict) and isinstance(other, dict):
            yield from _differing(value, other)
        elif json.dumps(value) != json.dumps(other):
            yield f"{key}={value!r} and not {other!r}"


def load(path):
    """The finished stage at `path`; UserError where its manifest is missing or damaged."""
    manifest = _read_manifest(Path(path))
    return Stage(Path(path), manifest["fingerprint"], manifest["counts"])


def _read_manifest(path):
    manifest_path = path / MANIFEST
    try:
        if manifest_path.exists() and not manifest_path.is_file():
            raise ValueError("it is no file")  # A pipe would be waited for.
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise UserError(
                f"{path} was made by another version of nsk (format {manifest['format']}, expected "
                f"{FORMAT}): use that version, or delete the folder."
            )
        if manifest["seal"] != _seal(manifest):
            raise ValueError("it is not as it was written")
        return manifest
    except FileNotFoundError:
        raise UserError(
            f"{path} is not a finished stage, it has no {MANIFEST}: delete the folder and run "
            "again to redo it."
        ) from None
    except OSError as error:
        raise UserError(
            f"{manifest_path} cannot be read ({error.strerror}): mend that, or delete the folder "
            f"{path} and run again to redo it."
        ) from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise UserError(
            f"{manifest_path} is damaged ({reason}): delete the folder {path} and run again to "
            "redo it."
        ) from None


def _seal(manifest):
    """SHA-256 of a manifest without its seal."""
    content = {key: value for key, value in manifest.items() if key != "seal"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def damages(path):
    """What is wrong with the files of a finished stage: list of (path, reason), empty if nothing.

    Every file is read and compared with its SHA-256, several at a time. Files that are not the
    stage's, as file managers leave them, are no damage: see `strays`.

    Raises:
        UserError: its manifest is missing or damaged.
    """
    path = Path(path)
    manifest = _read_manifest(path)
    files = manifest["files"]
    there = _files_in(path)
    found = [(path / name, "it is missing") for name in sorted(files.keys() - there)]
    if FOLDER_NAME.fullmatch(path.name) and not path.name.endswith(manifest["fingerprint"]):
        found.append((path / MANIFEST, "it is of another stage"))
    present = sorted(files.keys() & there)
    with concurrent.futures.ThreadPoolExecutor(num_cores()) as pool:
        reasons = pool.map(lambda name: _damage(path / name, files[name]), present)
        found += [
            (path / name, reason)
            for name, reason in zip(present, reasons, strict=True)
            if reason is not None
        ]
    return found


def _damage(path, expected):
    """Why a file is not as it was written; None where it is."""
    try:
        size = path.stat().st_size
        if size != expected["bytes"]:
            return f"it has {size:,} bytes and not {expected['bytes']:,}"
        digest = sha256(path)
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    return None if digest == expected["sha256"] else "its SHA-256 is another than when written"


def strays(path):
    """Paths of the files in a finished stage's folder that it did not make; nothing reads them."""
    path = Path(path)
    return [
        path / name for name in sorted(_files_in(path) - {MANIFEST, *_read_manifest(path)["files"]})
    ]


def _files_in(path):
    return {one.relative_to(path).as_posix() for one in path.rglob("*") if one.is_file()}


def finished(workdir):
    """Paths of the finished stages in a workdir, in order of their names.

    A folder with the name of one is among them when it has lost its manifest.
    """
    workdir = Path(workdir)
    found = {path.parent for path in workdir.glob(f"**/{MANIFEST}")}
    named = (path for path in workdir.glob("**/*-*") if FOLDER_NAME.fullmatch(path.name))
    found |= {path for path in named if CURVES not in path.relative_to(workdir).parts}
    return sorted(path for path in found if path.is_dir() and path.suffix != PARTIAL)


def make_folder(path):
    """Makes a folder where there is none; UserError where it cannot be made or written into."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"The folder {path} cannot be made ({error.strerror}): give another --workdir."
        ) from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(
            f"The folder {path} cannot be written into: change its rights, or give another "
            "--workdir."
        )


def _reuse(path, label):
    """A finished stage, used again after every file of it was verified."""
    size = sum(one["bytes"] for one in _read_manifest(path)["files"].values())
    if size >= LARGE:
        logging.info("%s: verifying %.1f GiB", label, size / 2**30)
    wrong = damages(path)
    for stray in strays(path):
        logging.warning("%s is not of its stage: it is left alone.", stray)
    if wrong:
        named = "; ".join(f"{file}: {reason}" for file, reason in wrong[:3])
        raise UserError(
            f"{label} is damaged ({named}{'; ...' if len(wrong) > 3 else ''}): delete the folder "
            f"{path} and run again to redo it alone."
        )
    logging.info("%s: already done, used again", label)
    return dataclasses.replace(load(path), reused=True)


@contextlib.contextmanager
def naming_disk_errors(folder):
    """Turns what a disk refuses into a UserError that names the file, or else the folder."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        refusal = _refusal(error)
        if refusal is None:
            raise
        code, file = refusal
        raise UserError(
            f"The disk refuses {file or f'a file below {folder}'} ({os.strerror(code)}): "
            f"{DISK_ERRORS[code]}, and run again; finished stages are kept."
        ) from error


def _refusal(error):
    """(code, file or None) of an error with which a disk refuses; None for any other one.

    TensorFlow's errors are no OSErrors: they end with "FILE; what the system said".
    """
    for one in filter(None, (error.__cause__, error)):
        if isinstance(one, OSError):
            # A right that is missing may be another than to a file.
            about_files = one.filename or one.errno not in (errno.EACCES, errno.EPERM)
            if one.errno in DISK_ERRORS and about_files:
                return one.errno, one.filename
        elif type(one).__module__.startswith("tensorflow."):
            for code in DISK_ERRORS:
                found = re.search(rf"([^;{{}}]*); {re.escape(os.strerror(code))}", str(one))
                if found:
                    return code, found[1].strip()
    return None


@contextlib.contextmanager
def _lock(path, suffix="", shared=False):
    """Holds the stage for this process; the kernel lets go when it ends in whatever way.

    Args:
        path: the stage's folder.
        suffix: what is held of it; the whole by default.
        shared: whether others may hold it, too, as long as they share it.
    """
    lock_path = path.with_name(f"{path.name}{suffix}.lock")
    with open(lock_path, "a+", errors="replace") as lock:
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip() or "another process"
            raise UserError(
                f"{path}{suffix} is being made by {owner}: wait for it, or stop it, and run again."
            ) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        try:
            yield lock
        finally:
            if path.exists():  # Published: nobody will build it again.
                for one in path.parent.glob(f"{path.name}*.lock"):
                    one.unlink(missing_ok=True)


def _sync_and_describe(folder):
    """Brings every file to disk; returns {relative path: {bytes, sha256}}."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if WRITTEN in path.relative_to(folder).parts:
            continue
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        files[path.relative_to(folder).as_posix()] = {
            "bytes": path.stat().st_size,
            "sha256": sha256(path),
        }
    for path in folder.rglob("*"):
        if path.is_dir() and WRITTEN not in path.relative_to(folder).parts:
            sync_folder(path)
    return files


def write_json_atomically(path, value):
    """Writes a JSON file that is there whole or not at all."""
    with naming_disk_errors(path.parent), written_whole(path) as unfinished:
        unfinished.write_text(json.dumps(value, indent=1) + "\n")
