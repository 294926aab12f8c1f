"""Calibration errors and temperature scaling of log-probabilities; pure NumPy and SciPy.

Arguments and errors are those of `nsk/evaluation/metrics.py`. A calibration error compares, within
bins of similar confidences, the share of correct predictions with the mean confidence; an empty bin
has neither and never counts.
"""

import numpy as np
import scipy.optimize
import scipy.special
from numpy.typing import ArrayLike

from nsk.evaluation import metrics
from nsk.evaluation.metrics import NUM_CALIBRATION_BINS, check_predictions, confidence_bins

POOLED_BINS = 10
TEMPERATURES = (0.05, 20.0)  # Bounds of a fitted temperature.
# Standard deviation of log T that is assumed before any image is seen: T is in 0.6 to 1.6 with a
# probability of 68 %, and in 0.4 to 2.7 with one of 95 %.
PRIOR_DEVIATION = 0.5


def reliability(
    log_probabilities: ArrayLike, labels: ArrayLike, num_bins: int = NUM_CALIBRATION_BINS
) -> list[dict[str, float | int | None]]:
    """The data of a reliability diagram: bins of equal width of the top-1 confidence.

    Returns:
        a dict for each bin, in ascending order: `lower` and `upper`, its edges, of which the upper
        one belongs to it; `count`, its images; their mean `confidence` and their `accuracy`, None
        for an empty bin.

    Reference:
        [Guo et al., 2017](https://arxiv.org/abs/1706.04599)
    """
    confidences, is_correct = _top1(*check_predictions(log_probabilities, labels))
    counts, confidence_sums, num_correct = _bin_sums(
        confidences, is_correct, confidence_bins(confidences, num_bins), num_bins
    )
    return [
        {
            "lower": index / num_bins,
            "upper": (index + 1) / num_bins,
            "count": int(count),
            "confidence": float(confidence_sums[index] / count) if count else None,
            "accuracy": float(num_correct[index] / count) if count else None,
        }
        for index, count in enumerate(counts)
    ]


def maximum_calibration_error(
    log_probabilities: ArrayLike, labels: ArrayLike, num_bins: int = NUM_CALIBRATION_BINS
) -> float:
    """max_b |accuracy_b - confidence_b| over the bins of `reliability` with images, in [0, 1].

    A bin with one image counts as much as any other, so few images give a high value.

    Reference:
        [Guo et al., 2017](https://arxiv.org/abs/1706.04599)
    """
    return max(
        abs(row["accuracy"] - row["confidence"])
        for row in reliability(log_probabilities, labels, num_bins)
        if row["count"]
    )


def adaptive_calibration_error(
    log_probabilities: ArrayLike, labels: ArrayLike, num_bins: int = NUM_CALIBRATION_BINS
) -> float:
    """The expected calibration error with bins of equally many images, in [0, 1].

    The images in ascending order of the top-1 confidence are split into bins whose sizes differ by
    at most 1. Equal confidences are never separated, since the result would depend on the order of
    the images: those that a split would separate all belong to the lower bin.

    Reference:
        [Nguyen and O'Connor, 2015](https://arxiv.org/abs/1508.05154), bins of equal size
    """
    confidences, is_correct = _top1(*check_predictions(log_probabilities, labels))
    bins = _equal_mass_bins(confidences, num_bins)
    return _expected_gap(*_bin_sums(confidences, is_correct, bins, num_bins))


def classwise_calibration_error(
    log_probabilities: ArrayLike, labels: ArrayLike, num_bins: int = NUM_CALIBRATION_BINS
) -> float:
    """Mean over classes of the expected calibration error of the class's probability, in [0, 1].

    For class k, sum_b n_b / n |share of label k - mean p_k| over bins of equal width of p_k of all
    images. With many classes nearly all p_k are near 0, and so is the value.

    Reference:
        [Kull et al., 2019](https://arxiv.org/abs/1910.12656)
    """
    log_probabilities, labels = check_predictions(log_probabilities, labels)
    gaps = [
        _expected_gap(*_bin_sums(confidences, is_label, bins, num_bins))
        for confidences, is_label, bins in _classes(log_probabilities, labels, num_bins, "upper")
    ]
    return float(np.mean(gaps))


