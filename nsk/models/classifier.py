"""Loads image classifiers of any origin for evaluation: files, SavedModels, published weights."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from nsk.errors import UserError
from nsk.models import class_logits, families, model_files, named_weights, saved_models, weights
from nsk.models.keras_formats import HDF5_SUFFIXES
from nsk.models.pixel_scales import PIXEL_SCALES

FORMS = (
    "a .keras file or the folder of one, a SavedModel folder, a whole-model .h5 file, or the name "
    "of a network with --weights=FILE"
)


@dataclasses.dataclass(frozen=True)
class ImageModel:
    """A function with the attributes of a `keras.Model` that evaluation uses.

    Attributes:
        name: for messages.
        input_shape: (None, size, size, 3).
        function: from float32 pixels in [0, 255] of that shape to float32 logits (n, classes).
    """

    name: str
    input_shape: tuple[int | None, ...]
    function: Callable[[tf.Tensor], tf.Tensor]

    def __call__(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Logits of images, always without noise; ValueError if `training` is true."""
        if training:
            raise ValueError(f"The model {self.name} was loaded for evaluation, not for training.")
        return self.function(images)


@dataclasses.dataclass(frozen=True)
class Classifier:
    """An image classifier, whatever file it is from.

    Attributes:
        model: from float32 pixels in [0, 255], shape (n, image_size, image_size, 3), to
            float logits (n, num_classes), called as `model(images, training=False)`;
            differentiable.
        image_size: side of the square images in pixels.
        num_classes: number of classes.
        class_names: names in the order of the logits; None: not known.
        sha256: SHA-256, in hex, of the content of the model's files.
        weights_format: "keras" (a whole model), "saved_model", "nsk", "keras.applications" or
            "tf1": with the model's name it decides the crop, see `evaluation_decoding`.
    """

    model: keras.Model | ImageModel
    image_size: int
    num_classes: int
    class_names: list[str] | None
    sha256: str
    weights_format: str

    @property
    def name(self) -> str:
        """The model's name."""
        return self.model.name


@dataclasses.dataclass(frozen=True)
class _Loaded:
    """What a file holds, before it is known to be a classifier.

    `function` maps images of `input_shape` to logits or probabilities; a `keras.Model` is one.
    `file` is the path beside which the names of the classes may stand.
    """

    name: str
    function: Callable
    input_shape: tuple[int | None, ...]
    file: Path
    sha256: str
    weights_format: str
    class_names: list[str] | None = None


def load_classifier(
    model: str,
    weights_path: str = "",
    *,
    image_size: int = 0,
    class_count: int | None = None,
    pixels: str = "",
) -> Classifier:
    """Loads a classifier; within a `tf.distribute.Strategy`'s scope for several replicas.

    Args:
        model: path of a `.keras` file, of a stage's or export's folder, of a SavedModel (a program:
            load only those that you trust) or of a `.h5` file with a whole Keras model; or the name
            of a network if there are `weights_path`.
        weights_path: weights of the named network, the classifier's included, see
            `weights.weight_files`; "": `model` is a path.
        image_size: side of the images in pixels; 0: the model's own. Others are for networks by
            name and for models of any size only.
        class_count: expected number of classes; None: any.
        pixels: scale of the pixels that a model expects, a key of `PIXEL_SCALES`; "": [0, 255], as
            networks of this project do. Not for networks by name.

    Returns:
        `Classifier`.

    Raises:
        UserError: the model cannot be loaded, is no classifier of square RGB images, or has another
            image size or number of classes than expected.
    """
    if pixels and pixels not in PIXEL_SCALES:
        raise UserError(f"--pixels={pixels}: expected one of {', '.join(PIXEL_SCALES)}.")
    if weights_path:
        loaded = _load_network(model, Path(weights_path), image_size, pixels)
    else:
        loaded = _load_path(model)
    size = _image_size(loaded, model, image_size)
    if not pixels:
        _check_scale_is_known(loaded, model)
    callable_model, num_classes = _as_logits(loaded, model, size, pixels or "255")
    if class_count not in (None, num_classes):
        raise UserError(
            f"The model {model} has {num_classes} classes: expected {class_count}, as the images' "
            "labels have. Give a model of these classes."
        )
    names = model_files.read_class_names(loaded.file) or loaded.class_names
    if names and len(names) != num_classes:
        raise UserError(
            f"The model {model} has {num_classes} classes, but {len(names)} names of classes "
            f"beside it in {loaded.file.parent}: give the class_names.txt of this model."
        )
    return Classifier(
        callable_model, size, num_classes, names, loaded.sha256, loaded.weights_format
    )


def _load_network(name, path, image_size, pixels):
    """A network by its name, with weights from a file."""
    if pixels:
        raise UserError(
            f"--pixels={pixels} is for models from files: {name} normalises pixels as its weights "
            "expect. Leave it out."
        )
    try:
        families.check_name(name)
    except UserError as error:
        reason = str(error).removeprefix("--models: ")
        raise UserError(f"--model={name} with --weights={path}: {reason}") from None
    network = named_weights.load(name, path, image_size)
    file = weights.weight_files(path)[0]
    return _Loaded(
        name,
        network.model,
        network.model.input_shape,
        file,
        weights.sha256(path),
        network.weights_format,
    )


