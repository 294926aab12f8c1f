import keras
import numpy as np
import pytest
import tensorflow as tf

from nsk import models
from nsk.distributed import strategy as strategies
from nsk.errors import UserError
from nsk.evaluation.predictor import Predictor, collect
from nsk.models import layers


def images(count):
    """Images whose pixels differ, uint8 (count, 8, 8, 3)."""
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3)).astype(np.uint8)


def noisy_model():
    """A network whose outputs differ much with and without noise."""
    model = models.build_model(
        "resnet8",
        num_classes=4,
        image_size=8,
        dropout_rate=0.9,
        survival_probability=0.2,
        synchronized=True,
        seed=1,
    )
    for variable in model.non_trainable_variables:
        if variable.name == "moving_variance":
            variable.assign(2.0 * tf.ones(variable.shape))
    return model


def expected_log_probabilities(model, pixels):
    logits = model(pixels.astype(np.float32), training=False).numpy().astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def predict_all(predict, pixels, batch_size):
    """Log-probabilities of all images; also checks the ids and labels."""
    batches = [
        {
            "id": np.array([f"image/{i}".encode() for i in range(first, first + batch_size)])[
                :left
            ],
            "label": np.arange(first, first + batch_size)[:left],
            "image": pixels[first : first + batch_size],
        }
        for first in range(0, len(pixels), batch_size)
        for left in [len(pixels) - first]
    ]
    predictions = collect(predict(batches))
    assert predictions.ids == [f"image/{i}" for i in range(len(pixels))]
    np.testing.assert_array_equal(predictions.labels, np.arange(len(pixels)))
    return predictions.log_probabilities


@pytest.fixture(scope="module")
def mirrored():
    strategy = strategies.make_strategy("mirrored")
    with strategy.scope():
        return strategy, noisy_model()


@pytest.mark.parametrize("count", [1, 2, 5, 6, 7, 12, 13])
def test_every_image_is_predicted_once_in_order_and_without_noise(mirrored, count):
    """Batches of 6: fewer images than a batch, whole batches, and an extra image."""
    pixels = images(count)
    strategy, model = mirrored
    expected = expected_log_probabilities(model, pixels)
    for array in (pixels, tf.constant(pixels)):
        received = predict_all(Predictor(model, 6), array, 6)
        assert received.shape == (count, 4)
        assert received.dtype == np.float32
        np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-5)
    for batch_size in (6, 5, 1):  # 5 and 1 are rounded up to a multiple of the replicas.
        received = predict_all(Predictor(model, batch_size, strategy), pixels, batch_size)
        np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-5)


def test_the_mirror_view_is_the_mean_probability_of_an_image_and_its_mirror_image(mirrored):
    pixels = images(7)
    strategy, model = mirrored
    image_expected = expected_log_probabilities(model, pixels)
    mirror_expected = expected_log_probabilities(model, pixels[:, :, ::-1])
    assert np.abs(image_expected - mirror_expected).max() > 0.01
    expected = np.log((np.exp(image_expected) + np.exp(mirror_expected)) / 2)
    for replicas in (strategy, None):
        received = predict_all(Predictor(model, 6, replicas, "mirror"), pixels, 6)
        np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("views", ["image", "mirror"])
def test_features_are_the_mean_over_the_views(views):
    inputs = keras.Input([8, 8, 3])
    features = keras.layers.Flatten()(inputs)
    model = keras.Model(inputs, [keras.layers.Dense(4)(features), features])
    predict = Predictor(keras.Model(inputs, model.outputs[0]), 4, None, views, "off", model)
    pixels = images(7)
    batches = [
        {"id": tf.constant([str(row)] * len(part)), "label": np.zeros(len(part)), "image": part}
        for row, part in enumerate((pixels[:4], pixels[4:]))
    ]
    received = np.concatenate([batch.features for batch in predict(batches)])
    expected = (pixels + pixels[:, :, ::-1].astype(float)) / 2 if views == "mirror" else pixels
    np.testing.assert_allclose(received, expected.reshape(7, -1), atol=1e-4)


def test_unknown_views_are_rejected():
    with pytest.raises(ValueError, match="views='mirrored': expected one of image, mirror"):
        Predictor(None, 6, views="mirrored")


def test_predictions_change_no_weight(mirrored):
    strategy, model = mirrored
    before = [variable.numpy() for variable in model.variables]
    predict_all(Predictor(model, 4, strategy), images(9), 4)
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value, err_msg=variable.path)


