"""Weights in Keras' file formats: HDF5 files of Keras 2 and 3, and `.keras` archives.

Files are read as arrays only: nothing in them is unpickled, built or executed. They may come from
anywhere, so that reading them is limited in size and never follows a reference to another file.
"""

import io
import math
import zipfile
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import h5py
import numpy as np

HDF5_SUFFIXES = (".h5", ".hdf5")
ARCHIVED_WEIGHTS = "model.weights.h5"  # The entry of a .keras archive that holds the weights.
MAX_EXPANSION = 10  # Keras does not compress, and weights are hardly compressible.
MAX_BYTES = 2**34  # EfficientNet-L2 with an optimizer's two slots has 6 GiB.
# First parts of the names of data sets that do not belong to the network.
OPTIMIZER_GROUPS = ("optimizer", "optimizer_weights")

Layers = dict[str, dict[str, np.ndarray]]


def read_archive(path: Path) -> tuple[Layers, int]:
    """Reads the weights of a `.keras` archive; see `read_hdf5`.

    Raises:
        ValueError: it is not a safe archive, or too large.
        zipfile.BadZipFile: it is damaged or not an archive.
    """
    check_archive(path)
    with zipfile.ZipFile(path) as archive:
        check_size(archive.getinfo(ARCHIVED_WEIGHTS).file_size)
        content = archive.read(ARCHIVED_WEIGHTS)
    return read_hdf5(io.BytesIO(content), len(content))


def check_archive(path: Path) -> None:
    """Raises a ValueError if a `.keras` file would unpack outside its folder or is a zip bomb."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    for entry in entries:
        entry_path = PurePosixPath(entry.filename.replace("\\", "/"))
        if entry_path.is_absolute() or ".." in entry_path.parts:
            raise ValueError(f"its entry {entry.filename!r} points outside the archive")
    unpacked = sum(entry.file_size for entry in entries)
    limit = MAX_EXPANSION * path.stat().st_size
    if unpacked > limit:
        raise ValueError(f"it unpacks to {unpacked:,} bytes, expected {limit:,} at most")


def read_hdf5(file: Path | BinaryIO, file_bytes: int) -> tuple[Layers, int]:
    """Reads the weights of an HDF5 file, as Keras 2 or 3 writes it.

    Args:
        file: path or open file.
        file_bytes: size of the file; tensors that claim much more are not read.

    Returns:
        (layers, ignored): a dict from the name of each layer to its arrays, by the name of the
        variable (Keras 2) or by its position in the layer (Keras 3); the number of tensors that do
        not belong to the network, such as an optimizer's.

    Raises:
        ValueError: layers have no names or the same name, data is in other files, or the tensors
            are too large.
        OSError: the file is damaged.
    """
    with h5py.File(file, "r") as opened:
        datasets = {}

        def visit(name, item):  # Hard links only: external links are not visited.
            if isinstance(item, h5py.Dataset):
                datasets[name] = item

        opened.visititems(visit)
        ours = {name: data for name, data in datasets.items() if _belongs_to_network(name)}
        size = sum(math.prod(data.shape) * data.dtype.itemsize for data in ours.values())
        check_size(size, MAX_EXPANSION * file_bytes)
        if any(data.is_virtual or data.external for data in ours.values()):
            raise ValueError("it refers to other files")
        layers = {}
        for name, data in ours.items():
            group, _, variable = name.removesuffix(":0").rpartition("/")
            is_keras_3 = group.rpartition("/")[2] == "vars"
            layer = _keras_3_layer(opened, group) if is_keras_3 else _keras_2_layer(group)
            variables = layers.setdefault(layer, {})
            if variable in variables:
                raise ValueError(f"two of its layers have the name {layer!r}")
            variables[variable] = data[()]
        return layers, len(datasets) - len(ours)


def check_size(size: int, limit: int = MAX_BYTES) -> None:
    """Raises a ValueError if tensors claim more bytes than `limit`, or than any known network."""
    limit = min(limit, MAX_BYTES)
    if size > limit:
        raise ValueError(f"it claims {size:,} bytes, expected {limit:,} at most")


def _belongs_to_network(name):
    """Whether a data set is not an optimizer's, a metric's or a random seed."""
    parts = name.split("/")
    return parts[0] not in OPTIMIZER_GROUPS and "seed_generator" not in parts


def _keras_3_layer(opened, group):
    """Name of the layer with the variables in a group such as `layers/conv2d/vars`.

    Groups are named after the classes of the layers; the layers' own names are attributes of the
    groups. Names of the layers around it come first, separated by a slash.
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
    """Name of the layer with the variables in a group such as `model_weights/conv/conv`."""
    outer, _, inner = group.removeprefix("model_weights/").partition("/")
    return inner or outer
