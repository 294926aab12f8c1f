"""Errors on corrupted images and flips on perturbed ones; pure NumPy.

A corruption error is a model's error relative to that of a baseline on the same images, in percent:
100 is as good as the baseline, and less is better. On ImageNet the baseline is AlexNet
(`nsk.evaluation.alexnet`); on other data it is another model, named with the result.

A ratio whose denominator is below `MIN_DENOMINATOR` is undefined (None, or NaN in arrays), and so
are means that contain it. The denominator is a mean error, an increase of the mean error or a flip
probability of the baseline. Near zero the ratio says more about the baseline's chance errors than
about the model: 0.001 is ten of 10,000 images. A negative denominator, of a baseline that is better
on corrupted images than on clean ones, would reverse the order of models.

Reference:
    [Hendrycks and Dietterich, 2019](https://arxiv.org/abs/1903.12261)
"""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import ArrayLike

from nsk.evaluation.corruptions import BENCHMARK

MIN_DENOMINATOR = 0.001
TOP_CLASSES = 5


@dataclasses.dataclass(frozen=True)
class RelativeErrors:
    """A model's errors relative to a baseline's.

    Attributes:
        mean: mean of `percent`, the value to be published (mCE, relative mCE, mFR or mT5D). None
            if one of them is undefined.
        percent: dict from names to 100 * numerator / denominator. None where it is undefined.
        numerators: dict from names to the model's errors, means over severities.
        denominators: dict from names to those of the baseline.
        mean_numerator: mean of `numerators`; of a corruption error it is the plain mean error.
    """

    mean: float | None
    percent: dict[str, float | None]
    numerators: dict[str, float]
    denominators: dict[str, float]
    mean_numerator: float

    @property
    def undefined(self) -> list[str]:
        """The names whose denominator is below `MIN_DENOMINATOR`."""
        return [name for name, percent in self.percent.items() if percent is None]


def corruption_error(
    errors: Mapping[str, ArrayLike],
    baseline_errors: Mapping[str, ArrayLike],
    corruptions: Iterable[str] = BENCHMARK,
) -> RelativeErrors:
    """The corruption errors CE_c = sum_s E_{s,c} / sum_s E^base_{s,c} and their mean, the mCE.

    Args:
        errors: dict from corruptions to the model's errors in [0, 1], arrays (severities,). Names
            that are not in `corruptions` are left out.
        baseline_errors: the same of the baseline, at the same severities.
        corruptions: names of the corruptions.

    Returns:
        `RelativeErrors`; numerators and denominators are the sums divided by the number of
        severities.

    Raises:
        ValueError: a corruption is missing, the severities differ, or an error is not in [0, 1].
    """
    return relative_corruption_error(errors, 0.0, baseline_errors, 0.0, corruptions)


def relative_corruption_error(
    errors: Mapping[str, ArrayLike],
    clean_error: float,
    baseline_errors: Mapping[str, ArrayLike],
    baseline_clean_error: float,
    corruptions: Iterable[str] = BENCHMARK,
) -> RelativeErrors:
    """Relative corruption errors: the error on clean images is subtracted from each error first.

    Args:
        errors: see `corruption_error`.
        clean_error: float in [0, 1], the model's error on the clean images.
        baseline_errors: see `corruption_error`.
        baseline_clean_error: float in [0, 1], that of the baseline.
        corruptions: names of the corruptions.

    Returns:
        `RelativeErrors`; numerators and denominators are increases of the mean error. That of a
        robust baseline may be near zero: show them with the result.

    Raises:
        ValueError: see `corruption_error`.
    """
    names = list(corruptions)
    chosen, baseline = _choose(errors, names), _choose(baseline_errors, names)
    for name in names:
        shapes = chosen[name].shape, baseline[name].shape
        if shapes[0] != shapes[1] or len(shapes[0]) != 1 or not chosen[name].size:
            raise ValueError(
                f"errors of {name} of shape {shapes[0]} and {shapes[1]} of the baseline: expected "
                "the same shape (severities,) with at least one severity."
            )
    _check_range({"clean_error": clean_error, "baseline_clean_error": baseline_clean_error}, 1)
    _check_range(chosen, 1)
    _check_range(baseline, 1)
    return _relative(
        {name: chosen[name].mean() - clean_error for name in names},
        {name: baseline[name].mean() - baseline_clean_error for name in names},
    )


