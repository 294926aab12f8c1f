"""Reads models of every form that evaluation accepts, before they are known to be classifiers."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import keras

from nsk.errors import UserError
from nsk.models import families, model_files, named_weights, saved_models, weights
from nsk.models.keras_formats import HDF5_SUFFIXES

FORMS = (
    "a .keras file or the folder of one, a SavedModel folder, an .h5 file with a whole model, or "
    "the name of a network with --weights=FILE"
)


@dataclasses.dataclass(frozen=True)
class Source:
    """A model as its files hold it.

    Attributes:
        given: what the user gave, for messages.
        name: the model's name.
        model: a `keras.Model`, or a function of images, to logits or probabilities.
        input_shape: (None, height, width, channels); an unknown side is None.
        class_names: names of the classes; None: not known.
        sha256: SHA-256, in hex, of the content of the files.
        weights_format: "keras" (a whole model), "saved_model", "nsk", "keras.applications" or
            "tf1".
        decoding: how the images that it was trained on were decoded.
        temperature: of calibrated probabilities; None: not known.
    """

    given: str
    name: str
    model: keras.Model | Callable
    input_shape: tuple[int | None, ...]
    class_names: list[str] | None
    sha256: str
    weights_format: str
    decoding: model_files.KnownDecoding
    temperature: float | None = None

    @property
    def is_keras(self) -> bool:
        """Whether the model is a `keras.Model`."""
        return isinstance(self.model, keras.Model)


def read_path(given: str) -> Source:
    """Reads a model from a file or folder.

    Args:
        given: path of a `.keras` file, of a folder with a `model.keras`, of a SavedModel or of an
            HDF5 file with a whole model.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = Path(given)
    if path.is_dir() and (path / "model.keras").is_file():
        path = path / "model.keras"
    if path.is_dir() and saved_models.is_saved_model(path):
        return _read_saved_model(given, path)
    if path.suffix == ".keras" and path.is_file():
        return _read_keras(given, path, model_files.load_model(path))
    if path.suffix in HDF5_SUFFIXES and path.is_file():
        return _read_keras(given, path, model_files.load_hdf5_model(path))
    raise UserError(_why_not_readable(given, path))


def read_network(name: str, path: Path, image_size: int) -> Source:
    """Builds a network with the weights of a file, see `named_weights.load`.

    Raises:
        UserError: there is no such network, or the weights do not fit it.
    """
    try:
        families.check_name(name)
    except UserError as error:
        raise UserError(f"--model={name} --weights={path}: {_without_flag(error)}") from None
    network = named_weights.load(name, path, image_size)
    return Source(
        given=name,
        name=name,
        model=network.model,
        input_shape=network.model.input_shape,
        class_names=model_files.read_class_names(weights.weight_files(path)[0]),
        sha256=weights.sha256(path),
        weights_format=network.weights_format,
        decoding=model_files.read_decoding(weights.weight_files(path)[0]),
    )


def _read_saved_model(given, folder):
    saved = saved_models.load(folder)
    return Source(
        given=given,
        name=folder.resolve().parent.name if folder.name == "saved_model" else folder.name,
        model=saved.function,
        input_shape=saved.input_shape,
        class_names=saved.class_names or model_files.read_class_names(folder),
        sha256=saved_models.sha256(folder),
        weights_format="saved_model",
        decoding=model_files.read_decoding(folder),
        temperature=model_files.read_temperature(folder),
    )


def _read_keras(given, path, model):
    is_application = model.layers[-1].name == "predictions"
    return Source(
        given=given,
        name=model.name,
        model=model,
        input_shape=model.input_shape,
        class_names=model_files.read_class_names(path),
        sha256=weights.sha256(path),
        weights_format="keras.applications" if is_application else "keras",
        decoding=model_files.read_decoding(path),
        temperature=model_files.read_temperature(path),
    )


def _why_not_readable(given, path):
    """Message for a path that is none of the forms."""
    exports = list(path.glob("export-*/model.keras"))
    if exports:
        newest = max(exports, key=lambda file: file.stat().st_mtime).parent
        return f"The folder {given} is that of a run, not a model: give its export, {newest}."
    if path.is_dir():
        return (
            f"The folder {given} holds neither model.keras nor saved_model.pb: give {FORMS}; of a "
            f"checkpoint, name the network: --model=NAME --weights={given}."
        )
    if path.exists():
        return f"The file {given} is in no format that can be loaded: give {FORMS}."
    try:
        families.check_name(given)
    except UserError as error:
        return f"--model={given}: no such file or folder, and {_without_flag(error)}"
    return f"--model={given} is the name of a network: give its weights, too: --weights=FILE."


def _without_flag(error):
    """The message of `families.check_name` without its flag."""
    return str(error).removeprefix("--models: ")
