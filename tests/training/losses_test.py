import numpy as np
import pytest
import tensorflow as tf
from sklearn.utils.class_weight import compute_class_weight

from nsk.training import losses

# Predictions of two images: a confident one, and one with a close second class.
PROBABILITIES = np.array([[0.90, 0.06, 0.03, 0.01], [0.20, 0.38, 0.02, 0.40]], np.float32)
LOG_PROBABILITIES = np.log(PROBABILITIES)


def test_labels_are_smoothed_over_all_classes():
    targets = losses.label_targets(np.array([2, 0]), 4, 0.1).numpy()
    expected = [[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]]
    np.testing.assert_allclose(targets, expected, rtol=1e-6)
    np.testing.assert_array_equal(losses.label_targets(np.array([2, 0]), 4), np.eye(4)[[2, 0]])


FIRST_CHOICES = np.array([0, 3])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_soft_targets_are_the_normalised_power_of_the_probabilities(temperature):
    targets = losses.pseudo_targets(
        FIRST_CHOICES,
        LOG_PROBABILITIES,
        "soft",
        temperature=temperature,
        label_smoothing=0.1,
        smooth_epsilon=0.3,
    )
    powers = PROBABILITIES.astype(np.float64) ** (1 / temperature)
    np.testing.assert_allclose(targets, powers / powers.sum(axis=1, keepdims=True), rtol=1e-5)


def test_hard_targets_are_smoothed_as_labels_are():
    targets = losses.pseudo_targets(
        FIRST_CHOICES, LOG_PROBABILITIES, "hard", label_smoothing=0.2, temperature=5
    )
    np.testing.assert_array_equal(targets, losses.label_targets(np.array([0, 3]), 4, 0.2))
    sharp = losses.pseudo_targets(FIRST_CHOICES, LOG_PROBABILITIES, "hard")
    np.testing.assert_array_equal(sharp, np.eye(4)[[0, 3]])


def test_smooth_targets_leave_epsilon_to_the_other_classes():
    """1 - e on the first choice and e / (C - 1) elsewhere: not the label smoothing with e / C."""
    targets = losses.pseudo_targets(FIRST_CHOICES, LOG_PROBABILITIES, "smooth", smooth_epsilon=0.3)
    expected = [[0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7]]
    np.testing.assert_allclose(targets, expected, rtol=1e-6)


@pytest.mark.parametrize("kind", ["soft", "hard", "smooth"])
def test_rows_sum_to_one_from_float16_scores_with_deep_tails(kind):
    """Scores are kept in float16, where a far tail is a large negative number or -inf."""
    stored = np.float16([[-1e-3, -8.0, -12.5, -np.inf], [-0.6, -0.8, -30000.0, -20.0]])
    for temperature in (0.3, 1.0, 4.0):
        targets = losses.pseudo_targets(
            np.array([0, 0]),
            stored.astype(np.float32),
            kind,
            temperature=temperature,
            label_smoothing=0.1,
        ).numpy()
        assert targets.dtype == np.float32
        np.testing.assert_allclose(targets.sum(axis=1), 1.0, rtol=1e-6)
        np.testing.assert_array_equal(targets.argmax(axis=1), [0, 0])


@pytest.mark.parametrize("kind", ["hard", "smooth"])
def test_the_stored_first_choice_counts_and_not_that_of_rounded_scores(kind):
    tied = np.log(np.float32([[0.4, 0.4, 0.2]]))
    targets = losses.pseudo_targets(np.array([1]), tied, kind, smooth_epsilon=0.1).numpy()
    assert targets.argmax() == 1


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="kind='firm'"):
        losses.pseudo_targets(FIRST_CHOICES, LOG_PROBABILITIES, "firm")


@pytest.mark.parametrize("dtype", [tf.float32, tf.bfloat16])
def test_summed_cross_entropy_by_hand(dtype):
    logits = np.array([[2.0, 0.0, -1.0, 0.5], [0.0, 4.0, 1.0, -2.0]])
    weights = np.array([0.5, 2.0], np.float32)
    shifted = np.exp(logits)
    log_softmax = np.log(shifted / shifted.sum(axis=1, keepdims=True))
    expected = np.sum(weights * -np.sum(PROBABILITIES * log_softmax, axis=1))
    loss = losses.summed_cross_entropy(PROBABILITIES, tf.cast(logits, dtype), weights)
    assert loss.dtype == tf.float32
    assert loss.numpy() == pytest.approx(expected, rel=1e-6)


def test_the_loss_of_no_rows_is_zero():
    assert losses.summed_cross_entropy(PROBABILITIES[:0], tf.zeros([0, 4]), tf.zeros([0])) == 0.0


def test_balanced_weights_are_those_of_scikit_learn():
    labels = np.repeat([0, 1, 3], [90, 8, 2])
    weights = losses.balanced_class_weights(np.bincount(labels, minlength=5))
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=labels)
    np.testing.assert_allclose(weights[[0, 1, 3]], expected, rtol=1e-6)
    np.testing.assert_array_equal(weights[[2, 4]], 1)
    assert weights[labels].mean() == pytest.approx(1)
    np.testing.assert_allclose(np.bincount(labels, weights[labels])[[0, 1, 3]], 100 / 3, rtol=1e-6)
