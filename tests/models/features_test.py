"""The features of classifiers."""

import keras
import numpy as np
import pytest

from nsk import models
from nsk.models.features import with_features

IMAGES = np.random.default_rng(0).uniform(0, 255, (3, 16, 16, 3)).astype(np.float32)


@pytest.mark.parametrize("name", ["convnet5", "resnet9", "resnet20"])
def test_the_logits_are_a_linear_function_of_the_features(name):
    model = models.build_model(name, num_classes=4, image_size=16)
    logits, features = with_features(model)(IMAGES, training=False)
    np.testing.assert_array_equal(logits, model(IMAGES, training=False))
    kernel, bias = model.get_layer("logits").get_weights()
    np.testing.assert_allclose(features.numpy() @ kernel + bias, logits, rtol=1e-4, atol=1e-5)


def test_layers_without_weights_behind_the_classifier_are_skipped():
    inputs = keras.Input([16, 16, 3])
    pooled = keras.layers.GlobalAveragePooling2D()(inputs)
    logits = keras.layers.Activation("linear")(keras.layers.Dense(4)(pooled))
    _, features = with_features(keras.Model(inputs, logits))(IMAGES)
    np.testing.assert_allclose(features, IMAGES.mean(axis=(1, 2)), rtol=1e-5)


def test_features_of_other_models_are_unknown():
    inputs = keras.Input([16, 16, 3])
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 1)(inputs))
    assert with_features(keras.Model(inputs, pooled)) is None

    class Subclassed(keras.Model):
        pass

    assert with_features(Subclassed()) is None
    nested = keras.Sequential([keras.Input([16, 16, 3]), keras.Model(inputs, pooled)])
    assert with_features(nested) is None
