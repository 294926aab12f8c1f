"""Bootstrap intervals against SciPy and formulas, of errors, flips and relative errors."""

import math

import numpy as np
import pytest
import scipy.stats

from nsk.evaluation import alexnet, bootstrap, robustness
from nsk.evaluation.bootstrap import bootstrap_interval


def wrong_predictions(n=400, num_conditions=6, seed=0):
    """Whether images are misclassified: hard images are hard in every condition."""
    rng = np.random.default_rng(seed)
    difficulty = rng.beta(1, 2, (n, 1))
    return rng.random((n, num_conditions)) < difficulty


def test_resampled_means_are_means_of_drawn_images():
    values = np.random.default_rng(0).normal(size=(5, 2))
    weights = bootstrap.resampled_means(np.eye(5), 40, seed=3) * 5
    np.testing.assert_allclose(weights.sum(axis=1), 5)
    np.testing.assert_allclose(weights, weights.round(), atol=1e-12)
    assert len(np.unique(weights, axis=0)) > 20
    found = bootstrap.resampled_means(values, 40, seed=3)
    np.testing.assert_allclose(found, weights @ values / 5)


def test_resamples_depend_on_the_seed_alone(monkeypatch):
    values = wrong_predictions()
    means = bootstrap.resampled_means(values, 50, seed=1)
    np.testing.assert_array_equal(bootstrap.resampled_means(values, 50, seed=1), means)
    np.testing.assert_array_equal(bootstrap.resampled_means(values, 20, seed=1), means[:20])
    np.testing.assert_array_equal(bootstrap.resampled_means(values[:, 2:3], 50, 1), means[:, 2:3])
    assert not np.array_equal(bootstrap.resampled_means(values, 50, seed=2), means)
    monkeypatch.setattr(bootstrap, "CHUNK_SIZE", 7 * len(values))
    np.testing.assert_array_equal(bootstrap.resampled_means(values, 50, seed=1), means)
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
    errors = np.array(list(alexnet.CORRUPTION_ERRORS.values()))
    found = robustness.mean_corruption_error(np.stack([errors, errors / 2]), errors)
    np.testing.assert_allclose(found, [100, 50])
    clean = [alexnet.CLEAN_ERROR, alexnet.CLEAN_ERROR / 2]
    found = robustness.mean_corruption_error(
        np.stack([errors, errors / 2]), errors, clean, alexnet.CLEAN_ERROR
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
    found = bootstrap.paired_difference(correct_a, correct_b)
    assert found.mean == pytest.approx(0.04)
    assert found.standard_error == pytest.approx(math.sqrt((0.16 - 0.04**2) / 100))
    expected = scipy.stats.norm(found.mean, found.standard_error).interval(0.95)
    assert (found.lower, found.upper) == pytest.approx(expected)
    # The bootstrap of the same differences.
    differences = correct_a.astype(float) - correct_b
    interval = bootstrap_interval(differences)
    np.testing.assert_allclose(interval, expected, atol=found.standard_error / 4)
    assert bootstrap.paired_difference(correct_b, correct_a).mean == -found.mean
    assert bootstrap.paired_difference(correct_a, correct_a) == (0, 0, 0, 0)
    with pytest.raises(ValueError, match="same shape"):
        bootstrap.paired_difference([True], [True, False])


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
