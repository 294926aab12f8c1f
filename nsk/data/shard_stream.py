"""A stream of examples read from shards; see `nsk.data.streams`."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from nsk import noise
from nsk.data import records
from nsk.data.permutation import permuted
from nsk.data.record_files import read_counted
from nsk.data.shards import ShardSet
from nsk.errors import UserError

# Shards that are read in parallel: remote storage answers slowly, but many requests at a time.
PARALLEL_READS = 4


@dataclasses.dataclass(frozen=True)
class ShardStream:
    """A `Stream` of examples read from shards, window by window.

    In every epoch the shards are permuted and divided into windows of equally many shards, with
    about `window_bytes` in all, and at least one shard. A window's records are expanded to their
    copies and permuted, so that the number of shards hardly affects the order, as long as a shard
    is a small part of a window. The shards of every shard set are spread evenly over the windows.
    All copies of an image are in one window.

    Attributes:
        name: `labeled`, `pseudo` or `union`; streams with different names have different orders.
        shard_sets: of any kind, of the same classes.
        make_targets: function of the dict that `records.parse_examples` returns, to float32
            targets (batch, ...).
        labeled_copies: dict from the id of a labelled image to its copies in an epoch; 1 by
            default.
        batch_size: rows of a global batch.
        window_bytes: approximate size of a window's records. One window is in use while the next
            one is prepared, which takes up to three times this memory.
    """

    name: str
    shard_sets: tuple[ShardSet, ...]
    make_targets: Callable[[dict[str, tf.Tensor]], tf.Tensor]
    labeled_copies: dict[str, int]
    batch_size: int
    window_bytes: int

    def __post_init__(self):
        rows, num_images = [], 0
        for shard_set in self.shard_sets:
            shard_rows, used_images = self._count(shard_set)
            rows += shard_rows
            num_images += used_images
        if not sum(rows):
            folders = ", ".join(str(shard_set.folder) for shard_set in self.shard_sets)
            raise UserError(f"{folders}: no image to train on: check what they were made from.")
        object.__setattr__(self, "_rows", np.array(rows, np.int64))
        object.__setattr__(self, "num_images", num_images)
        object.__setattr__(self, "_copies_table", _lookup_table(self.labeled_copies))

    def _count(self, shard_set: ShardSet) -> tuple[list[int], int]:
        """(rows of each shard with copies, distinct images with at least one copy)."""
        if shard_set.kind == "pseudo" or not self.labeled_copies:
            return list(shard_set.copies), shard_set.num_images
        rows, num_images = [], 0
        for shard in range(len(shard_set.names)):
            ids = records.parse_images(list(shard_set.records(shard)))["id"].numpy()
            copies = [self.labeled_copies.get(id.decode(), 1) for id in ids]
            rows.append(sum(copies))
            num_images += sum(count > 0 for count in copies)
        return rows, num_images

    @property
    def epoch_size(self) -> int:
        """Rows in an epoch, copies included."""
        return int(self._rows.sum())

    @property
    def num_windows(self) -> int:
        """Windows in an epoch."""
        paths = [path for shard_set in self.shard_sets for path in shard_set.paths]
        size = sum(path.stat().st_size for path in paths)
        return min(len(self._rows), math.ceil(size / self.window_bytes))

    def _bounds(self) -> np.ndarray:
        """The first shard of each window of an epoch, and the end of the last one: int64."""
        return np.arange(self.num_windows + 1) * len(self._rows) // self.num_windows

    def elements(
        self, stream_key: tf.Tensor, first_block: int, num_blocks: int, steps: int = 1
    ) -> tf.data.Dataset:
        """The serialized records of each block: string (steps x batch,)."""
        block_rows = self.batch_size * steps
        first_epoch, within_epoch = divmod(first_block * block_rows, self.epoch_size)
        first_window, within_window = self._find(stream_key, first_epoch, within_epoch)
        windows = tf.data.Dataset.range(first_epoch, tf.int64.max).flat_map(
            lambda epoch: self._epoch(
                stream_key,
                epoch,
                tf.where(epoch == first_epoch, tf.constant(first_window, tf.int64), 0),
            )
        )
        # The remaining rows before the first block are in one window: they are read and dropped.
        windows = windows.scan(tf.constant(within_window, tf.int64), _drop_first)
        windows = windows.prefetch(1).flat_map(self._gather)
        return windows.rebatch(block_rows, drop_remainder=True).take(num_blocks - first_block)

    def _gather(self, window: tf.Tensor, rows: tf.Tensor) -> tf.data.Dataset:
        """A window's records in the order of its rows, a batch at a time."""
        batches = tf.data.Dataset.from_tensor_slices(rows).batch(self.batch_size)
        return batches.map(lambda batch_rows: tf.gather(window, batch_rows))

    def examples(self, serialized: tf.Tensor) -> dict[str, tf.Tensor]:
        """A dict of `image` (encoded, string (batch,)) and `target` (float32 (batch, ...))."""
        top_k = max(shard_set.top_k for shard_set in self.shard_sets)
        parsed = records.parse_examples(serialized, self.shard_sets[0].num_classes, top_k)
        return {"image": parsed["encoded"], "target": self.make_targets(parsed)}

    def _order(self, stream_key: tf.Tensor, epoch: tf.Tensor) -> tf.Tensor:
        """The shards in the order of an epoch: int64 (shards,).

        Each set's shards are permuted and spread evenly over the epoch, so that those of a small
        set come neither early nor late.
        """
        key = noise.named(tf.constant(stream_key), "shards")
        order, positions, first = [], [], 0
        for number, shard_set in enumerate(self.shard_sets):
            count = len(shard_set.names)
            shards = tf.range(count, dtype=tf.int64)
            set_key = noise.fold_in(key, number)
            order.append(first + permuted(shards, count, set_key, tf.fill([count], epoch)))
            positions.append((np.arange(count) + 0.5) / count)
            first += count
        interleaved = np.argsort(np.concatenate(positions), kind="stable")
        return tf.gather(tf.concat(order, axis=0), interleaved)

    def _find(self, stream_key: tf.Tensor, epoch: int, row: int) -> tuple[int, int]:
        """(window, row within it) of a row of an epoch."""
        rows = self._rows[self._order(stream_key, tf.constant(epoch, tf.int64)).numpy()]
        starts = np.concatenate([[0], np.cumsum(rows)])[self._bounds()]
        window = int(np.searchsorted(starts, row, side="right")) - 1
        return window, row - int(starts[window])

    def _epoch(
        self, stream_key: tf.Tensor, epoch: tf.Tensor, first_window: tf.Tensor
    ) -> tf.data.Dataset:
        """An epoch's windows from `first_window` on: a dataset of what `_shuffle` returns."""
        paths = tf.constant([str(path) for shards in self.shard_sets for path in shards.paths])
        counts = tf.constant(
            [count for shards in self.shard_sets for count in shards.counts], tf.int64
        )
        order = self._order(stream_key, epoch)
        bounds = tf.constant(self._bounds(), tf.int64)
        epoch_key = noise.fold_in(noise.named(tf.constant(stream_key), "windows"), epoch)

        def window(number):
            members = order[bounds[number] : bounds[number + 1]]
            sizes = tf.gather(counts, members)
            files = tf.data.Dataset.from_tensor_slices((tf.gather(paths, members), sizes))
            serialized = files.interleave(
                read_counted,
                cycle_length=PARALLEL_READS,
                num_parallel_calls=PARALLEL_READS,
                deterministic=True,
            )
            whole = serialized.batch(tf.maximum(tf.reduce_sum(sizes), 1))
            return whole.map(lambda records: self._shuffle(records, epoch_key, number))

        return tf.data.Dataset.range(first_window, self.num_windows).flat_map(window)

    def _shuffle(
        self, window: tf.Tensor, epoch_key: tf.Tensor, number: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """(the window's records, the index of each row's record: int64 (rows,)).

        Rows are indices, so that a record with many copies is in memory once.
        """
        ends = tf.cumsum(self._copies(window))
        count = ends[-1]
        size = tf.maximum(count, 1)  # All records of a window may have 0 copies.
        order = permuted(tf.range(size), size, epoch_key, tf.fill([size], number))[:count]
        return window, tf.searchsorted(ends, order, side="right", out_type=tf.int64)

    def _copies(self, window: tf.Tensor) -> tf.Tensor:
        """How often each record occurs in an epoch: int64 (n,)."""
        parsed = records.parse_copies(window)
        if self._copies_table is None:
            return parsed["copies"]
        labeled_copies = self._copies_table.lookup(parsed["id"])
        return tf.where(parsed["is_pseudo"], parsed["copies"], labeled_copies)


def _lookup_table(copies: dict[str, int]) -> tf.lookup.StaticHashTable | None:
    """The dict as a lookup table from string to int64 with default 1; None for {}."""
    if not copies:
        return None
    entries = tf.lookup.KeyValueTensorInitializer(
        list(copies), list(copies.values()), tf.string, tf.int64
    )
    return tf.lookup.StaticHashTable(entries, default_value=1)


def _drop_first(
    number: tf.Tensor, window_and_rows: tuple[tf.Tensor, tf.Tensor]
) -> tuple[tf.Tensor, tuple[tf.Tensor, tf.Tensor]]:
    """Drops a window's first rows; (how many are still to be dropped, the remaining window)."""
    window, rows = window_and_rows
    dropped = tf.minimum(number, tf.size(rows, tf.int64))
    return number - dropped, (window, rows[dropped:])
