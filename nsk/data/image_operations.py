"""RandAugment's operations: what a level means for each, and their kernels for whole batches.

Images are uint8 (batch, height, width, 3), with any batch size, unknown and zero included.
Photometric operations follow Pillow's ImageOps and ImageEnhance to within one level, geometric ones
follow `Image.transform(size, AFFINE, matrix, NEAREST, fillcolor=fill)`.

Reference: RandAugment (https://arxiv.org/abs/1909.13719).
"""

import math

import tensorflow as tf

from nsk.config.sections import RANDAUGMENT_OPERATIONS

PROFILES = ("increasing", "reference")
TRANSLATE_SHARE = 0.45  # Of the side, at full strength.


def operation_amount(
    name, level, sign, height, width, profile="increasing", translate_share=TRANSLATE_SHARE
):
    """What a level means for an operation.

    | operation | unit | increasing | reference |
    |---|---|---|---|
    | rotate | degrees | 30 L sign | 30 L sign |
    | shear_x, shear_y | pixels per pixel | 0.3 L sign | 0.3 L sign |
    | translate_x, translate_y | pixels | translate_share L side sign | min(100 L, side) sign |
    | color, contrast, brightness, sharpness | factor | 1 + 0.9 L sign | 1.8 L + 0.1 |
    | posterize | bits that stay | 8 - round(4 L) | int(4 L) within 1..8 |
    | solarize | threshold | 256 (1 - L) | min(int(256 L), 256) |
    | solarize_add | levels | int(110 L) | int(110 L) |
    | cutout | pixels of the side | round(0.36 L side) | min(2 int(40 L), side) |

    Cutout's side is the image's shorter one. auto_contrast, equalize and invert have no amount (0).

    Args:
        name: one of `RANDAUGMENT_OPERATIONS`.
        level: float tensor or number >= 0, L in the table; at most 1 under "increasing".
        sign: float tensor or number, -1 or 1.
        height, width: ints or scalar tensors, pixels.
        profile: "increasing" or "reference".
        translate_share: float, how far "increasing" translates at full strength, as a share of the
            side.

    Returns:
        float64 tensor of the broadcast shape of `level` and `sign`.
    """
    if profile not in PROFILES:
        raise ValueError(f"profile={profile!r}: expected one of {PROFILES}.")
    reference = profile == "reference"
    level, sign, height, width = (_float64(number) for number in (level, sign, height, width))
    match name:
        case "auto_contrast" | "equalize" | "invert":
            return tf.zeros_like(level)
        case "rotate":
            return 30.0 * level * sign
        case "shear_x" | "shear_y":
            return 0.3 * level * sign
        case "translate_x" | "translate_y":
            side = width if name == "translate_x" else height
            official = tf.minimum(100.0 * level, side)
            return (official if reference else translate_share * level * side) * sign
        case "color" | "contrast" | "brightness" | "sharpness":
            return 1.8 * level + 0.1 if reference else 1.0 + 0.9 * level * sign
        case "posterize":
            bits = tf.clip_by_value(tf.floor(4.0 * level), 1.0, 8.0)
            return bits if reference else 8.0 - tf.round(4.0 * level)
        case "solarize":
            threshold = tf.minimum(tf.floor(256.0 * level), 256.0)
            return threshold if reference else 256.0 * (1.0 - level)
        case "solarize_add":
            return tf.floor(110.0 * level)
        case "cutout":
            side = tf.minimum(height, width)
            official = tf.minimum(2.0 * tf.floor(40.0 * level), side)
            return official if reference else tf.round(0.36 * level * side)
    raise ValueError(f"operation {name!r}: expected one of {RANDAUGMENT_OPERATIONS}.")


