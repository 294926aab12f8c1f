"""How far a teacher's confidences can be trusted, measured on dev; pure NumPy and SciPy.

Temperature scaling makes confidences comparable between classes and teachers before they are
filtered; thresholds by precision replace one number for all classes by what dev says of each.
"""

import dataclasses

import numpy as np
import scipy.optimize
import scipy.special

# Fewer dev images that are given a label say too little of it.
MIN_DEV_IMAGES = 20
TEMPERATURES = (0.05, 20.0)


def fit_temperature(log_probabilities, labels):
    """The temperature T at which softmax(log p / T) has the least negative log-likelihood.

    Args:
        log_probabilities: float array of shape (n, num_classes).
        labels: int array of shape (n,), the true ones.

    Returns:
        float within `TEMPERATURES`; above 1 where the confidences are too high.

    Reference:
        [Guo et al., 2017](https://arxiv.org/abs/1706.04599)
    """
    log_probabilities = np.asarray(log_probabilities, np.float64)
    of_label = log_probabilities[np.arange(len(labels)), labels]

    def loss(log_temperature):
        factor = np.exp(-log_temperature)
        normalizers = scipy.special.logsumexp(log_probabilities * factor, axis=1)
        return float(np.mean(normalizers - of_label * factor))

    found = scipy.optimize.minimize_scalar(
        loss, bounds=np.log(TEMPERATURES), method="bounded", options={"xatol": 1e-6}
    )
    return float(np.exp(found.x))


def calibrated_confidences(log_probabilities, temperature):
    """Probability of each first choice at a temperature: float32 array of shape (n,)."""
    scaled = np.asarray(log_probabilities, np.float64) / temperature
    normalizers = scipy.special.logsumexp(scaled, axis=1)
    return np.exp(scaled.max(axis=1) - normalizers).clip(0.0, 1.0).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """What each class's images need, by the precision that dev shows.

    Attributes:
        values: float32 array of shape (num_classes,).
        few: class indices with too few dev images: they have the threshold of all classes together.
        missed: class indices that reach the target at no threshold that keeps `MIN_DEV_IMAGES` dev
            images: they have, of the threshold at which they come closest and that of all classes
            together, the higher one.
        reached_by_all: whether all classes together reach the target at their threshold.
    """

    values: np.ndarray
    few: tuple
    missed: tuple
    reached_by_all: bool


def precision_thresholds(labels, confidences, truth, num_classes, target, min_confidence=0.0):
    """The least confidence of each class from which on enough of its dev images are right.

    Thresholds never fall as the target rises: a class that misses it has no lower one than it would
    have with any target that it reaches.

    Args:
        labels: int array of shape (n,), the teacher's first choices on dev.
        confidences: float32 array of shape (n,), their probabilities.
        truth: int array of shape (n,), the true labels.
        num_classes: int.
        target: float in (0, 1], the share of images given a label, at its threshold or above, that
            are to be right.
        min_confidence: float, no threshold is below it.

    Returns:
        `Thresholds`. A class has too few dev images where it is given to fewer than
        `MIN_DEV_IMAGES` of them with `min_confidence`.
    """
    correct, least = labels == truth, np.float32(min_confidence)
    for_all, reached_by_all = _threshold(confidences, correct, target, least)
    values = np.full(num_classes, for_all, np.float32)
    few, missed = [], []
    for label in range(num_classes):
        given = labels == label
        if np.count_nonzero(given & (confidences >= least)) < MIN_DEV_IMAGES:
            few.append(label)
            continue
        values[label], reached = _threshold(confidences[given], correct[given], target, least)
        if not reached:
            missed.append(label)
            values[label] = max(values[label], for_all)
    return Thresholds(values, tuple(few), tuple(missed), reached_by_all)


def _threshold(confidences, correct, target, least):
    """(threshold, whether it reaches the target) of some dev images; `least` is the lowest allowed.

    The least confidence from which on the share of the target is right; where none is, the least
    one from which on the highest share is. Only those that keep `MIN_DEV_IMAGES` count; where
    `least` leaves fewer, the highest of them.
    """
    if not len(confidences):
        return np.float32(1), False
    order = np.argsort(-confidences, kind="stable")
    confidences, correct = confidences[order], correct[order]
    kept = np.arange(1, len(correct) + 1)
    up_to = np.cumsum(correct) / kept
    # Equal confidences are kept or left out together.
    last_of_equals = np.append(confidences[1:] != confidences[:-1], True)
    places = np.flatnonzero(last_of_equals & (kept >= min(MIN_DEV_IMAGES, len(kept))))
    allowed = places[confidences[places] >= least]
    enough = len(allowed) > 0 and len(kept) >= MIN_DEV_IMAGES
    if not len(allowed):
        allowed = places[:1]
    highest = up_to[allowed].max()
    place = allowed[up_to[allowed] >= min(target, highest)][-1]
    return max(confidences[place], least), bool(enough and highest >= target)


def precision_by_class(labels, confidences, truth, thresholds):
    """What dev says of the pseudo-labels that thresholds keep.

    Args:
        labels, confidences, truth: as for `precision_thresholds`.
        thresholds: float32 array of shape (num_classes,).

    Returns:
        (images kept of each label, how many of them are right): int64 arrays of shape
        (num_classes,).
    """
    kept = confidences >= thresholds[labels]
    num_classes = len(thresholds)
    return (
        np.bincount(labels[kept], minlength=num_classes),
        np.bincount(labels[kept & (labels == truth)], minlength=num_classes),
    )
