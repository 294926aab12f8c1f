"""Verification: compares the files of finished stages with what was written."""

import concurrent.futures
import json
import os
import re
from pathlib import Path

from nsk.hashing import sha256_of_file
from nsk.store.files import CHECKPOINTS, LOCK, PARTIAL, WRITTEN, num_cores
from nsk.store.locks import is_locked
from nsk.store.manifest import FORMAT, MANIFEST, read_manifest

FOLDER_NAME = re.compile(r".+-[0-9a-f]{10}")
CURVES = "tensorboard"  # Folders below it have names of stages, but are not stages.


def find_damage(folder: Path) -> list[tuple[Path, str]]:
    """(path, reason) of each damaged file of a finished stage.

    Every file is read and compared with its SHA-256, several in parallel. Files that do not belong
    to the stage, such as those of file managers, are not damage; see `foreign_files`.

    Raises:
        UserError: the manifest is missing or damaged.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    expected, present = manifest["files"], _files_in(folder)
    damage = [(folder / name, "it is missing") for name in sorted(expected.keys() - present)]
    if FOLDER_NAME.fullmatch(folder.name) and not folder.name.endswith(manifest["fingerprint"]):
        damage.append((folder / MANIFEST, "it belongs to another stage"))
    names = sorted(expected.keys() & present)
    with concurrent.futures.ThreadPoolExecutor(num_cores()) as pool:
        reasons = pool.map(lambda name: _compare(folder / name, expected[name]), names)
        damage += [
            (folder / name, reason)
            for name, reason in zip(names, reasons, strict=True)
            if reason is not None
        ]
    return damage


def _compare(path, expected):
    """Why a file differs from what was written; None if it does not."""
    try:
        size = path.stat().st_size
        if size != expected["bytes"]:
            return f"it has {size:,} bytes, expected {expected['bytes']:,}"
        digest = sha256_of_file(path)
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    return None if digest == expected["sha256"] else "its SHA-256 differs from what was written"


def foreign_files(folder: Path) -> list[Path]:
    """Paths of the files in a finished stage's folder that do not belong to the stage."""
    folder = Path(folder)
    own = {MANIFEST, *read_manifest(folder)["files"]}
    return [folder / name for name in sorted(_files_in(folder) - own)]


def _files_in(folder):
    """Names of the files in a stage's folder, without the records of what was written."""
    files = set()
    for parent, folders, names in os.walk(folder):
        if parent == str(folder) and WRITTEN in folders:
            folders.remove(WRITTEN)  # Not even listed: the process that published it removes it.
        paths = (Path(parent) / name for name in names)
        files |= {path.relative_to(folder).as_posix() for path in paths if path.is_file()}
    return files


def finished_stages(workdir: Path) -> list[Path]:
    """Folders of the finished stages in a workdir, sorted.

    A folder with the name of a stage is included if it has lost its manifest.
    """
    workdir = Path(workdir)
    manifests = workdir.glob(f"**/{MANIFEST}")
    folders = {path.parent for path in manifests if path.parent.name != WRITTEN}
    named = (path for path in workdir.glob("**/*-*") if FOLDER_NAME.fullmatch(path.name))
    folders |= {path for path in named if CURVES not in path.relative_to(workdir).parts}
    return sorted(path for path in folders if path.is_dir() and path.suffix != PARTIAL)


def stages_of_other_formats(workdir: Path) -> list[Path]:
    """Folders of the stages that another version of nsk wrote, which are not reused, sorted.

    Looks only where stages are built: in the workdir and one level below.
    """
    workdir = Path(workdir)
    paths = [path for pattern in ("*-*", "*/*-*") for path in workdir.glob(pattern)]
    return sorted(path for path in paths if _format(path) not in (FORMAT, None))


def _format(folder):
    """The format of a stage's manifest; None if there is none that can be read."""
    path = folder / MANIFEST
    try:
        if not FOLDER_NAME.fullmatch(folder.name) or not path.is_file():  # A pipe would block.
            return None
        return json.loads(path.read_text(encoding="utf-8"))["format"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def unfinished_stages(workdir: Path) -> dict[Path, list[Path]]:
    """What stages that were not finished have left, and no process is working on.

    Returns:
        dict from the path that the finished stage would have to the folders and files beside it:
        what was built, checkpoints and locks.
    """
    found = {}
    for path in sorted(Path(workdir).glob("**/*-*")):
        name = path.name.split(".")[0]
        is_left = FOLDER_NAME.fullmatch(name) and path.suffix in (PARTIAL, CHECKPOINTS, LOCK)
        if is_left and CURVES not in path.relative_to(workdir).parts:
            found.setdefault(path.with_name(name), []).append(path)
    return {
        stage: paths
        for stage, paths in found.items()
        if not any(path.suffix == LOCK and is_locked(path) for path in paths)
    }


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir())
