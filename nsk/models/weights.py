"""Weights from files of any supported format, with the names that layers have in this project.

`keras_formats` and `tf1_checkpoint` read the files, `weight_assignment` assigns the weights to a
network.
"""

import dataclasses
import re
from pathlib import Path

import numpy as np

from nsk.errors import UserError, list_names
from nsk.hashing import sha256_of_bytes, sha256_of_file
from nsk.models import keras_formats, tf1_checkpoint

CLASSIFIER = "logits"  # Name of the classifier's layer.
NORMALIZATION = "normalization(_[0-9]+)?"  # Layers of `keras.applications`.
FORMATS = (
    "a .keras file, an HDF5 file (.h5, .weights.h5) or a TensorFlow 1 checkpoint (its prefix, its "
    ".index file or its folder)"
)


@dataclasses.dataclass(frozen=True)
class Weights:
    """The weights of a network.

    Attributes:
        layers: float32 arrays by the name of the layer, as in this project's networks, and the name
            of the variable (`kernel`, `bias`, `gamma`, `beta`, `moving_mean`, `moving_variance`) or
            its position in the layer (`0`, `1`), as in files of Keras 3.
        path: the path that was read.
        averaged: number of tensors that are moving averages, stored beside the plain variables.
        ignored: number of tensors in the files that do not belong to the network, such as an
            optimizer's.
        normalization: (mean, variance) of the pixels in [0, 1] in a `keras.applications` network's
            own normalisation layer, float64 arrays; None: the file has none.
    """

    layers: keras_formats.Layers
    path: Path
    averaged: int = 0
    ignored: int = 0
    normalization: tuple[np.ndarray, np.ndarray] | None = None


def weight_files(path: Path) -> tuple[Path, ...]:
    """Finds the files that hold the weights at a path.

    Args:
        path: a `.keras` or HDF5 file; the prefix, `.index` file or folder of a TensorFlow 1
            checkpoint; or a folder with a `model.keras`, such as a training stage's.

    Returns:
        The only file, or the index and data files of a checkpoint.

    Raises:
        UserError: there are no weights, or those of several checkpoints.
    """
    if path.is_dir() and (path / "model.keras").is_file():
        return (path / "model.keras",)
    if path.is_dir():
        indices = sorted(path.glob("*.index"))
        if len(indices) != 1:
            listed = f": {list_names([index.name for index in indices])}" if indices else ""
            raise UserError(
                f"The folder {path} has {len(indices)} files *.index{listed}; expected the one of "
                "a TensorFlow 1 checkpoint: give the path of a file."
            )
        return weight_files(indices[0])
    if path.suffix != ".index" and not path.exists() and _with_suffix(path, ".index").exists():
        path = _with_suffix(path, ".index")
    if not path.exists():
        raise UserError(f"There are no weights at {path}: give the path of {FORMATS}.")
    suffixes = (".keras", ".index", *keras_formats.HDF5_SUFFIXES)
    if not path.is_file() or path.suffix not in suffixes:
        raise UserError(f"The format of {path} is not supported: give the path of {FORMATS}.")
    if path.suffix != ".index":
        return (path,)
    data = tf1_checkpoint.data_files(path.with_suffix(""))
    if not data:
        raise UserError(
            f"The checkpoint {path} lacks its data: put {path.stem}.data-00000-of-00001 beside it."
        )
    return (path, *map(Path, data))


def _with_suffix(path, suffix):
    return path.with_name(path.name + suffix)


def sha256(path: Path) -> str:
    """SHA-256, in hex, of the content of the `weight_files` at a path."""
    digests = [f"{file.suffix} {sha256_of_file(file)}\n" for file in weight_files(path)]
    return sha256_of_bytes("".join(digests).encode())


def read(path: Path) -> Weights:
    """Reads the weights at a path, see `weight_files`.

    Raises:
        UserError: there are none, or they are damaged or in an unsupported format.
    """
    paths = weight_files(path)
    try:
        averaged = 0
        if paths[0].suffix == ".index":
            data_bytes = sum(data.stat().st_size for data in paths[1:])
            max_bytes = min(data_bytes, keras_formats.MAX_BYTES)
            layers, averaged, ignored = tf1_checkpoint.read(paths[0].with_suffix(""), max_bytes)
        elif paths[0].suffix == ".keras":
            layers, ignored = keras_formats.read_archive(paths[0])
        else:
            layers, ignored = keras_formats.read_hdf5(paths[0], paths[0].stat().st_size)
        normalization = _normalization(layers)
        layers = _rename(layers)
    except Exception as error:  # h5py and TensorFlow raise nearly anything on damaged files.
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise UserError(
            f"The weights {path} cannot be read ({reason}): give {FORMATS}, complete and undamaged."
        ) from None
    return Weights(layers, path, averaged, ignored, normalization)


def _rename(layers):
    """Layers and variables by this project's names, without normalisation layers, as float32."""
    renamed = {}
    for layer, variables in layers.items():
        if re.fullmatch(NORMALIZATION, layer):
            continue
        layer = CLASSIFIER if layer == "predictions" and CLASSIFIER not in layers else layer
        renamed[layer] = {
            name.replace("depthwise_kernel", "kernel"): _to_float32(array, f"{layer}/{name}")
            for name, array in variables.items()
        }
    return renamed


def _to_float32(array, name):
    """A tensor as float32; ValueError if it holds anything but finite floats."""
    array = np.asarray(array)
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise ValueError(f"{name} is {array.dtype}, expected floats")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32, copy=False)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has values that are not finite")
    return array


def _normalization(layers):
    """`Weights.normalization` from the layers of a file."""
    for layer, variables in layers.items():
        if re.fullmatch(NORMALIZATION, layer):
            return tuple(
                np.ravel(variables[name if name in variables else position]).astype(np.float64)
                for position, name in (("0", "mean"), ("1", "variance"))
            )
    return None
