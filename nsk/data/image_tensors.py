"""Batches of uint8 images as tensors: checks, shapes, and taking pixels from other places.

Images are (batch, height, width, 3), with any batch size, unknown and zero included.
"""

import math

import tensorflow as tf


def checked(images: tf.Tensor) -> tf.Tensor:
    """The images as a tensor; ValueError unless they are uint8 (batch, height, width, 3)."""
    images = tf.convert_to_tensor(images)
    if images.dtype != tf.uint8 or images.shape.rank != 4 or images.shape[3] != 3:
        raise ValueError(
            f"images are {images.dtype.name} {images.shape}: expected uint8 (batch, height, width, "
            "3)."
        )
    return images


def sizes(images: tf.Tensor) -> tuple:
    """(batch, height, width), each an int if it is known and a scalar tensor otherwise."""
    dynamic = tf.shape(images)
    return tuple(
        dynamic[axis] if images.shape[axis] is None else images.shape[axis] for axis in range(3)
    )


def flat(images: tf.Tensor) -> tf.Tensor:
    """The same values, (batch, height, width, ...), with all axes but the first as one."""
    _, height, width = sizes(images)
    return tf.reshape(images, [-1, height * width * math.prod(images.shape[3:])])


def like(values: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
    """`values` in the shape and type of `images`; floats are clipped and then truncated."""
    _, height, width = sizes(images)
    if values.dtype != tf.uint8:
        values = tf.cast(tf.clip_by_value(values, 0, 255), tf.uint8)
    return tf.ensure_shape(tf.reshape(values, [-1, height, width, 3]), images.shape)


def gather_rows(table: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """Rows of `table` at int32 `index`, as `tf.gather`, but faster on CPU if rows are short."""
    return tf.gather_nd(table, index[..., None])


def gather_pixels(images: tf.Tensor, rows: tf.Tensor, columns: tf.Tensor, fill: int) -> tf.Tensor:
    """Takes pixels at int32 `rows` and `columns` (broadcast, batch first); `fill` where outside.

    Several times as fast on CPU as ImageProjectiveTransformV3, and with Pillow's rounding.
    """
    batch, height, width = sizes(images)
    # Pixels outside are taken from a frame around the image.
    framed = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]], constant_values=fill)
    rows = tf.clip_by_value(rows, -1, height) + 1
    columns = tf.clip_by_value(columns, -1, width) + 1
    first = tf.range(batch)[:, None, None] * ((height + 2) * (width + 2))
    index = (first + rows * (width + 2)) + columns
    return like(gather_rows(tf.reshape(framed, [-1, 3]), index), images)
