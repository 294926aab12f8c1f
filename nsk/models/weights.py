"""Weights from files, in one form: of `keras.applications`, of official checkpoints, of our runs.

Files are read as numbers alone: nothing in them is unpickled, built or executed.
"""

import dataclasses
import hashlib
import io
import math
import re
import zipfile
from pathlib import Path, PurePosixPath

import h5py
import numpy as np

from nsk.errors import UserError
from nsk.models import tf1_checkpoint
from nsk.store import files

HEAD = "logits"
NORMALIZATION = "normalization(_[0-9]+)?"  # Layers of `keras.applications`.
ZIPPED = "model.weights.h5"  # Where a .keras file has them.
MOST_EXPANSION = 10  # Keras does not compress, and weights could hardly be compressed.
MOST_BYTES = 2**34  # EfficientNet-L2 with an optimizer's two slots has 6 GiB.
HDF5_SUFFIXES = (".h5", ".hdf5")
# What a file holds beside the network, by the first part of a name.
NOT_THE_NETWORK = ("optimizer", "optimizer_weights")
MOST_NAMED = 10
KINDS = (
    "a .keras file, an HDF5 file (.h5, .weights.h5) or a TensorFlow 1 checkpoint (its prefix, its "
    ".index file or its folder)"
)


@dataclasses.dataclass(frozen=True)
class Weights:
    """The weights of a network.

    Attributes:
        layers: dict from the name of a layer, as our networks have it, to a dict from the name of a
            variable (`kernel`, `bias`, `gamma`, `beta`, `moving_mean`, `moving_variance`), or its
            place in its layer (`0`, `1`) as Keras 3 writes it, to an array.
        path: where they come from.
        averaged: int, how many of them are moving averages beside which are the plain ones.
        ignored: int, how many tensors of the files are none of the network's, as an optimizer's.
        normalization: (mean, variance) of the pixels in [0, 1] that a network of
            `keras.applications` divides out itself, float64 arrays; None: the file has none.
    """

    layers: dict
    path: Path
    averaged: int = 0
    ignored: int = 0
    normalization: tuple | None = None


def files_of(path):
    """The files that hold the weights at a path: one, or the index and data of a checkpoint.

    Args:
        path: `Path` of a file, of the folder or prefix of a TensorFlow 1 checkpoint, or of a folder
            with a `model.keras`, as a training leaves it.

    Raises:
        UserError: there are none, or it is not clear which.
    """
    if path.is_dir() and (path / "model.keras").is_file():  # A stage of ours.
        return (path / "model.keras",)
    if path.is_dir():
        indices = sorted(path.glob("*.index"))
        if len(indices) != 1:
            named = f": {', '.join(one.name for one in indices[:5])}" if indices else ""
            raise UserError(
                f"The folder {path} has {len(indices)} files *.index{named}; expected the one of a "
                "TensorFlow 1 checkpoint: give the path of a file."
            )
        return files_of(indices[0])
    if path.suffix != ".index" and not path.exists() and _with_suffix(path, ".index").exists():
        path = _with_suffix(path, ".index")
    if not path.exists():
        raise UserError(f"There are no weights at {path}: give the path of {KINDS}.")
    if not path.is_file() or path.suffix not in (".keras", ".index", *HDF5_SUFFIXES):
        raise UserError(f"{path} holds no weights that are understood: give the path of {KINDS}.")
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


def sha256(path):
    """SHA-256, in hex, of what the files at a path hold, wherever they are."""
    paths = files_of(path)
    digests = [f"{one.suffix} {files.sha256(one)}\n" for one in paths]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def read(path):
    """Reads `Weights`.

    Args:
        path: `Path`, see `files_of`.

    Raises:
        UserError: there are none, or they are damaged, or of no kind that is understood.
    """
    paths = files_of(path)
    try:
        if paths[0].suffix == ".index":
            data_bytes = sum(one.stat().st_size for one in paths[1:])
            most = min(data_bytes, MOST_BYTES)
            layers, *counts = tf1_checkpoint.read(paths[0].with_suffix(""), most)
        elif paths[0].suffix == ".keras":
            check_archive(paths[0])
            with zipfile.ZipFile(paths[0]) as archive:
                _check_bytes(archive.getinfo(ZIPPED).file_size)
                content = archive.read(ZIPPED)
            layers, *counts = _read_h5(io.BytesIO(content), len(content))
        else:
            layers, *counts = _read_h5(paths[0], paths[0].stat().st_size)
        normalization = _normalization(layers)
        layers = _as_ours(layers)
    except Exception as error:  # h5py and TensorFlow raise nearly anything on damaged files.
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise UserError(
            f"The weights {path} cannot be read ({reason}): give {KINDS}, whole and undamaged."
        ) from None
    return Weights(layers, path, *counts, normalization)


