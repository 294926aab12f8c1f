"""What attacks know about the network: its predictions and input gradients, and their goal."""

import functools
from collections.abc import Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from nsk.evaluation.predictor import Predictor

MAX_PIXEL = 255.0
LOSSES = ("cross_entropy", "logit")
DEFAULT_BATCH_SIZE = 256


class AttackedModel:
    """A network, its predictions and its input gradients, which are compiled once.

    The functions of this module make one when they are given a Keras model. Make it yourself to
    call them several times, to choose the batch size, devices and XLA, or to measure attacks with
    the numbers of an evaluation: predictions are the predictor's.

    Args:
        predictor: predicts with the network, from one view of an image. A gradient takes about
            three times the time of a prediction, and the memory of a training step.
    """

    def __init__(self, predictor: Predictor):
        if predictor.views != "image":
            raise ValueError(f"views={predictor.views!r}: attacks need a predictor of one view.")
        self._predictor = predictor
        self._gradients = {
            loss: predictor.batch_function(
                functools.partial(_differentiate, predictor.model, loss), "attack"
            )
            for loss in LOSSES
        }

    @property
    def model(self) -> keras.Model:
        """The network."""
        return self._predictor.model

    def batches(self, number: int) -> Iterator[slice]:
        """Slices of at most a batch that cover a number of images."""
        size = self._predictor.batch_size
        return (slice(first, first + size) for first in range(0, number, size))

    def log_probabilities(self, images: np.ndarray | tf.Tensor) -> np.ndarray:
        """Predicts any number of images, float32 (n, num_classes); see `Predictor`."""
        parts = [
            self._predictor.log_probabilities(tf.cast(images[rows], tf.float32))
            for rows in self.batches(len(images))
        ]
        return np.concatenate(parts)

    def gradients(
        self, images: np.ndarray | tf.Tensor, classes: np.ndarray, loss: str = "cross_entropy"
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Differentiates the losses of at most a batch of images with respect to their pixels.

        Args:
            images: (n, height, width, 3), pixels in [0, 255].
            classes: int32 (n,).
            loss: "cross_entropy", or "logit": the negative logit of the class.

        Returns:
            Gradients, float32 of the images' shape, per level of 255; losses, float32 (n,); and
            predicted classes, int32 (n,). Values of gradients that are not finite are 0.
        """
        return self._gradients[loss](tf.cast(images, tf.float32), classes)


def _differentiate(model, loss, images, classes):
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(images)
        logits = tf.cast(model(images, training=False), tf.float32)
        if loss == "logit":
            losses = -tf.gather(logits, classes, batch_dims=1)
        else:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(classes, logits)
        total = tf.reduce_sum(losses)  # Of a sum, each image's gradient is that of its own loss.
    gradients = tape.gradient(total, images, unconnected_gradients="zero")
    gradients = tf.where(tf.math.is_finite(gradients), gradients, 0.0)
    predictions = tf.argmax(tf.nn.log_softmax(logits), axis=1, output_type=tf.int32)
    return gradients, losses, predictions


def as_attacked_model(model: keras.Model | AttackedModel) -> AttackedModel:
    """Returns an `AttackedModel` as it is, and makes one of a Keras model."""
    if isinstance(model, AttackedModel):
        return model
    return AttackedModel(Predictor(model, DEFAULT_BATCH_SIZE))


class Goal:
    """What an attack wants: another prediction than the label, or the target.

    Args:
        labels: int (n,).
        targets: int (n,), none the label of its image; None: any class except the label.

    Attributes:
        labels: int32 (n,).
        classes: int32 (n,), of which the loss is: labels or targets.
    """

    def __init__(self, labels: ArrayLike, targets: ArrayLike | None = None):
        self.labels = _class_array("labels", labels)
        self.is_targeted = targets is not None
        self.classes = _class_array("targets", targets) if self.is_targeted else self.labels

    def ascend(
        self,
        model: AttackedModel,
        images: np.ndarray | tf.Tensor,
        rows: slice | np.ndarray,
        loss: str = "cross_entropy",
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Differentiates the objective, which an attack makes as large as possible.

        Args:
            model: the network.
            images: at most a batch of m images.
            rows: which of the n images they are.
            loss: see `AttackedModel.gradients`.

        Returns:
            Tensors: gradients, objectives (m,) and whether the images are a success (m,).
        """
        classes = self.classes[rows]
        gradients, losses, predictions = model.gradients(images, classes, loss)
        if not self.is_targeted:
            return gradients, losses, predictions != classes
        return -gradients, -losses, predictions == classes

    def judge(
        self, log_probabilities: np.ndarray, rows: slice | np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the objectives (m,) and whether predictions are a success (m,), NumPy arrays.

        Args:
            log_probabilities: float32 (m, num_classes).
            rows: which of the n images they are of.
        """
        classes = self.classes[rows]
        chosen = np.take_along_axis(log_probabilities, classes[:, np.newaxis], axis=1)[:, 0]
        predictions = log_probabilities.argmax(axis=1)
        if not self.is_targeted:
            return -chosen, predictions != classes
        return chosen, predictions == classes


def prepare(
    model: keras.Model | AttackedModel,
    images: ArrayLike,
    goal: Goal,
    epsilon: float,
    norm: str = "inf",
) -> tuple[AttackedModel, np.ndarray]:
    """Checks the arguments of an attack.

    Args:
        model: returns logits.
        images: uint8 or float32 (n, height, width, 3), pixels in [0, 255].
        goal: of n images.
        epsilon: in units of [0, 1].
        norm: "inf" or "2".

    Returns:
        The `AttackedModel`, and the images as a float32 array.

    Raises:
        ValueError: an argument has another shape, type or range.
    """
    if not 0 <= epsilon < np.inf or (norm == "inf" and epsilon > 1):
        raise ValueError(
            f"epsilon={epsilon}: expected units of [0, 1]; 8 of 255 levels, say, are 8 / 255."
        )
    model, images = as_attacked_model(model), check_images(images)
    _check_goal(goal, len(images), model.model.output_shape[-1])
    return model, images


def check_images(images: ArrayLike) -> np.ndarray:
    """Returns images as float32, or raises ValueError."""
    images = np.asarray(images)
    if images.ndim != 4 or not len(images) or images.dtype not in (np.uint8, np.float32):
        raise ValueError(
            f"images of shape {images.shape} and type {images.dtype}: expected uint8 or float32 "
            "(n, height, width, 3), at least one."
        )
    if images.dtype == np.float32 and not (images.min() >= 0 and images.max() <= MAX_PIXEL):
        raise ValueError(f"pixels from {images.min()} to {images.max()}: expected [0, 255].")
    return images.astype(np.float32)


def check_ids(ids: Sequence[str] | None, number: int) -> Sequence[str]:
    """Returns the ids of images, their positions for None, or raises ValueError."""
    if ids is None:
        return [str(row) for row in range(number)]
    if len(ids) != number:
        raise ValueError(f"{number} images and {len(ids)} ids: expected as many.")
    return ids


def _check_goal(goal, number, num_classes):
    for name, classes in (("labels", goal.labels), ("targets", goal.classes)):
        if len(classes) != number:
            raise ValueError(f"{number} images and {len(classes)} {name}: expected as many.")
        if classes.min() < 0 or classes.max() >= num_classes:
            raise ValueError(
                f"{name} from {classes.min()} to {classes.max()}: expected 0 to {num_classes - 1}."
            )
    if goal.is_targeted and np.any(goal.classes == goal.labels):
        row = np.flatnonzero(goal.classes == goal.labels)[0]
        raise ValueError(f"target {goal.classes[row]} of image {row} is its label.")


def _class_array(name, classes):
    classes = np.asarray(classes)
    if classes.ndim != 1 or not np.issubdtype(classes.dtype, np.integer):
        raise ValueError(
            f"{name} of shape {classes.shape} and type {classes.dtype}: expected integers (n,)."
        )
    return classes.astype(np.int32)
