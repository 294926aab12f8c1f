"""Checkpoints of a training: whole, verified, and written beside the training.

    student-3f9a1c04d2.checkpoints/step-000001200/
        arrays.npz          every variable's value, by number
        checkpoint.json     step, what else is remembered, names, shapes and SHA-256; written last

A folder is written under another name and renamed when it is on disk. What is read again is
compared with its SHA-256, so that a damaged checkpoint is told and the one before it used:
TensorFlow's and Keras' own formats load some flipped bits silently.
"""

import hashlib
import io
import json
import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
from absl import logging

from nsk.errors import CannotTeachError, UserError
from nsk.store.files import UNFINISHED, remove_unfinished, sync_folder, write_synced

ARRAYS, MANIFEST = "arrays.npz", "checkpoint.json"
KEPT = 2
# Writing takes no larger share of the time than this, however short the interval is.
LARGEST_SHARE = 0.01


class Checkpoints:
    """Checkpoints of one training stage.

    Args:
        folder: where they are kept.
        variables: dict from a name to a variable (`assign`, and a value that NumPy understands):
            all that training changes.
        seconds: float, how long after one checkpoint the next one is due.
    """

    def __init__(self, folder, variables, seconds):
        self.folder, self.variables = Path(folder), variables
        self.seconds_spent = 0.0
        self._interval = seconds
        self._due = time.monotonic() + seconds
        self._writing = None
        self._error = None

    @property
    def is_due(self):
        """Whether it is time for the next one, and the one before is on disk."""
        return time.monotonic() >= self._due and not (self._writing and self._writing.is_alive())

    @property
    def last(self):
        """Words for the last checkpoint on disk."""
        paths = self._paths()
        return f"the last checkpoint is {paths[-1]}" if paths else "there is no checkpoint yet"

    def save(self, step, remembered, wait=False, write=True):
        """Saves the variables as they are now; training goes on while they are written.

        Args:
            step: int, steps that were trained.
            remembered: dict from a name to what else is needed to go on: arrays and JSON-like
                values.
            wait: whether to return only when the checkpoint is on disk.
            write: whether this process is the one that writes; the others of a training only look
                at the variables.

        Raises:
            CannotTeachError: a variable is not finite.
            OSError: the disk refuses this checkpoint or the one before it.
        """
        started = time.monotonic()
        self.finish()
        arrays = {name: np.asarray(variable) for name, variable in self.variables.items()}
        for name, value in arrays.items():
            if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
                raise CannotTeachError(
                    f"{name} is not finite after step {step}; {self.last}. Lower --learning_rate, "
                    "lengthen --warmup_epochs or set --gradient_clip_norm."
                )
        if not write:
            return
        # Copies: TensorFlow may hand out its own memory.
        arrays = {name: np.array(value) for name, value in arrays.items()}
        self._writing = threading.Thread(target=self._write, args=(step, arrays, remembered))
        self._writing.start()
        if wait:
            self.finish()
        spent = time.monotonic() - started
        self.seconds_spent += spent
        self._due = time.monotonic() + max(self._interval, spent / LARGEST_SHARE)

    def finish(self):
        """Waits for the checkpoint that is being written; raises what its writing has raised."""
        if self._writing:
            self._writing.join()
            self._writing = None
        if self._error:
            error, self._error = self._error, None
            raise error

    def _write(self, step, arrays, remembered):
        try:
            write(self._path(step), step, arrays, remembered)
            for path in self._paths()[:-KEPT]:
                shutil.rmtree(path)
        except Exception as error:
            self._error = error

    def _paths(self):
        """The checkpoints' folders, the last one last."""
        return sorted(self.folder.glob("step-" + "[0-9]" * 9))

    def _path(self, step):
        return self.folder / f"step-{step:09d}"

    def restore(self):
        """Gives the variables the values of the last checkpoint that is whole.

        Returns:
            (step, remembered) of it; None where there is none.

        Raises:
            UserError: it is whole, but of other variables.
        """
        remove_unfinished(self.folder)
        for path in reversed(self._paths()):
            try:
                step, arrays, remembered = read(path)
            except ValueError as error:
                logging.warning("The checkpoint %s is damaged (%s): left out.", path, error)
                shutil.rmtree(path)
                continue
            self._assign(path, arrays)
            return step, remembered
        return None

    def restore_step(self, step):
        """Gives the variables the values of one checkpoint; what it remembers.

        For processes that go on from where another one does: nothing is removed.

        Raises:
            UserError: it is not there, damaged or of other variables.
        """
        path = self._path(step)
        try:
            _, arrays, remembered = read(path)
        except ValueError as error:
            raise UserError(
                f"The checkpoint {path}, which the other workers go on from, cannot be read "
                f"({error}): give all workers the same --workdir on a shared file system."
            ) from None
        self._assign(path, arrays)
        return remembered

    def _assign(self, path, arrays):
        expected = {name: tuple(variable.shape) for name, variable in self.variables.items()}
        received = {name: value.shape for name, value in arrays.items()}
        if received != expected:
            differing = sorted(set(received.items()) ^ set(expected.items()))[:3]
            raise UserError(
                f"The checkpoint {path} holds other variables than this version of the network "
                f"({differing}): delete the folder {self.folder} to train from the beginning."
            )
        for name, variable in self.variables.items():
            variable.assign(arrays[name])


