"""Decodes images to squares: the central square, the whole image, or a published evaluation's crop.

Published crops leave out a margin, as training on random crops shows objects enlarged.
"""

import dataclasses
import io

import numpy as np
import tensorflow as tf
from PIL import Image

from nsk.data.normalization import ALL_BITS, normalize_image
from nsk.data.plain_decoding import decode_plain

INTERPOLATIONS = ("bilinear", "bicubic")
RULES = ("crop", "resize", "tf1", "pad", "squash")
# Gray of the margins of padded images: the middle of the range, which networks scale to about 0.
# Geometric noise fills with it by default, too.
PADDING_LEVEL = 128
TF1_PADDING = 32  # Pixels of the margin on both sides together.
# ImageNet's, of which the published networks are.
PUBLISHED_CLASSES = 1000
RESNET_FRACTION = 0.875
MAX_ASPECT_RATIO = 8


@dataclasses.dataclass(frozen=True)
class Crop:
    """How an image becomes a square. One that already has the size keeps its pixels.

    Attributes:
        image_size: side of the square in pixels.
        crop_fraction: share, in (0, 1], of the shorter side that remains; with the rules "pad" and
            "squash" of both sides.
        interpolation: "bilinear" or "bicubic" (Keys' kernel, a = -1/2).
        antialias: whether the kernel is widened when images get smaller, as Pillow does.
        rule: order and rounding.
            "crop": the central square is cropped, with a side of `crop_fraction` of the shorter
            side, rounded down, and offsets rounded down; then it is resized. With 1, bilinear and
            antialiased, this is `decoding.decode_image`.
            "resize": the shorter side is resized to `round(image_size / crop_fraction)` and the
            longer one in proportion, rounded down; then the central square is cropped, with offsets
            rounded to the nearest, halves to even, as in torchvision.
            "tf1": as "crop", with offsets rounded up, and resized as TensorFlow 1 did: not
            antialiased, pixels at their top left corners, and for bicubic a = -3/4. As the
            official code of EfficientNet does.
            "pad": the longer side is resized to `image_size` and the shorter one in proportion, as
            Pillow's `ImageOps.pad` does; margins of `PADDING_LEVEL` on both sides fill the square.
            "squash": both sides are resized to `image_size`, so that proportions change.

    Raises:
        ValueError: a value is out of its range; "tf1" is antialiased.
    """

    image_size: int
    crop_fraction: float = 1.0
    interpolation: str = "bilinear"
    antialias: bool = True
    rule: str = "crop"

    def __post_init__(self):
        if self.image_size < 1:
            raise ValueError(f"image_size={self.image_size}: expected at least 1 pixel.")
        if not 0 < self.crop_fraction <= 1:
            raise ValueError(f"crop_fraction={self.crop_fraction}: expected above 0, at most 1.")
        for name, known in (("interpolation", INTERPOLATIONS), ("rule", RULES)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name}={getattr(self, name)!r}: expected one of {', '.join(known)}."
                )
        if self.rule == "tf1" and self.antialias:
            raise ValueError("rule='tf1' has no antialiasing: give antialias=False.")


def default_crop(name: str, weights_format: str, *, image_size: int, num_classes: int) -> Crop:
    """The crop with which a network's published results were computed.

    Published are TensorFlow 1 checkpoints and weights of `keras.applications` with 1,000 classes:
    the rule of EfficientNet's official code, which the weights of EfficientNet in
    `keras.applications` were converted from, and 224 of 256 pixels for its other networks. Any
    other network is assumed to be trained by this project, or with its images:
    `decoding.decode_image`.

    Args:
        name: name of the network.
        weights_format: that of `nsk.models.classifier.Classifier`.
        image_size: side of the square in pixels.
        num_classes: number of classes.

    Reference:
        https://github.com/tensorflow/tpu/blob/master/models/official/efficientnet/preprocessing.py,
        https://github.com/keras-team/keras-applications/pull/113
    """
    if weights_format not in ("tf1", "keras.applications") or num_classes != PUBLISHED_CLASSES:
        return Crop(image_size)
    if weights_format == "tf1" or "efficientnet" in name:
        return Crop(image_size, image_size / (image_size + TF1_PADDING), "bicubic", False, "tf1")
    return Crop(image_size, RESNET_FRACTION, rule="resize")


