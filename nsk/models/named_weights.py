"""Networks of this project, by name, with all weights from a file of any supported format."""

import dataclasses
import json
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np

from nsk.errors import UserError
from nsk.models import efficientnet, families, weights
from nsk.models.keras_formats import HDF5_SUFFIXES
from nsk.models.weight_assignment import assign, describe_pixel_mismatch

# Side in pixels of the images for which results of a network are published.
PUBLISHED_SIZES = {
    f"efficientnet_{variant}": settings.test_size
    for variant, settings in efficientnet.VARIANTS.items()
}


@dataclasses.dataclass(frozen=True)
class NamedNetwork:
    """A network with weights from a file.

    Attributes:
        model: from float32 pixels in [0, 255], shape (n, size, size, 3), to logits (n, classes).
        weights_format: "tf1" for a TensorFlow 1 checkpoint, "keras.applications" for the weights of
            an EfficientNet of Keras, "nsk" for others.
    """

    model: keras.Model
    weights_format: str


def load(name: str, path: Path, image_size: int = 0) -> NamedNetwork:
    """Builds a network and assigns all of its weights, those of the classifier included.

    The file decides the number of classes. Pixels are normalised as the weights expect: if a file
    of `keras.applications` holds another mean or variance than the network has, the file's are
    used.

    Args:
        name: name of a network, see `build_model`.
        path: weights, see `weights.weight_files`.
        image_size: side of the images in pixels; 0: that of the model in the file if it holds a
            whole model, else the network's in `PUBLISHED_SIZES`.

    Raises:
        UserError: the file cannot be read, does not fit the network or has no classifier, or the
            image size is not known.
    """
    read = weights.read(path)
    file = weights.weight_files(path)[0]
    size = image_size or _stored_image_size(file) or PUBLISHED_SIZES.get(name)
    if not size:
        raise UserError(
            f"The image size of {name} is not known from {path}: give --image_size=PIXELS."
        )
    num_classes = _num_classes(read)
    model = families.build_model(name, num_classes=num_classes, image_size=size)
    if assign(model, read):
        raise UserError(_without_classifier(path))
    if describe_pixel_mismatch(model, read):
        mean, variance = read.normalization
        rescale = model.get_layer("rescale")
        rescale.scale = (1 / (255 * np.sqrt(variance))).tolist()
        rescale.offset = (-mean / np.sqrt(variance)).tolist()
    return NamedNetwork(model, _format(file, read))


def _num_classes(read):
    """Number of classes of the classifier in weights."""
    arrays = read.layers.get(weights.CLASSIFIER, {})
    kernel = arrays.get("kernel", arrays.get("0"))
    if kernel is None or kernel.ndim != 2:
        raise UserError(_without_classifier(read.path))
    return kernel.shape[1]


def _without_classifier(path):
    return (
        f"The weights {path} have no classifier (layer {weights.CLASSIFIER} or predictions): "
        "evaluation needs those of a network with its top; for others, train one with "
        f"--init_from={path} first."
    )


def _format(file, read):
    if file.suffix == ".index":
        return "tf1"
    return "nsk" if read.normalization is None else "keras.applications"


def _stored_image_size(file):
    """Side of the images of the whole model in a file; None: not known."""
    try:
        if file.suffix == ".keras":
            with zipfile.ZipFile(file) as archive:
                config = json.loads(archive.read("config.json"))
        elif file.suffix in HDF5_SUFFIXES:
            with h5py.File(file, "r") as opened:
                config = json.loads(opened.attrs["model_config"])
        else:
            return None
        layer = config["config"]["layers"][0]["config"]
        shape = layer.get("batch_shape") or layer["batch_input_shape"]
        return int(shape[1]) if shape[1] == shape[2] else None
    except (KeyError, TypeError, ValueError, IndexError, AttributeError):
        return None  # A file of weights alone, or a model of another kind.
