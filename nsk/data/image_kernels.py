"""Kernels of RandAugment's operations, for whole batches; `nsk.data.randaugment_table` lists them.

A kernel takes uint8 images (batch, height, width, 3) and, if its operation has an amount, one
float32 amount for each image (batch,). It returns as many values as the images have, in any shape:
uint8, or floats that `image_tensors.like` clips and truncates.

Photometric kernels follow Pillow's ImageOps and ImageEnhance to within one level, geometric ones
follow `Image.transform(size, AFFINE, matrix, NEAREST, fillcolor=fill)`.
"""

import math

import tensorflow as tf

from nsk.data.image_tensors import flat, gather_pixels, gather_rows, like, sizes

# Photometric kernels. Images are flat, (batch, height * width * 3), so that a number for each image
# is broadcast as (batch, 1): on CPU a broadcast of (batch, 1, 1, 3) is ten times slower. Arithmetic
# that is exact in uint8 stays in uint8, as it moves a quarter of the bytes; `tf.where` by the
# pixels' values is slower than three such steps.


def auto_contrast(images: tf.Tensor) -> tf.Tensor:
    """Stretches each channel to the full range."""
    _, height, width = sizes(images)
    pixels = tf.reshape(images, [-1, height * width, 3])
    low = tf.cast(tf.reduce_min(pixels, axis=1), tf.float64)
    span = tf.cast(tf.reduce_max(pixels, axis=1), tf.float64) - low
    # Exactly Pillow's arithmetic: its result is truncated, so that rounding errors matter.
    scale = tf.where(span > 0.0, 255.0 / tf.maximum(span, 1.0), 1.0)
    offset = tf.where(span > 0.0, low * scale, 0.0)
    # One number for each value of a row, as a broadcast to channels is slow.
    scale, offset = (tf.tile(number, [1, width])[:, None] for number in (scale, offset))
    rows = tf.cast(tf.reshape(images, [-1, height, width * 3]), tf.float64)
    # Within 0..255 up to rounding errors, which the cast truncates.
    return tf.cast(rows * scale - offset, tf.uint8)


