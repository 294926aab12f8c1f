"""Relative errors by hand, flips against plain loops."""

import math

import numpy as np
import pytest
import scipy.stats

from nsk.evaluation import alexnet, robustness
from nsk.evaluation.robustness import (
    BENCHMARK,
)

# AlexNet's mean errors, as other implementations list them.
ALEXNET_MEANS = [
    *(0.886428, 0.894468, 0.922640, 0.819880, 0.826268, 0.785948, 0.798360, 0.866816, 0.826572),
    *(0.819324, 0.564592, 0.853204, 0.646056, 0.717840, 0.606500),
]


def test_constants_of_alexnet():
    assert len(alexnet.CORRUPTION_ERRORS) == 19 and len(BENCHMARK) == 15
    assert not set(BENCHMARK) & {"speckle_noise", "gaussian_blur", "spatter", "saturate"}
    means = [np.mean(alexnet.CORRUPTION_ERRORS[name]) for name in BENCHMARK]
    np.testing.assert_allclose(means, ALEXNET_MEANS, atol=1e-9)
    # They are errors of 50,000 images.
    errors = np.array(list(alexnet.CORRUPTION_ERRORS.values())) * 50_000
    np.testing.assert_allclose(errors, errors.round(), atol=1e-6)
    assert len(alexnet.FLIP_PROBABILITIES) == 10


def test_alexnet_is_100():
    relative = robustness.relative_corruption_error(
        alexnet.CORRUPTION_ERRORS,
        alexnet.CLEAN_ERROR,
        alexnet.CORRUPTION_ERRORS,
        alexnet.CLEAN_ERROR,
    )
    plain = robustness.corruption_error(alexnet.CORRUPTION_ERRORS, alexnet.CORRUPTION_ERRORS)
    flips = robustness.mean_flip_rate(alexnet.FLIP_PROBABILITIES, alexnet.FLIP_PROBABILITIES)
    for found in (relative, plain, flips):
        assert found.mean == pytest.approx(100) and found.undefined == []
        assert set(found.percent.values()) == {100.0}
    assert tuple(plain.percent) == BENCHMARK
    assert plain.mean_numerator == pytest.approx(np.mean(ALEXNET_MEANS))
    everything = robustness.corruption_error(
        alexnet.CORRUPTION_ERRORS, alexnet.CORRUPTION_ERRORS, alexnet.CORRUPTION_ERRORS
    )
    assert everything.mean == 100 and len(everything.percent) == 19


ERRORS = {"fog": [0.1, 0.3], "snow": [0.2, 0.2], "saturate": [0.9, 0.9]}
BASELINE_ERRORS = {"fog": [0.4, 0.6], "snow": [0.3, 0.2], "frost": [0.5, 0.5]}


def test_corruption_errors_computed_by_hand():
    found = robustness.corruption_error(ERRORS, BASELINE_ERRORS, ["fog", "snow"])
    assert found.numerators == pytest.approx({"fog": 0.2, "snow": 0.2})
    assert found.denominators == pytest.approx({"fog": 0.5, "snow": 0.25})
    # 0.4 / 1.0 and 0.4 / 0.5.
    assert found.percent == pytest.approx({"fog": 40, "snow": 80})
    assert found.mean == pytest.approx(60)
    assert found.mean_numerator == pytest.approx(0.2)


def test_relative_corruption_errors_computed_by_hand():
    found = robustness.relative_corruption_error(
        ERRORS, 0.05, BASELINE_ERRORS, 0.2, ["fog", "snow"]
    )
    # (0.05 + 0.25) / (0.2 + 0.4) and (0.15 + 0.15) / (0.1 + 0.0).
    assert found.percent == pytest.approx({"fog": 50, "snow": 300})
    assert found.mean == pytest.approx(175)
    assert found.denominators == pytest.approx({"fog": 0.3, "snow": 0.05})
    assert found.mean_numerator == pytest.approx(0.15)