def check_archive(path):
    """ValueError where a `.keras` file would be unpacked beside its place, or to endless bytes."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    for entry in entries:
        place = PurePosixPath(entry.filename.replace("\\", "/"))
        if place.is_absolute() or ".." in place.parts:
            raise ValueError(f"its entry {entry.filename!r} leads out of it")
    unpacked, most = sum(entry.file_size for entry in entries), MOST_EXPANSION * path.stat().st_size
    if unpacked > most:
        raise ValueError(f"it unpacks to {unpacked:,} bytes, expected {most:,} at most")


def _read_h5(file, file_bytes):
    """(layers, averaged, ignored) of an HDF5 file of Keras 2 or 3; a path or an open file."""
    with h5py.File(file, "r") as opened:
        datasets = {}

        def visit(name, one):  # Hard links alone: nothing leads to other files.
            if isinstance(one, h5py.Dataset):
                datasets[name] = one

        opened.visititems(visit)
        ours = {name: one for name, one in datasets.items() if not _is_beside(name)}
        claimed = sum(math.prod(one.shape) * one.dtype.itemsize for one in ours.values())
        _check_bytes(claimed, MOST_EXPANSION * file_bytes)
        if any(one.is_virtual or one.external for one in ours.values()):
            raise ValueError("it refers to other files")
        layers = {}
        for name, dataset in ours.items():
            group, _, variable = name.removesuffix(":0").rpartition("/")
            keras_3 = group.rpartition("/")[2] == "vars"
            layer = _keras_3_layer(opened, group) if keras_3 else _keras_2_layer(group)
            variables = layers.setdefault(layer, {})
            if variable in variables:
                raise ValueError(f"two of its layers are called {layer!r}")
            variables[variable] = dataset[()]
        return layers, 0, len(datasets) - len(ours)


def _check_bytes(claimed, most=MOST_BYTES):
    """ValueError where there are more bytes of weights than a file can honestly have."""
    most = min(most, MOST_BYTES)
    if claimed > most:
        raise ValueError(f"it claims {claimed:,} bytes, expected {most:,} at most")


def _is_beside(name):
    """Whether a data set is none of the network's: an optimizer's, a metric's, a random seed."""
    parts = name.split("/")
    return parts[0] in NOT_THE_NETWORK or "seed_generator" in parts


def _keras_3_layer(opened, group):
    """Name of the layer whose variables are in `layers/conv2d/vars`, after those around it.

    Groups are called after the class of their layer; its name is beside the variables.
    """
    parts, names = group.split("/")[:-1], []
    for depth in range(1, len(parts) + 1):
        variables = opened.get("/".join([*parts[:depth], "vars"]))
        name = None if variables is None else variables.attrs.get("name")
        if isinstance(name, str):
            names.append(name)
        elif depth == len(parts):
            raise ValueError(
                "it does not name its layers, as files of early Keras 3 do not: load it as a model "
                "and save it with Keras 3.15 or later"
            )
    return "/".join(names)


def _keras_2_layer(group):
    """Name of the layer whose variables are in `model_weights/stem_conv/stem_conv`."""
    outer, _, inner = group.removeprefix("model_weights/").partition("/")
    return inner or outer


def _as_ours(layers):
    """Layers and variables as our networks call them; normalisation, which is inside, left out."""
    renamed = {}
    for layer, variables in layers.items():
        if re.fullmatch(NORMALIZATION, layer):
            continue
        layer = HEAD if layer == "predictions" and HEAD not in layers else layer
        renamed[layer] = {
            name.replace("depthwise_kernel", "kernel"): _float32(array, f"{layer}/{name}")
            for name, array in variables.items()
        }
    return renamed


def _float32(array, name):
    """A tensor as float32; ValueError where it holds anything but finite numbers."""
    array = np.asarray(array)
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise ValueError(f"{name} is {array.dtype}, expected floats")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32, copy=False)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has numbers that are not finite")
    return array


def _normalization(layers):
    """`Weights.normalization` of layers as a file has them."""
    for layer, variables in layers.items():
        if re.fullmatch(NORMALIZATION, layer):
            return tuple(
                np.ravel(variables[name if name in variables else place]).astype(np.float64)
                for place, name in (("0", "mean"), ("1", "variance"))
            )
    return None


