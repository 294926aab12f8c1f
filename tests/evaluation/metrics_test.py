"""Metrics against values computed by hand and against slow, plain definitions."""

import math

import numpy as np
import pytest
import sklearn.metrics

from nsk.evaluation import metrics

# Three images of three classes; the second is misclassified, its label is second.
PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8]])
LABELS = np.array([0, 1, 2])


def random_case(n=400, num_classes=8, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2, size=(n, num_classes))
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return log_probabilities, rng.integers(0, num_classes, n)


def test_values_computed_by_hand():
    log_probabilities = np.log(PROBABILITIES)
    assert metrics.accuracy(log_probabilities, LABELS) == pytest.approx(2 / 3)
    assert metrics.top_k_accuracy(log_probabilities, LABELS, 2) == 1
    assert metrics.negative_log_likelihood(log_probabilities, LABELS) == pytest.approx(
        -(math.log(0.7) + math.log(0.3) + math.log(0.8)) / 3
    )
    # 0.3^2 + 0.2^2 + 0.1^2 = 0.14; 0.6^2 + 0.7^2 + 0.1^2 = 0.86; 0.1^2 + 0.1^2 + 0.2^2 = 0.06
    assert metrics.brier(log_probabilities, LABELS) == pytest.approx((0.14 + 0.86 + 0.06) / 3)
    # Three bins of one image each: |1 - 0.7|, |0 - 0.6|, |1 - 0.8|.
    ece = metrics.expected_calibration_error(log_probabilities, LABELS)
    assert ece == pytest.approx((0.3 + 0.6 + 0.2) / 3)


def test_calibration_error_averages_within_a_bin_only():
    # Ten images of confidence 0.7, seven of them correct: calibrated, though no image is.
    log_probabilities = np.log(np.tile([0.7, 0.3], (10, 1)))
    labels = np.array([0] * 7 + [1] * 3)
    assert metrics.expected_calibration_error(log_probabilities, labels) == pytest.approx(0)
    # Fifteen bins of width 1/15: 0.73 is in (10/15, 11/15] with 0.7, and 0.74 is not.
    confidences = np.array([0.7, 0.73, 0.7, 0.74])
    log_probabilities = np.log(np.stack([confidences, 1 - confidences], axis=1))
    labels = np.array([0, 1, 0, 1])
    same_bin = metrics.expected_calibration_error(log_probabilities[:2], labels[:2])
    other_bins = metrics.expected_calibration_error(log_probabilities[2:], labels[2:])
    assert same_bin == pytest.approx(abs(1 - 0.7 - 0.73) / 2)
    assert other_bins == pytest.approx((0.3 + 0.74) / 2)


def test_calibration_error_equals_its_definition():
    log_probabilities, labels = random_case()
    confidences = np.exp(log_probabilities.max(axis=1))
    correct = log_probabilities.argmax(axis=1) == labels
    expected = 0.0
    for b in range(15):
        inside = (confidences > b / 15) & (confidences <= (b + 1) / 15)
        if inside.any():
            gap = abs(correct[inside].mean() - confidences[inside].mean())
            expected += inside.mean() * gap
    assert metrics.expected_calibration_error(log_probabilities, labels) == pytest.approx(expected)


def test_bins_hold_their_upper_edge():
    # 0.5 with two bins belongs to (0, 0.5], and 0.6 to the other: |1 - 0.5| / 2 + |0 - 0.6| / 2.
    log_probabilities = np.log([[0.5, 0.5], [0.6, 0.4]])
    ece = metrics.expected_calibration_error(log_probabilities, [0, 1], num_bins=2)
    assert ece == pytest.approx((0.5 + 0.6) / 2)


def test_confidence_1_belongs_to_the_last_bin():
    with np.errstate(divide="ignore"):
        log_probabilities = np.log([[1.0, 0.0]])
    assert metrics.expected_calibration_error(log_probabilities, [0]) == 0
    assert metrics.brier(log_probabilities, [1]) == 2
    assert metrics.negative_log_likelihood(log_probabilities, [0]) == 0
    assert metrics.negative_log_likelihood(log_probabilities, [1]) == math.inf


@pytest.mark.parametrize("k", range(1, 9))
def test_top_k_equals_a_stable_sort(k):
    log_probabilities, labels = random_case()
    first = np.argsort(-log_probabilities, axis=1, kind="stable")[:, :k]
    expected = np.mean([label in row for label, row in zip(labels, first, strict=True)])
    assert metrics.top_k_accuracy(log_probabilities, labels, k) == expected


