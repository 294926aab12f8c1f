"""The noise layers, BatchNorm, the padded shortcut and the survival schedule."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from nsk import noise
from nsk.models.layers import (
    BatchNormalization,
    Builder,
    Dropout,
    PaddedShortcut,
    StochasticDepth,
)
from nsk.models.layers import survival_probabilities as survival

LAYERS = {
    "depth": lambda **arguments: StochasticDepth(0.75, **arguments),
    "dropout": lambda **arguments: Dropout(0.25, **arguments),
}
each_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS.keys())


def in_scope(layer, inputs, *, step=0, first=0, global_batch_size=None):
    """Calls a layer as the trainer does, on the rows from `first` on of a global batch."""
    key = noise.fold_in(noise.key(1, "student"), step)
    positions = tf.range(first, first + len(inputs))
    with noise.scope(key, positions, global_batch_size or len(inputs)):
        return layer(inputs, training=True).numpy()


@each_layer
@pytest.mark.parametrize("shape", [(7, 5), (7, 4, 5), (7, 4, 6, 3), (7, 2, 4, 6, 3)])
def test_shapes_and_scale(make, shape):
    layer, inputs = make(), tf.random.normal(shape)
    outputs = in_scope(layer, inputs)
    assert outputs.shape == shape and layer.compute_output_shape(shape) == shape
    kept = np.isclose(outputs, inputs / 0.75, rtol=1e-6)
    assert np.all(kept | (outputs == 0))
    if isinstance(layer, StochasticDepth):
        kept = kept.reshape(7, -1)
        assert np.all(kept.all(axis=1) | ~kept.any(axis=1))


@each_layer
def test_inference_is_the_identity(make):
    inputs = tf.random.normal((8, 3))
    for layer in (make(), make(dtype="mixed_bfloat16")):
        expected = tf.cast(inputs, layer.compute_dtype)
        np.testing.assert_array_equal(layer(inputs, training=False), expected)
        np.testing.assert_array_equal(layer(inputs), expected)


@each_layer
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_expectation_is_preserved(make, dtype):
    outputs = in_scope(make(dtype=dtype), tf.ones((20_000, 2)))
    # Each scale has the standard deviation sqrt(1/0.75 - 1) = 0.58; 0.58 / sqrt(20,000) = 0.004.
    assert np.mean(outputs.astype(np.float32)[:, 0]) == pytest.approx(1, abs=0.017)
    assert outputs.dtype == tf.as_dtype(keras.DTypePolicy(dtype).compute_dtype).as_numpy_dtype


def test_probabilities_are_not_rounded_to_the_compute_dtype():
    # bfloat16 would round 0.999 to 1 and drop nothing.
    outputs = in_scope(Dropout(0.001, dtype="mixed_bfloat16"), tf.ones((1000, 100)))
    assert 50 < np.sum(outputs == 0) < 150


@pytest.mark.parametrize("layer", [StochasticDepth(1.0), Dropout(0.0)])
def test_disabled_noise_adds_no_operations(layer):
    graph = tf.function(lambda x: layer(x, training=True)).get_concrete_function(tf.ones((3, 2)))
    assert {operation.type for operation in graph.graph.get_operations()} <= {
        "Placeholder",
        "Identity",
    }


@pytest.mark.parametrize("probability", [0, -0.1, 1.1, float("nan")])
def test_invalid_survival_probability(probability):
    with pytest.raises(ValueError, match="survival_probability="):
        StochasticDepth(probability)
    with pytest.raises(ValueError, match="last="):
        survival(probability, 3)


@pytest.mark.parametrize("rate", [1, -0.1, 1.5, float("nan")])
def test_invalid_rate(rate):
    with pytest.raises(ValueError, match="rate="):
        Dropout(rate)


@pytest.mark.parametrize(
    "layer",
    [
        StochasticDepth(0.6, name="a", dtype="mixed_bfloat16"),
        Dropout(0.4, name="b"),
        PaddedShortcut(8, 2, name="c"),
    ],
    ids=lambda layer: layer.name,
)
def test_config_round_trip(layer):
    copy = type(layer).from_config(layer.get_config())
    assert copy.get_config() == layer.get_config()
    serialized = keras.saving.serialize_keras_object(layer)
    assert serialized["registered_name"] == f"nsk>{type(layer).__name__}"
    copy = keras.saving.deserialize_keras_object(serialized)
    assert type(copy) is type(layer) and copy.get_config() == layer.get_config()


@each_layer
def test_masks_differ_between_samples_steps_and_names(make):
    inputs = tf.ones((64, 16))
    layer = make(name="first")
    outputs = in_scope(layer, inputs)
    assert len(np.unique(outputs, axis=0)) > 1
    np.testing.assert_array_equal(outputs, in_scope(layer, inputs))
    assert np.any(outputs != in_scope(layer, inputs, step=1))
    assert np.any(outputs != in_scope(make(name="second"), inputs))


def test_dropout_masks_differ_between_positions_in_a_sample():
    outputs = in_scope(Dropout(0.5), tf.ones((2, 8, 8, 3)))
    assert len(np.unique(outputs[0].reshape(64, 3), axis=0)) == 8
    assert np.any(outputs[0] != outputs[1])


@each_layer
def test_slices_of_a_batch_have_the_noise_of_the_global_batch(make):
    inputs, layer = tf.ones((12, 16)), make(name="layer")
    expected = in_scope(layer, inputs)
    slices = [in_scope(layer, inputs[i : i + 4], first=i, global_batch_size=12) for i in (0, 4, 8)]
    np.testing.assert_array_equal(np.concatenate(slices), expected)


@each_layer
def test_replicas_draw_different_masks_which_are_those_of_a_single_device(make):
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        layer = make(name="layer")

    @tf.function
    def step(key):
        def replica_step():
            first = 16 * tf.distribute.get_replica_context().replica_id_in_sync_group
            with noise.scope(key, tf.range(first, first + 16), 32):
                return layer(tf.ones((16, 4)), training=True)

        return strategy.run(replica_step)

    replicas = strategy.experimental_local_results(step(noise.fold_in(noise.key(1, "student"), 0)))
    first, second = (replica.numpy() for replica in replicas)
    assert np.any(first != second)
    expected = in_scope(make(name="layer"), tf.ones((32, 4)))
    np.testing.assert_array_equal(np.concatenate([first, second]), expected)


@each_layer
def test_one_fit_step(make):
    inputs = keras.Input((4,))
    outputs = keras.layers.Dense(1, name="dense")(make(name="noise")(inputs))
    model = keras.Model(inputs, outputs)
    model.compile("sgd", "mse")
    before = model.get_weights()[0]
    history = model.fit(np.ones((8, 4)), np.ones((8, 1)), epochs=1, verbose=0)
    assert np.isfinite(history.history["loss"][0])
    assert np.any(model.get_weights()[0] != before)


def test_dropped_samples_have_no_gradient():
    layer, inputs = StochasticDepth(0.5, name="layer"), tf.ones((32, 3))
    with noise.scope(noise.key(0), tf.range(32), 32), tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = layer(inputs, training=True)
    gradient = tape.gradient(outputs, inputs)
    np.testing.assert_array_equal(gradient, outputs)  # Both are 2 if kept and 0 if dropped.
    assert set(np.unique(gradient)) == {0, 2}


def batch_norm_step(make, inputs, training=True, jit_compile=False, **arguments):
    """Outputs, gradients and moving statistics of a BatchNorm, and the kinds of its operations."""
    layer = make(momentum=0.7, epsilon=1e-5, **arguments)
    layer.build(inputs.shape)
    random = np.random.default_rng(1)
    layer.set_weights([random.uniform(0.5, 2, weight.shape) for weight in layer.get_weights()])
    factors = tf.constant(random.normal(size=inputs.shape), layer.compute_dtype)

    @tf.function(jit_compile=jit_compile)
    def step(inputs):
        variables = [inputs, *(variable.value for variable in layer.trainable_variables)]
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = layer(inputs, training=training)
            loss = tf.reduce_sum(tf.cast(outputs * factors, tf.float32))
        return [outputs, *tape.gradient(loss, variables)]

    inputs = tf.constant(inputs, layer.compute_dtype)
    kinds = {
        operation.type for operation in step.get_concrete_function(inputs).graph.get_operations()
    }
    results = [tensor.numpy() for tensor in step(inputs)] + layer.get_weights()
    return [result.astype(np.float64) for result in results], kinds


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize(
    "shape, arguments, rounding, is_fused",
    [
        ((6, 5, 4, 3), {}, 2e-5, True),
        ((2, 1, 3, 3), {}, 1e-3, True),  # Here n - 1 and n differ much.
        ((6, 5, 4, 3), {"dtype": "mixed_bfloat16"}, 1e-2, True),
        ((6, 5, 4, 3), {"dtype": "float64"}, 1e-9, False),
        ((6, 5, 4, 3), {"axis": 1}, 2e-5, False),
        ((6, 5, 4, 3), {"scale": False}, 2e-5, False),
        ((6, 5, 4, 3), {"synchronized": True}, 2e-5, False),
        ((6, 5, 4, 3), {"training": False}, 2e-5, False),
        ((6, 3), {}, 2e-5, False),
    ],
)
def test_batch_norm_equals_that_of_keras(shape, arguments, rounding, is_fused, jit_compile):
    inputs = np.random.default_rng(0).normal(3, 2, shape)
    results, kinds = batch_norm_step(
        BatchNormalization, inputs, jit_compile=jit_compile, **arguments
    )
    expected, _ = batch_norm_step(keras.layers.BatchNormalization, inputs, **arguments)
    for result, reference in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, reference, rtol=rounding, atol=rounding)
    assert ("FusedBatchNormV3" in kinds) == is_fused


def test_a_frozen_batch_norm_keeps_its_statistics():
    layer = BatchNormalization()
    layer.build((None, 4, 4, 3))
    layer.trainable = False
    before = layer.get_weights()
    layer(tf.random.normal((2, 4, 4, 3)), training=True)
    np.testing.assert_equal(layer.get_weights(), before)


@pytest.mark.parametrize("height, width", [(4, 6), (5, 3), (1, 1)])
def test_padded_shortcut(height, width):
    inputs = np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)
    outputs = PaddedShortcut(8, 2)(inputs).numpy()
    expected = np.zeros((2, -(-height // 2), -(-width // 2), 8), np.float32)
    expected[..., 2:5] = inputs[:, ::2, ::2]  # Five zero channels: two before, three after.
    np.testing.assert_array_equal(outputs, expected)


def test_survival_probabilities():
    assert survival(0.8, 4) == pytest.approx([1, 0.95, 0.9, 0.85])
    assert survival(0.8, 55)[-1] == pytest.approx(0.8036, abs=5e-5)  # EfficientNet-B7
    assert survival(0.8, 18)[-1] == pytest.approx(0.811, abs=5e-4)  # ResNet-38
    assert survival(1.0, 3) == [1, 1, 1]


@pytest.mark.parametrize("size", [6, 7])
def test_strided_convolution_is_centred_on_the_pixels_of_the_shortcut(size):
    inputs = keras.Input((size, size, 1))
    model = keras.Model(inputs, Builder().conv(inputs, 1, "conv", strides=2))
    kernel = np.zeros((3, 3, 1, 1), np.float32)
    kernel[1, 1] = 1
    model.set_weights([kernel])
    image = np.arange(size * size, dtype=np.float32).reshape(1, size, size, 1)
    np.testing.assert_array_equal(model(image), PaddedShortcut(1, 2)(image))
