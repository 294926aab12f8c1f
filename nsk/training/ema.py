"""Exponential moving average of a model's weights, BatchNorm's moving statistics included."""

import keras
import tensorflow as tf


def ramped_decay(decay: float, num_updates: int | tf.Tensor) -> tf.Tensor:
    """Decay after n updates, min(d, (1 + n) / (10 + n)): averages quickly forget initial weights.

    As in `tf.train.ExponentialMovingAverage(num_updates=...)`, which the paper's code uses.
    """
    num_updates = tf.cast(num_updates, tf.float32)
    return tf.minimum(tf.cast(decay, tf.float32), (1.0 + num_updates) / (10.0 + num_updates))


class ExponentialMovingAverage:
    """Averages of all variables of a Keras model.

    Keras' own `use_ema` covers only trainable weights and has no ramp. The paper's averages also
    cover BatchNorm's moving statistics: otherwise averaged weights would be used with statistics
    of other weights.

    Args:
        model: a built Keras model. Create this object in the strategy's scope.
        decay: d in [0, 1).
    """

    def __init__(self, model: keras.Model, decay: float):
        self.decay = decay
        self._sources = [variable.value for variable in model.variables]
        self.averages = [
            tf.Variable(source, trainable=False, name=f"average_{i}")
            for i, source in enumerate(self._sources)
        ]

    def update(self, num_updates: int | tf.Tensor) -> None:
        """Adds (1 - d) (weight - average) to each average after a step, on a single replica."""
        for average, source in zip(self.averages, self._sources, strict=True):
            self._add(average, source, num_updates)

    def update_replicas(self, strategy: tf.distribute.Strategy, num_updates: tf.Tensor) -> None:
        """`update` on all replicas of a strategy, outside of their contexts."""
        for average, source in zip(self.averages, self._sources, strict=True):
            strategy.extended.update(average, self._add, args=(source, num_updates))

    def _add(self, average, source, num_updates):
        rate = tf.cast(1.0 - ramped_decay(self.decay, num_updates), average.dtype)
        average.assign_add(rate * (tf.cast(source, average.dtype) - average))

    def copy_to(self, model: keras.Model) -> None:
        """Assigns the averages to another model of the same architecture."""
        for variable, average in zip(model.variables, self.averages, strict=True):
            variable.assign(average)
