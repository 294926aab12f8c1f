"""Loads trained models from Keras' files without executing anything in them."""

import dataclasses
import json
import math
import os
from pathlib import Path

import h5py
import keras

from nsk.errors import UserError
from nsk.models import keras_formats
from nsk.store import folders
from nsk.store.manifest import MANIFEST

CALIBRATION, DECODING = "calibration.json", "decoding.json"  # Beside an exported model.


def load_model(path: Path) -> keras.Model:
    """Loads an image classifier from a `.keras` file.

    Returns:
        keras.Model from (batch, height, width, 3) to (batch, num_classes), not compiled: to logits
        if nsk saved it, others may return probabilities.

    Raises:
        UserError: the file is missing, damaged, not a `.keras` file or not an image classifier.
    """
    if path.suffix != ".keras" or not os.path.isfile(path):
        raise UserError(
            f"{path} is not a .keras file: give the path of a model saved by nsk or Keras."
        )
    return _load(path, keras_formats.check_archive)


def load_hdf5_model(path: Path) -> keras.Model:
    """Loads an image classifier from an HDF5 file with a whole model, Keras' legacy format.

    Returns:
        As `load_model` does.

    Raises:
        UserError: the file is damaged, holds weights alone or no image classifier.
    """
    return _load(path, _check_holds_model)


def _check_holds_model(path):
    """UserError if an HDF5 file has weights alone."""
    with h5py.File(path, "r") as opened:
        if "model_config" not in opened.attrs:
            raise UserError(
                f"{path} holds weights alone: name the network, too: --model=NAME --weights={path}."
            )


def _load(path, check):
    """Loads a whole model after `check(path)`, which may raise anything."""
    try:
        check(path)
        model = keras.models.load_model(path, compile=False, safe_mode=True)
    except UserError:
        raise
    except Exception as error:  # Keras raises nearly anything on unexpected content.
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise UserError(
            f"The model {path} cannot be loaded ({reason}): give another one."
        ) from None
    shapes = getattr(model, "input_shape", None), getattr(model, "output_shape", None)
    if [len(shape or ()) for shape in shapes] != [4, 2]:
        raise UserError(
            f"The model {path} takes {shapes[0]} and returns {shapes[1]}: expected images (None, "
            "size, size, 3) and logits (None, classes)."
        )
    return model


RESIZE_MODES = ("crop", "pad", "squash")


@dataclasses.dataclass(frozen=True)
class KnownDecoding:
    """How the images that a model was trained on were decoded; None: not known.

    Attributes:
        resize_mode: how they became squares: "crop", "pad" or "squash".
        significant_bits: bits that 16-bit images used; None: there were none, too.
    """

    resize_mode: str | None = None
    significant_bits: int | None = None


def read_decoding(path: Path) -> KnownDecoding:
    """How the images of a model that nsk trained or exported were decoded.

    Args:
        path: path of the model; beside it are `decoding.json` or the manifest of its stage.

    Raises:
        UserError: one of these files is damaged.
    """
    file = _find_beside(path, DECODING)
    if file:
        return _read_decoding_file(file)
    manifest = _find_beside(path, MANIFEST)
    if not manifest:
        return KnownDecoding()
    counts = folders.load_stage(manifest.parent).counts
    # Stages of versions that knew one mode do not name it.
    return KnownDecoding(counts.get("resize_mode", "crop"), counts.get("significant_bits"))


def _find_beside(path: Path, name: str) -> Path | None:
    """The file with a name beside a model, or beside the file that it is a link to."""
    found = (folder / name for folder in (path.parent, path.resolve().parent))
    return next((file for file in found if file.is_file()), None)


def _read_decoding_file(file):
    """What `decoding.json` holds."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        mode, bits = values["resize_mode"], values["significant_bits"]
        if mode not in RESIZE_MODES:
            raise ValueError(f"resize_mode {mode!r}")
        if bits is not None and bits not in range(1, 17):
            raise ValueError(f"significant_bits {bits!r}")
        return KnownDecoding(mode, bits)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} cannot be read ({type(error).__name__}: {error}): export the model again, or "
            "remove the file."
        ) from None


def read_class_names(path: Path) -> list[str] | None:
    """Class names of a model that nsk trained or exported, from the files beside it.

    Args:
        path: path of the model.

    Returns:
        Class names in the order of the logits; None: they are not known.

    Raises:
        UserError: `class_names.txt` cannot be read or the stage's manifest is damaged.
    """
    text_file = _find_beside(path, "class_names.txt")
    if text_file:
        try:
            return text_file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{text_file} cannot be read ({error}): give UTF-8 text.") from None
    manifest = _find_beside(path, MANIFEST)
    return folders.load_stage(manifest.parent).counts.get("class_names") if manifest else None


def read_temperature(path: Path) -> float | None:
    """The temperature of calibrated probabilities, from the file beside an exported model.

    Args:
        path: path of the model.

    Returns:
        float above 0; None: it is not known.

    Raises:
        UserError: the file is damaged.
    """
    file = _find_beside(path, CALIBRATION)
    if not file:
        return None
    try:
        temperature = float(json.loads(file.read_text(encoding="utf-8"))["temperature"])
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature {temperature}")
        return temperature
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} cannot be read ({type(error).__name__}: {error}): export the model again, or "
            "remove the file."
        ) from None
