"""Random subsets of a shard set's images: nested, and a function of each image's id alone."""

import contextlib
import dataclasses

import numpy as np
import tensorflow as tf

from nsk.data import records
from nsk.data.shards import ShardSet
from nsk.data.splits import hash_ids

# Records that are parsed in one call.
PARSED_RECORDS = 256


@dataclasses.dataclass(frozen=True)
class ImageSubset:
    """About a fraction of all images, those with the smallest hashes of (seed, id).

    The images of a smaller fraction are among those of a larger one with the same seed. Whether an
    image is in it depends neither on the order nor on the other images.

    Attributes:
        fraction: float, above 0 and below 1.
        seed: int.
    """

    fraction: float
    seed: int

    def contains(self, ids: list[str]) -> np.ndarray:
        """Returns which images are in the subset: bool array of the length of `ids`."""
        # Not the hash that orders images of equal confidence: selections would prefer those that
        # are in the smallest subsets.
        hashes = hash_ids(self.seed, "unlabeled_fraction", ids, np.arange(len(ids)))
        return hashes < np.uint64(int(self.fraction * 2.0**64))

    def of(self, shard_set: ShardSet, shards: list[int]) -> "ShardSubset":
        """The images of some shards that are in the subset; reads the ids in these shards.

        Raises:
            UserError: a shard is broken.
        """
        masks = {}
        with shard_set.naming_broken_shards():
            for shard in shards:
                batches = shard_set.read(shard).batch(PARSED_RECORDS).map(records.parse_ids)
                ids = [id.decode() for batch in batches.as_numpy_iterator() for id in batch]
                masks[shard] = self.contains(ids)
        return ShardSubset(shard_set, masks)


@dataclasses.dataclass(frozen=True)
class ShardSubset:
    """Some images of some shards, which are read like a `ShardSet` with these images alone.

    Attributes:
        shard_set: all images.
        masks: by the index of a shard, which of its images are read: bool array (records,).
    """

    shard_set: ShardSet
    masks: dict[int, np.ndarray]

    @property
    def counts(self) -> dict[int, int]:
        """Number of images of each shard."""
        return {shard: int(mask.sum()) for shard, mask in self.masks.items()}

    def read(self, shards: list[int]) -> tf.data.Dataset:
        """The serialized records; see `ShardSet.read`."""
        is_read = np.concatenate([self.masks[shard] for shard in shards])
        rows = tf.data.Dataset.from_tensor_slices(is_read)
        read = tf.data.Dataset.zip(self.shard_set.read(shards), rows)
        read = read.filter(lambda record, is_read: is_read)
        return read.map(lambda record, _: record)

    def naming_broken_shards(self) -> contextlib.AbstractContextManager:
        """See `ShardSet.naming_broken_shards`."""
        return self.shard_set.naming_broken_shards()
