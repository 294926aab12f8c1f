"""Loads image classifiers of any origin for evaluation: files, SavedModels, published weights."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import keras
import tensorflow as tf

from nsk.errors import UserError
from nsk.models import class_logits, model_sources
from nsk.models.model_files import KnownDecoding
from nsk.models.pixel_scales import PIXEL_SCALES
from nsk.models.saved_models import on_one_replica


@dataclasses.dataclass(frozen=True)
class ImageModel:
    """A function with the attributes of a `keras.Model` that evaluation uses.

    Attributes:
        name: for messages.
        input_shape: (None, size, size, 3).
        output_shape: (None, classes).
        function: from float32 pixels in [0, 255] of that shape to float32 logits (n, classes).
    """

    name: str
    input_shape: tuple[int | None, ...]
    output_shape: tuple[int | None, ...]
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
        model: from float32 pixels in [0, 255], shape (n, image_size, image_size, 3), to float32
            logits (n, num_classes), called as `model(images, training=False)`; differentiable.
        image_size: side of the square images in pixels.
        num_classes: number of classes.
        class_names: names in the order of the logits; None: not known.
        sha256: SHA-256, in hex, of the content of the model's files.
        weights_format: "keras" (a whole model), "saved_model", "nsk", "keras.applications" or
            "tf1": with the model's name it decides the crop, see
            `nsk.data.evaluation_decoding.default_crop`.
        decoding: how the images that it was trained on were decoded, as far as it is known.
        temperature: of calibrated probabilities; None: not known.
    """

    model: keras.Model | ImageModel
    image_size: int
    num_classes: int
    class_names: list[str] | None
    sha256: str
    weights_format: str
    decoding: KnownDecoding
    temperature: float | None = None

    @property
    def name(self) -> str:
        """The model's name."""
        return self.model.name


def load_classifier(
    model: str,
    weights: str = "",
    *,
    image_size: int = 0,
    pixels: str = "",
) -> Classifier:
    """Loads a classifier; within a `tf.distribute.Strategy`'s scope for several replicas.

    Args:
        model: path of a `.keras` file, of a stage's or export's folder, of a SavedModel (a program:
            load only those that you trust) or of an HDF5 file with a whole Keras model; or the name
            of a network if there are `weights`.
        weights: path of the weights of the named network, those of its classifier included, see
            `nsk.models.weights.weight_files`; "": `model` is a path.
        image_size: side of the images in pixels; 0: the model's own. Others are for networks by
            name and for models of any size only.
        pixels: scale of the pixels that a model expects, a key of `PIXEL_SCALES`; "": [0, 255].
            Not for networks by name.

    Raises:
        UserError: the model cannot be loaded, is no classifier of square RGB images, or has another
            image size than expected.
    """
    _check_pixels(pixels, model, weights)
    if weights:
        source = model_sources.read_network(model, Path(weights), image_size)
    else:
        source = model_sources.read_path(model)
    size = _image_size(source, image_size)
    if not pixels and not weights:
        _check_scale_is_known(source)
    callable_model, num_classes = _to_logits(source, size, pixels or "255")
    names = source.class_names
    if names and len(names) != num_classes:
        raise UserError(
            f"The model {model} has {num_classes} classes, but {len(names)} names of classes are "
            "beside it: correct class_names.txt there, one name per line, or remove it."
        )
    return Classifier(
        callable_model,
        size,
        num_classes,
        names,
        source.sha256,
        source.weights_format,
        source.decoding,
        source.temperature,
    )


def _check_pixels(pixels, model, weights):
    """UserError for a scale that is unknown or not a choice."""
    if pixels and pixels not in PIXEL_SCALES:
        raise UserError(f"--pixels={pixels}: expected one of {', '.join(PIXEL_SCALES)}.")
    if pixels and weights:
        raise UserError(
            f"--pixels={pixels} is for models from files: {model} scales pixels as its weights "
            "expect. Leave it out."
        )


def _image_size(source, image_size):
    """Side of the images in pixels."""
    height, width, channels = source.input_shape[1:]
    if channels != 3:
        raise UserError(
            f"The model {source.given} takes images of {channels} channels: expected one of RGB "
            "images, with 3."
        )
    if height != width:
        raise UserError(
            f"The model {source.given} takes images of {height} x {width} pixels: expected a model "
            "of square images."
        )
    if not (height or image_size):
        raise UserError(
            f"The model {source.given} takes images of any size: give --image_size=PIXELS."
        )
    if height and image_size not in (0, height):
        raise UserError(
            f"The model {source.given} takes images of {height} pixels, not "
            f"--image_size={image_size}: leave it out. Only networks by name, with --weights, and "
            "models of any size take others."
        )
    return height or image_size


def _check_scale_is_known(source):
    """UserError for a network of `keras.applications` that leaves the pixels' scale to its user."""
    if not source.is_keras or source.weights_format != "keras.applications":
        return
    scales = keras.layers.Rescaling | keras.layers.Normalization
    if not any(isinstance(layer, scales) for layer in class_logits.all_layers(source.model)):
        raise UserError(
            f"The model {source.given} is {source.name} of keras.applications, which does not "
            f"scale pixels itself: give --pixels={'|'.join(PIXEL_SCALES)}, as its preprocess_input "
            "does (caffe for ResNet and VGG, symmetric for ResNetV2, MobileNet and Inception, "
            "imagenet for DenseNet)."
        )


def _to_logits(source, size, pixels):
    """(model that returns logits, number of classes); decided by its outputs for a few images."""
    model, scale = source.model, PIXEL_SCALES[pixels]
    if source.is_keras:
        class_logits.check_not_sigmoid(model, source.given)
    images = scale(class_logits.probe_images(size))
    outputs = _try(source, size, images)
    takes_log = class_logits.are_probabilities(outputs.numpy())
    if takes_log and source.is_keras:
        stripped = class_logits.without_softmax(model, images)
        model, takes_log = stripped or model, stripped is None
    is_complete = outputs.dtype == tf.float32 and pixels == "255" and not takes_log
    if not (source.is_keras and is_complete and source.input_shape[1] == size):
        function = _compose(model, scale, takes_log)
        shapes = (None, size, size, 3), (None, outputs.shape[1])
        model = ImageModel(source.name, *shapes, function)
    return model, outputs.shape[1]


def _try(source, size, images):
    """Outputs of a model for images: floats (n, classes)."""
    try:
        outputs = on_one_replica(_call, source.model, images)
    except Exception as error:  # A model of any origin may raise anything.
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise UserError(
            f"The model {source.given} cannot classify images of {size} pixels ({reason}): give "
            "another --image_size or another model."
        ) from None
    if not tf.is_tensor(outputs):
        raise UserError(
            f"The model {source.given} returns {len(outputs)} outputs: expected one, logits or "
            "probabilities of all classes."
        )
    if outputs.shape.rank != 2 or outputs.shape[1] < 2 or not outputs.dtype.is_floating:
        raise UserError(
            f"The model {source.given} returns {outputs.dtype.name} {tuple(outputs.shape)} for "
            f"{len(images)} images: expected logits or probabilities of at least two classes."
        )
    return outputs


def _compose(model, scale, takes_log):
    """A function from pixels in [0, 255] to float32 logits."""

    def logits(images):
        outputs = tf.cast(_call(model, scale(tf.cast(images, tf.float32))), tf.float32)
        return class_logits.log_probabilities(outputs) if takes_log else outputs

    return logits


def _call(model, images):
    """Outputs of a Keras model or of a function."""
    return model(images, training=False) if isinstance(model, keras.Model) else model(images)