@tf.autograph.experimental.do_not_convert
def apply_operation(
    name,
    images,
    level,
    sign=1.0,
    center=0.5,
    *,
    profile="increasing",
    translate_share=TRANSLATE_SHARE,
    fill=128,
):
    """Applies one operation to every image of a batch.

    A positive sign rotates counter-clockwise and, as in Pillow's matrices, takes what the output
    shows from further right (shear_x, translate_x) or further down (shear_y, translate_y).

    Args:
        name: one of `RANDAUGMENT_OPERATIONS`.
        images: uint8 (batch, height, width, 3).
        level: float or (batch,), see `operation_amount`.
        sign: float or (batch,), -1 or 1.
        center: float or (batch, 2) in [0, 1), cutout's row and column as a share of the sides.
        profile, translate_share: see `operation_amount`.
        fill: int in 0..255.

    Returns:
        uint8 tensor of the same shape.
    """
    images = checked(images)
    batch, height, width = sizes(images)
    amount = operation_amount(name, level, sign, height, width, profile, translate_share)
    amount = tf.cast(amount, tf.float32)
    amount = tf.broadcast_to(amount, [batch])
    match name:
        case "auto_contrast":
            result = _auto_contrast(images)
        case "equalize":
            result = _equalize(images)
        case "invert":
            result = 255 - images
        case "posterize":
            result = _posterize(images, amount)
        case "solarize":
            result = _solarize(images, amount)
        case "solarize_add":
            result = _solarize_add(images, amount)
        case "color":
            values = tf.cast(images, tf.float32)
            result = _blend(_gray(values, channels=3), values, amount)
        case "contrast":
            values = tf.cast(images, tf.float32)
            gray = tf.reduce_mean(_gray(values, channels=1), axis=1, keepdims=True)
            result = _blend(tf.floor(gray + 0.5), values, amount)
        case "brightness":
            result = amount[:, None] * tf.cast(flat(images), tf.float32)
        case "sharpness":
            result = _sharpen(images, amount)
        case "cutout":
            center = tf.broadcast_to(tf.cast(center, tf.float32), [batch, 2])
            result = cutout(images, amount, center, fill)
        case _:
            result = _warp(name, images, amount, fill)
    return like(result, images)


# Photometric operations. Images lie flat, (batch, height * width * 3), so that a number for each
# image is broadcast as (batch, 1): on CPU a broadcast of (batch, 1, 1, 3) is ten times slower.
# What uint8 arithmetic can do exactly is left to it, as it moves a quarter of the bytes; `tf.where`
# by the pixels' values is slower than three such steps.


def _blend(degenerate, values, factor):
    """Pillow's blend: away from `degenerate` (flat floats, or one for each image) by `factor`."""
    return degenerate + factor[:, None] * (flat(values) - degenerate)


def _gray(values, channels):
    """Pillow's luma, float32 (batch, height * width * channels), each pixel's `channels` times."""
    # Pillow works in 16-bit fixed point and rounds. 255 * 65536 < 2**24: float32 holds it exactly.
    weights = tf.constant([19595.0, 38470.0, 7471.0]) / 65536.0
    weights = tf.tile(weights[None, None, :, None], [1, 1, 1, channels])
    luma = tf.nn.conv2d(values, weights, strides=1, padding="VALID")
    return flat(tf.floor(luma + 0.5))


def _sharpen(images, factor):
    """Blends with Pillow's SMOOTH filter: weights 5 within and 1 around, border unchanged."""
    weights = tf.constant([[1.0, 1.0, 1.0], [1.0, 5.0, 1.0], [1.0, 1.0, 1.0]]) / 13.0
    weights = tf.tile(weights[:, :, None, None], [1, 1, 3, 1])
    values = tf.cast(images, tf.float32)
    # A multiple of 1/13 is never near a half, so that rounding errors do not count.
    smooth = tf.round(tf.nn.depthwise_conv2d(values, weights, [1, 1, 1, 1], "SAME"))
    result = like(_blend(flat(smooth), values, factor), images)
    # The last row or column is taken from what the first one leaves: a side may have one pixel.
    inner, left, right = result[:, 1:-1, 1:-1], images[:, 1:-1, :1], images[:, 1:-1, 1:][:, :, -1:]
    inner = tf.concat([left, inner, right], axis=2)
    return tf.concat([images[:, :1], inner, images[:, 1:][:, -1:]], axis=1)


