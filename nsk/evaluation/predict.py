"""Predictions of every image exactly once: clean, without noise, in order."""

import numpy as np
import tensorflow as tf

from nsk.errors import CannotTeachError


class Predictor:
    """Log-probabilities of a model, on every replica of a strategy.

    Args:
        model: a `keras.Model` that takes float32 pixels in [0, 255] and returns logits.
        batch_size: images in a global batch; rounded up to a multiple of the replicas.
        strategy: a `tf.distribute.Strategy`; None: the default device.
    """

    def __init__(self, model, batch_size, strategy=None):
        self.model = model
        self._strategy = strategy or tf.distribute.get_strategy()
        replicas = self._strategy.num_replicas_in_sync
        self._share = -(-batch_size // replicas)
        self._batch_size = self._share * replicas

    def __call__(self, images):
        """Predicts.

        Args:
            images: uint8 tensor (n, height, width, 3), n >= 1.

        Returns:
            float32 array (n, classes), natural logarithms of probabilities.

        Raises:
            CannotTeachError: the model's weights are broken.
        """
        count = len(images)
        parts = []
        for first in range(0, count, self._batch_size):
            batch = images[first : first + self._batch_size]
            # A short last batch is filled up with black images; their rows are cut off below.
            missing = self._batch_size - len(batch)
            parts.append(self._global_batch(tf.pad(batch, [[0, missing], [0, 0], [0, 0], [0, 0]])))
        log_probabilities = tf.concat(parts, axis=0)[:count].numpy()
        if not np.isfinite(log_probabilities).all():
            raise CannotTeachError(
                f"The model {self.model.name} predicts values that are not finite: its training "
                "diverged. Lower --learning_rate or set --gradient_clip_norm."
            )
        return log_probabilities

    @tf.function(reduce_retracing=True)
    def _global_batch(self, batch):
        results = self._strategy.run(self._replica_share, args=(batch,))
        return tf.concat(self._strategy.experimental_local_results(results), axis=0)

    def _replica_share(self, batch):
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        mine = batch[replica * self._share :][: self._share]
        logits = self.model(tf.cast(mine, tf.float32), training=False)
        return tf.nn.log_softmax(tf.cast(logits, tf.float32))
