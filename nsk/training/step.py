"""One training step of one replica: forward pass, backward pass, update."""

from collections.abc import Callable

import keras
import tensorflow as tf

from nsk import noise
from nsk.distributed.batch_share import Share
from nsk.models.blocks import block_names
from nsk.models.layers import stochastic_depth_names
from nsk.training import optimizers
from nsk.training.ema import ExponentialMovingAverage
from nsk.training.losses import summed_cross_entropy, summed_distillation_loss
from nsk.training.recipe import Recipe
from nsk.training.rematerialization import Rematerialized


class ReplicaStep:
    """A step on a replica's share of the global batch.

    With gradient accumulation (`accumulation_steps`) the share is divided into micro-batches, and
    one update is made with the sum of their gradients: the same as for the whole share, with the
    memory of one micro-batch. The noise of an image, the loss's denominator, clipping and weight
    decay depend on the global batch. Only BatchNorm differs: it computes its statistics over a
    micro-batch, and updates its moving averages with each.

    Args:
        model: the network; create this object in the strategy's scope.
        optimizer: a built optimizer of its trainable weights.
        recipe: `Recipe`.
        noise_key: int64 (2,), the stage's key.
        num_replicas: int.
        average: the moving average to update with each step, if there is one and a single replica.

    Attributes:
        compute: the part of a step that changes no variable: loss, gradients and statistics. It
            communicates with other replicas only if BatchNorm does.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: keras.Optimizer,
        recipe: Recipe,
        noise_key: noise.Key,
        num_replicas: int,
        average: ExponentialMovingAverage | None = None,
    ):
        self._model, self._optimizer, self._recipe = model, optimizer, recipe
        self._noise_key, self._num_replicas, self._average = noise_key, num_replicas, average
        self._forward = model
        if recipe.rematerialize and block_names(model):
            self._forward = Rematerialized(model)
        # BatchNorm's moving averages, which the forward pass updates.
        self._statistics = [
            variable
            for layer in model.layers
            if layer.trainable
            for variable in layer.non_trainable_variables
        ]
        self.compute: Callable = self._compute

    def __call__(self, streams: tuple[dict[str, tf.Tensor], ...], step: tf.Tensor) -> tf.Tensor:
        """Runs the step, in a replica's context.

        Args:
            streams: tuple over streams of dicts `image` uint8 (n, height, width, 3), `target`
                float32 (n, classes), or (n, 2, classes) under distillation, and `weight` float32
                (n,), the replica's share of each.
            step: int32 scalar tensor.

        Returns:
            float32 (2,): this replica's part of the loss and of the gradient norm (L2 penalty
            included, before clipping); the sums over all replicas are those of the step.
        """
        recipe, replica = self._recipe, tf.distribute.get_replica_context()
        counted = streams if recipe.loss_normalization == "all" else streams[:1]
        # Not the sum of their weights: a batch without an image of a rare class has a smaller one,
        # which would raise the weight of all others.
        rows = tf.add_n([tf.shape(stream["weight"])[0] for stream in counted])
        denominator = replica.all_reduce("SUM", tf.cast(rows, tf.float32))
        number = tf.cast(replica.replica_id_in_sync_group, tf.int32)
        loss, gradients, statistics = self.compute(streams, step, number, denominator)
        if statistics and self._num_replicas > 1 and not recipe.synchronized:
            statistics = replica.all_reduce("MEAN", statistics)
        for variable, value in zip(self._statistics, statistics, strict=True):
            variable.assign(value)
        norm = self._update(replica.all_reduce("SUM", gradients))
        if self._average:
            self._average.update(step)
        # Every replica has the whole norm, but only its part of the loss.
        return tf.stack([loss, tf.cast(norm, tf.float32) / self._num_replicas])

    def _compute(self, streams, step, number, denominator):
        """(loss, gradients, new values of BatchNorm's moving averages) of a replica's share.

        Args:
            streams: as for `__call__`.
            step: int32 scalar tensor.
            number: int32 scalar tensor, the replica's.
            denominator: float32 scalar tensor, by which the summed loss is divided.
        """
        recipe = self._recipe
        step_key = noise.step_key(self._noise_key, step)
        positions = Share(number, self._num_replicas).positions(recipe.batch_sizes.values())

        def micro_batch(tensors, index):
            """Rows of a micro-batch from tensors of all streams: every `accumulation_steps`-th row.

            So the micro-batches of all replicas together have the same rows for any number of
            replicas.
            """
            shape = [-1, recipe.accumulation_steps]
            return tf.concat(
                [tf.reshape(rows, [*shape, *rows.shape[1:]])[:, index] for rows in tensors], axis=0
            )

        def compute_gradients(index, statistics):
            # Streams are distributed separately and concatenated here: each replica gets its share
            # of both, and BatchNorm computes its statistics over labelled and pseudo-labelled
            # images together.
            images, targets, weights = (
                micro_batch([stream[name] for stream in streams], index)
                for name in ("image", "target", "weight")
            )
            rows = micro_batch(positions, index)
            names = stochastic_depth_names(self._model)
            with noise.scope(step_key, rows, recipe.global_batch_size, names):
                return self._gradients(images, targets, weights, denominator, statistics)

        return self._accumulate(compute_gradients)

    def _accumulate(self, compute_gradients):
        """Calls a function for each micro-batch: sums of loss and gradients, last statistics.

        Args:
            compute_gradients: function of a micro-batch's index and of statistics that returns
                (loss, gradients, new statistics).
        """
        count = self._recipe.accumulation_steps
        statistics = [variable.value for variable in self._statistics]
        if count == 1:
            return compute_gradients(0, statistics)

        def add(index, loss, gradients, statistics):
            # Otherwise micro-batches would run in parallel.
            with tf.control_dependencies([loss, *gradients]):
                index = tf.identity(index)
            more_loss, more, statistics = compute_gradients(index, statistics)
            gradients = list(map(tf.add, gradients, more))
            return index + 1, loss + more_loss, gradients, statistics

        zeros = [tf.zeros_like(variable.value) for variable in self._model.trainable_variables]
        state = (tf.constant(0), tf.constant(0.0), zeros, statistics)
        if self._num_replicas == 1 or not self._recipe.synchronized:
            state = tf.while_loop(
                lambda index, *_: index < count, add, state, parallel_iterations=1
            )
        else:  # TensorFlow does not allow that BatchNorm synchronises replicas inside a loop.
            for _ in range(count):
                state = add(*state)
        return state[1:]

    def _gradients(self, images, targets, weights, denominator, statistics):
        """(loss, gradients, new statistics) of a micro-batch."""
        variables = [variable.value for variable in self._model.trainable_variables]
        # The scope keeps assignments, so that no variable changes: this can be compiled on its own.
        with keras.StatelessScope(list(zip(self._statistics, statistics, strict=True))) as scope:
            with tf.GradientTape() as tape:
                logits = self._forward(tf.cast(images, tf.float32), training=True)
                loss = self._summed_loss(targets, logits, weights) / denominator
            statistics = [scope.get_current_value(variable) for variable in self._statistics]
        return loss, tape.gradient(loss, variables), statistics

    def _summed_loss(self, targets, logits, weights):
        """Sum over the rows of weight x loss, float32 scalar."""
        alpha, temperature = self._recipe.distillation_alpha, self._recipe.distillation_temperature
        if alpha:
            return summed_distillation_loss(targets, logits, weights, alpha, temperature)
        return summed_cross_entropy(targets, logits, weights)

    def _update(self, gradients):
        """Applies gradients that were summed over all replicas; returns their norm."""
        gradients = self._add_weight_decay(gradients)
        norm = tf.linalg.global_norm(gradients)
        if self._recipe.gradient_clip_norm:
            gradients, _ = tf.clip_by_global_norm(gradients, self._recipe.gradient_clip_norm, norm)
        # Keras optimizers sum over replicas again; every replica has the whole sum already.
        shares = [gradient / self._num_replicas for gradient in gradients]
        self._optimizer.apply(shares, self._model.trainable_variables)
        return norm

    def _add_weight_decay(self, gradients):
        """Adds the gradient of weight_decay x sum of 1/2 w^2, which needs no reduction."""
        if not self._recipe.weight_decay or self._recipe.optimizer == "adamw":
            return gradients
        return [
            gradient + self._recipe.weight_decay * variable.value
            if optimizers.is_decayed(variable)
            else gradient
            for gradient, variable in zip(gradients, self._model.trainable_variables, strict=True)
        ]
