"""Scales of pixels, against `keras.applications`."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from nsk.models.pixel_scales import PIXEL_SCALES

PIXELS = np.random.default_rng(0).uniform(0, 255, (2, 5, 5, 3)).astype("float32")


@pytest.mark.parametrize(
    ("scale", "mode"), [("symmetric", "tf"), ("imagenet", "torch"), ("caffe", "caffe")]
)
def test_scales_are_those_of_keras(scale, mode):
    expected = keras.applications.imagenet_utils.preprocess_input(PIXELS.copy(), mode=mode)
    received = PIXEL_SCALES[scale](tf.constant(PIXELS))
    assert received.dtype == tf.float32
    np.testing.assert_allclose(received, expected, atol=1e-4)


def test_plain_scales():
    np.testing.assert_array_equal(PIXEL_SCALES["255"](PIXELS), PIXELS)
    np.testing.assert_allclose(PIXEL_SCALES["unit"](PIXELS) * 255, PIXELS, rtol=1e-6)
