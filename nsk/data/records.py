"""The schema of records: serialized `tf.train.Example`s in TFRecord shards.

Image shards hold `id`, `image/encoded` and, in labelled sets only, `image/class/label`. Unlabelled
images with scores of an external teacher also have `external_teacher/log_probabilities` (float32,
little-endian bytes).

Pseudo-label shards hold `id`, `image/encoded`, `pseudo/label`, `pseudo/confidence`,
`pseudo/log_probabilities` (float16, little-endian bytes) and `pseudo/copies`. If only the largest
log-probabilities are stored, `pseudo/classes` (int32, little-endian bytes) holds their classes and
`pseudo/remaining_probability` the total probability of all other classes.

Scored shards, for distillation, hold labelled images: `id`, `image/encoded`, `image/class/label`
and a teacher's log-probabilities in the same fields as those of pseudo-labels.

Encoded images are 8-bit RGB or grayscale JPEG or PNG, see `nsk.data.normalization`.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

FLOAT16_BYTES, INT32_BYTES = 2, 4
# The remaining probability may be 0, which has no logarithm.
MIN_PROBABILITY = 1e-10


def _bytes(value: bytes) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))


def _int(value: int) -> tf.train.Feature:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=[int(value)]))


def _float(value: float) -> tf.train.Feature:
    return tf.train.Feature(float_list=tf.train.FloatList(value=[float(value)]))


def _serialize(features: dict[str, tf.train.Feature]) -> bytes:
    example = tf.train.Example(features=tf.train.Features(feature=features))
    # A map has no order: without `deterministic`, every process would write its own.
    return example.SerializeToString(deterministic=True)


def image_example(
    id: str, encoded: bytes, label: int | None = None, log_probabilities: bytes = b""
) -> bytes:
    """Serializes one image as a record.

    Args:
        id: unique within its shard set and stable.
        encoded: an image as `normalize_image` returns it.
        label: None to leave the label out.
        log_probabilities: float32 (little-endian) scores of an external teacher; b"" for none.

    Returns:
        A serialized `tf.train.Example`.
    """
    features = {"id": _bytes(id.encode()), "image/encoded": _bytes(encoded)}
    if label is not None:
        features["image/class/label"] = _int(label)
    if log_probabilities:
        features["external_teacher/log_probabilities"] = _bytes(log_probabilities)
    return _serialize(features)


def pseudo_example(
    id: str,
    encoded: bytes,
    label: int,
    confidence: float,
    log_probabilities: np.ndarray,
    copies: int,
    classes: np.ndarray | None = None,
    remaining: float | None = None,
) -> bytes:
    """Serializes one pseudo-labelled image as a record.

    Args:
        id: unique within its shard set and stable.
        encoded: an image as `normalize_image` returns it.
        label: the teacher's most probable class.
        confidence: the teacher's probability of `label`.
        log_probabilities: float16 or float32 array (num_classes,), or (k,) if `classes` are given.
        copies: how often the image occurs in an epoch.
        classes: int array (k,), the classes of `log_probabilities`; None: all, in order.
        remaining: the total probability of all other classes; only with `classes`.

    Returns:
        A serialized `tf.train.Example`.
    """
    features = {
        "id": _bytes(id.encode()),
        "image/encoded": _bytes(encoded),
        "pseudo/label": _int(label),
        "pseudo/confidence": _float(confidence),
        "pseudo/copies": _int(copies),
        **_stored_log_probabilities(log_probabilities, classes, remaining),
    }
    return _serialize(features)


def scored_example(
    id: str,
    encoded: bytes,
    label: int,
    log_probabilities: np.ndarray,
    classes: np.ndarray | None = None,
    remaining: float | None = None,
) -> bytes:
    """Serializes one labelled image with a teacher's predictions as a record.

    Args:
        id: as for `pseudo_example`.
        encoded: as for `pseudo_example`.
        label: the true class.
        log_probabilities: as for `pseudo_example`.
        classes: as for `pseudo_example`.
        remaining: as for `pseudo_example`.

    Returns:
        A serialized `tf.train.Example`.
    """
    features = {
        "id": _bytes(id.encode()),
        "image/encoded": _bytes(encoded),
        "image/class/label": _int(label),
        **_stored_log_probabilities(log_probabilities, classes, remaining),
    }
    return _serialize(features)


def _stored_log_probabilities(log_probabilities, classes, remaining):
    """The features of a teacher's predictions; arguments as for `pseudo_example`."""
    stored = _bytes(np.asarray(log_probabilities, "<f2").tobytes())
    features = {"pseudo/log_probabilities": stored}
    if classes is not None:
        features["pseudo/classes"] = _bytes(np.asarray(classes, "<i4").tobytes())
        features["pseudo/remaining_probability"] = _float(remaining)
    return features


