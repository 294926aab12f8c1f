"""Functions of batches of images: on all replicas, for few batch sizes, compiled by XLA."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from nsk.distributed import compilation, device_memory
from nsk.errors import UserError

# Short batches are padded to a multiple of this, so that few batch sizes, and graphs, occur.
BATCH_SIZE_MULTIPLE = 32


class BatchFunction:
    """A function of a batch of images and other arrays with one row for each image.

    Each replica computes a share of the batch. Rows must not depend on each other: short batches
    are padded with zeros, and the results of these rows are dropped.

    Args:
        function: function of tensors of m rows each that returns a tensor, or a tuple of tensors,
            of m rows; it runs inside a `tf.function`.
        batch_size: maximum number of rows; rounded up to a multiple of the replicas.
        strategy: a `tf.distribute.Strategy`.
        jit_compile: auto | on | off, whether XLA compiles the function, see `compilation`.
        model_name: name of the model that the function calls, in messages.
        task: what the function does to images, in messages: a verb.
    """

    def __init__(
        self,
        function: Callable,
        batch_size: int,
        strategy: tf.distribute.Strategy,
        jit_compile: str,
        model_name: str,
        task: str,
    ):
        self._strategy, self._model_name, self._task = strategy, model_name, task
        self._replicas = strategy.num_replicas_in_sync
        self.batch_size = -(-batch_size // self._replicas) * self._replicas
        is_compiled = compilation.is_compiled(jit_compile, strategy)
        self._function = compilation.Compilable(function, is_compiled, f"{model_name} ({task})")
        self._global_batch = tf.function(self._compute_global_batch)

    def __call__(self, *arrays: np.ndarray | tf.Tensor) -> Any:
        """Computes the function.

        Args:
            *arrays: of n rows each, with n at most the batch size.

        Returns:
            What the function returns, n rows; a GPU may still compute it.

        Raises:
            ValueError: there are more rows than the batch size.
            UserError: the memory of a device is full.
        """
        count = len(arrays[0])
        if count > self.batch_size:
            raise ValueError(f"{count} images: expected at most a batch of {self.batch_size}.")
        results = self._compute(*(self._pad(array) for array in arrays))
        return tf.nest.map_structure(lambda result: result[:count], results)

    def _pad(self, array):
        multiple = math.lcm(BATCH_SIZE_MULTIPLE, self._replicas)
        if self._function.is_compiled:  # Every size would be compiled, which takes many seconds.
            multiple = self.batch_size
        size = min(-(-len(array) // multiple) * multiple, self.batch_size)
        return tf.pad(array, [[0, size - len(array)], *[[0, 0]] * (len(array.shape) - 1)])

    def _compute(self, *arrays):
        """`_compute_global_batch`, without XLA if it cannot compile the function."""
        try:
            results = self._global_batch(*arrays)
        except tf.errors.OpError as error:
            if device_memory.is_full(error, self._strategy):
                raise UserError(
                    f"The device's memory is full: {self._model_name} cannot {self._task} "
                    f"{self.batch_size // self._replicas} images at a time; lower "
                    "--eval_batch_size."
                ) from error
            if not isinstance(error, compilation.ERRORS) or not self._function.fall_back(error):
                raise
            self._global_batch = tf.function(self._compute_global_batch)
            results = self._global_batch(*arrays)
        self._function.succeeded()
        return results

    def _compute_global_batch(self, *arrays):
        results = self._strategy.run(self._compute_replica_share, args=arrays)
        return tf.nest.map_structure(
            lambda result: tf.concat(self._strategy.experimental_local_results(result), axis=0),
            results,
        )

    def _compute_replica_share(self, *arrays):
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        size = arrays[0].shape[0] // self._replicas
        return self._function(*(array[replica * size :][:size] for array in arrays))
