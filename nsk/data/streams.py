"""Streams: endless sequences of global batches over some examples, each epoch in a new order.

Batch t of a stream is a pure function of (key, t), so that starting at step t gives the same batch
as an uninterrupted run. There are two kinds, which the trainer uses alike:

- `ResidentStream` holds its examples in memory. An epoch is one stateless permutation, and any step
  is found at once.
- `nsk.data.shard_stream.ShardStream` reads its shards in every epoch, window by window, with memory
  that does not grow with the data. Starting at step t skips whole windows without reading them,
  then reads less than one.

A stream yields small `elements` in order, one for each block of a few steps; `examples` turns an
element into the block's examples and runs in parallel over blocks.
"""

import dataclasses
from typing import Protocol

import numpy as np
import tensorflow as tf

from nsk.data.permutation import permuted


class Stream(Protocol):
    """An endless sequence of global batches.

    Attributes:
        name: `labeled`, `pseudo` or `union`; streams with different names have different orders.
        batch_size: rows of a global batch.
        num_images: distinct images in an epoch; some may occur in several rows.
        epoch_size: rows in an epoch, copies included.
    """

    name: str
    batch_size: int
    num_images: int
    epoch_size: int

    def elements(
        self, stream_key: tf.Tensor, first_block: int, num_blocks: int, steps: int = 1
    ) -> tf.data.Dataset:
        """The elements of blocks first_block .. num_blocks - 1 of `steps` steps each."""

    def examples(self, element: tf.Tensor) -> dict[str, tf.Tensor]:
        """A dict of `image` (uint8 pixels or encoded) and `target` (float32) of an element."""


@dataclasses.dataclass(frozen=True)
class ResidentStream:
    """A `Stream` of examples in memory.

    Attributes:
        images: uint8 tensor (n, height, width, 3), or encoded: string tensor (n,).
        targets: float32 tensor (n, ...).
        copies: int32 array (n,): how often each image occurs in an epoch.
    """

    name: str
    images: tf.Tensor
    targets: tf.Tensor
    copies: np.ndarray
    batch_size: int
    num_images: int

    @property
    def epoch_size(self) -> int:
        """Rows in an epoch, copies included."""
        return int(self.copies.sum())

    def elements(
        self, stream_key: tf.Tensor, first_block: int, num_blocks: int, steps: int = 1
    ) -> tf.data.Dataset:
        """The indices of the images of each block: int32 (steps x batch,)."""
        block_rows = self.batch_size * steps
        expanded = tf.constant(np.repeat(np.arange(len(self.copies), dtype=np.int32), self.copies))

        def indices(block):
            rows = block * block_rows + tf.range(block_rows, dtype=tf.int64)
            # One permutation for each epoch; a batch may span several short epochs.
            epochs, within_epoch = rows // self.epoch_size, rows % self.epoch_size
            return tf.gather(expanded, permuted(within_epoch, self.epoch_size, stream_key, epochs))

        return tf.data.Dataset.range(first_block, num_blocks).map(indices)

    def examples(self, indices: tf.Tensor) -> dict[str, tf.Tensor]:
        """The images and targets at the indices of an element."""
        return {
            "image": tf.gather(self.images, indices),
            "target": tf.gather(self.targets, indices),
        }
