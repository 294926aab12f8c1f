"""Stage folders: built once, published atomically, reused by fingerprint.

A stage's folder is named after the fingerprint of its settings and its inputs' fingerprints:

    gen1/student-3f9a1c04d2/
        stage.json      the manifest (`nsk.store.manifest`), written last
        ...             the files of the stage

A finished stage with the same fingerprint is reused; a changed setting builds a new folder beside
the old one and never overwrites it. While a stage is being built its folder is called
`....partial`; it is renamed when everything in it is on disk.
"""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from absl import logging

from nsk.errors import UserError, list_names
from nsk.hashing import sha256_of_file
from nsk.store.disk_errors import make_folder, naming_disk_errors
from nsk.store.files import (
    PARTIAL,
    WRITTEN,
    changed_since_written,
    remove_unfinished,
    sync_folder,
)
from nsk.store.locks import lock_folder, upgrade_to_exclusive
from nsk.store.manifest import MANIFEST, fingerprint, read_manifest, write_manifest
from nsk.store.verification import find_damage, foreign_files

MAX_LISTED_DIFFERENCES = 3  # Settings that are listed when a stage is not found.
MAX_VALUE_LENGTH = 40  # Characters of a setting in such a list.
LOG_VERIFY_BYTES = 2**30  # Stages of this size take long enough to verify to be announced.


@dataclasses.dataclass(frozen=True)
class StageFolder:
    """A finished stage.

    Attributes:
        path: its folder.
        fingerprint: 10 hex digits that identify its settings and inputs.
        counts: what its build function returned: numbers and names, JSON-like.
        reused: whether it was finished before.
        files: names of the files and folders in it that `fingerprint` is of; (): of all.
    """

    path: Path
    fingerprint: str
    counts: dict[str, Any]
    reused: bool = False
    files: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Folder and stage, such as `gen1/student-3f9a1c04d2`."""
        return "/".join(self.path.parts[-2:])

    def part(self, *names: str) -> Self:
        """The same stage as an input of which some files alone matter, by their content.

        What is built from it stays the same when other files of the stage change.

        Args:
            *names: files and folders in it.
        """
        digests = {
            name: file["sha256"]
            for name, file in read_manifest(self.path)["files"].items()
            if name.split("/")[0] in names
        }
        return dataclasses.replace(
            self, fingerprint=fingerprint("/".join(names), digests, {}), files=names
        )


@dataclasses.dataclass(frozen=True)
class StageKey:
    """What identifies a stage in a workdir.

    Attributes:
        workdir: the run's folder.
        name: folder and kind, such as `gen1/student`.
        settings: JSON-like dict of all settings that the result depends on.
        inputs: the stages that it is built from, by role.
    """

    workdir: Path
    name: str
    settings: dict[str, Any]
    inputs: dict[str, StageFolder]

    @property
    def fingerprint(self) -> str:
        """Ten hexadecimal digits that identify the name, settings and inputs."""
        inputs = {role: stage.fingerprint for role, stage in self.inputs.items()}
        return fingerprint(self.name, self.settings, inputs)

    @property
    def path(self) -> Path:
        """The stage's folder when it is finished."""
        return Path(self.workdir) / f"{self.name}-{self.fingerprint}"

    @property
    def partial_path(self) -> Path:
        """The stage's folder while it is being built."""
        return self.path.with_name(self.path.name + PARTIAL)

    @property
    def label(self) -> str:
        """Its folder inside the workdir, for messages."""
        return self.path.relative_to(self.workdir).as_posix()


Build = Callable[[Path], dict | None]


