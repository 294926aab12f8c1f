"""Mixup and CutMix: combine pairs of training images and their targets.

Pixels and targets are mixed in the same proportion, so that targets may be soft, or several
distributions of an image. Partners are in the same batch, labelled and pseudo-labelled images
together; every pair draws its own proportion. The result is a pure function of the arguments and a
key of `nsk.noise`.
"""

import tensorflow as tf

from nsk import noise
from nsk.data.image_tensors import checked, flat, like, sizes


@tf.autograph.experimental.do_not_convert
def mixup(
    images: tf.Tensor,
    targets: tf.Tensor,
    key: tf.Tensor,
    alpha: float,
    batch_size: int | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mixes pairs: lambda x + (1 - lambda) y, lambda of each image drawn from Beta(alpha, alpha).

    Args:
        images: uint8 (batch, height, width, 3).
        targets: float32 (batch, ...), probabilities of classes.
        key: int64 (2,), a key of `nsk.noise`.
        alpha: float > 0; 1 draws uniformly, smaller values stay closer to one of the images.
        batch_size: int, if these are several batches of this size, one after the other: partners
            are in the same batch; None: one batch.

    Returns:
        (images, targets) of the same shapes and types; pixels are rounded to the nearest level.

    Reference:
        [Zhang et al., 2018](https://arxiv.org/abs/1710.09412)
    """
    images = checked(images)
    key = noise.named(key, "mixup")
    partners = draw_partners(key, tf.shape(images)[0], batch_size)
    share = draw_beta(key, tf.shape(images)[0], alpha)[:, None]
    mixed_targets = _mix_targets(targets, partners, share)
    values, partner_values = flat(images), tf.gather(flat(images), partners)
    mixed = share * tf.cast(values, tf.float32)
    mixed += (1.0 - share) * tf.cast(partner_values, tf.float32)
    return like(tf.cast(mixed + 0.5, tf.uint8), images), mixed_targets  # The cast truncates.


@tf.autograph.experimental.do_not_convert
def cutmix(
    images: tf.Tensor,
    targets: tf.Tensor,
    key: tf.Tensor,
    alpha: float,
    batch_size: int | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Pastes a box of a partner into each image; targets are mixed by the share of its pixels.

    The box has the image's aspect ratio and about 1 - lambda of its area, with lambda drawn from
    Beta(alpha, alpha) for each image. Its centre is drawn uniformly, so the border may cut it.

    Args:
        images: uint8 (batch, height, width, 3).
        targets: float32 (batch, ...), probabilities of classes.
        key: int64 (2,), a key of `nsk.noise`.
        alpha: float > 0.
        batch_size: see `mixup`.

    Returns:
        (images, targets) of the same shapes and types.

    Reference:
        [Yun et al., 2019](https://arxiv.org/abs/1905.04899)
    """
    images = checked(images)
    batch, height, width = sizes(images)
    key = noise.named(key, "cutmix")
    partners = draw_partners(key, batch, batch_size)
    side = tf.sqrt(1.0 - draw_beta(key, batch, alpha))
    centers = noise.uniform(noise.named(key, "center"), [batch, 2])
    rows = _inside(tf.range(height), centers[:, 0], side, height)
    columns = _inside(tf.range(width * 3) // 3, centers[:, 1], side, width)
    box = flat(tf.logical_and(rows[:, :, None], columns[:, None, :]))
    pasted = tf.where(box, tf.gather(flat(images), partners), flat(images))
    share = 1.0 - tf.reduce_mean(tf.cast(box, tf.float32), axis=1, keepdims=True)
    return like(pasted, images), _mix_targets(targets, partners, share)


def _mix_targets(targets: tf.Tensor, partners: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    """Targets (batch, ...) mixed with those of their partners; `share` is float32 (batch, 1)."""
    share = tf.reshape(share, [-1] + [1] * (len(targets.shape) - 1))
    return share * targets + (1.0 - share) * tf.gather(targets, partners)


def _inside(
    positions: tf.Tensor, center: tf.Tensor, side: tf.Tensor, length: int | tf.Tensor
) -> tf.Tensor:
    """Whether positions along an axis of `length` are in each image's box; bool (batch, n)."""
    length = tf.cast(length, tf.float32)
    middle, size = tf.floor(center * length)[:, None], tf.round(side * length)[:, None]
    first = middle - tf.floor(size / 2.0)
    positions = tf.cast(positions, tf.float32)
    return tf.logical_and(positions >= first, positions < first + size)


def draw_partners(
    key: tf.Tensor, count: int | tf.Tensor, batch_size: int | None = None
) -> tf.Tensor:
    """Draws another image of the same batch for each of `count` images.

    The images of each batch form a cycle in random order; a single image is its own partner.

    Args:
        key: int64 (2,), a key of `nsk.noise`.
        count: int or scalar tensor, images of all batches.
        batch_size: int that divides `count`, images of each batch; None: one batch.

    Returns:
        int32 (count,), a permutation.
    """
    size = tf.maximum(count, 1) if batch_size is None else batch_size
    draws = tf.reshape(noise.uniform(noise.named(key, "partners"), [count]), [-1, size])
    batch_starts = tf.range(0, count, size)[:, None]
    order = batch_starts + tf.argsort(draws, axis=1, stable=True)
    previous = tf.roll(order, 1, axis=1)
    positions = tf.math.invert_permutation(tf.reshape(order, [-1]))
    return tf.gather(tf.reshape(previous, [-1]), positions)


def draw_beta(key: tf.Tensor, batch: int | tf.Tensor, alpha: float) -> tf.Tensor:
    """Draws from Beta(alpha, alpha) for each image of a batch: float32 (batch,) in [0, 1].

    g1 / (g1 + g2) of two Gamma(alpha) draws, each Gamma(alpha + 1) u^(1 / alpha) with u uniform; in
    logarithms, since small alphas exceed the range of floats.
    """
    key = noise.named(key, "beta")
    alpha = tf.constant(alpha, tf.float64)
    gammas = noise.gamma(key, [batch, 2], alpha + 1.0)
    uniforms = 1.0 - tf.cast(noise.uniform(noise.named(key, "power"), [batch, 2]), tf.float64)
    logs = tf.math.log(gammas) + tf.math.log(uniforms) / alpha
    return tf.cast(tf.sigmoid(logs[:, 0] - logs[:, 1]), tf.float32)