def equalize(images: tf.Tensor) -> tf.Tensor:
    """Equalises each channel's histogram."""
    batch, _, _ = sizes(images)
    histogram = tf.raw_ops.Bincount(
        arr=tf.reshape(_bins(images), [-1]), size=batch * 3 * 256, weights=tf.zeros([0], tf.int32)
    )
    histogram = tf.reshape(histogram, [batch, 3, 256])
    below = tf.cumsum(histogram, axis=2, exclusive=True)
    # Pillow's step: all pixels except those of the brightest level, divided over 255 levels.
    brightest = tf.reduce_max(tf.where(histogram > 0, below, 0), axis=2, keepdims=True)
    step = brightest // 255
    equalized = (below + step // 2) // tf.maximum(step, 1)
    return _look_up(images, tf.where(step > 0, equalized, tf.range(256)))


def identity(images: tf.Tensor) -> tf.Tensor:
    """Changes nothing."""
    return images


def invert(images: tf.Tensor) -> tf.Tensor:
    """Replaces each value v by 255 - v."""
    return 255 - images


def posterize(images: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
    """Keeps the highest bits of each value."""
    mask = tf.cast(256.0 - 2.0 ** (8.0 - bits), tf.uint8)
    return tf.bitwise.bitwise_and(flat(images), mask[:, None])


def solarize(images: tf.Tensor, threshold: tf.Tensor) -> tf.Tensor:
    """Inverts the values at or above the threshold (0..256)."""
    values, threshold = flat(images), tf.math.ceil(threshold)
    flipped_bits = tf.cast(tf.where(threshold < 256.0, 255, 0), tf.uint8)
    is_inverted = values >= tf.cast(tf.minimum(threshold, 255.0), tf.uint8)[:, None]
    return tf.bitwise.bitwise_xor(values, tf.cast(is_inverted, tf.uint8) * flipped_bits[:, None])


def solarize_add(images: tf.Tensor, added: tf.Tensor) -> tf.Tensor:
    """Adds to the values below 128, up to 255."""
    values = flat(images)
    added = tf.cast(tf.minimum(added, 255.0), tf.uint8)[:, None]
    return values + tf.minimum(added, 255 - values) * tf.cast(values < 128, tf.uint8)


def color(images: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Blends with the gray image: factor 0 is gray, 1 the image itself."""
    values = tf.cast(images, tf.float32)
    return _blend(_gray(values, channels=3), values, factor)


def contrast(images: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Blends with the image's mean luma: factor 0 is that gray, 1 the image itself."""
    values = tf.cast(images, tf.float32)
    mean = tf.reduce_mean(_gray(values, channels=1), axis=1, keepdims=True)
    return _blend(tf.floor(mean + 0.5), values, factor)


def brightness(images: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Multiplies the values by the factor: 0 is black, 1 the image itself."""
    return factor[:, None] * tf.cast(flat(images), tf.float32)


def sharpness(images: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Blends with Pillow's SMOOTH filter: weight 5 in the centre and 1 around; border unchanged."""
    weights = tf.constant([[1.0, 1.0, 1.0], [1.0, 5.0, 1.0], [1.0, 1.0, 1.0]]) / 13.0
    weights = tf.tile(weights[:, :, None, None], [1, 1, 3, 1])
    values = tf.cast(images, tf.float32)
    # A multiple of 1/13 is never near a half, so that rounding errors do not matter.
    smooth = tf.round(tf.nn.depthwise_conv2d(values, weights, [1, 1, 1, 1], "SAME"))
    result = like(_blend(flat(smooth), values, factor), images)
    # The last row or column is taken from what the first one leaves: a side may have one pixel.
    inner, left, right = result[:, 1:-1, 1:-1], images[:, 1:-1, :1], images[:, 1:-1, 1:][:, :, -1:]
    inner = tf.concat([left, inner, right], axis=2)
    return tf.concat([images[:, :1], inner, images[:, 1:][:, -1:]], axis=1)


def _blend(degenerate: tf.Tensor, values: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Pillow's blend: away from `degenerate` (flat, or one value for each image) by `factor`."""
    return degenerate + factor[:, None] * (flat(values) - degenerate)


def _gray(values: tf.Tensor, channels: int) -> tf.Tensor:
    """Pillow's luma, repeated for `channels`: float32 (batch, height * width * channels)."""
    # Pillow works in 16-bit fixed point and rounds. 255 * 65536 < 2**24: float32 holds it exactly.
    weights = tf.constant([19595.0, 38470.0, 7471.0]) / 65536.0
    weights = tf.tile(weights[None, None, :, None], [1, 1, 1, channels])
    luma = tf.nn.conv2d(values, weights, strides=1, padding="VALID")
    return flat(tf.floor(luma + 0.5))


def _look_up(images: tf.Tensor, tables: tf.Tensor) -> tf.Tensor:
    """Replaces every value by its entry in `tables`, (batch, 3, 256), clipped to 0..255."""
    tables = tf.cast(tf.clip_by_value(tables, 0, 255), tf.uint8)
    return gather_rows(tf.reshape(tables, [-1]), _bins(images))


def _bins(images: tf.Tensor) -> tf.Tensor:
    """Index of each value in flat (batch, channel, 256) bins: int32 (batch, height, width * 3)."""
    batch, height, width = sizes(images)
    first = tf.reshape(tf.range(batch * 3) * 256, [batch, 1, 3])
    values = tf.reshape(images, [batch, height, width * 3])
    return tf.cast(values, tf.int32) + tf.tile(first, [1, 1, width])


# Geometric kernels.


def rotate(images: tf.Tensor, degrees: tf.Tensor, fill: int) -> tf.Tensor:
    """Rotates counter-clockwise around the centre."""
    _, height, width = sizes(images)
    cosine, sine = tf.cos(degrees * (math.pi / 180)), tf.sin(degrees * (math.pi / 180))
    middle_x, middle_y = tf.cast(width, tf.float32) / 2, tf.cast(height, tf.float32) / 2
    shift_x = middle_x - middle_x * cosine + middle_y * sine
    shift_y = middle_y - middle_x * sine - middle_y * cosine
    x = _affine(images, cosine, -sine, shift_x)
    y = _affine(images, sine, cosine, shift_y)
    return _nearest(images, x, y, fill)


def shear_x(images: tf.Tensor, amount: tf.Tensor, fill: int) -> tf.Tensor:
    """Shifts each row horizontally by `amount` pixels per pixel of its height y."""
    _, y = _centers(images)
    x = _affine(images, tf.ones_like(amount), amount, tf.zeros_like(amount))
    return _nearest(images, x, y[None, :, None], fill)


def shear_y(images: tf.Tensor, amount: tf.Tensor, fill: int) -> tf.Tensor:
    """Shifts each column vertically by `amount` pixels per pixel of its position x."""
    x, _ = _centers(images)
    y = _affine(images, amount, tf.ones_like(amount), tf.zeros_like(amount))
    return _nearest(images, x[None, None, :], y, fill)


def translate_x(images: tf.Tensor, pixels: tf.Tensor, fill: int) -> tf.Tensor:
    """Shifts to the left; a negative number of pixels shifts to the right."""
    x, y = _centers(images)
    return _nearest(images, x[None, None, :] + pixels[:, None, None], y[None, :, None], fill)


def translate_y(images: tf.Tensor, pixels: tf.Tensor, fill: int) -> tf.Tensor:
    """Shifts upwards; a negative number of pixels shifts downwards."""
    batch, height, width = sizes(images)
    _, y = _centers(images)
    rows = tf.cast(tf.floor(y + pixels[:, None]), tf.int32)
    # Whole rows are taken at once; the last one of the table is empty.
    table = tf.reshape(images, [-1, width * 3])
    table = tf.concat([table, tf.fill([1, width * 3], tf.constant(fill, tf.uint8))], axis=0)
    is_inside = tf.logical_and(rows >= 0, rows < height)
    index = tf.where(is_inside, rows + tf.range(batch)[:, None] * height, batch * height)
    return gather_rows(table, index)


def cutout(
    images: tf.Tensor, side: tf.Tensor, fill: int | tuple[int, ...], center: tf.Tensor
) -> tf.Tensor:
    """Fills a square around a pixel; parts outside of the image are cut off.

    Args:
        images: uint8 (batch, height, width, 3).
        side: int or float (batch,), pixels.
        fill: gray level or (red, green, blue), ints in 0..255.
        center: float32 (batch, 2) in [0, 1), row and column as shares of the sides.
    """
    _, height, width = sizes(images)
    side = tf.cast(side, tf.int32)[:, None]

    def inside(position, share, length):
        middle = tf.cast(share * tf.cast(length, tf.float32), tf.int32)[:, None]
        first = middle - side // 2
        return tf.logical_and(position >= first, position < first + side)

    rows = inside(tf.range(height), center[:, 0], height)
    columns = inside(tf.range(width * 3) // 3, center[:, 1], width)
    square = tf.logical_and(rows[:, :, None], columns[:, None, :])
    square = tf.reshape(square, [-1, height * width * 3])
    filled = tf.constant(fill, tf.uint8)
    if filled.shape.rank == 1:
        filled = tf.tile(filled, [height * width])
    return tf.where(square, filled, flat(images))


def _centers(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The pixels' centres: x (width,) and y (height,), float32."""
    _, height, width = sizes(images)
    x, y = (tf.range(tf.cast(side, tf.float32)) + 0.5 for side in (width, height))
    return x, y


def _affine(images: tf.Tensor, a: tf.Tensor, b: tf.Tensor, c: tf.Tensor) -> tf.Tensor:
    """Computes a x + b y + c at each pixel's centre: (batch,) x 3 to (batch, height, width)."""
    _, height, width = sizes(images)
    grid = [tf.reshape(values, [-1]) for values in tf.meshgrid(*_centers(images))]
    grid = tf.stack([*grid, tf.ones_like(grid[0])])
    return tf.reshape(tf.matmul(tf.stack([a, b, c], axis=1), grid), [-1, height, width])


def _nearest(images: tf.Tensor, x: tf.Tensor, y: tf.Tensor, fill: int) -> tf.Tensor:
    """The input's pixels at x and y, which broadcast to (batch, height, width)."""
    rows, columns = tf.cast(tf.floor(y), tf.int32), tf.cast(tf.floor(x), tf.int32)
    return gather_pixels(images, rows, columns, fill)
