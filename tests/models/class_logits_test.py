"""Logits of models that return probabilities."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from nsk.errors import UserError
from nsk.models import class_logits

IMAGES = class_logits.probe_images(6)


def classifier(*ends, seed=1):
    """A small network; `ends` are layers or the activation of its dense layer."""
    ends = [
        keras.layers.Dense(
            4, end, kernel_initializer=keras.initializers.RandomNormal(0, 0.01, seed)
        )
        if isinstance(end, str)
        else end
        for end in ends
    ]
    return keras.Sequential([keras.Input((6, 6, 3)), keras.layers.GlobalAveragePooling2D(), *ends])


def test_probe_images_are_black_white_and_a_ramp():
    assert IMAGES.shape == (3, 6, 6, 3) and IMAGES.dtype == tf.float32
    assert (IMAGES[0].numpy() == 0).all() and (IMAGES[1].numpy() == 255).all()
    assert len(np.unique(IMAGES[2])) == 108


def test_probabilities_are_recognised_by_their_values():
    logits = np.random.default_rng(0).normal(0, 3, (3, 1000))
    probabilities = tf.nn.softmax(logits).numpy()
    assert class_logits.are_probabilities(probabilities)
    rounded = tf.cast(probabilities, tf.bfloat16).numpy()
    assert class_logits.are_probabilities(rounded)
    for others in (logits, np.abs(logits), tf.nn.sigmoid(logits).numpy(), 0 * logits):
        assert not class_logits.are_probabilities(others)
    assert not class_logits.are_probabilities(logits - logits.mean(1, keepdims=True) + 1 / 1000)
    one_row_is_not = np.concatenate([probabilities, [[0.7] * 1000]])
    assert not class_logits.are_probabilities(one_row_is_not)


def test_log_probabilities_are_logits_of_the_same_softmax():
    logits = tf.random.stateless_normal([50, 7], [1, 2]) * 4
    received = class_logits.log_probabilities(tf.nn.softmax(logits))
    np.testing.assert_allclose(tf.nn.softmax(received), tf.nn.softmax(logits), atol=1e-6)
    zeros = tf.constant([[0.0, 1.0]])
    with tf.GradientTape() as tape:
        tape.watch(zeros)
        finite = class_logits.log_probabilities(zeros)
    assert np.isfinite(finite).all() and np.isfinite(tape.gradient(finite, zeros)).all()


@pytest.mark.parametrize("kind", ["dense", "activation", "softmax", "nested", "nested_softmax"])
def test_a_softmax_at_the_end_is_removed(kind):
    ends = {
        "dense": ("softmax",),
        "activation": ("linear", keras.layers.Activation("softmax")),
        "softmax": ("linear", keras.layers.Softmax()),
        "nested": ("softmax",),
        "nested_softmax": ("linear", keras.layers.Softmax()),
    }
    model = classifier(*ends[kind])
    expected = classifier("linear")(IMAGES).numpy()
    assert np.ptp(expected) > 0.5
    if kind.startswith("nested"):
        inputs = keras.Input((6, 6, 3))
        model = keras.Model(inputs, model(inputs))
    probabilities = model(IMAGES).numpy()
    stripped = class_logits.without_softmax(model, IMAGES)
    if kind == "nested_softmax":  # The layer cannot be taken out of the model within the model.
        assert stripped is None
        np.testing.assert_array_equal(model(IMAGES), probabilities)
    else:
        np.testing.assert_allclose(stripped(IMAGES), expected, atol=1e-5)


def test_a_softmax_over_another_axis_or_inside_is_kept():
    inputs = keras.Input((6, 6, 3))
    probabilities = classifier("softmax")(inputs)
    mean = keras.layers.Rescaling(1.0)(probabilities)
    for outputs in (mean, keras.layers.Reshape((4,))(probabilities)):
        assert class_logits.without_softmax(keras.Model(inputs, outputs), IMAGES) is None


@pytest.mark.parametrize("unused", [keras.layers.Activation("softmax"), keras.layers.Softmax()])
def test_a_softmax_that_is_not_the_last_operation_is_put_back(unused):
    class Twice(keras.Model):
        def __init__(self):
            super().__init__()
            self.body = classifier("linear", keras.layers.Softmax())
            self.unused = unused

        def call(self, inputs):
            return self.body(inputs)

    model = Twice()
    probabilities = model(IMAGES).numpy()
    assert class_logits.without_softmax(model, IMAGES) is None
    assert getattr(unused, "activation", keras.activations.softmax) is keras.activations.softmax
    np.testing.assert_array_equal(model(IMAGES), probabilities)


def test_a_sigmoid_at_the_end_is_refused():
    class_logits.check_not_sigmoid(classifier("softmax"), "m.keras")
    with pytest.raises(UserError, match=r"The model m\.keras ends with a sigmoid"):
        class_logits.check_not_sigmoid(classifier("sigmoid"), "m.keras")


def test_all_layers_include_those_of_models_within():
    inputs = keras.Input((6, 6, 3))
    model = keras.Model(inputs, classifier("linear")(keras.layers.Rescaling(1.0)(inputs)))
    kinds = [type(layer).__name__ for layer in class_logits.all_layers(model)]
    assert {"Rescaling", "GlobalAveragePooling2D", "Dense"} <= set(kinds)