def build_or_reuse(
    key: StageKey,
    build: Build,
    *,
    resumes: bool = False,
    worker: int = 0,
    num_workers: int = 1,
    wait: bool = False,
) -> StageFolder | None:
    """Returns the finished stage, and builds it if it is missing.

    Args:
        key: what identifies the stage.
        build: function of the folder to fill that returns the counts, a JSON-like dict; or None if
            other workers' shares are missing.
        resumes: whether `build` resumes from what an interrupted process left in the folder;
            otherwise the folder is empty.
        worker: index of this worker, 0 to `num_workers` - 1.
        num_workers: several workers may fill one folder at the same time, with a `build` that
            resumes; the worker that finds it complete publishes it.
        wait: whether to wait if another process is building the stage.

    Returns:
        The stage; None if `build` returned None.

    Raises:
        UserError: another process is building the stage and `wait` is False, a finished one is
            damaged, or the disk cannot be written.
    """
    path, partial = key.path, key.partial_path
    with contextlib.ExitStack() as locks, naming_disk_errors(path.parent):
        if path.exists():
            return _reuse(key)
        make_folder(path.parent)
        lock = locks.enter_context(lock_folder(path, shared=num_workers > 1, wait=wait))
        if num_workers > 1:
            locks.enter_context(lock_folder(path, f".worker-{worker}-of-{num_workers}"))
        if path.exists():  # Finished by the process that held the lock before.
            return _reuse(key)
        match = "" if partial.exists() else describe_closest_match(key)
        if match:
            logging.info("%s: built anew%s", key.label, match)
        _prepare(partial, resumes, exclusive=num_workers == 1)
        started = time.time()
        counts = build(partial)
        if counts is None:
            return None
        if num_workers > 1:  # Other workers may have found it complete, too.
            upgrade_to_exclusive(lock)
            if path.exists():
                return _reuse(key)
            remove_unfinished(partial)
        _publish(key, counts, time.time() - started)
    logging.info("%s: done in %.1f s", key.label, time.time() - started)
    return load_stage(path)


def _prepare(partial, resumes, exclusive):
    """Makes the folder to build in; leaves in it only files that a resumed build can trust.

    Args:
        partial: the folder.
        resumes: whether the build resumes.
        exclusive: whether no other process may be building the stage.
    """
    if partial.exists() and not resumes:
        shutil.rmtree(partial)
    if exclusive:  # Files of other processes may be about to be finished.
        remove_unfinished(partial)
    partial.mkdir(exist_ok=True)
    (partial / MANIFEST).unlink(missing_ok=True)  # Left by a process stopped before the rename.
    for path in changed_since_written(partial):
        if not exclusive:
            raise UserError(
                f"{path} is damaged: stop the other workers, delete the file and run again."
            )
        logging.warning("%s is damaged: it is rebuilt.", path)
        path.unlink()


def _publish(key, counts, seconds):
    """Completes a folder with its manifest, and renames it when everything in it is on disk."""
    partial = key.partial_path
    manifest = {
        "stage": key.name,
        "fingerprint": key.fingerprint,
        "settings": key.settings,
        "inputs": {
            role: {"stage": stage.name, "fingerprint": stage.fingerprint, "files": stage.files}
            for role, stage in key.inputs.items()
        },
        "counts": counts,
        "seconds": round(seconds, 1),
        "files": _sync_and_describe(partial),
    }
    write_manifest(partial, manifest)
    sync_folder(partial)
    os.rename(partial, key.path)
    sync_folder(key.path.parent)
    # Not before: a process that is killed here would lose what the next one needs to resume.
    shutil.rmtree(key.path / WRITTEN, ignore_errors=True)


