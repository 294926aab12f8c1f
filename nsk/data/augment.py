"""Random noise on training images: crop, flip and RandAugment, for whole batches.

Everything works on uint8 batches (batch, height, width, 3), eagerly, in `tf.function` and in
`tf.data.Dataset.map`, with any batch size, unknown and zero included. The result is a pure function
of the images and a key of `nsk.noise`; an image's draws depend on the key and its position in the
batch alone, so a shorter batch draws what the longer one begins with.

RandAugment lets every image draw operations of its own. A batch is therefore split by operation,
each part is transformed at once (`image_operations`), and the parts are put back in order.

Reference: RandAugment (https://arxiv.org/abs/1909.13719).
"""

import functools
from typing import NamedTuple

import tensorflow as tf

from nsk import noise
from nsk.config.sections import RANDAUGMENT_OPERATIONS
from nsk.data.image_operations import (
    PROFILES,
    TRANSLATE_SHARE,
    apply_operation,
    checked,
    cutout,
    flat,
    gather_pixels,
    like,
    sizes,
)

MAGNITUDE_MODES = ("constant", "uniform")
CROP_MODES = ("constant", "reflect")


class Draws(NamedTuple):
    """What each of `batch` images drew for each of its `num_ops` operations."""

    operations: tf.Tensor  # int32 (batch, num_ops): indices into the allowed operations.
    signs: tf.Tensor  # float64 (batch, num_ops): -1 or 1.
    level_scales: tf.Tensor  # float64 (batch, num_ops) in [0, 1): for magnitude_mode="uniform".
    centers: tf.Tensor  # float32 (batch, num_ops, 2) in [0, 1): cutout's row and column.


def augment(
    images,
    key,
    *,
    crop_padding=0,
    crop_mode="constant",
    flip=False,
    cutout_side=0,
    num_ops=0,
    magnitude=0.0,
    fill=128,
    **options,
):
    """Crops, flips, applies RandAugment and cuts out, in this order; what is off costs nothing.

    Args:
        images: uint8 (batch, height, width, 3).
        key: int64 (2,), a key of `nsk.noise`.
        crop_padding: int, pixels of `random_crop`; 0: off.
        crop_mode: "constant" or "reflect", the mode of `random_crop`.
        flip: bool, whether `random_flip` is on.
        cutout_side: int, pixels of `random_cutout`; 0: off.
        num_ops: int, operations of RandAugment; 0: off.
        magnitude, fill, **options: of `rand_augment`.

    Returns:
        uint8 tensor of the same shape.
    """
    if crop_padding:
        images = random_crop(images, key, crop_padding, crop_mode)
    if flip:
        images = random_flip(images, key)
    images = rand_augment(images, key, num_ops=num_ops, magnitude=magnitude, fill=fill, **options)
    return random_cutout(images, key, cutout_side, fill) if cutout_side else images


@tf.autograph.experimental.do_not_convert
def random_cutout(images, key, side, fill=128):
    """Fills a square of each image whose centre is drawn uniformly, so that the border may cut it.

    Args:
        images: uint8 (batch, height, width, 3).
        key: int64 (2,), a key of `nsk.noise`.
        side: int, pixels of the square.
        fill: int in 0..255, its gray.

    Returns:
        uint8 tensor of the same shape.

    Reference:
        [DeVries and Taylor, 2017](https://arxiv.org/abs/1708.04552)
    """
    images = checked(images)
    batch, _, _ = sizes(images)
    centers = noise.for_examples(noise.uniform, noise.named(key, "cutout"), batch, [2])
    return like(cutout(images, tf.fill([batch], side), centers, fill), images)


@tf.autograph.experimental.do_not_convert
def random_crop(images, key, padding, mode="constant"):
    """Pads each image on all sides and crops it back to its size at an offset of its own.

    Args:
        images: uint8 (batch, height, width, 3).
        key: int64 (2,), a key of `nsk.noise`.
        padding: int, pixels of padding on each side; offsets are uniform over 0..2 * padding.
        mode: "constant" pads with zeros, "reflect" mirrors without repeating the border pixel, as
            in `numpy.pad`; then `padding` must be smaller than both sides.

    Returns:
        uint8 tensor of the same shape.
    """
    images = checked(images)
    batch, height, width = sizes(images)
    if padding < 0 or mode not in CROP_MODES:
        raise ValueError(
            f"padding={padding}, mode={mode!r}: expected >= 0 and one of {CROP_MODES}."
        )
    if mode == "reflect" and any(
        side is not None and padding >= side for side in images.shape[1:3]
    ):
        raise ValueError(
            f"padding={padding} of {images.shape}: reflection needs less than the sides."
        )
    draw = functools.partial(noise.integers, maxval=2 * padding + 1)
    offsets = noise.for_examples(draw, noise.named(key, "crop"), batch, [2]) - padding
    rows = offsets[:, :1] + tf.range(height)
    columns = offsets[:, 1:] + tf.range(width)
    if mode == "reflect":
        rows = (height - 1) - tf.abs((height - 1) - tf.abs(rows))
        columns = (width - 1) - tf.abs((width - 1) - tf.abs(columns))
    return gather_pixels(images, rows[:, :, None], columns[:, None, :], fill=0)


