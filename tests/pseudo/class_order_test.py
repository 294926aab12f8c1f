"""Whether two classifiers have the same classes in the same order."""

import numpy as np
import pytest

from nsk.pseudo.class_order import compare_classes


def predictions(num_classes, accuracy, order=None, count=2000, seed=0):
    """Of a perfect classifier, and of one that is right with a probability, with another order."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, num_classes, count)
    guesses = random.integers(0, num_classes, count)
    second = np.where(random.random(count) < accuracy, truth, guesses)
    return truth, second if order is None else np.asarray(order)[second]


@pytest.mark.parametrize(("num_classes", "accuracy"), [(10, 0.9), (10, 0.3), (1000, 0.7), (2, 0.6)])
def test_the_same_order(num_classes, accuracy):
    for seed in range(5):
        found = compare_classes(*predictions(num_classes, accuracy, seed=seed), num_classes)
        assert found.moved == () and not found.is_by_chance
        expected = accuracy + (1 - accuracy) / num_classes
        assert abs(found.agreement - expected) < 0.05


@pytest.mark.parametrize(("num_classes", "accuracy"), [(10, 0.9), (10, 0.3), (1000, 0.7)])
def test_labels_that_are_one_too_large(num_classes, accuracy):
    order = np.roll(np.arange(num_classes), -1)
    found = compare_classes(*predictions(num_classes, accuracy, order, 4000), num_classes)
    assert found.is_by_chance
    right = sum(order[old] == new for old, new in found.moved)
    assert right > 0.6 * num_classes


def test_two_classes_that_are_swapped():
    order = [0, 1, 2, 7, 4, 5, 6, 3, 8, 9]
    found = compare_classes(*predictions(10, 0.8, order), 10)
    assert found.moved == ((3, 7), (7, 3)) and not found.is_by_chance
    assert compare_classes(*predictions(2, 0.8, [1, 0]), 2).moved == ((0, 1), (1, 0))


def test_a_classifier_that_confuses_classes_has_them_in_order():
    """Most cats are taken for dogs, but nothing for a cat."""
    random = np.random.default_rng(0)
    first = random.integers(0, 3, 3000)
    second = np.where((first == 0) & (random.random(3000) < 0.8), 1, first)
    assert compare_classes(first, second, 3).moved == ()


def test_unrelated_predictions_agree_by_chance():
    by_chance = moved = 0
    for seed in range(100):
        found = compare_classes(*predictions(10, 0.0, seed=seed), 10)
        by_chance += found.is_by_chance
        moved += bool(found.moved)
    assert by_chance >= 99 and moved <= 1
    constant = np.zeros(500, int)
    assert compare_classes(constant, constant, 10).is_by_chance


def test_wrong_arrays():
    with pytest.raises(ValueError, match="expected two arrays"):
        compare_classes([], [], 3)
    with pytest.raises(ValueError, match="expected two arrays"):
        compare_classes([1], [1, 2], 3)
