"""Decodes a shard's images to squares; training, scoring and the exported model all use this."""

import functools
from collections.abc import Callable

import tensorflow as tf


def decode_image(encoded: tf.Tensor, image_size: int) -> tf.Tensor:
    """Decodes one image and resizes its central square (bilinear, antialiased).

    Cropping first keeps the memory at the image's own pixels, however long the image is. An image
    that already has the size keeps its pixels.

    Args:
        encoded: scalar string tensor.
        image_size: int, pixels.

    Returns:
        uint8 tensor of shape (image_size, image_size, 3).
    """
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    image.set_shape([None, None, 3])
    size = tf.shape(image)[:2]

    def crop_and_resize():
        side = tf.reduce_min(size)
        top, left = tf.unstack((size - side) // 2)
        square = image[top : top + side, left : left + side]
        resized = tf.image.resize(square, [image_size, image_size], "bilinear", antialias=True)
        return tf.saturate_cast(tf.round(resized), tf.uint8)

    fits = tf.reduce_all(size == image_size)
    return tf.ensure_shape(
        tf.cond(fits, lambda: image, crop_and_resize), [image_size, image_size, 3]
    )


def decode_images(
    encoded: tf.Tensor,
    image_size: int,
    decode: Callable[[tf.Tensor], tf.Tensor] | None = None,
) -> tf.Tensor:
    """Decodes a batch.

    Args:
        encoded: string tensor (batch,).
        image_size: int, pixels.
        decode: function of one encoded image; None: `decode_image`.

    Returns:
        uint8 tensor (batch, image_size, image_size, 3).
    """
    decode = decode or functools.partial(decode_image, image_size=image_size)
    return tf.map_fn(decode, encoded, fn_output_signature=tf.uint8)
