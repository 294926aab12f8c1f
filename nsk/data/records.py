"""Images and records: what stands in a shard, and how it becomes pixels.

A record is a serialized `tf.train.Example`. Image shards hold `id`, `image/encoded` and, in
labelled sets alone, `image/class/label`. Pseudo-label shards hold `id`, `image/encoded`,
`pseudo/label`, `pseudo/confidence`, `pseudo/log_probabilities` (float16, little-endian bytes) and
`pseudo/copies`.

Encoded images are 8-bit RGB or grayscale JPEG or PNG: `normalize_image` makes them so once, at
ingest, since `tf.io.decode_image` ignores EXIF rotation and garbles or refuses several formats.
"""

import dataclasses
import hashlib
import io
import struct

import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps

EXIF_ORIENTATION = 0x0112


@dataclasses.dataclass(frozen=True)
class SourceImage:
    """One image as its source has it; `label` is None where it is not known."""

    id: str
    encoded: bytes
    label: int | None


def _bytes(value):
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))


def _int(value):
    return tf.train.Feature(int64_list=tf.train.Int64List(value=[int(value)]))


def _float(value):
    return tf.train.Feature(float_list=tf.train.FloatList(value=[float(value)]))


def _serialize(features):
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def image_example(id, encoded, label=None):
    """One image as a record.

    Args:
        id: string, unique within its shard set and stable.
        encoded: bytes of an image as `normalize_image` returns it.
        label: int, or None to leave the label out.

    Returns:
        bytes, a serialized `tf.train.Example`.
    """
    features = {"id": _bytes(id.encode()), "image/encoded": _bytes(encoded)}
    if label is not None:
        features["image/class/label"] = _int(label)
    return _serialize(features)


def pseudo_example(id, encoded, label, confidence, log_probabilities, copies):
    """One pseudo-labelled image as a record.

    Args:
        id: string.
        encoded: bytes of an image as `normalize_image` returns it.
        label: int, the teacher's first choice.
        confidence: float, the teacher's probability of `label`.
        log_probabilities: float16 or float32 array of shape (num_classes,).
        copies: int, how often the image counts in an epoch.

    Returns:
        bytes, a serialized `tf.train.Example`.
    """
    return _serialize(
        {
            "id": _bytes(id.encode()),
            "image/encoded": _bytes(encoded),
            "pseudo/label": _int(label),
            "pseudo/confidence": _float(confidence),
            "pseudo/log_probabilities": _bytes(np.asarray(log_probabilities, "<f2").tobytes()),
            "pseudo/copies": _int(copies),
        }
    )


def parse_images(serialized):
    """Parses a batch of image records.

    Args:
        serialized: string tensor of shape (batch,).

    Returns:
        dict of `id` and `encoded` (string) and `label` (int64, -1 where absent), each of shape
        (batch,).
    """
    parsed = tf.io.parse_example(
        serialized,
        {
            "id": tf.io.FixedLenFeature([], tf.string),
            "image/encoded": tf.io.FixedLenFeature([], tf.string),
            "image/class/label": tf.io.FixedLenFeature([], tf.int64, default_value=-1),
        },
    )
    return {
        "id": parsed["id"],
        "encoded": parsed["image/encoded"],
        "label": parsed["image/class/label"],
    }


def parse_pseudo(serialized, num_classes):
    """Parses a batch of pseudo-label records.

    Args:
        serialized: string tensor of shape (batch,).
        num_classes: int; a record of another number of classes fails.

    Returns:
        dict of `id` and `encoded` (string), `label` (int64), `confidence` (float32) and `copies`
        (int64), each of shape (batch,), and `log_probabilities` (float32) of shape (batch,
        num_classes).
    """
    scalar = tf.io.FixedLenFeature
    parsed = tf.io.parse_example(
        serialized,
        {
            "id": scalar([], tf.string),
            "image/encoded": scalar([], tf.string),
            "pseudo/label": scalar([], tf.int64),
            "pseudo/confidence": scalar([], tf.float32),
            "pseudo/log_probabilities": scalar([], tf.string),
            "pseudo/copies": scalar([], tf.int64),
        },
    )
    halves = tf.io.decode_raw(parsed["pseudo/log_probabilities"], tf.float16, little_endian=True)
    return {
        "id": parsed["id"],
        "encoded": parsed["image/encoded"],
        "label": parsed["pseudo/label"],
        "confidence": parsed["pseudo/confidence"],
        "log_probabilities": tf.cast(tf.ensure_shape(halves, [None, num_classes]), tf.float32),
        "copies": parsed["pseudo/copies"],
    }


