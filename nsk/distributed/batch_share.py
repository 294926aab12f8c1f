"""Which rows of a global batch are whose.

A global batch has the rows of one stream after the other. Each stream is divided evenly over the
workers, in their order, and a worker's part over its replicas: so every replica has its share of
labelled and of pseudo-labelled images, and which image is in which step depends on neither number.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Share:
    """One worker's part of every global batch.

    Attributes:
        worker, num_workers: which part of how many; an int, or an int32 scalar tensor, and an int.
        replicas: int, those of this worker: a step is that many elements of its dataset.
    """

    worker: int = 0
    num_workers: int = 1
    replicas: int = 1

    @property
    def is_whole(self):
        """Whether this worker makes the global batch alone."""
        return self.num_workers == 1

    def piece(self, number, pieces):
        """One of several equal pieces of this part: what one of so many times the workers has.

        Args:
            number: int, or int32 scalar tensor: which piece, in the order of rows of each stream.
            pieces: int, how many.
        """
        return Share(self.worker * pieces + number, self.num_workers * pieces)

    def sizes(self, batch_sizes):
        """How many rows of each stream, of these global batch sizes, are the worker's: a list."""
        return [size // self.num_workers for size in batch_sizes]

    def positions(self, batch_sizes):
        """Where these rows stand in the global batch: a list of int32 (rows,), one per stream."""
        positions, first = [], 0
        for size, mine in zip(batch_sizes, self.sizes(batch_sizes), strict=True):
            positions.append(first + self.worker * mine + np.arange(mine, dtype=np.int32))
            first += size
        return positions


WHOLE = Share()