def test_predictions_follow_the_weights_and_all_numbers_of_images_share_a_graph():
    inputs = keras.Input([8, 8, 3])
    pooled = keras.layers.GlobalAveragePooling2D()(layers.Dropout(0.5, name="dropout")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3)(pooled))
    predict = Predictor(model, 4)
    for count in (1, 3, 4):
        predict.log_probabilities(images(count))
    assert predict._start._global_batch.experimental_get_tracing_count() == 1
    model.layers[-1].bias.assign([0.0, 1000.0, 0.0])
    received = predict.log_probabilities(images(3))
    assert np.all(received[:, 1] > -1e-6)
    assert np.all(np.isfinite(received))  # The tail is a large number and not -inf.


def test_batches_of_all_sizes_share_few_graphs():
    inputs = keras.Input([8, 8, 3])
    outputs = keras.layers.Dense(3)(keras.layers.Flatten()(inputs))
    predict = Predictor(keras.Model(inputs, outputs), 100)
    pixels = images(100)
    expected = predict.log_probabilities(pixels)
    for count in (1, 2, 31, 32, 33, 63, 64, 65, 95, 97, 99):
        received = predict.log_probabilities(pixels[:count])
        assert len(received) == count
        np.testing.assert_allclose(received, expected[:count], rtol=1e-4, atol=1e-5)
    assert predict._start._global_batch.experimental_get_tracing_count() == 4  # 32, 64, 96 and 100.


def test_a_model_that_diverged_is_an_error():
    inputs = keras.Input([8, 8, 3])
    outputs = keras.layers.Dense(3, name="logits")(keras.layers.Flatten()(inputs))
    model = keras.Model(inputs, outputs, name="diverged")
    model.layers[-1].kernel.assign(np.full((192, 3), np.nan))
    with pytest.raises(UserError, match=r"model diverged predicts .* Lower --learning_rate"):
        Predictor(model, 4).log_probabilities(images(2))


def test_more_images_than_a_batch_are_rejected():
    with pytest.raises(ValueError, match="5 images: expected at most a batch of 4"):
        Predictor(None, 4).log_probabilities(images(5))


def compiles(predict, size):
    """Whether the graph of a batch asks XLA to compile a function."""
    images = tf.TensorSpec([size, 8, 8, 3], tf.uint8)
    graph = predict._start._global_batch.get_concrete_function(images).graph.as_graph_def()
    return any(function.attr["_XlaMustCompile"].b for function in graph.library.function)


@pytest.mark.parametrize("views", ["image", "mirror"])
def test_compiled_predictions_equal_those_without_xla(views):
    model = noisy_model()
    plain, compiled = (Predictor(model, 40, None, views, mode) for mode in ("off", "on"))
    for count in (1, 40, 75):
        np.testing.assert_allclose(
            predict_all(compiled, images(count), 40),
            predict_all(plain, images(count), 40),
            atol=1e-5,
        )
    assert compiles(compiled, 40) and not compiles(plain, 40)
    assert len(compiled._start._global_batch._list_all_concrete_functions()) == 1  # One size.


def test_a_model_that_cannot_be_compiled_predicts_without_xla():
    pixels = keras.Input([8, 8, 3])
    features = keras.layers.Lambda(
        lambda inputs: tf.ensure_shape(
            tf.numpy_function(lambda array: array, [inputs], tf.float32), [None, 8, 8, 3]
        ),
        output_shape=(8, 8, 3),
    )(pixels)
    model = keras.Model(pixels, keras.layers.Dense(4)(keras.layers.Flatten()(features)))
    plain, fallen_back = (Predictor(model, 6, jit_compile=mode) for mode in ("off", "on"))
    np.testing.assert_array_equal(
        predict_all(fallen_back, images(8), 6), predict_all(plain, images(8), 6)
    )
    assert not compiles(fallen_back, 6)


def test_a_full_memory_names_the_batch_and_the_flag(huge_layer):
    pixels = keras.Input([8, 8, 3])
    model = keras.Model(pixels, keras.layers.Flatten()(huge_layer(pixels)), name="huge")
    with pytest.raises(UserError, match="huge cannot predict 64 images at a time; lower --eval_"):
        Predictor(model, 64).log_probabilities(images(3))
