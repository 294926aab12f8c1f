"""Criteria against plain definitions and against the bootstrap."""

import numpy as np
import pytest
import sklearn.metrics

from nsk.evaluation import criteria, metrics

RANDOM = np.random.default_rng(0)
TRUTH = RANDOM.choice(3, 1000, p=[0.8, 0.15, 0.05])
# Shares of correct predictions by class.
CORRECT_A = RANDOM.random(1000) < np.array([0.9, 0.6, 0.5])[TRUTH]
CORRECT_B = np.where(RANDOM.random(1000) < 0.7, CORRECT_A, RANDOM.random(1000) < 0.6)


def test_scores():
    predicted = np.where(CORRECT_A, TRUTH, (TRUTH + 1) % 3)
    assert criteria.score("accuracy", CORRECT_A, TRUTH) == CORRECT_A.mean()
    assert criteria.score("balanced_accuracy", CORRECT_A, TRUTH) == pytest.approx(
        sklearn.metrics.balanced_accuracy_score(TRUTH, predicted)
    )
    assert criteria.score("nll", [-0.5, -1.5], [0, 1]) == -1
    # Other numbers of classes, some without images.
    assert criteria.score("balanced_accuracy", [1, 0, 1], [7, 7, 9]) == 0.75


def test_the_standard_error_of_the_accuracy_is_the_paired_one():
    expected = metrics.paired_standard_error(CORRECT_A, CORRECT_B)
    assert criteria.standard_error("accuracy", CORRECT_A, CORRECT_B, TRUTH) == expected


def bootstrap_error(differences, groups):
    """Spread of the mean over groups of the groups' means, images drawn within each group."""
    means = []
    for _ in range(2000):
        drawn = [RANDOM.choice(differences[group], len(group)).mean() for group in groups]
        means.append(np.mean(drawn))
    return np.std(means)


def test_standard_errors_are_those_of_the_bootstrap():
    # The same images are as hard for both on average: the hypothesis of equal models holds.
    swapped = RANDOM.random(1000) < 0.5
    a, b = np.where(swapped, CORRECT_A, CORRECT_B), np.where(swapped, CORRECT_B, CORRECT_A)
    groups = [np.flatnonzero(label == TRUTH) for label in range(3)]
    expected = bootstrap_error(a.astype(float) - b, groups)
    found = criteria.standard_error("balanced_accuracy", a, b, TRUTH)
    assert found == pytest.approx(expected, rel=0.1)
    log_a, log_b = np.log(RANDOM.dirichlet([1, 1], 1000)).T
    expected = bootstrap_error(log_a - log_b, [np.arange(1000)])
    assert criteria.standard_error("nll", log_a, log_b, TRUTH) == pytest.approx(expected, rel=0.1)


def test_a_class_of_one_image_has_an_error():
    """Its loss is one standard error; that of three images of a class is more."""
    truth = np.array([0] * 50 + [1])
    a, b = np.ones(51), np.append(np.ones(50), 0)
    assert criteria.standard_error("balanced_accuracy", a, b, truth) == 0.5
    truth, a, b = np.append(truth, [1, 1]), np.append(a, [1, 1]), np.append(b, [0, 0])
    error = criteria.standard_error("balanced_accuracy", a, b, truth)
    assert error == pytest.approx(0.5 / np.sqrt(3))
    assert criteria.standard_error("balanced_accuracy", a, a, truth) == 0


def test_scores_as_text():
    assert criteria.format_score("accuracy", 0.93149) == "93.1 %"
    assert criteria.format_score("balanced_accuracy", 0.5) == "50.0 %"
    assert criteria.format_score("nll", -0.23149) == "0.231"


def test_invalid_arguments_are_rejected():
    with pytest.raises(ValueError, match="criterion='f1': expected one of accuracy, balanced_ac"):
        criteria.score("f1", [1], [0])
    for scores, truth in (([], []), ([1], [0, 1]), ([[1]], [[0]])):
        with pytest.raises(ValueError, match="same shape"):
            criteria.score("nll", scores, truth)
    with pytest.raises(ValueError, match="same shape"):
        criteria.standard_error("nll", [0.1], [0.1, 0.2], [0])
