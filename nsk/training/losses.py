"""Targets from labels and pseudo-labels, and the loss over a mixed global batch.

Targets are probabilities (batch, classes), so that true labels, hard and soft pseudo-labels, and
mixtures of them share one cross entropy. Under distillation an image has two: (batch, 2, classes)
holds its hard label and the teacher's softened probabilities.

References: Xie et al., 2020 (arXiv 1911.04252), section 3; distillation: Hinton et al., 2015 (arXiv
1503.02531).
"""

import numpy as np
import tensorflow as tf


def balanced_class_weights(counts: np.ndarray) -> np.ndarray:
    """Weights of images by class, inversely proportional to the class's number of images.

    Args:
        counts: int array (num_classes,), images of each class, at least one image in all.

    Returns:
        float32 array (num_classes,), n / (classes with images x images of the class): their mean
        over all images is 1, and the sum over the images of a class is the same for every class. 1
        for classes without images.

    Reference:
        King and Zeng, 2001, Logistic regression in rare events data.
    """
    has_images = counts > 0
    weights = np.ones(len(counts))
    weights[has_images] = counts.sum() / (np.count_nonzero(has_images) * counts[has_images])
    return weights.astype(np.float32)


def label_targets(labels: tf.Tensor, num_classes: int, label_smoothing: float = 0.0) -> tf.Tensor:
    """Label-smoothed targets, (1 - e) one-hot + e / C.

    Args:
        labels: int tensor (batch,).
        num_classes: C.
        label_smoothing: e in [0, 1).

    Returns:
        float32 tensor (batch, num_classes); rows sum to 1.
    """
    one_hot = tf.one_hot(labels, num_classes)
    return (1.0 - label_smoothing) * one_hot + label_smoothing / num_classes


def pseudo_targets(
    labels: tf.Tensor,
    log_probabilities: tf.Tensor,
    kind: str,
    *,
    temperature: float = 1.0,
    smooth_epsilon: float = 0.1,
    label_smoothing: float = 0.0,
) -> tf.Tensor:
    """Targets of a student from a teacher's predictions.

    Args:
        labels: int tensor (batch,), the teacher's most probable classes. Stored log-probabilities
            are rounded to float16, in which the two largest may be equal, so that their argmax may
            differ.
        log_probabilities: float32 tensor (batch, C), the teacher's.
        kind: `soft`: p^(1/T) / sum p^(1/T), not smoothed | `hard`: the label-smoothed one-hot of
            the most probable class | `smooth`: 1 - e for that class and e / (C - 1) for each other.
        temperature: T of soft labels.
        smooth_epsilon: e of `smooth`.
        label_smoothing: smoothing of `hard`.

    Returns:
        float32 tensor (batch, C); rows sum to 1.
    """
    num_classes = log_probabilities.shape[-1]
    if kind == "soft":
        return tf.nn.softmax(log_probabilities / temperature)
    if kind == "hard":
        return label_targets(labels, num_classes, label_smoothing)
    if kind == "smooth":
        off = smooth_epsilon / (num_classes - 1)
        return tf.one_hot(labels, num_classes, on_value=1.0 - smooth_epsilon, off_value=off)
    raise ValueError(f"kind={kind!r}: expected soft, hard or smooth.")


def distillation_targets(
    labels: tf.Tensor,
    log_probabilities: tf.Tensor,
    *,
    temperature: float,
    label_smoothing: float = 0.0,
) -> tf.Tensor:
    """The two targets of an image under distillation, see `summed_distillation_loss`.

    Args:
        labels: int tensor (batch,), true labels or a teacher's most probable classes.
        log_probabilities: float32 tensor (batch, C), the teacher's.
        temperature: T of the teacher's softmax.
        label_smoothing: smoothing of the hard labels.

    Returns:
        float32 tensor (batch, 2, C): the label-smoothed one-hot of the label, and p^(1/T) /
        sum p^(1/T); rows sum to 1.
    """
    hard = label_targets(labels, log_probabilities.shape[-1], label_smoothing)
    return tf.stack([hard, tf.nn.softmax(log_probabilities / temperature)], axis=1)


def summed_distillation_loss(
    targets: tf.Tensor,
    logits: tf.Tensor,
    weights: tf.Tensor,
    alpha: float,
    temperature: float,
) -> tf.Tensor:
    """Sum over the rows of weight x distillation loss; float32 scalar.

    The loss of a row is (1 - alpha) CE(hard, softmax(z)) + alpha T^2 KL(soft || softmax(z / T)) for
    logits z. The factor T^2 keeps the size of the second gradient about the same for all T.

    Args:
        targets: float32 (batch, 2, C): hard and soft, see `distillation_targets`, or mixtures of
            those of several images.
        logits: float (batch, C).
        weights: float32 (batch,).
        alpha: share of the teacher's term, from 0 to 1.
        temperature: T, which the soft targets were made with.
    """
    hard, soft = tf.unstack(targets, axis=1)
    logits = tf.cast(logits, tf.float32)
    cross_entropy = tf.nn.softmax_cross_entropy_with_logits(hard, logits)
    divergence = tf.nn.softmax_cross_entropy_with_logits(soft, logits / temperature)
    divergence += tf.reduce_sum(tf.math.xlogy(soft, soft), axis=1)
    losses = (1.0 - alpha) * cross_entropy + alpha * temperature**2 * divergence
    return tf.reduce_sum(weights * losses)


def summed_cross_entropy(targets: tf.Tensor, logits: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Sum over the rows of weight x cross entropy; float32 scalar.

    A sum, not a mean: the rows of one mean are on several replicas, so the trainer divides by the
    number of rows of the *global* batch.

    Args:
        targets: float32 (batch, C), probabilities.
        logits: float (batch, C).
        weights: float32 (batch,).
    """
    losses = tf.nn.softmax_cross_entropy_with_logits(targets, tf.cast(logits, tf.float32))
    return tf.reduce_sum(weights * losses)