def foreign_pixels(model, weights):
    """Words for the pixels that weights were trained on, where a network normalises others.

    Args:
        model: `keras.Model` of `build_model`.
        weights: `Weights`.

    Returns:
        string; "" where nothing tells of other pixels.
    """
    if weights.normalization is None:
        return ""
    rescale = model.get_layer("rescale")
    deviation = np.broadcast_to(1 / (255 * np.array(rescale.scale)), 3)
    ours = (-np.array(rescale.offset) * deviation, np.square(deviation))
    # The published weights hold deviations as variances, which a second layer makes up for:
    # https://github.com/tensorflow/tensorflow/issues/49930
    for known in (ours, (ours[0], deviation)):
        if all(
            one.shape == other.shape and np.allclose(one, other, atol=1e-3)
            for one, other in zip(known, weights.normalization, strict=True)
        ):
            return ""
    theirs, ours = (
        f"mean {_short(mean)} and variance {_short(variance)}"
        for mean, variance in (weights.normalization, ours)
    )
    return f"{theirs}; {model.name} normalises by {ours}"


def _short(values):
    return ", ".join(f"{one:.3f}" for one in values[:3])


def assign(model, weights):
    """Gives a network its weights, layer by layer, by their names.

    Weights for other classes, or without a classifier, leave the network's own one as it is.

    Args:
        model: `keras.Model` of `build_model`.
        weights: `Weights`.

    Returns:
        bool: whether the classifier was left as it is.

    Raises:
        UserError: anything else is missing, superfluous or of another shape; nothing was assigned.
    """
    there = variables_of(model)
    given = {layer: _by_name(one, there.get(layer, {})) for layer, one in weights.layers.items()}
    fresh_head = _is_for_other_classes(given.get(HEAD), there.get(HEAD))
    if fresh_head:
        given.pop(HEAD, None)
        del there[HEAD]
    wrong = [
        misfit
        for layer in [*there, *(layer for layer in given if layer not in there)]
        if (misfit := _misfit(layer, there.get(layer, {}), given.get(layer, {})))
    ]
    if wrong:
        more = f"; and {len(wrong) - MOST_NAMED} more layers" if len(wrong) > MOST_NAMED else ""
        raise UserError(
            f"The weights {weights.path} do not fit {model.name}: {'; '.join(wrong[:MOST_NAMED])}"
            f"{more}. Give weights of this network, or name the one that they are of in --models."
        )
    for layer, variables in there.items():
        for name, variable in variables.items():
            variable.assign(given[layer][name])
    return fresh_head


def variables_of(model):
    """Dict from the name of each layer to a dict from the names of its variables to these."""
    layers = {}
    for variable in model.weights:
        layer, _, name = variable.path.rpartition("/")
        if name in layers.setdefault(layer, {}):
            raise ValueError(f"Two variables of {model.name} are called {variable.path}.")
        layers[layer][name] = variable
    return layers


def _by_name(arrays, variables):
    """Arrays of a layer by the names of its variables, where a file tells their places alone."""
    names = list(variables)
    return {
        names[int(key)] if key.isdecimal() and int(key) < len(names) else key: array
        for key, array in arrays.items()
    }


def _is_for_other_classes(given, there):
    """Whether the classifier of some weights is missing, or whole but for other classes."""
    if given is None or there is None:
        return there is not None
    shapes, expected = (
        {name: tuple(one.shape) for name, one in variables.items()} for variables in (given, there)
    )
    features, num_classes = expected["kernel"]
    other_classes = shapes.get("bias", (num_classes,))[-1:]
    return other_classes != (num_classes,) and shapes == {
        "kernel": (features, *other_classes),
        "bias": other_classes,
    }


def _misfit(layer, variables, arrays):
    """Words for what keeps a layer from its weights, or ""."""
    if not arrays:
        return f"{layer} is missing"
    if not variables:
        return f"{layer} is not in the network"
    missing = [f"{name} is missing" for name in variables.keys() - arrays.keys()]
    superfluous = [f"{name} is not in the network" for name in arrays.keys() - variables.keys()]
    misshapen = [
        f"{name} is {arrays[name].shape} and not {tuple(variable.shape)}"
        for name, variable in variables.items()
        if name in arrays and arrays[name].shape != tuple(variable.shape)
    ]
    wrong = ", ".join([*sorted(missing), *sorted(superfluous), *misshapen])
    return f"{layer}: {wrong}" if wrong else ""
