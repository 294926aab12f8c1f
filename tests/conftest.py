"""Two logical CPU devices, so that replicas can be tested; fixtures of several packages."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import pytest
import tensorflow as tf

from nsk import stopping

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


class HugeLayer(keras.layers.Layer):
    """The identity, by way of a tensor of 128 TiB for each image."""

    def call(self, inputs):
        size = 2**45 * tf.cast(tf.shape(inputs)[:1], tf.int64)
        return inputs + tf.reduce_max(tf.random.stateless_uniform(size, [1, 2]))

    def compute_output_shape(self, input_shape):
        return input_shape


@pytest.fixture
def huge_layer():
    """A layer for which no memory is large enough."""
    return HugeLayer()


@pytest.fixture(autouse=True)
def no_earlier_interrupt(monkeypatch):
    """An interrupt that one test has caught would stop the training of the next one."""
    monkeypatch.setattr(stopping, "_interrupted", False)
