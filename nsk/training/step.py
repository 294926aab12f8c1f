"""One training step of one replica: forward, backward, update."""

import tensorflow as tf

from nsk import noise
from nsk.distributed.batch_share import Share
from nsk.models.blocks import block_names
from nsk.models.layers import stochastic_depth_names
from nsk.training import optimizers
from nsk.training.losses import summed_cross_entropy
from nsk.training.rematerialization import Rematerialized


class ReplicaStep:
    """A step on a replica's share of the global batch.

    With `accumulation_steps` the share is divided into parts that are made one after another, and
    the sum of their gradients makes one update: the same as of the whole share, with the memory of
    one part. The noise of an image, the loss's denominator, clipping and weight decay are those of
    the global batch. BatchNorm alone tells the difference: it takes its statistics over a part, and
    its moving averages go on with every part.

    Args:
        model, optimizer: of the trainer; make this object in the strategy's scope.
        recipe: `Recipe`.
        noise_key: int64 (2,), the stage's key.
        num_replicas: int.
    """

    def __init__(self, model, optimizer, recipe, noise_key, num_replicas):
        self._model, self._optimizer, self._recipe = model, optimizer, recipe
        self._noise_key, self._num_replicas = noise_key, num_replicas
        self._forward = model
        if recipe.rematerialize and block_names(model):
            self._forward = Rematerialized(model)

    def __call__(self, streams, step):
        """Makes the step, in a replica's context.

        Args:
            streams: tuple over streams of dicts `image` uint8 (n, height, width, 3), `target`
                float32 (n, classes) and `weight` float32 (n,), the replica's share of each.
            step: int32 scalar tensor.

        Returns:
            float32 (2,): this replica's part of the loss and of the gradient norm (L2 penalty
            included, before clipping); their sums over all replicas are the step's.
        """
        recipe, replica = self._recipe, tf.distribute.get_replica_context()
        counted = streams if recipe.loss_normalization == "all" else streams[:1]
        weight = tf.add_n([tf.reduce_sum(stream["weight"]) for stream in counted])
        denominator = replica.all_reduce("SUM", weight)
        step_key = noise.step_key(self._noise_key, step)
        number = tf.cast(replica.replica_id_in_sync_group, tf.int32)
        positions = Share(number, self._num_replicas).positions(recipe.batch_sizes.values())

        def rows(of_streams, part):
            """A part of the replica's rows, of all streams: one of every `accumulation_steps`.

            So all replicas' parts together have the same rows however many replicas there are.
            """
            parts = [-1, recipe.accumulation_steps]
            return tf.concat(
                [tf.reshape(one, [*parts, *one.shape[1:]])[:, part] for one in of_streams], axis=0
            )

        def gradients_of(part):
            # Streams are distributed one by one and concatenated here: each replica gets its share
            # of both, and BatchNorm takes its statistics over labelled and pseudo-labelled images
            # together.
            images, targets, weights = (
                rows([stream[name] for stream in streams], part)
                for name in ("image", "target", "weight")
            )
            mine = rows(positions, part)
            names = stochastic_depth_names(self._model)
            with noise.scope(step_key, mine, recipe.global_batch_size, names):
                return self._gradients(images, targets, weights, denominator)

        loss, gradients = self._sum_over_parts(gradients_of)
        norm = self._update(replica.all_reduce("SUM", gradients))
        # Every replica knows the whole norm, and of the loss its part.
        return tf.stack([loss, tf.cast(norm, tf.float32) / self._num_replicas])

    def _sum_over_parts(self, gradients_of):
        """The sums of the loss and of the gradients that a function returns for each part."""
        parts = self._recipe.accumulation_steps
        if parts == 1:
            return gradients_of(0)

        def add(part, *sums):
            with tf.control_dependencies(sums):  # Else parts would run side by side.
                part = tf.identity(part)
            loss, gradients = gradients_of(part)
            return part + 1, *map(tf.add, sums, [loss, *gradients])

        variables = self._model.trainable_variables
        sums = (tf.constant(0), tf.constant(0.0), *(tf.zeros_like(one.value) for one in variables))
        if self._num_replicas == 1:
            sums = tf.while_loop(lambda part, *_: part < parts, add, sums, parallel_iterations=1)
        else:  # Replicas talk to each other in a part, which TensorFlow allows in no loop.
            for _ in range(parts):
                sums = add(*sums)
        _, loss, *gradients = sums
        return loss, gradients

    def _gradients(self, images, targets, weights, denominator):
        """The loss of some rows of the global batch, and its gradients."""
        variables = [variable.value for variable in self._model.trainable_variables]
        with tf.GradientTape() as tape:
            logits = self._forward(tf.cast(images, tf.float32), training=True)
            loss = summed_cross_entropy(targets, logits, weights) / denominator
        return loss, tape.gradient(loss, variables)

    def _update(self, gradients):
        """Applies gradients that are summed over all replicas; returns their norm."""
        gradients = self._add_weight_decay(gradients)
        norm = tf.linalg.global_norm(gradients)
        if self._recipe.gradient_clip_norm:
            gradients, _ = tf.clip_by_global_norm(gradients, self._recipe.gradient_clip_norm, norm)
        # Keras optimizers sum over replicas once more; every replica holds the whole sum already.
        shares = [gradient / self._num_replicas for gradient in gradients]
        self._optimizer.apply(shares, self._model.trainable_variables)
        return norm

    def _add_weight_decay(self, gradients):
        """The gradient of weight_decay x sum of 1/2 w^2, written out: it needs no reduction."""
        if not self._recipe.weight_decay or self._recipe.optimizer == "adamw":
            return gradients
        return [
            gradient + self._recipe.weight_decay * variable.value
            if optimizers.is_decayed(variable)
            else gradient
            for gradient, variable in zip(gradients, self._model.trainable_variables, strict=True)
        ]
