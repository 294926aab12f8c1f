"""Calibration errors against plain loops, and temperatures against scikit-learn."""

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import sklearn.metrics
from sklearn import datasets
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

from nsk.evaluation import calibration, metrics
from nsk.evaluation.calibration import TEMPERATURES, apply_temperature, fit_temperature


def log_softmax(logits):
    return scipy.special.log_softmax(logits, axis=1).astype(np.float32)


def true_labels(rng, logits):
    """Labels drawn from softmax(logits)."""
    cumulative = np.cumsum(scipy.special.softmax(logits, axis=1), axis=1)
    return np.minimum((cumulative < rng.random((len(logits), 1))).sum(axis=1), logits.shape[1] - 1)


def random_case(n=300, num_classes=5, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (n, num_classes))
    return scipy.special.log_softmax(logits, axis=1), true_labels(rng, logits / 2)


def two_classes(confidences, is_correct):
    """Predictions of the first class with given confidences of at least 0.5."""
    confidences = np.asarray(confidences, np.float64)
    with np.errstate(divide="ignore"):
        log_probabilities = np.log(np.stack([confidences, 1 - confidences], axis=1))
    return log_probabilities, np.where(is_correct, 0, 1)


def in_bin(value, index, num_bins):
    """Whether (index / num_bins, (index + 1) / num_bins] holds the value; the first bin holds 0."""
    return value <= (index + 1) / num_bins and (value > index / num_bins or index == 0)


def gap_of(pairs):
    """|accuracy - confidence| of (confidence, correct) pairs."""
    confidences, correct = zip(*pairs, strict=True)
    return abs(math.fsum(correct) / len(pairs) - math.fsum(confidences) / len(pairs))


def top1_pairs(log_probabilities, labels):
    rows = np.exp(log_probabilities)
    return [(row.max(), row.argmax() == label) for row, label in zip(rows, labels, strict=True)]


@pytest.mark.parametrize("num_bins", [1, 4, 15])
def test_reliability_equals_its_definition(num_bins):
    log_probabilities, labels = random_case()
    pairs = top1_pairs(log_probabilities, labels)
    rows = calibration.reliability(log_probabilities, labels, num_bins)
    for index, row in enumerate(rows):
        inside = [pair for pair in pairs if in_bin(pair[0], index, num_bins)]
        assert row["lower"] == index / num_bins and row["upper"] == (index + 1) / num_bins
        assert row["count"] == len(inside) and type(row["count"]) is int
        if inside:
            assert row["confidence"] == pytest.approx(np.mean([pair[0] for pair in inside]))
            assert row["accuracy"] == pytest.approx(np.mean([pair[1] for pair in inside]))
        else:
            assert row["confidence"] is None and row["accuracy"] is None
    assert sum(row["count"] for row in rows) == len(labels) and len(rows) == num_bins


def test_the_expected_and_the_maximum_error_are_those_of_the_reliability_diagram():
    log_probabilities, labels = random_case()
    used = [row for row in calibration.reliability(log_probabilities, labels) if row["count"]]
    assert len(used) < 15  # With five classes no confidence is below 0.2.
    gaps = [abs(row["accuracy"] - row["confidence"]) for row in used]
    shares = [row["count"] / len(labels) for row in used]
    found = calibration.maximum_calibration_error(log_probabilities, labels)
    assert found == pytest.approx(max(gaps))
    expected = metrics.expected_calibration_error(log_probabilities, labels)
    assert expected == pytest.approx(np.dot(gaps, shares))
    assert expected < found


def test_confidence_1_belongs_to_the_last_bin():
    log_probabilities, labels = two_classes([1.0, 1.0, 0.95], [True, False, True])
    rows = calibration.reliability(log_probabilities, labels)
    assert [row["count"] for row in rows] == [0] * 14 + [3]
    assert rows[-1]["confidence"] == pytest.approx(2.95 / 3)
    assert calibration.maximum_calibration_error(log_probabilities, labels) == pytest.approx(
        0.95 / 3
    )
    # Pooled: 1, 1 and 0.95 in the last bin, 0, 0 and 0.05 in the first one.
    pooled = calibration.pooled_calibration_error(log_probabilities, labels)
    assert pooled == pytest.approx((0.95 / 3 + abs(1 / 3 - 0.05 / 3)) / 2)
    assert calibration.classwise_calibration_error(log_probabilities, labels) == pytest.approx(
        0.95 / 3
    )