@pytest.mark.parametrize("baseline_clean_error", [0.25, 0.2495, 0.3])
def test_a_denominator_near_zero_or_below_is_undefined(baseline_clean_error):
    found = robustness.relative_corruption_error(
        ERRORS, 0.05, BASELINE_ERRORS, baseline_clean_error, ["fog", "snow"]
    )
    assert found.percent["snow"] is None and found.undefined == ["snow"]
    assert found.mean is None
    assert found.percent["fog"] == pytest.approx(100 * 0.15 / (0.5 - baseline_clean_error))
    assert found.denominators["snow"] == pytest.approx(0.25 - baseline_clean_error)
    at_once = robustness.mean_corruption_error(
        np.array([[0.1, 0.3], [0.2, 0.2]]),
        np.array([[0.4, 0.6], [0.3, 0.2]]),
        0.05,
        baseline_clean_error,
    )
    assert np.isnan(at_once)


def test_a_denominator_just_above_the_threshold_is_used():
    found = robustness.mean_flip_rate({"tilt": 0.003}, {"tilt": 0.0011})
    assert found.mean == pytest.approx(300 / 1.1)
    assert robustness.mean_flip_rate({"tilt": 0.003}, {"tilt": 0.0009}).mean is None
    assert robustness.mean_flip_rate({"tilt": 0.0}, {"tilt": 0.0}).mean is None


def test_percentages():
    found = robustness.percentages([[0.1, 0.2], [0.3, 0.4]], [0.2, 0.0])
    np.testing.assert_allclose(found, [[50, np.nan], [150, np.nan]])


@pytest.mark.parametrize(
    "errors, baseline_errors, message",
    [
        ({"fog": [0.1]}, {"snow": [0.1]}, "fog missing"),
        ({"snow": [0.1]}, {"fog": [0.1]}, "fog missing"),
        ({"fog": [0.1, 0.2]}, {"fog": [0.1]}, "severities"),
        ({"fog": []}, {"fog": []}, "severities"),
        ({"fog": 0.1}, {"fog": 0.1}, "severities"),
        ({"fog": [1.1]}, {"fog": [0.1]}, "fog: .*expected values in"),
        ({"fog": [0.1]}, {"fog": [-0.1]}, "fog: .*expected values in"),
        ({"fog": [math.nan]}, {"fog": [0.1]}, "fog: .*expected values in"),
    ],
)
def test_invalid_errors_are_rejected(errors, baseline_errors, message):
    with pytest.raises(ValueError, match=message):
        robustness.corruption_error(errors, baseline_errors, ["fog"])


def test_other_invalid_values_are_rejected():
    with pytest.raises(ValueError, match=r"shot_noise.*jpeg_compression missing"):
        robustness.corruption_error({"gaussian_noise": [0.5]}, alexnet.CORRUPTION_ERRORS)
    with pytest.raises(ValueError, match="at least one"):
        robustness.corruption_error(ERRORS, ERRORS, [])
    for clean_error, baseline_clean_error in [(1.5, 0.1), (0.1, math.nan)]:
        with pytest.raises(ValueError, match=r"clean_error: .*expected values in"):
            robustness.relative_corruption_error(
                ERRORS, clean_error, ERRORS, baseline_clean_error, ["fog"]
            )
    with pytest.raises(ValueError, match="tilt missing"):
        robustness.mean_flip_rate({"tilt": 0.1}, {"scale": 0.1})
    with pytest.raises(ValueError, match=r"tilt: .*expected values in"):
        robustness.mean_flip_rate({"tilt": 1.1}, {"tilt": 0.1})
    with pytest.raises(ValueError, match=r"tilt: .*expected values in"):
        robustness.mean_top5_rate({"tilt": 1.1}, {"tilt": 15.1})


def flips_of(predictions, is_noise):
    """Flip probability of one image's frames, frame by frame."""
    flips, compared = [], predictions[0]
    for predicted in predictions[1:]:
        flips.append(predicted != compared)
        if not is_noise:
            compared = predicted
    return np.mean(flips)


