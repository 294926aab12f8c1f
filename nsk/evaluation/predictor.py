"""Predictions of every image exactly once, in order."""

import collections
import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping

import keras
import numpy as np
import tensorflow as tf

from nsk import noise
from nsk.errors import GenerationFailedError
from nsk.evaluation.batch_function import BatchFunction

VIEWS = ("image", "mirror")


@dataclasses.dataclass(frozen=True)
class Predictions:
    """A model's predictions of n images.

    Attributes:
        ids: list of strings (n,).
        labels: int32 array (n,), the true ones; -1: unknown.
        log_probabilities: float32 array (n, num_classes), natural logarithms.
        features: float32 array (n, channels), the inputs of the model's last layer; None: unknown.
    """

    ids: list[str]
    labels: np.ndarray
    log_probabilities: np.ndarray
    features: np.ndarray | None = None


class Predictor:
    """Predicts with a model, on all replicas of a strategy.

    Args:
        model: a `keras.Model` that takes float32 pixels in [0, 255] and returns logits.
        batch_size: maximum number of images in a batch; rounded up to a multiple of the replicas.
        strategy: a `tf.distribute.Strategy`; None: the default device.
        views: "image", or "mirror": the mean of the probabilities of an image and its mirror image.
        jit_compile: auto | on | off, whether XLA compiles the model, see `compilation`.
        feature_model: the same model with the outputs (logits, features); None: the features are
            not predicted. Those of several views are their mean.

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
        feature_model: keras.Model | None = None,
    ):
        if views not in VIEWS:
            raise ValueError(f"views={views!r}: expected one of {', '.join(VIEWS)}.")
        self.model, self._feature_model = model, feature_model
        self._views = views
        self._strategy = strategy or tf.distribute.get_strategy()
        self._max_batch_size, self._jit_compile = batch_size, jit_compile
        self._start = self.batch_function(self._predict_views, "predict")

    @property
    def batch_size(self) -> int:
        """Maximum number of images in a batch."""
        return self._start.batch_size

    @property
    def views(self) -> str:
        """What is predicted: "image" or "mirror"."""
        return self._views

    def batch_function(self, function: Callable, task: str) -> BatchFunction:
        """Makes a function of batches that runs as the predictions do.

        Args:
            function: calls `self.model`, see `BatchFunction`.
            task: what the function does to images, in messages: a verb.
        """
        name = str(getattr(self.model, "name", self.model))
        return BatchFunction(
            function, self._max_batch_size, self._strategy, self._jit_compile, name, task
        )

    def __call__(self, batches: Iterable[Mapping[str, tf.Tensor]]) -> Iterator[Predictions]:
        """Predicts batch by batch.

        Args:
            batches: iterable of dicts of tensors `id` string (n,), `label` int (n,) and `image`
                uint8 (n, height, width, 3), with n at most the batch size; with `noise_key` int64
                (n, 2), keys of `nsk.noise`, the noise inside the network is on, and nothing else
                of its training if `prepare_for_noise` has prepared it.

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
            inputs = [batch[name] for name in ("image", "noise_key") if name in batch]
            started.append((batch["id"], labels, self._start(*inputs)))
            if len(started) > 1:
                yield self._finish(*started.popleft())
        while started:
            yield self._finish(*started.popleft())

    def _finish(self, ids, labels, outputs):
        """The `Predictions` of a batch that was started."""
        ids = [image_id.decode() for image_id in np.asarray(ids)]
        return Predictions(ids, labels, *map(self._fetch, outputs))

    def log_probabilities(self, images: np.ndarray | tf.Tensor) -> np.ndarray:
        """Predicts a batch.

        Args:
            images: uint8 (n, height, width, 3), with n at most the batch size.

        Returns:
            float32 array (n, num_classes), natural logarithms.
        """
        return self._fetch(self._start(images)[0])

    def _fetch(self, output):
        """The values of a tensor that `_start` returned; waits for them."""
        values = output.numpy()
        if not np.isfinite(values).all():
            raise GenerationFailedError(
                f"The model {self.model.name} predicts values that are not finite: its training "
                "diverged. Lower --learning_rate or set --gradient_clip_norm."
            )
        return values

    def _predict_views(self, images, keys=None):
        """(log-probabilities,) of images; with a feature model (log-probabilities, features).

        Both views of an image have the same noise of the network.
        """
        images = tf.cast(images, tf.float32)
        with contextlib.nullcontext() if keys is None else noise.scope(keys):
            return self._predict_noisy_views(images, keys is not None)

    def _predict_noisy_views(self, images, has_noise):
        """`_predict_views`, in a scope of noise if the network has noise."""
        if self._views == "image":
            return self._predict_view(images, has_noise)
        mirrored = tf.reverse(images, axis=[2])
        views = [self._predict_view(view, has_noise) for view in (images, mirrored)]
        log_probabilities, *features = zip(*views, strict=True)
        mean = tf.reduce_logsumexp(log_probabilities, axis=0) - np.log(len(views))
        return mean, *(tf.reduce_mean(values, axis=0) for values in features)

    def _predict_view(self, images, has_noise):
        if self._feature_model is None:
            logits, *features = [self.model(images, training=has_noise)]
        else:
            logits, *features = self._feature_model(images, training=has_noise)
        log_probabilities = tf.nn.log_softmax(tf.cast(logits, tf.float32))
        return log_probabilities, *(tf.cast(values, tf.float32) for values in features)


def collect(predictions: Iterable[Predictions]) -> Predictions:
    """Concatenates the predictions of all batches."""
    parts = list(predictions)
    return Predictions(
        [image_id for part in parts for image_id in part.ids],
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.log_probabilities for part in parts]),
    )