@pytest.mark.parametrize("closed", ["upper", "lower"])
@pytest.mark.parametrize("num_bins", [10, 15])
def test_edges_belong_to_one_bin(num_bins, closed):
    edges = np.arange(num_bins + 1) / num_bins
    found = metrics.confidence_bins(edges, num_bins, closed)
    first = np.arange(num_bins + 1) - (closed == "upper")
    np.testing.assert_array_equal(found, first.clip(0, num_bins - 1))
    # A confidence above 1 by rounding is in the last bin, and the next float is on the other side.
    assert metrics.confidence_bins(np.nextafter(1, 2), num_bins, closed) == num_bins - 1
    inner = edges[1:-1]
    above = metrics.confidence_bins(np.nextafter(inner, 1), num_bins, closed)
    below = metrics.confidence_bins(np.nextafter(inner, 0), num_bins, closed)
    np.testing.assert_array_equal(above, np.arange(1, num_bins))
    np.testing.assert_array_equal(below, np.arange(num_bins - 1))


@pytest.mark.parametrize("n, num_bins", [(300, 15), (47, 10), (4, 15), (15, 15), (1, 3)])
def test_the_adaptive_error_has_bins_of_equally_many_images(n, num_bins):
    log_probabilities, labels = random_case(n)
    pairs = sorted(top1_pairs(log_probabilities, labels))
    bins = [pairs[-(-b * n // num_bins) : -(-(b + 1) * n // num_bins)] for b in range(num_bins)]
    sizes = {len(pairs) for pairs in bins}
    assert max(sizes) - min(sizes) <= 1
    expected = sum(len(pairs) / n * gap_of(pairs) for pairs in bins if pairs)
    found = calibration.adaptive_calibration_error(log_probabilities, labels, num_bins)
    assert found == pytest.approx(expected)


def test_the_adaptive_error_does_not_separate_equal_confidences():
    # The split of two bins would be within the four images of confidence 0.8.
    log_probabilities, labels = two_classes(
        [0.6, 0.8, 0.8, 0.8, 0.8, 0.9], [True, True, True, False, False, True]
    )
    expected = (5 * abs(3 / 5 - 3.8 / 5) + 0.1) / 6
    rng = np.random.default_rng(0)
    for _ in range(5):
        order = rng.permutation(6)
        found = calibration.adaptive_calibration_error(log_probabilities[order], labels[order], 2)
        assert found == pytest.approx(expected)
    # All confidences are equal: one bin, whatever their number.
    log_probabilities, labels = two_classes([0.7] * 10, [True] * 4 + [False] * 6)
    for num_bins in (1, 2, 15):
        found = calibration.adaptive_calibration_error(log_probabilities, labels, num_bins)
        assert found == pytest.approx(0.3)


def test_the_classwise_error_equals_its_definition():
    log_probabilities, labels = random_case(n=120, num_classes=4)
    errors = []
    for index in range(4):
        pairs = [
            (row[index], label == index)
            for row, label in zip(np.exp(log_probabilities), labels, strict=True)
        ]
        error = 0.0
        for b in range(15):
            inside = [pair for pair in pairs if in_bin(pair[0], b, 15)]
            error += len(inside) / 120 * gap_of(inside) if inside else 0
        errors.append(error)
    found = calibration.classwise_calibration_error(log_probabilities, labels)
    assert found == pytest.approx(np.mean(errors))


def test_the_pooled_error_equals_its_definition():
    log_probabilities, labels = random_case(n=60, num_classes=3)
    bins = [[] for _ in range(10)]
    for row, label in zip(np.exp(log_probabilities), labels, strict=True):
        for index, probability in enumerate(row):
            inside = [b for b in range(10) if b / 10 <= probability < (b + 1) / 10]
            bins[inside[0] if inside else 9].append((probability, index == label))
    expected = np.mean([gap_of(pairs) for pairs in bins if pairs])
    found = calibration.pooled_calibration_error(log_probabilities, labels)
    assert found == pytest.approx(expected)


def test_empty_bins_of_the_pooled_error_do_not_count():
    # Probabilities 0.9 (correct) and 0.1: bins [0.1, 0.2) and the last one.
    log_probabilities = np.array([[math.log(0.9000001), math.log(0.1000001)]])
    found = calibration.pooled_calibration_error(log_probabilities, [0])
    assert found == pytest.approx(0.1, abs=1e-6)


def test_which_bin_holds_an_edge():
    log_probabilities = np.log([[0.5, 0.25, 0.25], [0.45, 0.32, 0.23]])
    # Two bins: 0.5 is in the lower one, with 0.45.
    found = calibration.classwise_calibration_error(log_probabilities, [0, 1], 2)
    assert found == pytest.approx((abs(1 - 0.95) + abs(1 - 0.57) + 0.48) / 2 / 3)
    # Ten bins: 0.5 is in the upper one. Gaps of 0.5, 0.45, 0.32 and of the three others.
    found = calibration.pooled_calibration_error(log_probabilities, [0, 1])
    assert found == pytest.approx((0.5 + 0.45 + 0.68 + 0.73 / 3) / 4)


@pytest.mark.parametrize("num_classes", [2, 6])
def test_likelihood_and_brier_equal_those_of_scikit_learn(num_classes):
    log_probabilities, labels = random_case(num_classes=num_classes)
    probabilities = np.exp(log_probabilities)
    found = calibration.calibration_metrics(log_probabilities, labels)
    classes = list(range(num_classes))
    assert found["nll"] == pytest.approx(
        sklearn.metrics.log_loss(labels, probabilities, labels=classes)
    )
    assert found["brier"] == pytest.approx(
        sklearn.metrics.brier_score_loss(labels, probabilities, labels=classes, scale_by_half=False)
    )


def test_all_metrics():
    log_probabilities, labels = random_case()
    found = calibration.calibration_metrics(log_probabilities, labels)
    assert found == {
        "ece": metrics.expected_calibration_error(log_probabilities, labels),
        "mce": calibration.maximum_calibration_error(log_probabilities, labels),
        "adaptive_ece": calibration.adaptive_calibration_error(log_probabilities, labels),
        "classwise_ece": calibration.classwise_calibration_error(log_probabilities, labels),
        "ece_pooled10": calibration.pooled_calibration_error(log_probabilities, labels),
        "nll": metrics.negative_log_likelihood(log_probabilities, labels),
        "brier": metrics.brier(log_probabilities, labels),
    }
    assert {type(value) for value in found.values()} == {float}


def test_calibrated_predictions_have_small_errors_and_overconfident_ones_large_errors():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1.5, (20_000, 4))
    labels = true_labels(rng, logits)
    calibrated = calibration.calibration_metrics(log_softmax(logits), labels)
    overconfident = calibration.calibration_metrics(log_softmax(3 * logits), labels)
    for name in ("ece", "adaptive_ece", "classwise_ece", "ece_pooled10"):
        assert calibrated[name] < 0.02 and overconfident[name] > 0.05, name
    assert overconfident["nll"] > calibrated["nll"] and overconfident["mce"] > 0.15


class Logits(ClassifierMixin, BaseEstimator):
    """A classifier whose features are the logits."""

    def __init__(self, num_classes=2):
        self.num_classes = num_classes

    def fit(self, features, labels):
        self.classes_ = np.arange(self.num_classes)
        return self

    def decision_function(self, features):
        return features

    def predict_proba(self, features):
        return scipy.special.softmax(features, axis=1)

    def predict(self, features):
        return features.argmax(axis=1)


@pytest.mark.parametrize("scale", [0.4, 3.0])
def test_the_temperature_equals_that_of_scikit_learn(scale):
    """Of many images: scikit-learn has no prior."""
    rng = np.random.default_rng(2)
    logits = np.repeat(rng.normal(0, 2, (800, 5)), 100, axis=0)
    labels = true_labels(rng, logits)
    scaled = logits * scale
    model = FrozenEstimator(Logits(5).fit(scaled, labels))
    expected = CalibratedClassifierCV(model, method="temperature").fit(scaled, labels)
    (calibrator,) = expected.calibrated_classifiers_[0].calibrators
    log_probabilities = scipy.special.log_softmax(scaled, axis=1)
    temperature = fit_temperature(log_probabilities, labels)
    assert temperature == pytest.approx(1 / calibrator.beta_, rel=2e-4)
    np.testing.assert_allclose(
        np.exp(apply_temperature(log_probabilities, temperature)),
        expected.predict_proba(scaled),
        atol=2e-4,
    )


def test_the_temperature_of_an_overconfident_classifier_of_digits_improves_its_calibration():
    images, labels = datasets.load_digits(return_X_y=True)
    model = LogisticRegression(C=1e4, max_iter=300).fit(images[:200], labels[:200])
    dev, test = model.predict_log_proba(images[200:900]), model.predict_log_proba(images[900:])
    temperature = fit_temperature(dev, labels[200:900])
    before = calibration.calibration_metrics(test, labels[900:])
    after = calibration.calibration_metrics(apply_temperature(test, temperature), labels[900:])
    assert temperature > 1.5
    for name in ("ece", "adaptive_ece", "classwise_ece", "nll", "brier"):
        assert after[name] < before[name], name


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5, 8.0])
@pytest.mark.parametrize("num_classes", [2, 10])
def test_the_temperature_of_scaled_logits_is_found(temperature, num_classes):
    """The logits are those that the labels were drawn from, times the temperature."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, num_classes))
    labels = true_labels(rng, logits)
    found = fit_temperature(log_softmax(logits * temperature), labels)
    assert isinstance(found, float)
    assert found == pytest.approx(temperature, rel=0.04)


def test_no_other_temperature_is_more_probable():
    """By brute force, with the density of the prior from SciPy."""
    rng = np.random.default_rng(1)
    for _ in range(20):
        log_probabilities = log_softmax(rng.normal(0, 3, (50, 4)))
        labels = true_labels(rng, log_probabilities * rng.choice([0.3, 1, 2]))

        def loss(temperature, log_probabilities=log_probabilities, labels=labels):
            scaled = scipy.special.log_softmax(
                log_probabilities.astype(np.float64) / temperature, axis=1
            )
            prior = scipy.stats.norm.logpdf(np.log(temperature), 0, 0.5)
            return -scaled[np.arange(50), labels].sum() - prior

        found = fit_temperature(log_probabilities, labels)
        temperatures = np.geomspace(*TEMPERATURES, 400)
        assert loss(found) <= min(map(loss, temperatures)) + 1e-7


@pytest.mark.parametrize(
    ("confidence", "num_images", "lowest", "highest"),
    [(0.999, 40, 0.9, 1.0), (0.9, 40, 0.5, 0.7), (0.9, 1000, 0.25, 0.5)],
)
@pytest.mark.parametrize("num_classes", [2, 10])
def test_images_without_an_error_do_not_make_all_probabilities_1(
    confidence, num_images, lowest, highest, num_classes
):
    """More of them sharpen more; the calibrated errors stay within 1/4 of Laplace's 1 / (n + 2)."""
    other = (1 - confidence) / (num_classes - 1)
    row = np.log(np.full(num_classes, other) + np.eye(num_classes)[0] * (confidence - other))
    found = fit_temperature(np.tile(row, (num_images, 1)), np.zeros(num_images, int))
    assert lowest < found < highest
    calibrated = np.exp(apply_temperature(row[np.newaxis], found)[0, 0])
    assert 1 - calibrated > min(1 - confidence, 1 / (num_images + 2)) / 4


