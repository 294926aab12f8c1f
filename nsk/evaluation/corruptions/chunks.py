"""Parts of a batch whose temporary arrays stay small."""

import functools
import math
from collections.abc import Callable, Iterator

import numpy as np

# 8 MiB as float64; larger temporary arrays make no corruption faster, some slower.
VALUES_PER_CHUNK = 2**20
# 256 KiB as float64: temporary arrays stay in a core's cache, and their memory is used again rather
# than returned to the system; up to twice as fast as all images at once.
VALUES_IN_CACHE = 2**15


def chunks(shape: tuple[int, ...], values: int = VALUES_PER_CHUNK) -> Iterator[slice]:
    """Yields slices of a batch's first axis.

    Args:
        shape: of the batch (n, ...).
        values: most values in a slice; a slice holds one image at least.
    """
    size = max(1, values // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], size):
        yield slice(start, start + size)


def in_chunks(kernel: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """Makes a corruption corrupt only so many images at a time as the cache holds.

    Args:
        kernel: function of uint8 images, their `RandomNumbers` and parameters, whose results do not
            depend on the batch.
    """

    @functools.wraps(kernel)
    def corrupt_in_chunks(images, numbers, *parameters, **named_parameters):
        corrupted = np.empty_like(images)
        for part in chunks(images.shape, VALUES_IN_CACHE):
            corrupted[part] = kernel(images[part], numbers[part], *parameters, **named_parameters)
        return corrupted

    return corrupt_in_chunks
