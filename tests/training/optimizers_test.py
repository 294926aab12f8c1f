"""Each optimizer against its formula in NumPy, over several steps with different rates."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from nsk.distributed import strategy as strategies
from nsk.training import optimizers

RATES = np.array([0.1, 0.05, 0.2, 0.02, 0.1], np.float32)
WEIGHT = np.array([[1.0, -2.0], [0.5, 3.0]])


def gradients():
    return np.random.default_rng(0).normal(size=(len(RATES), 2, 2)) * [[1.0, 1e-3], [10.0, 1.0]]


def trained(name, initial=WEIGHT, variable_name="kernel", **options):
    """The variable after each step of the optimizer."""
    variable = keras.Variable(initial.astype(np.float32), name=variable_name)
    optimizer = optimizers.make_optimizer(name, RATES, [variable], **options)
    after = []
    for gradient in gradients():
        optimizer.apply([tf.constant(gradient, tf.float32)], [variable])
        after.append(variable.numpy())
    return np.stack(after)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd(momentum, nesterov):
    weight, velocity, expected = WEIGHT.copy(), np.zeros_like(WEIGHT), []
    for rate, gradient in zip(RATES, gradients(), strict=True):
        velocity = momentum * velocity - rate * gradient
        weight += momentum * velocity - rate * gradient if nesterov else velocity
        expected.append(weight.copy())
    received = trained("sgd", momentum=momentum, nesterov=nesterov)
    np.testing.assert_allclose(received, expected, rtol=1e-5)


def test_rmsprop_is_that_of_tensorflow_1():
    """Mean square from 1, epsilon inside the root, momentum on the scaled gradient."""
    weight, expected = WEIGHT.copy(), []
    mean_square, velocity = np.ones_like(WEIGHT), np.zeros_like(WEIGHT)
    for rate, gradient in zip(RATES, gradients(), strict=True):
        mean_square = 0.9 * mean_square + 0.1 * gradient**2
        velocity = 0.8 * velocity + rate * gradient / np.sqrt(mean_square + 1e-3)
        weight -= velocity
        expected.append(weight.copy())
    np.testing.assert_allclose(trained("rmsprop", momentum=0.8), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("variable_name", "decay"), [("kernel", 0.3), ("bias", 0.3), ("gamma", 0.0), ("beta", 0.0)]
)
def test_adamw_decays_all_but_batch_norm_and_apart_from_the_gradient(variable_name, decay):
    weight, expected = WEIGHT.copy(), []
    mean, square = np.zeros_like(WEIGHT), np.zeros_like(WEIGHT)
    for step, (rate, gradient) in enumerate(zip(RATES, gradients(), strict=True), start=1):
        weight -= rate * decay * weight
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.999 * square + 0.001 * gradient**2
        corrected = np.sqrt(square / (1 - 0.999**step)) + 1e-7 / np.sqrt(1 - 0.999**step)
        weight -= rate * (mean / (1 - 0.9**step)) / corrected
        expected.append(weight.copy())
    received = trained("adamw", variable_name=variable_name, momentum=0.9, weight_decay=0.3)
    np.testing.assert_allclose(received, expected, rtol=1e-5)


@pytest.mark.parametrize("strategy_name", ["one", "mirrored"])
def test_weight_decay_excludes_only_batch_norm_for_any_layer_names(strategy_name):
    """Weights of a layer whose path merely contains `gamma` or `beta` decay as all others."""
    strategy = strategies.make_strategy(strategy_name)
    with strategy.scope():
        features = inputs = keras.Input([4])
        features = keras.layers.Dense(3, name="alphabeta")(features)
        features = keras.layers.BatchNormalization(name="norm")(features)
        model = keras.Model(inputs, keras.layers.Dense(2, name="gamma")(features))
        for variable in model.trainable_variables:
            variable.assign(tf.ones_like(variable.value))
        optimizer = optimizers.make_optimizer(
            "adamw", np.float32([0.1]), model.trainable_variables, weight_decay=0.5
        )

    @tf.function
    def step():
        zeros = [tf.zeros_like(variable.value) for variable in model.trainable_variables]
        optimizer.apply(zeros, model.trainable_variables)

    strategy.run(step)
    after = {variable.path: variable.numpy().flat[0] for variable in model.trainable_variables}
    decayed = pytest.approx(1 - 0.1 * 0.5)
    assert after == {
        "alphabeta/kernel": decayed,
        "alphabeta/bias": decayed,
        "norm/gamma": 1.0,
        "norm/beta": 1.0,
        "gamma/kernel": decayed,
        "gamma/bias": decayed,
    }
    excluded = [
        variable.path
        for variable in model.trainable_variables
        if not optimizers.is_decayed(variable)
    ]
    assert excluded == ["norm/gamma", "norm/beta"]


def test_the_rate_table_gives_each_step_its_rate_and_then_the_last():
    table = optimizers.RateTable(RATES)
    received = [float(table(tf.constant(step, tf.int64))) for step in range(len(RATES) + 2)]
    assert received == [*map(float, RATES), float(RATES[-1]), float(RATES[-1])]
    assert optimizers.RateTable(**table.get_config())(2) == RATES[2]


def test_an_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match="name='lamb'"):
        optimizers.make_optimizer("lamb", RATES, [])