def test_images_that_are_all_wrong_flatten_all_probabilities():
    rows = log_softmax(np.eye(3)[[0, 1, 2] * 20] * 2)
    assert 2 < fit_temperature(rows, np.array([1, 2, 0] * 20)) < TEMPERATURES[1]


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 2.0])
def test_the_prior_hardly_matters_with_200_errors(true_temperature, monkeypatch):
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 4, (850, 10))
    labels = true_labels(rng, logits)
    assert 190 < np.sum(logits.argmax(axis=1) != labels) < 260
    rows = log_softmax(logits * true_temperature)
    found = fit_temperature(rows, labels)
    monkeypatch.setattr(calibration, "PRIOR_DEVIATION", 1e9)
    assert found == pytest.approx(fit_temperature(rows, labels), rel=0.015)


def test_a_temperature_scales_the_logits():
    logits = np.random.default_rng(0).normal(0, 5, (100, 10))
    for temperature in (0.05, 1.0, 3.0):
        expected = scipy.special.log_softmax(logits / temperature, axis=1)
        for rows in (scipy.special.log_softmax(logits, axis=1), logits):
            found = apply_temperature(rows, temperature)
            assert found.dtype == np.float64
            np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)
        found = apply_temperature(log_softmax(logits).astype(np.float16), temperature)
        np.testing.assert_allclose(np.exp(found).sum(axis=1), 1)


