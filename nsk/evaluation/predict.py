"""Predictions of every image exactly once: clean, without noise, in order."""

import dataclasses
import math

import numpy as np
import tensorflow as tf

from nsk import compilation
from nsk.errors import CannotTeachError

VIEWS = ("image", "mirror")
# Short batches are filled up to a multiple of this, so that there are few sizes and graphs.
BATCH_STEP = 32


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a model says of n images.

    Attributes:
        ids: list of strings (n,).
        labels: int32 array (n,), the true ones; -1 where there is none.
        log_probabilities: float32 array (n, classes), natural logarithms.
    """

    ids: list
    labels: np.ndarray
    log_probabilities: np.ndarray


class Predictor:
    """A model's predictions, on every replica of a strategy.

    Args:
        model: a `keras.Model` that takes float32 pixels in [0, 255] and returns logits.
        batch_size: most images in a batch; rounded up to a multiple of the replicas.
        strategy: a `tf.distribute.Strategy`; None: the default device.
        views: "image", or "mirror": the mean of the probabilities of an image and its mirror image.
        jit_compile: auto | on | off, whether XLA compiles the model, see `compilation`.

    Reference:
        Labels from several views of one image:
        [Radosavovic et al., 2018](https://arxiv.org/abs/1712.04440)
    """

    def __init__(self, model, batch_size, strategy=None, views="image", jit_compile="auto"):
        if views not in VIEWS:
            raise ValueError(f"views={views!r}: expected one of {', '.join(VIEWS)}.")
        self.model = model
        self._views = views
        self._strategy = strategy or tf.distribute.get_strategy()
        self._replicas = self._strategy.num_replicas_in_sync
        self._batch_size = -(-batch_size // self._replicas) * self._replicas
        is_compiled = compilation.is_compiled(jit_compile, self._strategy)
        title = f"Predictions of {getattr(model, 'name', model)}"
        self._forward = compilation.Compilable(self._of_view, is_compiled, title)
        self._global_batch = tf.function(self._predict_global_batch)

    def __call__(self, batches):
        """Predicts batch by batch.

        Args:
            batches: iterable of dicts of tensors `id` string (n,), `label` int (n,) and `image`
                uint8 (n, height, width, 3), with n at most the batch size.

        Yields:
            `Predictions` of each batch.

        Raises:
            CannotTeachError: the model's weights are broken.
        """
        for batch in batches:
            yield Predictions(
                [one.decode() for one in np.asarray(batch["id"])],
                np.asarray(batch["label"]).astype(np.int32),
                self.log_probabilities(batch["image"]),
            )

    def log_probabilities(self, images):
        """float32 array (n, classes) of uint8 images (n, height, width, 3), n at most a batch."""
        count = len(images)
        if count > self._batch_size:
            raise ValueError(f"{count} images: expected at most a batch of {self._batch_size}.")
        log_probabilities = self._of_full_batch(self._fill_up(images))[:count].numpy()
        if not np.isfinite(log_probabilities).all():
            raise CannotTeachError(
                f"The model {self.model.name} predicts values that are not finite: its training "
                "diverged. Lower --learning_rate or set --gradient_clip_norm."
            )
        return log_probabilities

    def _fill_up(self, images):
        """Fills a short batch up with black images, whose rows are cut off afterwards."""
        step = math.lcm(BATCH_STEP, self._replicas)
        if self._forward.is_compiled:  # Every size is compiled anew, which takes many seconds.
            step = self._batch_size
        filled = min(-(-len(images) // step) * step, self._batch_size)
        return tf.pad(images, [[0, filled - len(images)], [0, 0], [0, 0], [0, 0]])

    def _of_full_batch(self, images):
        """`_predict_global_batch`, without XLA if it cannot compile the model."""
        try:
            log_probabilities = self._global_batch(images)
        except compilation.ERRORS as error:
            if not self._forward.fall_back(error):
                raise
            self._global_batch = tf.function(self._predict_global_batch)
            log_probabilities = self._global_batch(images)
        self._forward.succeeded()
        return log_probabilities

    def _predict_global_batch(self, batch):
        results = self._strategy.run(self._replica_share, args=(batch,))
        return tf.concat(self._strategy.experimental_local_results(results), axis=0)

    def _replica_share(self, batch):
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        share = batch.shape[0] // self._replicas
        mine = batch[replica * share :][:share]
        mine = tf.cast(mine, tf.float32)
        if self._views == "image":
            return self._forward(mine)
        views = [self._forward(mine), self._forward(tf.reverse(mine, axis=[2]))]
        return tf.reduce_logsumexp(views, axis=0) - np.log(len(views))

    def _of_view(self, images):
        logits = self.model(images, training=False)
        return tf.nn.log_softmax(tf.cast(logits, tf.float32))


def collect(predictions):
    """An iterator over `Predictions` as one."""
    parts = list(predictions)
    return Predictions(
        [one for part in parts for one in part.ids],
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.log_probabilities for part in parts]),
    )
