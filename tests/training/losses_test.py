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


def log_softmax(logits):
    """In double precision."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def test_distillation_targets_are_the_smoothed_label_and_the_softened_probabilities():
    targets = losses.distillation_targets(
        np.array([2, 3]), LOG_PROBABILITIES, temperature=4.0, label_smoothing=0.1
    ).numpy()
    roots = PROBABILITIES.astype(np.float64) ** 0.25
    np.testing.assert_allclose(targets[:, 0], losses.label_targets(np.array([2, 3]), 4, 0.1))
    np.testing.assert_allclose(targets[:, 1], roots / roots.sum(1, keepdims=True), rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_the_distillation_loss_and_its_gradient_are_those_of_the_formula(alpha, temperature):
    """The gradient is (1 - alpha) (s(z) - hard) + alpha T (s(z / T) - soft) for each row."""
    random = np.random.default_rng(0)
    logits, teacher = random.normal(0, 3, (2, 5, 7))
    weights, labels = random.uniform(0.5, 2, 5), random.integers(0, 7, 5)
    hard = 0.8 * np.eye(7)[labels] + 0.2 / 7
    log_soft = log_softmax(teacher / temperature)
    soft, log_student = np.exp(log_soft), log_softmax(logits / temperature)
    divergence = (soft * (log_soft - log_student)).sum(axis=1)
    cross_entropy = -(hard * log_softmax(logits)).sum(axis=1)
    rows = (1 - alpha) * cross_entropy + alpha * temperature**2 * divergence
    slopes = (1 - alpha) * (np.exp(log_softmax(logits)) - hard)
    slopes += alpha * temperature * (np.exp(log_student) - soft)

    targets = losses.distillation_targets(
        labels,
        tf.constant(log_softmax(teacher), tf.float32),
        temperature=temperature,
        label_smoothing=0.2,
    )
    variable = tf.Variable(logits, dtype=tf.float32)
    with tf.GradientTape() as tape:
        loss = losses.summed_distillation_loss(
            targets, variable, tf.constant(weights, tf.float32), alpha, temperature
        )
    assert loss.numpy() == pytest.approx(weights @ rows, rel=1e-4)
    expected = weights[:, None] * slopes
    np.testing.assert_allclose(tape.gradient(loss, variable), expected, rtol=1e-3, atol=1e-5)


def test_distillation_at_alpha_1_and_temperature_1_has_the_gradient_of_soft_labels():
    logits = tf.Variable([[2.0, 0.0, -1.0, 0.5], [0.0, 4.0, 1.0, -2.0]])
    weights = tf.constant([0.5, 2.0])
    with tf.GradientTape(persistent=True) as tape:
        soft = losses.pseudo_targets(FIRST_CHOICES, LOG_PROBABILITIES, "soft")
        plain = losses.summed_cross_entropy(soft, logits, weights)
        both = losses.distillation_targets(FIRST_CHOICES, LOG_PROBABILITIES, temperature=1.0)
        distilled = losses.summed_distillation_loss(both, logits, weights, 1.0, 1.0)
    np.testing.assert_allclose(tape.gradient(distilled, logits), tape.gradient(plain, logits))
    entropy = -(PROBABILITIES * LOG_PROBABILITIES).sum(axis=1)
    assert (plain - distilled).numpy() == pytest.approx(weights.numpy() @ entropy, rel=1e-5)


def test_a_teacher_that_is_certain_has_a_finite_divergence():
    certain = np.log(np.float32([[1.0, 1e-30, 1e-30]]))
    targets = losses.distillation_targets(np.array([0]), certain, temperature=0.1)
    loss = losses.summed_distillation_loss(targets, tf.zeros([1, 3]), tf.ones(1), 1.0, 0.1)
    assert loss.numpy() == pytest.approx(0.01 * np.log(3), rel=1e-5)
