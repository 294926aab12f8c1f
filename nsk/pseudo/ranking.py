"""The order of the images of a class, most confident first, as 64-bit codes.

The images of a class are ordered by (confidence descending, hash of (image key, seed) ascending, id
ascending). Ties of confidence are common: a saturated teacher assigns 1.0 in float32 to most
images. The hash breaks them at random, but reproducibly.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from nsk.hashing import hash_keys

# Images processed at a time: the intermediate arrays stay in the processor's cache.
CHUNK_SIZE = 2**14
FLOAT32_ONE_BITS = np.uint32(0x3F800000)


@dataclasses.dataclass(frozen=True)
class ScoredImages:
    """Images with the teacher's predictions.

    Attributes:
        keys: uint64 array of shape (n,), see `nsk.hashing.stable_key`.
        labels: int array of shape (n,), the pseudo-labels (argmax), 0..num_classes-1.
        confidences: float32 array of shape (n,), in [0, 1].
        read_ids: function without arguments that returns the n ids; called only if two images have
            equal keys.
    """

    keys: np.ndarray
    labels: np.ndarray
    confidences: np.ndarray
    read_ids: Callable[[], Sequence[str]] | None = None

    def __len__(self):
        return len(self.keys)


class Candidates(NamedTuple):
    """Images with enough confidence for their class, as arrays of shape (k,).

    Attributes:
        rows: int64, indices into the `ScoredImages`.
        labels: int64.
        confidences: float32.
        hashes: uint64, of the keys and the seed.
        codes: uint64, see `sort_codes`.
    """

    rows: np.ndarray
    labels: np.ndarray
    confidences: np.ndarray
    hashes: np.ndarray
    codes: np.ndarray


@dataclasses.dataclass(frozen=True)
class Ranking:
    """Which images are candidates, and their order within a class.

    Attributes:
        thresholds: float32 array of shape (num_classes,), the minimum confidence of a candidate.
        seed: int, of the order among equal confidences.
    """

    thresholds: np.ndarray
    seed: int

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.thresholds)

    def candidates(self, images: ScoredImages) -> Iterator[Candidates]:
        """Yields the candidates among some images, a chunk at a time.

        Raises:
            ValueError: shapes differ, or a label or confidence is out of range.
        """
        keys, labels, confidences = _validate(images, self.num_classes)
        lowest = self.thresholds.min(initial=np.float32(1))
        is_uniform = lowest == self.thresholds.max(initial=np.float32(0))
        for start in range(0, len(keys), CHUNK_SIZE):
            chunk = slice(start, start + CHUNK_SIZE)
            threshold = lowest if is_uniform else self.thresholds[labels[chunk]]
            is_candidate = confidences[chunk] >= threshold
            rows = np.flatnonzero(is_candidate)
            all_are_candidates = len(rows) == len(is_candidate)
            key, label, confidence = (
                array[chunk] if all_are_candidates else array[chunk][rows]
                for array in (keys, labels, confidences)
            )
            hashes = hash_keys(key, self.seed)
            yield Candidates(
                rows + start,
                label.astype(np.int64),
                confidence,
                hashes,
                sort_codes(confidence, hashes),
            )


def sort_codes(confidences: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """Encodes the order by (confidence descending, hash ascending) in one integer an image.

    The distance c of the bits of a confidence from those of 1.0 is written as its length and the
    bits after its leading one, as in the Elias gamma code; the leading bits of the hash fill up the
    rest. The closer a confidence is to 1.0, the more bits of its code belong to the hash, so that
    the codes of a saturated teacher are spread as evenly as any others.

    Args:
        confidences: float32 array of shape (n,), in [0, 1].
        hashes: uint64 array of shape (n,).

    Returns:
        uint64 array of shape (n,), ascending in the order. Different confidences have different
        codes; images of equal confidence may share a code, and the whole hash then decides.
    """
    distances = FLOAT32_ONE_BITS - np.abs(confidences).view(np.uint32)  # abs: -0.0 counts as 0.0.
    # 2 c + 1 has a leading one, even for c = 0. The exponent of a float64 is that bit's position,
    # and the 52 bits of its mantissa hold the bits after it exactly.
    wide = (distances.astype(np.float64) * 2 + 1).view(np.uint64)
    wide -= np.uint64(1022 << 52)  # The exponent is 1 for c = 0 and 31 at most: 5 bits.
    length = wide >> np.uint64(52)
    return (wide << np.uint64(7)) | (hashes >> (length + np.uint64(4)))


def _validate(images, num_classes):
    """Returns keys, labels and confidences as arrays of one shape (n,), or raises ValueError."""
    keys = np.asarray(images.keys, np.uint64)
    labels = np.asarray(images.labels)
    confidences = np.asarray(images.confidences, np.float32)
    if not keys.shape == labels.shape == confidences.shape or keys.ndim != 1:
        raise ValueError(
            f"keys {keys.shape}, labels {labels.shape} and confidences {confidences.shape}: "
            "expected three arrays of the same shape (n,)."
        )
    if not len(keys):
        return keys, labels.astype(np.int64), confidences
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels of type {labels.dtype}: expected integers.")
    if not (labels.min() >= 0 and labels.max() < num_classes):
        raise ValueError(
            f"labels from {labels.min()} to {labels.max()}: expected 0 to {num_classes - 1}."
        )
    if not (confidences.min() >= 0 and confidences.max() <= 1):  # False for NaN, too.
        is_wrong = ~((confidences >= 0) & (confidences <= 1))
        raise ValueError(
            f"confidence {confidences[is_wrong][0]} in row {np.flatnonzero(is_wrong)[0]}: expected "
            "a number from 0 to 1."
        )
    return keys, labels, confidences