def parse_images(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
    """Parses a batch of image records.

    Args:
        serialized: string tensor (batch,).

    Returns:
        dict of `id` and `encoded` (string) and `label` (int64, -1 if absent), each of shape
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


def parse_ids(serialized: tf.Tensor) -> tf.Tensor:
    """Parses the ids of a batch of records, without their images.

    Args:
        serialized: string tensor (batch,).

    Returns:
        string tensor (batch,).
    """
    return tf.io.parse_example(serialized, {"id": tf.io.FixedLenFeature([], tf.string)})["id"]


def parse_external_log_probabilities(
    serialized: Sequence[bytes], num_classes: int
) -> tuple[list[str], np.ndarray]:
    """Parses an external teacher's scores from a batch of unlabelled images.

    Args:
        serialized: image records.
        num_classes: int.

    Returns:
        (ids: list of strings, log-probabilities: float32 array (n, num_classes)).

    Raises:
        ValueError: a record has no scores, or those of another number of classes.
    """
    ids, rows = [], []
    for record in serialized:
        features = tf.train.Example.FromString(record).features.feature
        ids.append(features["id"].bytes_list.value[0].decode())
        stored = features["external_teacher/log_probabilities"].bytes_list.value
        rows.append(np.frombuffer(stored[0], "<f4") if stored else np.empty(0))
        if len(rows[-1]) != num_classes:
            raise ValueError(f"{ids[-1]} has {len(rows[-1])} log-probabilities")
    return ids, np.array(rows, np.float32).reshape(-1, num_classes)


def parse_pseudo(serialized: tf.Tensor, num_classes: int, top_k: int = 0) -> dict[str, tf.Tensor]:
    """Parses a batch of pseudo-label records.

    Args:
        serialized: string tensor (batch,).
        num_classes: records of another number of classes fail.
        top_k: number of classes with a stored log-probability; 0: all.

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
        "log_probabilities": _dense_log_probabilities(parsed, num_classes, top_k),
        "copies": parsed["pseudo/copies"],
    }


def parse_scored(serialized: tf.Tensor, num_classes: int, top_k: int = 0) -> dict[str, tf.Tensor]:
    """Parses a batch of labelled images with a teacher's predictions.

    Args:
        serialized: string tensor (batch,).
        num_classes: as for `parse_pseudo`.
        top_k: as for `parse_pseudo`.

    Returns:
        dict of what `parse_images` returns, and `log_probabilities` (float32) of shape (batch,
        num_classes).
    """
    parsed = tf.io.parse_example(serialized, _log_probability_features(num_classes, top_k))
    log_probabilities = _dense_log_probabilities(parsed, num_classes, top_k)
    return {**parse_images(serialized), "log_probabilities": log_probabilities}


def parse_examples(serialized: tf.Tensor, num_classes: int, top_k: int = 0) -> dict[str, tf.Tensor]:
    """Parses a batch of labelled and pseudo-labelled records in any order.

    Args:
        serialized: string tensor (batch,).
        num_classes: records of another number of classes fail.
        top_k: number of classes with a stored log-probability; 0: all.

    Returns:
        dict of `encoded` (string), `label` (int64; a pseudo-label if `is_pseudo`) and `is_pseudo`
        (bool), each of shape (batch,), and `log_probabilities` (float32) of shape (batch,
        num_classes), undefined for labelled images without a teacher's predictions.
    """
    scalar = tf.io.FixedLenFeature
    parsed = tf.io.parse_example(
        serialized,
        {
            "image/encoded": scalar([], tf.string),
            "image/class/label": scalar([], tf.int64, default_value=-1),
            "pseudo/label": scalar([], tf.int64, default_value=-1),
            **_log_probability_features(num_classes, top_k, is_optional=True),
        },
    )
    is_pseudo = parsed["pseudo/label"] >= 0
    return {
        "encoded": parsed["image/encoded"],
        "label": tf.where(is_pseudo, parsed["pseudo/label"], parsed["image/class/label"]),
        "is_pseudo": is_pseudo,
        "log_probabilities": _dense_log_probabilities(parsed, num_classes, top_k),
    }


def _log_probability_features(
    num_classes: int, top_k: int, is_optional: bool = False
) -> dict[str, tf.io.FixedLenFeature]:
    """The features of log-probabilities for `tf.io.parse_example`; zeros if optional and absent."""

    def feature(dtype, default):
        return tf.io.FixedLenFeature([], dtype, default_value=default if is_optional else None)

    stored = top_k or num_classes
    features = {"pseudo/log_probabilities": feature(tf.string, bytes(FLOAT16_BYTES * stored))}
    if top_k:
        features["pseudo/classes"] = feature(tf.string, bytes(INT32_BYTES * stored))
        features["pseudo/remaining_probability"] = feature(tf.float32, 0.0)
    return features


def _dense_log_probabilities(
    parsed: dict[str, tf.Tensor], num_classes: int, top_k: int
) -> tf.Tensor:
    """float32 (batch, num_classes); classes that are not stored share the remaining probability."""
    raw = tf.io.decode_raw(parsed["pseudo/log_probabilities"], tf.float16, little_endian=True)
    stored = tf.cast(tf.ensure_shape(raw, [None, top_k or num_classes]), tf.float32)
    if not top_k:
        return stored
    classes = tf.io.decode_raw(parsed["pseudo/classes"], tf.int32, little_endian=True)
    equal_share = parsed["pseudo/remaining_probability"] / max(1, num_classes - top_k)
    log_remaining = tf.math.log(tf.maximum(equal_share, MIN_PROBABILITY / num_classes))
    dense = tf.repeat(log_remaining[:, tf.newaxis], num_classes, axis=1)
    rows = tf.repeat(tf.range(tf.shape(classes)[0])[:, tf.newaxis], top_k, axis=1)
    return tf.tensor_scatter_nd_update(dense, tf.stack([rows, classes], axis=-1), stored)


def parse_copies(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
    """Parses how often each record of a batch occurs in an epoch, without its image.

    Args:
        serialized: string tensor (batch,).

    Returns:
        dict of `id` (string), `is_pseudo` (bool) and `copies` (int64, 1 if the record has no such
        field), each of shape (batch,).
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
