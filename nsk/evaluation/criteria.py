"""Criteria by which models are compared on the same images; pure NumPy.

A criterion is `accuracy`, `balanced_accuracy` (mean recall over classes) or `nll` (negative
log-likelihood). Each is a weighted sum of scores of single images, of which larger ones are better:
whether the image is classified correctly, or its log-likelihood. So models are compared image by
image, which removes the variance of images that are easy or hard for both.
"""

import numpy as np
from numpy.typing import ArrayLike

from nsk.evaluation.metrics import paired_standard_error

# Names in text, with the article.
CRITERIA = {
    "accuracy": "an accuracy",
    "balanced_accuracy": "a balanced accuracy",
    "nll": "an NLL",
}


def score(criterion: str, scores: ArrayLike, truth: ArrayLike) -> float:
    """A model's score: (balanced) accuracy in [0, 1], or the mean log-likelihood; larger is better.

    Args:
        criterion: one of `CRITERIA`.
        scores: bool array (n,), whether each image is classified correctly; for `nll` float array
            (n,), the logarithm of the probability of its class.
        truth: int array (n,), the true classes.

    Raises:
        ValueError: unknown criterion, or different shapes.
    """
    scores, truth = _checked(criterion, scores, truth)
    if criterion == "balanced_accuracy":
        return float(np.sum(_weights(truth) * scores))
    return float(np.mean(scores))


def standard_error(
    criterion: str, scores_a: ArrayLike, scores_b: ArrayLike, truth: ArrayLike
) -> float:
    """Standard error of the difference of two models' scores on the same images.

    - accuracy: see `metrics.paired_standard_error`.
    - nll: the standard deviation of the images' differences, divided by sqrt(n), to which that of a
      bootstrap over images converges.
    - balanced_accuracy: sqrt(sum_i w_i^2 d_i^2) with the weights w_i = 1 / (classes x images of the
      class) and the differences d_i, the standard error under the hypothesis of equal models
      (that of McNemar's test, for one class). Deviations from each class's mean would be 0 for a
      class of a single image, and so would those of a bootstrap within classes.

    Args:
        criterion: one of `CRITERIA`.
        scores_a: scores of the first model, see `score`.
        scores_b: scores of the second model.
        truth: int array (n,), the true classes.

    Raises:
        ValueError: unknown criterion, or different shapes.

    Reference:
        [McNemar, 1947](https://doi.org/10.1007/BF02295996)
    """
    scores_a, truth = _checked(criterion, scores_a, truth)
    scores_b, truth = _checked(criterion, scores_b, truth)
    if criterion == "accuracy":
        return paired_standard_error(scores_a, scores_b)
    differences = scores_a.astype(np.float64) - scores_b
    if criterion == "balanced_accuracy":
        return float(np.sqrt(np.sum((_weights(truth) * differences) ** 2)))
    return float(np.std(differences) / np.sqrt(len(differences)))


def format_score(criterion: str, value: float) -> str:
    """A model's score as text: "93.1 %", or for `nll` the negative log-likelihood, "0.231"."""
    return f"{-value:.3f}" if criterion == "nll" else f"{100 * value:.1f} %"


def _weights(truth):
    """Weights that make a sum over images the mean over classes of the classes' means."""
    _, numbers, counts = np.unique(truth, return_inverse=True, return_counts=True)
    return 1 / (len(counts) * counts[numbers])


def _checked(criterion, scores, truth):
    if criterion not in CRITERIA:
        raise ValueError(f"criterion={criterion!r}: expected one of {', '.join(CRITERIA)}.")
    scores, truth = np.asarray(scores), np.asarray(truth)
    if scores.ndim != 1 or scores.shape != truth.shape or not len(scores):
        raise ValueError(
            f"scores {scores.shape} and truth {truth.shape}: expected two arrays of the same shape "
            "(n,) with at least one image."
        )
    return scores, truth
