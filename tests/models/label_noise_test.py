"""Networks that label with noise: the rates inside them, and BatchNorm's averages."""

import keras
import numpy as np
import pytest

from nsk import models, noise
from nsk.errors import UserError
from nsk.models import ensemble
from nsk.models.label_noise import prepare_for_noise

SHAPE = {"num_classes": 3, "image_size": 8}


def images(count):
    return np.random.default_rng(0).uniform(0, 255, (count, 8, 8, 3)).astype(np.float32)


def randomize_averages(model):
    random = np.random.default_rng(1)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_mean.assign(random.normal(0, 0.1, layer.moving_mean.shape))


def test_without_rates_it_predicts_as_in_inference_and_keeps_its_averages():
    model = models.build_model("resnet8", **SHAPE)
    randomize_averages(model)
    expected, before = model(images(4), training=False), model.get_weights()
    assert np.abs(model(images(4), training=True) - expected).max() > 1e-3
    model = models.build_model("resnet8", **SHAPE)
    model.set_weights(before)
    prepare_for_noise(model)
    np.testing.assert_allclose(model(images(4), training=True), expected, atol=1e-5)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_it_gets_the_rates_of_another_network_of_the_same_kind():
    model = models.build_model("resnet8", **SHAPE)
    network = {"name": "resnet8", **SHAPE, "dropout_rate": 0.4, "survival_probability": 0.7}
    prepare_for_noise(model, network)
    assert model.get_layer("dropout").rate == 0.4
    depths = [layer.survival_probability for layer in model.layers if layer.name.endswith("_depth")]
    np.testing.assert_allclose(depths, [1.0, 0.9, 0.8])
    with noise.scope(noise.example_keys(noise.key(0), np.arange(4))):
        noisy = model(images(4), training=True)
    assert np.abs(noisy - model(images(4), training=False)).max() > 1e-3


def test_layers_with_noise_of_their_own_are_refused():
    inputs = keras.Input([8, 8, 3])
    features = keras.layers.Dropout(0.5, name="its_dropout")(keras.layers.Flatten()(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3)(features))
    with pytest.raises(UserError, match=r"--label_with_noise: .* layer its_dropout cannot be"):
        prepare_for_noise(model)


def test_every_member_of_an_ensemble_has_noise_of_its_own():
    """Members with the same weights predict differently, and their BatchNorm does not learn."""
    members = [models.build_model("resnet8", **SHAPE, seed=1) for _ in range(2)]
    single = members[0](images(6), training=False)
    model = ensemble.average(members)
    network = {"name": "resnet8", **SHAPE, "dropout_rate": 0.5, "survival_probability": 0.5}
    prepare_for_noise(model, network)
    before = model.get_weights()
    logits = keras.Model(model.inputs[0], model.get_layer("log_mean_probability").input)
    with noise.scope(noise.example_keys(noise.key(0), np.arange(6))):
        first, second = logits(images(6), training=True)
    assert np.abs(first - second).max() > 1e-3 and np.abs(first - single).max() > 1e-3
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
