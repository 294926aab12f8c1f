"""Mixup and CutMix: training images made of two, with the targets that go with them.

Both take pixels and targets in the same proportion, so that any targets will do, soft ones too.
Partners stand in the same batch, labelled and pseudo-labelled images together; every pair draws a
proportion of its own. The result is a pure function of the arguments and a key of `nsk.noise`.
"""

import tensorflow as tf

from nsk import noise
from nsk.data.image_operations import checked, flat, like, sizes


@tf.autograph.experimental.do_not_convert
def mixup(images, targets, key, alpha, batch_size=None):
    """lambda x + (1 - lambda) y, with a lambda for each image drawn from Beta(alpha, alpha).

    Args:
        images: uint8 (batch, height, width, 3).
        targets: float32 (batch, classes).
        key: int64 (2,), a key of `nsk.noise`.
        alpha: float > 0; 1 draws uniformly, less stays closer to either image.
        batch_size: int, where these are several batches of as many images, one after the other:
            partners stand in the same one; None: one batch.

    Returns:
        (images, targets) of the same shapes and types; pixels are rounded to the nearest level.

    Reference:
        [Zhang et al., 2018](https://arxiv.org/abs/1710.09412)
    """
    images = checked(images)
    key = noise.named(key, "mixup")
    partners = draw_partners(key, tf.shape(images)[0], batch_size)
    share = draw_beta(key, tf.shape(images)[0], alpha)[:, None]
    values, others = flat(images), tf.gather(flat(images), partners)
    mixed = share * tf.cast(values, tf.float32) + (1.0 - share) * tf.cast(others, tf.float32)
    mixed_targets = share * targets + (1.0 - share) * tf.gather(targets, partners)
    return like(tf.cast(mixed + 0.5, tf.uint8), images), mixed_targets  # The cast cuts off.


@tf.autograph.experimental.do_not_convert
def cutmix(images, targets, key, alpha, batch_size=None):
    """Pastes a box of a partner into each image; targets go by the share of pixels that is left.

    The box has the image's aspect ratio and about the share 1 - lambda of its area, lambda being
    drawn from Beta(alpha, alpha) for each image. Its centre is drawn uniformly, and the border cuts
    it.

    Args:
        images: uint8 (batch, height, width, 3).
        targets: float32 (batch, classes).
        key: int64 (2,), a key of `nsk.noise`.
        alpha: float > 0.
        batch_size: as of `mixup`.

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
    return like(pasted, images), share * targets + (1.0 - share) * tf.gather(targets, partners)


def _inside(positions, center, side, length):
    """Which positions along an axis of `length` lie in each image's box; bool (batch, n)."""
    length = tf.cast(length, tf.float32)
    middle, size = tf.floor(center * length)[:, None], tf.round(side * length)[:, None]
    first = middle - tf.floor(size / 2.0)
    positions = tf.cast(positions, tf.float32)
    return tf.logical_and(positions >= first, positions < first + size)


def draw_partners(key, count, batch_size=None):
    """Another image of the same batch for each of `count` images.

    One cycle through the images of each batch in a random order; a batch of one is its own partner.

    Args:
        key: int64 (2,), a key of `nsk.noise`.
        count: int or scalar tensor, images of all batches.
        batch_size: int that divides `count`, images of each batch; None: there is one.

    Returns:
        int32 (count,), a permutation.
    """
    size = tf.maximum(count, 1) if batch_size is None else batch_size
    draws = tf.reshape(noise.uniform(noise.named(key, "partners"), [count]), [-1, size])
    firsts = tf.range(0, count, size)[:, None]
    order = firsts + tf.argsort(draws, axis=1, stable=True)
    previous = tf.roll(order, 1, axis=1)
    places = tf.math.invert_permutation(tf.reshape(order, [-1]))
    return tf.gather(tf.reshape(previous, [-1]), places)


def draw_beta(key, batch, alpha):
    """Beta(alpha, alpha) for each image of a batch: float32 (batch,) in [0, 1].

    g1 / (g1 + g2) of two Gamma(alpha) draws, each Gamma(alpha + 1) u^(1 / alpha) with u uniform; in
    logarithms, since small alphas leave the range of floats.
    """
    key = noise.named(key, "beta")
    alpha = tf.constant(alpha, tf.float64)
    gammas = noise.gamma(key, [batch, 2], alpha + 1.0)
    uniforms = 1.0 - tf.cast(noise.uniform(noise.named(key, "power"), [batch, 2]), tf.float64)
    logs = tf.math.log(gammas) + tf.math.log(uniforms) / alpha
    return tf.cast(tf.sigmoid(logs[:, 0] - logs[:, 1]), tf.float32)
