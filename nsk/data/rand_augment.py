"""RandAugment: every image draws different operations.

A batch is split by operation, each part is transformed at once (`nsk.data.image_operations`), and
the parts are put back in order.

Reference: RandAugment (https://arxiv.org/abs/1909.13719).
"""

import functools
from typing import NamedTuple

import tensorflow as tf

from nsk import noise
from nsk.data.image_operations import RandAugmentOptions, apply_operation
from nsk.data.image_tensors import checked, like, sizes


class Draws(NamedTuple):
    """What each of `batch` images drew for each of its `num_ops` operations."""

    operations: tf.Tensor  # int32 (batch, num_ops): indices into the options' operations.
    signs: tf.Tensor  # float64 (batch, num_ops): -1 or 1.
    level_scales: tf.Tensor  # float64 (batch, num_ops) in [0, 1): for "uniform" modes.
    centers: tf.Tensor  # float32 (batch, num_ops, 2) in [0, 1): cutout's row and column.


@tf.autograph.experimental.do_not_convert
def rand_augment(
    images: tf.Tensor,
    key: tf.Tensor,
    options: RandAugmentOptions,
    magnitude_shares: tf.Tensor | None = None,
) -> tf.Tensor:
    """Applies `options.num_ops` operations, drawn uniformly with replacement, to every image.

    Args:
        images: uint8 (batch, height, width, 3).
        key: int64 (2,), a key of `nsk.noise`.
        options: `RandAugmentOptions`.
        magnitude_shares: float64 (batch,) in [0, 1], by which the magnitude of each image is
            multiplied in the growing modes; None: 1.

    Returns:
        uint8 tensor of the same shape.
    """
    images = checked(images)
    if options.num_ops == 0:
        return images
    batch, _, _ = sizes(images)
    operations = options.operations
    draws = draw_operations(key, batch, options.num_ops, len(operations))
    magnitudes = tf.fill([batch, options.num_ops], tf.constant(options.magnitude, tf.float64))
    if options.grows and magnitude_shares is not None:
        magnitudes *= magnitude_shares[:, None]
    levels = magnitudes / options.max_level
    if options.magnitude_mode in ("uniform", "growing_uniform"):
        levels *= draws.level_scales

    augmented = images
    for turn in range(options.num_ops):
        members = tf.dynamic_partition(tf.range(batch), draws.operations[:, turn], len(operations))
        parts = [
            apply_operation(
                name,
                tf.gather(augmented, index),
                tf.gather(levels[:, turn], index),
                tf.gather(draws.signs[:, turn], index),
                tf.gather(draws.centers[:, turn], index),
                options,
            )
            for name, index in zip(operations, members, strict=True)
        ]
        augmented = tf.dynamic_stitch(members, parts)
    return like(augmented, images)


def draw_operations(
    key: tf.Tensor, batch_size: int | tf.Tensor, num_ops: int, num_operations: int
) -> Draws:
    """Draws operations with their signs, levels and centres for every image of a batch.

    Args:
        key: int64 (2,), a key of `nsk.noise`.
        batch_size: int or scalar tensor.
        num_ops: draws for each image.
        num_operations: number of operations to draw from.

    Returns:
        `Draws`.
    """

    def draw(name, *shape, function=noise.uniform):
        named_key = noise.named(key, f"randaugment/{name}")
        return noise.for_examples(function, named_key, batch_size, [num_ops, *shape])

    integers = functools.partial(noise.integers, maxval=num_operations)
    return Draws(
        operations=draw("operation", function=integers),
        signs=1.0 - 2.0 * tf.cast(draw("sign") < 0.5, tf.float64),
        level_scales=tf.cast(draw("level"), tf.float64),
        centers=draw("center", 2),
    )
