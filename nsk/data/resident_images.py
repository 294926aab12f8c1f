"""Shard sets in memory: decoded images, and streams over them."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from nsk.data import records
from nsk.data.decoding import decode_images
from nsk.data.parallel_map import map_in_parallel
from nsk.data.shards import ShardSet
from nsk.data.streams import ResidentStream
from nsk.errors import UserError


@dataclasses.dataclass(frozen=True)
class ResidentImages:
    """Images of a shard set in memory, in file order.

    Attributes:
        ids: list of strings (n,).
        images: uint8 tensor (n, image_size, image_size, 3), or encoded: string tensor (n,).
        labels: int32 array (n,); -1 if there is none.
        log_probabilities: float32 array (n, classes), a teacher's; None for images without them.
        copies: int32 array (n,): how often each image occurs in an epoch; ones by default.
    """

    ids: list[str]
    images: tf.Tensor
    labels: np.ndarray
    log_probabilities: np.ndarray | None
    copies: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


def load_images(
    shard_set: ShardSet, image_size: int | None, resize_mode: str = "crop"
) -> ResidentImages:
    """Reads a shard set into memory.

    Args:
        shard_set: of any kind.
        image_size: side of the decoded images, pixels; None: they stay encoded.
        resize_mode: how they become squares, see `decoding.decode_image`.

    Returns:
        `ResidentImages`.

    Raises:
        UserError: a shard is broken, or there are no images.
    """

    def parse(serialized):
        if shard_set.kind == "images":
            parsed = records.parse_images(serialized)
        else:
            parse = {"pseudo": records.parse_pseudo, "scored": records.parse_scored}[shard_set.kind]
            parsed = parse(serialized, shard_set.num_classes, shard_set.top_k)
        encoded = parsed.pop("encoded")
        if image_size:
            parsed["image"] = decode_images(encoded, image_size, resize_mode=resize_mode)
        else:
            parsed["image"] = encoded
        return parsed

    # Batches first, so that many records are parsed in one call; then decoding, in parallel.
    dataset = map_in_parallel(shard_set.read().batch(256), parse)
    count, done, columns = shard_set.num_records, 0, {}
    with shard_set.naming_broken_shards():
        for batch in dataset.as_numpy_iterator():
            for name, value in batch.items():
                if name not in columns:  # Filled in place: concatenating would need twice as much.
                    columns[name] = np.empty([count, *value.shape[1:]], value.dtype)
                columns[name][done : done + len(value)] = value
            done += len(value)
    if not done:
        raise UserError(
            f"{shard_set.folder} holds no images: check the data that it was made from."
        )
    with tf.device("CPU"):  # tf.data runs there, and a GPU's memory is needed for training.
        images = tf.constant(columns["image"])
    return ResidentImages(
        ids=[id.decode() for id in columns["id"]],
        images=images,
        labels=columns["label"].astype(np.int32),
        log_probabilities=columns.get("log_probabilities"),
        copies=columns.get("copies", np.ones(count)).astype(np.int32),
    )


def bytes_in_memory(shard_set: ShardSet, image_size: int | None) -> int:
    """Memory of a shard set's images, decoded to squares (image_size None: encoded), in bytes."""
    if image_size:
        return shard_set.num_records * image_size**2 * 3
    return sum(path.stat().st_size for path in shard_set.paths)


def resident_stream(
    name: str,
    shard_sets: Sequence[ShardSet],
    make_targets: Callable[[dict[str, tf.Tensor]], tf.Tensor],
    labeled_copies: dict[str, int],
    batch_size: int,
    image_size: int | None,
    resize_mode: str = "crop",
) -> ResidentStream:
    """A `ResidentStream` over shard sets.

    Args:
        name: name of the stream.
        shard_sets: the shard sets, read into memory one after another.
        make_targets: as for `ShardStream`.
        labeled_copies: copies in an epoch by the id of a labelled image; 1 if it is missing.
        batch_size: rows of a global batch.
        image_size: side of the decoded images, pixels; None: they stay encoded.
        resize_mode: how they become squares, see `decoding.decode_image`.
    """
    parts, num_images = [], 0
    for shard_set in shard_sets:
        loaded = load_images(shard_set, image_size, resize_mode)
        copies = loaded.copies
        if shard_set.kind != "pseudo":
            copies = np.array([labeled_copies.get(id, 1) for id in loaded.ids], np.int32)
        num_images += shard_set.num_images - int((copies == 0).sum())
        log_probabilities = loaded.log_probabilities
        if log_probabilities is None:
            log_probabilities = np.zeros([len(loaded), shard_set.num_classes], np.float32)
        targets = make_targets(
            {
                "label": tf.constant(loaded.labels),
                "is_pseudo": tf.fill([len(loaded)], shard_set.kind == "pseudo"),
                "log_probabilities": tf.constant(log_probabilities),
            }
        )
        parts.append((loaded.images, targets, copies))
    images, targets, copies = zip(*parts, strict=True)
    with tf.device("CPU"):
        images, targets = tf.concat(images, 0), tf.concat(targets, 0)
    copies = np.concatenate(copies)
    return ResidentStream(name, images, targets, copies, batch_size, num_images)
