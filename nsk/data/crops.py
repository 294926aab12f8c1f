"""Random resized crops of encoded images, as used for training on ImageNet.

Of a JPEG only the cropped part is decoded. The boxes are drawn for a whole batch from a key of
`nsk.noise`, so that an image's box only depends on the key, its position in the batch and its size.

Reference: Szegedy et al., 2015 (arXiv 1409.4842); the boxes are those of torchvision's
RandomResizedCrop.
"""

import math

import tensorflow as tf

from nsk import noise
from nsk.data.evaluation_decoding import add_margins, padded_size
from nsk.data.plain_decoding import decode_jpeg_part

ATTEMPTS = 10
RATIO = (3 / 4, 4 / 3)  # Width over height.


@tf.autograph.experimental.do_not_convert
def random_resized_crop(
    encoded: tf.Tensor,
    key: tf.Tensor,
    image_size: int,
    min_area: float = 0.08,
    max_area: float = 1.0,
    ratio: tuple[float, float] = RATIO,
    resize_mode: str = "crop",
) -> tf.Tensor:
    """Decodes a random part of each image and resizes it to a square.

    Where whole images are stretched or padded without this noise, parts are of the image's own
    shape, up to `ratio`, and take the place of the whole image: all of it, with ratio 1, is
    `decoding.decode_image`.

    Args:
        encoded: string (batch,), 8-bit JPEG or PNG as shards hold them.
        key: int64 (2,), a key of `nsk.noise`.
        image_size: int, pixels of the result's side.
        min_area: in (0, 1], smallest area of a crop, as a share of the image's.
        max_area: in (0, 1], largest area.
        ratio: the range of a crop's width over height.
        resize_mode: "crop" | "pad": parts of the image's shape between its margins | "squash":
            parts of the image's shape, stretched; see `decoding.decode_image`.

    Returns:
        uint8 tensor (batch, image_size, image_size, 3); resized bilinearly, antialiased.
    """
    encoded = tf.convert_to_tensor(encoded)
    sizes = tf.map_fn(_size, encoded, fn_output_signature=tf.TensorSpec([2], tf.int32))
    draws = noise.for_examples(
        noise.uniform, noise.named(key, "resized_crop"), tf.shape(encoded)[0], [ATTEMPTS + 1, 2]
    )
    of_image = resize_mode != "crop"
    boxes = crop_boxes(draws, sizes[:, 0], sizes[:, 1], min_area, max_area, ratio, of_image)

    def resize(part, target, antialias):
        resized = tf.image.resize(part, target, "bilinear", antialias=antialias)
        return tf.saturate_cast(tf.round(resized), tf.uint8)

    def crop(image):
        encoded, box, size = image
        part = decode_and_crop(encoded, box)
        target = [image_size, image_size]
        if resize_mode == "pad":
            target = padded_size(size, image_size)
        # Antialiasing changes nothing if no side shrinks, and takes four times as long.
        shrinks = tf.reduce_any(tf.shape(part)[:2] > target)
        square = tf.cond(
            shrinks, lambda: resize(part, target, True), lambda: resize(part, target, False)
        )
        return add_margins(square, image_size) if resize_mode == "pad" else square

    pixels = tf.TensorSpec([image_size, image_size, 3], tf.uint8)
    return tf.map_fn(crop, (encoded, boxes, sizes), fn_output_signature=pixels)


def crop_boxes(
    draws: tf.Tensor,
    heights: tf.Tensor,
    widths: tf.Tensor,
    min_area: float = 0.08,
    max_area: float = 1.0,
    ratio: tuple[float, float] = RATIO,
    of_image: bool = False,
) -> tf.Tensor:
    """The first of several random boxes that fits into its image, for each image of a batch.

    Args:
        draws: float32 (batch, attempts + 1, 2) in [0, 1): area and ratio of each attempt, and
            finally the position of the box.
        heights: int32 (batch,), pixels of the images.
        widths: int32 (batch,), pixels.
        min_area: in (0, 1], smallest area of a box, as a share of the image's; areas are drawn
            uniformly.
        max_area: in (0, 1], largest area.
        ratio: the range of a box's width over height; drawn log-uniformly.
        of_image: whether width and height are in units of the image's, so that boxes are of its
            shape; False: in pixels.

    Returns:
        int32 (batch, 4): top, left, height and width of each box. If no attempt fits, it is the
        largest central box with a width over height within `ratio`.
    """
    if not 0 < min_area <= max_area <= 1 or not 0 < ratio[0] <= ratio[1]:
        raise ValueError(
            f"min_area={min_area}, max_area={max_area}, ratio={ratio}: expected "
            "0 < min_area <= max_area <= 1 and two ratios above 0 in ascending order."
        )
    sizes = tf.stack([heights, widths], axis=1)
    full = tf.cast(sizes, tf.float32)
    shares = min_area + (max_area - min_area) * draws[:, :-1, 0]
    if of_image:
        height, width = (tf.sqrt(shares) * side for side in tf.split(full, 2, axis=1))
        largest = full * [min(1.0, 1.0 / ratio[0]), min(1.0, ratio[1])]
    else:
        height = width = tf.sqrt(shares * tf.reduce_prod(full, axis=1, keepdims=True))
        largest = tf.minimum(full, full[:, ::-1] * [1.0 / ratio[0], ratio[1]])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    stretch = tf.exp((low + (high - low) * draws[:, :-1, 1]) / 2.0)
    # The largest box within the ratios is the last one and always fits.
    drawn = tf.round(tf.stack([height / stretch, width * stretch], axis=2))
    boxes = tf.concat([drawn, tf.maximum(tf.round(largest), 1.0)[:, None]], axis=1)
    fits = tf.reduce_all((boxes >= 1.0) & (boxes <= full[:, None]), axis=2)
    first = tf.argmax(tf.cast(fits, tf.int32), axis=1, output_type=tf.int32)
    chosen = tf.cast(tf.gather(boxes, first, batch_dims=1), tf.int32)
    room = sizes - chosen
    drawn_corner = tf.cast(draws[:, -1] * tf.cast(room + 1, tf.float32), tf.int32)
    is_drawn = first < tf.shape(drawn)[1]
    return tf.concat([tf.where(is_drawn[:, None], drawn_corner, room // 2), chosen], axis=1)


def decode_and_crop(encoded: tf.Tensor, box: tf.Tensor) -> tf.Tensor:
    """The part of a JPEG or PNG inside a box: uint8 (height, width, 3).

    A JPEG's part equals that of the whole image except for its outermost columns, as their colours
    are interpolated from the part only.
    """

    def from_jpeg():
        return decode_jpeg_part(encoded, box)

    def from_png():
        return tf.slice(
            tf.io.decode_png(encoded, channels=3), [box[0], box[1], 0], [box[2], box[3], 3]
        )

    return tf.ensure_shape(tf.cond(_is_jpeg(encoded), from_jpeg, from_png), [None, None, 3])


def _size(encoded: tf.Tensor) -> tf.Tensor:
    """int32 (height, width) from the header of a JPEG or PNG."""

    def from_jpeg():
        return tf.image.extract_jpeg_shape(encoded)[:2]

    def from_png():
        header = tf.strings.substr(encoded, 16, 8)
        return tf.io.decode_raw(header, tf.int32, little_endian=False)[::-1]

    return tf.ensure_shape(tf.cond(_is_jpeg(encoded), from_jpeg, from_png), [2])


def _is_jpeg(encoded: tf.Tensor) -> tf.Tensor:
    return tf.strings.substr(encoded, 0, 2) == b"\xff\xd8"
