"""The test of agreement against exact tests and against all permutations."""

import itertools

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from nsk.evaluation import agreement
from nsk.evaluation.agreement import agreement_p_value, expected_correct, find_renaming


def from_table(table):
    """(true, predicted) classes of a table: rows are true classes, columns predictions."""
    rows, columns = np.indices(np.shape(table)).reshape(2, -1)
    counts = np.ravel(table)
    return np.repeat(rows, counts), np.repeat(columns, counts)


def test_a_few_images_of_a_rare_class_without_a_false_alarm_are_evidence():
    """Always predicting the common class is almost as accurate: 251 of 264 against 256."""
    p_value = agreement_p_value(*from_table([[251, 0], [8, 5]]))
    # All 5 predictions are among the 13 images: C(13, 5) / C(264, 5).
    assert p_value == pytest.approx(scipy.stats.hypergeom.pmf(5, 264, 13, 5))
    assert p_value == pytest.approx(1.25e-7, rel=0.01)
    # One false alarm in place of the last.
    p_value = agreement_p_value(*from_table([[250, 1], [9, 4]]))
    assert p_value == pytest.approx(scipy.stats.hypergeom.sf(3, 264, 13, 5))


@pytest.mark.parametrize(
    ("prior", "num_permutations", "num_seeds"),
    [([0.95, 0.05], None, 1000), ([0.8, 0.15, 0.05], 499, 300)],
)
def test_random_answers_over_a_skewed_prior_are_refused(
    monkeypatch, prior, num_permutations, num_seeds
):
    """About as often as the p-value says, up to the error of a number of seeds."""
    if num_permutations:
        monkeypatch.setattr(agreement, "NUM_PERMUTATIONS", num_permutations)
    p_values = []
    for seed in range(num_seeds):
        random = np.random.default_rng(seed)
        p_values.append(agreement_p_value(*random.choice(len(prior), (2, 264), p=prior)))
    p_values = np.array(p_values)
    assert np.mean(p_values > 0.01) >= 0.99
    assert np.mean(p_values > 0.2) == pytest.approx(0.85, abs=0.06)


@pytest.mark.parametrize("table", [[[3, 2], [1, 4]], [[2, 1, 0], [1, 2, 0], [1, 0, 2]]])
def test_it_is_the_share_of_all_permutations(table):
    truth, predicted = from_table(table)
    correct = (
        [np.sum(truth == np.array(order)) for order in itertools.permutations(predicted.tolist())]
        if len(truth) < 9
        else [
            np.sum(truth == np.random.default_rng(number).permutation(predicted))
            for number in range(40_000)
        ]
    )
    expected = np.mean(np.array(correct) >= np.sum(truth == predicted))
    assert agreement_p_value(truth, predicted) == pytest.approx(expected, rel=0.05)


def test_the_bound_is_never_below_the_probability():
    """With one image of each class: the number of fixed points of a permutation, nearly Poisson."""
    truth = np.arange(50)
    for num_correct in range(2, 20):
        predicted = np.roll(truth, 1)
        predicted[:num_correct] = truth[:num_correct]
        predicted[num_correct:] = np.roll(truth[num_correct:], 1)
        exact = scipy.stats.poisson.sf(num_correct - 1, 1)
        assert agreement._bound(truth, predicted) >= exact
        if exact > 0.001:
            assert agreement_p_value(truth, predicted) == pytest.approx(exact, rel=0.15)
    assert agreement_p_value(truth, truth) < 1e-5


def test_nor_is_the_bound_with_many_images_of_few_classes():
    """The number of correct predictions is normal then: mean 1000, variance 2 / 9 x 3000."""
    truth = np.arange(3000) % 3
    for num_correct in range(1020, 1200, 15):
        predicted = np.where(np.arange(3000) < num_correct, truth, (truth + 1) % 3)
        exact = scipy.stats.norm.sf(num_correct - 0.5, 1000, np.sqrt(2 / 9 * 3000))
        assert exact <= agreement._bound(truth, predicted) < 3 * exact**0.25
        if exact > 0.01:
            assert agreement_p_value(truth, predicted) == pytest.approx(exact, rel=0.15)


