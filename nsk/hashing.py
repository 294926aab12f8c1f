"""Hashes that are equal in every process and on every machine: of image ids, of files, of bytes.

NumPy is imported inside functions: `--help` and the command verify, which hashes files, start
without it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def stable_key(image_id: str | bytes) -> np.uint64:
    """Returns the 64-bit BLAKE2b hash of an image's id.

    Args:
        image_id: string or bytes; a string counts as its UTF-8 bytes.
    """
    import numpy as np

    return np.uint64(_blake2b(image_id))


def stable_keys(image_ids: Iterable[str | bytes]) -> np.ndarray:
    """Returns `stable_key` of each id: uint64 array of shape (n,)."""
    import numpy as np

    return np.fromiter(map(_blake2b, image_ids), np.uint64)


def _blake2b(image_id):
    """64-bit hash as a Python int."""
    encoded = image_id.encode() if isinstance(image_id, str) else image_id
    return int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "little")


def hash_keys(keys: np.ndarray, seed: int) -> np.ndarray:
    """Hashes keys with a seed by the splitmix64 finaliser.

    The hash is a bijection for each seed: only ids with equal keys have equal hashes.

    Args:
        keys: uint64 array of shape (n,).
        seed: int.

    Returns:
        uint64 array of shape (n,).

    Reference:
        [Steele et al., 2014](https://doi.org/10.1145/2660193.2660195)
    """
    import numpy as np

    z = keys ^ stable_key(str(int(seed)))
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def sha256_of_file(path: str | os.PathLike) -> str:
    """Returns the SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_bytes(content: bytes) -> str:
    """Returns the SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()
