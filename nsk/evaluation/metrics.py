"""Accuracy, calibration and their uncertainty from log-probabilities; pure NumPy.

`log_probabilities` is a float array of shape (n, num_classes), natural logarithms, rows that sum to
1 as probabilities up to float16 rounding; `labels` is an int array of shape (n,). Everything is
computed in float64. Every function raises ValueError for empty arrays, wrong shapes, labels out of
range, NaN, or rows that are not log-probabilities (logits, say).
"""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from nsk.evaluation.class_metrics import measure_classes

NUM_CALIBRATION_BINS = 15  # Guo et al., 2017; usual for published calibration errors.


def accuracy(log_probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Share of images whose most probable class is the label, in [0, 1]."""
    return top_k_accuracy(log_probabilities, labels, 1)


def top_k_accuracy(log_probabilities: ArrayLike, labels: ArrayLike, k: int) -> float:
    """Share of images whose label is among the k most probable classes, in [0, 1].

    Among equally probable classes the first counts as more probable, as in `np.argmax`.
    """
    log_probabilities, labels = check_predictions(log_probabilities, labels)
    if k < 1:
        raise ValueError(f"k={k}: expected 1 or more.")
    label_log_probabilities = log_probabilities[np.arange(len(labels)), labels][:, np.newaxis]
    is_earlier_class = np.arange(log_probabilities.shape[1]) < labels[:, np.newaxis]
    is_tied = log_probabilities == label_log_probabilities
    is_ahead = (log_probabilities > label_log_probabilities) | (is_tied & is_earlier_class)
    return float(np.mean(is_ahead.sum(axis=1) < k))


def negative_log_likelihood(log_probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Mean of -log p(label), in nats; infinite if a label has the probability 0."""
    log_probabilities, labels = check_predictions(log_probabilities, labels)
    return float(-np.mean(log_probabilities[np.arange(len(labels)), labels]))


def brier(log_probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Mean over images of sum_k (p_k - [k is the label])^2, in [0, 2]."""
    log_probabilities, labels = check_predictions(log_probabilities, labels)
    errors = np.exp(log_probabilities)
    errors[np.arange(len(labels)), labels] -= 1
    return float(np.mean(np.sum(errors**2, axis=1)))


def expected_calibration_error(
    log_probabilities: ArrayLike, labels: ArrayLike, num_bins: int = NUM_CALIBRATION_BINS
) -> float:
    """sum_b n_b / n |accuracy_b - confidence_b| over bins of the top-1 confidence, in [0, 1].

    Bins have equal width; bin b of B holds confidences in (b / B, (b + 1) / B].

    Reference:
        [Guo et al., 2017](https://arxiv.org/abs/1706.04599)
    """
    log_probabilities, labels = check_predictions(log_probabilities, labels)
    correct = log_probabilities.argmax(axis=1) == labels
    confidences = np.exp(log_probabilities.max(axis=1))
    bins = confidence_bins(confidences, num_bins)
    # n_b |accuracy_b - confidence_b| = |sum of (correct - confidence)|: no division by the number
    # of images of an empty bin.
    gaps = np.bincount(bins, weights=correct - confidences, minlength=num_bins)
    return float(np.sum(np.abs(gaps)) / len(labels))


def confidence_bins(
    confidences: np.ndarray, num_bins: int, closed: Literal["upper", "lower"] = "upper"
) -> np.ndarray:
    """Bins of equal width in [0, 1] that hold confidences.

    Args:
        confidences: float array in [0, 1]. By rounding they may be slightly outside.
        num_bins: int B, at least 1.
        closed: the edge that belongs to a bin: with "upper" bin b holds (b / B, (b + 1) / B], with
            "lower" [b / B, (b + 1) / B). 0 is always in the first bin, and 1 in the last.

    Returns:
        int64 array of the same shape, in [0, num_bins).
    """
    if num_bins < 1:
        raise ValueError(f"num_bins={num_bins}: expected 1 or more.")
    inner_edges = np.arange(1, num_bins) / num_bins
    side = "left" if closed == "upper" else "right"
    return np.searchsorted(inner_edges, confidences, side=side)


def summarize(log_probabilities: ArrayLike, labels: ArrayLike) -> dict[str, float | int | None]:
    """Computes all metrics of this module that need no other model.

    Returns:
        dict with the floats `accuracy`, `top5` (None with five classes or fewer),
        `balanced_accuracy`, `macro_f1` (see `class_metrics`), `nll`, `ece` and `brier`, and the int
        `images`.
    """
    log_probabilities, labels = check_predictions(log_probabilities, labels)
    num_classes = log_probabilities.shape[1]
    has_top5 = num_classes > 5
    classes = measure_classes(labels, log_probabilities.argmax(axis=1), num_classes)
    return {
        "accuracy": accuracy(log_probabilities, labels),
        "top5": top_k_accuracy(log_probabilities, labels, 5) if has_top5 else None,
        "balanced_accuracy": classes.balanced_accuracy,
        "macro_f1": classes.macro_f1,
        "nll": negative_log_likelihood(log_probabilities, labels),
        "ece": expected_calibration_error(log_probabilities, labels),
        "brier": brier(log_probabilities, labels),
        "images": len(labels),
    }


def paired_standard_error(correct_a: ArrayLike, correct_b: ArrayLike) -> float:
    """Standard error of the difference of two models' accuracies on the same images.

    Only images on which the two models differ count: pairing removes the variance of images that
    are easy or hard for both.

    Args:
        correct_a: bool array of shape (n,), whether the first model classifies each image
            correctly.
        correct_b: the same for the second model.

    Returns:
        float, the standard deviation of correct_a - correct_b over images, divided by sqrt(n).
    """
    correct_a, correct_b = np.asarray(correct_a, bool), np.asarray(correct_b, bool)
    if correct_a.shape != correct_b.shape or correct_a.ndim != 1 or not len(correct_a):
        raise ValueError(
            f"correct_a {correct_a.shape} and correct_b {correct_b.shape}: expected two "
            "arrays of the same shape (n,) with at least one image."
        )
    differences = correct_a.astype(np.float64) - correct_b
    return float(np.std(differences) / np.sqrt(len(differences)))


def check_predictions(
    log_probabilities: ArrayLike, labels: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    """Returns both as float64 (n, num_classes) and int64 (n,) arrays, or raises ValueError."""
    log_probabilities = np.asarray(log_probabilities, np.float64)
    if log_probabilities.ndim != 2 or log_probabilities.shape[1] < 2:
        raise ValueError(
            f"log_probabilities of shape {log_probabilities.shape}: expected (n, num_classes)."
        )
    labels = _check_labels(labels, log_probabilities.shape[1])
    if len(labels) != len(log_probabilities):
        raise ValueError(
            f"{len(log_probabilities)} rows and {len(labels)} labels: expected the same number."
        )
    # In float16 a logarithm near -7 is rounded by up to 0.002, near -10 by 0.004.
    sums = np.exp(np.minimum(log_probabilities, 1)).sum(axis=1)
    wrong = ~(np.abs(sums - 1) < 0.02)  # True for NaN too.
    if wrong.any():
        row = np.flatnonzero(wrong)[0]
        raise ValueError(
            f"row {row} of log_probabilities sums to {sums[row]:.4g} as probabilities: expected 1."
        )
    return log_probabilities, labels


def _check_labels(labels, num_classes):
    labels = np.asarray(labels)
    if labels.ndim != 1 or not len(labels) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels of shape {labels.shape} and type {labels.dtype}: expected integers of "
            "shape (n,), at least one."
        )
    labels = labels.astype(np.int64)
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"labels from {labels.min()} to {labels.max()}: expected 0 to {num_classes - 1}."
        )
    return labels