@pytest.mark.parametrize("num_frames", [2, 21])
@pytest.mark.parametrize("is_noise", [False, True])
def test_flips_equal_their_definition(num_frames, is_noise):
    predictions = np.random.default_rng(0).integers(0, 3, (40, num_frames))
    expected = [flips_of(row, is_noise) for row in predictions.tolist()]
    np.testing.assert_allclose(robustness.flip_shares(predictions, is_noise), expected)
    found = robustness.flip_probability(predictions, is_noise)
    assert found == pytest.approx(np.mean(expected)) and type(found) is float
    if is_noise:
        assert robustness.flip_probability_against_first(predictions) == found


def test_flips_computed_by_hand():
    predictions = [[1, 2, 2, 2], [0, 0, 0, 0]]
    assert robustness.flip_probability(predictions, is_noise=False) == pytest.approx(1 / 6)
    assert robustness.flip_probability(predictions, is_noise=True) == pytest.approx(3 / 6)
    assert robustness.flip_probability_against_first(predictions) == pytest.approx(3 / 6)


def distances_of(scores, is_noise):
    """Mean top-5 distance of one image's frames from the scores of all classes, by ranks."""

    def distance(earlier, later):
        total = 0
        for label in range(len(earlier)):
            if earlier[label] <= 5:
                total += abs(min(earlier[label] - 1, 5) - min(later[label] - 1, 5))
        return total

    ranks = [scipy.stats.rankdata(-row, method="ordinal") for row in scores]
    return np.mean(
        [distance(ranks[0 if is_noise else t - 1], ranks[t]) for t in range(1, len(ranks))]
    )


@pytest.mark.parametrize("num_classes", [5, 6, 10, 30])
@pytest.mark.parametrize("is_noise", [False, True])
def test_top5_distances_equal_their_definition(num_classes, is_noise):
    rng = np.random.default_rng(1)
    scores = rng.normal(0, 1, (15, 1, num_classes)) + rng.normal(0, 0.5, (15, 8, num_classes))
    scores[:5] = scores[:5].round()  # Many ties.
    expected = [distances_of(rows, is_noise) for rows in scores]
    classes = np.argsort(-scores, axis=-1, kind="stable")
    for k in (5, num_classes):
        found = robustness.top5_distances(classes[..., :k], is_noise)
        np.testing.assert_allclose(found, expected)
    assert robustness.top5_distance(classes, is_noise) == pytest.approx(np.mean(expected))
    assert np.mean(expected) > 0


def test_top5_distances_computed_by_hand():
    same, swapped = [0, 1, 2, 3, 4], [1, 0, 2, 3, 4]
    other, shifted = [5, 6, 7, 8, 9], [9, 0, 1, 2, 3]
    # All ranks of `shifted` are one lower, and class 4 counts as the sixth.
    for later, expected in [(same, 0), (swapped, 2), (other, 15), (shifted, 5)]:
        assert robustness.top5_distance([[same, later]], is_noise=False) == expected
    assert robustness.top5_distance([[same, other, other]], is_noise=False) == 7.5
    assert robustness.top5_distance([[same, other, other]], is_noise=True) == 15
    found = robustness.mean_top5_rate({"tilt": 3, "scale": 1}, {"tilt": 6, "scale": 4})
    assert found.percent == {"tilt": 50, "scale": 25} and found.mean == 37.5


@pytest.mark.parametrize(
    "predictions", [[0, 1], [[0]], np.zeros((0, 3), int), [[0.0, 1.0]], np.zeros((2, 3, 5), int)]
)
def test_invalid_predictions_have_no_flips(predictions):
    with pytest.raises(ValueError, match=r"expected integers of shape \(n, frames\)"):
        robustness.flip_shares(predictions, is_noise=False)


def test_invalid_classes_have_no_distance():
    with pytest.raises(ValueError, match="frames, k"):
        robustness.top5_distances([[0, 1]], is_noise=False)
    with pytest.raises(ValueError, match="4 classes: expected the 5"):
        robustness.top5_distances(np.zeros((2, 3, 4), int), is_noise=False)
