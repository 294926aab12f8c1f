"""Random numbers of corruptions: every image has its own, whatever its batch.

The numbers of an image are a pure function of (seed, id of the image, label), where the label names
what they are for, such as "snow/3". So an image is corrupted to the same pixels in any batch, order
or process.

Reference:
    [Philox: Salmon et al., 2011](https://doi.org/10.1145/2063384.2063405)
"""

import hashlib
from collections.abc import Sequence

import numpy as np


class RandomNumbers:
    """Streams of random numbers, one for each of n images.

    Every call continues each image's stream, so the order of calls matters.

    Args:
        seed: int.
        ids: strings (n,), the images' ids.
        label: what the numbers are for.
    """

    def __init__(self, seed: int, ids: Sequence[str], label: str):
        self._generators = [
            np.random.Generator(np.random.Philox(key=_key(seed, label, image_id)))
            for image_id in ids
        ]

    def __len__(self):
        return len(self._generators)

    def normal(self, shape: tuple[int, ...] = ()) -> np.ndarray:
        """Standard normal numbers, float64 (n, *shape)."""
        return self._draw(shape, np.float64, lambda generator: generator.standard_normal(shape))

    def uniform(self, low: float, high: float, shape: tuple[int, ...] = ()) -> np.ndarray:
        """Uniform numbers in [low, high), float64 (n, *shape)."""
        return self._draw(shape, np.float64, lambda generator: generator.uniform(low, high, shape))

    def integers(self, low: int, high: int, shape: tuple[int, ...] = ()) -> np.ndarray:
        """Uniform integers in [low, high), int64 (n, *shape)."""
        return self._draw(shape, np.int64, lambda generator: generator.integers(low, high, shape))

    def poisson(self, expected: np.ndarray) -> np.ndarray:
        """Poisson numbers with the expected values (n, ...), int64 of the same shape."""
        numbers = np.empty(expected.shape, np.int64)
        for row, generator in enumerate(self._generators):
            numbers[row] = generator.poisson(expected[row])
        return numbers

    def _draw(self, shape, dtype, draw):
        numbers = np.empty((len(self), *shape), dtype)
        for row, generator in enumerate(self._generators):
            numbers[row] = draw(generator)
        return numbers


def _key(seed, label, image_id):
    """A Philox key of 128 bits."""
    text = f"{seed}\0{label}\0{image_id}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")
