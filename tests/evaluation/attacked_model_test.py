import keras
import numpy as np
import pytest
import tensorflow as tf

from nsk.evaluation.attacked_model import AttackedModel, Goal, as_attacked_model
from nsk.evaluation.predictor import Predictor


def make_model(activation=None):
    keras.utils.set_random_seed(3)
    inputs = keras.Input([4, 4, 3])
    features = keras.layers.Dense(8, activation="tanh")(keras.layers.Flatten()(inputs / 255))
    return keras.Model(inputs, keras.layers.Dense(5, activation=activation)(features))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(0, 255, (7, 4, 4, 3)).astype(np.float32)


CLASSES = np.array([0, 1, 2, 3, 4, 0, 1], np.int32)


def softmax(logits):
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("loss", ["cross_entropy", "logit"])
def test_gradients_equal_finite_differences(images, loss):
    """In float64, of a loss that is computed with NumPy."""
    model = make_model()
    hidden, output = (layer for layer in model.layers if isinstance(layer, keras.layers.Dense))
    weights = [value.astype(np.float64) for value in (*hidden.get_weights(), *output.get_weights())]

    def losses_of(pixels):
        features = np.tanh(pixels.reshape(len(pixels), -1) / 255 @ weights[0] + weights[1])
        logits = features @ weights[2] + weights[3]
        rows = np.arange(len(pixels))
        values = np.log(softmax(logits)) if loss == "cross_entropy" else logits
        return -values[rows, CLASSES], logits

    pixels = images.astype(np.float64)
    expected = np.empty_like(pixels)
    for index in np.ndindex(4, 4, 3):
        change = np.zeros((4, 4, 3))
        change[index] = 1e-3
        expected[:, *index] = losses_of(pixels + change)[0] - losses_of(pixels - change)[0]
    gradients, losses, predictions = as_attacked_model(model).gradients(images, CLASSES, loss)
    np.testing.assert_allclose(gradients, expected / 2e-3, atol=1e-7)
    np.testing.assert_allclose(losses, losses_of(pixels)[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(predictions, losses_of(pixels)[1].argmax(axis=1))


def test_images_of_a_batch_do_not_interact(images):
    model = as_attacked_model(make_model())
    expected = model.gradients(images, CLASSES)
    for row in range(len(images)):
        for received, values in zip(
            model.gradients(images[row : row + 1], CLASSES[row : row + 1]), expected, strict=True
        ):
            np.testing.assert_allclose(received[0], values[row], rtol=1e-4, atol=1e-8)


def test_gradients_that_are_not_finite_are_0(images):
    """The derivative of a square root at 0 is infinite."""
    inputs = keras.Input([4, 4, 3])
    roots = keras.layers.Lambda(tf.sqrt, output_shape=(4, 4, 3))(inputs)
    model = keras.Model(inputs, keras.layers.Dense(5)(keras.layers.Flatten()(roots)))
    images = images.copy()
    images[2, 1, 1] = 0
    gradients = as_attacked_model(model).gradients(images, CLASSES)[0].numpy()
    assert np.all(gradients[2, 1, 1] == 0)
    assert np.isfinite(gradients).all() and np.mean(gradients != 0) > 0.9


def test_gradients_of_half_precision_logits_are_float32(images):
    model = keras.Sequential(
        [keras.Input([4, 4, 3]), keras.layers.Flatten(), keras.layers.Dense(5, dtype="bfloat16")]
    )
    gradients, losses, _ = as_attacked_model(model).gradients(images, CLASSES)
    assert gradients.dtype == losses.dtype == tf.float32


def test_a_network_that_ignores_its_input_has_gradients_of_0(images):
    inputs = keras.Input([4, 4, 3])
    constant = keras.layers.Lambda(lambda x: tf.ones([tf.shape(x)[0], 5]), output_shape=(5,))
    model = keras.Model(inputs, constant(inputs))
    gradients = as_attacked_model(model).gradients(images, CLASSES)[0]
    np.testing.assert_array_equal(gradients, np.zeros_like(images))


def test_predictions_are_the_predictors(images):
    predictor = Predictor(make_model(), 3)
    model = AttackedModel(predictor)
    assert as_attacked_model(model) is model and model.model is predictor.model
    assert [images[rows].shape[0] for rows in model.batches(7)] == [3, 3, 1]
    expected = [predictor.log_probabilities(images[first : first + 3]) for first in (0, 3, 6)]
    np.testing.assert_array_equal(model.log_probabilities(images), np.concatenate(expected))


def test_predictors_of_two_views_are_rejected():
    with pytest.raises(ValueError, match="views='mirror': attacks need a predictor of one view"):
        AttackedModel(Predictor(make_model(), 4, views="mirror"))


def test_what_is_a_success():
    log_probabilities = np.log(np.array([[0.7, 0.3], [0.4, 0.6], [0.2, 0.8]], np.float32))
    untargeted, targeted = Goal([1, 1, 0]), Goal([1, 1, 0], [0, 0, 1])
    objectives, is_success = untargeted.judge(log_probabilities[1:], slice(1, 3))
    np.testing.assert_allclose(objectives, -np.log([0.6, 0.2]), rtol=1e-6)
    assert is_success.tolist() == [False, True]
    objectives, is_success = targeted.judge(log_probabilities, np.arange(3))
    np.testing.assert_allclose(objectives, np.log([0.7, 0.4, 0.8]), rtol=1e-6)
    assert is_success.tolist() == [True, False, True]
