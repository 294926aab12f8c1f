"""Images and records: what stands in a shard, and how it becomes pixels.

A record is a serialized `tf.train.Example`. Image shards hold `id`, `image/encoded` and, in
labelled sets alone, `image/class/label`; unlabelled ones of which a teacher elsewhere has said
something have `taught/log_probabilities` (float32, little-endian bytes). Pseudo-label shards hold
`id`, `image/encoded`, `pseudo/label`, `pseudo/confidence`, `pseudo/log_probabilities` (float16,
little-endian bytes) and `pseudo/copies`. Where only the largest log-probabilities are held,
`pseudo/classes` (int32, little-endian bytes) says whose, and `pseudo/remaining_probability` what
all others have together.

Encoded images are 8-bit RGB or grayscale JPEG or PNG: `normalize_image` makes them so once, at
ingest, since `tf.io.decode_image` ignores EXIF rotation and garbles or refuses several formats.
"""

import contextlib
import dataclasses
import hashlib
import io
import struct
import threading

import numpy as np
import tensorflow as tf
from PIL import Image, UnidentifiedImageError

from nsk.config.sections import DataConfig

FLOAT16_BYTES, INT32_BYTES = 2, 4
# What remains of a distribution may be nothing, which has no logarithm.
LEAST_PROBABILITY = 1e-10

# Formats whose header tells how many pixels will be decoded. Others of Pillow's hold images larger
# than they say (ICO) or start another program (EPS).
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "AVIF", "PPM")

# Pixels that all threads together decode at the same time; one may take 30 bytes for a while.
PIXELS_AT_ONCE = 2**28

EXIF_ORIENTATION = 0x0112
TILE_WIDTH, TILE_LENGTH = 322, 323  # Tags of a TIFF.
TURN_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# `normalize_image` has a limit of its own. Pillow's would warn and refuse by another one, and can
# only be lifted for the whole process: silencing a warning is not safe among threads.
Image.MAX_IMAGE_PIXELS = None


@dataclasses.dataclass(frozen=True)
class SourceImage:
    """One image as its source has it.

    Attributes:
        id: string.
        encoded: bytes of an image file.
        label: int; None where it is not known.
        taught: what a teacher elsewhere says of it: probabilities of all classes (num_classes,), or
            (its first choice, the probability of that one); None where there is no such teacher.
        unreadable: why its bytes cannot be had, "" where they are.
    """

    id: str
    encoded: bytes
    label: int | None
    taught: np.ndarray | tuple | None = None
    unreadable: str = ""

    def taught_log_probabilities(self, num_classes):
        """`taught` as bytes for `image_example`, b"" where there is nothing.

        Raises:
            ValueError: these are no probabilities of so many classes.
        """
        if self.taught is None:
            return b""
        if isinstance(self.taught, tuple):
            label, probability = self.taught
            if not 0 <= label < num_classes:
                raise ValueError(f"its teacher's label {label} is not in 0 to {num_classes - 1}")
            if not 0 <= probability <= 1:
                raise ValueError(f"its teacher's prob {probability:.4g} is not in 0 to 1")
            others = (1 - probability) / max(1, num_classes - 1)
            probabilities = np.full(num_classes, others)
            probabilities[label : label + 1] = probability
        else:
            probabilities = np.asarray(self.taught, np.float64)
        in_range = (probabilities >= 0).all() and abs(probabilities.sum() - 1) < 0.01
        if probabilities.shape != (num_classes,) or not in_range:
            raise ValueError(
                f"what its teacher says has {len(probabilities)} values of sum "
                f"{probabilities.sum():.4g}, the least being {probabilities.min():.4g}, and not "
                f"probabilities of {num_classes} classes"
            )
        least = LEAST_PROBABILITY / num_classes
        return np.log(np.maximum(probabilities, least)).astype("<f4").tobytes()


def _bytes(value):
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))


def _int(value):
    return tf.train.Feature(int64_list=tf.train.Int64List(value=[int(value)]))


def _float(value):
    return tf.train.Feature(float_list=tf.train.FloatList(value=[float(value)]))


def _serialize(features):
    example = tf.train.Example(features=tf.train.Features(feature=features))
    # A map has no order: without this, each process would write its own.
    return example.SerializeToString(deterministic=True)


