"""Seeded subsets of images, for evaluations with many forward passes for each image."""

from collections.abc import Sequence

import numpy as np

from nsk.hashing import hash_keys, stable_keys


def choose_subset(ids: Sequence[str], number: int, seed: int) -> np.ndarray:
    """Chooses images by the hashes of their ids.

    Which images are chosen does not depend on their order, and a smaller subset of the same seed is
    part of a larger one.

    Args:
        ids: n different strings.
        number: int in [1, n].
        seed: int.

    Returns:
        int64 array (number,), indices into `ids` in ascending order.

    Raises:
        ValueError: `number` is outside of [1, n], or ids are repeated.
    """
    if not 1 <= number <= len(ids):
        raise ValueError(f"number={number}: expected 1 to {len(ids)}, the number of ids.")
    hashes = hash_keys(stable_keys(ids), seed)
    if len(np.unique(hashes)) < len(ids):
        raise ValueError("ids: expected different strings, but some are repeated.")
    return np.sort(np.argpartition(hashes, number - 1)[:number])
