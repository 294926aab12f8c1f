"""Steps of attacks: directions, projections to balls around images, and random points in balls."""

import numpy as np
import tensorflow as tf

from nsk.evaluation.attacked_model import MAX_PIXEL
from nsk.evaluation.corruptions.random_numbers import RandomNumbers


def step(
    points: tf.Tensor,
    clean: tf.Tensor,
    gradients: tf.Tensor,
    step_size: float,
    epsilon: float,
    norm: str,
) -> tf.Tensor:
    """Steps along the gradients, projects to the balls around the images, clips to [0, 255].

    Args:
        points: float32 (n, height, width, 3), pixels in [0, 255].
        clean: the images, of the same shape.
        gradients: of the objective, of the same shape.
        step_size: in units of [0, 1].
        epsilon: radius of the balls in units of [0, 1].
        norm: "inf" or "2".
    """
    points = points + MAX_PIXEL * step_size * direction(gradients, norm)
    return tf.clip_by_value(project(points, clean, MAX_PIXEL * epsilon, norm), 0.0, MAX_PIXEL)


def direction(gradients: tf.Tensor, norm: str) -> tf.Tensor:
    """The steepest change of the length 1 in a norm; 0 where the gradient is 0."""
    if norm == "inf":
        return tf.sign(gradients)
    # Squares of small numbers are 0 in float32: divided by the largest value first.
    scales = tf.reduce_max(tf.abs(gradients), axis=[1, 2, 3], keepdims=True)
    scaled = tf.math.divide_no_nan(gradients, scales)
    return tf.math.divide_no_nan(scaled, lengths(scaled))


def project(points: tf.Tensor, clean: tf.Tensor, radius: float, norm: str) -> tf.Tensor:
    """The nearest points in balls of a radius in levels around the images."""
    if norm == "inf":
        return tf.clip_by_value(points, clean - radius, clean + radius)
    changes = points - clean
    distances = lengths(changes)
    inside = tf.math.divide_no_nan(radius, distances) * changes
    return tf.where(distances <= radius, points, clean + inside)


def lengths(changes: tf.Tensor) -> tf.Tensor:
    """Euclidean length of each image's values, float32 (n, 1, 1, 1)."""
    return tf.sqrt(tf.reduce_sum(changes**2, axis=[1, 2, 3], keepdims=True))


def uniform_in_ball(numbers: RandomNumbers, shape: tuple[int, ...], norm: str) -> np.ndarray:
    """Points that are uniform in the unit ball of a norm, float64 (n, *shape)."""
    if norm == "inf":
        return numbers.uniform(-1, 1, shape)
    # The first d coordinates of a point on the sphere in d + 2 dimensions are uniform in the ball
    # of d dimensions (Voelker et al., 2017).
    size = int(np.prod(shape))
    normal = numbers.normal((size + 2,))
    on_sphere = normal / np.linalg.norm(normal, axis=1, keepdims=True)
    return on_sphere[:, :size].reshape(-1, *shape)