def test_a_probability_of_0_stays_0():
    found = apply_temperature([[0.0, -np.inf], [math.log(0.2), math.log(0.8)]], 2.0)
    np.testing.assert_allclose(np.exp(found), [[1, 0], [1 / 3, 2 / 3]])
    # The other labels decide.
    rows = [[0.0, -np.inf], *[[math.log(0.2), math.log(0.8)]] * 10]
    assert fit_temperature(rows, [0] * 11) == pytest.approx(fit_temperature(rows[1:], [0] * 10))
    with pytest.raises(ValueError, match="row 1: the label has probability 0"):
        fit_temperature(np.array([[0.0, -np.inf]] * 2), [0, 1])


@pytest.mark.parametrize("temperature", [0, -1.0, math.inf, math.nan])
def test_invalid_temperatures_are_rejected(temperature):
    with pytest.raises(ValueError, match="temperature="):
        apply_temperature([[0.0, -1.0]], temperature)


@pytest.mark.parametrize(
    "log_probabilities", [[0.0, -1.0], [[0.0, math.nan]], [[-math.inf] * 2], [[0.0, math.inf]]]
)
def test_invalid_rows_have_no_temperature(log_probabilities):
    with pytest.raises(ValueError, match=r"log_probabilities.*: expected"):
        apply_temperature(log_probabilities, 2.0)


@pytest.mark.parametrize(
    "log_probabilities, labels",
    [
        (np.zeros((0, 3)), np.zeros(0, int)),
        (np.log([[0.5, 0.5]]), [2]),
        (np.log([[0.5, 0.5]]), [0, 1]),
        (np.array([[3.0, 1.0]]), [0]),
        (np.full((1, 2), np.nan), [0]),
    ],
)
def test_invalid_predictions_are_rejected(log_probabilities, labels):
    for function in (
        calibration.reliability,
        calibration.maximum_calibration_error,
        calibration.adaptive_calibration_error,
        calibration.classwise_calibration_error,
        calibration.pooled_calibration_error,
        calibration.calibration_metrics,
        fit_temperature,
    ):
        with pytest.raises(ValueError, match="expected"):
            function(log_probabilities, labels)


def test_no_bins_are_rejected():
    log_probabilities, labels = random_case(n=5)
    for function in (
        calibration.reliability,
        calibration.adaptive_calibration_error,
        calibration.classwise_calibration_error,
    ):
        with pytest.raises(ValueError, match="num_bins=0"):
            function(log_probabilities, labels, 0)