def image_example(id, encoded, label=None, log_probabilities=b""):
    """One image as a record.

    Args:
        id: string, unique within its shard set and stable.
        encoded: bytes of an image as `normalize_image` returns it.
        label: int, or None to leave the label out.
        log_probabilities: bytes of float32 (little-endian), what a teacher elsewhere says of it;
            b"": nothing.

    Returns:
        bytes, a serialized `tf.train.Example`.
    """
    features = {"id": _bytes(id.encode()), "image/encoded": _bytes(encoded)}
    if label is not None:
        features["image/class/label"] = _int(label)
    if log_probabilities:
        features["taught/log_probabilities"] = _bytes(log_probabilities)
    return _serialize(features)


def pseudo_example(
    id, encoded, label, confidence, log_probabilities, copies, classes=None, remaining=None
):
    """One pseudo-labelled image as a record.

    Args:
        id: string.
        encoded: bytes of an image as `normalize_image` returns it.
        label: int, the teacher's first choice.
        confidence: float, the teacher's probability of `label`.
        log_probabilities: float16 or float32 array of shape (num_classes,), or (k,) of `classes`.
        copies: int, how often the image counts in an epoch.
        classes: int array of shape (k,), whose log-probabilities are held; None: all, in order.
        remaining: float, the probability of all other classes together.

    Returns:
        bytes, a serialized `tf.train.Example`.
    """
    features = {
        "id": _bytes(id.encode()),
        "image/encoded": _bytes(encoded),
        "pseudo/label": _int(label),
        "pseudo/confidence": _float(confidence),
        "pseudo/log_probabilities": _bytes(np.asarray(log_probabilities, "<f2").tobytes()),
        "pseudo/copies": _int(copies),
    }
    if classes is not None:
        features["pseudo/classes"] = _bytes(np.asarray(classes, "<i4").tobytes())
        features["pseudo/remaining_probability"] = _float(remaining)
    return _serialize(features)


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


def parse_log_probabilities(serialized, num_classes):
    """What a teacher elsewhere says of a batch of unlabelled images.

    Args:
        serialized: list of bytes, image records.
        num_classes: int.

    Returns:
        (ids: list of strings, log-probabilities: float32 array (n, num_classes)).

    Raises:
        ValueError: a record has none, or those of another number of classes.
    """
    ids, rows = [], []
    for record in serialized:
        features = tf.train.Example.FromString(record).features.feature
        ids.append(features["id"].bytes_list.value[0].decode())
        held = features["taught/log_probabilities"].bytes_list.value
        rows.append(np.frombuffer(held[0], "<f4") if held else np.empty(0))
        if len(rows[-1]) != num_classes:
            raise ValueError(f"{ids[-1]} has {len(rows[-1])} log-probabilities")
    return ids, np.array(rows, np.float32).reshape(-1, num_classes)


def parse_pseudo(serialized, num_classes, top_k=0):
    """Parses a batch of pseudo-label records.

    Args:
        serialized: string tensor of shape (batch,).
        num_classes: int; a record of another number of classes fails.
        top_k: int, how many classes' log-probabilities a record holds; 0: all.

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
            "pseudo/copies": scalar([], tf.int64),
            **_log_probability_features(num_classes, top_k),
        },
    )
    return {
        "id": parsed["id"],
        "encoded": parsed["image/encoded"],
        "label": parsed["pseudo/label"],
        "confidence": parsed["pseudo/confidence"],
        "log_probabilities": _log_probabilities(parsed, num_classes, top_k),
        "copies": parsed["pseudo/copies"],
    }


def parse_examples(serialized, num_classes, top_k=0):
    """Parses a batch of labelled and pseudo-labelled records, mixed at will.

    Args:
        serialized: string tensor of shape (batch,).
        num_classes, top_k: as for `parse_pseudo`.

    Returns:
        dict of `encoded` (string), `label` (int64; a pseudo-label where `is_pseudo`) and
        `is_pseudo` (bool), each of shape (batch,), and `log_probabilities` (float32) of shape
        (batch, num_classes), without meaning where there are none.
    """
    scalar = tf.io.FixedLenFeature
    parsed = tf.io.parse_example(
        serialized,
        {
            "image/encoded": scalar([], tf.string),
            "image/class/label": scalar([], tf.int64, default_value=-1),
            "pseudo/label": scalar([], tf.int64, default_value=-1),
            **_log_probability_features(num_classes, top_k, may_miss=True),
        },
    )
    is_pseudo = parsed["pseudo/label"] >= 0
    return {
        "encoded": parsed["image/encoded"],
        "label": tf.where(is_pseudo, parsed["pseudo/label"], parsed["image/class/label"]),
        "is_pseudo": is_pseudo,
        "log_probabilities": _log_probabilities(parsed, num_classes, top_k),
    }


def _log_probability_features(num_classes, top_k, may_miss=False):
    """What `tf.io.parse_example` reads a record's log-probabilities by; zeros where they miss."""

    def feature(kind, default):
        return tf.io.FixedLenFeature([], kind, default_value=default if may_miss else None)

    held = top_k or num_classes
    features = {"pseudo/log_probabilities": feature(tf.string, bytes(FLOAT16_BYTES * held))}
    if top_k:
        features["pseudo/classes"] = feature(tf.string, bytes(INT32_BYTES * held))
        features["pseudo/remaining_probability"] = feature(tf.float32, 0.0)
    return features


