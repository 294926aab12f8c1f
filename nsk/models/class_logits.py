"""Logits from models that return logits or the probabilities of a softmax.

Whether a model returns probabilities is decided by what it returns, not by how it is built: outputs
for three very different images that are all non-negative and sum to 1 per image are probabilities.
A Keras model's last softmax is then removed, so that its logits are exact. Where this is not
possible, as in a SavedModel, the logarithms of the probabilities are the logits: they have the same
softmax, and differ by a constant per image.
"""

from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from nsk.errors import UserError

# bfloat16 outputs of 1,000 classes sum to 1 within this.
SUM_TOLERANCE = 0.02
# The smallest normal float32; smaller probabilities have this one's logarithm, and no gradient.
MIN_PROBABILITY = float(np.finfo(np.float32).tiny)


def probe_images(image_size: int) -> tf.Tensor:
    """A black image, a white one and a ramp: float32 (3, size, size, 3) in [0, 255]."""
    ramp = np.linspace(0, 255, image_size * image_size * 3).reshape(image_size, image_size, 3)
    return tf.constant(np.stack([ramp * 0, ramp * 0 + 255, ramp]), tf.float32)


def are_probabilities(outputs: np.ndarray) -> bool:
    """Whether outputs (n, classes) are non-negative and sum to 1 in each row."""
    sums = np.asarray(outputs, np.float64).sum(axis=1)
    return bool((outputs >= 0).all() and (np.abs(sums - 1) < SUM_TOLERANCE).all())


def log_probabilities(probabilities: tf.Tensor) -> tf.Tensor:
    """Natural logarithms of float32 probabilities of any shape: finite, also of zeros."""
    return tf.math.log(tf.maximum(probabilities, MIN_PROBABILITY))


def without_softmax(model: keras.Model, images: tf.Tensor) -> keras.Model | None:
    """Removes the softmax at the end of a Keras model.

    Args:
        model: returns probabilities; it may be changed in place.
        images: (n, size, size, 3), for which the result is checked.

    Returns:
        A model that returns the logits; None: there is no softmax layer at its end, and the model
        is unchanged.
    """
    last = last_layer(model)
    if isinstance(last, keras.layers.Softmax):
        # The order of a subclass's layers says nothing; it has no inputs either.
        is_end = last is model.layers[-1] and getattr(model, "inputs", None)
        return keras.Model(model.inputs, last.input, name=model.name) if is_end else None
    if getattr(last, "activation", None) is not keras.activations.softmax:
        return None
    expected = model(images, training=False)
    last.activation = keras.activations.linear
    if _have_softmax(model(images, training=False), expected):
        return model
    last.activation = keras.activations.softmax
    return None


def check_not_sigmoid(model: keras.Model, source: str) -> None:
    """Raises a UserError if a Keras model ends with a sigmoid: its classes do not exclude others.

    Args:
        model: any Keras model.
        source: names the model in the message.
    """
    if getattr(last_layer(model), "activation", None) is keras.activations.sigmoid:
        raise UserError(
            f"The model {source} ends with a sigmoid, so that an image may have several classes: "
            "expected a classifier with logits or a softmax."
        )


def last_layer(model: keras.Model) -> keras.layers.Layer:
    """The last layer of a model, or of the model that is its last layer."""
    last = model.layers[-1]
    return last_layer(last) if isinstance(last, keras.Model) and last.layers else last


def _have_softmax(logits, expected):
    """Whether the softmax of logits is `expected`."""
    probabilities = tf.nn.softmax(tf.cast(logits, tf.float32)).numpy()
    expected = tf.cast(expected, tf.float32).numpy()
    return probabilities.shape == expected.shape and np.allclose(
        probabilities, expected, atol=SUM_TOLERANCE / 2
    )


def all_layers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """Layers of a model and of the models within it."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from all_layers(layer)
        else:
            yield layer
