"""Random numbers of corruptions: every image has its own, whatever its batch.

The numbers of an image are a pure function of (seed, id of the image, label), where the label names
what they are for, such as "corruption/snow/3". So an image is corrupted to the same pixels in any
batch, order or process.

Each image has a generator SFC64, whose state is the hash of these three. Unlike counter-based
generators it takes little longer than the arithmetic with its numbers.

Reference:
    [SFC64: Doty-Humphrey, 2010](https://pracrand.sourceforge.net)
"""

import copy
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
        prefix = hashlib.blake2b(f"{seed}\0{label}\0".encode(), digest_size=24)
        self._generators = [_generator(prefix, image_id) for image_id in ids]

    def __len__(self):
        return len(self._generators)

    def __getitem__(self, part: slice) -> "RandomNumbers":
        """The streams of some of the images; their numbers continue in both objects."""
        chosen = copy.copy(self)
        chosen._generators = self._generators[part]
        return chosen

    def normal(self, shape: tuple[int, ...] = ()) -> np.ndarray:
        """Standard normal numbers, float64 (n, *shape)."""
        return self._draw(shape, np.random.Generator.standard_normal)

    def uniform(self, low: float, high: float, shape: tuple[int, ...] = ()) -> np.ndarray:
        """Uniform numbers in [low, high), float64 (n, *shape)."""
        numbers = self._draw(shape, np.random.Generator.random)
        numbers *= high - low
        numbers += low
        return numbers

    def integers(self, low: int, high: int, shape: tuple[int, ...] = ()) -> np.ndarray:
        """Uniform integers in [low, high), int64 (n, *shape)."""
        numbers = np.empty((len(self), *shape), np.int64)
        for row, generator in enumerate(self._generators):
            numbers[row] = generator.integers(low, high, shape)
        return numbers

    def poisson(self, expected: np.ndarray) -> np.ndarray:
        """Poisson numbers with the expected values (n, ...), int64 of the same shape."""
        numbers = np.empty(expected.shape, np.int64)
        for row, generator in enumerate(self._generators):
            numbers[row] = generator.poisson(expected[row])
        return numbers

    def _draw(self, shape, fill):
        """Float64 (n, *shape); `fill` writes the next numbers of a generator into `out`."""
        numbers = np.empty((len(self), *shape))
        for row, generator in enumerate(self._generators):
            fill(generator, out=numbers[row, ...])
        return numbers


class _State(np.random.bit_generator.ISeedSequence):
    """Hands a generator its state, where NumPy would hash once more."""

    def __init__(self, words: np.ndarray):
        self._words = words

    def generate_state(self, n_words, dtype=np.uint32):
        return np.resize(self._words, n_words).astype(dtype)


def _generator(prefix, image_id):
    """The generator of an image; `prefix` is the hash of what precedes its id."""
    hashed = prefix.copy()
    hashed.update(image_id.encode())
    words = np.frombuffer(hashed.digest(), "<u8")
    return np.random.Generator(np.random.SFC64(_State(words)))
