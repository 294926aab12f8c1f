"""Checkpoints of a training: atomic, verified, and written in the background.

    student-3f9a1c04d2.checkpoints/step-000001200/
        arrays.npz          every variable's value, by number
        checkpoint.json     step, additional state, names, shapes and SHA-256; written last

A folder is written under another name and renamed when it is on disk. Its content is compared with
its SHA-256 when it is read, so that a damaged checkpoint is reported and the one before it used:
TensorFlow's and Keras' own formats load some flipped bits silently.
"""

import io
import json
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from nsk.errors import GenerationFailedError, UserError, list_names
from nsk.hashing import sha256_of_bytes
from nsk.store.files import UNFINISHED, remove_unfinished, sync_folder, write_synced

ARRAYS, MANIFEST = "arrays.npz", "checkpoint.json"
MAX_KEPT = 2
# Checkpoints are more frequent than necessary while they take at most this share of the time.
MAX_TIME_SHARE = 0.01
# The time until the first checkpoint, before it is known how long one takes.
FIRST_SECONDS = 5.0


class Checkpoints:
    """Checkpoints of one training stage.

    Args:
        folder: where they are kept.
        variables: all variables that training changes, by name; they have `assign` and convert to
            NumPy arrays.
        max_seconds: longest time between checkpoints. It is shorter if checkpoints take less than
            `MAX_TIME_SHARE` of it; 0: a checkpoint whenever the one before is on disk.

    Attributes:
        pause_seconds: how long training has waited for checkpoints so far.
    """

    def __init__(self, folder: Path, variables: dict[str, Any], max_seconds: float):
        self.folder, self.variables = Path(folder), variables
        self.pause_seconds = 0.0
        self._max_seconds = max_seconds
        self._seconds_of_last = FIRST_SECONDS * MAX_TIME_SHARE
        self._last_saved = time.monotonic()
        self._writing = None
        self._error = None

    @property
    def is_due(self) -> bool:
        """Whether it is time for the next checkpoint, and the one before is on disk."""
        is_writing = self._writing and self._writing.is_alive()
        return not is_writing and time.monotonic() - self._last_saved >= self.interval

    @property
    def interval(self) -> float:
        """Time between the last checkpoint and the next one, seconds."""
        return min(self._max_seconds, self._seconds_of_last / MAX_TIME_SHARE)

    @property
    def last(self) -> str:
        """The last checkpoint on disk, in words."""
        paths = self._paths()
        return f"the last checkpoint is {paths[-1]}" if paths else "there is no checkpoint yet"

    def save(
        self, step: int, state: dict[str, Any], wait: bool = False, write: bool = True
    ) -> None:
        """Saves the current values of the variables; they are written while training continues.

        Args:
            step: steps that were trained.
            state: additional state by name: arrays and JSON-like values.
            wait: whether to return only when the checkpoint is on disk.
            write: whether this process writes; the other workers only check that their variables
                are finite.

        Raises:
            GenerationFailedError: a variable is not finite.
            OSError: this checkpoint or the one before it cannot be written.
        """
        started = time.monotonic()
        self.finish()
        arrays = {name: np.asarray(variable) for name, variable in self.variables.items()}
        for name, value in arrays.items():
            if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
                raise GenerationFailedError(
                    f"{name} is not finite after step {step}; {self.last}. Lower --learning_rate, "
                    "lengthen --warmup_epochs or set --gradient_clip_norm."
                )
        if not write:
            return
        # Copies, since these arrays may be views of TensorFlow's memory.
        arrays = {name: np.array(value) for name, value in arrays.items()}
        self._writing = threading.Thread(target=self._write, args=(step, arrays, state, started))
        self._writing.start()
        if wait:
            self.finish()
        self._last_saved = time.monotonic()
        self.pause_seconds += self._last_saved - started

    def finish(self) -> None:
        """Waits for the checkpoint that is being written, and raises its error if it failed."""
        if self._writing:
            self._writing.join()
            self._writing = None
        if self._error:
            error, self._error = self._error, None
            raise error

    def _write(self, step, arrays, state, started):
        """Writes a checkpoint whose saving was started at this time, in the background."""
        try:
            write(self._path(step), step, arrays, state)
            for path in self._paths()[:-MAX_KEPT]:
                shutil.rmtree(path)
        except Exception as error:
            self._error = error
        self._seconds_of_last = time.monotonic() - started

    def _paths(self):
        """The checkpoints' folders, oldest first."""
        return sorted(self.folder.glob("step-" + "[0-9]" * 9))

    def _path(self, step):
        return self.folder / f"step-{step:09d}"

    def restore(self) -> tuple[int, dict[str, Any]] | None:
        """Restores the variables from the last intact checkpoint.

        Returns:
            Its step and additional state; None if there is none.

        Raises:
            UserError: it is intact, but has other variables.
        """
        remove_unfinished(self.folder)
        for path in reversed(self._paths()):
            try:
                step, arrays, state = read(path)
            except ValueError as error:
                logging.warning("The checkpoint %s is damaged (%s): skipped.", path, error)
                shutil.rmtree(path)
                continue
            self._assign(path, arrays)
            return step, state
        return None

    def restore_step(self, step: int) -> dict[str, Any]:
        """Restores the variables from the checkpoint of a step, and returns its additional state.

        For workers that follow the chief: nothing is removed.

        Raises:
            UserError: it is missing, damaged or has other variables.
        """
        path = self._path(step)
        try:
            _, arrays, state = read(path)
        except ValueError as error:
            raise UserError(
                f"The checkpoint {path}, from which the other workers resume, cannot be read "
                f"({error}): give all workers the same --workdir on a shared file system."
            ) from None
        self._assign(path, arrays)
        return state

    def _assign(self, path, arrays):
        expected = {name: tuple(variable.shape) for name, variable in self.variables.items()}
        received = {name: value.shape for name, value in arrays.items()}
        if received != expected:
            differing = sorted(set(received.items()) ^ set(expected.items()))
            listed = list_names([f"{name} {shape}" for name, shape in differing])
            raise UserError(
                f"The checkpoint {path} has other variables than this version of the network "
                f"({listed}): delete the folder {self.folder} to restart the training."
            )
        for name, variable in self.variables.items():
            variable.assign(arrays[name])