def decode_with_crop(encoded: tf.Tensor, crop: Crop) -> tf.Tensor:
    """Decodes one image and crops and resizes it to a square.

    Args:
        encoded: scalar string tensor, a JPEG, PNG, GIF or BMP file.
        crop: `Crop`.

    Returns:
        uint8 tensor of shape (image_size, image_size, 3), rounded.
    """
    image = decode_plain(encoded)
    image.set_shape([None, None, 3])
    return to_square(image, crop)


def to_square(image: tf.Tensor, crop: Crop) -> tf.Tensor:
    """Crops and resizes a decoded image.

    Args:
        image: uint8 (height, width, 3).
        crop: `Crop`.

    Returns:
        uint8 tensor (image_size, image_size, 3), rounded.
    """
    fits = tf.reduce_all(tf.shape(image)[:2] == crop.image_size)

    def resized():
        make = {
            "resize": _resize_then_crop,
            "pad": _fit_with_margins,
            "squash": _stretch,
        }.get(crop.rule, _crop_then_resize)
        return tf.saturate_cast(tf.round(make(image, crop)), tf.uint8)

    shape = [crop.image_size, crop.image_size, 3]
    return tf.ensure_shape(tf.cond(fits, lambda: image, resized), shape)


def decode_file(encoded: bytes, crop: Crop, significant_bits: int = ALL_BITS) -> np.ndarray:
    """Decodes an image file as ingestion and `decode_with_crop` together do.

    Args:
        encoded: an image in one of `normalization.FORMATS`.
        crop: `Crop`.
        significant_bits: of `normalize_image`.

    Returns:
        uint8 array (image_size, image_size, 3).

    Raises:
        ValueError: it cannot be decoded; the message gives the reason.
    """
    normalized = normalize_image(encoded, significant_bits=significant_bits)
    return decode_with_crop(tf.constant(normalized.encoded), crop).numpy()


def resize_pixels(image: np.ndarray, crop: Crop) -> np.ndarray:
    """Crops and resizes a decoded image as `decode_with_crop` does.

    Args:
        image: uint8 (height, width, 3).
        crop: `Crop`.

    Returns:
        uint8 array (image_size, image_size, 3).
    """
    return to_square(tf.constant(image), crop).numpy()


def decode_uncropped(encoded: bytes, shorter_side: int, rule: str = "crop") -> np.ndarray:
    """Decodes and resizes an image with Pillow, as torchvision's `Resize(shorter_side)` does.

    With the rules "pad" and "squash" the image is made a square by them instead.

    Bilinear and antialiased; the longer side is in proportion, rounded down. An image that is more
    than `MAX_ASPECT_RATIO` times as long as it is wide is cropped to this ratio first, which limits
    the memory.

    Args:
        encoded: an image as `normalize_image` returns it.
        shorter_side: pixels.
        rule: of `Crop`.

    Returns:
        uint8 array (height, width, 3), whose shorter side is `shorter_side`.
    """
    if rule in ("pad", "squash"):
        return decode_with_crop(tf.constant(encoded), Crop(shorter_side, rule=rule)).numpy()
    with Image.open(io.BytesIO(encoded)) as opened:
        image = opened.convert("RGB")
    width, height = image.size
    shorter = min(width, height)
    left, top = (max(side - MAX_ASPECT_RATIO * shorter, 0) // 2 for side in (width, height))
    image = image.crop((left, top, width - left, height - top))
    size = tuple(shorter_side * side // shorter for side in image.size)
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR))


