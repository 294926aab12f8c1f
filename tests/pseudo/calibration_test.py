"""Temperatures and thresholds of synthetic teachers, and against a plain search."""

import itertools

import numpy as np
import scipy.special

from nsk.pseudo.calibration import (
    MIN_DEV_IMAGES,
    calibrated_confidences,
    count_correct,
    precision_thresholds,
)


def log_softmax(logits):
    return scipy.special.log_softmax(logits, axis=1).astype(np.float32)


def test_a_temperature_above_1_lowers_every_confidence():
    rng = np.random.default_rng(0)
    log_probabilities = log_softmax(rng.normal(0, 3, (200, 5)))
    by_temperature = [
        calibrated_confidences(log_probabilities, temperature)
        for temperature in (0.5, 1.0, 2.0, 20.0)
    ]
    for sharper, flatter in itertools.pairwise(by_temperature):
        assert (sharper >= flatter).all() and (sharper > flatter).mean() > 0.9
    assert by_temperature[-1].min() >= 1 / 5


def test_confidences_at_temperature_1_are_unchanged():
    log_probabilities = log_softmax(np.random.default_rng(0).normal(0, 5, (500, 10)))
    found = calibrated_confidences(log_probabilities, 1.0)
    assert found.dtype == np.float32 and found.shape == (500,)
    np.testing.assert_allclose(found, np.exp(log_probabilities.max(axis=1)), rtol=1e-5)


def test_confidences_at_a_temperature_are_those_of_the_scaled_logits():
    logits = np.random.default_rng(0).normal(0, 5, (100, 10))
    for temperature in (0.05, 0.7, 3.0):
        expected = scipy.special.softmax(logits / temperature, axis=1).max(axis=1)
        found = calibrated_confidences(log_softmax(logits), temperature)
        np.testing.assert_allclose(found, expected, rtol=1e-4)
        assert (found <= 1).all()


def best_threshold(confidences, correct, target, minimum):
    """(threshold, whether the target is reached), by trying all confidences."""
    if not len(confidences):
        return np.float32(1), False
    needed = min(MIN_DEV_IMAGES, len(confidences))
    tried = []
    for threshold in np.unique(confidences):
        kept = confidences >= threshold
        if kept.sum() >= needed:
            tried.append((threshold, correct[kept].mean()))
    allowed = [(threshold, precision) for threshold, precision in tried if threshold >= minimum]
    tried = allowed or tried[-1:]
    highest = max(precision for _, precision in tried)
    threshold = min(value for value, precision in tried if precision >= min(target, highest))
    return max(threshold, minimum), highest >= target and len(allowed) > 0


def test_thresholds_are_those_of_a_plain_search_on_random_teachers():
    rng = np.random.default_rng(0)
    num_reached = num_missed = num_few = 0
    for number in range(400):
        num_classes = int(rng.integers(1, 5))
        n = int(rng.integers(0, 400))
        labels = rng.integers(0, num_classes, n)
        levels = rng.random(int(rng.choice([2, 10, 1000]))).astype(np.float32)
        confidences = rng.choice(levels, n)
        correct = rng.random(n) < confidences ** rng.choice([0.1, 0.5, 2])
        truth = np.where(correct, labels, labels + 1)
        target = float(rng.choice([0.5, 0.8, 0.9, 0.95, 0.99, 1.0]))
        min_confidence = float(rng.choice([0.0, 0.4, 0.9]))
        thresholds = precision_thresholds(
            labels, confidences, truth, num_classes, target, min_confidence
        )
        minimum = np.float32(min_confidence)
        overall, reached_overall = best_threshold(confidences, correct, target, minimum)
        assert thresholds.reached_overall == (reached_overall and n >= MIN_DEV_IMAGES)
        with_few_images, below_target, values = [], [], []
        for label in range(num_classes):
            in_class = labels == label
            values.append(overall)
            if (in_class & (confidences >= minimum)).sum() < MIN_DEV_IMAGES:
                with_few_images.append(label)
                continue
            values[-1], reached = best_threshold(
                confidences[in_class], correct[in_class], target, minimum
            )
            if not reached:
                below_target.append(label)
                values[-1] = max(values[-1], overall)
            num_reached += reached
        assert thresholds.with_few_images == tuple(with_few_images), number
        assert thresholds.below_target == tuple(below_target), number
        assert thresholds.values.dtype == np.float32
        np.testing.assert_array_equal(thresholds.values, np.float32(values))
        num_few += bool(with_few_images)
        num_missed += bool(below_target)
    assert min(num_reached, num_few, num_missed) > 50


