"""Keras optimizers of the recipes, with the learning rate of every step from a table."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf


class RateTable(keras.optimizers.schedules.LearningRateSchedule):
    """Learning rate of every step, computed in advance (`schedules.learning_rates`).

    Args:
        rates: float32 array (num_steps,).
    """

    def __init__(self, rates: np.ndarray):
        self.rates = rates

    def __call__(self, step: int | tf.Tensor) -> tf.Tensor:
        """Learning rate of a step, counted from 0; after the table its last entry."""
        return tf.gather(self.rates, tf.minimum(tf.cast(step, tf.int32), len(self.rates) - 1))

    def get_config(self) -> dict[str, Any]:
        """The table, for the configuration of an optimizer."""
        return {"rates": [float(rate) for rate in self.rates]}


class TensorFlowRMSprop(keras.optimizers.RMSprop):
    """RMSProp as in TensorFlow 1 and the EfficientNet recipes: the mean square is initialised to 1.

    With 0, the first updates would be divided by a mean square near 0. Epsilon is inside the square
    root in both.
    """

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Creates the slots and initialises the mean squares to 1."""
        if not self.built:
            super().build(variables)
            for mean_square in self._velocities:
                mean_square.assign(tf.ones_like(mean_square))


def make_optimizer(
    name: str,
    rates: np.ndarray,
    variables: Sequence[keras.Variable],
    *,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> keras.Optimizer:
    """A built Keras optimizer without clipping of its own (the trainer clips the global gradient).

    Args:
        name: sgd | rmsprop | adamw.
        rates: float32 array (num_steps,), the learning rate of each step.
        variables: list of the `keras.Variable`s that it updates.
        momentum: SGD's and RMSProp's momentum; AdamW's beta 1.
        nesterov: Nesterov momentum, only for SGD.
        weight_decay: AdamW's decoupled decay; for the others the trainer adds the L2 gradient.
    """
    table = RateTable(rates)
    if name == "sgd":
        optimizer = keras.optimizers.SGD(table, momentum=momentum, nesterov=nesterov)
    elif name == "rmsprop":
        optimizer = TensorFlowRMSprop(table, rho=0.9, momentum=momentum, epsilon=1e-3)
    elif name == "adamw":
        optimizer = keras.optimizers.AdamW(table, beta_1=momentum, weight_decay=weight_decay)
        # By variable, not by `var_names`, which match anywhere in a path: they would also exclude
        # the kernel of a layer called `alphabeta`.
        optimizer.exclude_from_weight_decay(
            var_list=[variable for variable in variables if not is_decayed(variable)]
        )
    else:
        raise ValueError(f"name={name!r}: expected sgd, rmsprop or adamw.")
    optimizer.build(variables)
    return optimizer


def is_decayed(variable: keras.Variable) -> bool:
    """Whether weight decay applies: to every trainable weight but BatchNorm's scale and offset."""
    return variable.name not in ("gamma", "beta")
