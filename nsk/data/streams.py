"""Streams: endless sequences of global batches over some examples, each epoch in a new order.

Batch t of a stream is a pure function of (key, t), so that starting at step t gives what running up
to it would have given. There are two kinds, and the trainer cannot tell them apart:

- `ResidentStream` holds its examples in memory. An epoch is one stateless permutation, and any step
  is found at once.
- `ShardStream` reads its shards again in every epoch, by windows, with memory that does not grow
  with the data. Starting at step t skips whole windows unread, then reads less than one.

A stream hands out small `elements` in order, one for each block of a few steps; `examples` turns an
element into the block's examples and runs in parallel over blocks.
"""

import dataclasses
import math

import numpy as np
import tensorflow as tf

from nsk import noise
from nsk.data import records, shards
from nsk.errors import UserError

SHUFFLE_ROUNDS = 4  # Of the cipher that permutes indices; TensorFlow's own default.
SHARDS_AT_ONCE = 4  # Read side by side: storage far away answers slowly, but to many.


@dataclasses.dataclass(frozen=True)
class ResidentStream:
    """Examples in memory.

    Attributes:
        name: `labeled`, `pseudo` or `union`; tells the streams' orders apart.
        images: uint8 tensor (n, height, width, 3), or encoded: string tensor (n,).
        targets: float32 tensor (n, classes).
        copies: int32 array (n,): how often each image stands in an epoch.
        batch_size: rows of a global batch.
        num_images: different images that an epoch shows; some may stand in several rows.
    """

    name: str
    images: tf.Tensor
    targets: tf.Tensor
    copies: np.ndarray
    batch_size: int
    num_images: int

    @property
    def epoch_size(self):
        """Rows in an epoch, copies included."""
        return int(self.copies.sum())

    def elements(self, stream_key, first_block, num_blocks, steps=1):
        """The rows that blocks first_block .. num_blocks - 1 of `steps` steps show.

        Returns:
            `tf.data.Dataset` of int32 (steps x batch,).
        """
        block_rows = self.batch_size * steps
        expanded = tf.constant(np.repeat(np.arange(len(self.copies), dtype=np.int32), self.copies))

        def rows(block):
            places = block * block_rows + tf.range(block_rows, dtype=tf.int64)
            # One permutation for each epoch; a batch may reach over several short ones.
            epochs, within = places // self.epoch_size, places % self.epoch_size
            return tf.gather(expanded, permuted(within, self.epoch_size, stream_key, epochs))

        return tf.data.Dataset.range(first_block, num_blocks).map(rows)

    def examples(self, rows):
        """dict `image` and `target` of an element, as the attributes hold them."""
        return {"image": tf.gather(self.images, rows), "target": tf.gather(self.targets, rows)}