def pooled_calibration_error(log_probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Unweighted mean gap of 10 bins of the probabilities of all classes together, in [0, 1].

    All n * num_classes probabilities are pooled; each is "correct" if its class is the label. Bin
    b holds [b / 10, (b + 1) / 10), and the last one 1, too. The gap of a bin with few probabilities
    counts as much as any other, so the value is not comparable with an expected calibration error,
    although results of Noisy Student on CIFAR-10 were published with it under that name. There an
    empty bin makes the value NaN; here the mean is that of the other bins.
    """
    log_probabilities, labels = check_predictions(log_probabilities, labels)
    counts, confidence_sums, num_correct = sum(
        _bin_sums(confidences, is_label, bins, POOLED_BINS)
        for confidences, is_label, bins in _classes(log_probabilities, labels, POOLED_BINS, "lower")
    )
    is_used = counts > 0
    gaps = np.abs(num_correct - confidence_sums)[is_used] / counts[is_used]
    return float(np.mean(gaps))


def calibration_metrics(log_probabilities: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """Computes all calibration metrics.

    Returns:
        dict with `ece`, `mce`, `adaptive_ece` and `classwise_ece` (15 bins), `ece_pooled10` (see
        `pooled_calibration_error`), `nll` in nats (infinite if a label has the probability 0) and
        `brier`.
    """
    log_probabilities, labels = check_predictions(log_probabilities, labels)
    return {
        "ece": metrics.expected_calibration_error(log_probabilities, labels),
        "mce": maximum_calibration_error(log_probabilities, labels),
        "adaptive_ece": adaptive_calibration_error(log_probabilities, labels),
        "classwise_ece": classwise_calibration_error(log_probabilities, labels),
        "ece_pooled10": pooled_calibration_error(log_probabilities, labels),
        "nll": metrics.negative_log_likelihood(log_probabilities, labels),
        "brier": metrics.brier(log_probabilities, labels),
    }


def apply_temperature(log_probabilities: ArrayLike, temperature: float) -> np.ndarray:
    """Log-probabilities softmax(log p / T), computed in float64.

    Args:
        log_probabilities: float array of shape (n, num_classes). Rows need not be normalized: an
            added constant changes nothing, so logits have the same result.
        temperature: float above 0; above 1 it lowers the top-1 confidences.

    Returns:
        float64 array of shape (n, num_classes).

    Raises:
        ValueError: another shape or temperature, NaN, or rows without a probability above 0.
    """
    if not 0 < temperature < np.inf:
        raise ValueError(f"temperature={temperature}: expected a finite number above 0.")
    scaled = np.asarray(log_probabilities, np.float64) / temperature
    if scaled.ndim != 2:
        raise ValueError(f"log_probabilities of shape {scaled.shape}: expected (n, num_classes).")
    normalizers = scipy.special.logsumexp(scaled, axis=1, keepdims=True)
    if not np.isfinite(normalizers).all():
        row = np.flatnonzero(~np.isfinite(normalizers))[0]
        raise ValueError(f"row {row} of log_probabilities: expected finite numbers or -inf.")
    return scaled - normalizers


def fit_temperature(log_probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Finds the temperature T of softmax(log p / T) that is most probable for these labels.

    It minimises the negative log-likelihood of all images plus (log T / `PRIOR_DEVIATION`)^2 / 2, a
    normal prior of log T around T = 1. Without it, T of images without an error would be 0, and all
    probabilities 1, as every regression on separable classes. Few images without an error say
    little about T: it stays near 1. With 200 errors it changes by less than 1.5 % if it is between
    0.5 and 2, a small part of its standard error.

    Args:
        log_probabilities: float array of shape (n, num_classes), of images that were not trained on
            and are not those of the final test.
        labels: int array of shape (n,), the true ones.

    Returns:
        float within `TEMPERATURES`; above 1 if the confidences are too high.

    Raises:
        ValueError: see `nsk/evaluation/metrics.py`; or a label has the probability 0, since its
            likelihood is 0 at every temperature.

    References:
        [Guo et al., 2017](https://arxiv.org/abs/1706.04599), temperature scaling;
        [Gelman et al., 2008](https://arxiv.org/abs/0901.4011), weakly informative priors where
        classes are separable
    """
    log_probabilities, labels = check_predictions(log_probabilities, labels)
    # A softmax does not change when the largest logarithm is subtracted; then no exponential is
    # above 1.
    shifted = log_probabilities - log_probabilities.max(axis=1, keepdims=True)
    of_labels = shifted[np.arange(len(labels)), labels]
    if np.isneginf(of_labels).any():
        row = np.flatnonzero(np.isneginf(of_labels))[0]
        raise ValueError(f"row {row}: the label has probability 0; expected a higher one.")
    exponentials = np.empty_like(shifted)

    def loss(log_temperature):
        factor = np.exp(-log_temperature)
        np.exp(np.multiply(shifted, factor, out=exponentials), out=exponentials)
        likelihood = np.sum(np.log(exponentials.sum(axis=1)) - of_labels * factor)
        return float(likelihood + (log_temperature / PRIOR_DEVIATION) ** 2 / 2)

    minimum = scipy.optimize.minimize_scalar(
        loss, bounds=np.log(TEMPERATURES), method="bounded", options={"xatol": 1e-6}
    )
    return float(np.exp(minimum.x))


def _top1(log_probabilities, labels):
    """(confidences float64 (n,), whether the most probable class is the label, bool (n,))."""
    return np.exp(log_probabilities.max(axis=1)), log_probabilities.argmax(axis=1) == labels


def _classes(log_probabilities, labels, num_bins, closed):
    """For each class: its probabilities, whether it is the label, and the bins; arrays (n,)."""
    for index in range(log_probabilities.shape[1]):
        confidences = np.exp(log_probabilities[:, index])
        yield confidences, labels == index, confidence_bins(confidences, num_bins, closed)


def _equal_mass_bins(confidences, num_bins):
    """Bins of equally many images, see `adaptive_calibration_error`; int array (n,)."""
    if num_bins < 1:
        raise ValueError(f"num_bins={num_bins}: expected 1 or more.")
    # Rank of the last image of each bin but the last one.
    last = (np.arange(1, num_bins) * len(confidences) + num_bins - 1) // num_bins - 1
    upper_edges = np.sort(confidences)[last]
    return np.searchsorted(upper_edges, confidences, side="left")


def _bin_sums(confidences, is_correct, bins, num_bins):
    """Rows (count, sum of confidences, number of correct ones) of each bin, (3, num_bins)."""
    return np.stack(
        [
            np.bincount(bins, weights=weights, minlength=num_bins)
            for weights in (None, confidences, is_correct)
        ]
    )


def _expected_gap(counts, confidence_sums, num_correct):
    """sum_b n_b / n |accuracy_b - confidence_b|, without a division by the size of a bin."""
    return float(np.abs(num_correct - confidence_sums).sum() / counts.sum())
