"""How far images are from others in a network's features.

Images of unknown classes, or of no class at all, are farther from dev images than other dev images
are, also when the network is certain of their class.

Reference: Sun, Ming, Zhu, Li: Out-of-distribution detection with deep nearest neighbors (2022),
arXiv 2204.06507.
"""

import numpy as np
import tensorflow as tf

# The distance to the nearest image alone depends on single, perhaps wrong, labels or pictures.
NUM_NEIGHBORS = 5
# More references cost time with every image that is scored, and add little.
MAX_REFERENCES = 5000


def unit_vectors(features: np.ndarray) -> np.ndarray:
    """Features (n, channels) divided by their length: float32; those of length 0 stay 0."""
    features = np.asarray(features, np.float32)
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(lengths, np.finfo(np.float32).tiny)


def choose_references(features: np.ndarray) -> np.ndarray:
    """Rows, int array, of at most `MAX_REFERENCES` images, evenly spread over (n, channels)."""
    count = min(len(features), MAX_REFERENCES)
    return np.arange(count) * len(features) // max(1, count)


def neighbor_distances(
    features: np.ndarray,
    references: np.ndarray | tf.Tensor,
    own_references: np.ndarray | None = None,
) -> np.ndarray:
    """Cosine distance of images to their `NUM_NEIGHBORS`th nearest reference, or to the farthest.

    Args:
        features: float array (n, channels).
        references: float32 (m, channels), `unit_vectors` of at least 2 images; as a tensor they
            are copied to a GPU once.
        own_references: int array (n,), the reference that is the image itself, which does not
            count; -1: none. None: none of all images.

    Returns:
        float32 array (n,) in [0, 2].

    Raises:
        ValueError: there are fewer than 2 references, or the channels differ.
    """
    references = tf.convert_to_tensor(references)
    if len(references) < 2 or references.shape[1] != features.shape[1]:
        raise ValueError(
            f"features {features.shape} and references {references.shape}: expected (n, channels) "
            "and (m, channels) with m at least 2."
        )
    # NumPy's threads would compete with TensorFlow's.
    similarities = tf.matmul(unit_vectors(features), references, transpose_b=True).numpy()
    if own_references is not None:
        rows = np.flatnonzero(own_references >= 0)
        similarities[rows, own_references[rows]] = -np.inf
    # One fewer, so that an image without itself has as many.
    rank = min(NUM_NEIGHBORS, len(references) - 1)
    nearest = np.partition(similarities, -rank, axis=1)[:, -rank]
    return np.clip(1 - nearest, 0, 2).astype(np.float32)
