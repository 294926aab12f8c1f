"""Calibration of a teacher's confidences on dev; pure NumPy and SciPy.

Temperature scaling makes confidences comparable between classes and teachers before they are
filtered. Thresholds by precision replace one minimum confidence for all classes by one for each
class, estimated on dev.
"""

import dataclasses

import numpy as np

from nsk.evaluation.calibration import apply_temperature

# With fewer dev images a precision is too uncertain to set a threshold.
MIN_DEV_IMAGES = 20


def calibrated_confidences(log_probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Probability of each top-1 class at a temperature: float32 array of shape (n,)."""
    highest = apply_temperature(log_probabilities, temperature).max(axis=1)
    return np.exp(highest).clip(0.0, 1.0).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """Minimum confidence of each class, from the precision on dev.

    Attributes:
        values: float32 array of shape (num_classes,).
        with_few_images: indices of the classes with too few dev images: their threshold is the one
            of all classes together.
        below_target: indices of the classes that do not reach the target at any threshold that
            keeps `MIN_DEV_IMAGES` dev images: their threshold is the one of the highest precision,
            or that of all classes together if it is higher.
        reached_overall: whether all classes together reach the target at their threshold.
    """

    values: np.ndarray
    with_few_images: tuple[int, ...]
    below_target: tuple[int, ...]
    reached_overall: bool


def class_thresholds(
    labels: np.ndarray,
    confidences: np.ndarray,
    truth: np.ndarray,
    num_classes: int,
    *,
    min_confidence: float,
    target_precision: float,
) -> Thresholds:
    """The thresholds of a selection: `min_confidence`, or those that reach a precision on dev.

    Args:
        labels: see `precision_thresholds`.
        confidences: see `precision_thresholds`.
        truth: see `precision_thresholds`.
        num_classes: int.
        min_confidence: lower bound of all thresholds.
        target_precision: see `precision_thresholds`; 0: every threshold is `min_confidence`.
    """
    if not target_precision:
        return Thresholds(np.full(num_classes, min_confidence, np.float32), (), (), True)
    return precision_thresholds(
        labels, confidences, truth, num_classes, target_precision, min_confidence
    )


def precision_thresholds(
    labels: np.ndarray,
    confidences: np.ndarray,
    truth: np.ndarray,
    num_classes: int,
    target: float,
    min_confidence: float = 0.0,
) -> Thresholds:
    """Finds the lowest threshold of each class at which its precision on dev reaches a target.

    Thresholds never fall as the target rises: a class that misses the target has no lower threshold
    than with any target that it reaches.

    Args:
        labels: int array of shape (n,), the teacher's top-1 classes on dev.
        confidences: float32 array of shape (n,), their probabilities.
        truth: int array of shape (n,), the true labels.
        num_classes: int.
        target: float in (0, 1], the precision: the share of correct labels among the images with a
            confidence at the threshold or above.
        min_confidence: float, lower bound of all thresholds.

    Returns:
        `Thresholds`. A class has too few dev images if fewer than `MIN_DEV_IMAGES` of them get its
        label with `min_confidence` or more.
    """
    is_correct, minimum = labels == truth, np.float32(min_confidence)
    overall, reached_overall = _threshold(confidences, is_correct, target, minimum)
    values = np.full(num_classes, overall, np.float32)
    with_few_images, below_target = [], []
    for label in range(num_classes):
        in_class = labels == label
        if np.count_nonzero(in_class & (confidences >= minimum)) < MIN_DEV_IMAGES:
            with_few_images.append(label)
            continue
        values[label], is_reached = _threshold(
            confidences[in_class], is_correct[in_class], target, minimum
        )
        if not is_reached:
            below_target.append(label)
            values[label] = max(values[label], overall)
    return Thresholds(values, tuple(with_few_images), tuple(below_target), reached_overall)


def _threshold(confidences, is_correct, target, minimum):
    """(threshold, whether it reaches the target) for some dev images.

    The lowest confidence at which the precision reaches the target; if none does, the lowest at
    which the precision is highest. Only thresholds of at least `minimum` that keep `MIN_DEV_IMAGES`
    images count; if there is none, the highest one that keeps as many images.
    """
    if not len(confidences):
        return np.float32(1), False
    order = np.argsort(-confidences, kind="stable")
    confidences, is_correct = confidences[order], is_correct[order]
    num_kept = np.arange(1, len(is_correct) + 1)
    precisions = np.cumsum(is_correct) / num_kept
    # Equal confidences are kept or dropped together.
    is_last_of_equals = np.append(confidences[1:] != confidences[:-1], True)
    keeps_enough = num_kept >= min(MIN_DEV_IMAGES, len(num_kept))
    positions = np.flatnonzero(is_last_of_equals & keeps_enough)
    allowed = positions[confidences[positions] >= minimum]
    has_enough_images = len(allowed) > 0 and len(num_kept) >= MIN_DEV_IMAGES
    if not len(allowed):
        allowed = positions[:1]
    highest = precisions[allowed].max()
    position = allowed[precisions[allowed] >= min(target, highest)][-1]
    is_reached = bool(has_enough_images and highest >= target)
    return max(confidences[position], minimum), is_reached


def count_correct(
    labels: np.ndarray, confidences: np.ndarray, truth: np.ndarray, thresholds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Counts the dev images that thresholds keep, and the correct ones among them.

    Args:
        labels: int array of shape (n,), the most probable class of each dev image.
        confidences: float32 array of shape (n,), the probability of that class.
        truth: int array of shape (n,), the true classes.
        thresholds: float32 array of shape (num_classes,).

    Returns:
        (images kept of each label, correct ones among them): int64 arrays of shape (num_classes,).
    """
    kept = confidences >= thresholds[labels]
    num_classes = len(thresholds)
    return (
        np.bincount(labels[kept], minlength=num_classes),
        np.bincount(labels[kept & (labels == truth)], minlength=num_classes),
    )