@dataclasses.dataclass(frozen=True)
class ShardStream:
    """Examples read from shards, windows at a time.

    In every epoch the shards are permuted and divided into windows of as many shards each, about
    `window_bytes` in all, and at least one shard. A window's records are expanded to their copies
    and permuted, so that it matters little for the order into how many shards the data is cut, as
    long as they are a small part of a window. Of several shard sets each is dealt evenly over the
    windows. All copies of an image stand in one window.

    Attributes:
        name: `labeled`, `pseudo` or `union`; tells the streams' orders apart.
        shard_sets: tuple of `ShardSet`s, of kind `images` or `pseudo`, of the same classes.
        make_targets: function of the dict that `records.parse_examples` returns, to float32
            targets (batch, classes).
        labeled_copies: dict from the id of a labelled image to its copies in an epoch; an image
            that it does not name has one.
        batch_size: rows of a global batch.
        window_bytes: about so many bytes of records are in a window. One is shown while the next
            one is made, so that up to three times as much memory is taken.
    """

    name: str
    shard_sets: tuple
    make_targets: object
    labeled_copies: dict
    batch_size: int
    window_bytes: int

    def __post_init__(self):
        rows, images = [], 0
        for shard_set in self.shard_sets:
            of_shards, shown = self._count(shard_set)
            rows += of_shards
            images += shown
        if not sum(rows):
            folders = ", ".join(str(one.folder) for one in self.shard_sets)
            raise UserError(f"{folders}: no image to train on: check what they were made from.")
        object.__setattr__(self, "_rows", np.array(rows, np.int64))
        object.__setattr__(self, "num_images", images)
        object.__setattr__(self, "_copies_of", _table(self.labeled_copies))

    def _count(self, shard_set):
        """(rows of each shard with copies: list of ints, different images shown)."""
        if shard_set.kind == "pseudo" or not self.labeled_copies:
            return list(shard_set.copies), shard_set.num_images
        rows, images = [], 0
        for shard in range(len(shard_set.names)):
            ids = records.parse_images(list(shard_set.records(shard)))["id"].numpy()
            copies = [self.labeled_copies.get(one.decode(), 1) for one in ids]
            rows.append(sum(copies))
            images += sum(count > 0 for count in copies)
        return rows, images

    @property
    def epoch_size(self):
        """Rows in an epoch, copies included."""
        return int(self._rows.sum())

    @property
    def num_windows(self):
        """Windows in an epoch."""
        paths = [path for shard_set in self.shard_sets for path in shard_set.paths]
        size = sum(path.stat().st_size for path in paths)
        return min(len(self._rows), math.ceil(size / self.window_bytes))

    def _bounds(self):
        """Where each window of an epoch begins and the last one ends among its shards: int64."""
        return np.arange(self.num_windows + 1) * len(self._rows) // self.num_windows

    def elements(self, stream_key, first_block, num_blocks, steps=1):
        """The records that blocks first_block .. num_blocks - 1 of `steps` steps show.

        Returns:
            `tf.data.Dataset` of string (steps x batch,).
        """
        block_rows = self.batch_size * steps
        first_epoch, within = divmod(first_block * block_rows, self.epoch_size)
        first_window, within_window = self._find(stream_key, first_epoch, within)
        windows = tf.data.Dataset.range(first_epoch, tf.int64.max).flat_map(
            lambda epoch: self._epoch(
                stream_key,
                epoch,
                tf.where(epoch == first_epoch, tf.constant(first_window, tf.int64), 0),
            )
        )
        # What is left of the rows before the first block lies within one window: read and dropped.
        windows = windows.scan(tf.constant(within_window, tf.int64), _drop_first)
        windows = windows.prefetch(1).flat_map(self._gather)
        return windows.rebatch(block_rows, drop_remainder=True).take(num_blocks - first_block)

    def _gather(self, window, rows):
        """A window's records in the order of its rows, a batch at a time."""
        batches = tf.data.Dataset.from_tensor_slices(rows).batch(self.batch_size)
        return batches.map(lambda some: tf.gather(window, some))

    def examples(self, serialized):
        """dict `image` (encoded: string (batch,)) and `target` (float32 (batch, classes))."""
        top_k = max(one.top_k for one in self.shard_sets)
        parsed = records.parse_examples(serialized, self.shard_sets[0].num_classes, top_k)
        return {"image": parsed["encoded"], "target": self.make_targets(parsed)}

    def _order(self, stream_key, epoch):
        """The shards in the order of an epoch: int64 (shards,).

        Each set's shards are permuted and dealt evenly over the epoch, so that a set of few comes
        neither early nor late.
        """
        key = noise.named(tf.constant(stream_key), "shards")
        order, places, first = [], [], 0
        for number, shard_set in enumerate(self.shard_sets):
            count = len(shard_set.names)
            of_set = tf.range(count, dtype=tf.int64)
            set_key = noise.fold_in(key, number)
            order.append(first + permuted(of_set, count, set_key, tf.fill([count], epoch)))
            places.append((np.arange(count) + 0.5) / count)
            first += count
        dealt = np.argsort(np.concatenate(places), kind="stable")
        return tf.gather(tf.concat(order, axis=0), dealt)

    def _find(self, stream_key, epoch, row):
        """(window, row within it) of a row of an epoch."""
        rows = self._rows[self._order(stream_key, tf.constant(epoch, tf.int64)).numpy()]
        starts = np.concatenate([[0], np.cumsum(rows)])[self._bounds()]
        window = int(np.searchsorted(starts, row, side="right")) - 1
        return window, row - int(starts[window])

    def _epoch(self, stream_key, epoch, first_window):
        """The windows of an epoch from one on: a dataset of what `_shuffle` returns."""
        paths = tf.constant([str(path) for one in self.shard_sets for path in one.paths])
        counts = tf.constant([count for one in self.shard_sets for count in one.counts], tf.int64)
        order = self._order(stream_key, epoch)
        bounds = tf.constant(self._bounds(), tf.int64)
        epoch_key = noise.fold_in(noise.named(tf.constant(stream_key), "windows"), epoch)

        def window(number):
            members = order[bounds[number] : bounds[number + 1]]
            sizes = tf.gather(counts, members)
            files = tf.data.Dataset.from_tensor_slices((tf.gather(paths, members), sizes))
            serialized = files.interleave(
                shards.read_shard,
                cycle_length=SHARDS_AT_ONCE,
                num_parallel_calls=SHARDS_AT_ONCE,
                deterministic=True,
            )
            whole = serialized.batch(tf.maximum(tf.reduce_sum(sizes), 1))
            return whole.map(lambda records: self._shuffle(records, epoch_key, number))

        return tf.data.Dataset.range(first_window, self.num_windows).flat_map(window)

    def _shuffle(self, window, epoch_key, number):
        """(the window, which of its records each row shows: int64 (rows,)).

        Rows are numbers, so that a record of many copies is held once.
        """
        ends = tf.cumsum(self._copies(window))
        count = ends[-1]
        size = tf.maximum(count, 1)  # A window may be without copies.
        order = permuted(tf.range(size), size, epoch_key, tf.fill([size], number))[:count]
        return window, tf.searchsorted(ends, order, side="right", out_type=tf.int64)

    def _copies(self, window):
        """How often an epoch shows each record: int64 (n,)."""
        parsed = records.parse_copies(window)
        if self._copies_of is None:
            return parsed["copies"]
        return tf.where(parsed["is_pseudo"], parsed["copies"], self._copies_of.lookup(parsed["id"]))