TARGETS = [0.1, 0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.99, 0.999, 0.99999, 1.0]


def test_no_threshold_falls_as_the_target_rises():
    rng = np.random.default_rng(0)
    rising = 0
    for number in range(300):
        num_classes, n = int(rng.integers(1, 6)), int(rng.integers(0, 600))
        labels = rng.integers(0, num_classes, n)
        levels = rng.random(int(rng.choice([2, 10, 1000]))).astype(np.float32)
        confidences = rng.choice(levels, n)
        # Some classes are easy, and in some the most confident predictions are wrong.
        powers = rng.choice([-0.5, 0.02, 0.1, 0.5, 2], num_classes)
        correct = rng.random(n) < (confidences + 1e-3) ** powers[labels] * rng.choice([0.9, 1])
        truth = np.where(correct, labels, labels + 1)
        minimum = float(rng.choice([0.0, 0.3, 0.9]))
        values = [
            precision_thresholds(labels, confidences, truth, num_classes, target, minimum).values
            for target in TARGETS
        ]
        assert (np.diff(values, axis=0) >= 0).all(), number
        rising += (values[-1] > values[0]).any()
    assert rising > 150


def one_class(confidences, correct):
    """labels, confidences and truth of images that all get the label 0."""
    labels = np.zeros(len(confidences), np.int32)
    return labels, np.asarray(confidences, np.float32), np.where(correct, 0, 1)


def test_the_threshold_is_the_lowest_at_which_the_target_is_reached():
    # The 60 most confident are correct, the other 40 wrong: 60 / 66 = 0.909, 60 / 67 = 0.896.
    dev = one_class(np.linspace(1, 0.01, 100), np.arange(100) < 60)
    thresholds = precision_thresholds(*dev, 1, 0.9)
    assert thresholds.values.tolist() == [dev[1][65]]
    assert thresholds.with_few_images == () and thresholds.below_target == ()


def test_a_class_with_too_few_dev_images_has_the_overall_threshold():
    labels, confidences, truth = one_class(np.linspace(1, 0.01, 100), np.arange(100) < 60)
    labels = np.append(labels, [1] * 19)
    confidences = np.append(confidences, np.full(19, 0.2, np.float32))
    truth = np.append(truth, [1] * 19)
    thresholds = precision_thresholds(labels, confidences, truth, 3, 0.9)
    assert thresholds.with_few_images == (1, 2) and thresholds.below_target == ()
    assert thresholds.values[1] == thresholds.values[2] == thresholds.values[0]
    thresholds = precision_thresholds(
        *(np.append(a, a[-1]) for a in (labels, confidences, truth)), 3, 0.9
    )
    assert thresholds.with_few_images == (2,) and thresholds.values[1] == np.float32(0.2)


def test_the_threshold_of_a_missed_target_is_that_of_the_highest_precision():
    # 30 correct images, then 20 wrong ones; but one of the first 20 is wrong.
    correct = np.arange(50) < 30
    correct[3] = False
    dev = one_class(np.linspace(1, 0.51, 50), correct)
    for target in (0.97, 1.0):
        thresholds = precision_thresholds(*dev, 1, target)
        assert thresholds.with_few_images == () and thresholds.below_target == (0,)
        assert not thresholds.reached_overall
        assert thresholds.values.tolist() == [dev[1][29]]  # 29 of 30 is 0.967.