def mean_corruption_error(
    errors: np.ndarray,
    baseline_errors: np.ndarray,
    clean_error: ArrayLike = 0.0,
    baseline_clean_error: ArrayLike = 0.0,
) -> np.ndarray:
    """The mCE of many samples at once, for `bootstrap_interval`.

    Args:
        errors: float array (..., corruptions, severities).
        baseline_errors: float array of the same shape, or of one that broadcasts to it, such as
            that of constants.
        clean_error: float array (...); with both clean errors the result is the relative mCE.
        baseline_clean_error: float array (...).

    Returns:
        float64 array (...), in percent; NaN where a corruption's denominator is below
        `MIN_DENOMINATOR`.
    """
    numerators = np.mean(errors, axis=-1) - np.asarray(clean_error)[..., np.newaxis]
    denominators = np.mean(baseline_errors, axis=-1) - np.asarray(baseline_clean_error)[..., None]
    return percentages(numerators, denominators).mean(axis=-1)


def percentages(numerators: ArrayLike, denominators: ArrayLike) -> np.ndarray:
    """100 * numerators / denominators, NaN where a denominator is below `MIN_DENOMINATOR`.

    Returns:
        float64 array of the shape to which both broadcast.
    """
    numerators, denominators = np.broadcast_arrays(
        np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    )
    is_defined = denominators >= MIN_DENOMINATOR
    return 100 * np.divide(
        numerators, denominators, out=np.full(numerators.shape, np.nan), where=is_defined
    )


def flip_shares(predictions: ArrayLike, is_noise: bool) -> np.ndarray:
    """Share of frames of each image whose prediction differs from that of an earlier frame.

    Args:
        predictions: int array (n, frames), the most probable classes, two frames or more.
        is_noise: the frames of a noise perturbation are independent of each other, so all are
            compared with the first one (index 0); each other frame with the one before it.

    Returns:
        float64 array (n,) in [0, 1]: flips divided by frames - 1.

    Raises:
        ValueError: another shape or type.
    """
    return _earlier_and_later(
        predictions, is_noise, 2, lambda earlier, later: earlier != later
    ).mean(axis=1)


def flip_probability(predictions: ArrayLike, is_noise: bool) -> float:
    """The flip probability FP in [0, 1]: mean over images of `flip_shares`."""
    return float(flip_shares(predictions, is_noise).mean())


def flip_probability_against_first(predictions: ArrayLike) -> float:
    """A variant of the flip probability: every perturbation is compared with the first frame.

    Results of Noisy Student on CIFAR-10-P were published with it. It is not comparable with
    `flip_probability`, unless the perturbation is a noise.
    """
    return flip_probability(predictions, True)


def mean_flip_rate(
    flip_probabilities: Mapping[str, float], baseline: Mapping[str, float]
) -> RelativeErrors:
    """The flip rates FP_p / FP^base_p and their mean, the mFR.

    Args:
        flip_probabilities: dict from perturbations to the model's flip probabilities.
        baseline: those of the baseline; further perturbations are left out.

    Returns:
        `RelativeErrors`.

    Raises:
        ValueError: a perturbation is missing, or a probability is not in [0, 1].
    """
    return _relative_values(flip_probabilities, baseline, 1)


