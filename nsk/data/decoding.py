"""Decodes a shard's images to squares; training, scoring and the exported model all use this."""

import functools
from collections.abc import Callable

import tensorflow as tf

from nsk.data.evaluation_decoding import Crop, decode_with_crop


def decode_image(encoded: tf.Tensor, image_size: int, resize_mode: str = "crop") -> tf.Tensor:
    """Decodes one image to a square (bilinear, antialiased).

    The memory is that of the image's own pixels, however long the image is. An image that already
    has the size keeps its pixels.

    Args:
        encoded: scalar string tensor.
        image_size: int, pixels.
        resize_mode: "crop": the central square | "pad": the whole image between gray margins |
            "squash": the whole image, stretched; see `Crop`.

    Returns:
        uint8 tensor of shape (image_size, image_size, 3).
    """
    return decode_with_crop(encoded, Crop(image_size, rule=resize_mode))


def decode_images(
    encoded: tf.Tensor,
    image_size: int,
    decode: Callable[[tf.Tensor], tf.Tensor] | None = None,
    resize_mode: str = "crop",
) -> tf.Tensor:
    """Decodes a batch.

    Args:
        encoded: string tensor (batch,).
        image_size: int, pixels.
        decode: function of one encoded image; None: `decode_image`.
        resize_mode: of `decode_image`.

    Returns:
        uint8 tensor (batch, image_size, image_size, 3).
    """
    if decode is None:
        decode = functools.partial(decode_image, image_size=image_size, resize_mode=resize_mode)
    return tf.map_fn(decode, encoded, fn_output_signature=tf.uint8)