def _table(copies):
    """The dict as a lookup table from string to int64, 1 elsewhere; None for {}."""
    if not copies:
        return None
    entries = tf.lookup.KeyValueTensorInitializer(
        list(copies), list(copies.values()), tf.string, tf.int64
    )
    return tf.lookup.StaticHashTable(entries, default_value=1)


def permuted(places, size, key, numbers):
    """Where a permutation of 0..size-1 takes each place; one permutation for each number.

    Args:
        places: int64 (n,), each in 0..size-1.
        size: int or int64 scalar tensor.
        key: int64 (2,), a key of `nsk.noise`.
        numbers: int64 (n,): which of the key's permutations, an epoch say, each place is taken by.

    Returns:
        int64 tensor (n,).
    """
    seeds = tf.stack(
        [tf.fill(tf.shape(places), key[0]), tf.fill(tf.shape(places), key[1]), numbers], 1
    )
    # The raw op, because `tf.random.experimental.index_shuffle` of TensorFlow 2.21 pads a batch of
    # seeds wrongly.
    return tf.raw_ops.RandomIndexShuffle(
        index=places,
        seed=seeds,
        max_index=tf.cast(size, tf.int64) - 1,
        rounds=SHUFFLE_ROUNDS,
    )


def _drop_first(number, window_and_rows):
    """Drops a window's first rows; (how many are still to be dropped, what is left)."""
    window, rows = window_and_rows
    dropped = tf.minimum(number, tf.size(rows, tf.int64))
    return number - dropped, (window, rows[dropped:])
