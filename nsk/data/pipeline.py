"""From shards to training batches, with tf.data.

A stage's images are streamed from their TFRecord shards, decoded once and held in memory as uint8;
batches are then drawn by index. Batch t is a pure function of (key, t): order is a stateless
permutation of each epoch and augmentation is keyed by the step, so starting at step t costs
nothing.
"""

import dataclasses

import numpy as np
import tensorflow as tf

from nsk import noise
from nsk.data import records
from nsk.errors import UserError

SHUFFLE_ROUNDS = 4  # Of the cipher that permutes indices; TensorFlow's own default.


@dataclasses.dataclass(frozen=True)
class Images:
    """Decoded images of a shard set, in file order.

    Attributes:
        ids: list of strings (n,).
        images: uint8 tensor (n, image_size, image_size, 3).
        labels: int32 array (n,); -1 where there is none.
        log_probabilities: float32 array (n, classes) of a pseudo-label shard set, else None.
        copies: int32 array (n,): how often an epoch shows each image; ones where nothing says
            otherwise.
    """

    ids: list
    images: tf.Tensor
    labels: np.ndarray
    log_probabilities: np.ndarray | None
    copies: np.ndarray

    def __len__(self):
        return len(self.ids)


def load_images(shard_set, image_size, shard=None):
    """Reads a shard set, or one shard of it, into memory.

    Args:
        shard_set: a `shards.ShardSet` of kind `images` or `pseudo`.
        image_size: side of the decoded images, pixels.
        shard: number of one shard; None: all.

    Returns:
        `Images`.
    """
    is_pseudo = shard_set.kind == "pseudo"

    def parse(serialized):
        if is_pseudo:
            parsed = records.parse_pseudo(serialized, shard_set.num_classes)
        else:
            parsed = records.parse_images(serialized)
        encoded = parsed.pop("encoded")
        parsed["image"] = tf.map_fn(
            lambda one: records.decode_image(one, image_size), encoded, fn_output_signature=tf.uint8
        )
        return parsed

    # Batches first, so that parsing is one call for many records; then decoding, in parallel.
    dataset = shard_set.read(shard).batch(256).map(parse, num_parallel_calls=tf.data.AUTOTUNE)
    parts = {}
    with shard_set.naming_broken_shards():
        for batch in dataset.as_numpy_iterator():
            for name, value in batch.items():
                parts.setdefault(name, []).append(value)
    if not parts:
        raise UserError(
            f"{shard_set.folder} holds no images: check the data that it was made from."
        )
    whole = {name: np.concatenate(values) for name, values in parts.items()}
    count = len(whole["id"])
    return Images(
        ids=[one.decode() for one in whole["id"]],
        images=tf.constant(whole["image"]),
        labels=whole["label"].astype(np.int32),
        log_probabilities=whole.get("log_probabilities"),
        copies=whole.get("copies", np.ones(count)).astype(np.int32),
    )


@dataclasses.dataclass(frozen=True)
class Stream:
    """An endless sequence of batches over some images, in a new order each epoch.

    Attributes:
        name: `labeled`, `pseudo` or `union`; tells the streams' orders apart.
        images: uint8 tensor (n, height, width, 3).
        targets: float32 tensor (n, classes).
        copies: int32 array (n,): how often each image stands in an epoch.
        batch_size: rows of a global batch.
    """

    name: str
    images: tf.Tensor
    targets: tf.Tensor
    copies: np.ndarray
    batch_size: int

    @property
    def epoch_size(self):
        """Rows in an epoch, copies included."""
        return int(self.copies.sum())

    def rows(self, stream_key, step, expanded):
        """Which images batch `step` shows: int32 tensor (batch_size,)."""
        positions = tf.cast(step, tf.int64) * self.batch_size + tf.range(
            self.batch_size, dtype=tf.int64
        )
        epochs, within = positions // self.epoch_size, positions % self.epoch_size
        # One permutation for each epoch; a batch may reach over several short ones. The raw op,
        # because `tf.random.experimental.index_shuffle` of TensorFlow 2.21 pads a batch of seeds
        # wrongly.
        seeds = tf.stack(
            [
                tf.fill([self.batch_size], stream_key[0]),
                tf.fill([self.batch_size], stream_key[1]),
                epochs,
            ],
            axis=1,
        )
        last = tf.constant(self.epoch_size - 1, tf.int64)
        shuffled = tf.raw_ops.RandomIndexShuffle(
            index=within, seed=seeds, max_index=last, rounds=SHUFFLE_ROUNDS
        )
        return tf.gather(expanded, shuffled)


def join(first, second, name, batch_size):
    """One stream over the images of two: union mixing."""
    return Stream(
        name,
        tf.concat([first.images, second.images], axis=0),
        tf.concat([first.targets, second.targets], axis=0),
        np.concatenate([first.copies, second.copies]),
        batch_size,
    )


def training_batches(streams, stage_key, augment, first_step, num_steps):
    """The batches of steps first_step .. num_steps - 1.

    Args:
        streams: tuple of `Stream`s.
        stage_key: int64 array (2,), the stage's key.
        augment: function of (images uint8 (batch, height, width, 3), key) that returns images of
            the same shape and dtype.
        first_step, num_steps: ints.

    Returns:
        `tf.data.Dataset` of tuples over streams of dicts `image`, `target` and `weight`.
    """
    expanded = [
        tf.constant(np.repeat(np.arange(len(stream.copies), dtype=np.int32), stream.copies))
        for stream in streams
    ]

    def one(stream, rows_of_epoch, step):
        stream_key = noise.named(tf.constant(stage_key), f"stream/{stream.name}")
        rows = stream.rows(stream_key, step, rows_of_epoch)
        augment_key = noise.fold_in(noise.named(stream_key, "augment"), step)
        return {
            "image": augment(tf.gather(stream.images, rows), augment_key),
            "target": tf.gather(stream.targets, rows),
            "weight": tf.ones([stream.batch_size]),
        }

    def batch(step):
        return tuple(one(*pair, step) for pair in zip(streams, expanded, strict=True))

    # Steps are mapped in parallel but handed out in order: parallelism changes nothing.
    return (
        tf.data.Dataset.range(first_step, num_steps)
        .map(batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .prefetch(tf.data.AUTOTUNE)
    )