def _log_probabilities(parsed, num_classes, top_k):
    """float32 (batch, num_classes) of parsed records, what remains being spread evenly."""
    halves = tf.io.decode_raw(parsed["pseudo/log_probabilities"], tf.float16, little_endian=True)
    held = tf.cast(tf.ensure_shape(halves, [None, top_k or num_classes]), tf.float32)
    if not top_k:
        return held
    classes = tf.io.decode_raw(parsed["pseudo/classes"], tf.int32, little_endian=True)
    each = parsed["pseudo/remaining_probability"] / max(1, num_classes - top_k)
    spread = tf.math.log(tf.maximum(each, LEAST_PROBABILITY / num_classes))
    dense = tf.repeat(spread[:, tf.newaxis], num_classes, axis=1)
    rows = tf.repeat(tf.range(tf.shape(classes)[0])[:, tf.newaxis], top_k, axis=1)
    return tf.tensor_scatter_nd_update(dense, tf.stack([rows, classes], axis=-1), held)


def parse_copies(serialized):
    """How often each record of a batch counts in an epoch, without its image.

    Args:
        serialized: string tensor of shape (batch,).

    Returns:
        dict of `id` (string), `is_pseudo` (bool) and `copies` (int64, 1 where a record does not
        say), each of shape (batch,).
    """
    parsed = tf.io.parse_example(
        serialized,
        {
            "id": tf.io.FixedLenFeature([], tf.string),
            "pseudo/copies": tf.io.FixedLenFeature([], tf.int64, default_value=-1),
        },
    )
    copies = parsed["pseudo/copies"]
    is_pseudo = copies >= 0
    return {
        "id": parsed["id"],
        "is_pseudo": is_pseudo,
        "copies": tf.where(is_pseudo, copies, tf.ones_like(copies)),
    }


