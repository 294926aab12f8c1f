"""Decodes image files as ingestion does, with TensorFlow alone: for models that serve files.

Ingestion normalises images with Pillow (`nsk.data.normalization`); an exported program has only
TensorFlow's operations. So what Pillow does is computed here from the bytes of a file: the rotation
that EXIF asks for, transparency on white, and 16 bits as 8.
"""

import tensorflow as tf

from nsk.data.evaluation_decoding import Crop, to_square
from nsk.data.normalization import ALL_BITS, PNG_BIT_DEPTH, PNG_SIGNATURE
from nsk.data.plain_decoding import decode_jpeg, decode_plain

ORIENTATION = 0x0112
START_OF_SCAN, APP1 = 0xDA, 0xE1
EXIF_HEADER = b"Exif\0\0"
MAX_ENTRIES = 2**10  # Of a directory of EXIF tags.


def decode_upright(encoded: tf.Tensor, significant_bits: int = ALL_BITS) -> tf.Tensor:
    """Decodes an image.

    Args:
        encoded: scalar string tensor, a JPEG, PNG, GIF or BMP file.
        significant_bits: bits that a 16-bit PNG uses, see `normalization.normalize_image`.

    Returns:
        uint8 tensor (height, width, 3), as an image viewer shows it.

    Raises:
        tf.errors.InvalidArgumentError: the file is damaged or of another format.
    """
    is_png = _starts_with(encoded, 0, PNG_SIGNATURE)
    kind = tf.cond(tf.io.is_jpeg(encoded), lambda: 0, lambda: tf.where(is_png, 1, 2))
    image = tf.switch_case(
        kind,
        [
            lambda: _rotate(decode_jpeg(encoded), exif_orientation(encoded, _find_in_jpeg)),
            lambda: _rotate(
                _decode_png(encoded, significant_bits), exif_orientation(encoded, _find_in_png)
            ),
            lambda: decode_plain(encoded),
        ],
    )
    image.set_shape([None, None, 3])
    return image