def write(path: Path, step: int, arrays: dict[str, np.ndarray], state: dict[str, Any]) -> None:
    """Writes a checkpoint into a new folder, atomically.

    Args:
        path: its folder.
        step: steps that were trained.
        arrays: the values of variables by name.
        state: additional state by name: arrays and JSON-like values.
    """
    unfinished = path.with_name(f"{path.name}.{os.getpid()}{UNFINISHED}")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        _write_files(unfinished, step, arrays, state)
        shutil.rmtree(path, ignore_errors=True)
        os.rename(unfinished, path)
    except BaseException:  # Frees the space on a full disk.
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    sync_folder(path.parent)


def _write_files(folder, step, arrays, state):
    state_arrays = {name: value for name, value in state.items() if isinstance(value, np.ndarray)}
    # By number, since the slashes in names of variables mean folders in an archive.
    stored = [*arrays.values(), *state_arrays.values()]
    buffer = io.BytesIO()
    np.savez(buffer, *stored, allow_pickle=False)
    content = buffer.getbuffer()
    write_synced(folder / ARRAYS, content)
    manifest = {
        "step": step,
        "state": {name: value for name, value in state.items() if name not in state_arrays},
        "variables": list(arrays),
        "arrays": list(state_arrays),
        "sha256": sha256_of_bytes(content),
    }
    text = json.dumps(manifest, indent=1, sort_keys=True)
    seal = sha256_of_bytes(text.encode())
    write_synced(folder / MANIFEST, f"{text}\n{seal}\n".encode())


def read(path: Path) -> tuple[int, dict[str, np.ndarray], dict[str, Any]]:
    """(step, arrays, state) of a checkpoint, as given to `write`.

    Raises:
        ValueError: it is incomplete or damaged; the message says in what way.
    """
    try:
        text, _, seal = (path / MANIFEST).read_text(encoding="utf-8").rstrip("\n").rpartition("\n")
        if sha256_of_bytes(text.encode()) != seal:
            raise ValueError(f"{MANIFEST} does not match its SHA-256")
        manifest = json.loads(text)
        content = (path / ARRAYS).read_bytes()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    if sha256_of_bytes(content) != manifest["sha256"]:
        raise ValueError(f"{ARRAYS} does not match its SHA-256")
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        values = [stored[f"arr_{number}"] for number in range(len(stored.files))]
    names = manifest["variables"]
    arrays = dict(zip(names, values[: len(names)], strict=True))
    state_arrays = dict(zip(manifest["arrays"], values[len(names) :], strict=True))
    return manifest["step"], arrays, {**manifest["state"], **state_arrays}