def write(path, step, arrays, remembered):
    """Writes a checkpoint into the new folder `path`, whole or not at all.

    Args:
        path: its folder.
        step: int.
        arrays: dict from a name to an array.
        remembered: dict from a name to an array or a JSON-like value.
    """
    unfinished = path.with_name(f"{path.name}.{os.getpid()}{UNFINISHED}")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        _write_files(unfinished, step, arrays, remembered)
        shutil.rmtree(path, ignore_errors=True)
        os.rename(unfinished, path)
    except BaseException:  # A disk that is full needs the room.
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    sync_folder(path.parent)


def _write_files(folder, step, arrays, remembered):
    more = {name: value for name, value in remembered.items() if isinstance(value, np.ndarray)}
    # By number: names of variables hold slashes, which are folders in an archive.
    whole = [*arrays.values(), *more.values()]
    buffer = io.BytesIO()
    np.savez(buffer, *whole, allow_pickle=False)
    content = buffer.getbuffer()
    write_synced(folder / ARRAYS, content)
    manifest = {
        "step": step,
        "remembered": {name: value for name, value in remembered.items() if name not in more},
        "variables": list(arrays),
        "arrays": list(more),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    text = json.dumps(manifest, indent=1, sort_keys=True)
    seal = hashlib.sha256(text.encode()).hexdigest()
    write_synced(folder / MANIFEST, f"{text}\n{seal}\n".encode())


def read(path):
    """(step, arrays, remembered) of a checkpoint, as given to `write`.

    Raises:
        ValueError: it is incomplete or damaged; the message says how.
    """
    try:
        text, _, seal = (path / MANIFEST).read_text(encoding="utf-8").rstrip("\n").rpartition("\n")
        if hashlib.sha256(text.encode()).hexdigest() != seal:
            raise ValueError(f"{MANIFEST} has another SHA-256")
        manifest = json.loads(text)
        content = (path / ARRAYS).read_bytes()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    if hashlib.sha256(content).hexdigest() != manifest["sha256"]:
        raise ValueError(f"{ARRAYS} has another SHA-256")
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        whole = [stored[f"arr_{number}"] for number in range(len(stored.files))]
    names = manifest["variables"]
    arrays = dict(zip(names, whole[: len(names)], strict=True))
    more = dict(zip(manifest["arrays"], whole[len(names) :], strict=True))
    return manifest["step"], arrays, {**manifest["remembered"], **more}