def _decode_png(encoded, significant_bits):
    """An image on white, with the rounding of `normalization`."""

    def deep():
        levels = tf.cast(tf.io.decode_png(encoded, channels=4, dtype=tf.uint16), tf.int32)
        white = tf.constant([2**significant_bits - 1] * 3 + [2**ALL_BITS - 1])  # And opaque.
        return (tf.minimum(levels, white) * 255 + white // 2) // white

    def shallow():
        return tf.cast(tf.io.decode_png(encoded, channels=4), tf.int32)

    # With less than 8 bits, TensorFlow does not scale grays, nor the alpha of opaque images.
    def few_grays():
        gray = tf.cast(tf.io.decode_png(encoded, channels=1), tf.int32)
        return tf.concat([gray, gray, gray, tf.fill(tf.shape(gray), 255)], axis=-1)

    def few_colours():
        levels = shallow()
        has_alpha = _find_chunk(encoded, b"tRNS") > 0
        opaque = tf.concat([levels[..., :3], tf.fill(tf.shape(levels[..., 3:]), 255)], axis=-1)
        return tf.where(has_alpha, levels, opaque)

    has_header = tf.strings.length(encoded) >= PNG_BIT_DEPTH + 2
    header = tf.cond(  # Bit depth and type of colours.
        has_header, lambda: tf.strings.substr(encoded, PNG_BIT_DEPTH, 2), lambda: ""
    )
    kind = tf.where(_starts_with(encoded, PNG_BIT_DEPTH, b"\x10"), 1, 0)
    for number, colour_type in ((2, b"\0"), (3, b"\3")):
        is_few = tf.reduce_any(header == [bits + colour_type for bits in (b"\1", b"\2", b"\4")])
        kind = tf.where(is_few, number, kind)
    levels = tf.switch_case(kind, [shallow, deep, few_grays, few_colours])
    colours, alpha = levels[..., :3], levels[..., 3:]
    return tf.cast((colours * alpha + 255 * (255 - alpha) + 127) // 255, tf.uint8)


def decode_readable(
    encoded: tf.Tensor, crop: Crop, significant_bits: int = ALL_BITS
) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes a batch of files to squares; those that cannot be decoded are black.

    Args:
        encoded: string tensor (n,).
        crop: how an image becomes a square.
        significant_bits: see `decode_upright`.

    Returns:
        uint8 tensor (n, image_size, image_size, 3), and bool tensor (n,): which were decoded.
    """
    count = tf.size(encoded, tf.int64)

    def decode(number, content):
        return number, to_square(decode_upright(content, significant_bits), crop)

    # A data set can leave out elements with errors. The last one keeps it from being empty.
    files = tf.data.Dataset.from_tensor_slices((tf.range(count), encoded)).map(
        decode, num_parallel_calls=tf.data.AUTOTUNE
    )
    shape = (crop.image_size, crop.image_size, 3)
    last = tf.data.Dataset.from_tensors((count, tf.zeros(shape, tf.uint8)))
    decoded = files.ignore_errors().concatenate(last).batch(count + 1)
    numbers, images = decoded.get_single_element()
    images = tf.scatter_nd(numbers[:, tf.newaxis], images, [count + 1, *shape])
    is_readable = tf.scatter_nd(numbers[:, tf.newaxis], tf.ones_like(numbers), [count + 1]) > 0
    return tf.ensure_shape(images[:-1], [None, *shape]), is_readable[:-1]


def exif_orientation(encoded: tf.Tensor, find) -> tf.Tensor:
    """The EXIF orientation of a file: scalar int32, 1 to 8; 1 if there is none.

    Args:
        encoded: scalar string tensor.
        find: function of it that returns the offset of the EXIF data; 0: there are none.
    """
    start = find(encoded)
    size = tf.strings.length(encoded)
    return tf.cond(
        (start > 0) & (start + 8 <= size), lambda: _read_orientation(encoded, start), lambda: 1
    )


def _read_orientation(encoded, start):
    """The orientation in EXIF data: a TIFF header and directory at an offset."""
    is_little = _starts_with(encoded, start, b"II")
    content = tf.strings.substr(encoded, start, 2**16)
    size = tf.strings.length(content)
    directory = _number(content, 4, 4, is_little)

    def search():
        count = tf.minimum(_number(content, directory, 2, is_little), MAX_ENTRIES)
        count = tf.minimum(count, (size - directory - 2) // 12)
        entries = tf.strings.substr(content, directory + 2, 12 * count)
        table = tf.reshape(tf.cast(tf.io.decode_raw(entries, tf.uint8), tf.int32), [-1, 12])
        # Little or big endian: a tag of two bytes, a type of two, four bytes of a count, a value.
        low = tf.where(is_little, [0, 2, 8], [1, 3, 9])
        high = tf.where(is_little, [1, 3, 9], [0, 2, 8])
        tags, types, values = tf.unstack(
            tf.gather(table, low, axis=1) + 256 * tf.gather(table, high, axis=1), axis=1
        )
        # Of a long, the lower half comes first or last.
        longs = tf.where(is_little, values, table[:, 11] + 256 * table[:, 10])
        values = tf.where(types == 4, longs, values)
        found = tf.boolean_mask(values, (tags == ORIENTATION) & ((types == 3) | (types == 4)))
        found = tf.concat([found, [1]], axis=0)[0]
        return tf.where((found >= 1) & (found <= 8), found, 1)

    is_valid = (directory >= 8) & (directory + 2 <= size)
    return tf.cond(is_valid, search, lambda: 1)


def _find_in_jpeg(encoded):
    """The offset of the EXIF data in a JPEG; 0: there are none."""
    size = tf.strings.length(encoded)

    def is_segment(offset, found):
        return (found == 0) & (offset + 4 <= size)

    def next_segment(offset, found):
        marker = _byte(encoded, offset + 1)
        has_exif = (marker == APP1) & _starts_with(encoded, offset + 4, EXIF_HEADER)
        is_last = (_byte(encoded, offset) != 0xFF) | (marker == START_OF_SCAN)
        step = tf.where(marker == 0xFF, 1, 2 + _number(encoded, offset + 2, 2, False))
        return (
            tf.where(is_last, size, offset + step),
            tf.where(has_exif & ~is_last, offset + 4 + len(EXIF_HEADER), 0),
        )

    _, found = tf.while_loop(is_segment, next_segment, (tf.constant(2), tf.constant(0)))
    return found


def _find_in_png(encoded):
    """The offset of the EXIF data in a PNG; 0: there are none."""
    return _find_chunk(encoded, b"eXIf")


def _find_chunk(encoded, name):
    """The offset of the content of a chunk of a PNG; 0: there is none."""
    size = tf.strings.length(encoded)

    def is_chunk(offset, found):
        return (found == 0) & (offset + 8 <= size) & (offset >= 0)

    def next_chunk(offset, found):
        is_found = _starts_with(encoded, offset + 4, name)
        step = 12 + _number(encoded, offset, 4, False)
        return (
            tf.where(step >= 12, offset + step, size),
            tf.where(is_found, offset + 8, 0),
        )

    _, found = tf.while_loop(
        is_chunk, next_chunk, (tf.constant(len(PNG_SIGNATURE)), tf.constant(0))
    )
    return found


def _starts_with(encoded, offset, expected):
    """Whether a string has some bytes at an offset."""
    fits = offset + len(expected) <= tf.strings.length(encoded)
    return tf.cond(
        fits,
        lambda: tf.strings.substr(encoded, offset, len(expected)) == expected,
        lambda: False,
    )


def _byte(encoded, offset):
    return _number(encoded, offset, 1, False)


def _number(encoded, offset, length, is_little):
    """A number of 1, 2 or 4 bytes at an offset, int32; a larger one is negative."""
    digits = tf.cast(
        tf.io.decode_raw(tf.strings.substr(encoded, offset, length), tf.uint8), tf.int32
    )
    digits = tf.cond(tf.cast(is_little, tf.bool), lambda: digits, lambda: digits[::-1])
    return tf.reduce_sum(digits * tf.constant([256**power for power in range(length)]))


def _rotate(image, orientation):
    """Undoes an EXIF orientation: mirrors and transposes, so that the image is upright."""
    return tf.switch_case(
        orientation - 1,
        [
            lambda: image,
            lambda: tf.reverse(image, [1]),
            lambda: tf.reverse(image, [0, 1]),
            lambda: tf.reverse(image, [0]),
            lambda: tf.transpose(image, [1, 0, 2]),
            lambda: tf.reverse(tf.transpose(image, [1, 0, 2]), [1]),
            lambda: tf.reverse(tf.transpose(image, [1, 0, 2]), [0, 1]),
            lambda: tf.reverse(tf.transpose(image, [1, 0, 2]), [0]),
        ],
    )
