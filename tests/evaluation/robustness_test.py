"""Relative errors by hand, flips against plain loops, intervals against SciPy and formulas."""

import math

import numpy as np
import pytest
import scipy.stats

from nsk.evaluation import robustness
from nsk.evaluation.robustness import (
    ALEXNET_CLEAN_ERROR,
    ALEXNET_ERRORS,
    ALEXNET_FLIP_PROBABILITIES,
    BENCHMARK,
    bootstrap_interval,
)

# AlexNet's mean errors, as other implementations list them.
ALEXNET_MEANS = [
    *(0.886428, 0.894468, 0.922640, 0.819880, 0.826268, 0.785948, 0.798360, 0.866816, 0.826572),
    *(0.819324, 0.564592, 0.853204, 0.646056, 0.717840, 0.606500),
]


def test_constants_of_alexnet():
    assert len(ALEXNET_ERRORS) == 19 and len(BENCHMARK) == 15
    assert not set(BENCHMARK) & {"speckle_noise", "gaussian_blur", "spatter", "saturate"}
    means = [np.mean(ALEXNET_ERRORS[name]) for name in BENCHMARK]
    np.testing.assert_allclose(means, ALEXNET_MEANS, atol=1e-9)
    # They are errors of 50,000 images.
    errors = np.array(list(ALEXNET_ERRORS.values())) * 50_000
    np.testing.assert_allclose(errors, errors.round(), atol=1e-6)
    assert len(ALEXNET_FLIP_PROBABILITIES) == 10


def test_alexnet_is_100():
    relative = robustness.relative_corruption_error(
        ALEXNET_ERRORS, ALEXNET_CLEAN_ERROR, ALEXNET_ERRORS, ALEXNET_CLEAN_ERROR
    )
    plain = robustness.corruption_error(ALEXNET_ERRORS, ALEXNET_ERRORS)
    flips = robustness.mean_flip_rate(ALEXNET_FLIP_PROBABILITIES, ALEXNET_FLIP_PROBABILITIES)
    for found in (relative, plain, flips):
        assert found.mean == pytest.approx(100) and found.undefined == []
        assert set(found.percent.values()) == {100.0}
    assert tuple(plain.percent) == BENCHMARK
    assert plain.mean_numerator == pytest.approx(np.mean(ALEXNET_MEANS))
    everything = robustness.corruption_error(ALEXNET_ERRORS, ALEXNET_ERRORS, ALEXNET_ERRORS)
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
        robustness.corruption_error({"gaussian_noise": [0.5]}, ALEXNET_ERRORS)
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


def wrong_predictions(n=400, num_conditions=6, seed=0):
    """Whether images are misclassified: hard images are hard in every condition."""
    rng = np.random.default_rng(seed)
    difficulty = rng.beta(1, 2, (n, 1))
    return rng.random((n, num_conditions)) < difficulty


def test_resampled_means_are_means_of_drawn_images():
    values = np.random.default_rng(0).normal(size=(5, 2))
    weights = robustness.resampled_means(np.eye(5), 40, seed=3) * 5
    np.testing.assert_allclose(weights.sum(axis=1), 5)
    np.testing.assert_allclose(weights, weights.round(), atol=1e-12)
    assert len(np.unique(weights, axis=0)) > 20
    found = robustness.resampled_means(values, 40, seed=3)
    np.testing.assert_allclose(found, weights @ values / 5)


def test_resamples_depend_on_the_seed_alone(monkeypatch):
    values = wrong_predictions()
    means = robustness.resampled_means(values, 50, seed=1)
    np.testing.assert_array_equal(robustness.resampled_means(values, 50, seed=1), means)
    np.testing.assert_array_equal(robustness.resampled_means(values, 20, seed=1), means[:20])
    np.testing.assert_array_equal(robustness.resampled_means(values[:, 2:3], 50, 1), means[:, 2:3])
    assert not np.array_equal(robustness.resampled_means(values, 50, seed=2), means)
    monkeypatch.setattr(robustness, "CHUNK_SIZE", 7 * len(values))
    np.testing.assert_array_equal(robustness.resampled_means(values, 50, seed=1), means)
    assert bootstrap_interval(values, seed=1) == bootstrap_interval(values, seed=1)
    assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)