@pytest.mark.parametrize(
    "table",
    [
        [[0, 30], [30, 0]],  # Each class as the other one.
        [[0, 30, 0], [0, 0, 30], [30, 0, 0]],
        [[95, 0], [5, 0]],  # Always the common class.
        [[0, 95], [0, 5]],
        [[40, 0, 0], [30, 0, 0], [30, 0, 0]],
        [[50]],
    ],
)
def test_no_agreement_is_no_evidence(table):
    assert agreement_p_value(*from_table(table)) > 0.99


def test_a_thousand_classes():
    random = np.random.default_rng(0)
    truth, guesses = random.integers(0, 1000, (2, 2000))
    assert agreement_p_value(truth, guesses) > 0.01
    assert agreement_p_value(truth, np.zeros_like(truth)) == 1
    # 2 % instead of 0.1 %.
    knows = random.random(2000) < 0.02
    assert agreement_p_value(truth, np.where(knows, truth, guesses)) < 1e-4


def test_a_rare_class_among_three_is_found():
    assert agreement_p_value(*from_table([[230, 0, 0], [15, 5, 0], [13, 0, 1]])) <= 1e-3


def test_numbers_of_classes_do_not_matter():
    truth, predicted = from_table([[9, 3, 1], [2, 6, 1], [2, 2, 4]])
    p_value = agreement_p_value(truth, predicted)
    assert agreement_p_value(truth * 7 + 5, predicted * 7 + 5) == p_value
    assert agreement_p_value(truth.astype(np.int32), predicted) == p_value


def test_the_expected_number_is_that_of_kappa():
    truth, predicted = from_table([[9, 3, 1], [2, 6, 1], [2, 2, 4]])
    chance = expected_correct(truth, predicted) / 30
    kappa = (19 / 30 - chance) / (1 - chance)
    assert kappa == pytest.approx(sklearn.metrics.cohen_kappa_score(truth, predicted))


def test_a_renaming_is_found_only_if_it_holds_for_other_images():
    random = np.random.default_rng(0)
    truth = random.integers(0, 10, 200)
    order = random.permutation(10)
    predicted = np.where(random.random(200) < 0.8, order[truth], random.integers(0, 10, 200))
    assert find_renaming(truth, predicted) == {
        int(order[label]): label for label in range(10) if order[label] != label
    }
    assert find_renaming(truth, truth) == {}
    assert find_renaming([0, 1] * 20, [1, 0] * 20) == {0: 1, 1: 0}
    for seed in range(20):
        random = np.random.default_rng(seed)
        assert find_renaming(*random.integers(0, 10, (2, 50))) == {}
        assert find_renaming(random.permutation(100), random.integers(0, 100, 100)) == {}
    assert find_renaming([0, 1], [1, 0]) == {}


def test_two_classes_that_are_swapped_among_others_are_found():
    random = np.random.default_rng(0)
    truth = random.integers(0, 10, 2000)
    guesses = np.where(random.random(2000) < 0.8, truth, random.integers(0, 10, 2000))
    swapped = np.array([0, 1, 2, 7, 4, 5, 6, 3, 8, 9])[guesses]
    assert find_renaming(truth, swapped) == {3: 7, 7: 3}
    assert find_renaming(truth, guesses) == {}


@pytest.mark.parametrize(("num_classes", "accuracy"), [(10, 0.3), (1000, 0.7), (2, 0.6)])
def test_weak_classifiers_that_confuse_classes_are_not_renamed(num_classes, accuracy):
    for seed in range(10):
        random = np.random.default_rng(seed)
        truth, guesses = random.integers(0, num_classes, (2, 2000))
        predicted = np.where(random.random(2000) < accuracy, truth, guesses)
        assert find_renaming(truth, predicted) == {}
        # Most cats are taken for dogs, but nothing for a cat.
        confused = np.where((truth == 0) & (random.random(2000) < 0.8), 1, truth)
        assert find_renaming(truth, confused) == {}


@pytest.mark.parametrize(
    ("truth", "predicted"), [([], []), ([0, 1], [0]), ([0, -1], [0, 1]), ([0.5], [0]), ([[0]], [0])]
)
def test_invalid_arrays_are_rejected(truth, predicted):
    for function in (agreement_p_value, expected_correct, find_renaming):
        with pytest.raises(ValueError, match="expected"):
            function(truth, predicted)