def _crop_then_resize(image, crop):
    """The central square, resized: float32 (image_size, image_size, 3)."""
    size = tf.shape(image)[:2]
    shorter = tf.cast(tf.reduce_min(size), tf.float32)
    side = tf.maximum(tf.cast(crop.crop_fraction * shorter, tf.int32), 1)
    margins = size - side + (1 if crop.rule == "tf1" else 0)
    top, left = tf.unstack(margins // 2)
    square = image[top : top + side, left : left + side]
    target = [crop.image_size, crop.image_size]
    if crop.rule == "tf1":
        return tf.compat.v1.image.resize(square, target, crop.interpolation)
    return tf.image.resize(square, target, crop.interpolation, antialias=crop.antialias)


def _resize_then_crop(image, crop):
    """The centre of the resized image: float32 (image_size, image_size, 3).

    Only the pixels that remain are computed, so that the memory is small for a long image, too.
    """
    size = tf.shape(image)[:2]
    shorter = tf.reduce_min(size)
    resized_shorter = round(crop.image_size / crop.crop_fraction)
    resized = tf.cast(
        resized_shorter * tf.cast(size, tf.int64) // tf.cast(shorter, tf.int64), tf.float32
    )
    # tf.round rounds halves to even.
    offsets = tf.round((resized - crop.image_size) / 2)
    (cropped,) = tf.unstack(
        tf.raw_ops.ScaleAndTranslate(
            images=tf.cast(image, tf.float32)[tf.newaxis],
            size=[crop.image_size, crop.image_size],
            scale=resized / tf.cast(size, tf.float32),
            translation=-offsets,
            kernel_type={"bilinear": "triangle", "bicubic": "keyscubic"}[crop.interpolation],
            antialias=crop.antialias,
        ),
        num=1,
    )
    return cropped


def _fit_with_margins(image, crop):
    """The image, its longer side resized, between margins: float32 (image_size, image_size, 3)."""
    size = padded_size(tf.shape(image)[:2], crop.image_size)
    return add_margins(_resize(_central_part(image, crop), size, crop), crop.image_size)


def _stretch(image, crop):
    """The image, both sides resized: float32 (image_size, image_size, 3)."""
    return _resize(_central_part(image, crop), [crop.image_size, crop.image_size], crop)


def _central_part(image, crop):
    """The middle of an image, `crop_fraction` of both sides, rounded down."""
    size = tf.shape(image)[:2]
    part = tf.cast(crop.crop_fraction * tf.cast(size, tf.float32), tf.int32)
    part = tf.maximum(part, 1)
    top, left = tf.unstack((size - part) // 2)
    return image[top : top + part[0], left : left + part[1]]


def _resize(image, size, crop):
    return tf.image.resize(image, size, crop.interpolation, antialias=crop.antialias)


def padded_size(size: tf.Tensor, image_size: int) -> tf.Tensor:
    """Height and width of a padded image without its margins.

    Args:
        size: int32 (2,), height and width of the image in pixels.
        image_size: side of the square in pixels.

    Returns:
        int32 (2,): the longer side is `image_size`, the other one at least 1.
    """
    sides = tf.cast(size, tf.float64)
    resized = tf.round(sides / tf.reduce_max(sides) * image_size)
    return tf.maximum(tf.cast(resized, tf.int32), 1)


def add_margins(image: tf.Tensor, image_size: int) -> tf.Tensor:
    """Fills a square around an image with `PADDING_LEVEL`.

    Args:
        image: (height, width, 3), at most `image_size`.
        image_size: side of the square in pixels.

    Returns:
        Tensor (image_size, image_size, 3); margins of opposite sides differ by at most one pixel.
    """
    margins = image_size - tf.shape(image)[:2]
    # Halves to even, as in Pillow.
    before = tf.cast(tf.round(tf.cast(margins, tf.float32) / 2), tf.int32)
    paddings = tf.stack([before, margins - before], axis=1)
    padded = tf.pad(image, tf.pad(paddings, [[0, 1], [0, 0]]), constant_values=PADDING_LEVEL)
    return tf.ensure_shape(padded, [image_size, image_size, 3])
