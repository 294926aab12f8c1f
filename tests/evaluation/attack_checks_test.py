"""Networks that resist attacks for the wrong reasons, and one that does not."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from nsk.evaluation import attack_checks, attacks
from nsk.evaluation.attacked_model import AttackedModel
from nsk.evaluation.predictor import Predictor

SIDE = 6


class RandomLogits(keras.layers.Layer):
    """Adds noise in inference, too."""

    def call(self, logits):
        return logits + tf.random.normal(tf.shape(logits))


class Rounded(keras.layers.Layer):
    """Rounds: the derivative is 0."""

    def call(self, inputs):
        return tf.round(inputs)


def make_model(*layers, scale=1.0, first=()):
    """Four classes: the brightest quarter of the image, which small changes alter."""
    inputs = keras.Input([SIDE, SIDE, 3])
    features = inputs
    for layer in first:
        features = layer(features)
    pooled = keras.layers.AveragePooling2D(SIDE // 2)(features)
    logits = keras.layers.Dense(4)(keras.layers.Flatten()(pooled))
    kernel = np.repeat(np.eye(4), 3, axis=0) * scale
    outputs = logits
    for layer in layers:
        outputs = layer(outputs)
    model = keras.Model(inputs, outputs)
    dense = next(layer for layer in model.layers if isinstance(layer, keras.layers.Dense))
    dense.set_weights([kernel, np.zeros(4)])
    return model


@pytest.fixture(scope="module")
def images():
    """Quarters of a brightness of 100 to 120 levels, with noise."""
    rng = np.random.default_rng(0)
    means = rng.uniform(100, 120, (30, 2, 1, 2, 1, 1))
    blocks = means + rng.normal(0, 3, (30, 2, SIDE // 2, 2, SIDE // 2, 3))
    return np.clip(blocks.reshape(30, SIDE, SIDE, 3), 0, 255).astype(np.float32)


@pytest.fixture(scope="module")
def healthy():
    return make_model(scale=0.05)


@pytest.fixture(scope="module")
def labels(healthy, images):
    return np.asarray(healthy(images)).argmax(axis=1)


EPSILON = 0.1


def test_a_network_without_tricks_gets_no_warnings(healthy, images, labels):
    adversarial = attacks.pgd(healthy, images, labels, EPSILON)
    assert attack_checks.is_correct(healthy, images, labels).all()
    assert not attack_checks.is_correct(healthy, adversarial, labels).any()
    assert attack_checks.check_attack(healthy, images, labels, EPSILON, adversarial) == []


def test_random_outputs(healthy, images):
    (warning,) = attack_checks.warn_of_random_outputs(make_model(RandomLogits()), images)
    assert "The network is random: two predictions differ for 30 of 30 images" in warning
    assert attack_checks.warn_of_random_outputs(healthy, images) == []
    # Dropout is off.
    model = make_model(keras.layers.Dropout(0.5))
    assert attack_checks.warn_of_random_outputs(model, images) == []


def test_probabilities_instead_of_logits(healthy, images):
    softmax = make_model(keras.layers.Softmax())
    (warning,) = attack_checks.warn_of_probabilities(softmax, images.astype(np.uint8))
    assert "returns probabilities" in warning
    log_softmax = make_model(keras.layers.Activation("log_softmax"))
    positive = make_model(keras.layers.ReLU())
    for model in (healthy, log_softmax, positive):
        assert attack_checks.warn_of_probabilities(model, images) == []


def test_log_probabilities_are_attacked_like_logits(healthy, images, labels):
    log_softmax = make_model(keras.layers.Activation("log_softmax"), scale=0.05)
    np.testing.assert_array_equal(
        attacks.fgsm(log_softmax, images, labels, EPSILON),
        attacks.fgsm(healthy, images, labels, EPSILON),
    )


@pytest.mark.parametrize("kind", ["saturated softmax", "no derivative"])
def test_hidden_gradients_are_found(images, labels, kind):
    """Gradients are 0, so PGD changes nothing but its random start; the random search succeeds."""
    model = make_model(scale=1e4) if kind == "saturated softmax" else make_model(first=[Rounded()])
    curve = attacks.fgsm_curve(model, images, labels, [0.0])
    assert curve.has_zero_gradient.all()
    (warning,) = attack_checks.warn_of_zero_gradients(curve.has_zero_gradient)
    assert "The input gradient of 30 of 30 images is exactly 0" in warning
    adversarial = attacks.pgd(model, images, labels, EPSILON)
    remaining = attack_checks.is_correct(model, adversarial, labels).sum()
    assert remaining > 5
    found = attack_checks.check_attack(model, images, labels, EPSILON, adversarial)
    assert found[0] == warning
    assert f"of the {remaining} images on which the attack with gradients fails" in found[1]
    assert "the stronger attack" in found[1] and "masked" in found[1]


def test_images_that_could_be_grey(healthy):
    """One bright quarter, which random starts do not darken enough."""
    labels = np.arange(30) % 4
    images = np.full((30, 2, SIDE // 2, 2, SIDE // 2, 3), 20, np.uint8)
    images[np.arange(30), labels // 2, :, labels % 2] = 235
    images = images.reshape(30, SIDE, SIDE, 3)
    assert attack_checks.warn_of_grey_images(healthy, images, labels) == []
    (warning,) = attack_checks.warn_of_grey_images(make_model(first=[Rounded()]), images, labels)
    assert "accuracy under PGD at epsilon 0.5 is 100.00%" in warning
    assert "at most 26.67% are right" in warning
    # One class: a network that always predicts it is right.
    same = np.zeros(30, int)
    constant = make_model(scale=0)
    assert attack_checks.is_correct(constant, images, same).all()
    assert attack_checks.warn_of_grey_images(constant, images, same) == []


def test_no_zero_gradients():
    assert attack_checks.warn_of_zero_gradients([False, False]) == []


def test_black_box_that_beats_gradients():
    warn = attack_checks.warn_of_black_box
    assert warn([True, False, True], [True, True, True]) == []
    assert warn([False, False], [False, False]) == []
    (warning,) = warn([True, False, True, False], [False, True, True, True])
    assert "succeeds on 1 of the 2 images on which" in warning and "stronger" not in warning
    (warning,) = warn([True, True, True, False], [False, False, True, False])
    assert "succeeds on 2 of the 3 images" in warning
    assert "the stronger attack (25.00% against 75.00% accuracy)" in warning


def test_random_search_stays_in_the_ball_and_finds_errors(healthy, images, labels):
    pixels = images.astype(np.uint8)
    for queries, epsilon in ((1, 0.5), (30, 0.03), (100, 0.03)):
        received = attack_checks.random_search(healthy, pixels, labels, epsilon, queries=queries)
        assert received.dtype == np.float32 and received.shape == images.shape
        assert received.min() >= 0 and received.max() <= 255
        assert np.abs(received - pixels).max() <= 255 * epsilon * (1 + 1e-6)
    # With a hundred queries, about as many errors as the gradient finds.
    by_gradient = attacks.fgsm(healthy, pixels, labels, 0.03)
    correct = attack_checks.is_correct(healthy, received, labels).mean()
    assert correct <= attack_checks.is_correct(healthy, by_gradient, labels).mean() + 0.1
    assert correct < 0.7
    at_zero = attack_checks.random_search(healthy, pixels, labels, 0, queries=3)
    np.testing.assert_array_equal(at_zero, pixels)


def test_random_search_belongs_to_the_image_and_only_uses_its_queries(healthy, images, labels):
    ids = [f"image/{row}" for row in range(30)]

    class Counting(AttackedModel):
        batches_predicted = 0

        def log_probabilities(self, images):
            self.batches_predicted += 1
            return super().log_probabilities(images)

    model = Counting(Predictor(healthy, 64))
    arguments = {"queries": 12, "seed": 3}
    received = attack_checks.random_search(model, images, labels, 0.01, ids=ids, **arguments)
    assert model.batches_predicted == 13  # The clean images, too.
    part = attack_checks.random_search(
        model, images[[9, 2]], labels[[9, 2]], 0.01, ids=[ids[9], ids[2]], **arguments
    )
    np.testing.assert_allclose(part, received[[9, 2]], atol=1e-4)
    other = attack_checks.random_search(model, images, labels, 0.01, ids=ids, queries=12, seed=4)
    assert np.abs(other - received).max() > 1


def test_random_search_ends_with_an_error(healthy, images, labels):
    """A wrong image stays as it is."""
    wrong = (labels + 1) % 4
    received = attack_checks.random_search(healthy, images, wrong, EPSILON, queries=5)
    np.testing.assert_array_equal(received, images)
