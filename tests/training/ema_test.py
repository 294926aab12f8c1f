import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from nsk.distributed import strategy as strategies
from nsk.training.ema import ExponentialMovingAverage, ramped_decay


def test_the_ramp_forgets_the_initial_weights_and_ends_at_the_decay():
    updates = np.arange(0, 200_000, 97)
    expected = np.minimum(0.9999, (1 + updates) / (10 + updates))
    np.testing.assert_allclose(ramped_decay(0.9999, updates), expected, rtol=1e-6)
    assert ramped_decay(0.9999, 0).numpy() == pytest.approx(0.1)
    assert ramped_decay(0.5, 100).numpy() == 0.5


def build():
    inputs = keras.Input([3])
    features = keras.layers.Dense(4, name="dense")(inputs)
    return keras.Model(inputs, keras.layers.BatchNormalization(momentum=0.5)(features))


@pytest.mark.parametrize("strategy_name", ["one", "mirrored"])
def test_averages_of_all_variables_equal_numpy(strategy_name):
    """Trainable weights and BatchNorm's moving statistics, from the initial values on."""
    strategy = strategies.make_strategy(strategy_name)
    random = np.random.default_rng(0)
    with strategy.scope():
        model = build()
        average = ExponentialMovingAverage(model, 0.7)
    paths = [variable.path.split("/")[-1] for variable in model.variables]
    assert {"kernel", "gamma", "moving_mean", "moving_variance"} <= set(paths)
    expected = [variable.numpy() for variable in model.variables]

    update = tf.function(functools.partial(average.update_replicas, strategy))
    if strategy_name == "one":
        update = tf.function(average.update)
    for step in range(25):
        rate = 1 - min(0.7, (1 + step) / (10 + step))
        for i, variable in enumerate(model.variables):
            variable.assign(random.normal(size=variable.shape))
            expected[i] = expected[i] + rate * (variable.numpy() - expected[i])
        update(tf.constant(step))

    weights = [variable.numpy() for variable in model.variables]
    other = build()
    average.copy_to(other)
    for path, variable, value in zip(paths, other.variables, expected, strict=True):
        np.testing.assert_allclose(variable.numpy(), value, rtol=1e-4, atol=1e-6, err_msg=path)
    for variable, value in zip(model.variables, weights, strict=True):  # The model is unchanged.
        np.testing.assert_array_equal(variable.numpy(), value)


def test_every_replica_holds_the_average():
    strategy = strategies.make_strategy("mirrored")
    with strategy.scope():
        model = build()
        average = ExponentialMovingAverage(model, 0.9)
    for variable in model.variables:
        variable.assign(tf.fill(variable.shape, 3.0))
    tf.function(average.update_replicas)(strategy, tf.constant(5))
    for variable in average.averages:
        first, second = strategy.experimental_local_results(variable)
        np.testing.assert_array_equal(first, second)
        assert first.device != second.device
