"""Random resized crops of encoded images, as ImageNet's training has them.

A JPEG is decoded only where it is cropped. Boxes are drawn for the whole batch from a key of
`nsk.noise`, so they depend on the key, the position in the batch and the image's size alone.

Reference: Szegedy et al., 2015 (arXiv 1409.4842); the draws follow torchvision's RandomResizedCrop.
"""

import math

import tensorflow as tf

from nsk import noise

ATTEMPTS = 10
RATIOS = (3 / 4, 4 / 3)  # Width over height.


@tf.autograph.experimental.do_not_convert
def random_resized_crop(encoded, key, image_size, min_area=0.08, max_area=1.0, ratios=RATIOS):
    """Decodes a random part of each image and resizes it to a square.

    Args:
        encoded: string tensor (batch,), 8-bit JPEG or PNG as shards hold them.
        key: int64 (2,), a key of `nsk.noise`.
        image_size: int, pixels of the result's side.
        min_area, max_area: floats in (0, 1], shares of the image's area between which a part's is
            drawn uniformly.
        ratios: two floats, width over height, between which a part's is drawn log-uniformly.

    Returns:
        uint8 tensor (batch, image_size, image_size, 3); resized bilinearly, with antialiasing.
    """
    batch = tf.shape(encoded)[0]
    draws = noise.uniform(noise.named(key, "resized_crop"), [batch, ATTEMPTS + 1, 2])

    def crop(one):
        encoded, draws = one
        is_jpeg = tf.strings.substr(encoded, 0, 2) == b"\xff\xd8"

        def from_jpeg():
            shape = tf.image.extract_jpeg_shape(encoded)
            box = crop_box(draws, shape[0], shape[1], min_area, max_area, ratios)
            return tf.image.decode_and_crop_jpeg(encoded, box, channels=3)

        def from_any():
            image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
            shape = tf.shape(image)
            box = crop_box(draws, shape[0], shape[1], min_area, max_area, ratios)
            return tf.slice(image, [box[0], box[1], 0], [box[2], box[3], 3])

        part = tf.cond(is_jpeg, from_jpeg, from_any)
        part.set_shape([None, None, 3])
        resized = tf.image.resize(part, [image_size, image_size], "bilinear", antialias=True)
        return tf.saturate_cast(tf.round(resized), tf.uint8)

    pixels = tf.TensorSpec([image_size, image_size, 3], tf.uint8)
    return tf.map_fn(crop, (encoded, draws), fn_output_signature=pixels)


def crop_box(draws, height, width, min_area, max_area, ratios=RATIOS):
    """The first of several random boxes that fits into the image.

    Args:
        draws: float32 (attempts + 1, 2) in [0, 1): area and ratio of each attempt, and last the
            place of the box.
        height, width: int32 scalar tensors, the image's sides.
        min_area, max_area, ratios: see `random_resized_crop`.

    Returns:
        int32 tensor (top, left, height, width). Where no attempt fits: the largest box in the
        middle whose ratio is within `ratios`.
    """
    full_height, full_width = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    shares = min_area + (max_area - min_area) * draws[:-1, 0]
    low, high = (math.log(ratio) for ratio in ratios)
    drawn_ratios = tf.exp(low + (high - low) * draws[:-1, 1])
    areas = shares * full_height * full_width
    widths = tf.cast(tf.round(tf.sqrt(areas * drawn_ratios)), tf.int32)
    heights = tf.cast(tf.round(tf.sqrt(areas / drawn_ratios)), tf.int32)
    fits = (widths >= 1) & (heights >= 1) & (widths <= width) & (heights <= height)

    def drawn():
        first = tf.argmax(fits)
        size = tf.stack([heights[first], widths[first]])
        room = tf.cast(tf.stack([height, width]) - size + 1, tf.float32)
        return tf.concat([tf.cast(draws[-1] * room, tf.int32), size], axis=0)

    def central():
        size = tf.round(
            tf.stack(
                [
                    tf.minimum(full_height, full_width / ratios[0]),
                    tf.minimum(full_width, full_height * ratios[1]),
                ]
            )
        )
        size = tf.maximum(tf.cast(size, tf.int32), 1)
        return tf.concat([(tf.stack([height, width]) - size) // 2, size], axis=0)

    return tf.cond(tf.reduce_any(fits), drawn, central)
