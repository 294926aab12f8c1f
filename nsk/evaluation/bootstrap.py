"""Intervals of means over images, by bootstrap, and of differences between models; pure NumPy."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

from nsk.evaluation.metrics import paired_standard_error

NUM_RESAMPLES = 1000


CONFIDENCE_LEVEL = 0.95


# Resamples are drawn in chunks of about this many numbers.
CHUNK_SIZE = 2**22


def resampled_means(
    values: ArrayLike, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> np.ndarray:
    """Means over images that are drawn with replacement.

    In every resample the same images are drawn for all conditions, and for every call with the same
    number of images and seed: differences between conditions and between models are paired.

    Args:
        values: bool or float array (n, conditions): whether each image is misclassified, its share
            of flips and so on.
        num_resamples: int, at least 1.
        seed: int in [0, 2^64).

    Returns:
        float64 array (num_resamples, conditions).

    Raises:
        ValueError: another shape, or values that are not finite.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or not len(values) or not np.isfinite(values).all():
        raise ValueError(
            f"values of shape {values.shape}: expected finite numbers of shape (n, conditions), at "
            "least one image."
        )
    if num_resamples < 1:
        raise ValueError(f"num_resamples={num_resamples}: expected 1 or more.")
    step = max(1, CHUNK_SIZE // len(values))
    return np.concatenate(
        [
            _count_draws(range(start, min(start + step, num_resamples)), len(values), seed) @ values
            for start in range(0, num_resamples, step)
        ]
    ) / len(values)


def bootstrap_interval(
    values: ArrayLike,
    statistic: Callable[[np.ndarray], np.ndarray] | None = None,
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    level: float = CONFIDENCE_LEVEL,
) -> tuple[float, float] | tuple[None, None]:
    """Percentile bootstrap interval of a statistic of the images' means.

    The interval covers the chance of which images were tested; not that of another training.

    Args:
        values: bool or float array (n,) or (n, conditions), see `resampled_means`.
        statistic: function of the means, float64 (resamples, conditions), that returns an array
            (resamples,); None: their mean over conditions. An mCE relative to another model has the
            model's and the baseline's misclassified images side by side as its conditions, and
            applies `mean_corruption_error` to both halves.
        num_resamples: int.
        seed: int.
        level: float in (0, 1).

    Returns:
        (lower, upper), or (None, None) if the statistic is undefined (NaN) in a resample.

    Raises:
        ValueError: see `resampled_means`; or the statistic has another shape.

    Reference:
        [Efron, 1979](https://doi.org/10.1214/aos/1176344552)
    """
    if not 0 < level < 1:
        raise ValueError(f"level={level}: expected a number between 0 and 1.")
    values = np.asarray(values)
    means = resampled_means(
        values[:, np.newaxis] if values.ndim == 1 else values, num_resamples, seed
    )
    statistics = np.asarray(means.mean(axis=1) if statistic is None else statistic(means))
    if statistics.shape != (num_resamples,):
        raise ValueError(
            f"statistic returned the shape {statistics.shape}: expected {(num_resamples,)}."
        )
    if np.isnan(statistics).any():
        return None, None
    lower, upper = np.quantile(statistics, [(1 - level) / 2, (1 + level) / 2])
    return float(lower), float(upper)


class Difference(NamedTuple):
    """Difference of two models' accuracies on the same images.

    Attributes:
        mean: accuracy of the first model minus that of the second.
        standard_error: see `paired_standard_error`; 0 if both are correct on the same images.
        lower, upper: 95 % interval of the difference.
    """

    mean: float
    standard_error: float
    lower: float
    upper: float


def paired_difference(correct_a: ArrayLike, correct_b: ArrayLike) -> Difference:
    """Compares two models on the same images, with a normal approximation.

    Args:
        correct_a: bool array (n,), whether the first model classifies each image correctly.
        correct_b: the same for the second model.

    Returns:
        `Difference`. With few images on which the models differ, about ten, the interval is
        inexact.

    Raises:
        ValueError: the shapes differ.
    """
    standard_error = paired_standard_error(correct_a, correct_b)
    mean = float(np.mean(correct_a) - np.mean(correct_b))
    margin = float(scipy.stats.norm.ppf((1 + CONFIDENCE_LEVEL) / 2)) * standard_error
    return Difference(mean, standard_error, mean - margin, mean + margin)


def _count_draws(resamples, num_images, seed):
    """How often each image is drawn, float64 (resamples, images).

    Each resample has its own generator, so it does not depend on the others.
    """
    counts = np.empty((len(resamples), num_images))
    for row, resample in enumerate(resamples):
        generator = np.random.Generator(np.random.Philox(key=np.array([seed, resample], np.uint64)))
        drawn = generator.integers(0, num_images, num_images)
        counts[row] = np.bincount(drawn, minlength=num_images)
    return counts