def test_the_interval_of_an_error_agrees_with_its_standard_error_and_with_scipy():
    wrong = wrong_predictions()[:, 0]
    lower, upper = bootstrap_interval(wrong)
    standard_error = np.std(wrong) / math.sqrt(len(wrong))
    assert (upper - lower) / 2 == pytest.approx(1.96 * standard_error, rel=0.08)
    assert (upper + lower) / 2 == pytest.approx(wrong.mean(), abs=standard_error / 4)
    expected = scipy.stats.bootstrap(
        (wrong,), np.mean, n_resamples=1000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    np.testing.assert_allclose((lower, upper), expected, atol=standard_error / 4)
    narrow = bootstrap_interval(wrong, level=0.5)
    assert (narrow[1] - narrow[0]) / 2 == pytest.approx(0.674 * standard_error, rel=0.1)


def test_conditions_of_an_image_are_drawn_together():
    wrong = wrong_predictions()
    lower, upper = bootstrap_interval(wrong)
    of_images = np.std(wrong.mean(axis=1)) / math.sqrt(len(wrong))
    independent = np.std(wrong) / math.sqrt(wrong.size)
    assert (upper - lower) / 2 == pytest.approx(1.96 * of_images, rel=0.08)
    assert of_images > 1.2 * independent


def test_the_interval_of_a_relative_mce_with_a_paired_baseline_agrees_with_scipy():
    """The conditions: clean, two corruptions at two severities, of the model and the baseline."""
    rng = np.random.default_rng(4)
    base_rates = np.array([0.2, 0.3, 0.5, 0.4, 0.6])
    rates = np.concatenate([base_rates * 0.5, base_rates])
    wrong = rng.beta(2, 2, (500, 1)) < rates + rng.normal(0, 0.1, (500, 10))

    def relative_mce(means):
        model, baseline = means[..., :5], means[..., 5:]
        shape = (*means.shape[:-1], 2, 2)
        return robustness.mean_corruption_error(
            model[..., 1:].reshape(shape),
            baseline[..., 1:].reshape(shape),
            model[..., 0],
            baseline[..., 0],
        )

    errors = wrong.mean(axis=0)
    expected = robustness.relative_corruption_error(
        {"fog": errors[1:3], "snow": errors[3:5]},
        errors[0],
        {"fog": errors[6:8], "snow": errors[8:]},
        errors[5],
        ["fog", "snow"],
    )
    assert relative_mce(errors) == pytest.approx(expected.mean)
    lower, upper = bootstrap_interval(wrong, relative_mce)
    reference = scipy.stats.bootstrap(
        tuple(wrong.T),
        lambda *columns, axis: relative_mce(
            np.stack([c.mean(axis=axis) for c in columns], axis=-1)
        ),
        paired=True,
        n_resamples=1000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    width = reference.high - reference.low
    np.testing.assert_allclose((lower, upper), reference, atol=0.1 * width)
    assert lower < expected.mean < upper


def test_the_mce_relative_to_constants():
    errors = np.array(list(ALEXNET_ERRORS.values()))
    found = robustness.mean_corruption_error(np.stack([errors, errors / 2]), errors)
    np.testing.assert_allclose(found, [100, 50])
    clean = [ALEXNET_CLEAN_ERROR, ALEXNET_CLEAN_ERROR / 2]
    found = robustness.mean_corruption_error(
        np.stack([errors, errors / 2]), errors, clean, ALEXNET_CLEAN_ERROR
    )
    np.testing.assert_allclose(found, [100, 50])


def test_an_undefined_statistic_has_no_interval():
    wrong = np.array([[True, False], [False, False]])
    undefined = bootstrap_interval(
        wrong, lambda means: robustness.percentages(means[:, 0], means[:, 1])
    )
    assert undefined == (None, None)


def test_flip_probabilities_have_an_interval():
    predictions = np.random.default_rng(0).integers(0, 4, (300, 11))
    shares = robustness.flip_shares(predictions, is_noise=False)
    lower, upper = bootstrap_interval(shares)
    assert lower < shares.mean() < upper
    margin = 1.96 * np.std(shares) / math.sqrt(300)
    assert (upper - lower) / 2 == pytest.approx(margin, rel=0.1)


def test_paired_differences():
    # 100 images: both are correct on 60, only a on 10, only b on 6, neither on 24.
    correct_a = np.array([1] * 60 + [1] * 10 + [0] * 6 + [0] * 24, bool)
    correct_b = np.array([1] * 60 + [0] * 10 + [1] * 6 + [0] * 24, bool)
    found = robustness.paired_difference(correct_a, correct_b)
    assert found.mean == pytest.approx(0.04)
    assert found.standard_error == pytest.approx(math.sqrt((0.16 - 0.04**2) / 100))
    expected = scipy.stats.norm(found.mean, found.standard_error).interval(0.95)
    assert (found.lower, found.upper) == pytest.approx(expected)
    # The bootstrap of the same differences.
    differences = correct_a.astype(float) - correct_b
    interval = bootstrap_interval(differences)
    np.testing.assert_allclose(interval, expected, atol=found.standard_error / 4)
    assert robustness.paired_difference(correct_b, correct_a).mean == -found.mean
    assert robustness.paired_difference(correct_a, correct_a) == (0, 0, 0, 0)
    with pytest.raises(ValueError, match="same shape"):
        robustness.paired_difference([True], [True, False])


def test_95_percent_of_the_intervals_contain_the_true_error():
    rng = np.random.default_rng(0)
    contained = []
    for seed in range(200):
        lower, upper = bootstrap_interval(rng.random(200) < 0.3, num_resamples=200, seed=seed)
        contained.append(lower <= 0.3 <= upper)
    assert 0.90 <= np.mean(contained) <= 0.99


def test_invalid_arguments_of_the_bootstrap_are_rejected():
    wrong = wrong_predictions(n=10)
    for values in ([[math.nan]], np.zeros((0, 2)), np.zeros((2, 2, 2))):
        with pytest.raises(ValueError, match="values of shape"):
            bootstrap_interval(values)
    with pytest.raises(ValueError, match="num_resamples=0"):
        bootstrap_interval(wrong, num_resamples=0)
    for level in (0, 1, 95):
        with pytest.raises(ValueError, match=f"level={level}"):
            bootstrap_interval(wrong, level=level)
    with pytest.raises(ValueError, match="statistic returned the shape"):
        bootstrap_interval(wrong, lambda means: means)