def decode_image(encoded, image_size):
    """Decodes one image to a square; training, scoring and the exported model all use this.

    An image that is not `image_size` square has its shorter side resized to `image_size` (bilinear,
    antialiased) and its centre cropped. One that fits keeps its pixels.

    Args:
        encoded: scalar string tensor.
        image_size: int, pixels.

    Returns:
        uint8 tensor of shape (image_size, image_size, 3).
    """
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    image.set_shape([None, None, 3])
    size = tf.shape(image)[:2]

    def resize_and_crop():
        scale = image_size / tf.reduce_min(size)
        scaled = tf.cast(tf.round(tf.cast(size, tf.float64) * scale), tf.int32)
        height, width = tf.unstack(tf.maximum(scaled, image_size))
        resized = tf.image.resize(image, [height, width], "bilinear", antialias=True)
        top, left = (height - image_size) // 2, (width - image_size) // 2
        crop = resized[top : top + image_size, left : left + image_size]
        return tf.saturate_cast(tf.round(crop), tf.uint8)

    fits = tf.reduce_all(size == image_size)
    return tf.ensure_shape(
        tf.cond(fits, lambda: image, resize_and_crop), [image_size, image_size, 3]
    )


@dataclasses.dataclass(frozen=True)
class NormalizedImage:
    """An image fit for a record.

    Attributes:
        encoded: bytes, an 8-bit RGB or grayscale JPEG or PNG.
        digest: 16 bytes that are equal where the RGB pixels are.
        reencoded: bool, whether `encoded` differs from what was given.
    """

    encoded: bytes
    digest: bytes
    reencoded: bool


def normalize_image(encoded):
    """Keeps a plain JPEG or PNG as it is and turns every other image into an RGB PNG.

    EXIF rotation is applied, transparency is laid on white, 16 bits become 8, palettes, CMYK and
    1-bit images become RGB, and of an animation the first frame stays.

    Args:
        encoded: bytes of an image in any format that Pillow reads.

    Returns:
        A `NormalizedImage`.

    Raises:
        ValueError: the image cannot be decoded; the message says why.
    """
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            if image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels are too many")
            if _is_plain(image, encoded):
                pixels = _decode_as_tensorflow(encoded)
                if pixels is not None:
                    return NormalizedImage(encoded, _digest(pixels), reencoded=False)
            pixels = np.asarray(_to_rgb(image))
    except Exception as error:  # Pillow's plugins raise nearly anything on broken data.
        raise ValueError(" ".join(f"{type(error).__name__}: {error}".split())[:200]) from error
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return NormalizedImage(buffer.getvalue(), _digest(pixels), reencoded=True)


def _digest(pixels):
    height, width, _ = pixels.shape
    return hashlib.sha256(struct.pack(">II", height, width) + pixels.tobytes()).digest()[:16]


def _is_plain(image, encoded):
    if image.format not in ("JPEG", "PNG") or image.mode not in ("RGB", "L"):
        return False
    # Byte 24 of a PNG is its bit depth, which Pillow hides: it reads 16-bit colours as 8-bit ones.
    if image.format == "PNG" and (encoded[24] != 8 or "transparency" in image.info):
        return False
    animated = getattr(image, "is_animated", False)
    return not animated and image.getexif().get(EXIF_ORIENTATION, 1) == 1


def _decode_as_tensorflow(encoded):
    # Pillow forgives what TensorFlow refuses, such as a PNG whose last bytes are missing. An image
    # that only Pillow can read would stop the training later: it is encoded anew.
    try:
        return tf.io.decode_image(encoded, channels=3, expand_animations=False).numpy()
    except tf.errors.InvalidArgumentError:
        return None


def _to_rgb(image):
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        # 65535 / 257 = 255, and adding half of 257 first rounds to the nearest.
        levels = (np.asarray(image).astype(np.int64) + 128) // 257
        image = Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")