def test_ties_go_to_the_first_class():
    log_probabilities = np.log(np.full((4, 4), 0.25))
    assert metrics.accuracy(log_probabilities, np.arange(4)) == 0.25
    assert metrics.top_k_accuracy(log_probabilities, np.arange(4), 3) == 0.75


def test_summary():
    log_probabilities, labels = random_case()
    summary = metrics.summarize(log_probabilities, labels)
    predicted = log_probabilities.argmax(axis=1)
    assert summary == {
        "accuracy": metrics.accuracy(log_probabilities, labels),
        "top5": metrics.top_k_accuracy(log_probabilities, labels, 5),
        "balanced_accuracy": sklearn.metrics.balanced_accuracy_score(labels, predicted),
        "macro_f1": pytest.approx(sklearn.metrics.f1_score(labels, predicted, average="macro")),
        "nll": metrics.negative_log_likelihood(log_probabilities, labels),
        "ece": metrics.expected_calibration_error(log_probabilities, labels),
        "brier": metrics.brier(log_probabilities, labels),
        "images": 400,
    }
    assert {type(value) for value in summary.values()} == {float, int}
    assert metrics.summarize(np.log(PROBABILITIES), LABELS)["top5"] is None
    assert metrics.summarize(*random_case(num_classes=5))["top5"] is None
    assert metrics.summarize(*random_case(num_classes=6))["top5"] is not None


@pytest.mark.parametrize("num_classes", [2, 10, 1000, 20_000])
def test_float16_log_probabilities_are_accepted(num_classes):
    uniform = np.full((3, num_classes), -math.log(num_classes), np.float16)
    nll = metrics.negative_log_likelihood(uniform, [0, 1, 1])
    assert nll == pytest.approx(math.log(num_classes), abs=0.01)


def test_paired_standard_error():
    # 100 images: both are correct on 60, only a on 10, only b on 6, neither on 24.
    correct_a = np.array([1] * 60 + [1] * 10 + [0] * 6 + [0] * 24, bool)
    correct_b = np.array([1] * 60 + [0] * 10 + [1] * 6 + [0] * 24, bool)
    expected = math.sqrt((16 / 100 - 0.04**2) / 100)
    assert metrics.paired_standard_error(correct_a, correct_b) == pytest.approx(expected)
    assert metrics.paired_standard_error(correct_b, correct_a) == pytest.approx(expected)
    assert metrics.paired_standard_error(correct_a, correct_a) == 0


def test_paired_standard_error_is_the_spread_over_repeated_draws():
    rng = np.random.default_rng(0)
    differences, errors = [], []
    for _ in range(2000):
        hard = rng.uniform(size=200)
        correct_a, correct_b = hard < rng.uniform(0.5, 1, 200), hard < rng.uniform(0.4, 1, 200)
        differences.append(correct_a.mean() - correct_b.mean())
        errors.append(metrics.paired_standard_error(correct_a, correct_b))
    assert np.std(differences) == pytest.approx(np.mean(errors), rel=0.05)


@pytest.mark.parametrize(
    "log_probabilities, labels",
    [
        (np.zeros((0, 3)), np.zeros(0, int)),
        (np.log(PROBABILITIES), LABELS[:2]),
        (np.log(PROBABILITIES)[0], LABELS[:1]),
        (np.log(PROBABILITIES), [0, 1, 3]),
        (np.log(PROBABILITIES), [0, -1, 2]),
        (np.log(PROBABILITIES), [0.0, 1.0, 2.0]),
        (np.full((3, 3), np.nan), LABELS),
        (np.full((3, 3), np.inf), LABELS),
        (np.full((3, 3), -np.inf), LABELS),
        (PROBABILITIES, LABELS),
        (10 * PROBABILITIES, LABELS),
    ],
)
def test_invalid_log_probabilities_or_labels_are_rejected(log_probabilities, labels):
    for function in (
        metrics.accuracy,
        metrics.negative_log_likelihood,
        metrics.brier,
        metrics.expected_calibration_error,
        metrics.summarize,
    ):
        with pytest.raises(ValueError, match="expected"):
            function(log_probabilities, labels)


def test_other_invalid_arguments_are_rejected():
    with pytest.raises(ValueError, match="k=0"):
        metrics.top_k_accuracy(np.log(PROBABILITIES), LABELS, 0)
    with pytest.raises(ValueError, match="at least one"):
        metrics.paired_standard_error([], [])
    with pytest.raises(ValueError, match="same shape"):
        metrics.paired_standard_error([True], [True, False])
