"""Parts of a batch whose temporary arrays stay small."""

import math
from collections.abc import Iterator

# 8 MiB as float64; larger temporary arrays make no corruption faster, some slower.
VALUES_PER_CHUNK = 2**20


def chunks(shape: tuple[int, ...], values: int = VALUES_PER_CHUNK) -> Iterator[slice]:
    """Yields slices of a batch's first axis.

    Args:
        shape: of the batch (n, ...).
        values: most values in a slice; a slice holds one image at least.
    """
    size = max(1, values // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], size):
        yield slice(start, start + size)