def _load_path(model):
    """A model of any form from a file or folder."""
    path = Path(model)
    if path.is_dir() and (path / "model.keras").is_file():
        path = path / "model.keras"
    if path.is_dir() and saved_models.is_saved_model(path):
        saved = saved_models.load(path)
        name = path.parent.name if path.name == "saved_model" else path.name
        digest = saved_models.sha256(path)
        return _Loaded(
            name, saved.function, saved.input_shape, path, digest, "saved_model", saved.class_names
        )
    if path.suffix == ".keras" and path.is_file():
        return _load_keras(model_files.load_model(path), path)
    if path.suffix in HDF5_SUFFIXES and path.is_file():
        return _load_keras(model_files.load_hdf5_model(path), path)
    raise UserError(_why_not_loadable(model, path))


def _load_keras(model, path):
    """A whole Keras model."""
    is_application = model.layers[-1].name == "predictions"
    weights_format = "keras.applications" if is_application else "keras"
    digest = weights.sha256(path)
    return _Loaded(model.name, model, model.input_shape, path, digest, weights_format)


def _why_not_loadable(model, path):
    """Message for a path that is none of the forms."""
    if path.is_dir():
        return (
            f"The folder {model} holds neither model.keras nor saved_model.pb: give {FORMS}; of a "
            "checkpoint, name the network: --model=NAME --weights=FOLDER."
        )
    if path.exists():
        return f"The file {model} is not a model that can be loaded: give {FORMS}."
    try:
        families.check_name(model)
    except UserError as error:
        reason = str(error).removeprefix("--models: ")
        return f"--model={model}: no such file or folder, and {reason}"
    return f"--model={model} is the name of a network: give its weights, too: --weights=FILE."


def _image_size(loaded, model, image_size):
    """Side of the images in pixels."""
    height, width, channels = loaded.input_shape[1:]
    if channels != 3:
        raise UserError(f"The model {model} takes images of {channels} channels: expected 3.")
    if height != width:
        raise UserError(
            f"The model {model} takes images of {height} x {width} pixels: expected a square."
        )
    if height is None and not image_size:
        raise UserError(f"The model {model} takes images of any size: give --image_size=PIXELS.")
    if image_size and height not in (None, image_size):
        raise UserError(
            f"The model {model} takes images of {height} pixels, not --image_size={image_size}: "
            "leave it out. (Networks by name, with --weights, take any size.)"
        )
    return height or image_size


def _check_scale_is_known(loaded, model):
    """UserError for a network of `keras.applications` that leaves the pixels' scale to its user."""
    if loaded.weights_format != "keras.applications" or not isinstance(
        loaded.function, keras.Model
    ):
        return
    known = keras.layers.Rescaling | keras.layers.Normalization
    if not any(isinstance(layer, known) for layer in _layers(loaded.function)):
        raise UserError(
            f"The model {model} is the network {loaded.name} of keras.applications, which does not "
            "normalise pixels: give --pixels="
            f"{'|'.join(PIXEL_SCALES)}, as its preprocess_input does (caffe for ResNet and VGG, "
            "symmetric for ResNetV2, MobileNet and Inception, imagenet for DenseNet)."
        )


def _layers(model):
    """All layers of a model, those of models within it included."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _layers(layer)
        else:
            yield layer


def _as_logits(loaded, model, size, pixels):
    """(model that returns logits, number of classes); tried with three images."""
    is_keras = isinstance(loaded.function, keras.Model)
    function = loaded.function
    if is_keras:
        class_logits.check_not_sigmoid(function, model)
    images = PIXEL_SCALES[pixels](class_logits.probe_images(size))
    outputs = _try(loaded, model, size, images)
    log = class_logits.are_probabilities(outputs)
    if log and is_keras:
        stripped = class_logits.without_softmax(function, images)
        function, log = stripped or function, stripped is None
    unchanged = is_keras and not log and pixels == "255" and loaded.input_shape[1] == size
    if not unchanged:
        function = _compose(function, PIXEL_SCALES[pixels], is_keras, log)
        function = ImageModel(loaded.name, (None, size, size, 3), function)
    return function, outputs.shape[1]


def _compose(function, scale, is_keras, log):
    """A function from pixels in [0, 255] to logits."""

    def call(images):
        images = scale(tf.cast(images, tf.float32))
        outputs = function(images, training=False) if is_keras else function(images)
        outputs = tf.cast(outputs, tf.float32)
        return class_logits.log_probabilities(outputs) if log else outputs

    return call


def _try(loaded, model, size, images):
    """Outputs of a model for images: float array (n, classes)."""
    arguments = {"training": False} if isinstance(loaded.function, keras.Model) else {}
    try:
        outputs = tf.cast(loaded.function(images, **arguments), tf.float32).numpy()
    except Exception as error:  # A model of any origin may raise anything.
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise UserError(
            f"The model {model} cannot classify images of {size} pixels ({reason}): give another "
            "--image_size or another model."
        ) from None
    if np.ndim(outputs) != 2 or outputs.shape[1] < 2:
        raise UserError(
            f"The model {model} returns {np.shape(outputs)} for {len(images)} images: expected "
            "logits or probabilities of at least two classes."
        )
    return outputs
