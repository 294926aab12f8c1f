"""Shares of the classes among images without labels, from a classifier's predictions; pure NumPy.

Reference: Saerens, Latinne, Decaestecker: Adjusting the outputs of a classifier to new a priori
probabilities (2002); Lipton, Wang, Smola: Detecting and correcting for label shift with black box
predictors (2018), arXiv 1802.03916.
"""

import numpy as np

MAX_ITERATIONS = 1000
TOLERANCE = 1e-6


def estimate_class_shares(predicted_counts: np.ndarray, confusion: np.ndarray) -> np.ndarray:
    """Shares of the true classes that explain best how often each class was predicted.

    Assumes that images of a class look as those of the class in dev do (label shift). Maximises the
    likelihood by expectation maximisation over the predicted classes, so that no share is negative
    and the memory does not grow with the images. A class counts one more dev image than it has, so
    that the result is defined for classes with few of them.

    Args:
        predicted_counts: int array (num_classes,), images of which each class was predicted; at
            least one.
        confusion: int array (num_classes, num_classes), dev images by true and predicted class.

    Returns:
        float64 array (num_classes,), the shares, with the sum 1.
    """
    counts, confusion = np.asarray(predicted_counts, float), np.asarray(confusion, float)
    num_classes = len(counts)
    accuracy = np.trace(confusion) / max(1.0, confusion.sum())
    expected = np.full_like(confusion, (1 - accuracy) / num_classes)
    expected[np.diag_indices(num_classes)] += accuracy
    likelihood = confusion + expected
    likelihood /= likelihood.sum(axis=1, keepdims=True)
    shares = np.full(num_classes, 1 / num_classes)
    for _ in range(MAX_ITERATIONS):
        explained = shares @ likelihood
        ratios = np.divide(counts, explained, out=np.zeros_like(counts), where=counts > 0)
        updated = shares * (likelihood @ ratios) / counts.sum()
        change = np.abs(updated - shares).sum()
        shares = updated
        if change < TOLERANCE:
            break
    return shares / shares.sum()