def _solarize(images, threshold):
    """Inverts every value from its image's threshold (0..256) on."""
    values, threshold = flat(images), tf.math.ceil(threshold)
    flipped_bits = tf.cast(tf.where(threshold < 256.0, 255, 0), tf.uint8)
    is_inverted = values >= tf.cast(tf.minimum(threshold, 255.0), tf.uint8)[:, None]
    return tf.bitwise.bitwise_xor(values, tf.cast(is_inverted, tf.uint8) * flipped_bits[:, None])


def _solarize_add(images, amount):
    """Adds to the values below 128, up to 255."""
    values = flat(images)
    amount = tf.cast(tf.minimum(amount, 255.0), tf.uint8)[:, None]
    return values + tf.minimum(amount, 255 - values) * tf.cast(values < 128, tf.uint8)


def _posterize(images, bits):
    mask = tf.cast(256.0 - 2.0 ** (8.0 - bits), tf.uint8)
    return tf.bitwise.bitwise_and(flat(images), mask[:, None])


def _auto_contrast(images):
    batch, height, width = sizes(images)
    pixels = tf.reshape(images, [batch, height * width, 3])
    low = tf.cast(tf.reduce_min(pixels, axis=1), tf.float64)[:, :, None]
    span = tf.cast(tf.reduce_max(pixels, axis=1), tf.float64)[:, :, None] - low
    # Pillow's arithmetic, word for word: its result is cut off, so that rounding errors count.
    scale = 255.0 / tf.maximum(span, 1.0)
    levels = tf.range(256, dtype=tf.float64)
    stretched = tf.floor(levels * scale - low * scale)
    return _look_up(images, tf.where(span > 0.0, stretched, levels))


