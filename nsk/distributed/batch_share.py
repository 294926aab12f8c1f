"""How the rows of a global batch are divided over workers and replicas.

A global batch concatenates the rows of all streams. Each stream is divided evenly over the workers,
in order, and a worker's part over its replicas. So every replica has its share of labelled and of
pseudo-labelled images, and which image is in which step depends on neither number.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np
import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Share:
    """One worker's part of every global batch.

    Attributes:
        worker, num_workers: index of the part and number of parts; the index may be an int32 scalar
            tensor.
        replicas: replicas of this worker; a step takes as many elements of its dataset.
    """

    worker: int | tf.Tensor = 0
    num_workers: int = 1
    replicas: int = 1

    @property
    def is_whole(self) -> bool:
        """Whether this worker makes the global batch alone."""
        return self.num_workers == 1

    def piece(self, number: int | tf.Tensor, pieces: int) -> "Share":
        """One of several equal pieces of this part: the part of one of `pieces` times the workers.

        Args:
            number: int or int32 scalar tensor, index of the piece in the order of each stream's
                rows.
            pieces: number of pieces.
        """
        return Share(self.worker * pieces + number, self.num_workers * pieces)

    def sizes(self, batch_sizes: Iterable[int]) -> list[int]:
        """Number of this worker's rows of each stream with the given global batch sizes."""
        return [size // self.num_workers for size in batch_sizes]

    def positions(self, batch_sizes: Iterable[int]) -> list[np.ndarray | tf.Tensor]:
        """Positions of these rows in the global batch: int32 (rows,) per stream."""
        batch_sizes = list(batch_sizes)
        positions, first = [], 0
        for size, own_size in zip(batch_sizes, self.sizes(batch_sizes), strict=True):
            positions.append(first + self.worker * own_size + np.arange(own_size, dtype=np.int32))
            first += size
        return positions


WHOLE = Share()
