"""Predictions of every image exactly once, in order, without noise."""

import collections
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping

import keras
import numpy as np
import tensorflow as tf

from nsk.distributed import compilation, device_memory
from nsk.errors import GenerationFailedError, UserError

VIEWS = ("image", "mirror")
# Short batches are padded to a multiple of this, so that few batch sizes, and graphs, occur.
BATCH_SIZE_MULTIPLE = 32


@dataclasses.dataclass(frozen=True)
class Predictions:
    """A model's predictions of n images.

    Attributes:
        ids: list of strings (n,).
        labels: int32 array (n,), the true ones; -1: unknown.
        log_probabilities: float32 array (n, num_classes), natural logarithms.
    """

    ids: list[str]
    labels: np.ndarray
    log_probabilities: np.ndarray


class Predictor:
    """Predicts with a model, on all replicas of a strategy.

    Args:
        model: a `keras.Model` that takes float32 pixels in [0, 255] and returns logits.
        batch_size: maximum number of images in a batch; rounded up to a multiple of the replicas.
        strategy: a `tf.distribute.Strategy`; None: the default device.
        views: "image", or "mirror": the mean of the probabilities of an image and its mirror image.
        jit_compile: auto | on | off, whether XLA compiles the model, see `compilation`.

    Reference:
        Labels from several views of an image:
        [Radosavovic et al., 2018](https://arxiv.org/abs/1712.04440)
    """

    def __init__(
        self,
        model: keras.Model,
        batch_size: int,
        strategy: tf.distribute.Strategy | None = None,
        views: str = "image",
        jit_compile: str = "auto",
    ):
        if views not in VIEWS:
            raise ValueError(f"views={views!r}: expected one of {', '.join(VIEWS)}.")
        self.model = model
        self._views = views
        self._strategy = strategy or tf.distribute.get_strategy()
        self._replicas = self._strategy.num_replicas_in_sync
        self._batch_size = -(-batch_size // self._replicas) * self._replicas
        is_compiled = compilation.is_compiled(jit_compile, self._strategy)
        title = f"Predictions of {getattr(model, 'name', model)}"
        self._forward = compilation.Compilable(self._predict_view, is_compiled, title)
        self._global_batch = tf.function(self._predict_global_batch)

    @property
    def batch_size(self) -> int:
        """Maximum number of images in a batch."""
        return self._batch_size

    def __call__(self, batches: Iterable[Mapping[str, tf.Tensor]]) -> Iterator[Predictions]:
        """Predicts batch by batch.

        Args:
            batches: iterable of dicts of tensors `id` string (n,), `label` int (n,) and `image`
                uint8 (n, height, width, 3), with n at most the batch size.

        Yields:
            `Predictions` of each batch.

        Raises:
            GenerationFailedError: the outputs are not finite.
            UserError: the memory of a device is full.
        """
        started = collections.deque()
        for batch in batches:
            # A GPU computes a batch while the next one is fetched.
            labels = np.asarray(batch["label"]).astype(np.int32)
            started.append((batch["id"], labels, self._start(batch["image"])))
            if len(started) > 1:
                yield self._finish(*started.popleft())
        while started:
            yield self._finish(*started.popleft())

    def _finish(self, ids, labels, log_probabilities):
        """The `Predictions` of a batch that was started."""
        ids = [image_id.decode() for image_id in np.asarray(ids)]
        return Predictions(ids, labels, self._fetch(log_probabilities))

    def log_probabilities(self, images: np.ndarray | tf.Tensor) -> np.ndarray:
        """Predicts a batch.

        Args:
            images: uint8 (n, height, width, 3), with n at most the batch size.

        Returns:
            float32 array (n, num_classes), natural logarithms.
        """
        return self._fetch(self._start(images))

    def _start(self, images):
        """Starts the prediction of a batch; returns a tensor, which a GPU may still compute."""
        count = len(images)
        if count > self._batch_size:
            raise ValueError(f"{count} images: expected at most a batch of {self._batch_size}.")
        return self._predict_padded(self._pad(images))[:count]

    def _fetch(self, log_probabilities):
        """The values of a tensor that `_start` returned; waits for them."""
        values = log_probabilities.numpy()
        if not np.isfinite(values).all():
            raise GenerationFailedError(
                f"The model {self.model.name} predicts values that are not finite: its training "
                "diverged. Lower --learning_rate or set --gradient_clip_norm."
            )
        return values

    def _pad(self, images):
        """Pads a short batch with black images, whose rows are dropped."""
        multiple = math.lcm(BATCH_SIZE_MULTIPLE, self._replicas)
        if self._forward.is_compiled:  # Every size would be compiled, which takes many seconds.
            multiple = self._batch_size
        size = min(-(-len(images) // multiple) * multiple, self._batch_size)
        return tf.pad(images, [[0, size - len(images)], [0, 0], [0, 0], [0, 0]])

    def _predict_padded(self, images):
        """`_predict_global_batch`, without XLA if it cannot compile the model."""
        try:
            log_probabilities = self._global_batch(images)
        except tf.errors.OpError as error:
            if device_memory.is_full(error, self._strategy):
                raise UserError(
                    f"The device's memory is full: {self.model.name} cannot predict "
                    f"{self._batch_size // self._replicas} images at a time; lower "
                    "--eval_batch_size."
                ) from error
            if not isinstance(error, compilation.ERRORS) or not self._forward.fall_back(error):
                raise
            self._global_batch = tf.function(self._predict_global_batch)
            log_probabilities = self._global_batch(images)
        self._forward.succeeded()
        return log_probabilities

    def _predict_global_batch(self, batch):
        results = self._strategy.run(self._predict_replica_share, args=(batch,))
        return tf.concat(self._strategy.experimental_local_results(results), axis=0)

    def _predict_replica_share(self, batch):
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        size = batch.shape[0] // self._replicas
        images = tf.cast(batch[replica * size :][:size], tf.float32)
        if self._views == "image":
            return self._forward(images)
        views = [self._forward(images), self._forward(tf.reverse(images, axis=[2]))]
        return tf.reduce_logsumexp(views, axis=0) - np.log(len(views))

    def _predict_view(self, images):
        logits = self.model(images, training=False)
        return tf.nn.log_softmax(tf.cast(logits, tf.float32))


def collect(predictions: Iterable[Predictions]) -> Predictions:
    """Concatenates the predictions of all batches."""
    parts = list(predictions)
    return Predictions(
        [image_id for part in parts for image_id in part.ids],
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.log_probabilities for part in parts]),
    )