def top5_distances(classes: ArrayLike, is_noise: bool) -> np.ndarray:
    """Mean distance of the five most probable classes of each image's frames to an earlier frame's.

    The distance of two frames is sum_{i=1..5} |min(i, 6) - min(sigma(i), 6)|, where sigma(i) is the
    rank in the later frame of the class with rank i in the earlier one: 0 for the same five classes
    in the same order, and 15 for five other classes.

    Args:
        classes: int array (n, frames, k), the k >= 5 most probable classes of each frame, the most
            probable one first. Ranks are ordinal: of equally probable classes one has to be first.
        is_noise: which frames are compared, see `flip_shares`.

    Returns:
        float64 array (n,) in [0, 15].

    Raises:
        ValueError: another shape or type.
    """
    return _earlier_and_later(classes, is_noise, 3, _distances).mean(axis=1)


def top5_distance(classes: ArrayLike, is_noise: bool) -> float:
    """The top-5 distance T5D in [0, 15]: mean over images of `top5_distances`."""
    return float(top5_distances(classes, is_noise).mean())


def mean_top5_rate(distances: Mapping[str, float], baseline: Mapping[str, float]) -> RelativeErrors:
    """Top-5 distances relative to a baseline's, and their mean, the mT5D; see `mean_flip_rate`."""
    return _relative_values(distances, baseline, 15)


def _choose(values, names):
    """The arrays of some names."""
    if not names:
        raise ValueError("no names: expected at least one corruption or perturbation.")
    missing = [name for name in names if name not in values]
    if missing:
        raise ValueError(f"{', '.join(missing)} missing: expected values of {', '.join(names)}.")
    return {name: np.asarray(values[name], np.float64) for name in names}


def _check_range(values, maximum):
    for name, value in values.items():
        if not np.all((np.asarray(value) >= 0) & (np.asarray(value) <= maximum)):  # NaN is wrong.
            raise ValueError(f"{name}: {value}: expected values in [0, {maximum}].")


def _relative_values(values, baseline, maximum):
    """`RelativeErrors` of one value in [0, maximum] for each name."""
    names = list(values)
    values, baseline = _choose(values, names), _choose(baseline, names)
    _check_range(values, maximum)
    _check_range(baseline, maximum)
    return _relative(values, baseline)


def _relative(numerators, denominators):
    """`RelativeErrors` of dicts with the same names in the same order."""
    percent = percentages(list(numerators.values()), list(denominators.values()))
    return RelativeErrors(
        mean=None if np.isnan(percent).any() else float(percent.mean()),
        percent={
            name: None if np.isnan(value) else float(value)
            for name, value in zip(numerators, percent, strict=True)
        },
        numerators={name: float(value) for name, value in numerators.items()},
        denominators={name: float(value) for name, value in denominators.items()},
        mean_numerator=float(np.mean(list(numerators.values()))),
    )


def _earlier_and_later(frames, is_noise, num_axes, compare):
    """What a function of (earlier, later) frames returns, (n, frames - 1); checks the frames."""
    frames = np.asarray(frames)
    has_shape = frames.ndim == num_axes and len(frames) > 0 and frames.shape[1] > 1
    if not has_shape or not np.issubdtype(frames.dtype, np.integer):
        raise ValueError(
            f"predictions of shape {frames.shape} and type {frames.dtype}: expected integers of "
            f"shape (n, frames{', k' if num_axes == 3 else ''}), at least one image and two frames."
        )
    return compare(frames[:, :1] if is_noise else frames[:, :-1], frames[:, 1:])


def _distances(earlier, later):
    """Top-5 distances of frames, (n, frames or 1, k) and (n, frames, k): int array (n, frames)."""
    if later.shape[-1] < TOP_CLASSES:
        raise ValueError(f"{later.shape[-1]} classes: expected the {TOP_CLASSES} most probable.")
    # A class that is not among the later five counts as the sixth.
    distances = np.full(later.shape[:-1], sum(range(1, TOP_CLASSES + 1)))
    for rank in range(TOP_CLASSES):
        for later_rank in range(TOP_CLASSES):
            is_same = earlier[..., rank] == later[..., later_rank]
            distances += is_same * (abs(rank - later_rank) - (TOP_CLASSES - rank))
    return distances