def _equalize(images):
    batch, _, _ = sizes(images)
    histogram = tf.raw_ops.Bincount(
        arr=tf.reshape(_bins(images), [-1]), size=batch * 3 * 256, weights=tf.zeros([0], tf.int32)
    )
    histogram = tf.reshape(histogram, [batch, 3, 256])
    below = tf.cumsum(histogram, axis=2, exclusive=True)
    # Pillow's step: all pixels but those of the brightest level, shared over 255 levels.
    brightest = tf.reduce_max(tf.where(histogram > 0, below, 0), axis=2, keepdims=True)
    step = brightest // 255
    equalized = (below + step // 2) // tf.maximum(step, 1)
    return _look_up(images, tf.where(step > 0, equalized, tf.range(256)))


def _look_up(images, tables):
    """Replaces every value by its entry in `tables`, (batch, 3, 256), clipped to 0..255."""
    tables = tf.cast(tf.clip_by_value(tables, 0, 255), tf.uint8)
    return _gather(tf.reshape(tables, [-1]), _bins(images))


def _bins(images):
    """int32 (batch, height, width * 3): each value's place in flat (batch, channel, 256) bins."""
    batch, height, width = sizes(images)
    first = tf.reshape(tf.range(batch * 3) * 256, [batch, 1, 3])
    values = tf.reshape(images, [batch, height, width * 3])
    return tf.cast(values, tf.int32) + tf.tile(first, [1, 1, width])


# Geometric operations.


def _warp(name, images, amount, fill):
    """Nearest neighbour, between the pixels' centres."""
    _, height, width = sizes(images)
    x, y = _sources(name, amount, height, width)
    rows, columns = tf.cast(tf.floor(y), tf.int32), tf.cast(tf.floor(x), tf.int32)
    return gather_pixels(images, rows, columns, fill)


def _sources(name, amount, height, width):
    """x and y in the input of each pixel of the result, broadcastable to (batch, height, width)."""
    x, y = (tf.range(tf.cast(side, tf.float32)) + 0.5 for side in (width, height))
    grid = [tf.reshape(one, [-1]) for one in tf.meshgrid(x, y)]
    grid = tf.stack([*grid, tf.ones_like(grid[0])])
    x, y, shift = x[None, None, :], y[None, :, None], amount[:, None, None]
    zero, one = tf.zeros_like(amount), tf.ones_like(amount)

    def affine(a, b, c):
        """a x + b y + c with numbers of each image's own."""
        return tf.reshape(tf.matmul(tf.stack([a, b, c], axis=1), grid), [-1, height, width])

    match name:
        case "rotate":
            cosine, sine = tf.cos(amount * (math.pi / 180)), tf.sin(amount * (math.pi / 180))
            middle_x, middle_y = tf.cast(width, tf.float32) / 2, tf.cast(height, tf.float32) / 2
            shift_x = middle_x - middle_x * cosine + middle_y * sine
            shift_y = middle_y - middle_x * sine - middle_y * cosine
            return affine(cosine, -sine, shift_x), affine(sine, cosine, shift_y)
        case "shear_x":
            return affine(one, amount, zero), y
        case "shear_y":
            return x, affine(amount, one, zero)
        case "translate_x":
            return x + shift, y
        case "translate_y":
            return x, y + shift


def cutout(images, side, center, fill):
    """Fills a square around a pixel drawn anywhere, so that the border may cut it."""
    _, height, width = sizes(images)
    side = tf.cast(side, tf.int32)[:, None]

    def inside(position, share, length):
        middle = tf.cast(share * tf.cast(length, tf.float32), tf.int32)[:, None]
        first = middle - side // 2
        return tf.logical_and(position >= first, position < first + side)

    rows = inside(tf.range(height), center[:, 0], height)
    columns = inside(tf.range(width * 3) // 3, center[:, 1], width)
    square = tf.logical_and(rows[:, :, None], columns[:, None, :])
    return tf.where(flat(square), tf.constant(fill, tf.uint8), flat(images))


def gather_pixels(images, rows, columns, fill):
    """Takes pixels at int32 `rows` and `columns` (broadcast, batch first); `fill` where outside.

    Several times as fast on CPU as ImageProjectiveTransformV3, and with Pillow's rounding.
    """
    batch, height, width = sizes(images)
    # What lies outside is taken from a frame around the image.
    framed = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]], constant_values=fill)
    rows = tf.clip_by_value(rows, -1, height) + 1
    columns = tf.clip_by_value(columns, -1, width) + 1
    first = tf.range(batch)[:, None, None] * ((height + 2) * (width + 2))
    index = (first + rows * (width + 2)) + columns
    return like(_gather(tf.reshape(framed, [-1, 3]), index), images)


def _gather(table, index):
    """Rows of `table` at int32 `index`, as tf.gather, but where rows are short faster on CPU."""
    return tf.gather_nd(table, index[..., None])


# Shapes and checks.


def sizes(images):
    """(batch, height, width), each an int where it is known and a scalar tensor elsewhere."""
    dynamic = tf.shape(images)
    return tuple(
        dynamic[axis] if images.shape[axis] is None else images.shape[axis] for axis in range(3)
    )


def flat(images):
    """The same numbers as (batch, everything else)."""
    size = tf.shape(images)
    return tf.reshape(images, [size[0], tf.reduce_prod(size[1:])])


def _float64(number):
    # tf.cast of a Python float goes through float32, where int(110 * 0.9) is 98.
    return tf.cast(number if tf.is_tensor(number) else tf.constant(number, tf.float64), tf.float64)


def like(result, images):
    """`result` in the shape and type of `images`; floats are clipped and cut off, as in Pillow."""
    if result.dtype != tf.uint8:
        result = tf.cast(tf.clip_by_value(result, 0.0, 255.0), tf.uint8)
    return tf.ensure_shape(tf.reshape(result, tf.shape(images)), images.shape)


def checked(images):
    """The images as a tensor; ValueError where they are not uint8 (batch, height, width, 3)."""
    images = tf.convert_to_tensor(images)
    if images.dtype != tf.uint8 or images.shape.rank != 4 or images.shape[3] != 3:
        raise ValueError(
            f"images are {images.dtype.name} {images.shape}: expected uint8 (batch, height, width, "
            "3)."
        )
    return images