def _sync_and_describe(folder):
    """Flushes every file to disk; returns {relative path: {bytes, sha256}}."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        if WRITTEN in path.relative_to(folder).parts:
            continue
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        files[path.relative_to(folder).as_posix()] = {
            "bytes": path.stat().st_size,
            "sha256": sha256_of_file(path),
        }
    for path in folder.rglob("*"):
        if path.is_dir() and WRITTEN not in path.relative_to(folder).parts:
            sync_folder(path)
    return files


def find_stage(key: StageKey) -> StageFolder | None:
    """The finished stage, verified; None if there is none."""
    return _reuse(key) if key.path.exists() else None


def load_stage(path: Path) -> StageFolder:
    """The finished stage in a folder; UserError if its manifest is missing or damaged."""
    manifest = read_manifest(Path(path))
    return StageFolder(Path(path), manifest["fingerprint"], manifest["counts"])


def _reuse(key):
    """A finished stage, after every file of it was verified."""
    path = key.path
    size = sum(file["bytes"] for file in read_manifest(path)["files"].values())
    if size >= LOG_VERIFY_BYTES:
        logging.info("%s: verifying %.1f GiB", key.label, size / 2**30)
    damage = find_damage(path)
    shutil.rmtree(path / WRITTEN, ignore_errors=True)  # Of a process killed after the rename.
    for foreign in foreign_files(path):
        logging.warning("%s does not belong to its stage: it is ignored.", foreign)
    if damage:
        listed = list_names([f"{file}: {reason}" for file, reason in damage])
        raise UserError(
            f"{key.label} is damaged ({listed}): delete the folder {path} and run again to rebuild "
            "it alone."
        )
    logging.info("%s: already done, reused", key.label)
    return dataclasses.replace(load_stage(path), reused=True)


def describe_closest_match(key: StageKey) -> str:
    """How the most similar stage in the workdir differs, as ` (NAME has ...)`; "" if none.

    Stages with a damaged manifest, or one of another format, are left out.
    """
    if key.partial_path.exists():
        return " (it is unfinished)"
    matches = []
    for path in Path(key.workdir).glob(f"{key.name}-*/{MANIFEST}"):
        try:
            differences = _differences(key, read_manifest(path.parent))
        except UserError:
            continue
        hidden = len(differences) - MAX_LISTED_DIFFERENCES
        more = f" and {hidden} more" if hidden > 0 else ""
        listed = ", ".join(differences[:MAX_LISTED_DIFFERENCES]) + more
        matches.append((len(differences), f" ({path.parent.name} has {listed})"))
    return min(matches)[1] if matches else ""


def _differences(key, manifest):
    """What differs between a finished stage's manifest and a key, each in a few words."""
    differences = list(_differing_settings(manifest["settings"], key.settings))
    for role, found in manifest["inputs"].items():
        wanted = key.inputs.get(role)
        if wanted is None or found["fingerprint"] != wanted.fingerprint:
            files = _differing_files(key.workdir, found, wanted)
            listed = f" ({', '.join(files)})" if files else ""
            differences.append(f"{'other' if role.endswith('s') else 'another'} {role}{listed}")
    return differences


def _differing_files(workdir: Path, found: dict, wanted: StageFolder | None) -> list[str]:
    """Those files and folders of an input, named in a manifest, that differ from the wanted ones.

    If the input of the manifest is not there any more, all that are named.
    """
    names = found["files"]
    if wanted is None:
        return names
    try:
        stages = [load_stage(Path(workdir) / found["stage"]), wanted]
        digests = [{name: stage.part(name).fingerprint for name in names} for stage in stages]
    except (OSError, UserError):
        return names
    return [name for name in names if digests[0][name] != digests[1][name]] or names


def _differing_settings(found: dict, wanted: dict, owner: str = "") -> Iterator[str]:
    """Words for each setting with another value than wanted, in nested dicts."""
    for name, value in found.items():
        expected = wanted.get(name)
        if isinstance(value, dict) and isinstance(expected, dict):
            yield from _differing_settings(value, expected, name)
        elif json.dumps(value) != json.dumps(expected):
            if name == "sha256" or re.fullmatch("[0-9a-f]{64}", str(value)):
                yield f"other content of {owner if name == 'sha256' and owner else name}"
            elif name not in wanted:
                yield f"{name}={_shorten(value)}, which is not used now"
            else:
                yield f"{name}={_shorten(value)}, not {_shorten(expected)}"
    for name in sorted(wanted.keys() - found.keys()):
        yield f"no {name}"


def _shorten(value: Any) -> str:
    """A value in a message: long ones are cut."""
    text = repr(value)
    return text if len(text) <= MAX_VALUE_LENGTH else f"{text[: MAX_VALUE_LENGTH - 3]}..."