def decode_image(encoded, image_size):
    """Decodes one image to a square; training, scoring and the exported model all use this.

    The square in the middle is resized (bilinear, antialiased), so that no image, however long,
    takes more memory than its own pixels. One that fits keeps its pixels.

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


def decode_images(encoded, image_size):
    """Each image of a batch by `decode_image`: string (batch,) to uint8 (batch, side, side, 3)."""
    return tf.map_fn(
        lambda one: decode_image(one, image_size), encoded, fn_output_signature=tf.uint8
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


def normalize_image(
    encoded, max_bytes=DataConfig.max_image_bytes, max_pixels=DataConfig.max_image_pixels
):
    """Keeps a plain JPEG or PNG as it is and turns every other image into an RGB PNG.

    EXIF rotation is applied, transparency is laid on white, 16 bits become 8, palettes, CMYK and
    1-bit images become RGB, and of several frames the first one stays. Gamma and colour profiles
    are not applied.

    Args:
        encoded: bytes of an image in one of `FORMATS`.
        max_bytes: int, the largest size of `encoded`.
        max_pixels: int, the largest height * width. The header tells it: nothing larger is decoded.

    Returns:
        A `NormalizedImage`.

    Raises:
        ValueError: the image cannot be decoded or is too large; the message says why.
    """
    if len(encoded) > max_bytes:
        raise ValueError(f"it has more bytes than --max_image_bytes={max_bytes}")
    with _reasons():
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    with image:
        with _reasons():
            pieces = [(width, height, width * height) for width, height in _decoded_whole(image)]
        for width, height, pixels in pieces:
            if pixels > max_pixels:
                raise ValueError(
                    f"{width:,} x {height:,} pixels are more than --max_image_pixels={max_pixels}"
                )
        if image.mode == "F" or (image.format == "TIFF" and image.mode == "I"):
            raise ValueError("its 32-bit pixels have no stated range: make it 8- or 16-bit")
        with _reasons(), _pixels_at_once.taken(pieces[0][2]):
            # Pillow forgives what TensorFlow refuses, such as a PNG whose last bytes are missing.
            # So that no image stops the training later, TensorFlow has decoded each one here.
            if _is_plain(image, encoded):
                with contextlib.suppress(tf.errors.InvalidArgumentError):
                    return NormalizedImage(encoded, _digest(encoded), reencoded=False)
            buffer = io.BytesIO()
            _to_rgb(image, encoded).save(buffer, "PNG")
            encoded = buffer.getvalue()
            return NormalizedImage(encoded, _digest(encoded), reencoded=True)


@contextlib.contextmanager
def _reasons():
    """Turns whatever stops an image from being decoded into a ValueError of one line."""
    try:
        yield
    except UnidentifiedImageError:  # Its message holds a memory address.
        raise ValueError(f"cannot identify the image: expected {', '.join(FORMATS)}") from None
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(
            "TensorFlow cannot decode the image, nor what Pillow makes of it"
        ) from error
    except Exception as error:  # Pillow's plugins raise nearly anything on broken data.
        raise ValueError(" ".join(f"{type(error).__name__}: {error}".split())[:200]) from error


def _decoded_whole(image):
    """(width, height) of the image, and of its tiles, however little of them it shows."""
    sizes = [image.size]
    if image.format == "TIFF":
        sizes.append(tuple(int(image.tag_v2.get(tag, 0)) for tag in (TILE_WIDTH, TILE_LENGTH)))
    return sizes


class _Shared:
    """An amount that threads take from and give back to; one that finds too little waits."""

    def __init__(self, amount):
        self._amount = self._left = amount
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def taken(self, amount):
        amount = min(amount, self._amount)
        with self._changed:
            self._changed.wait_for(lambda: self._left >= amount)
            self._left -= amount
        try:
            yield
        finally:
            with self._changed:
                self._left += amount
                self._changed.notify_all()


_pixels_at_once = _Shared(PIXELS_AT_ONCE)


def _digest(encoded):
    pixels = tf.io.decode_image(encoded, channels=3, expand_animations=False).numpy()
    height, width, _ = pixels.shape
    digest = hashlib.sha256(struct.pack(">II", height, width))
    digest.update(pixels)
    return digest.digest()[:16]


def _is_plain(image, encoded):
    if image.mode not in ("RGB", "L") or _turn(image) is not None:
        return False
    if image.format == "PNG":
        deep = _png_bit_depth(encoded) != 8
        return not (deep or image.is_animated or "transparency" in image.info)
    # A MPO is a JPEG with others behind it, such as a preview: readers of JPEG see the first.
    return image.format in ("JPEG", "MPO")


def _png_bit_depth(encoded):
    return encoded[24]  # Pillow hides it: 16-bit colours come as 8-bit ones.


def _turn(image):
    """What sets an image upright according to its EXIF header; None where it is."""
    try:
        return TURN_UPRIGHT.get(image.getexif().get(EXIF_ORIENTATION))
    except Exception:  # A broken header keeps no viewer from showing the image.
        return None


def _to_rgb(image, encoded):
    image.load()
    turn = _turn(image)  # Asked after loading, which turns a TIFF.
    if (
        image.format == "PNG"
        and image.mode != "P"
        and (_png_bit_depth(encoded) == 16 or "transparency" in image.info)
    ):
        # Pillow cuts off 16-bit colours and compares the transparent one with the wrong levels.
        with contextlib.suppress(tf.errors.InvalidArgumentError):
            levels = tf.io.decode_png(encoded, channels=4, dtype=tf.uint16)
            image = Image.fromarray(_to_8_bits(levels.numpy()))
            del levels
    if image.mode.startswith("I"):
        image = Image.fromarray(_to_8_bits(np.asarray(image)))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    image = image.convert("RGB")
    return image if turn is None else image.transpose(turn)


def _to_8_bits(levels):
    # 65535 / 257 = 255, and adding half of 257 first rounds to the nearest. Row by row, since an
    # image may be large.
    narrow = np.empty(levels.shape, np.uint8)
    for row, of_levels in zip(narrow, levels, strict=True):
        row[:] = (np.clip(of_levels, 0, 65535 - 128) + 128) // 257
    return narrow