@tf.autograph.experimental.do_not_convert
def random_flip(images, key):
    """Mirrors each image left to right with probability 1/2.

    Args:
        images: uint8 (batch, height, width, 3).
        key: int64 (2,), a key of `nsk.noise`.

    Returns:
        uint8 tensor of the same shape.
    """
    images = checked(images)
    batch, _, _ = sizes(images)
    chosen = noise.for_examples(noise.uniform, noise.named(key, "flip"), batch, [1]) < 0.5
    return like(tf.where(chosen, flat(tf.reverse(images, [2])), flat(images)), images)


@tf.autograph.experimental.do_not_convert
def rand_augment(
    images,
    key,
    *,
    num_ops,
    magnitude,
    max_level=30.0,
    profile="increasing",
    operations=RANDAUGMENT_OPERATIONS,
    magnitude_mode="constant",
    translate_share=TRANSLATE_SHARE,
    fill=128,
):
    """Applies `num_ops` operations, drawn uniformly with replacement, to every image.

    Args:
        images: uint8 (batch, height, width, 3).
        key: int64 (2,), a key of `nsk.noise`.
        num_ops: int, operations for each image; 0 returns the images.
        magnitude: float >= 0, the strength; level = magnitude / max_level.
        max_level: float, the magnitude of full strength; at most this under "increasing".
        profile: "increasing", where every operation grows with the level, or "reference", the
            official code's arithmetic (made for max_level=10). See `image_operations`.
        operations: names out of `RANDAUGMENT_OPERATIONS`, the operations that take part.
        magnitude_mode: "constant", or "uniform": each operation of each image draws its level
            uniformly in [0, magnitude / max_level).
        translate_share: float, translation at full strength under "increasing", as a share of the
            side.
        fill: int in 0..255, the gray of what geometric operations and cutout leave empty.

    Returns:
        uint8 tensor of the same shape.
    """
    images = checked(images)
    _check_settings(num_ops, magnitude, max_level, profile, operations, magnitude_mode, fill)
    batch, _, _ = sizes(images)
    if num_ops == 0:
        return images
    draws = draw_operations(key, batch, num_ops, len(operations))
    levels = tf.fill([batch, num_ops], tf.constant(magnitude / max_level, tf.float64))
    if magnitude_mode == "uniform":
        levels *= draws.level_scales

    augmented = images
    for turn in range(num_ops):
        members = tf.dynamic_partition(tf.range(batch), draws.operations[:, turn], len(operations))
        parts = [
            apply_operation(
                name,
                tf.gather(augmented, index),
                tf.gather(levels[:, turn], index),
                tf.gather(draws.signs[:, turn], index),
                tf.gather(draws.centers[:, turn], index),
                profile=profile,
                translate_share=translate_share,
                fill=fill,
            )
            for name, index in zip(operations, members, strict=True)
        ]
        augmented = tf.dynamic_stitch(members, parts)
    return like(augmented, images)


def draw_operations(key, batch_size, num_ops, num_operations):
    """Draws operations and their signs, levels and places for every image of a batch.

    Args:
        key: int64 (2,), a key of `nsk.noise`.
        batch_size: int or scalar tensor.
        num_ops: int, draws for each image.
        num_operations: int, how many operations there are to draw from.

    Returns:
        `Draws`.
    """

    def drawn(name, *shape, draw=noise.uniform):
        key_of_name = noise.named(key, f"randaugment/{name}")
        return noise.for_examples(draw, key_of_name, batch_size, [num_ops, *shape])

    integers = functools.partial(noise.integers, maxval=num_operations)
    return Draws(
        operations=drawn("operation", draw=integers),
        signs=1.0 - 2.0 * tf.cast(drawn("sign") < 0.5, tf.float64),
        level_scales=tf.cast(drawn("level"), tf.float64),
        centers=drawn("center", 2),
    )


def _check_settings(num_ops, magnitude, max_level, profile, operations, magnitude_mode, fill):
    if num_ops < 0 or magnitude < 0 or max_level <= 0 or not 0 <= fill <= 255:
        raise ValueError(
            f"num_ops={num_ops}, magnitude={magnitude}, max_level={max_level}, fill={fill}: "
            "expected num_ops >= 0, magnitude >= 0, max_level > 0 and fill in 0..255."
        )
    if profile not in PROFILES or magnitude_mode not in MAGNITUDE_MODES:
        raise ValueError(
            f"profile={profile!r}, magnitude_mode={magnitude_mode!r}: expected one of {PROFILES} "
            f"and one of {MAGNITUDE_MODES}."
        )
    if profile == "increasing" and magnitude > max_level:
        raise ValueError(f"magnitude={magnitude} is above max_level={max_level}.")
    if not operations or set(operations) - set(RANDAUGMENT_OPERATIONS):
        raise ValueError(f"operations={operations}: expected some of {RANDAUGMENT_OPERATIONS}.")