def test_a_class_below_the_target_has_the_overall_threshold_if_that_is_higher():
    # Half of class 1 is correct at any confidence; and all of class 0 above 0.6.
    confidences = np.concatenate([np.linspace(1, 0.21, 80), np.linspace(0.5, 0.3, 20)])
    confidences, labels = confidences.astype(np.float32), np.repeat([0, 1], [80, 20])
    correct = np.concatenate([np.arange(80) < 40, np.arange(20) % 2 == 0])
    thresholds = precision_thresholds(labels, confidences, np.where(correct, labels, 2), 2, 0.99)
    assert thresholds.below_target == (1,) and thresholds.reached_overall
    assert thresholds.values[1] == thresholds.values[0] == confidences[39]


def test_equal_confidences_are_kept_or_dropped_together():
    # Of the 30 at 0.9 the first are correct and the last wrong: no threshold separates them.
    confidences = np.repeat([0.95, 0.9], [30, 30])
    correct = np.concatenate([np.ones(30, bool), np.arange(30) < 15])
    thresholds = precision_thresholds(*one_class(confidences, correct), 1, 0.9)
    assert thresholds.values.tolist() == [np.float32(0.95)]
    thresholds = precision_thresholds(*one_class(confidences[::-1], correct[::-1]), 1, 0.9)
    assert thresholds.values.tolist() == [np.float32(0.95)]
    thresholds = precision_thresholds(*one_class(confidences, correct), 1, 0.75)
    assert thresholds.values.tolist() == [np.float32(0.9)]


def test_a_target_of_1_allows_no_mistake():
    correct = np.arange(3000) < 2000
    dev = one_class(np.linspace(1, 0.4, 3000), correct)
    thresholds = precision_thresholds(*dev, 1, 1.0)
    assert (
        thresholds.with_few_images == ()
        and thresholds.below_target == ()
        and thresholds.reached_overall
    )
    assert thresholds.values.tolist() == [dev[1][1999]]


def test_a_class_with_few_dev_images_above_the_minimum_has_the_overall_threshold():
    dev = one_class(np.linspace(1, 0.51, 50), np.ones(50, bool))
    assert precision_thresholds(*dev, 1, 0.9, 0.81).with_few_images == ()
    thresholds = precision_thresholds(*dev, 1, 0.9, 0.82)
    assert thresholds.with_few_images == (0,) and thresholds.values.tolist() == [np.float32(0.82)]
    assert (
        not thresholds.reached_overall
    )  # Only by the 20 most confident, one of which is below 0.82.


def test_no_threshold_is_below_the_minimum_confidence():
    dev = one_class(np.linspace(1, 0.1, 100), np.ones(100, bool))
    assert precision_thresholds(*dev, 2, 0.9).values.tolist() == [dev[1][-1]] * 2
    assert precision_thresholds(*dev, 2, 0.9, 0.6).values.tolist() == [np.float32(0.6)] * 2


def test_thresholds_without_dev_images_are_1():
    thresholds = precision_thresholds(*one_class([], np.zeros(0, bool)), 2, 0.9)
    assert thresholds.with_few_images == (0, 1) and thresholds.values.tolist() == [1, 1]


def test_count_correct_counts_the_images_that_thresholds_keep():
    labels = np.array([0, 0, 0, 1, 1, 2], np.int32)
    confidences = np.float32([0.9, 0.7, 0.5, 0.7, 0.2, 0.9])
    truth = np.array([0, 1, 0, 1, 1, 0])
    kept, correct = count_correct(labels, confidences, truth, np.float32([0.7, 0.1, 0.95, 0]))
    assert kept.tolist() == [2, 2, 0, 0]
    assert correct.tolist() == [1, 2, 0, 0]
